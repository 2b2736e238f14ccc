"""What history shows of a held view, from its record."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kopiatomic.errors import Interrupted, KopiatomicError
from kopiatomic.model.report import EngineReport, Hold, HoldEnd, HoldReport
from kopiatomic.output.document import document
from kopiatomic.output.history import lines_of
from kopiatomic.state.records import RunRecord
from tests.support.schema import valid
from tests.unit.support.reports import RUN_ID, START_NS, held, several

HOLD = Hold(4711, "kopia", START_NS / 1e9 + 3600)


def report(**more: Any) -> HoldReport:
    return HoldReport(RUN_ID, "/view", engine=EngineReport("kopia", None), **{"hold": HOLD, **more})


def lines(made: HoldReport, **changes: Any) -> list[str]:
    told = {**valid(json.dumps(document(made))), **changes}
    record = RunRecord(
        RUN_ID, "0.1.0", "kopiatomic x", "/view", START_NS / 1e9, None, told["result"], told["exit_code"], told
    )
    return lines_of(record, told["result"], ())


@pytest.mark.parametrize(
    ("made", "how"),
    [
        (report(ended_by=HoldEnd.PROCESS, held=True), "; the process ended"),
        (report(ended_by=HoldEnd.REQUEST, held=True), "; it was asked to end"),
        (report(ended_by=HoldEnd.DEADLINE, error=KopiatomicError("late", kind="hold-deadline")), "; that came first"),
        (report(error=Interrupted(15)), ""),
        (report(), ""),
    ],
    ids=["process", "request", "deadline", "signal", "no end"],
)
def test_a_held_view_says_for_whom_and_how_it_ended(made: HoldReport, how: str) -> None:
    assert f"Held:     for process 4711 (kopia), at the latest until 2026-11-22 11:11:12 UTC{how}" in lines(made)
    assert not any(line.startswith(("Ran:", "Engine:")) for line in lines(made))


def test_writers_that_were_held_are_shown_with_what_they_waited() -> None:
    made = several()
    made.writers = held()[:1]
    made.writers[0].stall = 3_100_000
    told = valid(json.dumps(document(made)))
    record = RunRecord(RUN_ID, "0.1.0", "x", "/view", 0.0, None, "saved", 0, told)
    shown = lines_of(record, "saved", ())
    first = shown.index("Held:     unit mail.service 3.1 ms")
    assert shown[first + 1] == "          one instant for what was held (unit mail.service), not proven for others"
    assert any("NOT one instant" in line for line in shown[:first])


def test_an_unknown_name_is_left_out_and_an_odd_one_is_safe_to_print() -> None:
    assert any(
        line.startswith("Held:     for process 4711, at") for line in lines(report(hold=replace(HOLD, program="")))
    )
    odd = {"process": 1, "program": "a\x1b[2J", "deadline": "2026-11-22T11:11:12.000000Z", "ended_by": None}
    assert any("process 1 (a\\x1b[2J)" in line for line in lines(report(), hold=odd))


def test_a_record_that_does_not_say_it_is_shown_all_the_same() -> None:
    made = report(hold=None)
    assert not any(line.startswith("Held:") for line in lines(made))
    without = document(made)
    del without["hold"], without["writers"]
    record = RunRecord(RUN_ID, "0.1.0", "x", "/view", 0.0, None, "ran", 0, without)
    assert "Result:   ran, exit code 0" in lines_of(record, "ran", ())
