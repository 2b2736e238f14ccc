"""What the demonstration prints: 80 columns, with a little colour where the terminal wants it."""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from collections.abc import Sequence

WIDTH = 79
BOLD, GREEN, RED = "1", "1;32", "1;31"


def coloured() -> bool:
    """Whether to use colours. In the VM there is no terminal: there ./demo says with FORCE_COLOR what it has found."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def styled(text: str, style: str) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if coloured() else text


def say(text: str = "", style: str = "") -> None:
    print(styled(text, style) if style else text, flush=True)


def title(text: str) -> None:
    say()
    say(text, BOLD)


def explain(text: str) -> None:
    say(textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False))


def command(argv: Sequence[str]) -> None:
    """A command as root would type it, continued on the next line where it is long."""
    lines = ["  #"]
    for word in map(shlex.quote, argv):
        if len(f"{lines[-1]} {word} \\") > WIDTH:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}"
    for line in lines:
        say(line, BOLD)


def table(heads: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]]) -> None:
    """Columns under their heads; each cell is text and style, and each row begins with its name."""
    widths = [max(len(head), *(len(row[n][0]) for row in rows)) for n, head in enumerate(heads)]

    def line(cells: Sequence[tuple[str, str]]) -> None:
        padded = [
            text.ljust(width) if n == 0 else text.rjust(width)
            for n, ((text, _), width) in enumerate(zip(cells, widths, strict=True))
        ]
        say(
            "  "
            + "    ".join(
                styled(text, style) if style else text for text, (_, style) in zip(padded, cells, strict=True)
            )
        )

    line([(head, BOLD) for head in heads])
    for row in rows:
        line(row)
