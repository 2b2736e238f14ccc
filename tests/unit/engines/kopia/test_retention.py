"""How long kopia keeps the snapshots of a metadata record in place."""

from __future__ import annotations

from kopiatomic.engines.kopia.retention import most_generous

KOPIAS_OWN = {
    "keepLatest": 10,
    "keepHourly": 48,
    "keepDaily": 7,
    "keepWeekly": 4,
    "keepMonthly": 24,
    "keepAnnual": 3,
}


def test_of_each_count_the_most_holds() -> None:
    short = {"keepLatest": 20, "keepDaily": 1}
    assert most_generous([KOPIAS_OWN, short]) == {**KOPIAS_OWN, "keepLatest": 20}
    assert most_generous([KOPIAS_OWN]) == KOPIAS_OWN


def test_where_one_source_keeps_everything_so_does_the_record() -> None:
    nothing_limits = {"keepLatest": 0, "ignoreIdenticalSnapshots": False}
    assert set(most_generous([KOPIAS_OWN, nothing_limits]).values()) == {0}
