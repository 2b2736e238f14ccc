"""Where secrets stand in command lines and in other texts: after flags, in assignments, in URLs, in headers."""

from __future__ import annotations

import os.path
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from kopiatomic.secrets.names import is_file_of, names_secret

MASK = "***"

Take = Callable[[str], str]
"""Takes a secret and returns what to show in its place."""

_OURS = "kopiatomic"

WORD = r"(?:'[^']*'|\"(?:\\.|[^\"\\])*\"|\\.|[^\s'\"\\]|['\"\\])+"
"""A word as a shell reads it: quoted as a whole, in part, or not. A quote without a partner counts as a letter."""

_TOKEN = re.compile(rf"(?P<space>\s+)|{WORD}", re.DOTALL)
_QUOTES = re.compile(r"['\"\\]")
_BETWEEN_COMMANDS = re.compile(r"[;&|(){}`$<>]")
_VALUE = re.compile(r"(?P<name>-{0,2}[A-Za-z][\w.-]*)=(?P<value>.*)", re.DOTALL)
_COMMAND_IN = re.compile(r"-{0,2}[\w.-]*(?:command|program|rsh)=(?P<program>.+)", re.DOTALL | re.IGNORECASE)
"""An option, or a variable, whose value is a command line: ``--rsh=sshpass -p ...``, ``sftp.command=...``."""

_FLAG = re.compile(r"--?[A-Za-z][\w.-]*")

_PROGRAMS: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("kopia", {"-p": "", "--key": ""}),
    ("mysql mysqldump mysqladmin mysqlcheck mysqlpump mysqlsh", {"-p*": ""}),
    ("mariadb mariadb-dump mariadb-admin mariadb-backup mariadb-check", {"-p*": ""}),
    ("mongo mongosh mongodump mongorestore", {"-p": ""}),
    ("7z 7za 7zr rar unrar", {"-p*": ""}),
    ("zip unzip", {"-P": ""}),
    ("redis-cli", {"-a": ""}),
    ("ldapsearch ldapmodify", {"-w": ""}),
    ("openssl", {"-pass": ":", "-passin": ":", "-passout": ":"}),
    ("curl", {"-u": ":", "--user": ":", "-U": ":", "--proxy-user": ":"}),
    ("lftp", {"-u": ","}),
    ("smbclient", {"-U": "%"}),
    ("sshpass", {"-p": ""}),
    ("ssh", {}),
)
"""Flags that carry a secret in programs known to use them so, and what precedes it in their value. A star: the value is always in
the same word.
"""

_FLAGS = {name: flags for names, flags in _PROGRAMS for name in names.split()}

_URL = re.compile(
    r"(?P<head>(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,30}://[^\s/:@'\"]{0,256}:)(?P<value>[^\s/'\"]+)(?=@)", re.IGNORECASE
)
"""The password in ``https://user:password@host/``."""

_HEADER = re.compile(
    r"(?P<head>(?:\b(?:proxy-)?authorization|\bcookie|(?<![\w-])x-[\w-]{0,60}(?:token|key|secret|password)):[ \t]*)"
    r"(?P<value>[^\s'\"][^'\"\n]*)",
    re.IGNORECASE,
)
_JSON = re.compile(r"(?P<head>\"(?P<name>\w+)\"\s*:\s*\")(?P<value>(?:\\.|[^\"\\])+)")
_PARAMETERS = tuple(
    re.compile(rf"(?P<head>(?<=[{before}])(?P<name>[A-Za-z][\w.-]*)=)(?P<value>[^\s'\"{after}]+)")
    for before, after in (("?&", "&#"), (";", ";"), (",", ",:"))
)
"""Of URLs, connection strings (``AccountName=a;AccountKey=b``), and options of mount(8) and rclone."""

_IN_URLS = re.compile(r"(?:.*-)?(?:sig|signature|key|pass)", re.IGNORECASE)
"""Names of URL parameters that are secrets: signatures (Azure's SAS, Amazon's), and API keys."""

_PLAIN = re.compile(
    r"pass|passwd|pwd|pw\b|secret|token|key|sas\b|sig|credentials|authorization|cookie|://|"
    rf"\b(?:{'|'.join([_OURS, *_FLAGS])})\s",
    re.IGNORECASE,
)
"""What every text with such a place contains: a record has tens of thousands of texts without one."""

_LETTERS = (
    *("pass", "pwd", "pw", "secret", "token", "key", "sas", "sig", "credentials", "authorization", "cookie", "://"),
    _OURS,
    *_FLAGS,
)
"""The same without word boundaries, in lower case: long texts are searched a hundred times as fast for these."""


def in_text(text: str, take: Take, program: str = "") -> str:
    """Return a text with ``take`` applied to each secret. It may be a shell's line, or words of a program."""
    if not program and not _has_a_place(text):
        return text
    command = _Command(take, program)
    return "".join(_pieces(_embedded(text, take), command))


def _has_a_place(text: str) -> bool:
    folded = text.casefold()
    return any(letters in folded for letters in _LETTERS) and _PLAIN.search(text) is not None


def _pieces(text: str, command: _Command) -> Iterator[str]:
    for token in _TOKEN.finditer(text):
        word = token[0]
        if token["space"]:
            if "\n" in word:
                command.end()
            yield word
            continue
        plain = unquoted(word)
        shown = command.word(plain)
        if shown == plain:
            yield word
        else:
            yield "'" + shown.replace("'", "'\\''") + "'" if re.search(r"[\s'\"\\]", shown) else shown
        if not _QUOTES.search(word) and _BETWEEN_COMMANDS.search(word):
            command.end(word)


def in_words(words: Sequence[str], take: Take, program: str = "") -> list[str]:
    """Return words of a command line with ``take`` applied to each secret."""
    command = _Command(take, program)
    return [command.word(word) for word in words]


def _embedded(text: str, take: Take) -> str:
    """Replace what is a secret wherever it stands."""

    def shown(found: re.Match[str]) -> str:
        # A secret already replaced in a longer text also stands in its words.
        return found[0] if found["value"] == MASK else f"{found['head']}{take(found['value'])}"

    def shown_if_named(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"]
        secret = names_secret(name) or (found.re is _PARAMETERS[0] and _IN_URLS.fullmatch(name))
        return shown(found) if secret and not is_file_of(name, value) else found[0]

    for pattern in (_URL, _HEADER):
        text = pattern.sub(shown, text)
    for pattern in (_JSON, *_PARAMETERS):
        text = pattern.sub(shown_if_named, text)
    return text


class _Command:
    """Follows the words of a command line: which program receives them, and what the next one is."""

    def __init__(self, take: Take, program: str) -> None:
        self._take = take
        self._flags: Mapping[str, Take] = {}
        """Functions that show the values of the program's own flags."""
        self._engine = "kopia"
        """The engine that receives the words of our own ``-o``."""
        self._next: Take | None = None
        self._first = False
        """Whether the next word is the first that is for us."""
        self._begin(program)

    def end(self, word: str = "") -> None:
        """Begin another command, perhaps with this word."""
        self._flags, self._next = {}, None
        self._begin(word)

    def _begin(self, word: str) -> None:
        """Use the flags of a program from here on, if the word names one with known flags."""
        last = _BETWEEN_COMMANDS.split(word)[-1]
        given = _COMMAND_IN.fullmatch(last)
        name = os.path.basename(last if given is None else given["program"])
        self._first = name == _OURS
        if name == _OURS:
            self._flags = self._our_flags()
        elif name in _FLAGS:
            self._flags = {flag: partial(self._behind, before) for flag, before in _FLAGS[name].items()}

    def _our_flags(self) -> Mapping[str, Take]:
        lines = dict.fromkeys(("-p", "--pre-hook", "-q", "--post-hook"), self._in_line)
        options = dict.fromkeys(("-o", "--options"), self._in_options)
        command = dict.fromkeys(("-c", "--command"), self._in_command)
        return {**lines, **options, **command, "--engine": self._named_engine}

    def word(self, word: str) -> str:
        """Return the next word, as it may be shown."""
        if self._first and word == "engine":
            # All that follows the name of the profile is the engine's own, and which it is, the profile says.
            self._begin("kopia")
            return word
        follows, self._next = self._next, None
        if follows is not None and not re.match(r"--[A-Za-z]", word):
            return follows(word)
        for show in (self._of_program, self._named):
            shown = show(word)
            if shown is not None:
                return shown
        self._begin(word)
        return in_text(word, self._take) if re.search(r"\s", word) else _embedded(word, self._take)

    def _of_program(self, word: str) -> str | None:
        """Return a word that is one of the program's flags; None for any other."""
        for key, show in self._flags.items():
            flag = key.rstrip("*")
            if flag == key and (word == flag or _is_cluster(word, flag)):
                self._next = show
                return word
            glued = flag if len(flag) == 2 else f"{flag}="
            if word.startswith(glued) and word != glued:
                return glued + show(word[len(glued) :])
        return None

    def _named(self, word: str) -> str | None:
        """Return a word that is a flag or an assignment with the name of a secret; None if it is neither."""
        found = _VALUE.fullmatch(word)
        if found is not None and found["value"] and names_secret(found["name"]):
            return f"{found['name']}={self._named_value(found['name'], found['value'])}"
        if word == "--credential":
            # Ours: the name of a variable, and of the file that has its value.
            self._next = _as_it_is
            return word
        if _FLAG.fullmatch(word) and names_secret(word):
            self._next = partial(self._named_value, word)
            return word
        return None

    def _named_value(self, name: str, value: str) -> str:
        return value if is_file_of(name, value) else self._take(value)

    def _behind(self, before: str, value: str) -> str:
        """Mask what follows the name of a user, or all of it."""
        name, separator, secret = value.partition(before) if before else ("", "", value)
        return f"{name}{separator}{self._take(secret)}" if secret else value

    def _in_line(self, line: str) -> str:
        return in_text(line, self._take)

    def _in_options(self, line: str) -> str:
        return in_text(line, self._take, self._engine)

    def _in_command(self, line: str) -> str:
        self._engine = line.split(maxsplit=1)[0] if line.strip() else ""
        return in_text(line, self._take)

    def _named_engine(self, name: str) -> str:
        self._engine = name
        return name


def _as_it_is(word: str) -> str:
    return word


def _is_cluster(word: str, flag: str) -> bool:
    """Whether a word is several short flags, the last of which is this one (``-sSu``)."""
    return len(flag) == 2 and re.fullmatch(r"-[A-Za-z]+", word) is not None and word.endswith(flag[1])


def unquoted(word: str) -> str:
    """Return the meaning of a shell's word; if its quotes are not in pairs, the word without them."""
    if not _QUOTES.search(word):
        return word
    try:
        return "".join(shlex.split(word))
    except ValueError:
        return _QUOTES.sub("", word)
