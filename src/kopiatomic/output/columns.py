"""Text in columns that fit a width. Text that is too long continues below, and nothing is left out.

Rich's own tables take 0.2 ms per row; a plan may have ten thousand.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import Console

GAP = "  "
_NARROW = 8
"""No column becomes narrower than this many cells, however little room there is."""

Cell = tuple[str, str]
"""A rich style, or an empty one, and a text."""

Paint = Callable[[str, str], str]
"""Returns a text (the second argument) in a style (the first)."""


def rows(table: Sequence[Sequence[Cell]], width: int, paint: Paint) -> Iterator[str]:
    """Yield the lines of a table in which all rows have the same number of cells."""
    columns = list(zip(*table, strict=True))
    widths = fitting([max(_cells(text) for _, text in column) for column in columns], width)
    for row in table:
        folded = [list(fold(text, room)) for (_, text), room in zip(row, widths, strict=True)]
        for number in range(max(map(len, folded))):
            line = ""
            filled = 0
            for (style, _), parts, room in zip(row, folded, widths, strict=True):
                part = parts[number] if number < len(parts) else ""
                line += " " * filled + (paint(style, part) if style and part else part)
                filled = room - _cells(part) + len(GAP)
            yield line.rstrip()


def fitting(wanted: Sequence[int], width: int) -> list[int]:
    """Return the widths of columns, given the wanted ones: the widest give way first, and equally."""
    room = width - len(GAP) * (len(wanted) - 1)
    most = max(wanted)
    while most > _NARROW and sum(min(one, most) for one in wanted) > room:
        most -= 1
    return [min(one, most) for one in wanted]


def fold(text: str, width: int) -> Iterator[str]:
    """Yield a text in pieces that fit, broken after a space if possible."""
    while _cells(text) > width:
        piece = text[: _that_fit(text, width)]
        rest = text[len(piece) :]
        if rest.startswith(" "):
            rest = rest[1:]
        elif " " in piece:
            piece = piece[: piece.rindex(" ") + 1]
            rest = text[len(piece) :]
        yield piece
        text = rest
    yield text


def _that_fit(text: str, width: int) -> int:
    """Return how many characters of a too long text fit. Rich's chop_cells is unusable here: bookworm's goes backwards."""
    if text.isascii():
        return width
    count = 1
    while cell_len(text[: count + 1]) <= width:
        count += 1
    return count


def _cells(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def look(stream: TextIO) -> tuple[int, Paint]:
    """Return how many cells a line of a stream has, and how text is styled there.

    If it is not a terminal, the width is COLUMNS, or without end, so that grep(1) finds a name whole; and there are no styles.
    Rich handles NO_COLOR and TERM=dumb.
    """
    console = Console(file=stream, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        return sys.maxsize, lambda _, text: text
    if not console.is_terminal or console.color_system is None:
        return console.width, lambda _, text: text

    def paint(style: str, text: str) -> str:
        parsed = console.get_style(style)
        return (parsed.without_color if console.no_color else parsed).render(text, color_system=ColorSystem.STANDARD)

    return console.width, paint
