"""One backup with Borg (1.2 and 1.4): ``borg create`` of all sources as one archive, and the outcome by Borg's own output.

What counts is the result that it prints, what its repository reports about that archive, and the list of entries that Borg prints
while it stores them: asking the repository for that list would mean reading all metadata of the archive once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kopiatomic.engines import repository, results
from kopiatomic.engines.borg.client import WARNINGS, Client
from kopiatomic.engines.borg.output import Output, archive_in
from kopiatomic.engines.engine import Job
from kopiatomic.engines.listing import Listing, left_out, pattern
from kopiatomic.engines.numbers import number
from kopiatomic.engines.reader import mark
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.engine import Command, EngineEnd, EngineResult, Progress
from kopiatomic.model.plan import Plan
from kopiatomic.text import ended, first_few, printable

_TIME = "%Y-%m-%dT%H:%M:%S"
"""The format in which Borg writes and takes a time."""


class BorgBackup(repository.RepositoryBackup):
    """One backup with Borg."""

    def __init__(self, client: Client, job: Job) -> None:
        super().__init__(job)
        self._client = client
        self._listing = Listing("borg", job, "?")
        self._output = Output(self._listing)

    def command(self) -> Command:
        """Return the command; the archive's time is the instant to the second, and its name has it to the millisecond.

        ``--timestamp`` is UTC in 1.2 and local time in 1.4: the process's time zone is UTC.

        In the engine's PID namespace Borg would mistake other Borgs' locks for those of dead processes, and others would
        mistake ours: a host id of the run's own distinguishes them, so that neither removes the other's.
        """
        client, job = self._client, self._job
        start, milliseconds = job.started(_TIME), job.sets.started_ns % 10**9 // 10**6
        words = argv(client, client.path, job.plan, start, f"{start}.{milliseconds:03d}")
        return Command(argv=words, environment={**client.additions, "BORG_HOST_ID": f"kopiatomic-{job.run_id}"})

    def feed(self, stream: str, data: bytes) -> list[str | Progress]:
        """Take output; empty ``data`` means that the stream has ended."""
        return self._output.feed(stream, data)

    def _judge(self, end: EngineEnd) -> EngineResult:
        output = self._output
        archive = output.archive
        if end.status not in {0, *WARNINGS} or end.stopped:
            found = None if end.stopped else output.cause
            if found is not None:
                why = f"borg failed ({ended(end.status)}): {found}"
            elif end.stopped or end.status < 0:
                why = f"borg failed ({ended(end.status)}{', stopped by this run' if end.stopped else ''}): {output.said(1)}"
            else:
                why = self._client.meaning(output.message_id, output.said(1), end.status).message
            return self._with_checkpoint(EngineResult(saved=False, complete=False, message=why))
        if archive is None:
            why = f"borg ended without an error and without an archive: {output.said() or 'it gave no reason'}"
            return EngineResult(saved=False, complete=False, message=why)
        unproven = self._unproven(archive)
        if unproven is not None:
            return EngineResult(saved=False, complete=False, message=unproven)
        reasons = self._not_saved(end)
        start = self._job.started(_TIME)
        if self._client.value("--timestamp") is None and archive["start"][: len(start)] != start:
            reasons.append(f"the time of Borg's archive is {printable(archive['start'])}, which is not the instant")
        reasons += self._listing.lacking()
        if self._listing.outside:
            reasons.append(
                f"Borg saved {printable(self._listing.outside)} as well, which is not part of this backup, live"
            )
        return EngineResult(
            saved=True,
            complete=not reasons,
            message="; ".join(reasons),
            snapshot_id=printable(archive["name"]),
            root_object=archive["id"],
            statistics=self._statistics(archive),
            problems=tuple(output.problems),
            problem_count=output.problem_count,
            recorded=self._listing.recorded,
        )

    def _unproven(self, archive: Mapping[str, Any]) -> str | None:
        """Return why the repository does not show an archive that Borg reported; None if it does."""
        name = printable(archive["name"])
        try:
            finished = self._client.ask("info", "--json", f"::{archive['name']}")
            shown = archive_in(finished.stdout)
            if shown is not None and (shown["id"], shown["start"]) == (archive["id"], archive["start"]):
                return None
            why = "it shows another one" if shown is not None else self._client.failure(finished).message
        except KopiatomicError as error:
            why = error.message
        return f"borg told of the archive {name}, which its repository did not show: {why}"

    def _not_saved(self, end: EngineEnd) -> list[str]:
        """Return what Borg warned of: in a frozen tree no warning may be ignored."""
        output = self._output
        failed = max(output.problem_count, output.statuses["E"] + output.statuses["C"])
        if failed:
            return [results.not_saved(failed, output.problems)]
        return [f"borg ended with warnings: {output.said() or 'it named none'}"] if end.status != 0 else []

    def _with_checkpoint(self, result: EngineResult) -> EngineResult:
        """Return a result that names the checkpoint left by an interrupted Borg, if any."""
        begun = self._job.started(_TIME)
        glob = self._client.glob.replace("{instant}", f"{begun}*")
        try:
            names = self._client.archives("--consider-checkpoints", glob=f"{glob}.checkpoint*")
        except KopiatomicError:
            return result
        if not names:
            return result
        left = f"{result.message}; it left {first_few(names)}, which is only a part, and no backup"
        return replace(result, snapshot_id=printable(names[-1]), message=left)

    def _statistics(self, archive: Mapping[str, Any]) -> dict[str, int]:
        statuses, stats = self._output.statuses, archive.get("stats") or {}
        return {
            "files_total": sum(statuses[letter] for letter in "AMUC"),
            "files_cached": statuses["U"],
            "files_hashed": sum(statuses[letter] for letter in "AMC"),
            "directories_total": statuses["d"],
            "symlinks_total": statuses["s"],
            "bytes_total": number(stats, "original_size"),
            "bytes_added": number(stats, "deduplicated_size"),
            "errors": self._output.problem_count,
        }


def argv(client: Client, program: str, plan: Plan, time: str, instant: str) -> list[str]:
    """Return the argv of a backup of a plan."""
    words = [program, "create"]
    # The first pattern that matches decides.
    for directory in left_out(plan):
        words += ["--exclude", f"sh:{pattern(directory)}"]
    words += client.words
    if client.value("--timestamp") is None:
        words += ["--timestamp", time]
    if plan.record and client.value("--comment") is None:
        words += ["--comment", mark(plan)]
    # The last of these decides: how we get the output is not up to the user.
    words += ["--json", "--log-json", "--progress", "--list", "--filter", "AMUCEdshbcfix-?"]
    return [*words, "::" + client.archive.replace("{instant}", instant), *plan.given]
