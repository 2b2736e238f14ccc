"""Has what a run has saved compared with its frozen view (``--verify``), and keeps what later runs must know of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kopiatomic.config.options import Options, words
from kopiatomic.engines.engine import Engine, Job, Repository
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.engine import Command
from kopiatomic.model.report import Report
from kopiatomic.model.verified import Verified, Wanted
from kopiatomic.runs import verifying
from kopiatomic.runs.launcher import Start, StartOptions
from kopiatomic.runs.streams import Pipes
from kopiatomic.runs.supervisor import Supervisor
from kopiatomic.state import lists
from kopiatomic.state.records import Comparisons, Records
from kopiatomic.system import process, signals
from kopiatomic.text import first_few


class Comparing:
    """The comparison of one run, of so many percent of the files. ``attempt`` makes a call to the records."""

    def __init__(
        self,
        options: Options,
        percent: float,
        engine: Engine,
        report: Report,
        attempt: Callable[[Callable[[Records], object]], object],
    ) -> None:
        self._options = options
        self._percent = percent
        self._engine = engine
        self._report = report
        self._attempt = attempt
        self.warnings: list[str] = []
        # Each engine leaves out what its own rules say.
        self._series = f"{engine.name} {report.series}"
        known = attempt(lambda records: records.comparisons(self._series))
        self.known = known if isinstance(known, Comparisons) else Comparisons()
        """What earlier runs of the series have found."""

    def made(
        self, supervisor: Supervisor, job: Job, repository: Repository, environment: Mapping[str, str]
    ) -> Verified:
        """Compare what was saved. Raises KopiatomicError, Interrupted."""
        result = self._report.engine.result if self._report.engine else None
        assert result is not None
        assert repository.losses is not None
        options = self._options
        asked = verifying.Repository(
            self._engine.name, tuple(words("-o", options.options)), options.repository, dict(environment)
        )
        # Its modules are loaded here, and not from the view.
        asked.reader()
        verification = verifying.Verification(
            asked,
            verifying.sources(job, result),
            repository.losses,
            (*job.plan.given, *map(job.plan.path, job.mounted)),
            (*job.plan.writable, *(one.point for one in job.plan.uncovered if one.live)),
            verifying.Choice(
                Wanted(self._percent, options.verify_limit),
                verifying.choice_key(self._series),
                self.known.count,
                self.known.instant_ns,
            ),
            job.plan.scratch,
        )
        found = self._ran(supervisor, verification, lists.mount_point(job.run_id))
        self._compare_with_last(found)
        now = Comparisons(self.known.count + 1, found.left_out, bool(found.changed_unseen), job.sets.started_ns)
        self._attempt(lambda records: records.compared(self._series, now))
        return found

    def _ran(self, supervisor: Supervisor, verification: verifying.Verification, place: str) -> Verified:
        output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        start = Start(Command((), {}), {}, StartOptions(temporary=place), work=verification)
        limit = self._options.verify_time_limit
        try:
            checked = supervisor.run(
                start, Pipes(lambda stream, data: output[stream].extend(data)), self._options.stop_timeout, limit=limit
            )
        except process.TimeLimitError:
            raise KopiatomicError(
                f"that took longer than {limit:g} s",
                kind="verification-late",
                hint="A smaller share, a lower --verify-limit, or a longer --verify-time-limit.",
            ) from None
        reason = signals.reason()
        if checked.end.stopped and reason is not None:
            raise reason
        if checked.problems:
            raise KopiatomicError(
                f"the frozen view has changed meanwhile: {'; '.join(checked.problems)}",
                kind="view-changed",
                hint="Find out who removed it, and run again.",
            )
        return verifying.outcome(bytes(output["stdout"]))

    def _compare_with_last(self, found: Verified) -> None:
        """Warn of entries that an earlier run has found in the engine's list, or that are new there."""
        last = self.known.left_out
        if last is None or last == found.left_out:
            return
        changed = [
            f"{folder}: {found.left_out.get(folder, 0)} instead of {last.get(folder, 0)}"
            for folder in sorted({*last, *found.left_out})
            if last.get(folder) != found.left_out.get(folder)
        ]
        self.warnings.append(
            f"what {self._engine.name} leaves out has changed since the last comparison: {first_few(changed)}"
        )
