"""How a snapshot says that it has a metadata record, and where: nothing else is believed."""

from __future__ import annotations

import os
import random
import re

import pytest

from kopiatomic.engines.reader import RECORDED, StoredSnapshot, holders, is_record, mark, marked
from kopiatomic.engines.restic.backup import parent_of
from kopiatomic.model.plan import Dataset, Layout, Plan, PlannedPath, Taken
from kopiatomic.model.record import is_place, place_in

RECORD = place_in("/var/lib/kopiatomic", "in place: restic -r /home")


def plan(*places: str, record: str = "", layout: Layout = Layout.IN_PLACE) -> Plan:
    taken = [Taken(Dataset("btrfs", place, "pool", PlannedPath(place)), place, named=True) for place in places]
    return Plan("/kopia", tuple(taken), layout=layout, record=record)


def snapshot(name: str, *sources: str, run: str | None = None, record: str = "", user: str = "root") -> StoredSnapshot:
    return StoredSnapshot(name, name, int(name), None, "host", user, sources, True, run, bool(record), record)


def test_in_place_the_path_follows_and_is_read_back() -> None:
    chance = random.Random(7)
    for _ in range(300):
        folder = bytes(chance.choice([0x20, 0x25, 0x2C, 0x3A, 0x3D, 0x61, 0x7B, 0xC3, 0xFF, 0x0A]) for _ in range(9))
        record = place_in(f"/{os.fsdecode(folder)}/state", "a series")
        said = mark(plan("/home", record=record))
        # Neither restic's comma nor Borg's braces have a meaning in it.
        assert re.fullmatch(r"kopiatomic-record:[\w/.%~-]+", said), said
        assert marked(["another", said]) == (True, record)
    assert mark(plan("/home", layout=Layout.MERGED, record="/.kopiatomic")) == RECORDED
    assert marked([RECORDED]) == (True, "")


@pytest.mark.parametrize(
    "said",
    [
        "",
        "None",
        f"{RECORDED}:",
        f"{RECORDED}:yes",
        f"{RECORDED}:/home/eve",
        f"{RECORDED}:/home/eve/records/{'0' * 31}",
        f"{RECORDED}:/home/../records/{'0' * 32}",
        f"{RECORDED}:records/{'0' * 32}",
        f"not-{RECORDED}:{RECORD}",
    ],
)
def test_what_is_none_of_our_paths_is_not_believed(said: str) -> None:
    assert marked([said])[0] is False


def test_a_series_has_one_path_and_another_one_another() -> None:
    assert is_place(RECORD)
    assert place_in("/var/lib/kopiatomic", "in place: restic -r /home") == RECORD
    assert place_in("/var/lib/kopiatomic", "in place: borg -r /home") != RECORD


def test_an_engine_is_given_the_record_only_where_no_source_holds_it() -> None:
    assert plan("/home", record=RECORD).given == ("/home", RECORD)
    assert plan("/home", "/var", record=RECORD).given == ("/home", "/var")
    assert plan("/", record=RECORD).given == ("/",)
    assert plan("/home").given == ("/home",)
    assert plan("/home", layout=Layout.MERGED, record="/.kopiatomic").given == ("/kopia",)


def test_the_holder_of_a_record_is_of_the_same_run_user_and_host() -> None:
    one, two = snapshot("1", "/home", run="a", record=RECORD), snapshot("2", "/var", run="b", record=RECORD)
    other = snapshot("3", "/home", run="b", record=RECORD)
    own = snapshot("4", RECORD, run="a", record=RECORD)
    eves = snapshot("5", RECORD, run="a", record=RECORD, user="eve")
    assert holders([eves, one, two, other, own]) == {"1": own, "2": two, "3": two, "4": own, "5": eves}
    # That of another run, or of another user, is none.
    assert holders([one, eves, two]) == {"2": two, "5": eves}
    assert [is_record(each) for each in (one, two, own)] == [False, False, True]
    # Borg keeps no paths, and all of it is in one archive.
    assert holders([snapshot("6", record=RECORD)]).keys() == {"6"}


def test_restic_is_told_its_parent_only_where_it_finds_none_itself() -> None:
    before = snapshot("1", "/home", "/srv")
    recorded = snapshot("2", "/home", "/srv", RECORD, record=RECORD)
    sources = ("/home", "/srv")
    assert parent_of(plan(*sources, record=RECORD), [before]) == "1"
    assert parent_of(plan(*sources, record=RECORD), [before, recorded]) == ""
    assert parent_of(plan(*sources), [before, recorded]) == "2"
    assert parent_of(plan(*sources), []) == ""
    assert parent_of(plan("/home", record=RECORD), [before]) == ""
    # The record of another series was at another path.
    moved = place_in("/srv/state", "in place: restic -r /home /srv")
    assert parent_of(plan(*sources, record=place_in("/a", "b")), [snapshot("3", *sources, moved, record=moved)]) == "3"
