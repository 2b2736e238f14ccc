"""Programs that answer queries: found as execvp(3) does, run within a time limit, with errors that say what is wrong."""

from __future__ import annotations

import os
import pwd
import re
import stat
from collections.abc import Callable, Mapping, Sequence

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError, UsageError, advice_of, unforeseen
from kopiatomic.immutable import immutable
from kopiatomic.system import process
from kopiatomic.text import printable

TIME_LIMIT = 120.0
"""How long (seconds) a program may take for one query about its repository."""

KEEP = 64 << 20
"""How much of an answer is read (bytes)."""

_WITHIN = ("/bin/sh", "-c", 'cd -- "$1" && shift && exec "$@"', "sh")
"""Starts a program in a directory. The shell goes there, not a child of ours before it has become the program: where the
directory does not answer, the shell is what waits, and is ended when its time is over."""


@immutable
class Version:
    """A program's version, from its own answer."""

    text: str | None
    """As it is shown; None if it is not known."""
    numbers: tuple[int, ...] = ()
    """Major, minor and patch number; empty if they are not known."""
    warnings: tuple[str, ...] = ()


class Program:
    """An engine's program. Its environment is the caller's, with missing variables filled in.

    ``name`` begins the kinds of its errors; ``KOPIATOMIC_NAME`` in the environment says where it is. ``install`` is the
    hint if it does not exist, ``attempt`` what a user would try if it does not respond.
    """

    def __init__(self, name: str, environment: Mapping[str, str], *, install: str, attempt: Callable[[], str]) -> None:
        self.name = name
        self._given = dict(environment)
        self._install = install
        self._attempt = attempt
        self._path: str | None = None
        self.additions: dict[str, str] = {}
        self._ahead: dict[tuple[str, ...], process.Finished] = {}
        """Answers to queries that were made ahead of time."""

    @property
    def environment(self) -> dict[str, str]:
        """The complete environment of its processes."""
        return {**self._given, **self.additions}

    @property
    def named(self) -> str:
        """The program as the user names it, whether or not it exists."""
        return self._given.get(f"KOPIATOMIC_{self.name.upper()}") or self.name

    @property
    def path(self) -> str:
        """The path of the program. Raises KopiatomicError: NAME-missing, NAME-not-executable."""
        if self._path is None:
            self._path = find(self.named, self.environment, kind=self.name, hint=self._install)
        return self._path

    def run(
        self,
        *words: str,
        timeout: float | None = None,
        keep: int = KEEP,
        take: Callable[[bytes], None] | None = None,
        within: str | None = None,
        first: Callable[[], None] | None = None,
    ) -> process.Finished:
        """Run one command to its end, within TIME_LIMIT or ``timeout`` seconds; ``take`` gets its output piece by piece.

        ``within`` is the absolute path of the directory that it works in; by default it is that of this process. ``first`` is
        that of :func:`kopiatomic.system.process.run`. Raises KopiatomicError if it cannot be started (NAME-not-executable) or
        takes too long (NAME-unreachable).
        """
        (finished,) = self.run_together([words], timeout=timeout, keep=keep, take=take, within=within, first=first)
        return finished

    def run_together(
        self,
        commands: Sequence[Sequence[str]],
        *,
        timeout: float | None = None,
        keep: int = KEEP,
        take: Callable[[bytes], None] | None = None,
        within: str | None = None,
        first: Callable[[], None] | None = None,
    ) -> list[process.Finished]:
        """Run commands in parallel, each as :meth:`run` does: opening the repository is what takes long."""
        if take is None and all(tuple(words) in self._ahead for words in commands):
            return [self._ahead.pop(tuple(words)) for words in commands]
        timeout = TIME_LIMIT if timeout is None else timeout
        before = [] if within is None else [*_WITHIN, within]
        argvs = [[*before, self.path, *words] for words in commands]
        try:
            return process.run_together(
                argvs, timeout=timeout, environment=self.environment, keep=keep, take=take, first=first
            )
        except process.TimeLimitError as error:
            words = error.argv[len(before) + 1 :]
            what = next((word for word in words if not word.startswith("-")), words[0])
            raise KopiatomicError(
                f"{self.name} {what} gave no answer within {timeout:g} s",
                kind=f"{self.name}-unreachable",
                hint=f"Is its repository reachable? Try: {self._attempt()}",
            ) from None
        except OSError as error:
            if advice_of(error):
                raise unforeseen(error) from None
            raise KopiatomicError(
                f"cannot start {printable(self.path)}: {error.strerror}",
                kind=f"{self.name}-not-executable",
                hint=self._install,
            ) from None

    def refused_option(self, why: str) -> UsageError:
        """Return the error that the program does not take what the user added to its options."""
        return UsageError(
            f"{self.name} refuses what -o gives it: {printable(why)}",
            kind="engine-option",
            hint=f"{self.name}'s own help lists its options; this is checked before anything is made.",
        )

    def version_in(self, said: str, form: str) -> Version:
        """Return the version in a program's answer. ``form`` is a pattern with the groups text, major, minor and patch."""
        found = re.match(form, said)
        if found is None:
            unknown = f"the version of {printable(self.path)} is not known ({printable(said[:80])!r}); going on with it"
            return Version(None, (), (unknown,))
        return Version(found["text"], tuple(int(found[part]) for part in ("major", "minor", "patch")))

    def ask_ahead(self, commands: Sequence[Sequence[str]]) -> None:
        """Run the first of these commands in parallel, one per processor, so that their answers are available immediately later.

        If that fails, nothing is known ahead of time, and later queries report why.
        """
        first = [tuple(words) for words in commands[: processors()]]
        if len(first) > 1:
            try:
                self._ahead = dict(zip(first, self.run_together(first), strict=True))
            except KopiatomicError:
                pass


def processors() -> int:
    """Return how many processors we, and what we start, may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def user() -> tuple[str, str]:
    """Return name and home directory of the user that this program runs as."""
    try:
        entry = pwd.getpwuid(os.geteuid())
    except KeyError:
        return f"user {os.geteuid()}", "/"
    return entry.pw_name, entry.pw_dir


def find(name: str, environment: Mapping[str, str], *, kind: str, hint: str) -> str:
    """Return the path of a program: searched on PATH, or taken as it is (made absolute) if it contains a slash.

    Raises KopiatomicError of kind ``{kind}-missing`` (with ``hint``) or ``{kind}-not-executable``.
    """
    if "/" in name:
        candidates = [os.path.abspath(name)]
        where = ""
    else:
        path = environment.get("PATH") or os.defpath
        candidates = [os.path.abspath(os.path.join(directory, name)) for directory in path.split(os.pathsep)]
        where = f" on PATH ({printable(path)})"
    obstacle = None
    for candidate in candidates:
        reason = _why_not(candidate)
        if reason == "":
            return candidate
        if reason is not None and obstacle is None:
            obstacle = f"{printable(candidate)} {reason}"
    if obstacle is not None:
        raise KopiatomicError(
            f"cannot start {printable(name)}: {obstacle}",
            kind=f"{kind}-not-executable",
            hint="Check its permissions (chmod +x) and that its filesystem is not mounted noexec.",
        )
    raise KopiatomicError(f"no program {printable(name)!r}{where}", kind=f"{kind}-missing", hint=hint)


def _why_not(candidate: str) -> str | None:
    """Return why a program at a path cannot be started; empty if it can be, None if nothing is there."""
    try:
        status = presence.status(candidate)
    except OSError as error:
        if advice_of(error):
            raise unforeseen(error) from None
        return f"cannot be looked at: {error.strerror}"
    if status is None:
        return None
    if stat.S_ISDIR(status.st_mode):
        return "is a directory"
    return "" if stat.S_ISREG(status.st_mode) and os.access(candidate, os.X_OK) else "may not be executed"
