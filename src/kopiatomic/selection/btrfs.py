"""Btrfs subvolumes: which are asked for, and what becomes of each. Pure. They go by the path they are seen at."""

from __future__ import annotations

from collections.abc import Iterator

from kopiatomic import patterns
from kopiatomic.errors import KopiatomicError
from kopiatomic.facts import BtrfsSubvolume
from kopiatomic.model import Dataset, Judged, Taken, Verdict
from kopiatomic.paths import below, is_at_or_below
from kopiatomic.selection import Ask, Selection
from kopiatomic.system.mountinfo import holder, parents
from kopiatomic.text import first_few, printable

_TOO_LONG = (
    "no program can open a path that is longer than 4,095 bytes; what is nested in it is not in this backup either"
)

_SHOWN = 200
"""How many characters are shown of the beginning of such a path."""


class BtrfsSelection:
    """The subvolumes that are asked for, and the verdict on each that is known."""

    def __init__(self, shared: Selection) -> None:
        self._shared = shared
        self._subvolumes = {s.path: s for s in shared.facts.subvolumes}
        self._asked: dict[str, Ask] = {}
        self._outside: dict[str, str] = {}
        self._alone: list[str] = []
        """Those that are asked for without what is nested in them."""
        self._inside: dict[str, list[BtrfsSubvolume]] = {}
        for subvolume in shared.facts.subvolumes:
            if subvolume.above is not None:
                self._inside.setdefault(subvolume.above, []).append(subvolume)

    # What is asked for

    def ask_for(self, name: str, path: str) -> bool:
        """The subvolume that holds a path, or the part of it; returns whether there is one."""
        top = self.holder(path)
        if top is None:
            return False
        part = below(path, top)
        if part and path not in self._shared.facts.directories:
            return False
        self._asked.setdefault(top, Ask()).add(part, "it was named", named=True)
        nested = list(self._nested(top))
        if self._shared.request.recursive:
            for inside in nested:
                if is_at_or_below(inside.path, path):
                    self._imply(inside.path, f"-r {printable(name)}")
                else:
                    self._outside[inside.path] = path
        elif nested and not part:
            self._alone.append(top)
        return True

    def holder(self, path: str) -> str | None:
        """The subvolume whose tree a path lies in; None where only a part of one is mounted there."""
        border = holder(path, self._shared.seen).point
        return next((d for d in (path, *parents(path)) if d in self._subvolumes and is_at_or_below(d, border)), None)

    def _imply(self, path: str, why: str) -> None:
        self._asked.setdefault(path, Ask()).add("", why, named=False)

    def ask_by_pattern(self, pattern: str) -> int:
        """Subvolumes whose path a pattern fits. Returns how many do."""
        fitting = [path for path in self._subvolumes if patterns.matches(pattern, path)]
        for path in fitting:
            self._imply(path, f"the pattern {printable(pattern)}")
        return len(fitting)

    def ask_for_everything(self) -> None:
        """Every subvolume that is mounted by itself; with ``-r`` those nested in them."""
        for point, mount in sorted(self._shared.seen.items()):
            if mount.fstype != "btrfs":
                continue
            if point not in self._subvolumes:
                self._shared.note(f"{printable(point)} shows only a part of a Btrfs subvolume and is not taken for -a")
                continue
            self._imply(point, "-a")
            nested = list(self._nested(point))
            if self._shared.request.recursive:
                for inside in nested:
                    self._imply(inside.path, "-a -r")
            elif nested:
                self._alone.append(point)

    def _nested(self, top: str) -> Iterator[BtrfsSubvolume]:
        waiting = [iter(self._inside.get(top, ()))]
        while waiting:
            subvolume = next(waiting[-1], None)
            if subvolume is None:
                waiting.pop()
                continue
            yield subvolume
            waiting.append(iter(self._inside.get(subvolume.path, ())))

    def _say_nested(self) -> None:
        for top in self._alone:
            left_out = [_shown(s) for s in self._nested(top) if s.path not in self._asked]
            if left_out:
                self._shared.note(
                    f"{printable(top)} holds {len(left_out)} nested subvolume(s) that are not taken (-r takes them): "
                    f"{first_few(left_out)}"
                )

    # What becomes of each

    def judge(self) -> Iterator[Judged]:
        """The verdict on each subvolume that is known. Raises KopiatomicError where one that was named cannot be taken."""
        self._say_nested()
        first: dict[tuple[str, int], str] = {}
        # Named ones first, so that of one mounted twice the named place is the one that is shown.
        order = sorted(self._subvolumes, key=lambda path: (not self._is_named(path), path))
        for path in order:
            yield self._judged(self._subvolumes[path], first)

    def _is_named(self, path: str) -> bool:
        ask = self._asked.get(path)
        return ask is not None and ask.named

    def _judged(self, subvolume: BtrfsSubvolume, first: dict[tuple[str, int], str]) -> Judged:
        path = subvolume.path
        ask = self._asked.get(path)
        excluded = self._shared.excluded_by((path,))
        if excluded is not None:
            return _verdict(subvolume, Verdict.EXCLUDED, f"--exclude {printable(excluded)}")
        if ask is None:
            top = self._outside.get(path)
            if top is not None:
                return _verdict(subvolume, Verdict.OUTSIDE, f"it is not below {printable(top)}, which was named")
            return _verdict(subvolume, Verdict.NOT_ASKED_FOR, "it was not named; -r takes it")
        if subvolume.too_long:
            return _verdict(subvolume, Verdict.NAME_TOO_LONG, _TOO_LONG, incomplete=True)
        if subvolume.covered:
            reason, hint = self._why_covered(subvolume)
            if ask.named:
                raise KopiatomicError(f"{printable(path)} cannot be backed up: {reason}", kind="cannot-take", hint=hint)
            return _verdict(subvolume, Verdict.COVERED, reason, incomplete=True)
        if subvolume.foreign_snapshot and subvolume.above is not None and not ask.named:
            reason = "a read-only snapshot made by another program; name it to take it"
            return _verdict(subvolume, Verdict.FOREIGN_SNAPSHOT, reason)
        key = (subvolume.filesystem, subvolume.id)
        if key in first:
            return _verdict(subvolume, Verdict.DUPLICATE, f"the same subvolume as {printable(first[key])}")
        dataset = Dataset("btrfs", path, subvolume.filesystem, path, subvolume.id, subvolume.device)
        refusal = self._shared.refusal(dataset, named=ask.named)
        if refusal is not None:
            incomplete = refusal.verdict is not Verdict.DELETED
            return _verdict(subvolume, refusal.verdict, refusal.reason, incomplete=incomplete, hint=refusal.hint)
        first[key] = path
        taken = Taken(dataset, path, ask.named, ask.parts, outside=self._outside_in(subvolume))
        self._shared.taken.append(taken)
        return _verdict(subvolume, Verdict.TAKEN, ask.why, places=taken.places)

    def _outside_in(self, subvolume: BtrfsSubvolume) -> tuple[str, ...]:
        """What is nested in a subvolume, by path below its top, and is not taken for it lies outside of the parts named."""
        return tuple(
            below(inside.path, subvolume.path)
            for inside in self._inside.get(subvolume.path, ())
            if inside.path in self._outside
            and not inside.too_long
            and inside.path not in self._asked
            and self._shared.excluded_by((inside.path,)) is None
        )

    def _why_covered(self, subvolume: BtrfsSubvolume) -> tuple[str, str]:
        """Why its path does not lead to it, and what to do."""
        seen = self._shared.seen
        if subvolume.above is not None and holder(subvolume.path, seen) is not holder(subvolume.above, seen):
            return "another filesystem is mounted over it", "Unmount what covers it, or leave it out."
        return "it is being moved, or a directory above it is", "Run again, when nobody moves it any more."


def _shown(subvolume: BtrfsSubvolume) -> str:
    """Its path; of one that is too long the beginning and the end."""
    if not subvolume.too_long:
        return subvolume.path
    return f"{subvolume.path[:_SHOWN].rpartition('/')[0]}/.../{subvolume.path.rpartition('/')[2]}"


def _verdict(
    subvolume: BtrfsSubvolume,
    verdict: Verdict,
    reason: str,
    *,
    places: tuple[str, ...] = (),
    incomplete: bool = False,
    hint: str = "",
) -> Judged:
    facts = {"subvolume": str(subvolume.id), "filesystem": subvolume.filesystem, "device": subvolume.device}
    if subvolume.above is not None:
        facts["nested in"] = subvolume.above
    point = "" if subvolume.covered or subvolume.too_long else subvolume.path
    return Judged(_shown(subvolume), "btrfs", verdict, reason, point, places, incomplete, hint, facts)
