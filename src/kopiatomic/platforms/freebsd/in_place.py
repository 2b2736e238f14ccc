"""The in-place view on FreeBSD: a tree like the live one, with the frozen datasets at their true paths, for a chroot(2).

A nullfs shows one mount without the mounts in it. So the live ``/`` has one, unless it is frozen itself, each further live mount
has its own, and what is frozen is mounted over that. What is hidden is simply missing. All mount points lie in the run's own
directory, in which ``root`` is the engine's root.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from kopiatomic.errors import KopiatomicError
from kopiatomic.model.leftovers import Intent
from kopiatomic.model.mounts import visible
from kopiatomic.model.plan import SCRATCH, Plan, Uncovered
from kopiatomic.paths import below, is_at_or_below, parents, tree_order
from kopiatomic.platforms.freebsd.view import FreeBSDView, Planned, directories, frozen, joined, unsafe
from kopiatomic.platforms.steps import GONE, LiveStep, Obstacle, ScaffoldStep, Step
from kopiatomic.state import locks
from kopiatomic.system import freebsd, freebsd_mounts
from kopiatomic.system.freebsd import Kernel
from kopiatomic.system.freebsd_mounting import Options
from kopiatomic.text import printable

_FRESH = frozenset(["devfs", "fdescfs", "linprocfs", "linsysfs", "procfs"])
"""What the kernel generates is mounted afresh: it shows the same as the live one (devfs(5), fdescfs(5), procfs(5))."""

_NEVER = frozenset(["autofs"])
"""What would be mounted by a look into it: not shown."""

_FEW_DEVICES = "4"
"""The ruleset for jails of /etc/defaults/devfs.rules, which rc.d/devfs loads: null, random, terminals and the like."""

_KEPT = ("ro", "noexec", "nosuid", "nosymfollow")
"""The flags that count at the mount that a path leads through: a nullfs has none of those below it (``nullfs_mount``)."""


class InPlaceView(FreeBSDView):
    """``base`` is the run's own directory. The plan says which live mounts there are."""

    def __init__(
        self,
        base: str,
        plan: Plan,
        steps: Sequence[Step],
        kernel: Kernel,
        record: Callable[[Sequence[Intent]], None],
    ) -> None:
        self._plan = plan
        self._aside = f"{base}/own"
        """The directory of ours that an engine may write to; it is seen at its path in the view."""
        root = f"{base}/root"
        super().__init__(root, base, _planned(root, base, self._aside, plan, steps), kernel, record)
        self._options: dict[str, tuple[str, ...]] = {}
        """Of the live mounts, by point."""

    def engine_root(self) -> int | None:
        """Open the assembled tree."""
        return os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def seen_from_outside(self, _launcher: int) -> str:
        """Return the assembled tree, into which a program is put by a chroot."""
        return self._root

    def require(self) -> None:
        """Check what must stay writable, and read what is mounted now."""
        for path in self._plan.writable:
            why = unsafe(path)
            if why is not None:
                raise KopiatomicError(
                    f"the directory {printable(path)}, which must be writable, cannot be shown: {why}",
                    kind="live",
                    hint="Have it in directories that are root's, or use --layout merged.",
                )
        self._options = {m.point: m.options for m in visible(freebsd_mounts.read(self._kernel)).values()}

    def prepare(self) -> None:
        """Make the place for temporary files, in a directory that engines leave out if it lies in a source."""
        own = self._own()
        os.makedirs(f"{self.aside()}/{SCRATCH}", 0o700)
        os.makedirs(self._root)
        if own.step.place != self._base:
            for name, content in self._plan.ignore_files:
                with open(f"{self._aside}/{name}", "x", encoding="ascii") as file:
                    file.write(content)

    def aside(self) -> str:
        """Return the directory that is seen there, in the one that is mounted."""
        return os.path.normpath(f"{self._aside}/{os.path.relpath(self._base, self._own().step.place)}")

    def _own(self) -> Planned:
        return next(p for p in self._planned if p.whole == self._aside)

    def options(self, planned: Planned) -> Options:
        """Keep a live mount's flags; in a jail a devfs has the jail's own ruleset, and no other."""
        if planned.fstype == "devfs" and freebsd.number(self._kernel, "security.jail.jailed"):
            return ()
        if isinstance(planned.step, LiveStep) and planned.fstype == "nullfs":
            # In a jail whose root is no mount that one is not in the table.
            above = (planned.source, *parents(planned.source))
            flags = next((self._options[place] for place in above if place in self._options), ())
            return tuple((flag, "") for flag in _KEPT if flag in flags)
        return planned.options

    def obstacle(self, planned: Planned) -> Obstacle | None:
        """Return the obstacle of any view, or that a live mount is gone or that others than root can move it."""
        step = planned.step
        if isinstance(step, LiveStep) and planned.fstype == "nullfs":
            if step.fstype and step.place not in self._options:
                return Obstacle("it is not mounted any more", GONE)
            why = unsafe(step.place)
            if why is not None:
                return Obstacle(why)
        return super().obstacle(planned)


def refuse(plan: Plan) -> list[str]:
    """Refuse, before anything is made, what has no safe place in the view. Return what the user should know.

    Mounting uses paths: in a live tree others could move a directory and put a link in its place. Raises KopiatomicError.
    """
    places = {place for taken in plan.taken for place, _ in taken.shown} | {h.directory for h in plan.hidden}
    live = {u.point for u in plan.uncovered if u.live}
    for taken in plan.taken:
        for place, _ in taken.shown:
            above = next((d for d in parents(place) if d in places or d in live), "")
            why = unsafe(place if above not in places else above, places)
            if why is not None:
                raise KopiatomicError(
                    f"{printable(taken.dataset.name)} cannot be shown at {printable(place)}, which is in a live tree: {why}",
                    kind="place-not-safe",
                    hint="Back up what holds it as well (-r of a dataset above it), or use --layout merged.",
                )
    warnings = []
    for mount in plan.beside:
        why = unsafe(mount.point) if mount.live and _is_shown(mount) and mount.fstype not in _FRESH else None
        if why is not None:
            warnings.append(
                f"{printable(mount.point)} ({printable(mount.fstype)}) is not there for what reads the view: {why}"
            )
    return warnings


def filesystems(plan: Plan) -> set[str]:
    """Return what is mounted afresh for a plan."""
    return {step.fstype for step in _live(plan) if step.fstype in _FRESH}


def _planned(root: str, base: str, aside: str, plan: Plan, steps: Sequence[Step]) -> list[Planned]:
    own = [*_own(base, plan)]
    several = [*_live(plan), *own, *_holders(base, plan), *(step for step in steps if not isinstance(step, LiveStep))]
    ordered = sorted(several, key=lambda step: tree_order(step.place))
    planned: list[Planned] = []
    before: dict[str, Step] = {}
    for step, whole in zip(ordered, directories(base, ordered), strict=True):
        point = joined(root, step.place)
        if step is own[0]:
            planned.append(Planned(step, aside, point, aside, options=(("nosuid", ""),)))
        elif not isinstance(step, LiveStep):
            planned.append(frozen(step, whole, point))
        elif step.fstype in _FRESH:
            few = step.fstype == "devfs" and _is_root_frozen(plan) and not plan.live_system
            options = (("ruleset", _FEW_DEVICES),) if few else ()
            planned.append(Planned(step, step.fstype, point, fstype=step.fstype, options=options))
        elif step.fstype or not isinstance(_above(step.place, before), LiveStep):
            # A directory that is seen already cannot be mounted on itself (EDEADLK, nullfs_mount).
            planned.append(Planned(step, step.place, point, options=()))
        before[step.place] = step
    return planned


def _above(place: str, steps: Mapping[str, Step]) -> Step | None:
    return next((steps[directory] for directory in (place, *parents(place)) if directory in steps), None)


def _own(base: str, plan: Plan) -> Iterator[Step]:
    """Yield our directory that an engine may write to first, then that of all runs if needed."""
    runs = os.path.dirname(base)
    in_source = any(is_at_or_below(base, source) for source in plan.sources)
    covers = in_source and not plan.live_system
    yield ScaffoldStep("the directory for temporary files", runs if covers else base, named=True)
    if in_source and plan.live_system:
        # In the snapshot it has no place; and a kopiatomic that is started in the view finds the locks of all runs.
        yield LiveStep("the directory of locks", runs, named=True)


def _holders(base: str, plan: Plan) -> Iterator[Step]:
    """Yield our directories that stand for hidden mounts which contain a visible place."""
    needed = (base, *plan.writable)
    hidden = {u.point for u in plan.uncovered if not u.live and any(is_at_or_below(path, u.point) for path in needed)}
    yield from (ScaffoldStep("", point) for point in hidden - {*plan.scaffolds})


def _live(plan: Plan) -> Iterator[LiveStep]:
    """Yield what is seen live."""
    if not _is_root_frozen(plan):
        yield LiveStep("", "/")
    elif not plan.live_system:
        yield LiveStep("the devices", "/dev", "devfs", named=True)
    for mount in plan.beside:
        if mount.live and _is_shown(mount):
            yield LiveStep("", mount.point, mount.fstype, mount.source)
    for mount in plan.uncovered:
        if mount.live and _is_shown(mount):
            yield LiveStep(f"{mount.fstype} {mount.source}", mount.point, mount.fstype, mount.source)
    for path in plan.writable:
        yield LiveStep(f"the directory {path}, which must be writable,", path, named=True)


def _is_shown(mount: Uncovered) -> bool:
    """Whether it is neither mounted on access (such as ``.zfs/snapshot``) nor any run's: a nullfs would keep it busy."""
    by_a_look = mount.fstype in _NEVER or (mount.fstype == "zfs" and "@" in mount.source)
    return not (by_a_look or below(mount.source, locks.DIRECTORY) or below(mount.point, locks.DIRECTORY))


def _is_root_frozen(plan: Plan) -> bool:
    return any(place == "/" for taken in plan.taken for place in taken.places)
