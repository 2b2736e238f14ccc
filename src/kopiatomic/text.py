"""Text that is safe to print: names without control characters and undecodable bytes, and how programs ended."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence


def printable(name: str) -> str:
    """Return a name as shown to a person: control characters and bytes that are not UTF-8 appear as ``\\xNN``.

    >>> printable("a\\tb")
    'a\\\\x09b'
    """
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else _escaped(c) for c in name)


def harmless(text: str) -> str:
    """Apply :func:`printable` to each line of a text; tabs stay as well."""
    return text if text.isprintable() else re.sub(r"[^\n\t]+", lambda found: printable(found[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


_NO_TEXT = re.compile("[\udc80-\udcff]")
"""A byte of a name that is not UTF-8, as ``os.fsdecode`` has it."""


def is_text(name: str) -> bool:
    """Whether all bytes of a name are UTF-8."""
    return name.isascii() or _NO_TEXT.search(name) is None


def spelled(name: str, stand_in: str) -> str:
    """Return a name or path as written by a program that replaces each byte that is not text."""
    return name if is_text(name) else _NO_TEXT.sub(lambda _: stand_in, name)


def counted(number: int, one: str, many: str) -> str:
    """Return a number with what it is of, in the singular or plural.

    >>> counted(1, "entry", "entries")
    '1 entry'
    """
    return f"{number:,} {one if number == 1 else many}"


def first_few(names: Sequence[str]) -> str:
    """Return the first three of some names as shown to a person, and how many more there are."""
    shown = ", ".join(map(printable, names[:3]))
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def few(lines: Sequence[str], most: int = 20) -> list[str]:
    """Return some lines, or the first of very many and how many more there are."""
    return list(lines) if len(lines) <= most else [*lines[: most - 1], f"and {len(lines) - most + 1} more of this kind"]


def ended(status: int) -> str:
    """Say how a program ended: ``exit status 3``, ``killed by SIGKILL (9)``."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name} ({-status})"
    except ValueError:
        return f"killed by signal {-status}"
