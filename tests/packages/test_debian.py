"""The Debian package on clean machines of both suites: it installs, runs, upgrades, and leaves nothing when it is purged."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kopiatomic import __version__
from tests.btrfs.conftest import wait_for
from tests.packages.conftest import OLDER
from tests.packages.machine import Machine, living_run
from tests.support.filesystems import Btrfs

pytestmark = pytest.mark.in_part(3)

# apt's and dpkg's own accounts of what was done.
ACCOUNTS = ("/var/lib/dpkg", "/var/lib/apt", "/var/log", "/var/cache")


def files(host: Machine) -> set[str]:
    """All that is on the machine, each with its kind, mode, size and time, but for the accounts."""
    left_out = " ".join(f"-path {path} -prune -o" for path in ACCOUNTS)
    # Of folders only that they are there: their times change with what comes and goes in them.
    script = f"find / /run -xdev {left_out} -type d -printf '%p %y %m\\n' -o -printf '%p %y %m %s %t\\n'"
    return set(host.shell(script).stdout.splitlines())


@pytest.fixture
def home(made_btrfs: tuple[Path, Btrfs], host: Machine) -> Path:
    """A subvolume, as the machine names it."""
    return host.there(made_btrfs[1].mountpoint / "home")


@pytest.fixture
def snapshots(made_btrfs: tuple[Path, Btrfs]) -> Callable[[], list[str]]:
    """The snapshots of that filesystem."""
    return made_btrfs[1].snapshots


@pytest.fixture
def deb(host: Machine, package: Path) -> Path:
    return host.there(host.exchange / package.name)


@pytest.fixture
def older_deb(host: Machine, older: Path) -> Path:
    return host.there(host.exchange / older.name)


@pytest.fixture
def installed(host: Machine, deb: Path) -> Iterator[Machine]:
    """The machine with the package; it is purged at the end, whatever the test did."""
    host.apt("install", deb)
    yield host
    host("dpkg", "--purge", "kopiatomic")
    assert not host.path("/var/lib/kopiatomic").exists()


def status(host: Machine) -> str:
    """What dpkg knows of the package."""
    return host("dpkg-query", "-W", "-f", "${Status}", "kopiatomic", check=False).stdout


@pytest.mark.in_part(1)
def test_it_installs_runs_upgrades_and_is_removed_and_purged(
    host: Machine, deb: Path, older_deb: Path, home: Path, snapshots: Callable[[], list[str]]
) -> None:
    before = files(host)
    host.apt("install", older_deb)
    assert host("kopiatomic", "--version").stdout == f"kopiatomic {OLDER}\n"
    host.apt("install", deb)
    assert host("kopiatomic", "--version").stdout == f"kopiatomic {__version__}\n"
    assert "Usage: kopiatomic" in host("kopiatomic", "-h").stdout
    planned = host("kopiatomic", "-n", "-c", "tar -cf /tmp/frozen.tar", home).stdout
    assert (str(home) in planned, "tar -cf /tmp/frozen.tar" in planned) == (True, True), planned
    assert not host.path("/var/lib/kopiatomic").exists()

    host("kopiatomic", "--quiet", "-c", "tar -cf /tmp/frozen.tar", home)
    assert "btrfs/mnt/home/letter" in host("tar", "-tf", "/tmp/frozen.tar").stdout
    host("rm", "/tmp/frozen.tar")

    host.apt("remove", "kopiatomic")
    left = {line.split(" ")[0] for line in files(host) ^ before}
    assert {path for path in left if not path.startswith("/var/lib/kopiatomic")} == set()
    assert host.path("/var/lib/kopiatomic").is_dir()
    host.apt("purge", "kopiatomic")
    assert files(host) ^ before == set()
    assert (status(host), snapshots()) == ("", [])


def test_all_that_a_user_looks_for_is_in_it(installed: Machine) -> None:
    for path in (
        "/usr/share/man/man8/kopiatomic.8.gz",
        "/usr/share/bash-completion/completions/kopiatomic",
        "/usr/share/zsh/vendor-completions/_kopiatomic",
        "/usr/share/fish/vendor_completions.d/kopiatomic.fish",
        "/usr/share/doc/kopiatomic/README.md.gz",
        "/usr/share/doc/kopiatomic/changelog.gz",
        "/usr/share/doc/kopiatomic/copyright",
        "/usr/lib/systemd/system/kopiatomic@.service",
        "/usr/lib/systemd/system/kopiatomic@.timer",
    ):
        assert installed.path(path).is_file(), path


@pytest.mark.in_part(1)
def test_an_upgrade_does_no_harm_to_a_run(installed: Machine, older_deb: Path, deb: Path, home: Path) -> None:
    installed.apt("install", "--allow-downgrades", older_deb)
    with living_run(installed, home) as run:
        installed.apt("install", deb)
        installed("touch", "/tmp/go")
        assert run.wait(30) == 0
    assert installed("kopiatomic", "--version").stdout == f"kopiatomic {__version__}\n"


def test_it_is_not_removed_while_a_run_lives(
    installed: Machine, home: Path, snapshots: Callable[[], list[str]]
) -> None:
    with living_run(installed, home) as run:
        for word in ("remove", "purge"):
            refused = installed.apt(word, "kopiatomic", check=False)
            assert (refused.returncode, "is alive" in refused.stderr) == (100, True), str(refused)
            assert status(installed).endswith(" ok installed")
        assert len(snapshots()) == 1
        installed("touch", "/tmp/go")
        assert run.wait(30) == 0
    assert snapshots() == []
    installed.apt("remove", "kopiatomic")


def killed(host: Machine, home: Path) -> None:
    """Kill all processes of a run at once, which leaves its snapshot."""
    with living_run(host, home):
        host.shell("kill -KILL -1", check=False)


def test_what_a_killed_run_left_goes_with_it(
    installed: Machine, home: Path, snapshots: Callable[[], list[str]]
) -> None:
    killed(installed, home)
    assert len(snapshots()) == 1
    installed.apt("remove", "kopiatomic")
    assert snapshots() == []
    assert not installed.path("/run/kopiatomic").exists()


def test_it_is_not_removed_while_it_alone_knows_what_a_killed_run_left(
    installed: Machine, made_btrfs: tuple[Path, Btrfs], home: Path, snapshots: Callable[[], list[str]]
) -> None:
    killed(installed, home)
    installed("umount", home.parent)
    refused = installed.apt("remove", "kopiatomic", check=False)
    assert (refused.returncode, "what killed runs left is still there" in refused.stderr) == (100, True), str(refused)
    assert status(installed).endswith(" ok installed")
    installed("mount", "-t", "btrfs", made_btrfs[1].device, home.parent)
    installed.apt("remove", "kopiatomic")
    assert snapshots() == []


PROFILE = """
[select]
datasets = ["{home}"]
[engine]
command = ["true"]
[hooks.before_freeze]
shell = "touch /tmp/begun; sleep 60"
[hooks.after_freeze]
command = ["touch", "/tmp/let-go"]
"""


@pytest.fixture
def owing(installed: Machine, home: Path) -> Iterator[Machine]:
    """A machine on which all processes of a run were killed between its hooks."""
    installed.shell("mkdir -p /etc/kopiatomic; rm -f /tmp/begun")
    installed.path("/etc/kopiatomic/home.toml").write_text(PROFILE.format(home=home))
    with subprocess.Popen(installed.argv("kopiatomic", "run", "--quiet", "home"), stdin=subprocess.DEVNULL) as run:
        wait_for(installed.path("/tmp/begun").exists, "the start of before_freeze")
        installed.shell("kill -KILL -1", check=False)
        run.wait(30)
    yield installed
    installed("kopiatomic", "recover", check=False)
    installed.shell("rm -rf /etc/kopiatomic /tmp/begun /tmp/let-go")


def test_it_is_not_removed_while_a_hook_is_owed_and_does_not_run_it(owing: Machine) -> None:
    let_go = owing.path("/tmp/let-go")
    refused = owing.apt("remove", "kopiatomic", check=False)
    assert (refused.returncode, status(owing).endswith(" ok installed")) == (100, True), str(refused)
    assert "hook after_freeze\n" in refused.stdout
    assert "owed by profile home" in refused.stdout
    (line,) = [line for line in refused.stdout.splitlines() if "OWED" in line]
    assert "touch /tmp/let-go" in line
    assert "'kopiatomic recover'" in line
    assert "what killed runs left is still there (see above)" in refused.stderr
    assert not let_go.exists()
    owing("kopiatomic", "recover")
    assert let_go.exists()
    owing.apt("remove", "kopiatomic")


def test_schedules_end_with_it(installed: Machine, deb: Path) -> None:
    """As they are on disk, whoever made them. systemd is a shim that writes down what it is told, zfs one with bookmarks."""
    units = "/etc/systemd/system"
    wants = f"{units}/timers.target.wants"
    installed.shell(
        f"""
        mkdir -p {wants} /run/systemd/system /var/lib/systemd/timers
        ln -s /usr/lib/systemd/system/kopiatomic@.timer '{wants}/kopiatomic@my\\x2dhome.timer'
        ln -s /usr/lib/systemd/system/other@.timer {wants}/other@home.timer
        for kind in service timer; do
            mkdir '{units}/kopiatomic@my\\x2dhome.'$kind.d
            touch '{units}/kopiatomic@my\\x2dhome.'$kind.d/10-schedule.conf
        done
        echo "# Written by 'kopiatomic schedule', which" >'{units}/kopiatomic-recover@my\\x2dhome.service'
        echo mine >{units}/kopiatomic-recover@mine.service
        touch '{units}/kopiatomic@my\\x2dhome.timer.d/override.conf' '/var/lib/systemd/timers/stamp-kopiatomic@my\\x2dhome.timer'
        printf '%s\\n' '#!/bin/sh' 'echo "$@" >>/tmp/told' '[ "$2" != is-enabled ]' >/usr/bin/systemctl
        printf '%s\\n' '#!/bin/sh' 'printf "tank/%s\\n" a#kopiatomic_0a1b b#kopiatomic_0a1b b#mine' >/usr/bin/zfs
        chmod +x /usr/bin/systemctl /usr/bin/zfs
        """
    )

    def left() -> list[str]:
        return installed.shell(
            f"cd /; find {units} /var/lib/systemd -name '*kopiatomic*' -printf '%f\\n'"
        ).stdout.split()

    try:
        removed = installed.apt("remove", "kopiatomic")
        assert r"Disabling the schedule kopiatomic@my\x2dhome.timer" in removed.stderr
        assert "2 bookmarks of --skip-unchanged stay" in removed.stderr
        assert installed("cat", "/tmp/told").stdout.splitlines() == [
            "list-units --plain --no-legend --full --state=active kopiatomic@*.timer",
            "stop kopiatomic@*.timer",
            "--system daemon-reload",
        ]
        assert r"kopiatomic@my\x2dhome.timer" not in left()
        assert r"kopiatomic@my\x2dhome.service.d" in left()
        again = installed.apt("install", deb)
        assert r"The schedule kopiatomic@my\x2dhome.timer is off." in again.stderr
        installed.apt("purge", "kopiatomic")
        assert sorted(left()) == ["kopiatomic-recover@mine.service", r"kopiatomic@my\x2dhome.timer.d"]
        assert installed("ls", rf"{units}/kopiatomic@my\x2dhome.timer.d").stdout == "override.conf\n"
        assert installed("find", wants, "-name", "other@home.timer").stdout != ""
    finally:
        installed.shell(
            f"rm -rf /run/systemd /usr/bin/systemctl /usr/bin/zfs /tmp/told {units}/kopiatomic* {wants}/other@home.timer"
        )


@pytest.mark.in_part(2)
@pytest.mark.parametrize(("how", "where"), [("-t tmpfs -o mode=700 tmpfs", ""), ("--bind /srv", "/below")])
def test_a_purge_removes_nothing_where_something_is_mounted(host: Machine, deb: Path, how: str, where: str) -> None:
    """A bind mount has the same device as what is around it."""
    point = f"/var/lib/kopiatomic{where}"
    host.apt("install", deb)
    host.shell(f"mkdir -p {point}; mount {how} {point}; echo precious >{point}/file")
    try:
        purged = host.apt("purge", "kopiatomic")
        assert "/var/lib/kopiatomic is not removed: something is mounted there" in purged.stderr
        assert host("cat", f"{point}/file").stdout == "precious\n"
    finally:
        host.shell(f"umount {point}; rm -rf /var/lib/kopiatomic /srv/file")


def test_a_purge_leaves_another_kopiatomic_its_records(host: Machine, deb: Path, home: Path) -> None:
    host.apt("install", deb)
    host("kopiatomic", "--quiet", "-c", "true", home)
    host.apt("remove", "kopiatomic")
    lock = "/run/kopiatomic/run-20261125T024002Z-00000000"
    host("install", "-d", "-m", "0700", "/run/kopiatomic")
    with subprocess.Popen(host.argv("flock", lock, "sleep", "infinity"), stdin=subprocess.DEVNULL):
        try:
            wait_for(host.path(lock).exists, "the other's lock")
            assert "locks of another kopiatomic" in host.apt("purge", "kopiatomic").stderr
            assert host.path("/var/lib/kopiatomic").is_dir()
        finally:
            host.shell("kill -KILL -1", check=False)
            host.shell("rm -rf /var/lib/kopiatomic /run/kopiatomic")
