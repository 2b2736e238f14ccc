"""Frozen processes write nothing between the snapshots, and run again whatever happens to those that froze them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

import kopiatomic
from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.filesystems.backends import Leftovers
from kopiatomic.hooks import freezer, kinds, leftovers
from kopiatomic.hooks.freezer import FrozenHolder
from kopiatomic.hooks.holder import Place, Wanted
from kopiatomic.system import cgroups, fuse, host, mappings
from tests.support.killing import kill_together
from tests.support.programs import SOURCE, command
from tests.unit.support.holders import (
    WITHIN,
    Grouped,
    around,
    counter,
    counts,
    eventually,
    group,
    grouped,
    held,
    held_elsewhere,
    holder_of,
    thawers,
    used,
)

__all__ = ["group"]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No thawer is left, nor its control group."""
    yield
    assert eventually(lambda: not thawers(), WITHIN)


def freezing(group: Grouped, timeout: float = 10, limit: float | None = None) -> FrozenHolder:
    """The holder of what is in a group."""
    wanted = Wanted("cgroup", group.path, timeout, limit)
    holder = holder_of(kinds.find(wanted, around()))
    assert isinstance(holder, FrozenHolder)
    return holder


def refused(wanted: Wanted) -> KopiatomicError:
    with pytest.raises(KopiatomicError) as caught:
        kinds.find(wanted, around())
    return caught.value


def test_a_frozen_writer_writes_nothing_until_it_is_released(group: Grouped, tmp_path: Path) -> None:
    file = tmp_path / "counter"
    group.start(*counter(file))
    assert eventually(file.exists)
    with held(freezing(group)) as holder:
        assert not counts(file)
        how = holder.release()
        assert (how.proven, how.why, how.label) == (True, "frozen before and after", f"cgroup {group.path}")
        assert 0.2e9 < how.stall < 2e9
        assert counts(file)


def test_the_plan_says_what_is_frozen(group: Grouped) -> None:
    group.start("sleep", "60")
    for name in (group.path, group.path[1:], str(group.directory)):
        (finding,) = kinds.find(Wanted("cgroup", name), around())
        assert str(finding) == f"cgroup {group.path}: its process is frozen for the snapshots"
        assert (finding.frozen, finding.note) == (True, "")
    group.start("sleep", "60")
    assert "its 2 processes are frozen" in kinds.find(Wanted("cgroup", group.path), around())[0].text


def test_groups_below_are_frozen_as_well(group: Grouped, tmp_path: Path) -> None:
    file = tmp_path / "counter"
    with grouped(group) as inner:
        inner.start(*counter(file))
        assert eventually(file.exists)
        with held(freezing(group)):
            assert not counts(file)
        assert counts(file)


def test_what_somebody_else_has_frozen_counts_as_held_and_stays_frozen(group: Grouped) -> None:
    group.start("sleep", "60")
    group.freeze(frozen=True)
    holder = freezing(group)
    assert holder.intents() == []
    with held(holder):
        how = holder.release()
    assert (how.proven, how.stall, how.why) == (True, 0, "frozen by somebody else before and after")
    assert group.is_frozen()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_what_somebody_else_has_frozen_stays_frozen_after_a_kill(group: Grouped, signum: int) -> None:
    group.start("sleep", "60")
    group.freeze(frozen=True)
    with held_elsewhere(freezing(group, limit=0.2)) as pid:
        os.kill(pid, signum)
        time.sleep(0.5)
    time.sleep(0.3)
    assert group.is_frozen()


def test_what_is_frozen_by_a_group_above_counts_as_held(group: Grouped) -> None:
    with grouped(group) as inner:
        inner.start("sleep", "60")
        group.freeze(frozen=True)
        with held(freezing(inner)) as holder:
            how = holder.release()
        assert (how.proven, how.stall) == (True, 0)
        assert inner.is_frozen()
        assert not inner.is_asked()


@pytest.mark.parametrize("foreign", [True, False])
def test_what_is_thawed_meanwhile_is_not_proven(group: Grouped, foreign: bool) -> None:
    group.start("sleep", "60")
    if foreign:
        group.freeze(frozen=True)
    with held(freezing(group)) as holder:
        group.freeze(frozen=False)
        how = holder.release()
    assert not how.proven
    assert ("somebody else" in how.why) == foreign


def test_it_is_thawed_when_the_limit_is_over(group: Grouped) -> None:
    group.start("sleep", "60")
    with held(freezing(group, limit=0.3)) as holder:
        assert group.is_frozen()
        assert eventually(lambda: not group.is_asked(), 1)
        how = holder.release()
    assert not how.proven
    assert "the limit is 0.3 s" in how.why


def test_a_stopped_holder_does_not_keep_it_frozen(group: Grouped) -> None:
    group.start("sleep", "60")
    with held_elsewhere(freezing(group)) as pid:
        os.kill(pid, signal.SIGSTOP)
        assert eventually(lambda: not group.is_frozen(), WITHIN + 0.3)


def test_it_is_thawed_after_the_holder_was_killed(group: Grouped, tmp_path: Path) -> None:
    file = tmp_path / "counter"
    group.start(*counter(file))
    assert eventually(file.exists)
    with held_elsewhere(freezing(group)) as pid:
        assert group.is_frozen()
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: not group.is_frozen(), WITHIN)
    assert not group.is_asked()
    assert counts(file)


def test_it_is_thawed_after_our_whole_control_group_was_killed(group: Grouped) -> None:
    group.start("sleep", "60")
    with grouped() as ours, held_elsewhere(freezing(group), inside=ours):
        assert group.is_frozen()
        # All of it at once, which what is forked meanwhile does not escape (cgroup-v2.rst: "cgroup.kill").
        (ours.directory / "cgroup.kill").write_text("1")
        assert eventually(lambda: not group.is_frozen(), WITHIN)
        assert eventually(lambda: not thawers(), WITHIN)


def test_the_frozen_server_can_be_killed(group: Grouped) -> None:
    server = group.start("sleep", "60")
    with held(freezing(group)) as holder:
        server.kill()
        assert server.wait(5) == -signal.SIGKILL
        assert holder.release().proven


def test_a_group_that_is_removed_meanwhile_is_not_proven_to_have_been_held() -> None:
    with grouped() as one:
        server = one.start("sleep", "60")
        with held(freezing(one)) as holder:
            server.kill()
            server.wait()
            one.directory.rmdir()
            how = holder.release()
        one.directory.mkdir()
    assert (how.proven, how.why) == (False, "its control group has been removed meanwhile")


def test_a_service_that_was_restarted_is_not_frozen() -> None:
    with grouped() as one:
        one.start("sleep", "60")
        holder = freezing(one)
        one.remove()
        one.directory.mkdir()
        one.processes.clear()
        with pytest.raises(KopiatomicError) as caught, used(holder):
            pass
        assert caught.value.kind == "hold-changed"


@pytest.fixture
def dead_mount(tmp_path: Path) -> Iterator[Path]:
    """A FUSE filesystem that nobody serves: whoever looks at it waits, and cannot be frozen."""
    target = tmp_path / "fuse"
    target.mkdir()
    fd = fuse.mount(str(target), "kopiatomic-test")
    try:
        yield target
    finally:
        os.close(fd)
        command("umount", "--lazy", target, check=False)


@pytest.mark.parametrize(("timeout", "limit"), [(0.5, 2.0), (10.0, 0.5)])
def test_what_does_not_freeze_in_time_runs_again(
    timeout: float, limit: float, group: Grouped, dead_mount: Path
) -> None:
    waiting = group.start("stat", dead_mount)
    assert eventually(lambda: "fuse" in Path(f"/proc/{waiting.pid}/stack").read_text())
    began = time.monotonic()
    with pytest.raises(KopiatomicError) as caught, held(freezing(group, timeout, limit)):
        pass
    assert caught.value.kind == "hold-timeout"
    assert "within 0.5 s" in caught.value.message
    assert time.monotonic() - began < 3
    assert not group.is_asked()


# The thawer


def thawer_of(group_name: str) -> int:
    return int((Path(cgroups.hierarchy().point) / group_name / "cgroup.procs").read_text())


def test_nothing_is_frozen_without_a_thawer(group: Grouped, monkeypatch: pytest.MonkeyPatch) -> None:
    group.start("sleep", "60")
    monkeypatch.setattr(sys, "executable", "/none/python")
    with pytest.raises(KopiatomicError) as caught, held(freezing(group)):
        pass
    assert caught.value.kind == "hold-no-thawer"
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(KopiatomicError, match="could not be used: exit status 1"), held(freezing(group)):
        pass
    assert not group.is_asked()


def test_nothing_is_frozen_if_the_thawer_was_killed(group: Grouped) -> None:
    group.start("sleep", "60")
    with used(freezing(group)) as holder:
        (name,) = thawers()
        os.kill(thawer_of(name), signal.SIGKILL)
        with pytest.raises(KopiatomicError) as caught:
            holder.hold(time.monotonic() + 5)
    assert caught.value.kind == "hold-no-thawer"
    assert not group.is_asked()


def test_a_thawer_that_is_killed_while_it_is_held_is_not_needed(group: Grouped) -> None:
    group.start("sleep", "60")
    with held(freezing(group)) as holder:
        (name,) = thawers()
        os.kill(thawer_of(name), signal.SIGKILL)
        assert holder.release().proven
    assert not group.is_asked()


def test_a_stopped_thawer_is_ended_and_its_group_removed(group: Grouped) -> None:
    group.start("sleep", "60")
    with held(freezing(group)) as holder:
        (name,) = thawers()
        os.kill(thawer_of(name), signal.SIGSTOP)
        assert holder.release().proven
        assert not group.is_asked()
    assert name not in thawers()


def test_the_thawer_starts_from_a_zip_as_well(group: Grouped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the pyz, where the package is a file."""
    shutil.make_archive(str(tmp_path / "packed"), "zip", SOURCE)
    monkeypatch.setattr(kopiatomic, "__file__", f"{tmp_path}/packed.zip/kopiatomic/__init__.py")
    group.start("sleep", "60")
    with held_elsewhere(freezing(group)) as pid:
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: not group.is_frozen(), WITHIN)


# What is refused


def asked_for(group: Grouped, shell: str, before: str = "") -> str:
    """What is said to a process, which a shell line starts as ``"$0" -c "$1"``, that asks for a group."""
    code = f"""
from pathlib import Path
from kopiatomic.hooks import kinds
from kopiatomic.hooks.holder import Wanted
from tests.unit.support.holders import around
{before}
kinds.find(Wanted("cgroup", {group.path!r}), around())
"""
    asked = subprocess.run(
        ["sh", "-c", f"echo $$ > {group.directory}/cgroup.procs; {shell}", sys.executable, code],
        env={**os.environ, "PYTHONPATH": f"{SOURCE}:{SOURCE.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stderr


def test_the_group_that_we_are_in_is_refused(group: Grouped) -> None:
    assert " has kopiatomic itself" in asked_for(group, 'exec "$0" -c "$1"')
    assert refused(Wanted("cgroup", "/")).kind == "hold-refused"


def test_what_started_us_is_refused(group: Grouped) -> None:
    """As the sshd of this login is, and a terminal's shell."""
    leave = f"Path('{group.directory.parent}/cgroup.procs').write_text('0')"
    assert "which kopiatomic was started by" in asked_for(group, '"$0" -c "$1"; true', leave)


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A folder where programs of any name can be made that sleep."""
    return tmp_path


def sleeper(folder: Path, name: str) -> list[str | Path]:
    program = folder / name
    shutil.copy("/bin/sleep", program)
    return [program, "60"]


@pytest.mark.parametrize(
    "name",
    [
        "dbus-daemon",
        "systemd-journald",
        "systemd-logind",
        "systemd-udevd",
        "containerd",
        "dockerd",
        "sssd",
        "nscd",
        "iscsid",
        "multipathd",
        "zed",
        "nbd-client",
        "kopia",
        "restic",
        "borg",
    ],
)
def test_what_the_system_needs_is_refused(group: Grouped, named: Path, name: str) -> None:
    process = group.start(*sleeper(named, name))
    assert eventually(lambda: Path(f"/proc/{process.pid}/comm").read_text().strip() == name[:15])
    error = refused(Wanted("cgroup", group.path))
    assert error.kind == "hold-refused"
    assert f" has {name[:15]} (process {process.pid}), " in error.message


@pytest.mark.parametrize(("name", "is_refused"), [("dbus-daemon", False), ("iscsid", True)])
def test_a_containers_own_daemons_serve_only_that_but_for_storage(
    group: Grouped, named: Path, name: str, is_refused: bool
) -> None:
    group.start("unshare", "--pid", "--fork", "--kill-child", *sleeper(named, name))
    assert eventually(lambda: name in [member.name for member in cgroups.members(cgroups.group_at(group.path))])
    if is_refused:
        assert refused(Wanted("cgroup", group.path)).kind == "hold-refused"
    else:
        assert "2 processes" in kinds.find(Wanted("cgroup", group.path), around())[0].text


def test_a_fuse_daemon_is_refused_if_the_backup_may_look_at_its_mount(
    group: Grouped, dead_mount: Path, tmp_path: Path
) -> None:
    code = "import time; file = open('/dev/fuse', 'rb'); print('opened', flush=True); time.sleep(60)"
    daemon = group.start(sys.executable, "-c", code)
    assert eventually(lambda: cgroups.has_open(daemon.pid, "/dev/fuse"))
    wanted = Wanted("cgroup", group.path)
    with pytest.raises(KopiatomicError, match=r"a FUSE daemon, and .* is a mount of one"):
        kinds.find(wanted, around({str(tmp_path): Place("tank/a", "tank")}))
    (finding,) = kinds.find(wanted, around({"/elsewhere": Place("tank/a", "tank")}))
    assert finding.holder is not None


def test_there_must_be_control_groups_of_version_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.here(), "mounts", list, raising=False)
    error = refused(Wanted("cgroup", "/any"))
    assert error.kind == "hold-no-freezer"


def test_a_group_that_is_not_there_is_named() -> None:
    error = refused(Wanted("cgroup", "/none/of/these"))
    assert (error.kind, error.message) == ("hold-no-group", "there is no control group /none/of/these")


# Mapped files


def test_what_is_mapped_is_written_out(group: Grouped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shown on ext4, whose disk is a file here that can be searched for what has been written out."""
    monkeypatch.setattr(freezer, "_LATE", {"ext4"})
    image, point = tmp_path / "image", tmp_path / "mounted"
    point.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 16 << 20)
    command("mkfs.ext4", "-q", "-E", "lazy_itable_init=0", image)
    command("mount", "-o", "loop,commit=300", image, point)
    try:
        file, ready = point / "file", tmp_path / "ready"
        file.write_bytes(bytes(8192))
        command("sync", "-f", point)
        code = f"""
import mmap, time
with open({str(file)!r}, "r+b") as opened:
    page = mmap.mmap(opened.fileno(), 8192)
page[:16] = b"kopiatomic" + b"-mapped"[:6]
open({str(ready)!r}, "w").close()
time.sleep(60)
"""
        group.start(sys.executable, "-c", code)
        assert eventually(ready.exists)
        holder = freezing(group)
        with used(holder):
            holder.hold(time.monotonic() + 5)
            assert b"kopiatomic-mappe" not in image.read_bytes()
            holder.settle()
            assert b"kopiatomic-mappe" in image.read_bytes()
            assert holder.release().proven
    finally:
        group.remove()
        group.directory.mkdir()
        group.processes.clear()
        command("umount", point)


def test_only_shared_mappings_that_can_be_written_to_count(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(8192))
    device = os.stat(file).st_dev
    of = {f"{os.major(device)}:{os.minor(device)}"}
    code = f"""
import mmap, sys
opened = open({str(file)!r}, "r+b")
kept = [mmap.mmap(opened.fileno(), 4096, flags=flags, prot=prot) for flags, prot in [MAPPINGS]]
print("mapped", flush=True)
sys.stdin.read()
"""
    both = "mmap.PROT_READ | mmap.PROT_WRITE"
    for mapping, counted in (
        (f"mmap.MAP_SHARED, {both}", 1),
        (f"mmap.MAP_PRIVATE, {both}", 0),
        ("mmap.MAP_SHARED, mmap.PROT_READ", 0),
    ):
        with subprocess.Popen(
            [sys.executable, "-c", code.replace("MAPPINGS", f"({mapping})")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"mapped\n"
            assert mappings.write_out([process.pid], of) == counted
            assert mappings.write_out([process.pid], {"1:1"}) == 0
            process.kill()


# What a dead run left


def test_what_was_frozen_when_all_were_killed_is_thawed_by_its_record(group: Grouped) -> None:
    group.start("sleep", "60")
    holder = freezing(group)
    intents = holder.intents()
    assert [(intent.kind, intent.name, intent.origin) for intent in intents] == [
        ("cgroup", group.path, host.here().boot_id())
    ]
    kind: Leftovers = leftovers
    assert kind.recorded("RUN", intents) == []
    group.freeze(frozen=True)
    (left,) = leftovers.recorded("RUN", intents)
    assert (left.kind, left.name, left.command) == ("cgroup", group.path, f"echo 0 > {group.directory}/cgroup.freeze")
    assert leftovers.recorded("RUN", [replace(intents[0], origin="another boot")]) == []
    assert leftovers.recorded("RUN", [replace(intents[0], identity="1")]) == []
    assert leftovers.remove([left]) == []
    assert not group.is_asked()
    assert leftovers.remove([left]) == []


# Units and containers


def stub(folder: Path, name: str, text: str) -> None:
    """A program that prints a text, in place of one that asks a daemon which does not run here."""
    program = folder / name
    program.write_text(f"#!/bin/sh\necho \"$@\" > '{folder}/asked'\ncat <<'END'\n{text}\nEND\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def shown(load: str, active: str, pid: int, path: str) -> str:
    return f"Id=web.service\nLoadState={load}\nActiveState={active}\nMainPID={pid}\nControlGroup={path}"


def test_a_unit_is_found_by_its_main_process(group: Grouped, programs: Path) -> None:
    with grouped(group) as inner:
        main = inner.start("sleep", "60")
        group_of_unit = shown("loaded", "active", main.pid, group.path)
        stub(programs, "systemctl", group_of_unit)
        (finding,) = kinds.find(Wanted("unit", "web"), around())
        assert finding.label == "unit web.service"
        asked = (programs / "asked").read_text()
        assert asked == "show --property=Id,LoadState,ActiveState,MainPID,ControlGroup -- web\n"
        # The unit's own group is wider than the main process's.
        assert [intent.name for intent in holder_of([finding]).intents()] == [group.path]
        stub(programs, "systemctl", shown("loaded", "active", main.pid, "/elsewhere"))
        assert [i.name for i in holder_of(kinds.find(Wanted("unit", "web"), around())).intents()] == [inner.path]


def test_a_unit_that_does_not_run_needs_nothing(programs: Path) -> None:
    stub(programs, "systemctl", shown("loaded", "inactive", 0, ""))
    (finding,) = kinds.find(Wanted("unit", "web"), around())
    assert (finding.holder, finding.text) == (None, "does not run: nothing to hold")


def test_what_is_active_and_has_no_processes_is_an_error(group: Grouped, programs: Path) -> None:
    """A service that has done its work and ended, such as Debian's postgresql.service; a group that is empty."""
    for path in ("", group.path):
        stub(programs, "systemctl", shown("loaded", "active", 0, path))
        assert refused(Wanted("unit", "web")).kind == "hold-no-process"
    assert refused(Wanted("cgroup", group.path)).kind == "hold-no-process"


def test_a_unit_that_is_not_there_is_an_error(programs: Path) -> None:
    stub(programs, "systemctl", shown("not-found", "inactive", 0, ""))
    assert refused(Wanted("unit", "web")).kind == "hold-no-server"


@pytest.mark.parametrize(
    ("scope", "inner"), [("docker-ID.scope", ""), ("libpod-ID.scope", "container"), ("ID", "init.scope")]
)
@pytest.mark.parametrize("program", ["docker", "podman"])
def test_a_container_is_found_by_its_first_process(
    group: Grouped, programs: Path, program: str, scope: str, inner: str
) -> None:
    identity = "0123456789abcdef" * 4
    with grouped(group, scope.replace("ID", identity)) as whole:
        first = whole
        if inner:
            (whole.directory / inner).mkdir()
            first = Grouped(f"{whole.path}/{inner}", whole.directory / inner)
        pid = first.start("sleep", "60").pid
        whole.processes += first.processes
        stub(programs, program, json.dumps([{"Id": identity, "State": {"Pid": pid, "Status": "running"}}]))
        wanted = Wanted("container", "web", settings={"program": program})
        holder = holder_of(kinds.find(wanted, around()))
        assert [intent.name for intent in holder.intents()] == [whole.path]
        assert (programs / "asked").read_text() == "inspect --type=container -- web\n"


def test_a_container_that_nobody_knows_is_an_error(programs: Path) -> None:
    for name in ("docker", "podman"):
        (programs / name).write_text("#!/bin/sh\necho 'Error: no such object' >&2; exit 1\n")
        (programs / name).chmod(0o755)
    error = refused(Wanted("container", "web"))
    assert (error.kind, "knows no such container: Error: no such object" in error.message) == ("hold-no-server", True)
    (programs / "docker").unlink()
    (programs / "podman").unlink()


def test_missing_programs_and_names_are_said(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(programs))
    for wanted in (Wanted("unit", "web"), Wanted("container", "web")):
        assert refused(wanted).kind == "hold-no-client"
    for kind in ("unit", "container", "cgroup"):
        with pytest.raises(UsageError, match="it needs a name"):
            kinds.find(Wanted(kind), around())


# Kills at any moment


def test_it_is_never_left_frozen_however_early_or_late_the_holder_is_killed(group: Grouped) -> None:
    """40 instants of the whole life of a holder, chosen by the seed; the holder holds for a few milliseconds in between."""
    random = Random(os.environ["KOPIATOMIC_TEST_SEED"])
    group.start("sleep", "60")
    began = time.monotonic()
    _hold_once(freezing(group))
    whole = time.monotonic() - began
    frozen = 0
    for _ in range(40):
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                while True:
                    _hold_once(freezing(group))
            finally:
                os._exit(1)
        time.sleep(random.uniform(0, 2 * whole))
        os.kill(pid, signal.SIGKILL)
        frozen += group.is_asked()
        os.waitpid(pid, 0)
        assert eventually(lambda: not group.is_asked() and not group.is_frozen(), WITHIN)
        assert eventually(lambda: not thawers(), WITHIN)
    # Otherwise no kill has hit what this is about.
    assert frozen


def _hold_once(holder: FrozenHolder) -> None:
    with held(holder):
        time.sleep(0.05)
        holder.release()


def test_a_group_that_a_killed_thawer_has_left_goes_with_the_next(group: Grouped) -> None:
    group.start("sleep", "60")
    with held_elsewhere(freezing(group)) as pid:
        (left,) = thawers()
        thawer = (Path(cgroups.hierarchy().point) / left / "cgroup.procs").read_text()
        kill_together([pid, int(thawer)])
        assert group.is_frozen()
    group.freeze(frozen=False)
    assert thawers() == [left]
    with held(freezing(group)):
        assert left not in thawers()
