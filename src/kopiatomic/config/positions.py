"""Where each key of a TOML file stands, which ``tomllib`` does not say.

The text must be one that ``tomllib`` accepts. The index is compared with the tree that ``tomllib`` returns, so that a mistake
of this scanner can hide a position but never show a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kopiatomic.immutable import immutable

Path = tuple[str | int, ...]
"""The keys, and the indices in arrays, that lead to a value."""


@immutable
class Position:
    """A place in a text: ``line`` and ``column`` count from 1, ``length`` is in characters."""

    line: int
    column: int
    length: int


_SPACE = re.compile(r"[ \t]*")
_BETWEEN = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
"""What may stand between the items of an array, and between lines."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}' r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_PLAIN = re.compile(r"[^,\]}#\n]+")
"""A number, a date or a truth value."""


def index(text: str, tree: Mapping[str, Any]) -> Mapping[Path, Position]:
    """Return where the keys, tables and items of a document are; nothing if that does not agree with ``tree``."""
    try:
        found = _Scanner(text.replace("\r\n", "\n")).scan()
    except _LostError:
        return {}
    return found if found.keys() == set(_paths(tree)) else {}


def _paths(tree: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the path of everything in a tree."""
    left: list[tuple[Path, Any]] = [((), tree)]
    while left:
        path, value = left.pop()
        if path:
            yield path
        if isinstance(value, Mapping):
            left += [((*path, key), below) for key, below in value.items()]
        elif isinstance(value, list):
            left += [((*path, number), below) for number, below in enumerate(value)]


class _LostError(Exception):
    """The text is not what the scanner expects."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line, self._line_begins, self._counted = 1, 0, 0
        self._found: dict[Path, Position] = {}
        self._tables: dict[Path, int] = {}
        """How many tables each array of tables has so far."""

    def scan(self) -> Mapping[Path, Position]:
        """Return the positions of the whole text. Raises _LostError."""
        table: Path = ()
        while True:
            self._match(_BETWEEN)
            if self._at == len(self._text):
                return self._found
            if self._next("[["):
                table = self._header("]]")
            elif self._next("["):
                table = self._header("]")
            else:
                self._value(self._key(table))

    def _header(self, end: str) -> Path:
        """Take the rest of a table's header; return the path of what follows it."""
        table: Path = ()
        self._match(_SPACE)
        while True:
            name, position = self._part()
            table = (*table, name)
            self._match(_SPACE)
            last = not self._next(".")
            if last and end == "]]":
                self._note(table, position)
                number = self._tables[table] = self._tables.get(table, 0) + 1
                table = (*table, number - 1)
            elif table in self._tables:
                table = (*table, self._tables[table] - 1)
            self._note(table, position)
            if last:
                break
            self._match(_SPACE)
        self._expect(end)
        return table

    def _key(self, table: Path) -> Path:
        """Take a key and its equals sign; return the path of its value."""
        while True:
            name, position = self._part()
            table = (*table, name)
            self._note(table, position)
            self._match(_SPACE)
            if self._next("="):
                return table
            self._expect(".")
            self._match(_SPACE)

    def _part(self) -> tuple[str, Position]:
        """Take one part of a dotted key, bare or quoted."""
        begin = self._at
        quoted = self._match(_STRING)
        name = _content(quoted) if quoted else self._match(_BARE)
        if not name and not quoted:
            raise _LostError
        return name, self._position(begin)

    def _value(self, path: Path) -> None:
        """Take a value, and note what is in it."""
        open_: list[_Container] = []
        while True:
            self._match(_BETWEEN if open_ and open_[-1].is_array else _SPACE)
            if self._next("["):
                open_.append(_Container(path, is_array=True))
            elif self._next("{"):
                open_.append(_Container(path, is_array=False))
            elif not (self._match(_STRING) or self._match(_PLAIN)):
                raise _LostError
            following = self._following(open_)
            if following is None:
                return
            path = following

    def _following(self, open_: list[_Container]) -> Path | None:
        """Take what stands before the next value in a container; return its path, or None at the end of all of them."""
        while open_:
            container = open_[-1]
            self._match(_BETWEEN)
            if self._next("]" if container.is_array else "}"):
                open_.pop()
            elif self._next(","):
                continue
            elif container.is_array:
                path = (*container.path, container.items)
                container.items += 1
                self._note(path, self._position(self._at, length=1))
                return path
            else:
                return self._key(container.path)
        return None

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[0]

    def _next(self, text: str) -> bool:
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _expect(self, text: str) -> None:
        if not self._next(text):
            raise _LostError

    def _position(self, begin: int, length: int | None = None) -> Position:
        """Return the place of what begins there; positions are asked for in the order of the text."""
        # Only what is new is searched: all keys may be on one line.
        self._line += self._text.count("\n", self._counted, begin)
        self._line_begins = max(self._line_begins, self._text.rfind("\n", self._counted, begin) + 1)
        self._counted = begin
        return Position(self._line, begin - self._line_begins + 1, self._at - begin if length is None else length)

    def _note(self, path: Path, position: Position) -> None:
        """Keep the first place where something is named."""
        self._found.setdefault(path, position)


class _Container:
    """An array or an inline table whose end has not been reached."""

    def __init__(self, path: Path, *, is_array: bool) -> None:
        self.path = path
        self.is_array = is_array
        self.items = 0


_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")


def _content(quoted: str) -> str:
    """Return the text of a quoted key."""
    if quoted.startswith("'"):
        return quoted[1:-1]
    return _ESCAPE.sub(
        lambda found: chr(int(found[1] or found[2], 16)) if not found[3] else _ESCAPES[found[3]], quoted[1:-1]
    )
