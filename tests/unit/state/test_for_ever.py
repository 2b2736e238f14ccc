"""Names that outlive a process: other versions of the program look for them, so they never change."""

from __future__ import annotations

from kopiatomic.commands import history, recover, schedule
from kopiatomic.engines import reader
from kopiatomic.engines.engine import KOPIA
from kopiatomic.filesystems.zfs import new_dataset
from kopiatomic.model import facts, plan, record, user_property
from kopiatomic.model.report import HoldEnd
from kopiatomic.output import document
from kopiatomic.state import locks, ownership, state_file
from kopiatomic.trees import cache

PLACE = "/var/lib/kopiatomic/records/63f1398580a1a9f83aa4ca79a7f29dbb"


def test_what_marks_things_as_ours() -> None:
    assert ownership.ATTRIBUTE == "trusted.kopiatomic.run"
    assert ownership.PROPERTY == "kopiatomic:run"
    assert (ownership.PREFIX, ownership.TAG) == ("kopiatomic_", "kopiatomic")
    assert ownership.bookmark() == f"kopiatomic_{ownership.host_id()}"
    assert user_property.PROPERTY == "kopiatomic:backup"
    assert new_dataset.PROPERTY == "kopiatomic:restoring"
    mark = ownership.Mark("20260101T000000Z-00000000", "0" * 16, "boot", "locks")
    assert str(mark) == "20260101T000000Z-00000000@0000000000000000@boot@locks"


def test_files_and_places() -> None:
    assert state_file.FILE == "state.db"
    assert cache.FOLDER == "cache"
    assert locks.DIRECTORY == "/run/kopiatomic"
    assert (locks.LISTS, locks.TEMPORARY) == (("datasets", "sources"), "tmp")
    assert (plan.UNMOUNTED, plan.VOLUMES) == ("/.unmounted", "/.volumes")
    assert KOPIA == "kopia"


def test_metadata_records() -> None:
    """Where they are, and what marks what has one: those of before must be found and go on."""
    series = "in place: kopia -r tank/home"
    assert plan.RECORD == "/.kopiatomic"
    assert record.INDEX == "record.json"
    assert record.place_in("/var/lib/kopiatomic", series) == PLACE
    assert reader.RECORDED == "kopiatomic-record"
    placed = plan.Plan("/", (), layout=plan.Layout.IN_PLACE, record=PLACE)
    assert reader.mark(placed) == f"kopiatomic-record:{PLACE}"


def test_formats_of_documents() -> None:
    formats = (document.FORMAT, facts.FORMAT, recover.RECOVER_FORMAT, history.HISTORY_FORMAT, schedule.FORMAT)
    kinds = ("run", "facts", "recover", "history", "schedules")
    assert formats == tuple(f"kopiatomic-{kind}-1" for kind in kinds)


def test_words_in_documents() -> None:
    """The documents of runs are kept in their records."""
    assert [str(end) for end in HoldEnd] == ["process", "request", "deadline"]
