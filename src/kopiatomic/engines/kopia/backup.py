"""One backup with kopia: ``kopia snapshot create`` on the view's root, and the outcome by kopia's own output.

kopia's exit status says little: it is 0 even for a backup cut short by a signal, and 1 even for one that is saved (facts about
0.13.0 to 0.23.1, seen running or read in cli/command_snapshot_create.go). What counts is the manifest that it prints and
what its repository shows afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from kopiatomic.engines import program, results, written
from kopiatomic.engines.engine import Job
from kopiatomic.engines.kopia import listing, location
from kopiatomic.engines.kopia import maintenance as kopia_maintenance
from kopiatomic.engines.kopia.checks import PLACEHOLDER_SUFFIX
from kopiatomic.engines.kopia.found import Found, mapping
from kopiatomic.engines.kopia.options import Options
from kopiatomic.engines.kopia.output import Manifest, Output, parse_manifest
from kopiatomic.engines.kopia.result import failures, not_saved, saved
from kopiatomic.engines.names import OddNames
from kopiatomic.engines.numbers import number
from kopiatomic.engines.reader import RECORDED, mark
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.engine import Command, EngineEnd, EngineResult, Progress
from kopiatomic.model.plan import Layout, Plan
from kopiatomic.paths import tree_order
from kopiatomic.text import ended, first_few, printable

_LATEST = 20
"""How many of the latest snapshots of a source are searched for a complete one."""


class KopiaBackup:
    """One backup with kopia."""

    def __init__(self, found: Found, job: Job) -> None:
        self._found = found
        self._job = job
        self._output = Output()
        self._manifests: list[Manifest] = []
        """The manifests of its snapshots, filled when it has ended."""
        self._ended_well = False

    def command(self) -> Command:
        """Return the command; its start time is the instant right before the earliest set, in UTC to the microsecond."""
        found, job = self._found, self._job
        microseconds = job.sets.started_ns % 10**9 // 1000
        words = argv(
            found.options,
            found.client.path,
            job.given,
            workers=self._workers(),
            start_time=f"{job.started('%Y-%m-%d %H:%M:%S')}.{microseconds:06d} UTC",
            run_id=job.run_id,
            atomic="yes" if job.sets.atomic else "no",
            tag=_tag(job.plan),
            reads_all=job.reads_all,
        )
        environment = dict(found.client.additions)
        logs = location.logs(found.client, found.options)
        if logs is not None and written.in_place(job.plan, logs):
            environment["KOPIA_LOG_DIR"] = f"{job.plan.scratch}/kopia-logs"
        volumes = job.volumes
        read = [place for source in job.sources for place in job.places(source).values() if place not in volumes]
        directories = tuple(map(job.plan.path, read))
        return Command(words, environment, listing.STAND_IN, directories, PLACEHOLDER_SUFFIX)

    def _workers(self) -> str:
        """Return how many workers kopia needs to read as many files at once as without the levels above; empty: kopia's default.

        kopia's default is one for each processor that it may use (snapshot/upload/upload.go, effectiveParallelFileReads).
        """
        above = levels(self._job.plan)
        if not above:
            return ""
        (policies,) = self._found.policies.values()
        reads = policies.at_root("upload", "maxParallelFileReads").value or program.processors()
        return str(reads + above)

    def feed(self, stream: str, data: bytes) -> list[str | Progress]:
        """Take output; empty ``data`` means that the stream has ended."""
        return self._output.feed(stream, data)

    def judge(self, end: EngineEnd, odd: OddNames) -> EngineResult:
        """Read the manifests, then check in the repository whether they show every mount. Never raises for kopia's failures."""
        self._output.feed("stderr", b"")
        self._ended_well = end.status == 0 and not end.stopped
        self._manifests = self._output.manifests()
        self._ask_ahead()
        found = results.combined([(source, self._judge(source, end, odd)) for source in self._job.plan.sources])
        return replace(found, recorded=True) if self._has_own_record(end) else found

    def _has_own_record(self, end: EngineEnd) -> bool:
        """Whether the metadata record is in a snapshot of its own, which is whole."""
        source = self._job.plan.record_source
        manifest = next((m for m in self._manifests if source and m.path == source and not m.incomplete), None)
        if manifest is None or failures(manifest, ()):
            return False
        if end.status != 0 and not self._is_saved(manifest):
            return False
        return listing.has_record(self._found.client, manifest, self._job, source)

    def _judge(self, source: str, end: EngineEnd, odd: OddNames) -> EngineResult:
        """Return the outcome for one source."""
        job, client = self._job, self._found.client
        if source in job.unchanged:
            return job.unchanged[source]
        path = self._found.source(source).path
        manifest = next((m for m in self._manifests if m.path == path), None)
        unchanged = manifest is None and self._may_be_unchanged(source, end)
        if unchanged:
            manifest = self._latest(path)
        if manifest is None:
            return not_saved(self._why_no_result(source, end, odd))
        if manifest.incomplete:
            ending = "was stopped" if end.stopped else f"ended early ({printable(manifest.incomplete)})"
            return not_saved(f"kopia {ending}: what it saved is only a part, and no backup", manifest)
        reasons = []
        if end.status != 0:
            if not self._is_saved(manifest):
                return not_saved(f"kopia did not store its result ({ended(end.status)}): {self._errors()}")
            if not self._explained():
                reasons.append(f"kopia saved its snapshot and then failed ({ended(end.status)}): {self._errors()}")
        result = saved(manifest, source)
        reasons += failures(manifest, result.problems)
        lacking = listing.missing(client, manifest, job, source)
        if lacking and not self._is_saved(manifest):
            return not_saved(f"kopia told of the snapshot {printable(manifest.id)}, which is not in its repository")
        reasons += lacking
        reasons += listing.confused(client, manifest, odd, source)
        statistics = {**result.statistics, "unchanged": 1} if unchanged else result.statistics
        recorded = listing.has_record(client, manifest, job, source)
        message = "; ".join(reasons)
        return replace(result, complete=not reasons, message=message, statistics=statistics, recorded=recorded)

    def _ask_ahead(self) -> None:
        """Have kopia answer now what will be queried next."""
        job, client = self._job, self._found.client
        questions = [(*kopia_maintenance.INFO, *client.shared)] if self._maintains else []
        by_path = {self._found.source(source).path: source for source in job.sources}
        for manifest in self._manifests:
            if manifest.path in by_path and not manifest.incomplete:
                questions += listing.questions(client, manifest, job, by_path[manifest.path])
        client.ask_ahead(questions)

    @property
    def _maintains(self) -> bool:
        """Whether kopia would have done maintenance at the end."""
        return self._found.maintains and self._ended_well and kopia_maintenance.possible(self._found.status)

    def _explained(self) -> bool:
        """Whether its exit status is explained by files that failed, in any of the sources."""
        return any(number(m.summary, "numFailed") for m in self._manifests)

    def _may_be_unchanged(self, source: str, end: EngineEnd) -> bool:
        """Whether a missing manifest means that nothing had changed: the policy ignore-identical-snapshots is in force."""
        policies = self._found.policies.get(source)
        if end.status != 0 or end.stopped or policies is None:
            return False
        mine = {self._found.source(one).path for one in self._found.policies}
        reported = {m.path for m in self._manifests}
        if not self._output.empty and (not reported or reported - mine):
            return False
        return bool(policies.at_root("retention", "ignoreIdenticalSnapshots").value)

    def _latest(self, path: str) -> Manifest | None:
        """Return the latest complete snapshot of the source: the one since which kopia found no change."""
        source = self._found.source(path)
        try:
            documents = self._found.client.ask("snapshot", "list", str(source), "--json", f"--max-results={_LATEST}")
        except KopiatomicError:
            return None
        found = [(str(mapping(d).get("startTime", "")), parse_manifest(d)) for d in documents]
        mine = [(start, m) for start, m in found if m is not None and m.path == path and not m.incomplete]
        return max(mine, key=lambda pair: pair[0], default=("", None))[1]

    def _is_saved(self, manifest: Manifest) -> bool:
        """Whether the manifest is in the repository: kopia prints it before it writes out its last data."""
        try:
            return self._found.client.has_manifest(manifest.id)
        except KopiatomicError:
            return False

    def _why_no_result(self, source: str, end: EngineEnd, odd: OddNames) -> str:
        said = self._output.errors()
        if end.status != 0:
            stopped = ", stopped by this run" if end.stopped else ""
            failed = f"kopia failed ({ended(end.status)}{stopped}): {said or 'it gave no reason'}"
            return f"{failed}; {_placeholders(odd)}" if _NO_PLACEHOLDER in said and odd.breaking else failed
        if self._output.empty:
            return f"kopia ended without an error and without a result{': ' + said if said else ''}"
        others = [printable(m.path) for m in self._manifests]
        if others:
            return f"kopia's result is of {', '.join(others)} and not of {printable(source)}"
        return f"kopia wrote something else than its result: {self._output.excerpt}"

    def _errors(self) -> str:
        return self._output.errors() or "it gave no reason"

    def finish(self) -> list[str]:
        """Do the maintenance that kopia would have done at the end of a good ``snapshot create``. Raises Interrupted.

        ``--auto-maintenance`` in ``-o`` changes nothing: it is kopia's default, and is done here rather than while the snapshots
        are held.
        """
        return kopia_maintenance.run(self._found.client, self._found.status) if self._maintains else []


def argv(
    options: Options,
    path: str,
    sources: Sequence[str],
    *,
    workers: str,
    start_time: str,
    run_id: str,
    atomic: str,
    tag: str = "",
    reads_all: bool = False,
) -> list[str]:
    """Return the argv; ``tag`` is that of a snapshot with a metadata record, empty without one.

    kopia takes no flag twice: ``-o`` decides, except on maintenance, which waits for the release."""
    words = [path, "snapshot", "create", *sources, "--no-auto-maintenance"]
    for flag in ("--json", "--json-verbose", "--progress"):
        if not options.has(flag):
            words.append(flag)
    if not options.has("--progress-update-interval"):
        words.append("--progress-update-interval=500ms")
    if workers and not options.has("--parallel"):
        words.append(f"--parallel={workers}")
    if not options.has("--start-time"):
        words += ["--start-time", start_time]
    words += ["--tags", f"kopiatomic-run:{run_id}", "--tags", f"kopiatomic-atomic:{atomic}"]
    words += ["--tags", tag] if tag else []
    if reads_all and not options.has("--force-hash"):
        words.append("--force-hash=100")
    return [*words, *options.words]


def _tag(plan: Plan) -> str:
    """Return the tag of a snapshot with a metadata record, as a name and a value; empty if a plan has none."""
    if not plan.record:
        return ""
    return f"{RECORDED}:yes" if plan.layout is Layout.MERGED else mark(plan)


_NO_PLACEHOLDER = "upload error: no such file or directory"
"""What kopia says where a directory has a name of the kind that it gives to placeholders, which it takes for files with an
entry in them (fs/localfs; seen with 0.22.3). No ignore rule prevents it, neither in .kopiaignore nor in a policy, except one for
the directory above.
"""


def _placeholders(odd: OddNames) -> str:
    """Describe what made kopia fail, and what to do."""
    above = sorted({os.path.dirname(path) for path in odd.breaking})
    them = "the folder itself" if len(odd.breaking) == 1 else "the folders themselves"
    return (
        f"it fails at {first_few(odd.breaking)}, since it takes each name that ends with {PLACEHOLDER_SUFFIX} for a file of its "
        f"own: rename {them}, or have kopia ignore {first_few(above)} (.kopiaignore or policy; to ignore {them} does not help), "
        "or use --engine restic or borg"
    )


def levels(plan: Plan) -> int:
    """Return how many directories above everything in the view have one entry: each keeps a kopia worker waiting."""
    if plan.layout is Layout.IN_PLACE:
        return 0
    return len(tree_order(os.path.commonpath([place for taken in plan.taken for place in taken.places]))) - 1
