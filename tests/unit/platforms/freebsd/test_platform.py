"""FreeBSD's calls have the types of its manual pages, and its settings are read whatever their width."""

import ctypes
import os
import sys

import pytest

from kopiatomic.system import freebsd
from tests.support.freebsd_shim import Shim
from tests.support.programs import command

POINTER, LONG = ctypes.sizeof(ctypes.c_void_p), ctypes.sizeof(ctypes.c_long)

# The sizes of the arguments, from the synopses of getfsstat(2), mount(2), procctl(2), sysctl(3) and kqueue(2), by hand.
SYNOPSES = {
    "getfsstat": (POINTER, LONG, 4),
    "nmount": (POINTER, 4, 4),
    "unmount": (POINTER, 4),
    "procctl": (4, 8, 4, POINTER),
    "sysctlbyname": (POINTER, POINTER, POINTER, POINTER, ctypes.sizeof(ctypes.c_size_t)),
    "kqueue": (),
    "kevent": (4, POINTER, 4, POINTER, 4, POINTER),
}


def test_the_calls_take_what_the_manual_pages_say() -> None:
    found = {}
    for name, prototype in freebsd.PROTOTYPES.items():
        assert prototype._restype_ is ctypes.c_int
        found[name] = tuple(map(ctypes.sizeof, prototype._argtypes_))
    assert found == SYNOPSES


@pytest.mark.parametrize(("value", "width"), [(0, 1), (1, 1), (1, 4), (0, 4), (-1, 4), (1 << 40, 8)], ids=str)
def test_a_setting_is_read_whatever_its_width(value: int, width: int) -> None:
    shim = Shim()
    shim.sysctls["vfs.some"] = (value, width)
    assert freebsd.number(shim.kernel, "vfs.some") == value


def test_where_python_says_freebsd_its_directories_and_recovery_are_used() -> None:
    script = (
        "import sys; sys.platform = 'freebsd14'\n"
        "from kopiatomic.system import freebsd; freebsd.kernel = lambda: None\n"
        "from kopiatomic.runs import recovery; from kopiatomic.state import locks\n"
        "print(locks.DIRECTORY, *recovery.kinds(None))"
    )
    ended = command(sys.executable, "-c", script)
    assert ended.stdout.split() == [f"{os.path.realpath('/var/run')}/kopiatomic", "mount", "hook", "zfs", "directory"]


def test_a_setting_that_this_kernel_has_not_is_none() -> None:
    assert freebsd.number(Shim().kernel, "vfs.other") is None


def test_what_a_run_there_imports_needs_nothing_that_only_linux_has() -> None:
    script = (
        "import os, select, signal, subprocess, sys, importlib\n"
        "names = 'O_PATH', 'O_NOATIME', 'O_TMPFILE', 'pidfd_open', 'setns', 'unshare', 'eventfd', 'memfd_create', 'setxattr'\n"
        "names = [name for name in names if hasattr(os, name)]\n"
        "for name in names: delattr(os, name)\n"
        "del signal.pidfd_send_signal, select.epoll\n"
        "sys.platform = 'freebsd14'\n"
        "from kopiatomic.system import freebsd; freebsd.kernel = lambda: None\n"
        "from kopiatomic import engines, platforms\n"
        "from kopiatomic.cli import entry\n"
        "from kopiatomic.commands import backup, failures, inside\n"
        "from kopiatomic.runs import recovery\n"
        "from kopiatomic.engines import borg, command, kopia, restic\n"
        "print(type(platforms.here()).__name__, *recovery.kinds(None))\n"
    )
    ended = command(sys.executable, "-c", script)
    assert ended.stdout.split() == ["FreeBSDPlatform", "mount", "hook", "zfs", "directory"]
