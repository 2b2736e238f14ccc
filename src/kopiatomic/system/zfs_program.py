"""Runs ``zfs`` and ``zpool``: the one place that does."""

from __future__ import annotations

import os
from collections.abc import Sequence

from kopiatomic.errors import KopiatomicError
from kopiatomic.system import process

_TIMEOUT = 120.0


class FailedError(KopiatomicError):
    """``zfs`` or ``zpool`` failed. ``finished`` is what it said, and how it ended."""

    def __init__(self, finished: process.Finished) -> None:
        command = " ".join(finished.argv[:2])
        super().__init__(
            f"'{command}' failed: {finished.errors or f'exit status {finished.status}'}",
            kind="zfs-list",
            hint=f"Type '{command}' by hand; what it needs is missing or broken.",
        )
        self.finished = finished

    def __reduce__(self) -> tuple[object, ...]:
        return FailedError, (self.finished,)


def run(
    argv: Sequence[str],
    *,
    timeout: float = _TIMEOUT,
    killed_timeout: float = process.KILLED_TIMEOUT,
    may_fail: bool = False,
) -> process.Finished:
    """Run ``zfs`` or ``zpool`` in the C locale, because its output is read. Raises FailedError, and as :func:`process.run`.

    With ``may_fail`` the caller judges the exit status: if one of several names does not exist it is not 0, although the output
    holds the others.
    """
    finished = process.run(
        argv,
        timeout=timeout,
        killed_timeout=killed_timeout,
        environment={**os.environ, "LC_ALL": "C"},
        keep=1 << 30,
    )
    if finished.status != 0 and not may_fail:
        raise FailedError(finished)
    return finished
