"""Btrfs subvolumes: which are asked for, and what becomes of each. Pure. They are identified by the path where they appear."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems import patterns
from kopiatomic.filesystems.btrfs.copies import is_received, snapshots_of_taken
from kopiatomic.filesystems.selection import Ask, Selection, not_a_dataset
from kopiatomic.model.facts import BtrfsSubvolume
from kopiatomic.model.mounts import Mount, holder
from kopiatomic.model.plan import Dataset, Judged, PlannedPath, Taken, Verdict
from kopiatomic.model.request import is_path
from kopiatomic.paths import below, is_at_or_below, parents
from kopiatomic.text import first_few, printable

_TOO_LONG = (
    "no program can open a path that is longer than 4,095 bytes; what is nested in it is not in this backup either"
)

_SHOWN = 200
"""How many characters of the beginning of such a path are shown."""


class BtrfsSelection:
    """The subvolumes that are asked for, and the verdict on each known one."""

    def __init__(self, shared: Selection) -> None:
        self._shared = shared
        self._subvolumes = {s.path: s for s in shared.facts.subvolumes}
        self._asked: dict[str, Ask] = {}
        self._outside: dict[str, str] = {}
        self._deliberately: set[str] = set()
        """The subvolumes that something other than ``-a`` has brought in."""
        self._alone: dict[str, list[BtrfsSubvolume]] = {}
        """Subvolumes nested in what was asked for without them, by the path that was asked for."""
        self._missed: dict[str, str] = {}
        """The subvolumes that are not taken and may be expected to be, and the text about each."""
        self._copies: dict[str, str] = {}
        """Read-only snapshots of what is taken, and their sources."""
        self._inside: dict[str, list[BtrfsSubvolume]] = {}
        for subvolume in shared.facts.subvolumes:
            if subvolume.above is not None:
                self._inside.setdefault(subvolume.above, []).append(subvolume)

    # What is asked for

    def ask_by_name(self, _name: str) -> bool:
        """Return False: a subvolume is named by a path."""
        return False

    def ask_by_property(self) -> None:
        """Ask for nothing: a subvolume has no user property."""

    def ask_by_path(self, name: str, path: str, mount: Mount) -> None:
        """Ask for the subvolume that holds a path, or the part of it. Raises KopiatomicError if none does."""
        if not self._ask_for(name, path):
            top = self.holder(path)
            raise not_a_dataset(name, path, mount, partial=mount.root != "/" and top is None, subvolume=top)

    def _ask_for(self, name: str, path: str) -> bool:
        """Ask for the subvolume that holds a path, or the part of it; return whether there is one."""
        top = self.holder(path)
        if top is None:
            return False
        part = below(path, top)
        if part and path not in self._shared.facts.directories:
            return False
        self._asked.setdefault(top, Ask()).add(part, "it was named", named=True)
        self._deliberately.add(top)
        recursive = self._shared.request.recursive
        for inside in self._nested(top):
            if not is_at_or_below(inside.path, path):
                if recursive:
                    self._outside[inside.path] = path
            elif recursive:
                self._imply(inside.path, f"-r {printable(name)}")
            else:
                self._alone.setdefault(path, []).append(inside)
        return True

    def holder(self, path: str) -> str | None:
        """Return the subvolume whose tree a path is in; None if only part of one is mounted there."""
        border = holder(path, self._shared.seen).point
        return next((d for d in (path, *parents(path)) if d in self._subvolumes and is_at_or_below(d, border)), None)

    def _imply(self, path: str, why: str, *, deliberately: bool = True) -> None:
        self._asked.setdefault(path, Ask()).add("", why, named=False)
        if deliberately:
            self._deliberately.add(path)

    def ask_by_pattern(self, pattern: str) -> int:
        """Ask for the subvolumes whose path matches a pattern, with ``-r`` also those nested in them. Returns how many match."""
        if not is_path(pattern):
            return 0
        fitting = [path for path in self._subvolumes if patterns.matches(pattern, path)]
        for path in fitting:
            self._imply(path, f"the pattern {printable(pattern)}")
            if self._shared.request.recursive:
                for inside in self._nested(path):
                    self._imply(inside.path, f"-r {printable(pattern)}")
            else:
                self._alone.setdefault(path, []).extend(self._nested(path))
        return len(fitting)

    def ask_for_everything(self) -> None:
        """Ask for every subvolume that is mounted by itself, and those nested in them."""
        for point, mount in sorted(self._shared.seen.items()):
            if mount.fstype != "btrfs":
                continue
            if point not in self._subvolumes:
                self._shared.note(f"{printable(point)} shows only a part of a Btrfs subvolume and is not taken for -a")
                continue
            self._imply(point, "-a", deliberately=False)
            for inside in () if self._shared.request.no_nested else self._nested(point):
                self._imply(inside.path, "-a", deliberately=False)

    def _nested(self, top: str) -> Iterator[BtrfsSubvolume]:
        waiting = [iter(self._inside.get(top, ()))]
        while waiting:
            subvolume = next(waiting[-1], None)
            if subvolume is None:
                waiting.pop()
                continue
            yield subvolume
            waiting.append(iter(self._inside.get(subvolume.path, ())))

    # What becomes of each

    def judge(self) -> Iterator[Judged]:
        """Return the verdict on each known subvolume. Raises KopiatomicError if one that was named cannot be taken."""
        self._copies = snapshots_of_taken(self._subvolumes.values(), lambda subvolume: subvolume.path in self._asked)
        for path in [path for path in self._copies if self._is_meant(path)]:
            del self._copies[path]
        self._miss_nested()
        self._miss_received()
        first: dict[tuple[str, int], str] = {}
        # If a subvolume is visible at several places, show it at the named one, otherwise where it is mounted by itself.
        mounted = self._shared.mounted
        order = sorted(self._subvolumes, key=lambda path: (not self._is_named(path), path not in mounted, path))
        for path in order:
            yield self._judged(self._subvolumes[path], first)

    def _is_meant(self, path: str) -> bool:
        """Whether a subvolume was named, or is mounted by itself, so that it is not treated as a copy."""
        return self._is_named(path) or path in self._shared.mounted

    def _miss_nested(self) -> None:
        """Note non-empty subvolumes that were not asked for but are nested in one that was."""
        if self._shared.request.no_nested:
            return
        taken = {(s.filesystem, s.id) for path, s in self._subvolumes.items() if path in self._asked}
        for top, nested in self._alone.items():
            missed = [s for s in nested if s.holds is not False and self._is_missed(s, taken)]
            if missed:
                line = (
                    f"{printable(top)} holds {len(missed)} nested subvolume(s) with something in them that are not taken: "
                    f"{first_few(sorted(map(_shown, missed)))} (-r takes them; --exclude or --no-nested says that they are "
                    "not wanted)"
                )
                self._missed |= {s.path: line for s in missed}

    def _is_missed(self, subvolume: BtrfsSubvolume, taken: AbstractSet[tuple[str, int]]) -> bool:
        path = subvolume.path
        known = path in self._asked or path in self._copies or path in self._missed
        elsewhere = (subvolume.filesystem, subvolume.id) in taken
        return not known and not elsewhere and self._shared.excluded_by((path,)) is None

    def _miss_received(self) -> None:
        """Note the received copies that ``-a`` alone would take: most likely backups themselves, perhaps of other hosts."""
        received = [
            subvolume
            for path, subvolume in self._subvolumes.items()
            if is_received(subvolume)
            and path in self._asked.keys() - self._deliberately
            and path not in self._copies
            and not self._is_meant(path)
            and self._shared.excluded_by((path,)) is None
        ]
        if received:
            line = (
                f"{len(received)} received cop{'y' if len(received) == 1 else 'ies'} (btrfs receive) that -a alone does not "
                f"take: {first_few(sorted(s.path for s in received))} (-r with a directory above takes them; --exclude says that "
                "they are not wanted)"
            )
            self._missed |= {s.path: line for s in received}

    def _is_named(self, path: str) -> bool:
        ask = self._asked.get(path)
        return ask is not None and ask.named

    def _judged(self, subvolume: BtrfsSubvolume, first: dict[tuple[str, int], str]) -> Judged:
        path = subvolume.path
        ask = self._asked.get(path)
        excluded = self._shared.excluded_by((path,))
        if excluded is not None:
            return _verdict(subvolume, Verdict.EXCLUDED, f"--exclude {printable(excluded)}")
        if path in self._copies:
            reason = f"a read-only snapshot of {printable(self._copies[path])}, which is taken; name it to take it"
            return _verdict(subvolume, Verdict.READ_ONLY_SNAPSHOT, reason)
        if ask is None:
            return self._not_asked_for(subvolume)
        if path in self._missed:
            reason = "btrfs receive has made it, and -a alone does not take it"
            return _verdict(subvolume, Verdict.RECEIVED, reason, incomplete=True, line=self._missed[path])
        if subvolume.too_long:
            return _verdict(subvolume, Verdict.NAME_TOO_LONG, _TOO_LONG, incomplete=True)
        if subvolume.covered or subvolume.no_device or subvolume.clone:
            reason, hint = self._why_covered(subvolume) if subvolume.covered else _no_such_filesystem(subvolume)
            if ask.named:
                raise KopiatomicError(f"{printable(path)} cannot be backed up: {reason}", kind="cannot-take", hint=hint)
            verdict = Verdict.COVERED if subvolume.covered else Verdict.REFUSED
            return _verdict(subvolume, verdict, reason, incomplete=True, hint=hint)
        key = (subvolume.filesystem, subvolume.id)
        if key in first:
            return _verdict(subvolume, Verdict.DUPLICATE, f"the same subvolume as {printable(first[key])}")
        dataset = Dataset("btrfs", path, subvolume.filesystem, PlannedPath(path), subvolume.id, subvolume.device)
        refusal = self._shared.refusal(dataset, named=ask.named)
        if refusal is not None:
            incomplete = refusal.verdict is not Verdict.DELETED
            return _verdict(subvolume, refusal.verdict, refusal.reason, incomplete=incomplete, hint=refusal.hint)
        first[key] = path
        taken = Taken(
            dataset, path, ask.named, ask.parts, owner=subvolume.owner or 0, outside=self._outside_in(subvolume)
        )
        self._shared.taken.append(taken)
        return _verdict(subvolume, Verdict.TAKEN, ask.why, places=taken.places)

    def _not_asked_for(self, subvolume: BtrfsSubvolume) -> Judged:
        line = self._missed.get(subvolume.path, "")
        top = self._outside.get(subvolume.path)
        if top is not None:
            return _verdict(subvolume, Verdict.OUTSIDE, f"it is not below {printable(top)}, which was named")
        return _verdict(
            subvolume, Verdict.NOT_ASKED_FOR, "it was not named; -r takes it", incomplete=bool(line), line=line
        )

    def _outside_in(self, subvolume: BtrfsSubvolume) -> tuple[str, ...]:
        """Return what is nested in a subvolume and not taken because it is outside the named parts, by path below its top."""
        return tuple(
            below(inside.path, subvolume.path)
            for inside in self._inside.get(subvolume.path, ())
            if inside.path in self._outside
            and not inside.too_long
            and inside.path not in self._asked
            and self._shared.excluded_by((inside.path,)) is None
        )

    def _why_covered(self, subvolume: BtrfsSubvolume) -> tuple[str, str]:
        """Return why its path does not lead to it, and what to do."""
        seen = self._shared.seen
        if subvolume.above is not None and holder(subvolume.path, seen) is not holder(subvolume.above, seen):
            return "another filesystem is mounted over it", "Unmount what covers it, or leave it out."
        return "it is being moved, or a directory above it is", "Run again, when nobody moves it any more."


def _shown(subvolume: BtrfsSubvolume) -> str:
    """Return its path; if that is too long, its beginning and its end."""
    if not subvolume.too_long:
        return subvolume.path
    return f"{subvolume.path[:_SHOWN].rpartition('/')[0]}/.../{subvolume.path.rpartition('/')[2]}"


def _no_such_filesystem(subvolume: BtrfsSubvolume) -> tuple[str, str]:
    """Return why nothing can be mounted from a device that has no node or that is a copy of another, and what to do."""
    device = printable(subvolume.device)
    if subvolume.clone:
        return (
            f"{device} is a copy of another mounted filesystem and has its UUID, so the kernel takes one for the other",
            f"Unmount the other one first, or give the copy a UUID of its own ('btrfstune -m {device}', unmounted).",
        )
    return (
        f"the device that it is mounted from, {device}, is not there any more",
        f"If the device itself is still there, make {device} again ('udevadm trigger'); else unmount the filesystem.",
    )


def _verdict(
    subvolume: BtrfsSubvolume,
    verdict: Verdict,
    reason: str,
    *,
    places: tuple[str, ...] = (),
    incomplete: bool = False,
    line: str = "",
    hint: str = "",
) -> Judged:
    facts = {"subvolume": str(subvolume.id), "filesystem": subvolume.filesystem, "device": subvolume.device}
    if subvolume.above is not None:
        facts["nested in"] = subvolume.above
    point = "" if subvolume.covered or subvolume.too_long else subvolume.path
    owner = subvolume.owner
    return Judged(_shown(subvolume), "btrfs", verdict, reason, point, places, incomplete, line, hint, facts, owner)
