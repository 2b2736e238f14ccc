"""The versions of everything involved, for bug reports. Needs no root, changes nothing."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import kopiatomic
from kopiatomic import presence
from kopiatomic.engines.program import Program
from kopiatomic.errors import KopiatomicError
from kopiatomic.system import host, process, zfs_program
from kopiatomic.text import ended, printable

_LIMIT = 5.0
"""How many seconds a program has to report its version."""

_NONE = "not found"


def lines() -> Iterator[str]:
    """Yield one line per component, with its version and location."""
    system = os.uname()
    facts = [
        ("kopiatomic", f"{kopiatomic.__version__} in {os.path.dirname(kopiatomic.__file__)}"),
        (
            "Python",
            f"{platform.python_version()} ({sys.executable}), click {_library('click')}, rich {_library('rich')}",
        ),
        ("System", f"{_distribution()}, {system.sysname} {system.release} {system.machine}"),
        ("OpenZFS", _zfs()),
        ("Btrfs", f"{_btrfs()}; kernel: {_btrfs_in_the_kernel()}"),
        ("kopia", _engine("kopia", "--version")),
        ("restic", _engine("restic", "version")),
        ("Borg", _engine("borg", "--version")),
    ]
    for name, fact in facts:
        yield f"{name + ':':<11} {printable(fact)}"


def _library(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "a system without os-release(5)"


def _zfs() -> str:
    """Return both versions from ``zfs version``: it asks the kernel for its own and needs no pool (zfs-version(8))."""
    user, _, kernel = _said(lambda: zfs_program.run(["zfs", "version"], timeout=_LIMIT, may_fail=True)).partition("\n")
    try:
        # The tools may be missing or older than the module.
        loaded = Path("/sys/module/zfs/version").read_text(encoding="utf-8").strip()
    except OSError:
        loaded = kernel if host.here().has_zfs() else ""
    return f"{user}; kernel: {loaded or 'not loaded'}"


def _btrfs() -> str:
    return _said(lambda: process.run(["btrfs", "--version"], timeout=_LIMIT))


def _btrfs_in_the_kernel() -> str:
    try:
        if "\tbtrfs\n" in Path("/proc/filesystems").read_text(encoding="ascii"):
            return "yes"
        modules = Path("/lib/modules", platform.release(), "modules.dep").read_text(encoding="utf-8")
    except OSError as error:
        return "no" if presence.absent(error) else f"not known ({error.strerror})"
    return "a module that is not loaded" if "/btrfs.ko" in modules else "no"


def _engine(name: str, word: str) -> str:
    """Return the version and location of an engine's program, searched for as a run does."""
    program = Program(name, os.environ, install=_NONE, attempt=lambda: "")
    try:
        return f"{_output(program.run(word, timeout=_LIMIT))} ({program.path})"
    except KopiatomicError as error:
        return _NONE if error.kind == f"{name}-missing" else error.message


def _said(run: Callable[[], process.Finished]) -> str:
    """Return the output of a program, whatever its exit status, or why there is none."""
    try:
        return _output(run())
    except FileNotFoundError:
        return _NONE
    except OSError as error:
        return f"cannot be started: {error.strerror}"
    except KopiatomicError as error:
        return error.message


def _output(finished: process.Finished) -> str:
    return (
        finished.stdout.decode("utf-8", "replace").strip()
        or f"says nothing ({finished.errors or ended(finished.status)})"
    )
