"""Which datasets a request asks for, and what becomes of each: one module per filesystem. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems import patterns
from kopiatomic.model.facts import Facts
from kopiatomic.model.mounts import Mount, borders, visible
from kopiatomic.model.plan import Dataset, Refusal, Taken, Verdict
from kopiatomic.model.request import Request
from kopiatomic.paths import topmost
from kopiatomic.text import first_few, printable


class Selection:
    """What the selections of all filesystems share: the facts, the request, and what has been taken so far."""

    def __init__(self, facts: Facts, request: Request, refused: Iterable[Refusal] = ()) -> None:
        self.facts = facts
        self.request = request
        self._refused = {refusal.dataset.key: refusal for refusal in refused}
        self._deleted: dict[str, list[str]] = {}
        self.mounted = visible(facts.mounts)
        """The visible mounts, by mount point."""
        tops = {subvolume.path for subvolume in facts.subvolumes}
        apart = borders(self.mounted)
        self.seen = {point: mount for point, mount in self.mounted.items() if point in apart or point in tops}
        """Those that show something different from the mount around them: another place, or a subvolume of its own."""
        self.taken: list[Taken] = []
        self.notes: list[str] = []
        self.excluding: set[str] = set()
        """The exclude patterns that matched something."""

    def note(self, text: str) -> None:
        """Note something that the user should know, once."""
        if text not in self.notes:
            self.notes.append(text)

    def refusal(self, dataset: Dataset, *, named: bool) -> Refusal | None:
        """Return why a dataset that would be taken cannot be, if known. Raises KopiatomicError if it was named."""
        refusal = self._refused.get(dataset.key)
        if refusal is None:
            return None
        if named:
            gone = refusal.verdict is not Verdict.REFUSED
            raise KopiatomicError(
                f"{printable(dataset.name)} cannot be backed up: {refusal.reason}",
                kind="dataset-vanished" if gone else refusal.kind,
                hint=refusal.hint or ("Run again." if gone else None),
            )
        if refusal.verdict is Verdict.DELETED:
            self._deleted.setdefault(refusal.reason, []).append(dataset.name)
        return refusal

    def say_deleted(self) -> None:
        """Note what was deleted, however much it is."""
        for reason, names in self._deleted.items():
            self.note(f"{first_few(names)}: {reason}")

    def excluded_by(self, names: Iterable[str]) -> str | None:
        """Return the ``--exclude`` pattern that matches one of a dataset's names."""
        known = [name for name in names if name]
        fitting = [
            p
            for p in self.request.exclude
            if any(patterns.matches(self.facts.spelled.get(p, p), name) for name in known)
        ]
        self.excluding.update(fitting)
        return fitting[0] if fitting else None


class Ask:
    """A request for a dataset, whole or in part: by its name, or for a reason that brought it in."""

    def __init__(self) -> None:
        self.why = ""
        self.named = False
        self._parts: set[str] = set()

    def add(self, part: str, why: str, *, named: bool) -> None:
        """Ask for a part; the empty one is the whole. Being named outweighs any other reason."""
        if not self._parts or (named and not self.named):
            self.why = why
        self._parts.add(part)
        self.named = self.named or named

    @property
    def parts(self) -> tuple[str, ...]:
        """What is asked for; a part within another is not listed separately."""
        if not self._parts or "" in self._parts:
            return ("",)
        return topmost(self._parts)


def described(mount: Mount) -> str:
    """Return a mount in words."""
    return f"{printable(mount.source)} ({mount.fstype})"


def not_a_dataset(
    name: str, path: str, mount: Mount, *, partial: bool, subvolume: str | None = None
) -> KopiatomicError:
    """Return why a path cannot be taken.

    ``partial``: the mount shows only part of a dataset. ``subvolume``: the path of the Btrfs subvolume that it is in, which
    may be nested in the mounted one.
    """
    shown = printable(name)
    if path != name.rstrip("/") and path != name:
        shown += f" (which is {printable(path)})"
    if mount.fstype not in {"zfs", "btrfs"}:
        return KopiatomicError(
            f"{shown} is on {mount.fstype} ({printable(mount.source)}), which is neither ZFS nor Btrfs",
            kind="unsupported-filesystem",
            hint="Only ZFS datasets and Btrfs subvolumes can be frozen; back this up with kopia directly.",
        )
    if mount.fstype == "zfs" and "@" in mount.source:
        return KopiatomicError(
            f"{shown} is in a mounted snapshot ({printable(mount.source)}), not a filesystem",
            kind="not-a-filesystem",
            hint=f"Name the dataset itself: {printable(mount.source.partition('@')[0])}",
        )
    what = f"dataset {printable(mount.source)}" if mount.fstype == "zfs" else "Btrfs subvolume"
    if partial:
        whole = printable(mount.source) if mount.fstype == "zfs" else "the subvolume"
        return KopiatomicError(
            f"{shown} is in a mount of only a part of the {what} (a bind mount at {printable(mount.point)})",
            kind="bind-mount",
            hint=f"Name {whole}, or a path in it, where it is mounted whole.",
        )
    top = subvolume or mount.point
    whole = mount.source if mount.fstype == "zfs" else top
    where = f"mounted at {printable(top)}" if top == mount.point else printable(top)
    return KopiatomicError(
        f"{shown} is neither a mount point nor a directory: it lies in the {what} {where}",
        kind="not-a-directory",
        hint=f"Name a directory, or {printable(whole)} to take it whole.",
    )
