"""The engine restic and its repository: what must be right before ``restic backup``."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

from kopiatomic.engines import repository
from kopiatomic.engines.engine import Job
from kopiatomic.engines.listing import Inside
from kopiatomic.engines.reader import StoredSnapshot
from kopiatomic.engines.restic.backup import STAND_IN, ResticBackup, argv
from kopiatomic.engines.restic.client import Client
from kopiatomic.engines.restic.reader import snapshot_of
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.plan import Layout, Plan
from kopiatomic.model.record import LINKED, EntryKind, Losses
from kopiatomic.text import printable

OLDEST = (0, 14, 0)
"""The oldest restic that this engine's tests were run with (August 2022)."""

_CLOUDS = ("AWS_", "AZURE_", "B2_", "GOOGLE_", "OS_", "RCLONE_", "ST_")
"""Variables that configure the storage of restic's repositories (restic.readthedocs.io, "Preparing a new repository")."""


class Restic(repository.RepositoryEngine):
    """restic with the user's options.

    ``options`` are the words of ``-o``, ``environment`` is what restic inherits, ``named`` the repository (``--repository``).
    Raises UsageError for options that do not go with a backup of the view.
    """

    variables = ("RESTIC_", *_CLOUDS)

    def __init__(self, options: Sequence[str], environment: Mapping[str, str], named: str | None) -> None:
        self._client = Client(options, environment, named)
        super().__init__(self._client)

    def describe(self, plan: Plan) -> Sequence[str]:
        """Return the argv in words; needs neither restic nor a repository."""
        return argv(self._client, self._client.named, plan, "TIME-OF-THE-SNAPSHOTS")

    def check(self, plan: Plan) -> ResticRepository:
        """Make sure that restic can back up this plan, with two restic processes, in place three.

        Raises KopiatomicError: kinds restic-missing, restic-not-executable, restic-unsupported, restic-no-repository,
        restic-password-missing, restic-wrong-password, restic-locked, restic-unreachable, restic-newer-format,
        restic-failed, one-file-system, repository-in-selection.
        """
        version = self._client.check_version("version", lambda numbers: numbers >= OLDEST)
        warnings = [*version.warnings]
        self._client.check_options()
        repository.check_mounts("restic", self._client.given, plan)
        # Takes and releases a lock, as the backup will.
        finished = self._client.run("cat", "config", *self._client.shared)
        if finished.status != 0:
            raise self._client.failure(finished)
        when = self._client.value("--time")
        if when is not None:
            warnings.append(
                f"-o sets the time of restic's snapshot to {printable(when)}: not the instant of the snapshots"
            )
        warnings += repository.check_place(self._client, plan, self._held)
        earlier = self._earlier(plan.sources) if plan.layout is Layout.IN_PLACE else []
        return ResticRepository(self._client, version.text, warnings, earlier)

    def _held(self, points: Mapping[str, str]) -> set[str]:
        """Return the paths that have entries in restic's parent snapshot: this host's last one of these sources."""
        snapshots = self._earlier(set(points.values()))
        if not snapshots:
            return set()
        inside = Inside(points, STAND_IN)
        self._client.show(snapshots[-1].id, list(points), lambda entry: inside.take(str(entry.get("path", ""))))
        return inside.found

    def _earlier(self, sources: Collection[str]) -> list[StoredSnapshot]:
        """Return this host's last snapshots of these sources, the newest last, one for each set of paths that has them all."""
        words = [f"--host={self._client.identity}", *(f"--path={source}" for source in sorted(sources))]
        finished = self._client.run("snapshots", "--json", "--no-lock", "--latest=1", *self._client.shared, *words)
        if finished.status != 0:
            raise self._client.failure(finished)
        try:
            found = [snapshot_of(document) for document in json.loads(finished.stdout) or ()]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise KopiatomicError("restic's list of snapshots cannot be read", kind="restic-failed") from None
        return sorted(found, key=lambda one: one.started_ns)


class ResticRepository(repository.NamedRepository):
    """restic's repository."""

    # Seen with 0.14.0: a link comes back without its extended attributes, and only files with all of their names.
    losses = Losses(link_xattrs=True, hard_links=LINKED - {EntryKind.FILE})

    def __init__(
        self, client: Client, version: str | None, warnings: Sequence[str], earlier: Sequence[StoredSnapshot] = ()
    ) -> None:
        super().__init__(client, version, warnings)
        self._client = client
        self._earlier = earlier

    def backup(self, job: Job) -> ResticBackup:
        """Return the backup of a view that is mounted."""
        return ResticBackup(self._client, job, self._earlier)
