"""What is left out if one view has no room for all that is asked for, and how a plan of very many datasets stays short. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from kopiatomic.model.plan import Judged, Taken, Verdict
from kopiatomic.paths import common, tree_order
from kopiatomic.text import first_few

_NAMES = 32 << 20
"""Bytes that all names together may have: each is in records, lists and messages several times."""

_LISTED = 1000
"""Up to how many datasets that are not taken for the same reason have a line each."""

_Owner = tuple[str, int]
"""A kind of filesystem, and the user that owns the datasets."""


def fit(taken: Sequence[Taken], judged: Sequence[Judged], room: int | None) -> tuple[list[Taken], list[Judged]]:
    """Take what was named, then the datasets of the owners with the fewest, as long as there is room.

    Of the first owner whose datasets do not all fit, the highest ones are taken, always the same. The rest gets one verdict for
    each owner. ``room`` is how many datasets a view can show; None: any number.
    """
    if _Left(room).takes(taken):
        return list(taken), list(judged)
    left = _Left(room)
    named = [one for one in taken if one.named]
    left.takes(named)
    owners: dict[_Owner, list[Taken]] = {}
    for one in taken:
        if not one.named:
            owners.setdefault((one.dataset.kind, one.owner), []).append(one)
    fitting = set(map(_key, named))
    verdicts = []
    for owner, theirs in sorted(owners.items(), key=lambda item: (len(item[1]), item[0])):
        theirs.sort(key=lambda one: (one.place.count("/"), tree_order(one.place)))
        rest = [one for one in theirs if not left.takes([one])]
        fitting.update(map(_key, theirs[: len(theirs) - len(rest)]))
        if rest:
            verdicts.append(_no_room(owner, rest, len(theirs), room))
    kept = [one for one in judged if one.verdict is not Verdict.TAKEN or (one.kind, one.name) in fitting]
    return [one for one in taken if _key(one) in fitting], kept + verdicts


class _Left:
    """The room that is left; once it was too little, nothing more is taken."""

    def __init__(self, room: int | None) -> None:
        self._places = float("inf") if room is None else room
        self._names = _NAMES

    def takes(self, several: Iterable[Taken]) -> bool:
        """Whether all of these fit as well."""
        for one in several:
            self._places -= len(one.places)
            self._names -= len(one.dataset.name)
        return self._places >= 0 and self._names >= 0


def _key(taken: Taken) -> tuple[str, str]:
    return taken.dataset.kind, taken.dataset.name


def _no_room(owner: _Owner, rest: Sequence[Taken], count: int, room: int | None) -> Judged:
    filesystem, user = owner
    names = [one.dataset.name for one in rest]
    whose = f"{len(rest)} of the {count} that are those of the user with the id {user}"
    limit = "" if room is None else f": this system has room for {room} (fs.mount-max, memory)"
    return Judged(
        common(names),
        filesystem,
        Verdict.NO_ROOM,
        f"{whose} have no room in one view{limit}: {first_few(names)}",
        incomplete=True,
        hint="Back some of them up with a command of their own, leave them out (--exclude), or raise 'sysctl fs.mount-max'.",
        count=len(rest),
        owner=user,
    )


def fold(judged: Iterable[Judged]) -> Iterator[Judged]:
    """Yield the verdicts; of very many alike, yield one for all of an owner's."""
    alike: dict[tuple[object, ...], list[Judged]] = {}
    for one in judged:
        if one.verdict is Verdict.TAKEN:
            yield one
        else:
            alike.setdefault((one.kind, one.verdict, one.incomplete, one.owner), []).append(one)
    for several in alike.values():
        if len(several) <= _LISTED:
            yield from several
            continue
        names = [one.name for one in several]
        reasons = {one.reason for one in several}
        why = several[0].reason if len(reasons) == 1 else f"for {several[0].verdict}"
        count = sum(one.count for one in several)
        reason = f"{count} in there, {first_few(names)}: {why}"
        yield replace(several[0], name=common(names), reason=reason, mountpoint="", facts={}, count=count)
