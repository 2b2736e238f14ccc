"""The engine kopia: ``kopia snapshot create`` on the view's root, and the outcome by kopia's own output.

kopia's exit status says little: it is 0 even for a backup cut short by a signal, and 1 even for one that is saved (facts about
0.13.0 to 0.23.1, seen running or read in cli/command_snapshot_create.go). What counts is the manifest that it prints and
what its repository shows afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from kopiatomic.engines import program, results, self_backup, written
from kopiatomic.engines.engine import Job
from kopiatomic.engines.kopia import checks, listing, location
from kopiatomic.engines.kopia import maintenance as kopia_maintenance
from kopiatomic.engines.kopia import options as kopia_options
from kopiatomic.engines.kopia import policy as kopia_policy
from kopiatomic.engines.kopia.client import Client
from kopiatomic.engines.kopia.output import Manifest, Output, parse_manifest
from kopiatomic.engines.numbers import number
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.engine import Command, EngineEnd, EngineResult, FileProblem, Progress, Target
from kopiatomic.model.plan import Layout, Plan, Refusal
from kopiatomic.paths import below, is_at_or_below, tree_order
from kopiatomic.system import looking
from kopiatomic.text import ended, printable

_LATEST = 20
"""How many of the latest snapshots of a source are searched for a complete one."""


class Kopia:
    """One backup with kopia. Create a new one for each run.

    ``options`` are the words of ``-o``, ``environment`` is what kopia inherits, ``invoking_user`` the user who called sudo (None:
    nobody), ``maintenance`` whether :meth:`finish` does kopia's maintenance when it is due. Raises UsageError for options
    that do not go with a backup of the view.
    """

    def __init__(
        self,
        options: Sequence[str],
        environment: Mapping[str, str],
        invoking_user: str | None,
        *,
        maintenance: bool,
    ) -> None:
        self._options = kopia_options.parse(options)
        self._client = Client(self._options, environment, invoking_user)
        self._maintenance = maintenance and self._options.value("--no-auto-maintenance") is None
        self._output = Output()
        self._manifests: list[Manifest] = []
        """The manifests of its snapshots, known when it has ended."""
        self._standing: dict[str, Manifest] = {}
        """Snapshots used for sources that are not read."""
        self._status: Mapping[str, Any] = {}
        self._policies: dict[str, kopia_policy.Policies] = {}
        """The policies that apply to each source, by its path."""
        self._ended_well = False

    @property
    def name(self) -> str:
        """The engine's name in messages and JSON."""
        return "kopia"

    @property
    def version(self) -> str | None:
        """kopia's version, known after :meth:`check`."""
        return self._client.version

    @property
    def secrets(self) -> Sequence[str]:
        """The passwords in ``-o``: kopia gets them through its environment."""
        return tuple(self._options.secrets.values())

    def refuses(self, plan: Plan) -> list[Refusal]:
        """Return what has a name that kopia cannot store."""
        return checks.unstorable(plan)

    def breaks_at(self, folder: str) -> bool:
        """Whether kopia takes it for a placeholder of its own, and finds nothing in it."""
        return folder.endswith(checks.PLACEHOLDER_SUFFIX)

    def check(self, plan: Plan) -> list[str]:
        """Make sure that kopia can back up this plan; three kopia processes (four in place), whatever the plan's size.

        Returns warnings. Raises KopiatomicError: kinds kopia-missing, kopia-not-executable, kopia-too-old,
        kopia-not-connected, kopia-password-missing, kopia-wrong-password, kopia-unreachable, kopia-read-only, kopia-full,
        kopia-failed, one-file-system, action, repository-in-selection.
        """
        client = self._client
        warnings = [*self._options.warnings, *client.check_version()]
        client.check_connected()
        questions: list[tuple[str, ...]] = [("repository", "status", "--json"), ("policy", "list", "--json")]
        if plan.layout is Layout.IN_PLACE:
            questions.append(("snapshot", "list", "--json", "--max-results=1"))
        status, listed, *histories = client.ask_together(*questions)
        self._status = _mapping(status)
        checks.check_writable(self._status, client)
        documents = [_mapping(d) for d in listed]
        for path in plan.sources:
            policies = self._policies[path] = kopia_policy.Policies(documents, self._source(path))
            checks.check_one_file_system(policies, plan, path, client)
            warnings += checks.check_actions(policies, self._status, self._options)
        if plan.layout is Layout.IN_PLACE:
            last = [_mapping(d) for d in histories[0]]
            return warnings + checks.check_in_place(self._policies, plan, client, self._options, last)
        warnings += self_backup.check_repository("kopia", location.repository(self._status), plan)
        (policies,) = self._policies.values()
        warnings += checks.check_merged(policies, plan)
        left_out = "kopia leaves out what is in these folders unless the policy ignore-cache-dirs is off"
        folders = location.folders(client, self._options)
        return warnings + self_backup.notes("kopia", folders, plan, left_out=left_out)

    @property
    def target(self) -> Target:
        """The storage and its location, and the user and host that kopia uses as its identity."""
        return Target(location.storage(self._status), str(self._source("")))

    def own(self, plan: Plan) -> list[written.Own]:
        """Return cache and repository; logs go to a place of ours if theirs is in a source, the configuration is only read."""
        found = []
        cache = location.cache(self._client)
        if cache is not None:
            why = "Set ignore-cache-dirs to true in kopia's policy, or move it (kopia cache set --cache-directory)."
            found.append(written.Own("kopia's cache", cache, self._leaves_out_caches(cache), why, cache=True))
        configuration = os.path.dirname(looking.real(self._client.config.path))
        if written.is_hidden(configuration, plan):
            found.append(written.Own("kopia's configuration", configuration, skipped=True))
        repository = location.repository(self._status)
        real = looking.real(repository) if repository is not None else ""
        source = written.source_of(real, plan)
        if repository is not None and source is None and written.is_covered(real, plan):
            found.append(written.Own("kopia's repository", repository, skipped=True))
        elif repository is not None and source is not None:
            rule = f"/{below(real, source)}"
            mend = self._client.hint_command("policy", "set", source, f"--add-ignore={rule}")
            why = f"Have kopia leave it out ({mend}), move it out of what is backed up, or use --layout merged."
            skipped = self._policies[source].ignores(real)
            found.append(written.Own("kopia's repository", repository, skipped, why))
        return found

    def skips(self, path: str) -> bool:
        """Whether a directory has a CACHEDIR.TAG and the policy in force excludes those."""
        return written.is_cache(path) and self._leaves_out_caches(path)

    def _leaves_out_caches(self, path: str) -> bool:
        real = looking.real(path)
        inside = [p for source, p in self._policies.items() if is_at_or_below(real, source)]
        return all(p.at(real, "files", "ignoreCacheDirs").value is not False for p in inside)

    def _source(self, root: str) -> kopia_policy.Source:
        """Return the source whose history and policies kopia will use."""
        client_options = _mapping(self._status.get("clientOptions") or {})
        own = kopia_policy.Source(
            str(client_options.get("username", "")), str(client_options.get("hostname", "")), root
        )
        override = self._options.value("--override-source")
        return own if override is None else kopia_policy.parse_source(override, own)

    def command(self, job: Job) -> Command:
        """Return the command; its start time is the instant right before the earliest set, in UTC to the microsecond."""
        microseconds = job.sets.started_ns % 10**9 // 1000
        argv = self._argv(
            self._client.path,
            job.sources,
            workers=self._workers(job.plan),
            start_time=f"{job.started('%Y-%m-%d %H:%M:%S')}.{microseconds:06d} UTC",
            run_id=job.run_id,
            atomic="yes" if job.sets.atomic else "no",
        )
        environment = dict(self._client.additions)
        logs = location.logs(self._client, self._options)
        if logs is not None and written.in_place(job.plan, logs):
            environment["KOPIA_LOG_DIR"] = f"{job.plan.scratch}/kopia-logs"
        volumes = job.volumes
        read = [place for source in job.sources for place in job.places(source).values() if place not in volumes]
        directories = tuple(map(job.plan.path, read))
        return Command(argv, environment, listing.STAND_IN, directories)

    def describe(self, plan: Plan) -> Sequence[str]:
        """Return the argv in words; needs neither kopia nor a repository."""
        return self._argv(
            self._client.named,
            plan.sources,
            workers="WORKERS" if _levels(plan) else "",
            start_time="TIME-OF-THE-SNAPSHOTS",
            run_id="RUN-ID",
            atomic="YES-OR-NO",
        )

    def _workers(self, plan: Plan) -> str:
        """Return how many workers kopia needs to read as many files at once as without the levels above; empty: kopia's default.

        kopia's default is one for each processor that it may use (snapshot/upload/upload.go, effectiveParallelFileReads).
        """
        levels = _levels(plan)
        if not levels:
            return ""
        (policies,) = self._policies.values()
        reads = policies.at_root("upload", "maxParallelFileReads").value or program.processors()
        return str(reads + levels)

    def _argv(
        self, path: str, sources: Sequence[str], *, workers: str, start_time: str, run_id: str, atomic: str
    ) -> list[str]:
        """Return the argv. kopia takes no flag twice: ``-o`` decides, except on maintenance, which waits for the release."""
        argv = [path, "snapshot", "create", *sources, "--no-auto-maintenance"]
        for flag in ("--json", "--json-verbose", "--progress"):
            if not self._options.has(flag):
                argv.append(flag)
        if not self._options.has("--progress-update-interval"):
            argv.append("--progress-update-interval=500ms")
        if workers and not self._options.has("--parallel"):
            argv.append(f"--parallel={workers}")
        if not self._options.has("--start-time"):
            argv += ["--start-time", start_time]
        argv += ["--tags", f"kopiatomic-run:{run_id}", "--tags", f"kopiatomic-atomic:{atomic}"]
        return [*argv, *self._options.words]

    def feed(self, stream: str, data: bytes) -> list[str | Progress]:
        """Take output; empty ``data`` means that the stream has ended."""
        return self._output.feed(stream, data)

    def judge(self, job: Job, end: EngineEnd) -> EngineResult:
        """Read the manifests, then check in the repository whether they show every mount. Never raises for kopia's failures."""
        self._output.feed("stderr", b"")
        self._ended_well = end.status == 0 and not end.stopped
        self._manifests = self._output.manifests()
        self._ask_ahead(job)
        return results.combined([(source, self._judge(job, source, end)) for source in job.plan.sources])

    def terms(self, source: str) -> str:
        """Return a digest of repository, source, policies, kopia's version and the words of ``-o``."""
        policies = self._policies[source]
        told = [
            self._status.get("uniqueIDHex"),
            str(policies.source),
            self.version,
            self._options.words,
            sorted(json.dumps(policy, sort_keys=True) for policy in policies.all()),
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def standing(self, snapshots: Mapping[str, str]) -> Mapping[str, str]:
        """Return those that are in the repository, complete and without errors; one process. Raises KopiatomicError."""
        documents = self._client.ask("snapshot", "list", "--json")
        found = {manifest.id: manifest for document in documents if (manifest := parse_manifest(document)) is not None}
        standing = {}
        for source, snapshot_id in snapshots.items():
            manifest = found.get(snapshot_id)
            if manifest is None or manifest.path != self._source(source).path or manifest.incomplete:
                continue
            if not _failures(manifest, ()) and not number(manifest.summary, "numIgnoredErrors"):
                standing[source] = snapshot_id
                self._standing[source] = manifest
        return standing

    def _judge(self, job: Job, source: str, end: EngineEnd) -> EngineResult:
        """Return the outcome for one source."""
        if source in job.unchanged:
            return _standing(self._standing[source], source)
        path = self._source(source).path
        manifest = next((m for m in self._manifests if m.path == path), None)
        unchanged = manifest is None and self._may_be_unchanged(source, end)
        if unchanged:
            manifest = self._latest(path)
        if manifest is None:
            return _not_saved(self._why_no_result(source, end))
        if manifest.incomplete:
            ending = "was stopped" if end.stopped else f"ended early ({printable(manifest.incomplete)})"
            return _not_saved(f"kopia {ending}: what it saved is only a part, and no backup", manifest)
        reasons = []
        if end.status != 0:
            if not self._is_saved(manifest):
                return _not_saved(f"kopia did not store its result ({ended(end.status)}): {self._errors()}")
            if not self._explained():
                reasons.append(f"kopia saved its snapshot and then failed ({ended(end.status)}): {self._errors()}")
        result = _result(manifest, source)
        if unchanged:
            result.statistics["unchanged"] = 1
        reasons += _failures(manifest, result.problems)
        lacking = listing.missing(self._client, manifest, job, source)
        if lacking and not self._is_saved(manifest):
            return _not_saved(f"kopia told of the snapshot {printable(manifest.id)}, which is not in its repository")
        reasons += lacking
        reasons += listing.confused(self._client, manifest, job, source)
        result.complete = not reasons
        result.message = "; ".join(reasons)
        return result

    def _ask_ahead(self, job: Job) -> None:
        """Have kopia answer now what will be queried next."""
        questions = [(*kopia_maintenance.INFO, *self._client.shared)] if self._maintains else []
        by_path = {self._source(source).path: source for source in job.sources}
        for manifest in self._manifests:
            if manifest.path in by_path and not manifest.incomplete:
                questions += listing.questions(self._client, manifest, job, by_path[manifest.path])
        self._client.ask_ahead(questions)

    @property
    def _maintains(self) -> bool:
        """Whether kopia would have done maintenance at the end."""
        return self._maintenance and self._ended_well and kopia_maintenance.possible(self._status)

    def _explained(self) -> bool:
        """Whether its exit status is explained by files that failed, in any of the sources."""
        return any(number(m.summary, "numFailed") for m in self._manifests)

    def _may_be_unchanged(self, source: str, end: EngineEnd) -> bool:
        """Whether a missing manifest means that nothing had changed: the policy ignore-identical-snapshots is in force."""
        policies = self._policies.get(source)
        if end.status != 0 or end.stopped or policies is None:
            return False
        mine = {self._source(one).path for one in self._policies}
        told = {m.path for m in self._manifests}
        if not self._output.empty and (not told or told - mine):
            return False
        return bool(policies.at_root("retention", "ignoreIdenticalSnapshots").value)

    def _latest(self, path: str) -> Manifest | None:
        """Return the latest complete snapshot of the source: the one since which kopia found no change."""
        source = self._source(path)
        try:
            documents = self._client.ask("snapshot", "list", str(source), "--json", f"--max-results={_LATEST}")
        except KopiatomicError:
            return None
        found = [(str(_mapping(d).get("startTime", "")), parse_manifest(d)) for d in documents]
        mine = [(start, m) for start, m in found if m is not None and m.path == path and not m.incomplete]
        return max(mine, key=lambda pair: pair[0], default=("", None))[1]

    def _is_saved(self, manifest: Manifest) -> bool:
        """Whether the manifest is in the repository: kopia prints it before it writes out its last data."""
        try:
            return self._client.has_manifest(manifest.id)
        except KopiatomicError:
            return False

    def _why_no_result(self, source: str, end: EngineEnd) -> str:
        said = self._output.errors()
        if end.status != 0:
            stopped = ", stopped by this run" if end.stopped else ""
            return f"kopia failed ({ended(end.status)}{stopped}): {said or 'it gave no reason'}"
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
        return kopia_maintenance.run(self._client, self._status) if self._maintains else []


def _levels(plan: Plan) -> int:
    """Return how many directories above everything in the view have one entry: each keeps a kopia worker waiting."""
    if plan.layout is Layout.IN_PLACE:
        return 0
    return len(tree_order(os.path.commonpath([place for taken in plan.taken for place in taken.places]))) - 1


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _standing(manifest: Manifest, source: str) -> EngineResult:
    """Return the result for a source that was not read; its counts are those of the snapshot."""
    result = _result(manifest, source)
    result.unchanged = True
    result.statistics = {k: v for k, v in result.statistics.items() if k not in {"files_cached", "files_hashed"}}
    return result


def _not_saved(message: str, manifest: Manifest | None = None) -> EngineResult:
    result = EngineResult(saved=False, complete=False, message=message)
    if manifest is not None:
        result.snapshot_id, result.root_object = manifest.id, manifest.root_object
    return result


def _result(manifest: Manifest, root: str) -> EngineResult:
    """Return what a manifest says in numbers and names. Paths of failed files are below the view's root, safe to print."""
    summary, statistics = manifest.summary, manifest.statistics
    numbers = {
        "files_total": number(summary, "files"),
        "symlinks_total": number(summary, "symlinks"),
        "directories_total": number(summary, "dirs"),
        "bytes_total": number(summary, "size"),
        "errors": number(summary, "numFailed"),
        "ignored_errors": number(summary, "numIgnoredErrors"),
    }
    if "cachedFiles" in statistics:
        numbers["files_cached"] = number(statistics, "cachedFiles")
        numbers["files_hashed"] = number(statistics, "nonCachedFiles")
    failed = [_mapping(f) for f in _list(summary.get("errors"))][: results.PROBLEMS]
    return EngineResult(
        saved=True,
        complete=True,
        message="",
        snapshot_id=manifest.id,
        root_object=manifest.root_object,
        statistics=numbers,
        problems=[
            FileProblem(printable(f"{root}/{f.get('path', '?')}"), printable(str(f.get("error", "")))) for f in failed
        ],
        problem_count=max(len(failed), numbers["errors"] + numbers["ignored_errors"]),
    )


def _failures(manifest: Manifest, problems: Sequence[FileProblem]) -> list[str]:
    """Return the files that are not in the snapshot, by kopia's counts."""
    failed, ignored = number(manifest.summary, "numFailed"), number(manifest.summary, "numIgnoredErrors")
    reasons = []
    if failed:
        reasons.append(results.not_saved(failed, problems))
    if ignored:
        reasons.append(f"{results.not_saved(ignored, () if failed else problems)}, which kopia's policy ignores")
    return reasons
