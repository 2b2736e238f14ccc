"""Whether every mount is in what an engine saved, by what it lists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kopiatomic.engines.listing import Listing, left_out, pattern
from kopiatomic.model.plan import Layout, Plan
from kopiatomic.state import locks
from kopiatomic.system.lines import LONGEST_DOCUMENT, LONGEST_LINE, JsonLines
from tests.unit.support.engine_bench import EngineBench
from tests.unit.support.kopia_fixtures import make_job, taken

PLAN = Plan("/kopia", (taken("/home"), taken("/home/ann"), taken("/")))


def listing(plan: Plan = PLAN, filled: list[str] | None = None) -> Listing:
    return Listing("x", make_job(plan, filled=filled), "?")


def test_what_is_not_listed_is_lacking() -> None:
    lacking = listing().lacking()
    assert len(lacking) == 3
    assert all("is not in what x saved" in text for text in lacking)


def test_what_is_listed_with_something_in_it_is_there() -> None:
    found = listing()
    for path, kind in (("/kopia", "d"), ("/kopia/home/", "d"), ("kopia/home/ann", "d"), ("/kopia/home/ann/f", "?")):
        found.take(path, kind)
    assert found.lacking() == []


def test_what_lies_in_no_source_is_named() -> None:
    plan = EngineBench.plan_of(Path("/home"), Path("/srv/a"))
    found = listing(plan)
    for path in ("/home", "home/ann/f", "/srv/a", "/srv/a/b"):
        found.take(path, "f")
    assert found.outside == ""
    found.take("/srv/ab", "f")
    found.take("/etc/shadow", "f")
    assert found.outside == "srv/ab"
    whole = listing(EngineBench.plan_of(Path("/")))
    whole.take("/etc/shadow", "f")
    assert whole.outside == ""


def test_an_empty_one_is_lacking_only_if_its_dataset_is_not() -> None:
    for filled, lacks in ((["/home/ann"], 1), ([], 0)):
        found = listing(filled=filled)
        for path in ("/kopia", "/kopia/home", "/kopia/home/ann"):
            found.take(path, "d")
        assert len(found.lacking()) == lacks


def test_a_file_in_the_place_of_a_directory_is_lacking() -> None:
    found = listing(filled=[])
    for path, kind in (("/kopia", "d"), ("/kopia/home", "f"), ("/kopia/home/ann", "d")):
        found.take(path, kind)
    assert [text.partition(" ")[0] for text in found.lacking()] == ["/home"]


def test_the_root_of_all_needs_no_entry_of_its_own() -> None:
    plan = EngineBench.plan_of(Path("/"))
    found = listing(plan)
    assert "is empty" in found.lacking()[0]
    found.take("/etc", "d")
    assert found.lacking() == []


def test_where_runs_have_their_directories_in_a_source_those_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "DIRECTORY", "/var/run/kopiatomic")
    for source, left in (("/var", ["/var/run/kopiatomic"]), ("/home", [])):
        assert left_out(EngineBench.plan_of(Path(source))) == left
    assert left_out(EngineBench.plan_of(Path("/"))) == ["/dev", "/proc", "/run", "/sys", "/var/run/kopiatomic"]


def test_only_in_place_something_is_left_out() -> None:
    plan = replace(EngineBench.plan_of(Path("/")), writable=("/home/x",))
    assert left_out(plan) == ["/dev", "/home/x", "/proc", "/run", "/sys"]
    assert left_out(replace(plan, layout=Layout.MERGED)) == []
    assert left_out(EngineBench.plan_of(Path("/home"))) == []


def test_what_is_left_out_may_be_empty() -> None:
    plan = replace(EngineBench.plan_of(Path("/data"), Path("/data/cache")), writable=("/data/cache",))
    found = listing(plan)
    for path in ("/data", "/data/f", "/data/cache"):
        found.take(path, "d")
    assert found.lacking() == []


def test_names_are_meant_literally() -> None:
    assert pattern("/a*b/[c]?") == "/a[*]b/[[]c][?]/*"


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_lines_of_json_and_others(size: int) -> None:
    data = b'{"a": "\xc2\xa0\\u200b"}\nplain \x1b\n[1]\n{"b": \n{"c": 1}'
    lines = JsonLines()
    found = [f for i in range(0, len(data), size) for f in lines.feed(data[i : i + size])] + list(lines.feed(b""))
    assert found == [{"a": "\xa0\u200b"}, "plain \\x1b", "[1]", '{"b": ', {"c": 1}]


def test_a_line_without_end_is_cut() -> None:
    lines = JsonLines()
    found = [f for _ in range(5) for f in lines.feed(b"{" * LONGEST_DOCUMENT)]
    assert max(len(f) for f in found) <= LONGEST_LINE
