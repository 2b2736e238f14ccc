"""What restore refuses before it asks an engine anything: it says what is wrong, and how it is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

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
