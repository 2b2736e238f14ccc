"""What restic and Borg have in common: a repository that is given as text, and all sources in one snapshot."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from kopiatomic.engines import hidden_mounts, self_backup
from kopiatomic.engines.engine import Backup, Job
from kopiatomic.engines.flags import Given
from kopiatomic.engines.names import OddNames
from kopiatomic.engines.repository_client import RepositoryClient
from kopiatomic.engines.written import WrittenDirectory, is_covered, source_of
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.engine import Command, EngineEnd, EngineResult, Progress, Saved, Target
from kopiatomic.model.plan import Layout, Plan, Refusal
from kopiatomic.model.record import Losses
from kopiatomic.paths import below, local_path
from kopiatomic.secrets.masking import credentials, masked
from kopiatomic.system import looking
from kopiatomic.text import printable


def folder(repository: str | None) -> str | None:
    """Return a repository's absolute directory, without the scheme that marks it as one; None if it is not a directory."""
    if not repository:
        return None
    path = local_path(repository)
    return None if path is None else os.path.abspath(os.path.expanduser(path))


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

    variables: tuple[str, ...]
    remembers = False
    records_apart = False

    def __init__(self, client: RepositoryClient) -> None:
        self._program = client

    @property
    def name(self) -> str:
        """The engine's name in messages and JSON."""
        return self._program.name

    @property
    def secrets(self) -> Sequence[str]:
        """The password in the repository's name (``rest:https://user:password@host/``)."""
        return credentials(self._program.where or "")

    def pinned(self, _environment: Mapping[str, str]) -> Mapping[str, str]:
        """Return nothing: where it saves is among its variables."""
        return {}

    def by_hand(self, _environment: Mapping[str, str]) -> Mapping[str, str]:
        """Return its own variables that say where the repository is."""
        return {name: value for name, value in self._program.additions.items() if name.startswith(self.variables)}

    @property
    def common(self) -> Sequence[Sequence[str]]:
        """The options that every command of the program gets."""
        return self._program.common

    def refuses(self, _plan: Plan) -> list[Refusal]:
        """Return no refusals: names are kept as bytes."""
        return []

    def breaks_at(self, _folder: str) -> bool:
        """Return False: no name ends a backup."""
        return False

    @abstractmethod
    def describe(self, plan: Plan) -> Sequence[str]:
        """Return the argv in words; needs neither the program nor a repository."""

    @abstractmethod
    def check(self, plan: Plan) -> NamedRepository:
        """Make sure that the program can back up this plan. Raises KopiatomicError."""


class NamedRepository(ABC):
    """A repository given as text, with all sources of a run in one snapshot."""

    losses: Losses

    def __init__(self, client: RepositoryClient, version: str | None, warnings: Sequence[str]) -> None:
        self._program = client
        self._version = version
        self._warnings = tuple(warnings)

    @property
    def version(self) -> str | None:
        """The program's version."""
        return self._version

    @property
    def warnings(self) -> Sequence[str]:
        """What the check warns of."""
        return self._warnings

    @property
    def target(self) -> Target:
        """The repository as it was given, and the identity of its snapshots."""
        return Target(printable(masked(self._program.where or "")), printable(self._program.identity))

    def written(self, plan: Plan) -> list[WrittenDirectory]:
        """Return its directories, which are excluded from every backup in place; a repository only if the user says so."""
        name = self._program.name
        found = [
            WrittenDirectory(f"{name}'s {what}", path, skipped=True) for what, path in self._program.caches.items()
        ]
        path = folder(self._program.where)
        source = source_of(looking.real(path), plan) if path is not None else None
        if path is not None and source is not None:
            real = looking.real(path)
            why = f"Have {name} leave it out (-o '--exclude={printable(real)}'), or move it out of what is backed up."
            found.append(
                WrittenDirectory(f"{name}'s repository", path, bool({path, real} & excluded(self._program.given)), why)
            )
        elif path is not None and is_covered(looking.real(path), plan):
            found.append(WrittenDirectory(f"{name}'s repository", path, skipped=True))
        return found

    def skips(self, path: str) -> bool:
        """Return True: whatever stays live in a frozen tree is passed to the program as an exclusion."""
        return True

    @abstractmethod
    def backup(self, job: Job) -> Backup:
        """Return the backup of a view that is mounted."""


def check_place(
    client: RepositoryClient, plan: Plan, held: Callable[[Mapping[str, str]], Collection[str]]
) -> list[str]:
    """Return the warnings that each layout needs. Raises KopiatomicError of kind repository-in-selection.

    ``held`` returns the given paths in which the last backup shows something, and raises KopiatomicError.
    """
    if plan.layout is Layout.IN_PLACE:
        return hidden_mounts.warnings(client.name, plan, held)
    found = self_backup.check_repository(client.name, folder(client.where), plan)
    left_out = f"to leave it out, give {client.name} an exclusion (-o '--exclude=PATTERN')"
    return found + self_backup.notes(client.name, client.caches.items(), plan, left_out=left_out)


class RepositoryBackup(ABC):
    """One backup of all sources as one snapshot."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @abstractmethod
    def command(self) -> Command:
        """Return the command that backs up the view."""

    @abstractmethod
    def feed(self, stream: str, data: bytes) -> list[str | Progress]:
        """Take output; empty ``data`` means that the stream has ended."""

    @abstractmethod
    def _judge(self, end: EngineEnd) -> EngineResult:
        """Return the outcome, without the sources."""

    def judge(self, end: EngineEnd, _odd: OddNames) -> EngineResult:
        """Read the result, then check it against the repository. Never raises for the program's failures."""
        for stream in ("stdout", "stderr"):
            self.feed(stream, b"")
        result = self._judge(end)
        outcome = (result.snapshot_id, result.saved, result.complete, result.message)
        return replace(result, sources=tuple(Saved(source, *outcome) for source in self._job.plan.sources))

    def finish(self) -> list[str]:
        """Do nothing: what is removed from a repository, and when, is up to the user."""
        return []
