"""In place: what must be shown so that only root can move what lies above a place. Pure.

Between ``/`` and a place, a directory is live only if root alone can move its entry on the way. If a part of a dataset is not
safe in it, the whole dataset is frozen. If a mount point is not, one of our directories hides the directory that it is in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from kopiatomic.errors import KopiatomicError
from kopiatomic.model.plan import Hidden, Taken
from kopiatomic.paths import is_at_or_below, parents, tree_order
from kopiatomic.text import printable

_UNKNOWN = "somebody (it was not looked at)"


def whole(taken: Sequence[Taken], movers: Mapping[str, str]) -> list[Taken]:
    """Return the same, shown whole if others could move one of the parts. ``movers`` as in the facts."""
    return [replace(one, whole=_who_moves_a_part(one, movers)) for one in taken]


def _who_moves_a_part(taken: Taken, movers: Mapping[str, str]) -> str:
    if taken.parts == ("",):
        return ""
    entries = (
        entry
        for place in taken.places
        for entry in _way(place)
        if entry != taken.place and is_at_or_below(entry, taken.place)
    )
    return next((who for entry in entries if (who := movers.get(entry, _UNKNOWN))), "")


def hidden(
    taken: Sequence[Taken],
    movers: Mapping[str, str],
    scaffolds: Collection[str],
    live: Collection[str],
) -> list[Hidden]:
    """Return the directories that must not be seen as they are, in tree order.

    ``scaffolds`` are our own directories, ``live`` is what is seen as it is in frozen trees. Raises KopiatomicError if that is
    ``/``, which nothing can replace.
    """
    still = {*(place for one in taken for place, _ in one.shown), *scaffolds}
    found: dict[str, Hidden] = {}
    for one in taken:
        for place, _ in one.shown:
            directory, holder = "/", None
            for entry in _way(place):
                # The directory that holds the entry, and the nearest one at or above it that does not simply show the host's.
                above, directory = directory, entry
                if above in still or above in live:
                    holder = above
                if holder in still:
                    continue
                who = movers.get(entry, _UNKNOWN)
                if not who:
                    continue
                if above == "/":
                    raise _not_even_the_root(one, place, who)
                found[above] = Hidden(above, who, place)
                still.add(above)
                break
    return sorted(found.values(), key=lambda h: tree_order(h.directory))


def _way(place: str) -> Iterator[str]:
    """Yield the entries on the way from ``/`` to a place, including the place."""
    return reversed([place, *parents(place)][:-1]) if place != "/" else iter(())


def _not_even_the_root(taken: Taken, place: str, who: str) -> KopiatomicError:
    return KopiatomicError(
        f"{printable(taken.dataset.name)} has no safe place at {printable(place)}: {who} can change the directory /",
        kind="place-not-safe",
        hint="Give / back to root alone (chown root: /; chmod 755 /), or use --layout merged.",
    )
