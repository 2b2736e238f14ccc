"""The engine kopia and its repository: what must be right before ``kopia snapshot create``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kopiatomic.engines import self_backup, written
from kopiatomic.engines.engine import Job, RecordTerms
from kopiatomic.engines.kopia import checks, location, retention
from kopiatomic.engines.kopia import options as kopia_options
from kopiatomic.engines.kopia import policy as kopia_policy
from kopiatomic.engines.kopia.backup import KopiaBackup, argv, levels
from kopiatomic.engines.kopia.client import Client
from kopiatomic.engines.kopia.found import Found, mapping, source_of
from kopiatomic.engines.kopia.listing import STAND_IN
from kopiatomic.engines.kopia.output import parse_manifest
from kopiatomic.engines.kopia.reader import snapshot_of
from kopiatomic.engines.kopia.result import failures, standing
from kopiatomic.engines.numbers import number
from kopiatomic.engines.reader import holders
from kopiatomic.model.engine import EngineResult, Target
from kopiatomic.model.plan import Layout, Plan, Refusal
from kopiatomic.model.record import LINKED, Losses
from kopiatomic.paths import below, is_at_or_below
from kopiatomic.system import looking


class Kopia:
    """kopia with the user's options.

    ``options`` are the words of ``-o``, ``environment`` is what kopia inherits, ``invoking_user`` the user who called sudo (None:
    nobody), ``maintenance`` whether a backup ends with kopia's maintenance when it is due. Raises UsageError for options
    that do not go with a backup of the view.
    """

    name = "kopia"
    variables = ("KOPIA_",)
    remembers = True
    records_apart = True

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

    @property
    def secrets(self) -> Sequence[str]:
        """The passwords in ``-o``: kopia gets them through its environment."""
        return tuple(self._options.secrets.values())

    def pinned(self, environment: Mapping[str, str]) -> Mapping[str, str]:
        """Return the configuration file that kopia will use."""
        return {"KOPIA_CONFIG_PATH": Client(self._options, environment, None).config.path}

    def by_hand(self, environment: Mapping[str, str]) -> Mapping[str, str]:
        """Return the configuration file, and the passwords in ``-o``."""
        return {**self.pinned(environment), **self._options.secrets}

    @property
    def common(self) -> Sequence[Sequence[str]]:
        """The options that every kopia command gets."""
        return self._options.common

    def refuses(self, plan: Plan) -> list[Refusal]:
        """Return what has a name that kopia cannot store."""
        return checks.unstorable(plan)

    def breaks_at(self, folder: str) -> bool:
        """Whether kopia takes it for a placeholder of its own, and finds nothing in it."""
        return folder.endswith(checks.PLACEHOLDER_SUFFIX)

    def describe(self, plan: Plan) -> Sequence[str]:
        """Return the argv in words; needs neither kopia nor a repository."""
        return argv(
            self._options,
            self._client.named,
            plan.sources,
            workers="WORKERS" if levels(plan) else "",
            start_time="TIME-OF-THE-SNAPSHOTS",
            run_id="RUN-ID",
            atomic="YES-OR-NO",
        )

    def check(self, plan: Plan) -> KopiaRepository:
        """Make sure that kopia can back up this plan; three kopia processes (four in place), whatever the plan's size.

        Raises KopiatomicError: kinds kopia-missing, kopia-not-executable, kopia-too-old,
        kopia-not-connected, kopia-password-missing, kopia-wrong-password, kopia-unreachable, kopia-read-only, kopia-full,
        kopia-failed, one-file-system, action, repository-in-selection.
        """
        client = self._client
        version = client.check_version()
        warnings = [*self._options.warnings, *version.warnings]
        client.check_options()
        client.check_connected()
        questions: list[tuple[str, ...]] = [("repository", "status", "--json"), ("policy", "list", "--json")]
        if plan.layout is Layout.IN_PLACE:
            questions.append(("snapshot", "list", "--json", "--max-results=1"))
        status, listed, *histories = client.ask_together(*questions)
        status = mapping(status)
        checks.check_writable(status, client)
        documents = [mapping(d) for d in listed]
        by_source: dict[str, kopia_policy.Policies] = {}
        for path in plan.sources:
            source = source_of(status, self._options, path)
            policies = by_source[path] = kopia_policy.Policies(documents, source)
            checks.check_one_file_system(policies, plan, path, client)
            warnings += checks.check_actions(policies, status, self._options)
        if plan.layout is Layout.IN_PLACE:
            last = [mapping(d) for d in histories[0]]
            warnings += checks.check_in_place(by_source, plan, client, self._options, last)
        else:
            warnings += self._check_merged(by_source, status, plan)
        found = Found(client, self._options, version.text, status, by_source, self._maintenance)
        return KopiaRepository(found, tuple(warnings))

    def _check_merged(
        self, by_source: Mapping[str, kopia_policy.Policies], status: Mapping[str, Any], plan: Plan
    ) -> list[str]:
        """Check what only a merged view needs. Returns warnings; raises KopiatomicError of kind repository-in-selection."""
        warnings = self_backup.check_repository("kopia", location.repository(status), plan)
        (policies,) = by_source.values()
        warnings += checks.check_merged(policies, plan)
        left_out = "kopia leaves out what is in these folders unless the policy ignore-cache-dirs is off"
        folders = location.folders(self._client, self._options)
        return warnings + self_backup.notes("kopia", folders, plan, left_out=left_out)


def _recorded(documents: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the ids of the snapshots in kopia's list that have a metadata record, which is there."""
    return set(holders([snapshot_of(document) for document in documents if parse_manifest(document) is not None]))


class KopiaRepository:
    """The repository that kopia is connected to."""

    def __init__(self, found: Found, warnings: Sequence[str]) -> None:
        self._found = found
        self._warnings = warnings

    losses = Losses(
        xattrs=True, hard_links=LINKED, specials=True, directory_times=True, link_step_ns=1000, stand_in=STAND_IN
    )

    @property
    def version(self) -> str | None:
        """kopia's version."""
        return self._found.version

    @property
    def warnings(self) -> Sequence[str]:
        """What the check warns of."""
        return self._warnings

    @property
    def target(self) -> Target:
        """The storage and its location, and the user and host that kopia uses as its identity."""
        return Target(location.storage(self._found.status), str(self._found.source("")))

    def written(self, plan: Plan) -> list[written.WrittenDirectory]:
        """Return cache and repository; logs go to a place of ours if theirs is in a source, the configuration is only read."""
        found = []
        cache = location.cache(self._found.client)
        if cache is not None:
            why = "Set ignore-cache-dirs to true in kopia's policy, or move it (kopia cache set --cache-directory)."
            found.append(
                written.WrittenDirectory("kopia's cache", cache, self._leaves_out_caches(cache), why, cache=True)
            )
        configuration = os.path.dirname(looking.real(self._found.client.config.path))
        if written.is_hidden(configuration, plan):
            found.append(written.WrittenDirectory("kopia's configuration", configuration, skipped=True))
        repository = location.repository(self._found.status)
        real = looking.real(repository) if repository is not None else ""
        source = written.source_of(real, plan)
        if repository is not None and source is None and written.is_covered(real, plan):
            found.append(written.WrittenDirectory("kopia's repository", repository, skipped=True))
        elif repository is not None and source is not None:
            rule = f"/{below(real, source)}"
            mend = self._found.client.hint_command("policy", "set", source, f"--add-ignore={rule}")
            why = f"Have kopia leave it out ({mend}), move it out of what is backed up, or use --layout merged."
            skipped = self._found.policies[source].ignores(real)
            found.append(written.WrittenDirectory("kopia's repository", repository, skipped, why))
        return found

    def skips(self, path: str) -> bool:
        """Whether a directory has a CACHEDIR.TAG and the policy in force excludes those."""
        return written.is_cache(path) and self._leaves_out_caches(path)

    def _leaves_out_caches(self, path: str) -> bool:
        real = looking.real(path)
        inside = [p for source, p in self._found.policies.items() if is_at_or_below(real, source)]
        return all(p.at(real, "files", "ignoreCacheDirs").value is not False for p in inside)

    def record_terms(self, plan: Plan) -> RecordTerms:
        """Return how long kopia keeps what a metadata record in place is in; a process for each set of policies."""
        return retention.terms(self._found, plan.record_source)

    def accept(self, terms: RecordTerms) -> None:
        """Set the policy of that source, if it must be another one."""
        retention.accept(self._found, terms)

    def terms(self, source: str) -> str:
        """Return a digest of repository, source, policies, kopia's version and the words of ``-o``."""
        policies = self._found.policies[source]
        terms = [
            self._found.status.get("uniqueIDHex"),
            str(policies.source),
            self._found.version,
            self._found.options.words,
            sorted(json.dumps(policy, sort_keys=True) for policy in policies.all()),
        ]
        return hashlib.sha256(json.dumps(terms).encode()).hexdigest()

    def standing(self, snapshots: Mapping[str, str]) -> Mapping[str, EngineResult]:
        """Return the results of those that are in the repository, complete and without errors; one process.

        Raises KopiatomicError.
        """
        documents = self._found.client.ask("snapshot", "list", "--json")
        found = {manifest.id: manifest for document in documents if (manifest := parse_manifest(document)) is not None}
        recorded = _recorded(documents)
        results = {}
        for source, snapshot_id in snapshots.items():
            manifest = found.get(snapshot_id)
            if manifest is None or manifest.path != self._found.source(source).path or manifest.incomplete:
                continue
            if not failures(manifest, ()) and not number(manifest.summary, "numIgnoredErrors"):
                results[source] = replace(standing(manifest, source), recorded=snapshot_id in recorded)
        return results

    def backup(self, job: Job) -> KopiaBackup:
        """Return the backup of a view that is mounted."""
        return KopiaBackup(self._found, job)
