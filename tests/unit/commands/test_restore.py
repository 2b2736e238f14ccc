"""What restore refuses before it asks an engine anything: it says what is wrong, and how it is meant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kopiatomic.commands.stored import described
from kopiatomic.engines.reader import StoredSnapshot
from kopiatomic.model.record import place_in
from tests.support.programs import Kopiatomic

DIRECTORY = "For example: kopiatomic restore latest /home/ann --to /srv/back"
DATASET = "For example: kopiatomic restore latest --dataset tank/home --as tank/home.restored"
FIRST = "is no snapshot: the first word is 'latest', or the beginning of an id or a time"


@pytest.mark.parametrize(
    ("words", "said", "example"),
    [
        # Every id begins with nothing.
        (("", "--to", "back"), f"nothing {FIRST}", DIRECTORY),
        (("/home/ann", "--to", "back"), f"/home/ann {FIRST}", DIRECTORY),
        (("latest", "/home/ann"), "it is not said where to", DIRECTORY),
        (("latest", "--dataset", "tank/home"), "--dataset and --as go together", DATASET),
        (("latest", "--as", "tank/new"), "--dataset and --as go together", DATASET),
        (("latest", "--to", "back", "--as", "tank/new"), "--to is for a directory", DATASET),
    ],
)
def test_words_that_make_no_sense_are_refused_with_an_example(
    words: tuple[str, ...],
    said: str,
    example: str,
    kopiatomic: Kopiatomic,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = kopiatomic("restore", *words)
    assert ended.returncode == 2, str(ended)
    assert said in ended.stderr
    assert example in ended.stderr
    assert list(tmp_path.glob("back")) == []


def test_the_place_of_the_record_is_not_shown_among_the_sources() -> None:
    record = place_in("/var/lib/kopiatomic", "in place: restic -r /home")
    in_place = StoredSnapshot("1", "1", 0, None, "host", "root", ("/home", record), True, None, True, record)
    assert described(in_place) == "1 (1970-01-01 00:00:00, /home)"
    # One of the record alone has nothing else.
    assert described(replace(in_place, sources=(record,))) == f"1 (1970-01-01 00:00:00, {record})"
