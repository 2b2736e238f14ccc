"""The engine restic: ``restic backup`` of all sources as one snapshot, and the outcome by restic's own output.

What counts is the summary that it prints and what its repository shows of that snapshot. Exit status 0 alone says little: a
source that does not exist is left out with a warning and 0 (0.14.0). Status 3 is a snapshot that lacks files (0.10.0).
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from kopiatomic import presence
from kopiatomic.engines import repository, results
from kopiatomic.engines.engine import Job
from kopiatomic.engines.lines import JsonLines
from kopiatomic.engines.listing import Inside, Listing, left_out, pattern
from kopiatomic.engines.numbers import number
from kopiatomic.engines.restic.client import Client
from kopiatomic.engines.restic.output import Output
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.engine import Command, EngineEnd, EngineResult, Progress
from kopiatomic.model.plan import Plan, Refusal
from kopiatomic.text import ended, first_few, printable

OLDEST = (0, 14, 0)
"""The oldest restic that this engine's tests were run with (August 2022)."""

_INCOMPLETE = 3


class Restic(repository.RepositoryEngine):
    """One backup with restic. Create a new one for each run.

    ``options`` are the words of ``-o``, ``environment`` is what restic inherits, ``named`` the repository (``--repository``).
    Raises UsageError for options that do not go with a backup of the view.
    """

    engine = "restic"
    version_words = ("version",)

    def __init__(self, options: Sequence[str], environment: Mapping[str, str], named: str | None) -> None:
        self._client = Client(options, environment, named)
        super().__init__(self._client, environment)
        self._repository = self._client.repository
        self._client.additions.setdefault("RESTIC_PROGRESS_FPS", environment.get("RESTIC_PROGRESS_FPS") or "2")
        self._output = Output()

    @property
    def _identity(self) -> str:
        return self._value("--host") or self._environment.get("RESTIC_HOST") or socket.gethostname()

    @property
    def _where(self) -> str | None:
        """The repository as restic will find it."""
        if self._repository is not None:
            return self._repository
        file = self._value("--repository-file") or self._environment.get("RESTIC_REPOSITORY_FILE")
        if not file:
            return self._environment.get("RESTIC_REPOSITORY")
        try:
            with open(file, encoding="utf-8", errors="surrogateescape") as opened:
                return opened.read().strip()
        except OSError as error:
            if presence.absent(error):
                return None
            raise

    @property
    def _caches(self) -> dict[str, str]:
        """Where restic keeps its cache (internal/cache/dir.go)."""
        if any(g.flag == "--no-cache" for g in self._given):
            return {}
        environment = self._client.environment
        found = self._value("--cache-dir") or environment.get("RESTIC_CACHE_DIR")
        if not found:
            base = environment.get("XDG_CACHE_HOME") or os.path.join(environment["HOME"], ".cache")
            found = os.path.join(base, "restic")
        return {"cache": os.path.abspath(found)}

    def refuses(self, _plan: Plan) -> list[Refusal]:
        """Return no refusals: restic keeps names as bytes."""
        return []

    def breaks_at(self, _folder: str) -> bool:
        """Return False: no name does that to restic."""
        return False

    def check(self, plan: Plan) -> list[str]:
        """Make sure that restic can back up this plan, with two restic processes. Returns warnings.

        Raises KopiatomicError: kinds restic-missing, restic-not-executable, restic-unsupported, restic-no-repository,
        restic-password-missing, restic-wrong-password, restic-locked, restic-unreachable, restic-newer-format,
        restic-failed, one-file-system, repository-in-selection.
        """
        warnings = self._check_version(lambda version: version >= OLDEST)
        repository.check_mounts("restic", self._given, plan)
        # Takes and releases a lock, as the backup will.
        finished = self._client.run("cat", "config", *self._client.shared)
        if finished.status != 0:
            raise self._client.failure(finished)
        when = self._value("--time")
        if when is not None:
            warnings.append(
                f"-o sets the time of restic's snapshot to {printable(when)}: not the instant of the snapshots"
            )
        return warnings + self._check_place(plan)

    def _held(self, points: Mapping[str, str]) -> set[str]:
        """Return the paths that have entries in restic's parent snapshot: this host's last one of these sources."""
        words = [f"--host={self._identity}", *(f"--path={source}" for source in sorted(set(points.values())))]
        finished = self._client.run("snapshots", "--json", "--no-lock", "--latest=1", *self._client.shared, *words)
        if finished.status != 0:
            raise self._client.failure(finished)
        try:
            snapshots = sorted((str(found["time"]), str(found["id"])) for found in json.loads(finished.stdout) or ())
        except (ValueError, KeyError, TypeError):
            raise KopiatomicError("restic's list of snapshots cannot be read", kind="restic-failed") from None
        if not snapshots:
            return set()
        inside = Inside(points, "\ufffd")
        self._list(snapshots[-1][1], list(points), lambda entry: inside.take(str(entry.get("path", ""))))
        return inside.found

    def command(self, job: Job) -> Command:
        """Return the command; the snapshot's time is the instant, to the second."""
        argv = self._argv(self._client.path, job.plan, job.started("%Y-%m-%d %H:%M:%S"))
        return Command(argv=argv, environment=self._client.additions)

    def describe(self, plan: Plan) -> Sequence[str]:
        """Return the argv in words; needs neither restic nor a repository."""
        return self._argv(self._client.named, plan, "TIME-OF-THE-SNAPSHOTS")

    def _argv(self, program: str, plan: Plan, time: str) -> list[str]:
        argv = [program, "backup", "--json"]
        for directory in left_out(plan):
            argv += ["--exclude", pattern(directory.replace("\\", "\\\\"))]
        if self._value("--time") is None:
            argv += ["--time", time]
        argv += [word for given in self._given if given.flag != "--repo" for word in given.words]
        return [*argv, "--", *plan.sources]

    def feed(self, stream: str, data: bytes) -> list[str | Progress]:
        """Take output; empty ``data`` means that the stream has ended."""
        return self._output.feed(stream, data)

    def _judge(self, job: Job, end: EngineEnd) -> EngineResult:
        output = self._output
        summary = output.summary or {}
        short = summary.get("snapshot_id")
        if end.status not in {0, _INCOMPLETE} or end.stopped:
            stopped = ", stopped by this run" if end.stopped else ""
            found = None if end.stopped else output.cause
            why = f"restic failed ({ended(end.status)}{stopped}): {found or output.said() or 'it gave no reason'}"
            return EngineResult(saved=False, complete=False, message=why)
        if not isinstance(short, str) or not short:
            said = output.said()
            why = f"restic ended without an error and without a snapshot{': ' + said if said else ''}"
            return EngineResult(saved=False, complete=False, message=why)
        listing = Listing("restic", job, "\ufffd")
        try:
            shown = self._shown(short, job, listing)
        except KopiatomicError as error:
            why = f"restic told of the snapshot {printable(short)}, which its repository did not show: {error.message}"
            return EngineResult(saved=False, complete=False, message=why)
        reasons = [*self._differences(shown, job, listing), *listing.lacking()]
        if end.status == _INCOMPLETE or output.problem_count:
            count = output.problem_count
            what = results.not_saved(count, output.problems) if count else output.said(1)
            reasons.insert(0, what or "some files could not be read")
        return EngineResult(
            saved=True,
            complete=not reasons,
            message="; ".join(reasons),
            snapshot_id=str(shown["id"]),
            root_object=str(shown.get("tree") or "") or None,
            statistics=_statistics(summary, output.problem_count),
            problems=output.problems,
            problem_count=output.problem_count,
        )

    def _shown(self, snapshot: str, job: Job, listing: Listing) -> Mapping[str, Any]:
        """Return what the repository reports about a snapshot; the entries go into ``listing``. Raises KopiatomicError."""

        def take(entry: Mapping[str, Any]) -> None:
            kind = {"dir": "d", "file": "f"}.get(str(entry["type"]), "?")
            listing.take(str(entry["path"]), kind, number(entry, "size"))

        head = self._list(snapshot, [job.plan.path(place) for place in job.mounted], take)
        if not str(head.get("id", "")).startswith(snapshot):
            raise KopiatomicError("its answer is of another one", kind="restic-failed")
        return head

    def _list(
        self, snapshot: str, directories: Sequence[str], take: Callable[[Mapping[str, Any]], None]
    ) -> Mapping[str, Any]:
        """Have restic list directories of a snapshot; ``take`` gets each entry. Returns the snapshot's own data.

        With directories, ``restic ls`` reads only the trees on the way to them, and of these the first level. Raises
        KopiatomicError.
        """
        lines = JsonLines()
        head: dict[str, Any] = {}

        def read(data: bytes) -> None:
            for found in lines.feed(data):
                if isinstance(found, str):
                    continue
                if "path" in found and "type" in found:
                    take(found)
                elif "paths" in found:
                    head.update(found)

        words = ["--json", "--no-lock", *self._client.shared, "--", snapshot, *directories]
        finished = self._client.run("ls", *words, take=read)
        read(b"")
        if finished.status != 0:
            raise self._client.failure(finished)
        return head

    def _differences(self, shown: Mapping[str, Any], job: Job, listing: Listing) -> list[str]:
        """Return where the repository differs from what was expected."""
        found = []
        paths = {str(path) for path in shown.get("paths") or ()}
        wanted = {listing.spelled(source) for source in job.plan.sources}
        if paths != wanted:
            found.append(f"restic's snapshot is of {first_few(sorted(paths))} and not of {first_few(sorted(wanted))}")
        if self._value("--time") is None and _seconds(shown.get("time")) != job.sets.started_ns // 10**9:
            found.append(
                f"the time of restic's snapshot is {printable(str(shown.get('time')))}, which is not the instant"
            )
        return found


def _seconds(text: object) -> int | None:
    """Return a time as restic writes it, in seconds since the epoch."""
    try:
        return int(datetime.fromisoformat(re.sub(r"\.\d+", "", str(text))).timestamp())
    except ValueError:
        return None


def _statistics(summary: Mapping[str, Any], errors: int) -> dict[str, int]:
    return {
        "files_total": number(summary, "total_files_processed"),
        "bytes_total": number(summary, "total_bytes_processed"),
        "files_cached": number(summary, "files_unmodified"),
        "files_hashed": number(summary, "files_new") + number(summary, "files_changed"),
        "directories_total": sum(number(summary, f"dirs_{key}") for key in ("new", "changed", "unmodified")),
        "bytes_added": number(summary, "data_added"),
        "errors": errors,
    }
