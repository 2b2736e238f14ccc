"""FreeBSD's kernel as a value: the few calls of its C library that Python does not offer, through ctypes.

All FreeBSD code receives this value, so that the same code runs on Linux in the tests, against a shim. docs/freebsd.md names the
page or source for each call.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from ctypes import CFUNCTYPE, c_char_p, c_int, c_int64, c_long, c_size_t, c_uint, c_void_p
from functools import cache

from kopiatomic.immutable import immutable

PROTOTYPES = {
    "getfsstat": CFUNCTYPE(c_int, c_void_p, c_long, c_int, use_errno=True),
    "nmount": CFUNCTYPE(c_int, c_void_p, c_uint, c_int, use_errno=True),
    "unmount": CFUNCTYPE(c_int, c_char_p, c_int, use_errno=True),
    "procctl": CFUNCTYPE(c_int, c_int, c_int64, c_int, c_void_p, use_errno=True),
    "sysctlbyname": CFUNCTYPE(c_int, c_char_p, c_void_p, c_void_p, c_void_p, c_size_t, use_errno=True),
    "kqueue": CFUNCTYPE(c_int, use_errno=True),
    "kevent": CFUNCTYPE(c_int, c_int, c_void_p, c_int, c_void_p, c_int, c_void_p, use_errno=True),
}
"""As in getfsstat(2), mount(2), procctl(2) (``id_t`` has 64 bits: sys/sys/_types.h), sysctl(3) and kqueue(2)."""


@immutable
class Kernel:
    """The calls. Each returns -1 if it failed, with the reason in ctypes' copy of errno."""

    getfsstat: Callable[..., int]
    nmount: Callable[..., int]
    unmount: Callable[..., int]
    procctl: Callable[..., int]
    sysctlbyname: Callable[..., int]
    kqueue: Callable[..., int]
    kevent: Callable[..., int]


@cache
def kernel() -> Kernel:
    """Return the kernel that this process runs on."""
    library = ctypes.CDLL(None, use_errno=True)
    return Kernel(**{name: prototype((name, library)) for name, prototype in PROTOTYPES.items()})


def failed(*names: str) -> OSError:
    """Return the failure of the previous call as an exception; ``names`` as for OSError: a file, or two."""
    number = ctypes.get_errno()
    filenames = (names[0], None, names[1]) if len(names) > 1 else names
    return OSError(number, os.strerror(number), *filenames)


def setting(kernel: Kernel, name: str, room: int) -> bytes | None:
    """Return the bytes of a sysctl(3), at most ``room``; None if this kernel does not have it. Raises OSError."""
    value = (ctypes.c_ubyte * room)()
    size = c_size_t(room)
    if kernel.sysctlbyname(os.fsencode(name), value, ctypes.byref(size), None, 0) == 0:
        return bytes(value[: size.value])
    error = failed(name)
    if isinstance(error, FileNotFoundError):
        return None
    raise error


def number(kernel: Kernel, name: str) -> int | None:
    """Return the value of a sysctl that is a number or a boolean; None if this kernel does not have it. Raises OSError."""
    # A boolean has one byte, an int four, a long eight: the call returns the size.
    value = setting(kernel, name, 8)
    return None if value is None else int.from_bytes(value, sys.byteorder, signed=True)
