"""The engine Borg (1.2 and 1.4) and its repository: what must be right before ``borg create``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kopiatomic.engines import flags, repository
from kopiatomic.engines.borg.backup import BorgBackup, argv
from kopiatomic.engines.borg.client import WARNINGS, Client
from kopiatomic.engines.engine import Job
from kopiatomic.engines.listing import Inside
from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.model.plan import Plan
from kopiatomic.system.lines import JsonLines
from kopiatomic.text import printable

OLDEST = (1, 2, 0)
"""The oldest supported Borg. This engine's tests were run with 1.2.4 (Debian 12) and 1.4. 2.0 has a different command line."""
NEWEST = (2,)


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
        for given in self._client.given:
            _require_no_root(given)
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
        borg-key-missing, borg-failed, one-file-system, repository-in-selection.
        """
        version = self._client.check_version("--version", lambda numbers: OLDEST <= numbers < NEWEST)
        warnings = [*version.warnings]
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

    def __init__(self, client: Client, version: str | None, warnings: Sequence[str]) -> None:
        super().__init__(client, version, warnings)
        self._client = client

    def backup(self, job: Job) -> BorgBackup:
        """Return the backup of a view that is mounted."""
        return BorgBackup(self._client, job)


def _require_no_root(given: flags.Given) -> None:
    """Refuse patterns that add more to back up (``R /etc``, ``borg help patterns``). Raises UsageError."""
    lines: list[str] = []
    if given.flag == "--pattern":
        lines = [given.value]
    elif given.flag == "--patterns-from":
        try:
            with open(given.value, encoding="utf-8", errors="replace") as file:
                lines = file.readlines()
        except OSError as error:
            raise UsageError(
                f"-o --patterns-from: {printable(given.value)} cannot be read: {error.strerror}",
                kind="usage",
                hint="It may name more to back up than the view, so it is looked at first.",
            ) from None
    root = next((line.strip() for line in lines if line.lstrip()[:1] in {"R", "r"}), None)
    if root is not None:
        raise UsageError(
            f"-o {given.flag} does not go with a backup of the view: {printable(root)} has Borg back that up as well, live",
            kind="usage",
            hint="What is to be backed up is named to kopiatomic itself.",
        )
