"""A small command for tests of ``runs/``, in a process of its own: it freezes a dataset as ``exec`` does, and works in it.

``python in_a_view.py LAYOUT ROOT DATASET STEP...``: each STEP is JSON with ``argv``, a program that is run in the view. What
became of it is printed as a line of JSON. Before it is started, the file ``until`` is waited for.

``python in_a_view.py hold LAYOUT ROOT DATASET PID SECONDS``: the view is held for a process, and a line of JSON says where it is.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kopiatomic.config.options import Options
from kopiatomic.errors import EndError, KopiatomicError
from kopiatomic.model.engine import Command
from kopiatomic.model.plan import Layout
from kopiatomic.model.report import CommandReport, EngineReport, HoldReport, Report
from kopiatomic.output.console import Console
from kopiatomic.runs import holding
from kopiatomic.runs.freezing import Frozen, Session, failures_in, new_run_id, recorded
from kopiatomic.runs.launcher import Checked, Start
from kopiatomic.runs.selecting import Selecting
from kopiatomic.runs.streams import Pipes
from kopiatomic.secrets.masking import Secrets
from kopiatomic.state import roots
from kopiatomic.system import signals

R = TypeVar("R", bound=Report)
SHOWN = "a command of the tests"


def freeze(
    layout: Layout, report: R, names: Sequence[str], then: Callable[[Session, Frozen, R], None], limit: float | None
) -> R:
    """Do something in the frozen view of datasets. How it went is in the report, and on stderr."""
    root = report.root
    options = Options(
        tuple(names), layout=layout, mount_root=root, stop_timeout=5, state_dir=os.environ["KOPIATOMIC_STATE_DIR"]
    )
    console = Console()
    with signals.handled(limit=limit), failures_in(report):
        secrets = Secrets([], {})
        selecting = Selecting(options, report, console)
        report.root = roots.resolve(root) if layout is Layout.MERGED else roots.of_run(report.run_id)
        report.series = SHOWN
        with recorded(selecting, secrets, SHOWN) as session:
            session.take_root(report.root, SHOWN, None)
            session.clear_leftovers()
            report.plan = selecting.select()
            session.check(report.plan)
            report.engine = EngineReport("test", None)
            with session.view(selecting.select) as frozen:
                then(session, frozen, report)
    if report.error is not None:
        console.error(report.error)
    return report


class _Steps:
    def __init__(self, steps: Sequence[Mapping[str, Any]]) -> None:
        self._steps = steps

    def run(self, _session: Session, frozen: Frozen, report: CommandReport) -> None:
        assert report.engine is not None
        for step in self._steps:
            while step.get("until") and not Path(step["until"]).exists():
                signals.sleep(0.01)
            output: dict[str, bytes] = {"stdout": b"", "stderr": b""}
            try:
                checked = self._start(step["argv"], output, frozen, report)
            except KopiatomicError as error:
                print(json.dumps({"error": error.kind}), flush=True)
                if not step.get("anyway"):
                    raise
                continue
            report.engine.end = checked.end
            told = {
                "status": checked.end.status,
                "stopped": checked.end.stopped,
                "problems": checked.problems,
                "strays": checked.strays,
                "unread": checked.unread,
                **{name: text.decode() for name, text in output.items()},
            }
            print(json.dumps(told), flush=True)
        # One that was stopped was not followed by another, which would have raised it.
        reason = signals.reason()
        if reason is not None:
            raise reason

    @staticmethod
    def _start(argv: Sequence[str], output: dict[str, bytes], frozen: Frozen, report: CommandReport) -> Checked:
        def take(stream: str, data: bytes) -> None:
            output[stream] += data

        assert report.plan is not None
        start = Start(Command(argv, {}), dict(os.environ), sources=report.plan.sources)
        return frozen.supervisor.run(start, Pipes(take), 1.0)


def hold(
    layout: Layout, root: str, names: Sequence[str], process: int, seconds: float, tell: Callable[[object], None]
) -> int:
    """Hold a view of datasets for a process."""

    def held(starter: holding.Starter) -> int:
        def then(session: Session, frozen: Frozen, report: HoldReport) -> None:
            seen = frozen.supervisor.seen_from_outside()
            top = report.root if layout is Layout.MERGED else ""
            starter.let_go({"run": report.run_id, "main": os.getpid(), "path": f"{seen}{top}"})
            holding.hold(session, frozen, report, until)

        with holding.watching(process, seconds) as until:
            return freeze(layout, HoldReport(new_run_id(), root, hold=until.hold), names, then, None).exit_code

    return holding.start(held, tell)


def held_by_itself(root: str, names: Sequence[str], then: Callable[[str, str], None]) -> int:
    """Be a holder without a starter, for this process itself. ``then`` gets the run's id and where its view is seen."""

    def hold_it(session: Session, frozen: Frozen, report: HoldReport) -> None:
        then(report.run_id, f"{frozen.supervisor.seen_from_outside()}{report.root}")
        holding.hold(session, frozen, report, until)

    with holding.watching(os.getpid(), 60) as until:
        report = HoldReport(new_run_id(), root, hold=until.hold)
        return freeze(Layout.MERGED, report, names, hold_it, None).exit_code


def main() -> None:
    if sys.argv[1] == "hold":
        shown, root, dataset, process, seconds = sys.argv[2:]
        told = lambda found: print(json.dumps(found), flush=True)  # noqa: E731
        try:
            raise SystemExit(hold(Layout(shown), root, [dataset], int(process), float(seconds), told))
        except EndError as error:
            Console().error(error)
            raise SystemExit(error.exit_code) from None
    layout, root, dataset, *steps = sys.argv[1:]
    limit = float(os.environ["LIMIT"]) if "LIMIT" in os.environ else None
    made = CommandReport(new_run_id(), root)
    report = freeze(Layout(layout), made, [dataset], _Steps(list(map(json.loads, steps))).run, limit)
    raise SystemExit(report.exit_code)


if __name__ == "__main__":
    main()
