"""Common to all commands: who may run them, and an exit code for whatever goes wrong."""

from __future__ import annotations

import os
from collections.abc import Callable

from kopiatomic.errors import KopiatomicError, end_of
from kopiatomic.output.console import Console


def require_root(what: str, shown: str, more: str = "") -> None:
    """Raise KopiatomicError unless run as root. ``what`` is a sentence about what only root may do.

    ``shown`` is the command line as it may be shown; ``more`` comes before it, so that the rest of the line can be copied.
    """
    if os.geteuid() != 0:
        raise KopiatomicError(what, kind="not-root", hint=f"{more}sudo {shown}")


def require_root_to_freeze(shown: str, more: str = "") -> None:
    """Raise KopiatomicError unless run as root, as :func:`require_root` does."""
    require_root("making and mounting snapshots needs root", shown, more)


def ended(run: Callable[[], int], console: Console) -> int:
    """Call a function, and turn what goes wrong into a message and an exit code."""
    try:
        return console.exit_code(run())
    except Exception as error:
        failure = end_of(error)
        console.error(failure)
        return failure.exit_code
