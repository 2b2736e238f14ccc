"""The engine Borg (1.2 and 1.4) and its repository: what must be right before ``borg create``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from kopiatomic.engines import repository
from kopiatomic.engines.borg.backup import BorgBackup, argv
from kopiatomic.engines.borg.client import WARNINGS, Client
from kopiatomic.engines.engine import Job
from kopiatomic.engines.listing import Inside
from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.model.plan import Plan
from kopiatomic.model.record import EntryKind, Losses
from kopiatomic.system import looking, safety
from kopiatomic.system.lines import JsonLines
from kopiatomic.text import printable

OLDEST = (1, 2, 0)
"""The oldest supported Borg. This engine's tests were run with 1.2.4 (Debian 12) and 1.4. 2.0 has a different command line."""
NEWEST = (2,)

_LARGEST = 4 << 20
"""Bytes. A larger file is none of patterns."""


class Borg(repository.RepositoryEngine):
    """Borg with the user's options.

    ``options`` are the words of ``-o``, ``environment`` is what Borg inherits, ``named`` the repository (``--repository``),
    ``archive`` the name of the archive. Raises UsageError for options that do not go with a backup of the view.
    """

    variables = ("BORG_",)

    def __init__(
        self, options: Sequence[str], environment: Mapping[str, str], named: str | None, archive: str | None
    ) -> None:
        self._client = Client(options, environment, named, archive)
        super().__init__(self._client)
        for pattern in (given.value for given in self._client.given if given.flag == "--pattern"):
            _require_no_root("--pattern", [pattern], lambda _: "it")
        name = self._client.archive
        if "/" in name or "::" in name or name != name.strip():
            raise UsageError(
                f"--archive {printable(name)}: it may not hold a slash, :: or outer spaces",
                kind="usage",
                hint="For example: --archive 'home-{instant}'",
            )

    def describe(self, plan: Plan) -> Sequence[str]:
        """Return the argv in words; needs neither Borg nor a repository."""
        return argv(self._client, self._client.named, plan, "TIME-OF-THE-SNAPSHOTS", "INSTANT")

    def check(self, plan: Plan) -> BorgRepository:
        """Make sure that Borg can back up this plan, with two Borg processes.

        Raises KopiatomicError: kinds borg-missing, borg-not-executable, borg-unsupported, borg-no-repository,
        borg-password-missing, borg-wrong-password, borg-locked, borg-unreachable, borg-newer-format, borg-unconfirmed,
        borg-key-missing, borg-failed, one-file-system, repository-in-selection, not-roots-alone.
        """
        version = self._client.check_version("--version", lambda numbers: OLDEST <= numbers < NEWEST)
        warnings = [*version.warnings]
        for given in self._client.given:
            if given.flag == "--patterns-from":
                _check_patterns(given.flag, given.value)
        self._client.check_options()
        repository.check_mounts("borg", self._client.given, plan)
        if not self._client.repository:
            raise KopiatomicError(
                "Borg was not told its repository",
                kind="borg-no-repository",
                hint="Name it: --repository, or BORG_REPO in the environment.",
            )
        # Opens repository, key and cache, and takes and releases their locks.
        finished = self._client.ask("info", "--json")
        if finished.status not in {0, *WARNINGS}:
            raise self._client.failure(finished)
        when = self._client.value("--timestamp")
        if when is not None:
            warnings.append(
                f"-o sets the time of Borg's archive to {printable(when)}: not the instant of the snapshots"
            )
        warnings += repository.check_place(self._client, plan, self._held)
        return BorgRepository(self._client, version.text, warnings)

    def _held(self, points: Mapping[str, str]) -> set[str]:
        """Return the paths in which this host's last archive of such a name has entries. Borg reads all its metadata for that."""
        names = self._client.archives("--last=1", glob=self._client.glob.replace("{instant}", "*"))
        if not names:
            return set()
        inside, lines = Inside(points, "?"), JsonLines()

        def take(data: bytes) -> None:
            for found in lines.feed(data):
                if isinstance(found, dict):
                    inside.take(str(found.get("path", "")))

        words = ["--json-lines", "--format={path}", f"::{names[-1]}", *(f"pp:{point.strip('/')}" for point in points)]
        finished = self._client.ask("list", *words, take=take)
        take(b"")
        if finished.status not in {0, *WARNINGS}:
            raise self._client.failure(finished)
        return inside.found


class BorgRepository(repository.NamedRepository):
    """Borg's repository."""

    losses = Losses(
        hard_links=frozenset({EntryKind.LINK, EntryKind.SOCKET}),
        earliest_ns=0,
        latest_ns=(2**31 - 1) * 10**9,
    )

    def __init__(self, client: Client, version: str | None, warnings: Sequence[str]) -> None:
        super().__init__(client, version, warnings)
        self._client = client

    def backup(self, job: Job) -> BorgBackup:
        """Return the backup of a view that is mounted."""
        return BorgBackup(self._client, job)


def _require_no_root(flag: str, lines: Iterable[str], what: Callable[[int], str]) -> None:
    """Refuse patterns that add more to back up (``R /etc``, ``borg help patterns``). Raises UsageError.

    ``what`` says in words which line is such a one, by its number from 1 on.
    """
    root = next((number for number, line in enumerate(lines, 1) if line.lstrip()[:1] in {"R", "r"}), None)
    if root is not None:
        raise UsageError(
            f"-o {flag} does not go with a backup of the view: {what(root)} has Borg back up more, live",
            kind="usage",
            hint="What is to be backed up is named to kopiatomic itself.",
        )


def _check_patterns(flag: str, named: str) -> None:
    """Refuse a file of patterns that adds more to back up, or that others than root can make do so until Borg reads it.

    No line of it is shown: who has written the option may not be allowed to read it. Raises KopiatomicError, UsageError.
    """
    path = os.path.abspath(named)
    try:
        why = safety.changeable(path) if os.geteuid() == 0 else ""
        if why:
            raise KopiatomicError(
                f"-o {flag}: root has Borg read {printable(path)}, and others can change that: {why}",
                kind="not-roots-alone",
                hint="Copy it to where root alone can write: such a file may name more to back up.",
            )
        lines = looking.read(path, _LARGEST).decode("utf-8", "replace").splitlines()
    except OSError as error:
        raise UsageError(
            f"-o {flag}: {printable(path)} cannot be read: {error.strerror}",
            kind="usage",
            hint="It may name more to back up than the view, so it is looked at first.",
        ) from None
    _require_no_root(flag, lines, lambda number: f"line {number} of {printable(path)}")
