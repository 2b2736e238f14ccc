"""From facts and a request to a plan: what is taken and where it appears; what is not taken, and why. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from kopiatomic.errors import KopiatomicError, UsageError, place_needed
from kopiatomic.filesystems import KINDS, kind_of
from kopiatomic.filesystems.kind import Chooser
from kopiatomic.filesystems.selection import Selection, not_a_dataset
from kopiatomic.model.facts import NO_DATASET, Facts
from kopiatomic.model.fstypes import PSEUDO, SYSTEM, may_hang
from kopiatomic.model.mounts import Mount, holder, place_in
from kopiatomic.model.plan import (
    MIGHT_HANG,
    UNMOUNTED,
    VOLUMES,
    Hidden,
    Judged,
    Layout,
    Plan,
    Refusal,
    Taken,
    Uncovered,
    Verdict,
)
from kopiatomic.model.request import Request, is_path, is_pattern
from kopiatomic.paths import below, is_at_or_below, parents, tree_order
from kopiatomic.planning import shielding
from kopiatomic.planning.fitting import fit, fold
from kopiatomic.text import printable


def select(facts: Facts, request: Request, refused: Iterable[Refusal] = ()) -> Plan:
    """Choose the datasets. Raises KopiatomicError if a named one cannot be taken, UsageError if nothing was named.

    ``refused`` is what turned out not to be takeable after the facts were gathered.
    """
    require_names(request)
    shared = Selection(facts, request, refused)
    choosers = {name: kind.selection(shared) for name, kind in KINDS.items()}
    for name in request.names:
        _ask_for(name, shared, choosers)
    for chooser in choosers.values():
        if request.everything:
            chooser.ask_for_everything()
        if request.by_property:
            chooser.ask_by_property()
    judged = [one for chooser in choosers.values() for one in chooser.judge()]
    shared.say_deleted()
    _check_excluding(shared)
    if not shared.taken:
        raise _nothing(request, facts, judged)
    _check_places(shared)
    fitting, judged = fit(shared.taken, judged, _room(shared))
    taken = sorted(fitting, key=lambda t: tree_order(t.place))
    if request.layout is Layout.IN_PLACE:
        _require_true_paths(taken)
        taken = shielding.whole(_seen_again(shared, taken), facts.movers)
    uncovered = _uncovered(shared, taken, judged)
    beside = _beside(shared, taken)
    live = {u.point for u in (*uncovered, *beside) if u.live}
    scaffolds = _scaffolds(shared, taken, live)
    hidden: list[Hidden] = []
    if request.layout is Layout.IN_PLACE:
        hidden = shielding.hidden(taken, facts.movers, scaffolds, live)
        uncovered, beside = _behind(taken, hidden, uncovered), _behind(taken, hidden, beside)
    bookmark = request.bookmark if any(KINDS[t.dataset.kind].has_bookmarks for t in taken) else ""
    if bookmark:
        shared.note(
            f"each ZFS dataset keeps one bookmark for --skip-unchanged, DATASET#{bookmark}: 'zfs rollback' to an older "
            "snapshot is refused without -r, which destroys it ('kopiatomic recover --forget' removes them all)"
        )
    order = list(KINDS)
    return Plan(
        root=request.root,
        taken=tuple(taken),
        scaffolds=tuple(scaffolds),
        judged=tuple(sorted(fold(judged), key=lambda j: (order.index(j.kind), tree_order(j.name)))),
        uncovered=tuple(uncovered),
        beside=tuple(beside),
        hidden=tuple(hidden),
        relit=tuple(_relit(taken, hidden, beside)),
        notes=tuple(shared.notes),
        layout=request.layout,
        live_system=request.live_system,
        bookmark=bookmark,
    )


def _room(shared: Selection) -> int | None:
    """Return how many datasets the view can show. In place each mount that stays visible may need one more."""
    room = shared.facts.room
    if room is None or shared.request.layout is not Layout.IN_PLACE:
        return room
    return max(0, room - len(shared.facts.mounts))


def require_names(request: Request) -> None:
    """Refuse a request for nothing. Raises UsageError."""
    if request.asks_for_nothing():
        raise UsageError(
            "no dataset was named",
            kind="no-arguments",
            hint="Name datasets (tank/home) or mount points (/home), or use -a for all that are mounted. See -h.",
        )
    if request.recursive and request.no_nested:
        raise UsageError(
            "-r and --no-nested exclude each other",
            kind="usage",
            hint="-r takes what is nested in the subvolumes that are named, --no-nested leaves it out.",
        )


def _ask_for(name: str, shared: Selection, choosers: Mapping[str, Chooser]) -> None:
    """Find out which dataset a name, a path or a pattern means."""
    facts = shared.facts
    path = facts.resolved.get(name)
    if path is None and is_pattern(name):
        if not sum(chooser.ask_by_pattern(name) for chooser in choosers.values()):
            raise KopiatomicError(
                f"the pattern {printable(name)} matches no dataset",
                kind="no-match",
                hint="* matches within one component, ** any number of them; 'zfs list' shows the names there are.",
            )
        return
    if path is None:
        any(chooser.ask_by_name(name) for chooser in choosers.values())
        return
    if path != (name.rstrip("/") or "/") and is_path(name) and name.startswith("/"):
        shared.note(f"{printable(name)} leads to {printable(path)}")
    mount = holder(path, shared.seen)
    kind = kind_of(mount)
    if kind is None:
        raise not_a_dataset(name, path, mount, partial=mount.root != "/")
    choosers[kind.name].ask_by_path(name, path, mount)


def _nothing(request: Request, facts: Facts, judged: Sequence[Judged]) -> KopiatomicError:
    if not judged:
        return KopiatomicError(
            "no mounted ZFS dataset and no mounted Btrfs subvolume was found",
            kind="nothing-found",
            hint=NO_DATASET if facts.jailed else "kopiatomic backs up ZFS and Btrfs; 'mount' shows what is mounted.",
        )
    incomplete = [j for j in judged if j.incomplete]
    missed = incomplete or judged
    hint = "Name what is to be taken, or leave out less (--exclude)."
    if facts.jailed and all(j.verdict is Verdict.NOT_THE_JAILS for j in judged if KINDS[j.kind].has_jails):
        hint = NO_DATASET
    elif len(incomplete) == 1 and incomplete[0].hint:
        hint = incomplete[0].hint
    elif request.by_property:
        hint += " No dataset has the property set to on."
    more = f"; and {len(missed) - 5} more" if len(missed) > 5 else ""
    return KopiatomicError(
        f"nothing is left to take: {'; '.join(f'{printable(j.name)}: {j.reason}' for j in missed[:5])}{more}",
        kind="nothing-left",
        hint=hint,
    )


def _check_excluding(shared: Selection) -> None:
    """Note patterns that exclude nothing: most likely a typo, and what was meant is now in the backup."""
    for pattern in shared.request.exclude:
        if pattern not in shared.excluding:
            shared.note(f"--exclude {printable(pattern)} matches nothing")


def _check_places(shared: Selection) -> None:
    """Refuse two datasets at one place: they would hide each other. Raises KopiatomicError."""
    known: dict[str, Taken] = {}
    for taken in shared.taken:
        for place in taken.places:
            other = known.setdefault(place, taken)
            if other is not taken:
                raise KopiatomicError(
                    f"{printable(other.dataset.name)} and {printable(taken.dataset.name)} would both appear at "
                    f"{printable(place)}",
                    kind="same-place",
                    hint="Leave one of them out (--exclude), or back them up with two commands and --name.",
                )
    homeless = [t.place for t in shared.taken if not t.dataset.mountpoint]
    needed = {top for top in (UNMOUNTED, VOLUMES) if any(is_at_or_below(place, top) for place in homeless)}
    for taken in shared.taken:
        for place in taken.places if taken.dataset.mountpoint else ():
            for top in needed:
                if is_at_or_below(place, top):
                    raise place_needed(f"{printable(taken.dataset.name)} would appear at {printable(place)}", top)


def _require_true_paths(taken: Sequence[Taken]) -> None:
    """Refuse, in place, any place but a dataset's own. Raises KopiatomicError."""
    for one in taken:
        if is_at_or_below(one.place, UNMOUNTED) or is_at_or_below(one.place, VOLUMES):
            raise KopiatomicError(
                f"{printable(one.dataset.name)} has no true path: it would appear at {printable(one.place)}",
                kind="no-true-path",
                hint="Use --layout merged for volumes and for what has no place of its own, or leave it out (--exclude).",
            )


def _seen_again(shared: Selection, taken: Sequence[Taken]) -> list[Taken]:
    """Add the other places at which parts of the same datasets are mounted: live, they would show another instant."""
    frozen = {place for one in taken for place in one.places}
    # If one is mounted twice, the place that is taken counts: it comes last.
    paths = [
        *(s.path for s in shared.facts.subvolumes),
        *(t.dataset.mountpoint.text for t in taken if t.dataset.mountpoint),
    ]
    tops: dict[str, dict[str, str]] = {}
    for path in paths:
        mount = holder(path, shared.seen)
        if mount.device:
            tops.setdefault(mount.device, {})[place_in(mount, path)] = path
    again: dict[str, list[tuple[str, str]]] = {}
    for point, mount in shared.seen.items():
        if point not in frozen and mount.device in tops:
            # In Btrfs one device number stands for the whole filesystem: choose the nearest subvolume above it.
            known = tops[mount.device]
            top = next((directory for directory in (mount.root, *parents(mount.root)) if directory in known), None)
            if top is not None:
                path = known[top]
                if path != point:
                    again.setdefault(path, []).append((point, below(mount.root, top)))
                    # What is nested in a frozen tree is an empty directory there.
                    for other, nested in tops[mount.device].items():
                        inside = below(other, mount.root)
                        if inside and f"{point}/{inside}" not in shared.seen:
                            again.setdefault(nested, []).append((f"{point}/{inside}", ""))
    return [replace(one, again=tuple(again.get(one.dataset.mountpoint.text, ()))) for one in taken]


def _scaffolds(shared: Selection, taken: Sequence[Taken], live: AbstractSet[str]) -> list[str]:
    """Return where something not taken lies between a taken dataset and one below it: a mount, or a nested subvolume.

    What lies in it is in no frozen tree, including the mount point of the lower dataset; and a frozen tree takes no new
    directory. What is seen ``live`` has all that is in it.
    """
    places = {place for t in taken for place in (*t.places, *([t.place] if t.whole else []))}
    boundaries = {*shared.seen, *(subvolume.path for subvolume in shared.facts.subvolumes)} - live
    found = set()
    for place in places:
        between: str | None = None
        for directory in parents(place):
            if directory in places:
                if between is not None:
                    found.add(between)
                break
            if directory in boundaries:
                between = directory
    return sorted(found)


def _of_the_kernel(point: str, mount: Mount, seen: dict[str, Mount]) -> bool:
    """Whether it holds no user data, even after an autofs has mounted something, as on /proc/sys/fs/binfmt_misc."""
    if mount.fstype == "autofs" and point != "/":
        mount = holder(os.path.dirname(point), seen)
    return mount.fstype in PSEUDO


def _of_the_system(point: str, inside: Taken, request: Request) -> bool:
    """Whether a mount is part of the running system and of no source: with ``/`` in place it is mounted afresh."""
    in_place = request.layout is Layout.IN_PLACE and not request.live_system
    return in_place and "/" in inside.places and any(is_at_or_below(point, top) for top in SYSTEM)


def _uncovered(shared: Selection, taken: Sequence[Taken], judged: Sequence[Judged]) -> list[Uncovered]:
    """Return what is mounted in the trees of the taken datasets but not frozen, in tree order.

    In place it is seen there live, except what might not answer, what was left out on purpose, and what --only-frozen hides.
    """
    facts, request = shared.facts, shared.request
    places = {place: t for t in taken for place, _ in t.asked}
    parts = {t.dataset.mountpoint.text: t.places for t in taken if t.dataset.mountpoint.text not in t.places}
    hidden = {j.mountpoint for j in judged if j.verdict in {Verdict.EXCLUDED, Verdict.SUSPENDED, Verdict.OUTSIDE}}
    found = []
    for point, mount in shared.seen.items():
        if point in places or (_of_the_kernel(point, mount, shared.seen) and not request.live_system):
            continue
        inside = next((places[directory] for directory in parents(point) if directory in places), None)
        if inside is None:
            continue
        if _of_the_system(point, inside, request):
            continue
        item = Uncovered(point, mount.fstype, mount.source, inside.dataset.name, facts.sizes.get(point))
        if request.layout is Layout.IN_PLACE and not request.only_frozen:
            item = replace(item, live=point not in hidden and _is_shown_again(mount), note=_why_hidden(mount))
        file = facts.loop_files.get(mount.source)
        if file is not None and any(directory in places for directory in parents(file)):
            item = replace(item, note=f"its file {printable(file)} is in the backup, as it is at the instant")
        elif point in parts:
            item = replace(item, note=f"but for {', '.join(map(printable, parts[point]))}")
        found.append(item)
    return sorted(found, key=lambda u: tree_order(u.point))


def _is_shown_again(mount: Mount) -> bool:
    """Whether a mount that a frozen tree would hide can be shown there as it is."""
    return not may_hang(mount.fstype) and mount.fstype != "overlay"


def _why_hidden(mount: Mount) -> str:
    return MIGHT_HANG if may_hang(mount.fstype) else ""


def _beside(shared: Selection, taken: Sequence[Taken]) -> list[Uncovered]:
    """In place: return what is mounted outside the trees of what was asked for, in tree order.

    If only a part of a dataset was asked for and all of it is frozen, this includes what is mounted in the rest.
    """
    request = shared.request
    if request.layout is not Layout.IN_PLACE:
        return []
    asked = {place for t in taken for place, _ in t.asked}
    frozen = {t.place for t in taken if t.whole}
    found = []
    for point, mount in shared.seen.items():
        above = parents(point)
        if point == "/" or any(place in asked for place in (point, *above)) or point in frozen:
            continue
        item = Uncovered(point, mount.fstype, mount.source, "", live=True)
        if any(directory in frozen for directory in above):
            seen = _is_shown_again(mount) and (mount.fstype not in PSEUDO or request.live_system)
            item = replace(item, live=seen, note=_why_hidden(mount))
        found.append(item)
    return sorted(found, key=lambda u: tree_order(u.point))


def _behind(taken: Sequence[Taken], hidden: Sequence[Hidden], mounts: Sequence[Uncovered]) -> list[Uncovered]:
    """Return the same mounts, but not live if one of our directories stands for them, or for what lies between it and a place."""
    directories = {h.directory for h in hidden}
    above = {directory for one in taken for place, _ in one.shown for directory in parents(place)}

    def is_behind(point: str) -> bool:
        return point in above and any(directory in directories for directory in (point, *parents(point)))

    return [replace(mount, live=False) if is_behind(mount.point) else mount for mount in mounts]


def _relit(taken: Sequence[Taken], hidden: Sequence[Hidden], beside: Sequence[Uncovered]) -> list[Uncovered]:
    """Return what of ``beside`` must be shown again because it lies in what is frozen whole or hidden."""
    covers = {*(t.place for t in taken if t.whole), *(h.directory for h in hidden)}
    return [u for u in beside if u.live and any(directory in covers for directory in parents(u.point))]
