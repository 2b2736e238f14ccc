"""A number of another kind in an engine's result is never taken for 0."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kopiatomic.engines.borg.output import Output as BorgOutput
from kopiatomic.engines.kopia.output import parse_progress
from kopiatomic.engines.numbers import OddNumberError, about, number, understood
from kopiatomic.engines.restic.output import Output as ResticOutput
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.engine import Progress

ODD: list[Any] = ["3", -1, 3.0, float("nan"), float("inf"), True, [], {}, [3], 1 << 63, 10**400]


def test_what_is_left_out_is_0_and_a_count_is_itself() -> None:
    assert [number({"a": value}, "a") for value in (0, 7, (1 << 63) - 1, None)] == [0, 7, (1 << 63) - 1, 0]
    assert number({}, "a") == 0


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:20])
def test_anything_else_is_not_understood_in_a_result_and_not_shown_in_progress(value: Any) -> None:
    with pytest.raises(KopiatomicError) as caught, understood("kopia"):
        number({"numFailed": value}, "numFailed")
    assert caught.value.kind == "output-not-understood"
    assert caught.value.message.startswith("kopia's output is not understood: its number numFailed is ")
    assert len(caught.value.message) < 200
    assert about({"a": value}, "a") is None


@pytest.mark.parametrize("value", ODD[:-1], ids=lambda value: repr(value)[:20])
def test_odd_progress_ends_nothing(value: Any) -> None:
    restic = {"message_type": "status", "files_done": value, "bytes_done": value, "total_bytes": value}
    borg = {"type": "archive_progress", "nfiles": value, "original_size": value}
    shown = ResticOutput().feed("stdout", json.dumps(restic).encode() + b"\n")
    shown += BorgOutput().feed("stderr", json.dumps(borg).encode() + b"\n")
    assert shown == [Progress(None, None, None)] * 2
    line = f" | 1 hashing, 1 hashed ({'9' * 400} EB), 1 cached (1 B), uploaded 1 B, estimating..."
    assert parse_progress(line) is None


def test_what_is_of_another_shape_is_not_understood_either() -> None:
    for fault in (lambda: dict[str, int]()["x"], lambda: "".nothing, lambda: len(3), lambda: int("x"), lambda: 1 / 0):  # type: ignore[attr-defined,arg-type]
        with pytest.raises(KopiatomicError) as caught, understood("borg"):
            fault()
        assert caught.value.message.startswith("borg's output is not understood: ")
        assert "(test_numbers.py:" in caught.value.message
    with pytest.raises(OSError, match="no"), understood("borg"):
        raise OSError("no")
    assert issubclass(OddNumberError, ValueError)
