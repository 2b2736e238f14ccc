"""From facts and a request to a plan: what is taken, where it appears, what is left out and why. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.facts import BtrfsSubvolume, Facts, ZfsDataset, is_path, pool_suspended
from kopiatomic.model import Dataset, LeftOut, Plan, Taken
from kopiatomic.system.mountinfo import Mount, holder, visible
from kopiatomic.text import printable

MAX_NAME = 255
"""The longest name of a ZFS snapshot, dataset's name included (ZFS_MAX_DATASET_NAME_LEN - 1)."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for. ``suffix`` is what follows a dataset's name in its snapshot's (``@kopiatomic_...``)."""

    names: tuple[str, ...]
    everything: bool
    recursive: bool
    root: str
    suffix: str


def select(facts: Facts, request: Request) -> Plan:
    """Choose the datasets. Raises KopiatomicError where one that was named cannot be taken, UsageError for no names."""
    require_names(request.names, everything=request.everything)
    chosen = _Selection(facts, request)
    for name in request.names:
        chosen.name(name)
    if request.everything:
        chosen.everything()
    return chosen.plan()


def require_names(names: Sequence[str], *, everything: bool) -> None:
    """Refuse a request for nothing. Raises UsageError."""
    if not names and not everything:
        raise UsageError(
            "no dataset was named",
            kind="no-arguments",
            hint="Name datasets (tank/home) or mount points (/home), or use -a for all that are mounted. See -h.",
        )


class _Selection:
    """The datasets chosen so far; each once, and named rather than implied where it is both."""

    def __init__(self, facts: Facts, request: Request) -> None:
        self.facts = facts
        self.request = request
        self.seen = visible(facts.mounts)
        self.by_source: dict[str, list[Mount]] = {}
        for mount in facts.mounts:
            if mount.fstype == "zfs" and mount.root == "/":
                self.by_source.setdefault(mount.source, []).append(mount)
        self.taken: dict[tuple[str, object], Taken] = {}
        self.left_out: dict[str, LeftOut] = {}
        self.notes: list[str] = []

    # What the user named

    def name(self, name: str) -> None:
        if not is_path(name):
            self._zfs_named(name)
            return
        path = self.facts.resolved[name]
        mount = holder(path, self.seen)
        subvolume = next((s for s in self.facts.subvolumes if s.path == path), None)
        if subvolume is not None:
            self._btrfs_named(subvolume)
        elif mount.point == path and mount.fstype == "zfs" and mount.root == "/" and "@" not in mount.source:
            self._zfs_named(mount.source)
        else:
            raise _not_a_dataset(name, path, mount)

    def _zfs_named(self, name: str) -> None:
        dataset = self.facts.datasets[name]
        if self.request.recursive:
            self._zfs_implied(d for d in self.facts.datasets.values() if d.name.startswith(f"{name}/"))
        place = self._zfs_place(dataset)
        if not isinstance(place, LeftOut):
            self._add(_zfs(dataset, place), named=True)
        elif self._is_container(dataset, place):
            self.left_out[name] = replace(place, reason=f"{place.reason}; what lies below it is taken")
        else:
            raise KopiatomicError(
                f"{printable(name)} cannot be backed up: {place.reason}", kind="cannot-take", hint=place.hint or None
            )

    def _is_container(self, dataset: ZfsDataset, place: LeftOut) -> bool:
        """Whether ``-r NAME`` means what lies below: the dataset itself is, by its properties, not for mounting."""
        inside = any(key[0] == "zfs" and str(key[1]).startswith(f"{dataset.name}/") for key in self.taken)
        return self.request.recursive and inside and dataset.kind == "filesystem" and not place.incomplete

    def _btrfs_named(self, subvolume: BtrfsSubvolume) -> None:
        self._add(_btrfs(subvolume), named=True)
        self._btrfs_nested(subvolume)

    # What -r and -a bring in

    def everything(self) -> None:
        self._zfs_implied(self.facts.datasets.values())
        self._leave_out_suspended()
        mounted = {m.point: m for m in self.seen.values() if m.fstype == "btrfs"}
        found = {s.path: s for s in self.facts.subvolumes}
        for point in sorted(mounted):
            if point in found:
                self._btrfs_implied(found[point])
                self._btrfs_nested(found[point])
            else:
                self.notes.append(f"{printable(point)} shows only a part of a Btrfs subvolume and is not taken for -a")
        if not self.taken:
            raise KopiatomicError(
                "no mounted ZFS dataset and no mounted Btrfs subvolume was found",
                kind="nothing-found",
                hint="kopiatomic backs up ZFS and Btrfs; 'findmnt -t zfs,btrfs' shows what is mounted.",
            )

    def _leave_out_suspended(self) -> None:
        """Say what is mounted of suspended pools: zfs does not list it."""
        for name in self.by_source:
            pool = self.facts.pools.get(name.partition("/")[0])
            if pool is not None and pool.suspended and "@" not in name and name not in self.facts.datasets:
                self.left_out[name] = LeftOut(name, "its pool is suspended", incomplete=True)

    def _zfs_implied(self, datasets: Iterable[ZfsDataset]) -> None:
        for dataset in datasets:
            if dataset.kind != "filesystem" or ("zfs", dataset.name) in self.taken:
                continue
            place = self._zfs_place(dataset)
            if isinstance(place, LeftOut):
                self.left_out[dataset.name] = place
            else:
                self._add(_zfs(dataset, place), named=False)

    def _btrfs_nested(self, top: BtrfsSubvolume) -> None:
        """Take what is nested in a subvolume if ``-r`` was given; else say that it is not in the backup."""
        nested = list(self._below(top))
        if self.request.recursive:
            for subvolume in nested:
                self._btrfs_implied(subvolume)
        elif nested:
            names = ", ".join(printable(s.path) for s in nested[:3]) + (", ..." if len(nested) > 3 else "")
            self.notes.append(
                f"{printable(top.path)} holds {len(nested)} nested subvolume(s) that are not taken (-r takes them): {names}"
            )

    def _below(self, top: BtrfsSubvolume) -> Iterator[BtrfsSubvolume]:
        for subvolume in self.facts.subvolumes:
            if subvolume.above == top.path:
                yield subvolume
                yield from self._below(subvolume)

    def _btrfs_implied(self, subvolume: BtrfsSubvolume) -> None:
        if subvolume.foreign_snapshot and subvolume.above is not None:
            reason = "a read-only snapshot made by another program; name it to take it"
            self.left_out[subvolume.path] = LeftOut(subvolume.path, reason, incomplete=False)
        elif subvolume.covered:
            reason = "another filesystem is mounted over it"
            self.left_out[subvolume.path] = LeftOut(subvolume.path, reason, incomplete=True)
        else:
            self._add(_btrfs(subvolume), named=False)

    # Where a ZFS dataset is

    def _zfs_place(self, dataset: ZfsDataset) -> str | LeftOut:
        """Where the dataset is mounted and can be seen, or why it cannot be taken."""
        name = dataset.name
        if dataset.kind != "filesystem":
            hint = "kopiatomic backs up filesystems; a volume has no files."
            return LeftOut(name, f"it is a {dataset.kind}, not a filesystem", incomplete=False, hint=hint)
        mounts = self.by_source.get(name, [])
        if not mounts and dataset.keystatus == "unavailable":
            hint = f"zfs load-key {name}, then zfs mount {name}"
            return LeftOut(name, "its encryption key is not loaded", incomplete=True, hint=hint)
        if not mounts:
            reason = "it should be mounted and is not" if dataset.should_be_mounted else "it is not mounted"
            hint = f"Mount it (zfs mount {name}), or leave it out."
            return LeftOut(name, reason, incomplete=dataset.should_be_mounted, hint=hint)
        if len(name) + len(self.request.suffix) > MAX_NAME:
            reason = f"its name is too long for a snapshot's ({len(name)} + {len(self.request.suffix)} > {MAX_NAME})"
            return LeftOut(name, reason, incomplete=True, hint="Rename the dataset, or leave it out.")
        for mount in mounts:
            if self.seen.get(mount.point) is mount:
                return mount.point
        cover = holder(mounts[0].point, self.seen)
        reason = f"its mount at {printable(mounts[0].point)} is covered by {_described(cover)}"
        return LeftOut(name, reason, incomplete=True, hint="Unmount what covers it, or leave it out.")

    def _add(self, dataset: Dataset, *, named: bool) -> None:
        key: tuple[str, object]
        key = ("zfs", dataset.name) if dataset.filesystem == "zfs" else (dataset.pool, dataset.subvolume)
        known = self.taken.get(key)
        if known is None or (named and not known.named):
            self.taken[key] = Taken(dataset, known.place if known else dataset.mountpoint, named)
            self.left_out.pop(dataset.name, None)

    def plan(self) -> Plan:
        self._check_pools()
        taken = sorted(self.taken.values(), key=lambda t: t.place.rstrip("/").split("/"))
        return Plan(
            root=self.request.root,
            taken=tuple(taken),
            left_out=tuple(self.left_out[name] for name in sorted(self.left_out)),
            notes=tuple(self.notes),
        )

    def _check_pools(self) -> None:
        """A snapshot in a suspended pool waits for ever, in a read-only one it is impossible."""
        for taken in self.taken.values():
            pool = self.facts.pools.get(taken.dataset.pool) if taken.dataset.filesystem == "zfs" else None
            if pool is None:
                continue
            if pool.suspended:
                raise pool_suspended(pool.name)
            if pool.read_only:
                raise KopiatomicError(
                    f"the pool {printable(pool.name)} is imported read-only: no snapshot can be made in it",
                    kind="pool-read-only",
                    hint="Import it writable, or back up its mounted files directly.",
                )


def _zfs(dataset: ZfsDataset, mountpoint: str) -> Dataset:
    return Dataset("zfs", dataset.name, dataset.name.partition("/")[0], mountpoint)


def _btrfs(subvolume: BtrfsSubvolume) -> Dataset:
    return Dataset("btrfs", subvolume.path, subvolume.filesystem, subvolume.path, subvolume.id, subvolume.device)


def _described(mount: Mount) -> str:
    return f"{printable(mount.source)} ({mount.fstype})"


def _not_a_dataset(name: str, path: str, mount: Mount) -> KopiatomicError:
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
            f"{shown} is a mounted snapshot ({printable(mount.source)}), not a filesystem",
            kind="not-a-filesystem",
            hint=f"Name the dataset itself: {printable(mount.source.partition('@')[0])}",
        )
    what = f"dataset {printable(mount.source)}" if mount.fstype == "zfs" else "Btrfs subvolume"
    return KopiatomicError(
        f"{shown} is no mount point: it lies in the {what} mounted at {printable(mount.point)}",
        kind="not-a-mount-point",
        hint=f"Name {printable(mount.source if mount.fstype == 'zfs' else mount.point)} to take it whole.",
    )
