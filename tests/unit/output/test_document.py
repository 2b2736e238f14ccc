"""The JSON document is what its schema says, whatever became of the run."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from jsonschema import Draft202012Validator

from kopiatomic import errors
from kopiatomic.model.report import Report
from kopiatomic.output.document import document, instant_text
from tests.support.programs import Kopiatomic
from tests.support.schema import schema, valid
from tests.unit.support.reports import failed, finished, held, interrupted, several


def objects(node: Any) -> list[dict[str, Any]]:
    """All schemas of objects with named members."""
    found = [node] if isinstance(node, dict) and "properties" in node else []
    inside = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return found + [deeper for value in inside for deeper in objects(value)]


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(schema())


def test_the_schema_names_every_member_and_allows_no_other() -> None:
    for described in objects(schema()):
        assert described["additionalProperties"] is False
        assert sorted(described["required"]) == sorted(described["properties"])


def test_the_schema_says_what_the_document_has_at_its_top() -> None:
    assert list(schema()["properties"]) == list(document(finished()))
    assert all("description" in member for member in schema()["properties"].values())


@pytest.mark.parametrize(
    "report",
    [
        pytest.param(Report("", ""), id="nothing known"),
        pytest.param(finished(), id="saved"),
        pytest.param(several(), id="several sets"),
        pytest.param(replace(several(), writers=held()), id="writers"),
        pytest.param(failed(), id="failed"),
        pytest.param(interrupted(), id="interrupted"),
    ],
)
def test_every_report_is_a_valid_document(report: Report) -> None:
    found = valid(json.dumps(document(report)))
    assert (found["exit_code"], found["result"]) == (report.exit_code, report.result)


def test_of_very_many_datasets_the_first_are_listed_and_the_others_counted() -> None:
    """Every run's document is kept, for as long as its history is."""
    report = finished(*(f"/home/{number}" for number in range(10_002)))
    found = valid(json.dumps(document(report)))
    assert len(found["datasets"]) == len(found["sets"][0]["snapshots"]) == 10_000
    assert found["not_listed"] == {"datasets": 2, "snapshots of tank": 2}
    assert document(finished())["not_listed"] == {}


def test_the_schema_refuses_what_is_something_else() -> None:
    good = document(finished())
    changes: list[dict[str, Any]] = [
        {"exit_code": "0"},
        {"result": "x"},
        {"instant": "today"},
        {"more": 1},
        {"sets": [{}]},
    ]
    for change in changes:
        with pytest.raises(jsonschema.ValidationError):
            valid(json.dumps(good | change))


def test_bytes_that_are_not_utf8_come_back_as_they_were() -> None:
    report = finished(os.fsdecode(b"/caf\xe9\n"))
    text = json.dumps(document(report))
    assert text.isascii()
    assert os.fsencode(json.loads(text)["datasets"][0]["mountpoint"]) == b"/caf\xe9\n"


def test_an_instant_is_told_to_the_microsecond_and_never_later_than_it_was() -> None:
    assert instant_text(1_000_000_000_123_456_789) == "2001-09-09T01:46:40.123456Z"
    assert instant_text(999_999_999) == "1970-01-01T00:00:00.999999Z"


@pytest.mark.parametrize(
    ("args", "code", "kind"),
    [
        (("--json", "--frobnicate"), errors.USAGE, "usage"),
        (("--json",), errors.USAGE, "no-arguments"),
        (("--json", "-n", "/no/such/path"), errors.FAILED, "no-such-path"),
        (("--json", "-n", "--name", "..", "tank"), errors.USAGE, "bad-name"),
        (("--json", "-n", "/proc"), errors.FAILED, "unsupported-filesystem"),
    ],
)
def test_real_refusals_are_valid_documents(args: tuple[str, ...], code: int, kind: str, kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic(*args)
    found = valid(ended.stdout)
    assert (ended.returncode, found["exit_code"], found["error"]["kind"]) == (code, code, kind)
