"""In place with the root of the system itself: a system on Btrfs, whose own kopia backs all of it up."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.btrfs.conftest import only_child, wait_for
from tests.btrfs.test_backups import described, populate
from tests.support import leftovers, system_tree
from tests.support.filesystems import mounted_btrfs
from tests.support.programs import Kopia, command, kopia_in
from tests.support.schema import valid
from tests.support.system_tree import System

pytestmark = pytest.mark.in_part(2)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The root is a subvolume, with two more mounted in it and one nested; /mnt/usb is another filesystem."""
    folder = tmp_path_factory.mktemp("system")
    with mounted_btrfs(folder / "btrfs") as btrfs:
        for name in ("root", "home", "root/nested"):
            btrfs.subvolume(name)
        device = command("findmnt", "-no", "SOURCE", btrfs.mountpoint).stdout.split("[")[0].strip()
        top = folder / "top"
        top.mkdir()
        command("mount", "-o", "subvol=root", device, top)
        try:
            made = system_tree.make(top)
            command("mount", "-o", "subvol=home", device, top / "home")
            populate(top / "home")
            (top / "nested" / "file").write_text("nested")
            (top / "mnt" / "usb").mkdir()
            command("mount", "-t", "tmpfs", "none", top / "mnt" / "usb")
            (top / "mnt" / "usb" / "file").write_text("live")
            yield made
        finally:
            command("umount", "--recursive", top)


@pytest.fixture(scope="module")
def server(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kopia]:
    """kopia's own repository server on loopback, by name and with TLS; the system's kopia is connected to it."""
    folder = tmp_path_factory.mktemp("server")
    kopia = kopia_in(folder)
    kopia.repository.mkdir()
    kopia("repository", "create", "filesystem", "--path", kopia.repository)
    kopia("server", "user", "add", "root@system", "--user-password=client")
    with serving(kopia, folder) as (port, fingerprint):
        words = ["repository", "connect", "server", f"--url=https://backup.example:{port}"]
        words += [f"--server-cert-fingerprint={fingerprint}", "--override-hostname=system", "--override-username=root"]
        ended = system.run("/usr/local/bin/kopia", *words, env={"KOPIA_PASSWORD": "client"})
        assert ended.returncode == 0, str(ended)
        yield kopia


@contextmanager
def serving(kopia: Kopia, folder: Path) -> Iterator[tuple[int, str]]:
    """The server's port, and what its certificate is known by."""
    words = ["kopia", "server", "start", "--address=https://127.0.0.1:0", "--server-username=a", "--server-password=b"]
    words += ["--tls-generate-cert", "--tls-generate-cert-name=backup.example"]
    words += [f"--tls-cert-file={folder}/cert", f"--tls-key-file={folder}/key"]
    log = folder / "server.log"
    environment = {**os.environ, **kopia.environment}
    with log.open("w") as file, subprocess.Popen(words, env=environment, stdout=file, stderr=file) as process:
        try:
            deadline = time.monotonic() + 30
            pattern = r"(?s)SERVER CERT SHA256: (\w+).*SERVER ADDRESS: https://127.0.0.1:(\d+)"
            while not (found := re.search(pattern, log.read_text())):
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield int(found.group(2)), found.group(1)
        finally:
            process.terminate()


def test_a_whole_system_is_backed_up_to_a_server(system: System, server: Kopia, tmp_path: Path) -> None:
    ended = system.kopiatomic("--json", "-a", "-r", "--layout", "in-place", env={"KOPIA_PASSWORD": "client"})
    document = valid(ended.stdout)
    assert ended.returncode == 0, str(ended)
    assert document["sources"] == ["/"]
    assert {d["path"] for d in document["datasets"]} == {"/", "/home", "/nested"}
    assert [(u["path"], u["live"]) for u in document["uncovered"]] == [("/mnt/usb", True)]
    engine = document["engine"]
    assert (engine["problem_count"], engine["statistics"]["errors"]) == (0, 0)
    restored = tmp_path / "restored"
    server("snapshot", "restore", engine["snapshot_id"], restored)
    for name in ("proc", "sys", "dev", "run"):
        assert [*(restored / name).iterdir()] == [], name
    assert described(restored / "home") == described(system.path("home"))
    assert (restored / "nested" / "file").read_text() == "nested"
    assert (restored / "mnt" / "usb" / "file").read_text() == "live"
    assert (restored / "etc" / "resolv.conf").is_symlink()
    assert not list((restored / "root/.cache/kopia").rglob("*.f"))
    assert described(restored / "opt") == described(system.path("opt"))


def test_what_an_engine_finds_in_a_frozen_root(system: System) -> None:
    """Only what a program needs to run and to find a server; nothing of the running system that could be read as data."""
    script = system.path("engine.sh")
    lines = [
        "exec > /home/said 2>&1",
        "ls -A /proc /sys; ls /dev; ls -A /run/systemd/resolve; cat /etc/resolv.conf",
        "echo x > /dev/null; echo x > $TMPDIR/x && cat $TMPDIR/x",
        "touch /etc/x || echo frozen; pwd; cat /nested/file",
    ]
    script.write_text("\n".join(lines) + "\n")
    said = system.path("home/said")
    said.touch()
    words = ["-r", "/", "--layout", "in-place", "-c", "sh /engine.sh", "--writable", "/home"]
    ended = system.kopiatomic(*words, env={"TMPDIR": "/tmp"})
    assert ended.returncode == 0, str(ended)
    # A program that lies in the top directory, and starts there, has not looked into it.
    assert "sh has not looked into /: " in ended.stderr
    assert said.read_text().splitlines() == [
        *("/proc:", "", "/sys:"),
        *("full", "null", "random", "tty", "urandom", "zero"),
        "stub-resolv.conf",
        "nameserver 127.0.0.1",
        "x",
        "touch: cannot touch '/etc/x': Read-only file system",
        *("frozen", "/", "nested"),
    ]
    script.unlink()
    said.unlink()


@pytest.mark.usefixtures("server")
def test_a_policy_that_heeds_no_ignore_files_is_refused(system: System) -> None:
    kopia, password = "/usr/local/bin/kopia", {"KOPIA_PASSWORD": "client"}
    system.run(kopia, "policy", "set", "/", "--add-dot-ignore=.other", env=password)
    ended = system.kopiatomic("--json", "-r", "/", "--layout", "in-place", env=password)
    system.run(kopia, "policy", "delete", "/", env=password)
    document = valid(ended.stdout)
    assert (ended.returncode, document["error"]["kind"]) == (1, "ignore-rules"), str(ended)
    assert "--add-dot-ignore=.kopiaignore" in document["error"]["hint"]
    assert document["sets"] == []


def test_a_command_in_a_frozen_root_has_the_running_systems_own(system: System) -> None:
    """Live /proc (of its own processes), /sys, /dev and /run; a place for temporary files."""
    lines = [
        "ls -d /proc/self /sys/kernel /dev/pts; cat /proc/1/comm > /dev/null; [ -e /proc/$$ ] && echo mine",
        "cat /nested/file; echo; cat /mnt/usb/file; echo; touch /etc/x 2> /dev/null || echo frozen",
        "echo x > $TMPDIR/x && cat $TMPDIR/x; ls $KOPIATOMIC_ROOT > /dev/null && echo $KOPIATOMIC_SOURCES",
    ]
    ended = system.kopiatomic("exec", "-r", "/", "--", "sh", "-c", "\n".join(lines), env={"TMPDIR": "/tmp"})
    assert ended.returncode == 0, str(ended)
    expected = ["/dev/pts", "/proc/self", "/sys/kernel", "mine", "nested", "live", "frozen", "x", "/"]
    assert ended.stdout.splitlines() == expected, str(ended)


def test_the_lists_of_a_run_are_in_a_frozen_root(system: System) -> None:
    script = 'case "$(cat $KOPIATOMIC_DATASETS_FILE)$(cat $KOPIATOMIC_SOURCES_FILE)" in //nested/) ;; *) exit 9 ;; esac'
    in_place = ("--layout", "in-place", "-r", "-c", shlex.join(["sh", "-c", script]), "/")
    for words in (in_place, ("exec", "-r", "/", "--", "sh", "-c", script)):
        ended = system.kopiatomic(*words)
        assert ended.returncode == 0, str(ended)


KILLS = 100 if os.environ.get("KOPIATOMIC_TEST_SWEEP") == "whole" else 6
SEED = os.environ.get("KOPIATOMIC_TEST_SEED", "0")
ROLES = ("main", "keeper", "launcher", "engine", "everyone")


@pytest.mark.parametrize("command_of", ["backup", "exec"])
def test_a_kill_at_any_instant_leaves_nothing(command_of: str, system: System, tmp_path: Path) -> None:
    """With the root of everything frozen, and a child of the engine's that has closed every descriptor."""
    mark = str(tmp_path)
    chance = random.Random(f"{SEED}/{command_of}")
    system.path("engine.sh").write_text("setsid sleep 100 <&- >&- 2>&- & cat /nested/file; sleep 0.2\n")
    words = ["-r", "/", "--layout", "in-place", "-c", "sh /engine.sh"]
    if command_of == "exec":
        words = ["exec", "-r", "/", "--", "sh", "/engine.sh"]
    assert system.kopiatomic(*words).returncode == 0
    for _ in range(KILLS):
        role, instant = chance.choice(ROLES), chance.random() * 1.2
        where = f"{role} after {instant:.3f} s"
        with system.start(*words, env={"KOPIATOMIC_TEST_MARK": mark}) as process:
            time.sleep(instant)
            family = alive(process.pid)
            for pid in family if role == "everyone" else family[ROLES.index(role) :][:1]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(20)
        wait_for(lambda: not leftovers.processes(mark), f"the end of all processes ({where})")
        ended = system.kopiatomic("recover")
        assert (ended.returncode, "Traceback" in ended.stderr) == (0, False), f"{where}: {ended}"
        assert "kopiatomic_" not in command("btrfs", "subvolume", "list", system.top).stdout, where
    system.path("engine.sh").unlink()


def alive(main: int) -> list[int]:
    """Main process, keeper, launcher and engine, as far as they are there."""
    found = [main]
    with suppress(OSError, ValueError):
        while len(found) < 4:
            found.append(only_child(found[-1]))
    return found
