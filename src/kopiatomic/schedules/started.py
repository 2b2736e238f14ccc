"""What else a schedule makes root start or read: what its shell lines, its commands, its holds and its variables name.

Refuse all of it that others can change, since they would run commands as root. Report what cannot be judged.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence

from kopiatomic import presence
from kopiatomic.config.credentials import plain
from kopiatomic.config.options import Options, words
from kopiatomic.engines import program
from kopiatomic.errors import KopiatomicError
from kopiatomic.hooks import kinds
from kopiatomic.schedules import trust
from kopiatomic.schedules.environment import PATH
from kopiatomic.text import first_few, printable

_OPERATORS = ";&|()<>\n"
_KEYWORDS = frozenset({"if", "then", "elif", "else", "while", "until", "do", "{", "!", "time"})
_NO_COMMAND = frozenset({"for", "case", "select", "function", "fi", "done", "esac", "}", "in"})
_BUILTINS = frozenset(
    {":", "[", "alias", "break", "cd", "continue", "echo", "eval", "exit", "export", "false", "getopts", "hash", "jobs"}
    | {"kill", "let", "local", "printf", "pwd", "read", "readonly", "return", "set", "shift", "test", "times", "trap"}
    | {"true", "type", "ulimit", "umask", "unset", "wait"}
)
_WRAPPERS = frozenset({"command", "env", "exec", "ionice", "nice", "nohup", "setsid", "stdbuf", "timeout", "xargs"})
"""They start what their arguments name."""

_ELSEWHERE = frozenset(
    {"chroot", "docker", "doas", "jexec", "lxc", "machinectl", "podman", "runuser", "setpriv", "ssh", "su", "sudo"}
)
"""They start it as another user, or where paths have another meaning."""

_SHELLS = frozenset({"ash", "bash", "dash", "ksh", "sh", "zsh"})
_INTERPRETERS = _SHELLS | {".", "source", "awk", "node", "perl", "php", "python", "python3", "ruby", "Rscript"}
"""They run the file that their first argument names."""

_RUN = re.compile(r"(?:COMMAND|_RSH)$")
"""Variables that hold a command line: RESTIC_PASSWORD_COMMAND, BORG_PASSCOMMAND, BORG_RSH."""

_READ = re.compile(r"(?:_FILE|_PATH|_CONFIG|XDG_CONFIG_HOME|BORG_(?:BASE|CONFIG|KEYS|SECURITY)_DIR)$")
"""Variables that name a configuration, a key or a secret. A configuration can name commands, or another repository."""

_SEARCHED = frozenset({"PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "PERL5LIB", "PYTHONPATH"})
"""Variables that name where programs are, or what becomes part of them."""

_OPTION = re.compile(r"(?:--[\w-]*(?:command|rsh)|[\w-]+\.(?:command|program))")
"""Options of engines that hold a command line."""


def check(options: Options, variables: Mapping[str, str], *, top: str = "/") -> list[str]:
    """Refuse what others than root can change, from ``top`` on. Return what cannot be judged, in words.

    ``variables`` are those of the schedule; what a profile says of the engine's and the hooks' own holds against them. Raises
    KopiatomicError of kind ``not-roots-alone``, UsageError.
    """
    judge = _Judge(variables["PATH"], top)
    holds = options.hold_wanted()
    of_each = [*(h.variables for h in options.hooks), *(block.sources for block in holds)]
    for source in (*options.variables, *options.hook_variables, *(one for group in of_each for one in group)):
        if source.form == "command":
            judge.command(source.name, source.value)
    for block in holds:
        # Also what runs as another user: it is given a password, and root freezes what it answers.
        for key in kinds.of(block.wanted.kind).programs:
            named = block.wanted.settings.get(key, ())
            judge.command(f"hold {block.wanted}", [named] if isinstance(named, str) else [*map(str, named)])
    of_hooks = plain(options.hook_variables).values
    judge.variables(of_hooks)
    judge.path = of_hooks.get("PATH", variables["PATH"])
    for flag, line in (("-p", options.pre_hook), ("-q", options.post_hook)):
        if line is not None:
            judge.line(flag, line)
    for hook in options.hooks:
        # What another user runs is that user's.
        if not hook.user:
            said = plain(hook.variables).values
            judge.variables(said)
            judge.path = {**variables, **of_hooks, **said}["PATH"]
            judge.command(hook.moment.value, hook.argv)
    said = {**variables, **plain(options.variables).values}
    judge.path = said["PATH"]
    if options.command is not None:
        judge.command("-c", [*words("-c", options.command), *words("-o", options.options)])
    else:
        judge.options(words("-o", options.options))
    judge.variables(said)
    return judge.said()


class _Judge:
    def __init__(self, path: str, top: str) -> None:
        self.path = path
        """Where programs are looked for."""
        self._top = top
        self._unsure: dict[str, list[str]] = {}

    def said(self) -> list[str]:
        """Return what could not be judged."""
        return [
            f"whether root alone can change all that {what} runs cannot be judged: {first_few(found)}"
            for what, found in self._unsure.items()
        ]

    def _cannot(self, what: str, word: str) -> None:
        found = self._unsure.setdefault(what, [])
        if word not in found:
            found.append(word)

    def line(self, what: str, line: str) -> None:
        """Judge a line for a shell."""
        try:
            for found in _commands(line):
                self.command(what, found)
        except ValueError:
            self._cannot(what, line)

    def text(self, what: str, text: str) -> None:
        """Judge a command line that its reader splits as a shell does, but passes to no shell."""
        try:
            self.command(what, shlex.split(text))
        except ValueError:
            self._cannot(what, text)

    def command(self, what: str, found: Sequence[str]) -> None:
        """Judge the words of one command."""
        found = list(_without_prefix(found))
        if not found or found[0] in _NO_COMMAND:
            return
        name, *arguments = found
        base = os.path.basename(name)
        self._started(what, name)
        if base in _WRAPPERS:
            self.command(what, list(_behind_options(arguments)))
        elif base in _ELSEWHERE:
            self._cannot(what, " ".join(found[:4]))
        elif base == "eval":
            self.line(what, " ".join(arguments))
        elif base in _SHELLS and "-c" in arguments:
            self.line(what, next(iter(arguments[arguments.index("-c") + 1 :]), ""))
        else:
            script = next((word for word in arguments if not word.startswith("-")), None)
            for word in arguments:
                self._argument(what, word, runs=base in _INTERPRETERS and word is script)

    def _started(self, what: str, name: str) -> None:
        """Judge the word that names a program."""
        if re.search(r"[$`*?~]", name) or ("/" in name and not name.startswith("/")):
            self._cannot(what, name)
            return
        try:
            found = program.find(name, {"PATH": self.path}, kind="command", hint="")
        except KopiatomicError:
            if name not in _BUILTINS | _WRAPPERS | _INTERPRETERS:
                self._cannot(what, name)
            return
        trust.check(found, f"{printable(name)} in {what}:", top=self._top)

    def _argument(self, what: str, word: str, *, runs: bool) -> None:
        """Judge a word that may name a file, perhaps one that is run."""
        if re.search(r"\$\(|`", word) or (runs and "$" in word):
            self._cannot(what, word)
            return
        path = word[word.index("=/") + 1 :] if "=/" in word else word
        status = self._status(what, path) if path.startswith("/") else None
        if status is None or not stat.S_ISREG(status.st_mode):
            return
        try:
            self.file(what, path)
        except KopiatomicError:
            # What is only read may belong to any user, and nothing else is known of it.
            if runs or status.st_mode & 0o111:
                raise
            self._cannot(what, path)

    def _status(self, what: str, path: str) -> os.stat_result | None:
        try:
            return presence.status(path)
        except OSError as error:
            self._cannot(what, f"{path} ({error.strerror})")
            return None

    def options(self, found: Sequence[str]) -> None:
        """Judge the words of ``-o`` for an engine."""
        rest = iter(found)
        for word in rest:
            name, equals, value = word.partition("=")
            if _OPTION.fullmatch(name):
                self.text(f"-o {name}", value if equals else next(rest, ""))
            else:
                self._argument("-o", word, runs=False)

    def variables(self, found: Mapping[str, str]) -> None:
        """Judge the variables of one environment."""
        for name, value in found.items():
            if _RUN.search(name):
                self.text(name, value)
            elif name in _SEARCHED:
                self._folders(name, value)
            elif _READ.search(name) and os.path.isabs(value):
                self.file(name, value)

    def _folders(self, what: str, value: str) -> None:
        """Judge folders and files in which programs, or parts of them, are looked for: what is not there yet could be made."""
        # What a schedule always searches is judged with what it finds there.
        for path in re.split(r"[:\s]", value):
            if path in PATH.split(":"):
                continue
            if not os.path.isabs(path):
                self._cannot(what, path or ".")
                continue
            found = path
            while self._status(what, found) is None and found != "/":
                found = os.path.dirname(found)
            trust.check(found, f"what {what} names:", top=self._top)

    def file(self, what: str, path: str) -> None:
        """Judge a file, or a folder, that root reads; one that does not exist yet fails the engine's check."""
        if self._status(what, path) is not None:
            trust.check(path, f"what {what} names:", top=self._top)


def _commands(line: str) -> Iterator[list[str]]:
    """Yield the commands of a shell's line, each as its words. Raises ValueError if its quotes are not in pairs."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=_OPERATORS)
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    found: list[str] = []
    redirected = commented = False
    for token in lexer:
        commented = (commented or token.startswith("#")) and "\n" not in token
        if commented:
            continue
        if token.strip(_OPERATORS):
            if not redirected:
                found.append(token)
            redirected = False
        elif "<" in token or ">" in token:
            redirected = not token.endswith("&")
        else:
            yield found
            found = []
    yield found


def _without_prefix(found: Sequence[str]) -> Iterator[str]:
    """Yield the words of a command without what precedes its name: keywords, variables."""
    before = True
    for word in found:
        before = before and (word in _KEYWORDS or re.match(r"[A-Za-z_]\w*=", word) is not None)
        if not before:
            yield word


def _behind_options(found: Sequence[str]) -> Iterator[str]:
    """Yield the command that a wrapper starts: what follows its options, their numbers, and variables."""
    before = True
    for word in found:
        before = before and re.match(r"-|\d|[A-Za-z_]\w*=", word) is not None
        if not before:
            yield word
