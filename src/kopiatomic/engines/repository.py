"""What restic and Borg have in common: a repository that is given as text, and all sources in one snapshot."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import ClassVar

from kopiatomic.engines import hidden_mounts, self_backup
from kopiatomic.engines.engine import Job
from kopiatomic.engines.flags import Given
from kopiatomic.engines.repository_client import RepositoryClient
from kopiatomic.engines.written import Own, is_covered, source_of
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.engine import EngineEnd, EngineResult, Progress, Saved, Target
from kopiatomic.model.plan import Layout, Plan
from kopiatomic.paths import below
from kopiatomic.secrets.masking import credentials, masked
from kopiatomic.system import looking
from kopiatomic.text import printable


def folder(repository: str | None) -> str | None:
    """Return a repository's absolute directory, without the scheme that marks it as one; None if it is not a directory."""
    if not repository:
        return None
    path = re.sub(r"^(local:|file://)", "", repository)
    # Both take a path with a colon for something remote, unless it is preceded by a slash.
    if re.match(r"^[^/]*:", path):
        return None
    return os.path.abspath(os.path.expanduser(path))


def check_mounts(engine: str, given: Iterable[Given], plan: Plan) -> None:
    """Refuse options that would drop the mounts inside a source. Raises KopiatomicError of kind one-file-system."""
    flag = "--one-file-system"
    places = [plan.path(place) for taken in plan.taken for place, _ in taken.shown]
    inside = [path for path in places if any(below(path, source) for source in plan.sources)]
    if inside and any(one.flag == flag for one in given):
        raise KopiatomicError(
            f"-o {flag}: {engine} would silently leave out {printable(inside[0])} and every other mount in its sources",
            kind="one-file-system",
            hint=f"Leave {flag} out; to keep other filesystems out of it, use --only-frozen.",
        )


def excluded(given: Iterable[Given]) -> set[str]:
    """Return the paths that the user's own options exclude, entirely or their content."""
    values = (re.sub(r"^(fm|sh|pp|pf):", "", one.value) for one in given if one.flag == "--exclude")
    return {value.removesuffix("/*").rstrip("/") for value in values if value.startswith("/")}


class RepositoryEngine(ABC):
    """An engine that saves to a repository given as text, with all sources of a run in one snapshot."""

    engine: ClassVar[str]
    version_words: ClassVar[tuple[str, ...]]

    def __init__(self, client: RepositoryClient, environment: Mapping[str, str]) -> None:
        self._program = client
        self._given = client.given
        self._environment = environment

    @property
    def name(self) -> str:
        """The engine's name in messages and JSON."""
        return self.engine

    @property
    def version(self) -> str | None:
        """The program's version, known after the check."""
        return self._program.version

    @property
    def secrets(self) -> Sequence[str]:
        """The password in the repository's name (``rest:https://user:password@host/``)."""
        return credentials(self._where or "")

    @property
    def target(self) -> Target:
        """The repository as it was given, and the identity of its snapshots."""
        return Target(printable(masked(self._where or "")), printable(self._identity))

    @property
    @abstractmethod
    def _identity(self) -> str:
        """What identifies the program's snapshots of this host."""

    @property
    @abstractmethod
    def _where(self) -> str | None:
        """The repository, as the program will find it."""

    @property
    @abstractmethod
    def _caches(self) -> Mapping[str, str]:
        """The directories that the program writes to, apart from the repository: what, and where."""

    @abstractmethod
    def _held(self, points: Mapping[str, str]) -> Collection[str]:
        """Return the given paths in which the last backup shows something. Raises KopiatomicError."""

    @abstractmethod
    def _judge(self, job: Job, end: EngineEnd) -> EngineResult:
        """Return the outcome."""

    @abstractmethod
    def feed(self, stream: str, data: bytes) -> list[str | Progress]:
        """Take output; empty ``data`` means that the stream has ended."""

    def _value(self, flag: str) -> str | None:
        """Return the last value of a flag; None if it was not given."""
        return next((g.value for g in reversed(self._given) if g.flag == flag), None)

    def _check_version(self, supported: Callable[[tuple[int, ...]], bool]) -> list[str]:
        """Query the version; return warnings. Raises KopiatomicError of kind ENGINE-unsupported."""
        path = printable(self._program.path)
        said = self._program.run(*self.version_words).stdout.decode("utf-8", "backslashreplace").strip()
        found = re.match(rf"{self.engine}\S* ((\d+)\.(\d+)\.(\d+)\S*)", said)
        if found is None:
            return [f"the version of {path} is not known ({printable(said[:80])!r}); going on with it"]
        self._program.version = found[1]
        if not supported(tuple(int(part) for part in found.groups()[1:])):
            raise KopiatomicError(
                f"{path} is {self.engine} {found[1]}, which is not supported",
                kind=f"{self.engine}-unsupported",
                hint=self._program.install,
            )
        return []

    def _check_place(self, plan: Plan) -> list[str]:
        """Return the warnings that each layout needs. Raises KopiatomicError of kind repository-in-selection."""
        if plan.layout is Layout.IN_PLACE:
            return hidden_mounts.warnings(self.engine, plan, self._held)
        found = self_backup.check_repository(self.engine, folder(self._where), plan)
        left_out = f"to leave it out, give {self.engine} an exclusion (-o '--exclude=PATTERN')"
        return found + self_backup.notes(self.engine, self._caches.items(), plan, left_out=left_out)

    def own(self, plan: Plan) -> list[Own]:
        """Return its directories, which are excluded from every backup in place; a repository only if the user says so."""
        found = [Own(f"{self.engine}'s {what}", path, skipped=True) for what, path in self._caches.items()]
        path = folder(self._where)
        source = source_of(looking.real(path), plan) if path is not None else None
        if path is not None and source is not None:
            real = looking.real(path)
            why = f"Have {self.engine} leave it out (-o '--exclude={printable(real)}'), or move it out of what is backed up."
            found.append(Own(f"{self.engine}'s repository", path, bool({path, real} & excluded(self._given)), why))
        elif path is not None and is_covered(looking.real(path), plan):
            found.append(Own(f"{self.engine}'s repository", path, skipped=True))
        return found

    def skips(self, path: str) -> bool:
        """Return True: whatever stays live in a frozen tree is passed to the program as an exclusion."""
        return True

    def judge(self, job: Job, end: EngineEnd) -> EngineResult:
        """Read the result, then check it against the repository. Never raises for the program's failures."""
        for stream in ("stdout", "stderr"):
            self.feed(stream, b"")
        result = self._judge(job, end)
        told = (result.snapshot_id, result.saved, result.complete, result.message)
        result.sources = [Saved(source, *told) for source in job.plan.sources]
        return result

    def finish(self) -> list[str]:
        """Do nothing: what is removed from a repository, and when, is up to the user."""
        return []
