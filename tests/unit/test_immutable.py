"""Values that never change, whatever is tried."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, field, replace

import pytest

from kopiatomic.immutable import immutable


@immutable
class Point:
    x: int
    y: int = 2
    note: str = field(default="", compare=False)
    tags: list[str] = field(default_factory=list, repr=False)


@immutable
class Named(Point):
    name: str = field(default="", kw_only=True)


@immutable
class Nothing:
    pass


POINT = Point(1, tags=["a"])


@pytest.mark.parametrize(
    "change",
    [
        lambda: setattr(POINT, "x", 3),
        lambda: setattr(POINT, "x", 1),
        lambda: delattr(POINT, "x"),
        lambda: setattr(Named(1, name="a"), "name", "b"),
    ],
)
def test_nothing_changes_it(change: Callable[[], None]) -> None:
    with pytest.raises(FrozenInstanceError):
        change()
    assert Point(1, tags=["a"]) == POINT


def test_it_has_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        POINT.z = 3  # type: ignore[attr-defined]


def test_it_equals_what_has_the_same_fields_and_class() -> None:
    assert Point(1, note="a") == Point(1, note="b")
    assert Point(1) != Point(2)
    assert Point(1) != Named(1)
    assert Named(1, name="a") == Named(1, name="a") != Named(1, name="b")
    assert Nothing() == Nothing()


def test_it_is_hashed_as_it_is_compared() -> None:
    @immutable
    class Key:
        a: str
        b: tuple[int, ...] = ()
        seen: int = field(default=0, compare=False)

    assert len({Key("a", (1,), seen=1), Key("a", (1,), seen=2), Key("b")}) == 2
    assert len({Nothing(), Nothing()}) == 1
    with pytest.raises(TypeError):
        hash(POINT)


def test_it_is_copied_pickled_and_replaced() -> None:
    for made in (copy.copy(POINT), copy.deepcopy(POINT), pickle.loads(pickle.dumps(POINT))):  # noqa: S301 - our own
        assert made == POINT
        assert made is not POINT
    assert replace(POINT, x=5) == Point(5, tags=["a"])
    assert asdict(Named(1, name="n")) == {"x": 1, "y": 2, "note": "", "tags": [], "name": "n"}
    assert repr(Named(1, name="n")) == "Named(x=1, y=2, note='', name='n')"
