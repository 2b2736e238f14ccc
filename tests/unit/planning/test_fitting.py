"""Where not all has room in one view: who is served first, what the rest is told, and how a long plan stays short."""

from __future__ import annotations

from collections.abc import Iterator

from kopiatomic.model.plan import Dataset, Judged, PlannedPath, Taken, Verdict
from kopiatomic.paths import common
from kopiatomic.planning.fitting import fit, fold


def of(owner: int, *paths: str, named: bool = False) -> Iterator[Taken]:
    for path in paths:
        yield Taken(Dataset("btrfs", path, "uuid", PlannedPath(path)), path, named=named, owner=owner)


def judged(taken: list[Taken]) -> list[Judged]:
    return [Judged(one.dataset.name, "btrfs", Verdict.TAKEN, "-r", owner=one.owner) for one in taken]


def names(taken: list[Taken]) -> list[str]:
    return [one.dataset.name for one in taken]


MANY = [f"/home/eve/{number}" for number in range(100)]


def test_all_is_taken_where_it_has_room() -> None:
    taken = [*of(0, "/home", named=True), *of(1, *MANY)]
    for room in (None, 101, 1000):
        assert fit(taken, judged(taken), room) == (taken, judged(taken))


def test_the_named_come_first_and_then_the_owners_with_the_fewest() -> None:
    taken = [
        *of(3, *MANY),
        *of(2, "/home/bob/a", "/home/bob/b"),
        *of(1, "/home/ann/a"),
        *of(3, "/home/eve", named=True),
        *of(0, "/home", named=True),
    ]
    kept, verdicts = fit(taken, judged(taken), 4)
    assert set(names(kept)) == {"/home", "/home/eve", "/home/ann/a", "/home/bob/a"}
    rest = [one for one in verdicts if one.verdict is not Verdict.TAKEN]
    assert {(one.name, one.verdict, one.count, one.owner, one.incomplete) for one in rest} == {
        ("/home/bob/b", Verdict.NO_ROOM, 1, 2, True),
        ("/home/eve", Verdict.NO_ROOM, 100, 3, True),
    }
    assert {one.name for one in verdicts if one.verdict is Verdict.TAKEN} == set(names(kept))


def test_of_the_first_owner_without_room_those_that_lie_highest_are_taken() -> None:
    """A nested one is of no use without what it lies in; and every night it is the same ones."""
    taken = [*of(0, "/home", named=True), *of(1, "/home/b/x/y", "/home/b", "/home/b/x", "/home/a")]
    kept, verdicts = fit(taken, judged(taken), 4)
    assert set(names(kept)) == {"/home", "/home/a", "/home/b", "/home/b/x"}
    (rest,) = [one for one in verdicts if one.verdict is Verdict.NO_ROOM]
    assert rest.reason.startswith("1 of the 4 that are those of the user with the id 1 have no room in one view")


def test_what_was_named_is_taken_whatever_room_there_is() -> None:
    taken = [*of(0, "/a", "/b", named=True), *of(0, "/a/nested")]
    kept, _ = fit(taken, judged(taken), 1)
    assert names(kept) == ["/a", "/b"]


def test_a_part_needs_room_as_a_whole_does() -> None:
    parts = Taken(Dataset("btrfs", "/a", "uuid", PlannedPath("/a")), "/a", named=True, parts=("x", "y"))
    taken = [parts, *of(0, "/b")]
    assert fit(taken, judged(taken), 2)[0] == [parts]
    assert fit(taken, judged(taken), 3)[0] == taken
    assert fit(taken, judged(taken), None)[0] == taken


def test_names_have_room_in_records_and_lists() -> None:
    long = [f"/home/eve/{number:05}{'x' * 4000}" for number in range(9000)]
    taken = [*of(0, "/home", named=True), *of(1, "/home/ann"), *of(2, *long)]
    kept, verdicts = fit(taken, judged(taken), None)
    assert 2 < len(kept) < len(taken)
    assert sum(map(len, names(kept))) <= 32 << 20
    assert [one.count for one in verdicts if one.verdict is Verdict.NO_ROOM] == [len(taken) - len(kept)]


def test_very_many_that_are_alike_have_one_verdict_for_each_owner() -> None:
    taken = [Judged("/home", "btrfs", Verdict.TAKEN, "it was named")]
    alike = [
        Judged(f"/home/{owner}/{number}", "btrfs", Verdict.NOT_ASKED_FOR, "why", owner=owner)
        for owner in (1, 2)
        for number in range(2000)
    ]
    other = [Judged(f"/home/3/{number}", "btrfs", Verdict.EXCLUDED, f"{number}", owner=3) for number in range(1000)]
    folded = list(fold([*taken, *alike, *other]))
    assert folded[0] == taken[0]
    assert folded[3:] == other
    assert [(one.name, one.count, one.owner) for one in folded[1:3]] == [("/home/1", 2000, 1), ("/home/2", 2000, 2)]
    assert folded[1].reason == "2000 in there, /home/1/0, /home/1/1, /home/1/2 and 1997 more: why"


def test_what_holds_several() -> None:
    assert common(["/a/b/c", "/a/b/d/e"]) == "/a/b"
    assert common(["/a/b", "/a/b/c"]) == "/a/b"
    assert common(["/a", "/b"]) == "/"
    assert common(["/"]) == "/"
    assert common(["/a-b/x", "/a/x"]) == "/"
    assert common(["tank/a", "tank/b"]) == "tank"
