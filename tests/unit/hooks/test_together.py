"""Several writers: held in order, released in reverse, all released if one cannot be held; and which kinds there are."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.hooks import kinds
from kopiatomic.hooks.holder import Held, Wanted
from kopiatomic.hooks.together import Together
from kopiatomic.model.leftovers import Intent
from tests.unit.support.holders import (
    WITHIN,
    Grouped,
    around,
    counter,
    counts,
    eventually,
    group,
    holder_of,
)

__all__ = ["group"]


class Noted:
    """A holder that writes down what is asked of it, and fails at one of the calls."""

    def __init__(self, label: str, calls: list[str], fails_at: str = "", *, required: bool = True) -> None:
        self.label = label
        self.wanted = Wanted("noted", required=required)
        self._calls = calls
        self._fails_at = fails_at
        self.is_held = False

    def _note(self, call: str) -> None:
        self._calls.append(f"{call} {self.label}")
        if call == self._fails_at:
            self.is_held = False
            raise KopiatomicError(f"{self.label} failed", kind="noted")

    def intents(self) -> Sequence[Intent]:
        self._note("intents")
        return (Intent("noted", "", self.label),)

    def prepare(self, _deadline: float) -> None:
        self._note("prepare")

    def hold(self, _deadline: float) -> None:
        self._note("hold")
        self.is_held = True

    def settle(self) -> None:
        self._note("settle")

    def release(self) -> Held:
        self._note("release")
        self.is_held = False
        return Held(self.label, 1, True, "")

    def close(self) -> None:
        self._calls.append(f"close {self.label}")
        self.is_held = False


def test_all_are_held_in_order_and_released_in_reverse() -> None:
    calls: list[str] = []
    with Together([Noted(label, calls) for label in "ab"]) as together:
        assert [intent.name for intent in together.intents()] == ["a", "b"]
        together.prepare()
        together.hold()
        assert [held.label for held in together.release()] == ["a", "b"]
    begun = [f"{call} {label}" for call in ("intents", "prepare", "hold", "settle") for label in "ab"]
    assert calls == [*begun, "release b", "release a", "close b", "close a"]


def _hold(together: Together) -> None:
    with together:
        together.prepare()
        together.hold()


@pytest.mark.parametrize("at", ["prepare", "hold", "settle"])
def test_all_are_released_if_one_cannot_be_held(at: str) -> None:
    calls: list[str] = []
    holders = [Noted("a", calls), Noted("b", calls, at), Noted("c", calls)]
    with pytest.raises(KopiatomicError, match="b failed"):
        _hold(Together(holders))
    assert not any(holder.is_held for holder in holders)
    # What fails may take its time to end, and the others are held meanwhile.
    assert calls[-3:] == ["close c", "close a", "close b"]


def test_what_is_held_does_not_wait_for_the_end_of_what_failed(tmp_path: Path) -> None:
    """A command that does not end with its input is killed two seconds later."""
    lock = tmp_path / "lock"
    lines = [
        f"touch {lock}; echo held; read -r line; rm {lock}",
        f"while [ -e {lock} ]; do sleep 0.01; done; touch {lock}.gone",
    ]
    wanted = [
        Wanted("command", str(number), 0.3, settings={"command": ["sh", "-c", line]})
        for number, line in enumerate(lines)
    ]
    with pytest.raises(KopiatomicError, match="could not be held"):
        _hold(Together([holder_of(kinds.find(one, around())) for one in wanted]))
    assert (tmp_path / "lock.gone").exists()


@pytest.mark.parametrize("at", ["intents", "prepare", "hold", "settle"])
def test_what_is_not_required_is_left_out(at: str) -> None:
    calls: list[str] = []
    holders = [Noted("a", calls), Noted("b", calls, at, required=False), Noted("c", calls)]
    with Together(holders) as together:
        together.intents()
        together.prepare()
        together.hold()
        assert [error.message for error in together.left_out] == ["b failed"]
        assert (holders[0].is_held, holders[1].is_held, holders[2].is_held) == (True, False, True)
        assert [held.label for held in together.release()] == ["a", "c"]
    assert calls.count("close b") == 1


def test_the_others_are_released_whatever_fails() -> None:
    calls: list[str] = []
    holders = [Noted("a", calls), Noted("b", calls, "release")]
    with Together(holders) as together:
        together.prepare()
        together.hold()
        assert [(held.label, held.proven, held.why) for held in together.release()] == [
            ("a", True, ""),
            ("b", False, "b failed"),
        ]
    assert not any(holder.is_held for holder in holders)


def test_real_ones_are_held_at_one_time_and_all_released_after_a_kill(group: Grouped, tmp_path: Path) -> None:
    file, lock = tmp_path / "count", tmp_path / "lock"
    group.start(*counter(file))
    assert eventually(file.exists)
    line = ["sh", "-c", f"touch {lock}; echo held; read -r line; rm {lock}; true"]
    wanted = [Wanted("cgroup", group.path), Wanted("command", settings={"command": line})]

    def all_of_them() -> Together:
        return Together([holder_of(kinds.find(one, around())) for one in wanted])

    with all_of_them() as together:
        together.prepare()
        together.hold()
        assert lock.exists()
        assert not counts(file)
        assert [held.proven for held in together.release()] == [True, True]
        assert not lock.exists()
        assert counts(file)
    pid = os.fork()
    if pid == 0:
        together = all_of_them()
        together.prepare()
        together.hold()
        time.sleep(60)
        os._exit(0)
    assert eventually(lambda: lock.exists() and group.is_frozen())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert eventually(lambda: not group.is_frozen(), WITHIN)
    # When they have their turn again is for the machine to say.
    assert eventually(lambda: not lock.exists() and counts(file), 20)


@pytest.mark.parametrize("name", kinds.KINDS)
def test_each_kind_has_the_name_that_it_is_found_by(name: str) -> None:
    kind = kinds.of(name)
    assert kind.name == name
    assert set(kind.programs) <= kind.settings.keys()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("postgres", "Did you mean postgresql?"),
        (
            "sqlite",
            "There are: postgresql, mariadb, mysql, unit, container, cgroup, command (the last in a profile only). "
            "What has all its files in one directory, as SQLite and Redis, needs none.",
        ),
    ],
)
def test_a_kind_that_does_not_exist_is_refused_with_what_was_meant(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        kinds.find(Wanted(name), around())
    assert (caught.value.message, caught.value.hint) == (f"--hold {name}: there is no such kind of writer", hint)
