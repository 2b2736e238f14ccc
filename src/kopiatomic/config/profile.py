"""Profiles: one TOML file for each backup, with what the command line can say, in tables by topic.

Everything that is wrong with a file is found at once, and each problem is shown with its place. What the keys are, and of which
type, is in ``config/settings.py``.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import shlex
import socket
import stat
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from kopiatomic import presence
from kopiatomic.config.options import (
    MEASURES,
    bad_program,
    duration,
    problem_with,
    problem_with_variable,
    within,
)
from kopiatomic.config.positions import Path, Position, index
from kopiatomic.config.settings import ASK, BLOCKS, KEYS, TABLES, WITH_ENVIRONMENT, Block, Form, Setting
from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.immutable import immutable
from kopiatomic.secrets.masking import MASK, Secrets, found_in, is_secret, masked
from kopiatomic.secrets.names import names_secret, tells_secret
from kopiatomic.secrets.source import Source
from kopiatomic.system import safety
from kopiatomic.system.descriptors import closing
from kopiatomic.text import printable

SUFFIX = ".toml"
LARGEST = 1 << 20
"""Bytes. A larger file is not a profile."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REFERENCE = re.compile(r"\$\{([^}]*)\}?")
_SHELL = ("pre_hook", "post_hook", "command", "shell")
"""Values in which a shell, or the user's own command, replaces variables too."""

_FORMS = ("file", "credential", "command")
"""How a variable may say where its value is."""


@immutable
class Origin:
    """Where a value was read: the file and, if it is known, the place of its key."""

    file: str
    position: Position | None
    text: str
    """The line at that place; empty where it may be a part of a value that began above."""
    mode: int = 0o600
    """The permissions of the file."""

    @property
    def is_private(self) -> bool:
        """Whether nobody but its owner can read the file."""
        return not self.mode & 0o077

    @property
    def place(self) -> str:
        """The file with line and column, as shown to a person."""
        at = "" if self.position is None else f":{self.position.line}:{self.position.column}"
        return f"{printable(self.file)}{at}"


@immutable
class Value:
    """A value and where it is from; ``given`` is what the file says."""

    value: Any
    given: Any
    origin: Origin


@immutable
class Entry:
    """One block of a profile, such as a hook: its values by key, and its variables by name."""

    values: Mapping[str, Value]
    environment: Mapping[str, Value]
    origin: Origin

    def value(self, key: str, default: Any = None) -> Any:
        """Return what is said of a key, or a default."""
        found = self.values.get(key)
        return default if found is None else found.value

    def sources(self) -> list[Source]:
        """Return the variables."""
        return [source_of(name, value) for name, value in self.environment.items()]


@immutable
class Problem:
    """What is wrong with a file, and where."""

    message: str
    origin: Origin

    def lines(self) -> list[str]:
        """Return the problem as shown to a person: the place and what is wrong, the line, a mark below the key."""
        position = self.origin.position
        if position is None:
            return [f"{self.origin.place}: {self.message}"]
        quoted = _quoted(self.origin.text, position, public=bool(self.origin.mode & 0o004))
        return [f"{self.origin.place}: {self.message}", *(f"    {line}" for line in quoted)]


@immutable
class Profile:
    """What a file and those that it extends say. Keys are tables' names and keys in them (``select``, ``recursive``)."""

    name: str
    path: str
    values: Mapping[tuple[str, str], Value]
    environment: Mapping[tuple[str, str], Value]
    """Variables by table and name; a value is a text, or a table that says where the value is."""
    blocks: Mapping[tuple[str, ...], Value]
    """By the tables that lead to them; each value is a tuple of :class:`Entry`."""
    files: tuple[str, ...]
    """The files that were read, the profile's own first."""

    def value(self, table: str, key: str, default: Any = None) -> Any:
        """Return what is said of a key, or a default."""
        found = self.values.get((table, key))
        return default if found is None else found.value

    def options(self) -> dict[str, Any]:
        """Return the arguments that the command line of a backup would have, by the names of the settings."""
        return {KEYS[place].name: value.value for place, value in self.values.items() if place[0] != "schedule"}

    def sources(self, table: str) -> list[Source]:
        """Return the variables of a table."""
        return [source_of(name, value) for (of, name), value in self.environment.items() if of == table]

    def program(self) -> str:
        """Return the program that receives the words of ``options``."""
        command = shlex.split(self.value("engine", "command", ""))
        return command[0] if command else str(self.value("engine", "engine", "kopia"))

    def entries(self, *place: str) -> tuple[Entry, ...]:
        """Return the blocks of one kind, in their order."""
        found = self.blocks.get(place)
        return () if found is None else found.value


def source_of(name: str, value: Value) -> Source:
    """Return where the value of a variable is."""
    form, given = next(iter(value.value.items())) if isinstance(value.value, dict) else ("text", value.value)
    return Source(name, form, tuple(given) if isinstance(given, list) else given, value.origin.place)


class ProfileError(UsageError):
    """Files that are wrong, with all that is wrong with them."""

    def __init__(self, problems: list[Problem], hint: str | None = None) -> None:
        lines = [line for problem in problems[:_MOST] for line in problem.lines()]
        lines += [f"and {len(problems) - _MOST} more"] if len(problems) > _MOST else []
        super().__init__("\n".join(lines), kind="bad-profile", hint=hint)
        self.problems = problems

    def __reduce__(self) -> tuple[object, ...]:
        return ProfileError, (self.problems, self.hint)


def check_name(name: str) -> None:
    """Refuse a name that is not that of a profile. Raises UsageError."""
    if _NAME.fullmatch(name) is None or name.endswith(SUFFIX):
        hint = f"For example: {name.removesuffix(SUFFIX)}" if _NAME.fullmatch(name.removesuffix(SUFFIX)) else None
        raise UsageError(
            f"{printable(name)} is not the name of a profile: letters, digits, '.', '_' and '-', without '{SUFFIX}'",
            kind="bad-name",
            hint=hint or "A profile has the name of its file: home.toml is 'home'.",
        )


def is_variable(name: str) -> bool:
    """Whether a profile can name a variable like that."""
    return _VARIABLE.fullmatch(name) is not None


def anything(_path: str) -> None:
    """Allow every file to be read (:func:`load`)."""


def load(path: str, allow: Callable[[str], None] = anything) -> Profile:
    """Read a profile with everything from its folder that it extends. Raises ProfileError with every problem found.

    ``allow`` gets the path of each file before it is opened, and raises what is to keep it from being read: what is wrong with a
    file is shown with its lines.
    """
    name = os.path.basename(path).removesuffix(SUFFIX)
    files, problems = _chain(path, allow)
    merged: dict[tuple[str, ...], Value] = {}
    for file in reversed(files):
        merged |= file.values
    profile = Profile(
        name,
        path,
        {(place[0], place[1]): value for place, value in merged.items() if place in KEYS},
        {(place[0], place[2]): value for place, value in merged.items() if len(place) == 3},
        {place: value for place, value in merged.items() if place in BLOCKS},
        tuple(file.path for file in files),
    )
    problems += _contradictions(profile, {place for file in files for place in file.refused})
    problems += _told_to_others(profile)
    if problems:
        raise ProfileError(problems)
    return profile


# One file


class _File:
    """A file that was read: its values by place, and the problems with it alone."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.values: dict[tuple[str, ...], Value] = {}
        self.problems: list[Problem] = []
        self.refused: set[tuple[str, str]] = set()
        """The keys whose values are wrong."""
        self.extends: str | None = None
        self.missing = False
        """Whether there is no such file."""
        self._lines: list[str] = []
        self._positions: Mapping[Path, Position] = {}
        self._mode = 0o600
        self._plain = 0
        """The number of lines before the first that can be a part of a text of several lines."""
        tree = self._tree()
        if tree is not None:
            self._take(tree)

    def origin(self, *place: str | int) -> Origin:
        """Return where something is in this file: its own place, or that of what it is in."""
        while place and place not in self._positions:
            place = place[:-1]
        position = self._positions.get(place)
        if position is None:
            return Origin(self.path, None, "", self._mode)
        hidden = position.line > self._plain and not self._mode & 0o004
        return Origin(self.path, position, "" if hidden else self._lines[position.line - 1], self._mode)

    @property
    def _asks(self) -> bool:
        """Whether another problem will be shown, so that it is worth looking for what was meant."""
        return len(self.problems) < _MOST

    def wrong(self, message: str, *place: str | int) -> None:
        """Note a problem."""
        self.problems.append(Problem(message, self.origin(*place)))

    @property
    def is_private(self) -> bool:
        """Whether only its owner can read it."""
        return not self._mode & 0o077

    def _wrong_secret(self, message: str, *place: str | int) -> None:
        """Note a secret that others can read. It is not shown: who reads this need not be able to read the file."""
        self.problems.append(Problem(message, replace(self.origin(*place), mode=0o600)))

    def _tree(self) -> dict[str, Any] | None:
        """Return what the file says; None if it cannot be read as TOML."""
        try:
            text = self._read()
        except OSError as error:
            self.missing = presence.absent(error) and not presence.is_link(self.path)
            self.wrong(_unreadable(self.path, error, missing=self.missing))
            return None
        if text is None:
            return None
        self._lines = text.replace("\r\n", "\n").split("\n")
        self._plain = next(
            (number for number, line in enumerate(self._lines, 1) if '"""' in line or "'''" in line), len(self._lines)
        )
        if any(found.lastgroup == "deep" for found in _DEEP.finditer(text)):
            self.wrong(f"a key in it has more than {_DEEPEST} parts")
            return None
        try:
            tree = tomllib.loads(text)
        except RecursionError:
            self.wrong("its tables or arrays are nested too deeply")
            return None
        except ValueError as error:
            self.problems.append(_syntax(self.path, self._lines, str(error), self._mode))
            return None
        self._positions = index(text, tree)
        return tree

    def _read(self) -> str | None:
        """Return the content; None if it is not text, which is noted. Raises OSError."""
        with closing(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as fd:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                self.wrong(f"it is {_kind(status.st_mode)}, and must be a file")
                return None
            self._mode = stat.S_IMODE(status.st_mode)
            with open(fd, "rb", closefd=False) as file:
                content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            self.wrong(f"it is larger than {LARGEST >> 20} MiB, and no profile is")
            return None
        if content.startswith(b"\xef\xbb\xbf"):
            self.wrong("it begins with a byte order mark, which TOML does not have: save it as UTF-8 without one")
            return None
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            self.wrong(f"line {line} is not UTF-8, which TOML must be (byte {content[error.start]:#04x})")
            return None

    def _take(self, tree: Mapping[str, Any]) -> None:
        for name, content in tree.items():
            if name == "extends":
                self._take_extends(content)
            elif (name,) in BLOCKS:
                self._take_blocks(content, name)
            elif name not in TABLES:
                self.wrong(_unknown_table(name, content) if self._asks else "", name)
            elif not isinstance(content, dict):
                self.wrong(f"{name} must be a table: write [{name}] on a line of its own, and its keys below", name)
            else:
                self._take_table(name, content)

    def _take_extends(self, name: object) -> None:
        if not isinstance(name, str):
            self.wrong(f"extends must be the name of another profile, not {_shown(name)}", "extends")
        elif _NAME.fullmatch(name) is None:
            self.wrong(f"extends must be the name of another profile, without folder and '{SUFFIX}'", "extends")
        else:
            self.extends = name.removesuffix(SUFFIX)

    def _take_table(self, table: str, content: Mapping[str, Any]) -> None:
        for key, given in content.items():
            if key == "environment" and table in WITH_ENVIRONMENT:
                for name, variable in self._variables(given, table, key).items():
                    self.values[table, key, name] = variable
            elif (table, key) in BLOCKS:
                self._take_blocks(given, table, key)
            elif (table, key) not in KEYS:
                self.wrong(_unknown_key(table, key) if self._asks else "", table, key)
            elif value := self._value(KEYS[table, key], given, table, key):
                self.values[table, key] = value
            else:
                self.refused.add((table, key))

    def _take_blocks(self, given: object, *place: str) -> None:
        """Take a table, or an array of tables, each of which is one block."""
        name = ".".join(place)
        several = given if isinstance(given, list) else [given]
        if not several or not all(isinstance(one, dict) for one in several):
            self.wrong(f"{place[-1]} must be a table, [{name}], or one of several, [[{name}]]", *place)
            return
        numbers: list[tuple[int, ...]] = [(number,) for number in range(len(several))] if several is given else [()]
        entries = [self._entry(BLOCKS[place], one, *place, *at) for one, at in zip(several, numbers, strict=True)]
        self.values[place] = Value(tuple(entries), given, self.origin(*place))

    def _entry(self, block: Block, content: Mapping[str, Any], *place: str | int) -> Entry:
        kind = content.get("kind")
        settings = block.of(kind)
        values: dict[str, Value] = {}
        variables: dict[str, Value] = {}
        for key, given in content.items():
            if key == "environment" and block.has_environment:
                variables = self._variables(given, *place, key)
            elif key not in settings:
                known = [*settings, *(["environment"] if block.has_environment else [])]
                near = (_near(key, known) or f"; its keys are {', '.join(known)}") if self._asks else ""
                self.wrong(f"unknown key {printable(key)} in {_named(place)}{near}", *place, key)
            elif settings[key].is_secret:
                if variable := self._variable(given, *place, key):
                    values[key] = variable
            elif value := self._value(settings[key], given, *place, key):
                values[key] = value
        for key in block.needs:
            if key not in content:
                self.wrong(f"{_named(place)} must have {key}", *place)
        if block.one_of and len([key for key in block.one_of if key in content]) != 1:
            self.wrong(f"{_named(place)} must have one of {' and '.join(block.one_of)}, and no more of them", *place)
        return Entry(values, variables, self.origin(*place))

    def _value(self, setting: Setting, given: object, *place: str | int) -> Value | None:
        """Return a value; None if it is wrong, which is noted."""
        key = setting.key
        if isinstance(given, list) and (setting.repeated or setting.words):
            items = [self._text(item, setting, *place, number) for number, item in enumerate(given)]
            if None in items:
                return None
            texts = [item for item in items if item is not None]
            if not self.is_private and Secrets(texts, {}).found:
                told = f"{key} holds a password, and others can read this file: {_mend(self.path, place[0])}"
                self._wrong_secret(told, *place)
                return None
            value: Any = tuple(texts) if setting.repeated else shlex.join(texts)
            problem = "" if setting.repeated else problem_with(setting, value)
            if problem:
                self.wrong(f"{key} {problem}", *place)
                return None
        else:
            try:
                value = _converted(setting, given)
            except ValueError as error:
                self.wrong(f"{key} {error}", *place)
                return None
            if isinstance(value, str) and setting.form is Form.TEXT:
                value = self._text(value, setting, *place)
                if value is None:
                    return None
        return Value(value, given, self.origin(*place))

    def _text(self, given: object, setting: Setting, *place: str | int) -> str | None:
        """Return a text with its references replaced; None if it is wrong, which is noted."""
        if not isinstance(given, str):
            self.wrong(f"{setting.key} must be an array of texts, and holds {_shown(given)}", *place)
            return None
        if "\0" in given:
            self.wrong(f"{setting.key} has a NUL character, which no name and no argument can have", *place)
            return None
        if setting.repeated and not given.strip():
            self.wrong(f"{setting.key} has an empty text", *place)
            return None
        if not self.is_private and (Secrets([given], {}).found or masked(given) != given):
            told = f"{setting.key} holds a password, and others can read this file: {_mend(self.path, place[0])}"
            self._wrong_secret(told, *place)
            return None
        unknown = [name for name in _REFERENCE.findall(given) if name != "hostname"]
        if unknown and setting.name not in _SHELL:
            self.wrong(f"{setting.key} refers to ${{{printable(unknown[0])}}}; only ${{hostname}} is replaced", *place)
            return None
        text = str(_replaced(given))
        # A word of an array may be anything.
        problem = "" if setting.words and isinstance(place[-1], int) else problem_with(setting, text)
        if problem:
            self.wrong(f"{setting.key} {problem}", *place)
            return None
        return text

    def _variables(self, content: object, *place: str | int) -> dict[str, Value]:
        """Return the variables of a table ``environment`` that are right; what is wrong is noted."""
        found: dict[str, Value] = {}
        if not isinstance(content, dict):
            self.wrong(f"environment must be a table of variables: [{_named(place)[1:-1]}]", *place)
            return found
        for name, given in content.items():
            at = (*place, name)
            if not is_variable(name):
                self.wrong(f"{printable(name)} is not the name of a variable", *at)
                continue
            if variable := self._variable(given, *at):
                found[name] = variable
        return found

    def _variable(self, given: object, *place: str | int) -> Value | None:
        """Return what a variable is, or where that is; None if it is wrong, which is noted."""
        name, value = str(place[-1]), _replaced(given)
        if problem := _bad_source(name, value):
            self.wrong(problem, *place)
        elif problem := self._told_to_all(name, given):
            self._wrong_secret(problem, *place)
        else:
            return Value(value, given, self.origin(*place))
        return None

    def _told_to_all(self, name: str, given: object) -> str:
        """Return why a secret may not stand here."""
        if self.is_private or not isinstance(given, str) or not is_secret(name, given):
            return ""
        return (
            f"{name} holds a secret, and others can read this file: {safety.shut(self.path)}, or put it into a file "
            f'of its own: {name} = {{ file = "/root/{name.lower()}" }}'
        )


def _mend(path: str, table: str | int) -> str:
    of = "hooks" if table == "hooks" else "engine"
    return f"{safety.shut(path)}, or hand it over by a variable below [{of}.environment]"


def _chain(path: str, allow: Callable[[str], None]) -> tuple[list[_File], list[Problem]]:
    """Return a file and those that it extends, in this order, and the problems with each of them."""
    folder = os.path.dirname(path)
    allow(path)
    files = [_File(path)]
    problems = list(files[0].problems)
    while files[-1].extends is not None:
        last, name = files[-1], files[-1].extends
        following = os.path.join(folder, name + SUFFIX)
        if any(os.path.realpath(file.path) == os.path.realpath(following) for file in files):
            chain = " extends ".join(os.path.basename(file.path) for file in files)
            problems.append(
                Problem(
                    f"a profile cannot extend itself: {printable(chain)} extends {name}{SUFFIX}", last.origin("extends")
                )
            )
            break
        allow(following)
        file = _File(following)
        if file.missing:
            near = _near(name, names(folder))
            problems.append(Problem(f"{printable(following)} does not exist{near}", last.origin("extends")))
            break
        # Whoever asked for the profile may not know the base.
        of = f" (the base of {printable(os.path.basename(last.path))})"
        problems += [Problem(problem.message + of, problem.origin) for problem in file.problems]
        files.append(file)
    return files, problems


def names(folder: str) -> list[str]:
    """Return the names of the profiles in a folder, bases included. Raises KopiatomicError if it cannot be listed."""
    try:
        found = presence.names(folder)
    except OSError as error:
        raise KopiatomicError(
            f"the folder of the profiles, {printable(folder)}, cannot be listed: {error.strerror}",
            kind="profiles",
            hint="Look at its permissions; --config-dir names another.",
        ) from None
    return sorted(name for entry in found if _NAME.fullmatch(name := entry.removesuffix(SUFFIX)) and name != entry)


def no_names(folder: str) -> list[str]:
    """Return the files in a folder that look like profiles and whose names no profile can have. Raises OSError."""
    found = (entry for entry in presence.names(folder) if entry.endswith(SUFFIX) and not entry.startswith("."))
    return sorted(entry for entry in found if _NAME.fullmatch(entry.removesuffix(SUFFIX)) is None)


# What a value must be


def _converted(setting: Setting, given: object) -> Any:
    """Return a value as the command line would have it. Raises ValueError with what is wrong, as it follows the key."""
    if setting.repeated:
        example = f"[{_toml(given)}]" if isinstance(given, str) else '["...", "..."]'
        raise ValueError(f"must be an array of texts, such as {example}, not {_shown(given)}")
    match setting.form:
        case Form.FLAG | Form.ANSWER:
            return _answer(setting, given)
        case Form.CHOICE:
            if given not in setting.choices or not isinstance(given, str):
                wanted = ", ".join(map(_toml, setting.choices))
                near = _near(given, setting.choices) if isinstance(given, str) else ""
                raise ValueError(f"must be one of {wanted}, not {_shown(given)}{near}")
        case Form.DURATION:
            return _duration(setting, given)
        case Form.SHARE | Form.SIZE:
            example = '"1%" or "all"' if setting.form is Form.SHARE else '"500M" or "1 GiB"'
            try:
                return MEASURES[setting.form](given if isinstance(given, str) else "")
            except ValueError:
                raise ValueError(f"must be a {setting.form} such as {example}, not {_shown(given)}") from None
        case Form.COUNT | Form.NUMBER:
            if isinstance(given, bool) or not isinstance(given, int):
                raise ValueError(f"must be a whole number, not {_shown(given)}")
            if not setting.least <= given <= setting.most:
                raise ValueError(f"must be from {setting.least:g} to {setting.most:g}, and is {_shown(given)}")
        case _:
            if not isinstance(given, str):
                also = " or an array of words" if setting.words else ""
                raise ValueError(f"must be a text{also}, not {_shown(given)}")
    return given


def _answer(setting: Setting, given: object) -> bool | None:
    asks = setting.form is Form.ANSWER
    if not isinstance(given, bool) and not (asks and given == ASK):
        raise ValueError(f"must be {f'true, false or {_toml(ASK)}' if asks else 'true or false'}, not {_shown(given)}")
    return given if isinstance(given, bool) else None


def _duration(setting: Setting, given: object) -> float:
    if given is True and setting.alone is not None:
        return duration(setting.alone)
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        also = ", or true for as long as it takes" if setting.alone is not None else ""
        raise ValueError(f'must be a duration such as "30s", "10m", "2h" or "1d"{also}, not {_shown(given)}')
    if isinstance(given, str):
        try:
            seconds = duration(given)
        except ValueError:
            raise ValueError(f'must be a duration such as "30s", "10m", "2h" or "1d", not {_shown(given)}') from None
    else:
        seconds = float(given) if abs(given) < 1e18 else float("inf")
    return within(seconds, _shown(given), setting.least)


def _replaced(given: object) -> object:
    """Return a value of a file with the name of the host in all its texts; what else looks like a variable stays as it is."""
    if isinstance(given, dict):
        return {key: _in_texts(value) for key, value in given.items()}
    return _in_texts(given)


def _in_texts(given: object) -> object:
    return [_in_text(word) for word in given] if isinstance(given, list) else _in_text(given)


def _in_text(given: object) -> object:
    if not isinstance(given, str) or "${hostname}" not in given:
        return given
    return given.replace("${hostname}", socket.gethostname())


def _bad_source(name: str, given: object) -> str:
    """Return what is wrong with the value of a variable."""
    forms = '{ file = "/root/..." }, { credential = "..." } or { command = ["..."] }'
    if isinstance(given, str):
        if "\0" in given:
            return f"{name} has a NUL character, which no variable can have"
        if not given:
            return f"{name} is empty"
        problem = problem_with_variable(name, given)
        return f"{name} {problem}" if problem else ""
    if not isinstance(given, dict):
        return f"{name} must be a text, or {forms}, not {_type(given)}"
    if len(given) != 1 or next(iter(given)) not in _FORMS:
        keys = ", ".join(map(printable, given)) or "nothing"
        near = next((_near(key, _FORMS) for key in given if key not in _FORMS), "")
        return f"{name} must say one thing, {forms}, and says {keys}{near}"
    [(form, value)] = given.items()
    if form == "command":
        if not isinstance(value, list) or not value or not all(isinstance(word, str) and word for word in value):
            what = "an array of something else" if isinstance(value, list) else _type(value)
            return f'command must be an array of words, such as ["pass", "show", "backup"], not {what}'
        if any("\0" in word for word in value):
            return "command has a NUL character, which no argument can have"
        problem = bad_program(value[0])
        return f"command {problem}" if problem else ""
    if not isinstance(value, str) or not value or "\0" in value:
        return f"{form} must be a text, and not empty"
    # The value is not repeated: somebody may have written the secret itself there.
    if form == "file" and not os.path.isabs(value):
        return "file must be an absolute path: it names the file that holds the secret"
    if form == "credential" and ("/" in value or value in {".", ".."}):
        return "credential must be a name, without '/': use file for a path"
    return ""


# What does not go together


def _contradictions(profile: Profile, refused: Collection[tuple[str, str]]) -> Iterator[Problem]:
    """Yield what the merged values of all files have wrong together. What a ``refused`` value would be for is not known."""
    engine, command = profile.values.get(("engine", "engine")), profile.values.get(("engine", "command"))
    if engine is not None and command is not None:
        yield Problem(
            "command and engine exclude each other: command runs any program, engine one that is known", command.origin
        )
    if profile.value("select", "recursive") and profile.value("select", "no_nested"):
        yield Problem(
            "recursive and no_nested exclude each other: the one takes what is nested in the subvolumes, the other leaves it out",
            profile.values["select", "no_nested"].origin,
        )
    name = None if command is not None else profile.value("engine", "engine", "kopia")
    layout = profile.value("view", "layout", "merged")
    for place, value in profile.values.items():
        setting = KEYS[place]
        if value.value is False or value.value == ():
            continue
        engine_known = not {("engine", "engine"), ("engine", "command")}.intersection(refused)
        if engine_known and setting.engines and name not in setting.engines:
            own = "a command" if name is None else name
            yield Problem(
                f"{setting.key} is for {' and '.join(setting.engines)}, and the engine is {own}", value.origin
            )
        if ("view", "layout") not in refused and setting.layout is not None and layout != setting.layout:
            yield Problem(
                f'{setting.key} is for layout = "{setting.layout}", and the layout is "{layout}"', value.origin
            )


def _told_to_others(profile: Profile) -> Iterator[Problem]:
    """Yield the engine's own options with a password, in a file that others can read: which these are, the engine says."""
    options = profile.values.get(("engine", "options"))
    if options is None or options.origin.is_private:
        return
    if found_in(shlex.split(options.value), profile.program()):
        origin = replace(options.origin, mode=0o600)
        yield Problem(
            f"options holds a password, and others can read this file: {_mend(origin.file, 'engine')}", origin
        )


# How it is said


_MOST = 100
"""How many problems are shown."""

_WIDEST = 160
"""How long a line may be that is shown, in characters."""

_DEEPEST = 32
"""How many parts a key with dots may have. ``tomllib`` takes a time that grows with the square of it."""

_DEEP = re.compile(
    rf"(?P<deep>(?:(?:[A-Za-z0-9_-]+|\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*')[ \t]*\.[ \t]*){{{_DEEPEST}}})"
    r"|[A-Za-z0-9_-]+|#[^\n]*"
    r'|"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
"""A key with too many parts; words, comments and texts are there so that none is looked for inside of them."""

_HOMES = {key: table for table, key in KEYS}
"""The table of each key."""


def _named(place: tuple[str | int, ...]) -> str:
    """Return a table as a file names it, without the numbers of those in an array."""
    return f"[{'.'.join(part for part in place if isinstance(part, str))}]"


def _unknown_table(name: str, content: object) -> str:
    """Say that there is no such table, and what was probably meant."""
    if isinstance(content, dict):
        return f"unknown table [{printable(name)}]{_near(name, (*TABLES, 'extends'))}"
    home = _HOMES.get(name.replace("-", "_"))
    if home is not None:
        return f"{printable(name)} belongs into [{home}]"
    tables = ", ".join(f"[{table}]" for table in TABLES)
    return f"unknown key {printable(name)}{_near(name, ['extends'])}: keys other than extends belong into a table ({tables})"


def _unknown_key(table: str, key: str) -> str:
    if key == "extends":
        return "extends belongs at the top of the file, above all tables"
    word = key.replace("-", "_")
    if names_secret(word):
        of = "hooks" if table == "hooks" else "engine"
        return (
            f"unknown key {printable(key)} in [{table}]: a secret is a variable, and below [{of}.environment] stands where it "
            'is: NAME = { file = "/root/..." }'
        )
    home = _HOMES.get(word, table)
    if home != table:
        return f"{printable(key)} belongs into [{home}], not into [{table}]"
    known = [setting.key for setting in TABLES[table]] + [place[-1] for place in BLOCKS if place[0] == table]
    near = _near(word, [*known, *(["environment"] if table in WITH_ENVIRONMENT else [])])
    if not near:
        found = difflib.get_close_matches(word, _HOMES, n=1, cutoff=0.75)
        near = f"; did you mean {found[0]} in [{_HOMES[found[0]]}]?" if found else ""
    return f"unknown key {printable(key)} in [{table}]{near}"


def _near(word: str, known: Any) -> str:
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def _shown(given: object) -> str:
    """Return a value as a file has it, shortened."""
    match given:
        case bool():
            return "true" if given else "false"
        case str():
            return _toml(masked(given) if len(given) <= 60 else f"{masked(given)[:60]}...")
        case dict():
            return "a table"
        case list():
            return "an array"
        case int() if abs(given) >= 10**20:
            return "a very large number"
    return str(given)


def _type(given: object) -> str:
    """Return what a value is, without the value: it may be a secret."""
    return {bool: "true or false", str: "a text", dict: "a table", list: "an array"}.get(
        type(given), "a number or date"
    )


def _toml(text: str) -> str:
    """Return a text as a basic string of TOML, safe to print."""
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


_WORD = re.compile(r"[A-Za-z0-9_-]+")


_KEY_PART = re.compile(r"[ \t]*[A-Za-z0-9_-]+(?:[ \t]*\.[ \t]*[A-Za-z0-9_-]+)*[ \t]*=(?=[ \t]*[^=\s])")
"""A line up to its equals sign. Base64 ends with one, and nothing follows it."""

_HEADER = re.compile(r"[ \t]*\[{1,2}[A-Za-z0-9_. \t-]+\]{1,2}")
_SHORT = re.compile(r"[ \t]*options[ \t]*=.*?[\"'\s]-p", re.DOTALL)
"""kopia's ``-p`` is followed by a password."""


def _key_part(line: str) -> str:
    """Return what of a line can be no value; empty if that is not certain of any of it."""
    found = _KEY_PART.match(line) or _HEADER.fullmatch(line.rstrip())
    return "" if found is None else found[0]


def _quoted(line: str, position: Position, *, public: bool) -> list[str]:
    """Return a line of a file and a mark below a place in it, as shown to a person; nothing if the line may not be shown.

    Of a file that is not ``public``, which every user can read, no values are shown.
    """
    at, length = position.column - 1, position.length
    if len(line) > _WIDEST:
        # A part of a line is not masked as the whole of it is, but the name of a key is no secret.
        key = printable(line[at : at + min(length, _WIDEST // 2)])
        return [f"... {key} ...", f"    {'^' * len(key)}"] if length > 1 else []
    if not public:
        shown = _key_part(line).replace("\t", " ")
        return [printable(shown), " " * at + "^" * length] if shown else []
    before, shown = line[:at], _shown_line(line)
    return [shown, " " * len(_shown_line(before)) + "^" * max(1, min(length, len(shown) - len(before)))]


def _shown_line(line: str) -> str:
    """Return a line of a file as shown to a person: whatever follows the name of a secret is not, and no credential in a URL."""
    # A secret may stand where its file should.
    named = next(
        (
            found
            for found in _WORD.finditer(line)
            if names_secret(found[0].removesuffix("_FILE")) or tells_secret(found[0])
        ),
        None,
    )
    named = named or _SHORT.match(line)
    if named is not None and line[named.end() :].strip():
        line = f"{line[: named.end()]} {MASK}"
    return printable(masked(line.replace("\t", " ")))


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a named pipe" if stat.S_ISFIFO(mode) else "a device"


def _unreadable(path: str, error: OSError, *, missing: bool) -> str:
    """Say why a file cannot be opened."""
    if missing:
        return (
            f"there is no such file{_near(os.path.basename(path).removesuffix(SUFFIX), names(os.path.dirname(path)))}"
        )
    if error.errno == errno.ENXIO:
        return "it is a socket or device, and must be a file"
    if isinstance(error, FileNotFoundError):
        return "it is a symbolic link that leads nowhere"
    return f"it cannot be read: {error.strerror}"


def _table_in(names: re.Match[str]) -> str:
    return f"[{'.'.join(re.findall(_QUOTED, names[0]))}]"


_QUOTED = re.compile(r"'([^']*)'")


_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def _syntax(path: str, lines: list[str], message: str, mode: int) -> Problem:
    """Return tomllib's error with its place, and what is usually meant."""
    found = _PLACE.search(message)
    said = message[: found.start()] if found else message
    position, text = None, ""
    if found and found[1]:
        line, column = int(found[1]), int(found[2])
        text = lines[line - 1] if line <= len(lines) else ""
        position = Position(line, column, 1)
    elif found:
        position, text = Position(len(lines), len(lines[-1]) + 1, 1), lines[-1]
    above = "\n".join(lines[: position.line - 1]) if position else ""
    if '"""' in above or "'''" in above:
        # It may be in the middle of a secret.
        text = ""
    if not mode & 0o004:
        # Where it is not TOML, what looks like a table may be a value.
        text = text if _KEY_PART.match(text) else ""
    if said.startswith("Exceeds the limit"):
        said = "A number has more digits than any that is of use"
    hints = {
        "Invalid value": 'text must be in quotes ("in-place"), and true and false in small letters',
        "Cannot overwrite a value": "this key is there twice",
        "Expected '=' after a key": "a line is a [table], or KEY = VALUE (not KEY: VALUE)",
        "Unclosed array": "the ']' is missing",
        "Cannot declare": "put all its keys below the first",
    }
    hint = next((hint for begin, hint in hints.items() if said.startswith(begin)), "")
    # The names of tables as Python writes them.
    said = re.sub(r"\(('[^()]*')?,?\)", _table_in, said)
    said = f"{said[:1].lower()}{said[1:]}" + (f": {hint}" if hint else "")
    return Problem(f"this is not TOML: {printable(said)}", Origin(path, position, text, mode))
