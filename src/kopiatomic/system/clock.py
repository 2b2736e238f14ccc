"""The wall clock: whether it has been synchronised since the machine was started."""

from __future__ import annotations

import ctypes

from kopiatomic import presence

_TIMESYNCD = "/run/systemd/timesync/synchronized"
"""Made by systemd-timesyncd when it has set the clock (systemd-timesyncd.service(8)); /run does not survive a boot."""

_ERROR = 5
"""TIME_ERROR: the clock is not synchronised (adjtimex(2), ntp_adjtime(2) of FreeBSD)."""

_TIMEX_BYTES = 512
"""More than any ``struct timex``. It begins with ``modes``; if that is zero, nothing is changed."""


def synchronised() -> bool:
    """Whether the clock was synchronised in this boot, according to the kernel and systemd; False if they do not say so.

    The kernel forgets it some hours after the last correction: then a program that keeps the clock has ended.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    ask = getattr(libc, "adjtimex", None) or getattr(libc, "ntp_adjtime", None)
    state = -1 if ask is None else ask(ctypes.create_string_buffer(_TIMEX_BYTES))
    return 0 <= state < _ERROR or presence.exists(_TIMESYNCD)
