"""What a plan says of the writers that are wanted: also where it cannot ask."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from types import MappingProxyType

import pytest

from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.hooks import kinds
from kopiatomic.hooks.holder import Around, Finding, Wanted
from kopiatomic.model.plan import Dataset, Plan, PlannedPath, Taken
from kopiatomic.model.report import WriterReport
from kopiatomic.output import document, summary
from kopiatomic.runs import holds
from tests.unit.support.reports import finished


class _Toy:
    """A kind whose names say what there is."""

    name = "toy"
    settings: Mapping[str, type] = MappingProxyType({})
    programs = ()

    def find(self, wanted: Wanted, _around: Around) -> list[Finding]:
        if wanted.name == "down":
            return [Finding("toy down", "is down: nothing to hold")]
        if wanted.name == "outside":
            return [Finding("toy outside", "/srv is on ext4: NOT in this backup", in_backup=False)]
        if wanted.name == "shut":
            raise PermissionError(errno.EACCES, "Permission denied", "/srv/data")
        if not wanted.name:
            raise UsageError("--hold toy: it needs a name", kind="hold-name")
        raise KopiatomicError(f"--hold {wanted}: no server is there", kind="hold-no-server")


TOY = _Toy()


def foreseen(name: str, *, as_root: bool) -> tuple[list[WriterReport], KopiatomicError | None]:
    plan = finished().plan
    assert plan is not None
    return holds.foreseen(Wanted("toy", name), plan, {}, as_root=as_root)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kinds.KINDS, "toy", (__name__, "TOY"))


@pytest.mark.parametrize(
    ("name", "text", "needed", "problem"),
    [
        ("down", "is down: nothing to hold", False, ""),
        ("outside", "/srv is on ext4: NOT in this backup", True, "hold-not-in-backup"),
        ("shut", "cannot be held", True, "system"),
        ("gone", "cannot be held", True, "hold-no-server"),
    ],
)
def test_what_root_is_told(name: str, text: str, needed: bool | None, problem: str) -> None:
    ((found,), error) = foreseen(name, as_root=True)
    assert (found.text, found.needed, error.kind if error else "") == (text, needed, problem)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("down", "not known without root: only root sees for certain that nothing must be held"),
        ("outside", "/srv is on ext4: NOT in this backup"),
        (
            "shut",
            "not known without root: the system refused something that kopiatomic needs: Permission denied (/srv/data)",
        ),
        ("gone", "not known without root: no server is there"),
    ],
)
def test_others_are_never_told_that_nothing_must_be_held(name: str, text: str) -> None:
    ((found,), _) = foreseen(name, as_root=False)
    assert found.text == text
    assert found.needed is (True if name == "outside" else None)


def sought(*wanted: Wanted) -> tuple[list[holds.Writer], list[str]]:
    """What a run finds, and why what is not required is left out."""
    plan = finished().plan
    assert plan is not None
    left_out: list[str] = []
    return holds.find(wanted, plan, {}, lambda error: left_out.append(error.kind)), left_out


@pytest.mark.parametrize(
    ("name", "kind", "line"),
    [
        ("outside", "hold-not-in-backup", "toy outside NOT held: /srv is on ext4: NOT in this backup"),
        ("gone", "hold-no-server", "toy:gone NOT held: no server is there"),
    ],
)
def test_what_is_not_required_and_cannot_be_held_is_said(name: str, kind: str, line: str) -> None:
    (writer,), left_out = sought(Wanted("toy", name, required=False))
    assert (left_out, writer.holder) == ([kind], None)
    report = finished()
    report.writers = [writer.report]
    assert summary.held(document.writers(report)) == [f"Held:     {line}"]
    with pytest.raises(KopiatomicError) as caught:
        sought(Wanted("toy", name))
    assert caught.value.kind == kind


def test_a_writer_that_is_wanted_twice_is_found_once() -> None:
    down, other = Wanted("toy", "down"), Wanted("toy", "down", settings={"x": 1})
    assert [one.report.label for one in sought(down, down)[0]] == ["toy down"]
    known = holds.Known()
    # Other settings may mean another one, of which report and history have a line of its own.
    pairs = [(down, "toy down"), (Wanted("toy", ""), "toy down"), (other, "toy down"), (down, "toy up")]
    assert [known.added(one, label) for one, label in pairs] == ["toy down", None, "toy down (2)", "toy up"]
    assert [one.report.label for one in sought(down, other)[0]] == ["toy down", "toy down (2)"]


@pytest.mark.parametrize(
    ("datasets", "spans"),
    [
        ([("zfs", "tank/a", "tank"), ("zfs", "tank/b", "tank")], False),
        ([("zfs", "tank/a", "tank"), ("zfs", "other/a", "other")], True),
        ([("btrfs", "/a", "uuid")], False),
        ([("btrfs", "/a", "uuid"), ("btrfs", "/b", "uuid")], True),
        ([("zfs", "tank/a", "tank"), ("btrfs", "/a", "tank")], True),
    ],
)
def test_what_is_frozen_spans_what_may_be_of_several_instants(
    datasets: list[tuple[str, str, str]], spans: bool
) -> None:
    """A pool is of one instant, subvolumes are only by chance."""
    taken = [Taken(Dataset(*words, PlannedPath(f"/{words[1]}")), f"/{words[1]}", named=True) for words in datasets]
    plan = Plan("/kopia", tuple(taken))
    assert holds.reported(Finding("x", "frozen", frozen=True), plan).spanning is spans
    assert not holds.reported(Finding("x", "locked"), plan).spanning


@pytest.mark.parametrize("as_root", [True, False])
def test_words_that_make_no_sense_are_refused(as_root: bool) -> None:
    with pytest.raises(UsageError):
        foreseen("", as_root=as_root)
