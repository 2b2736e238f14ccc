"""The engine Borg (1.2 and 1.4): ``borg create`` of all sources as one archive, and the outcome by Borg's own output.

What counts is the result that it prints, what its repository reports about that archive, and the list of entries that Borg prints
while it stores them: asking the repository for that list would mean reading all metadata of the archive once more.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from kopiatomic.engines import flags, repository, results
from kopiatomic.engines.borg.client import WARNINGS, Client
from kopiatomic.engines.borg.output import Output, archive_in
from kopiatomic.engines.engine import Job
from kopiatomic.engines.lines import JsonLines
from kopiatomic.engines.listing import Inside, Listing, left_out, pattern
from kopiatomic.engines.numbers import number
from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.model.engine import Command, EngineEnd, EngineResult, Progress
from kopiatomic.model.plan import Plan, Refusal
from kopiatomic.text import ended, first_few, printable

OLDEST = (1, 2, 0)
"""The oldest supported Borg. This engine's tests were run with 1.2.4 (Debian 12) and 1.4. 2.0 has a different command line."""
NEWEST = (2,)

ARCHIVE = "{hostname}-{instant}"
"""The default name of an archive: ``{instant}`` is ours, everything else in braces is Borg's."""

_TIME = "%Y-%m-%dT%H:%M:%S"
"""The format in which Borg writes and takes a time."""


class Borg(repository.RepositoryEngine):
    """One backup with Borg. Create a new one for each run.

    ``options`` are the words of ``-o``, ``environment`` is what Borg inherits, ``named`` the repository (``--repository``),
    ``archive`` the name of the archive. Raises UsageError for options that do not go with a backup of the view.
    """

    engine = "borg"
    version_words = ("--version",)

    def __init__(
        self, options: Sequence[str], environment: Mapping[str, str], named: str | None, archive: str | None
    ) -> None:
        self._client = Client(options, environment, named)
        super().__init__(self._client, environment)
        for given in self._given:
            _require_no_root(given)
        self._name = archive or ARCHIVE
        if "/" in self._name or "::" in self._name or self._name != self._name.strip():
            raise UsageError(
                f"--archive {printable(self._name)}: it may not hold a slash, :: or outer spaces",
                kind="usage",
                hint="For example: --archive 'home-{instant}'",
            )
        self._repository = self._client.repository
        self._output = Output()

    @property
    def _identity(self) -> str:
        return self._name.replace("{hostname}", socket.gethostname().partition(".")[0])

    @property
    def _where(self) -> str | None:
        """The repository, as Borg will find it."""
        return self._repository

    @property
    def _caches(self) -> dict[str, str]:
        """Where Borg keeps its cache, and its data about known repositories (helpers/fs.py). It only reads keys."""
        environment = self._client.environment
        base = environment.get("BORG_BASE_DIR")
        home = base or environment["HOME"]

        def below(variable: str, ours: str, general: str, folder: str) -> str:
            general = environment.get(general, "") if not base else ""
            return environment.get(variable) or os.path.join(general or os.path.join(home, folder), ours)

        config = below("BORG_CONFIG_DIR", "borg", "XDG_CONFIG_HOME", ".config")
        return {
            "cache": os.path.abspath(below("BORG_CACHE_DIR", "borg", "XDG_CACHE_HOME", ".cache")),
            "security folder": os.path.abspath(
                environment.get("BORG_SECURITY_DIR") or os.path.join(config, "security")
            ),
        }

    def refuses(self, _plan: Plan) -> list[Refusal]:
        """Return no refusals: Borg keeps names as bytes."""
        return []

    def breaks_at(self, _folder: str) -> bool:
        """Return False: no name does that to Borg."""
        return False

    def check(self, plan: Plan) -> list[str]:
        """Make sure that Borg can back up this plan, with two Borg processes. Returns warnings.

        Raises KopiatomicError: kinds borg-missing, borg-not-executable, borg-unsupported, borg-no-repository,
        borg-password-missing, borg-wrong-password, borg-locked, borg-unreachable, borg-newer-format, borg-unconfirmed,
        borg-key-missing, borg-failed, one-file-system, repository-in-selection.
        """
        warnings = self._check_version(lambda version: OLDEST <= version < NEWEST)
        repository.check_mounts("borg", self._given, plan)
        if not self._repository:
            raise KopiatomicError(
                "Borg was not told its repository",
                kind="borg-no-repository",
                hint="Name it: --repository, or BORG_REPO in the environment.",
            )
        # Opens repository, key and cache, and takes and releases their locks.
        finished = self._client.ask("info", "--json")
        if finished.status not in {0, *WARNINGS}:
            raise self._client.failure(finished)
        when = self._value("--timestamp")
        if when is not None:
            warnings.append(
                f"-o sets the time of Borg's archive to {printable(when)}: not the instant of the snapshots"
            )
        return warnings + self._check_place(plan)

    def _held(self, points: Mapping[str, str]) -> set[str]:
        """Return the paths in which this host's last archive of such a name has entries. Borg reads all its metadata for that."""
        names = self._archives("--last=1", glob=self._glob.replace("{instant}", "*"))
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

    @property
    def _glob(self) -> str:
        """The Borg pattern for the archive names of this kind: ``{instant}`` is not filled in yet.

        ``{hostname}`` is the short one (borg/platform/base.py).
        """
        return re.sub(r"\{(?!instant\})[^}]*\}", "*", self._identity)

    def _archives(self, *words: str, glob: str) -> list[str]:
        """Return the names of archives, oldest first. Raises KopiatomicError."""
        finished = self._client.ask("list", "--json", *words, f"--glob-archives={glob}")
        try:
            return [str(archive["name"]) for archive in json.loads(finished.stdout)["archives"]]
        except (ValueError, KeyError, TypeError):
            raise self._client.failure(finished) from None

    def command(self, job: Job) -> Command:
        """Return the command; the archive's time is the instant to the second, and its name has it to the millisecond.

        ``--timestamp`` is UTC in 1.2 and local time in 1.4: the process's time zone is UTC.

        In the engine's PID namespace Borg would mistake other Borgs' locks for those of dead processes, and others would
        mistake ours: a host id of the run's own distinguishes them, so that neither removes the other's.
        """
        self._output.listing = Listing("borg", job, "?")
        start, milliseconds = job.started(_TIME), job.sets.started_ns % 10**9 // 10**6
        argv = self._argv(self._client.path, job.plan, start, f"{start}.{milliseconds:03d}")
        return Command(argv=argv, environment={**self._client.additions, "BORG_HOST_ID": f"kopiatomic-{job.run_id}"})

    def describe(self, plan: Plan) -> Sequence[str]:
        """Return the argv in words; needs neither Borg nor a repository."""
        return self._argv(self._client.named, plan, "TIME-OF-THE-SNAPSHOTS", "INSTANT")

    def _argv(self, program: str, plan: Plan, time: str, instant: str) -> list[str]:
        argv = [program, "create"]
        # The first pattern that matches decides.
        for directory in left_out(plan):
            argv += ["--exclude", f"sh:{pattern(directory)}"]
        argv += [word for given in self._given for word in given.words]
        if self._value("--timestamp") is None:
            argv += ["--timestamp", time]
        # The last of these decides: how we get the output is not up to the user.
        argv += ["--json", "--log-json", "--progress", "--list", "--filter", "AMUCEdshbcfix-?"]
        return [*argv, "::" + self._name.replace("{instant}", instant), *plan.sources]

    def feed(self, stream: str, data: bytes) -> list[str | Progress]:
        """Take output; empty ``data`` means that the stream has ended."""
        return self._output.feed(stream, data)

    def _judge(self, job: Job, end: EngineEnd) -> EngineResult:
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
            return self._with_checkpoint(job, EngineResult(saved=False, complete=False, message=why))
        if archive is None:
            why = f"borg ended without an error and without an archive: {output.said() or 'it gave no reason'}"
            return EngineResult(saved=False, complete=False, message=why)
        unproven = self._unproven(archive)
        if unproven is not None:
            return EngineResult(saved=False, complete=False, message=unproven)
        assert output.listing is not None
        reasons = self._not_saved(end)
        start = job.started(_TIME)
        if self._value("--timestamp") is None and archive["start"][: len(start)] != start:
            reasons.append(f"the time of Borg's archive is {printable(archive['start'])}, which is not the instant")
        reasons += output.listing.lacking()
        return EngineResult(
            saved=True,
            complete=not reasons,
            message="; ".join(reasons),
            snapshot_id=printable(archive["name"]),
            root_object=archive["id"],
            statistics=self._statistics(archive),
            problems=output.problems,
            problem_count=output.problem_count,
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

    def _with_checkpoint(self, job: Job, result: EngineResult) -> EngineResult:
        """Return a result that names the checkpoint left by an interrupted Borg, if any."""
        begun = job.started(_TIME)
        glob = self._glob.replace("{instant}", f"{begun}*")
        try:
            names = self._archives("--consider-checkpoints", glob=f"{glob}.checkpoint*")
        except KopiatomicError:
            return result
        if names:
            result.snapshot_id = printable(names[-1])
            result.message += f"; it left {first_few(names)}, which is only a part, and no backup"
        return result

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
