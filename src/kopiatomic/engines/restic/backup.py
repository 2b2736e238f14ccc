"""One backup with restic: ``restic backup`` of all sources as one snapshot, and the outcome by restic's own output.

What counts is the summary that it prints and what its repository shows of that snapshot. Exit status 0 alone says little: a
source that does not exist is left out with a warning and 0 (0.14.0). Status 3 is a snapshot that lacks files (0.10.0).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from kopiatomic.engines import repository, results
from kopiatomic.engines.engine import Job
from kopiatomic.engines.listing import Listing, left_out, pattern
from kopiatomic.engines.numbers import number
from kopiatomic.engines.reader import StoredSnapshot, mark
from kopiatomic.engines.restic.client import Client
from kopiatomic.engines.restic.output import Output
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.engine import Command, EngineEnd, EngineResult, Progress
from kopiatomic.model.plan import Plan
from kopiatomic.text import ended, first_few, printable, spelled

_INCOMPLETE = 3

STAND_IN = "\ufffd"
"""What restic's JSON has for each byte of a name that is not text."""


class ResticBackup(repository.RepositoryBackup):
    """One backup with restic."""

    def __init__(self, client: Client, job: Job, earlier: Sequence[StoredSnapshot]) -> None:
        super().__init__(job)
        self._client = client
        self._earlier = earlier
        self._output = Output()

    def command(self) -> Command:
        """Return the command; the snapshot's time is the instant, to the second."""
        client = self._client
        time = self._job.started("%Y-%m-%d %H:%M:%S")
        words = argv(client, client.path, self._job.plan, time, parent_of(self._job.plan, self._earlier))
        frames = client.environment.get("RESTIC_PROGRESS_FPS") or "2"
        return Command(argv=words, environment={**client.additions, "RESTIC_PROGRESS_FPS": frames})

    def feed(self, stream: str, data: bytes) -> list[str | Progress]:
        """Take output; empty ``data`` means that the stream has ended."""
        return self._output.feed(stream, data)

    def _judge(self, end: EngineEnd) -> EngineResult:
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
        listing = Listing("restic", self._job, STAND_IN)
        try:
            shown = self._shown(short, listing)
        except KopiatomicError as error:
            why = f"restic told of the snapshot {printable(short)}, which its repository did not show: {error.message}"
            return EngineResult(saved=False, complete=False, message=why)
        reasons = [*self._differences(shown, listing), *listing.lacking()]
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
            problems=tuple(output.problems),
            problem_count=output.problem_count,
            recorded=listing.recorded,
        )

    def _shown(self, snapshot: str, listing: Listing) -> Mapping[str, Any]:
        """Return what the repository reports about a snapshot; the entries go into ``listing``. Raises KopiatomicError."""

        def take(entry: Mapping[str, Any]) -> None:
            kind = {"dir": "d", "file": "f"}.get(str(entry["type"]), "?")
            listing.take(str(entry["path"]), kind, number(entry, "size"))

        plan = self._job.plan
        directories = [*map(plan.path, self._job.mounted), *filter(None, [self._job.record])]
        head = self._client.show(snapshot, directories, take)
        if not str(head.get("id", "")).startswith(snapshot):
            raise KopiatomicError("its answer is of another one", kind="restic-failed")
        return head

    def _differences(self, shown: Mapping[str, Any], listing: Listing) -> list[str]:
        """Return where the repository differs from what was expected."""
        found = []
        paths = {str(path) for path in shown.get("paths") or ()}
        wanted = {listing.spelled(source) for source in self._job.plan.given}
        if paths != wanted:
            found.append(f"restic's snapshot is of {first_few(sorted(paths))} and not of {first_few(sorted(wanted))}")
        if self._client.value("--time") is None and _seconds(shown.get("time")) != self._job.sets.started_ns // 10**9:
            found.append(
                f"the time of restic's snapshot is {printable(str(shown.get('time')))}, which is not the instant"
            )
        return found


def parent_of(plan: Plan, earlier: Sequence[StoredSnapshot]) -> str:
    """Return the id of the snapshot that restic must be told to compare with; empty if it finds it, or there is none.

    It looks for one of all the paths that it is given, and the metadata record is one that the last snapshot may not have.
    """
    sources = {spelled(source, STAND_IN) for source in plan.sources}
    alike = [one for one in earlier if {*one.sources} - {one.record} == sources]
    latest = max(alike, key=lambda one: one.started_ns, default=None)
    known = latest is None or {*latest.sources} == {spelled(path, STAND_IN) for path in plan.given}
    return "" if latest is None or known else latest.id


def argv(client: Client, program: str, plan: Plan, time: str, parent: str = "") -> list[str]:
    """Return the argv of a backup of a plan. ``parent`` is the snapshot to compare with; empty: restic finds it."""
    words = [program, "backup", "--json"]
    for directory in left_out(plan):
        words += ["--exclude", pattern(directory.replace("\\", "\\\\"))]
    if client.value("--time") is None:
        words += ["--time", time]
    words += ["--tag", mark(plan)] if plan.record else []
    words += ["--parent", parent] if parent else []
    words += client.words
    return [*words, "--", *plan.given]


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
