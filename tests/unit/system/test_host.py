"""The same questions to both systems, FreeBSD's through the shim, have the same answers."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import stat
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kopiatomic import presence
from kopiatomic.model.mounts import holder, visible
from kopiatomic.system import host, linux, process
from kopiatomic.system.freebsd_host import FreeBSDHost
from kopiatomic.system.freebsd_processes import Kevent, ReaperPidInfo, ReaperPids
from kopiatomic.system.host import Host
from kopiatomic.system.linux_host import LinuxHost
from tests.support import freebsd_shim
from tests.support.freebsd_shim import Shim, isolated


def freebsd() -> FreeBSDHost:
    return FreeBSDHost(Shim().kernel)


BOTH = pytest.mark.parametrize("system", [LinuxHost(), freebsd()], ids=["linux", "freebsd"])


def is_readable(fd: int, within: float = 0) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(within * 1000))


def test_this_system_is_a_linux() -> None:
    assert isinstance(host.here(), LinuxHost)
    assert host.here() is host.here()


@BOTH
def test_what_is_seen_in_the_mount_table(system: Host) -> None:
    seen = visible(system.mounts())
    # The shim calls Linux's by the name of FreeBSD's.
    names = {"devfs": "devtmpfs"}
    assert {point: names.get(mount.fstype, mount.fstype) for point, mount in seen.items()} == {
        point: mount.fstype for point, mount in visible(LinuxHost().mounts()).items()
    }


# Paths


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "folder" / "link").symlink_to("to/nothing")
    (tmp_path / "way").symlink_to("folder")
    return tmp_path


@BOTH
@pytest.mark.parametrize(("name", "target"), [("link", "to/nothing"), ("file", None), ("inner", None)])
def test_what_a_link_holds(name: str, target: str | None, system: Host, tree: Path) -> None:
    assert system.link_target(f"{tree}/folder/{name}") == target


@BOTH
@pytest.mark.parametrize("name", ["link", "file", "inner", ""])
def test_what_is_at_a_path_is_known_by_its_numbers(name: str, system: Host, tree: Path) -> None:
    path = f"{tree}/folder/{name}".rstrip("/")
    mount, device, inode = system.identity(path)
    assert (device, inode) == (os.lstat(path).st_dev, os.lstat(path).st_ino)
    assert mount in {0, holder(path, visible(LinuxHost().mounts())).id}
    assert system.identity("/")[1:] == (os.stat("/").st_dev, os.stat("/").st_ino)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        system.identity(f"{tree}/way/file")


@BOTH
def test_the_root_is_no_link_and_a_directory(system: Host) -> None:
    assert system.link_target("/") is None
    for to_list in (True, False):
        fd = system.open_directory("/", to_list=to_list)
        assert os.path.samestat(os.fstat(fd), os.stat("/"))
        os.close(fd)


@BOTH
@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("folder/none", errno.ENOENT),
        ("none/none", errno.ENOENT),
        ("folder/file/none", errno.ENOTDIR),
        ("way/link", errno.ELOOP),
        ("way/file", errno.ELOOP),
    ],
)
def test_where_no_link_is_read(path: str, number: int, system: Host, tree: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        system.link_target(f"{tree}/{path}")
    assert caught.value.errno == number


@BOTH
@pytest.mark.parametrize("to_list", [True, False])
def test_a_directory_is_opened_that_no_link_leads_to(to_list: bool, system: Host, tree: Path) -> None:
    fd = system.open_directory(f"{tree}/folder/inner", to_list=to_list)
    assert os.path.samestat(os.fstat(fd), os.stat(tree / "folder" / "inner"))
    assert not os.get_inheritable(fd)
    os.close(fd)
    for path in ("way/inner", "way", "folder/file", "folder/link", "none"):
        with pytest.raises(OSError, match=r"symbolic links|Not a directory|No such file") as caught:
            system.open_directory(f"{tree}/{path}", to_list=to_list)
        assert presence.moved(caught.value)


@BOTH
def test_a_directory_is_made_that_no_link_leads_to(system: Host, tree: Path) -> None:
    for path in ("folder/inner", "folder/new/newer", "folder/new/newer"):
        fd = system.make_directory(f"{tree}/{path}", 0o700)
        assert os.path.samestat(os.fstat(fd), os.stat(tree / path))
        assert not os.get_inheritable(fd)
        os.close(fd)
    assert stat.S_IMODE((tree / "folder" / "new").stat().st_mode) == 0o700
    for path in ("way/inner", "way/new", "folder/file", "folder/file/new", "folder/link"):
        with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
            system.make_directory(f"{tree}/{path}", 0o700)
    assert not (tree / "folder" / "new" / "inner").exists()


# The boot, pools


def test_the_boot_has_a_name_on_freebsd_too_unless_the_kernel_has_none_yet() -> None:
    assert freebsd().boot_id() == linux.boot_id().replace("-", "")
    shim = Shim()

    def seeding(*_: object) -> int:
        ctypes.set_errno(errno.ENXIO)
        return -1

    assert FreeBSDHost(replace(shim.kernel, sysctlbyname=seeding)).boot_id() == ""


def test_the_state_of_a_pool_is_a_setting_whatever_the_name_of_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freebsd_shim, "KSTAT", tmp_path)
    for pool, state in (("tank", "ONLINE"), ("lost.1", "SUSPENDED")):
        (tmp_path / pool).mkdir()
        (tmp_path / pool / "state").write_text(f"{state}\n")
    system = freebsd()
    assert [system.pool_state(pool) for pool in ("tank", "lost.1", "none")] == ["ONLINE", "SUSPENDED", None]
    assert system.pools() is None


# Processes


@BOTH
def test_the_end_of_a_process_is_told_and_only_that_one_is_killed(system: Host) -> None:
    with subprocess.Popen(["sleep", "60"]) as running:
        watch = system.watch(running.pid)
        assert not os.get_inheritable(watch)
        assert not is_readable(watch)
        system.kill(running.pid, watch)
        assert is_readable(watch, within=5)
        assert running.wait() == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            system.kill(running.pid, watch)
        os.close(watch)
        with pytest.raises(ProcessLookupError):
            system.watch(running.pid)


@BOTH
def test_the_end_of_one_that_waits_to_be_reaped_is_told(system: Host) -> None:
    with subprocess.Popen(["true"]) as running:
        os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
        watch = system.watch(running.pid)
        assert is_readable(watch, within=5)
        os.close(watch)


@isolated
@pytest.mark.parametrize("kind", ["linux", "freebsd"])
def test_orphans_are_ours_as_long_as_they_are_adopted(kind: str, tmp_path: Path) -> None:
    system = LinuxHost() if kind == "linux" else freebsd()
    assert system.adopt_orphans(adopt=True)
    assert not system.adopt_orphans(adopt=True)
    assert system.children() == []
    told = tmp_path / "told"
    subprocess.run(["sh", "-c", 'sleep 60 & echo $! >"$0"', told], check=True, close_fds=True)
    orphan = int(told.read_text())
    deadline = time.monotonic() + 5
    while system.children() != [orphan]:
        assert time.monotonic() < deadline, system.children()
    os.kill(orphan, signal.SIGKILL)
    os.waitpid(orphan, 0)
    assert system.adopt_orphans(adopt=False)
    assert not system.adopt_orphans(adopt=False)
    subprocess.run(["sh", "-c", 'sleep 60 & echo $! >"$0"', told], check=True)
    assert system.children() == []
    os.kill(int(told.read_text()), signal.SIGKILL)


@isolated
@pytest.mark.parametrize("kind", ["linux", "freebsd"])
def test_who_adopts_orphans_does_so_after_a_hook_as_well(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = LinuxHost() if kind == "linux" else freebsd()
    monkeypatch.setattr(host, "here", lambda: system)
    around = process.Surroundings({"PATH": os.environ["PATH"]})

    def run() -> int | None:
        return process.run_for_effect(["true"], timeout=30, around=around, take=lambda _: None)

    assert run() == 0
    assert system.adopt_orphans(adopt=True)
    assert run() == 0
    assert not system.adopt_orphans(adopt=True)


@isolated
def test_more_children_than_there_is_room_for_at_first_are_all_told() -> None:
    system = freebsd()
    system.adopt_orphans(adopt=True)
    pids = []
    for _ in range(70):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        pids.append(pid)
    assert sorted(system.children()) == sorted(pids)


# Structures, each field with its size in bytes, by hand: sys/sys/procctl.h, sys/sys/event.h


@pytest.mark.parametrize(
    ("structure", "fields"),
    [
        (ReaperPidInfo, {"pi_pid": 4, "pi_subtree": 4, "pi_flags": 4, "pi_pad0": 60}),
        (ReaperPids, {"rp_count": 4, "rp_pad0": 60, "rp_pids": 8}),
        (Kevent, {"ident": 8, "filter": 2, "flags": 2, "fflags": 4, "data": 8, "udata": 8, "ext": 32}),
    ],
)
def test_the_structures_are_the_headers(structure: type[ctypes.Structure], fields: dict[str, int]) -> None:
    offset = 0
    for name, size in fields.items():
        field = getattr(structure, name)
        assert (name, field.offset, field.size) == (name, offset, size)
        offset += size
    assert ctypes.sizeof(structure) == offset
