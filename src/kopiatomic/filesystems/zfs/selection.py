"""ZFS datasets: which are asked for, where they are mounted, what becomes of each. Pure.

The mount table decides what is mounted where; the properties only say what is missing from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

from kopiatomic.errors import KopiatomicError, pool_suspended
from kopiatomic.filesystems import patterns
from kopiatomic.filesystems.selection import Ask, Selection, described, not_a_dataset
from kopiatomic.model.facts import JAIL_NEEDS, ZfsDataset
from kopiatomic.model.mounts import Mount, holder
from kopiatomic.model.plan import UNMOUNTED, VOLUMES, Dataset, Judged, PlannedPath, Taken, Verdict
from kopiatomic.model.request import is_path
from kopiatomic.paths import below, is_at_or_below, parents
from kopiatomic.text import printable

MAX_NAME = 255
"""The maximum length of a ZFS snapshot's name, including the dataset's name (ZFS_MAX_DATASET_NAME_LEN - 1)."""


def _container(name: str) -> str:
    return name.rpartition("/")[0]


_NO_VALUE = "no value"
"""The placeholder for a value of the property that has no meaning."""

_POOL_SUSPENDED = "its pool is suspended"


class ZfsSelection:
    """The datasets that are asked for, and the verdict on each known one."""

    def __init__(self, shared: Selection) -> None:
        self._shared = shared
        self._facts = shared.facts
        self._request = shared.request
        self._asked: dict[str, Ask] = {}
        self._outside: dict[str, str] = {}
        """Datasets below one of which only a path was named, and that path."""
        self._chosen: dict[str, Mount] = {}
        """The mounts that were named by a path."""
        self._mounts: dict[str, list[Mount]] = {}
        for mount in self._facts.mounts:
            if mount.fstype == "zfs" and "@" not in mount.source:
                self._mounts.setdefault(mount.source, []).append(mount)
        self._claims: dict[str, list[str]] = {}
        """The datasets that would be at a place if they were mounted as their properties say."""
        for name, dataset in self._facts.datasets.items():
            if dataset.canmount != "off":
                self._claims.setdefault(dataset.mountpoint, []).append(name)
        self._aside: set[str] = set()
        """The datasets that are taken to a place below ``/.unmounted``."""

    # What is asked for

    def ask_by_name(self, name: str) -> bool:
        """Ask for a dataset by its name, and return True: any word that is no path may be one."""
        self._ask_for(name, "it was named")
        return True

    def ask_by_path(self, name: str, path: str, mount: Mount) -> None:
        """Ask for the dataset or the part at a path. Raises KopiatomicError if a snapshot or only a part is mounted there."""
        if "@" in mount.source or mount.root != "/":
            raise not_a_dataset(name, path, mount, partial=mount.root != "/")
        if path != mount.point and path not in self._facts.directories:
            raise not_a_dataset(name, path, mount, partial=False)
        self._ask_for_path(path, mount)

    def _ask_for(self, name: str, why: str) -> None:
        """Ask for a dataset that the user named; with ``-r`` also for what is below it."""
        if self._request.by_property:
            # Names only say where to look for the property.
            return
        self._asked.setdefault(name, Ask()).add("", why, named=True)
        if self._request.recursive:
            self._ask_below(name)

    def _ask_for_path(self, path: str, mount: Mount) -> None:
        """Ask for a path in a mount of a whole dataset: the dataset or a part; with ``-r`` also for what belongs below the
        path.
        """
        name, part = mount.source, below(path, mount.point)
        self._chosen.setdefault(name, mount)
        if not part or self._request.by_property:
            self._ask_for(name, "it was named by a path")
            return
        self._asked.setdefault(name, Ask()).add(part, "it was named by a path", named=True)
        if self._request.recursive:
            self._ask_below(name, path)

    def _ask_below(self, name: str, path: str = "") -> None:
        for inside in self._below(name):
            if path and not any(is_at_or_below(point, path) for point in self._belongs_at(inside)):
                self._outside[inside] = path
            else:
                self._imply(inside, f"-r {printable(name)}")

    def _belongs_at(self, name: str) -> list[str]:
        """Return where a dataset is mounted, covered or not; where it would be if it is not mounted."""
        points = [m.point for m in self._mounts.get(name, ()) if m.root == "/"]
        return points or [self._facts.datasets[name].mountpoint]

    def _below(self, name: str) -> Iterator[str]:
        return (other for other in self._facts.datasets if other.startswith(f"{name}/"))

    def _point(self, name: str) -> str:
        mount = self._visible(name)
        return mount.point if mount else ""

    def _imply(self, name: str, why: str) -> None:
        self._asked.setdefault(name, Ask()).add("", why, named=False)

    def ask_by_pattern(self, pattern: str) -> int:
        """Ask for the datasets whose name, or mount point for a path, matches a pattern. Returns how many match."""
        count = 0
        for name, dataset in self._facts.datasets.items():
            if (dataset.kind == "filesystem" or self._request.volumes) and patterns.matches(
                pattern, self._point(name) if is_path(pattern) else name
            ):
                count += 1
                self._imply(name, f"the pattern {printable(pattern)}")
                if self._request.recursive:
                    self._ask_below(name)
        return count

    def ask_for_everything(self) -> None:
        """Ask for all known datasets (``-a``)."""
        for name in self._facts.datasets:
            self._imply(name, "-a")

    def ask_by_property(self) -> None:
        """Ask for the datasets that the property selects, in all pools or below those that were named."""
        scopes = [self._scope(name) for name in self._request.names]
        for name in self._facts.datasets:
            if scopes and not any(is_at_or_below(name, scope) for scope in scopes):
                continue
            value, _ = self._property(name)
            if value in {"on", _NO_VALUE}:
                self._imply(name, f"{self._request.property}=on")

    def _scope(self, name: str) -> str:
        path = self._facts.resolved.get(name)
        return name if path is None else holder(path, self._shared.seen).source

    # The property

    def _property(self, name: str) -> tuple[str, str]:
        """Return the effective value (on, off, children, empty, or :data:`_NO_VALUE`), and where it was set, in words."""
        setting = self._facts.properties.get(name)
        if setting is None:
            return "", ""
        origin = setting.source.removeprefix("inherited from ")
        inherited = origin != setting.source
        above = self._facts.properties.get(origin)
        if setting.source == "received" or (inherited and above is not None and above.source == "received"):
            of = name if not inherited else origin
            self._shared.note(
                f"{self._request.property} of {printable(of)} was received with a stream: it does not count"
            )
            return "", ""
        where = f"set on {printable(origin)}" if inherited else "set on it"
        if setting.value == "children":
            return ("on", where) if inherited else ("children", where)
        if setting.value not in {"on", "off"}:
            return _NO_VALUE, f"'{printable(setting.value)}', {where}"
        return setting.value, where

    # What becomes of each

    def judge(self) -> Iterator[Judged]:
        """Return the verdict on each known dataset. Raises KopiatomicError if one that was named cannot be taken."""
        # Sorted, so that of two nested datasets the upper one is judged first.
        verdicts = {name: self._judged(dataset) for name, dataset in sorted(self._facts.datasets.items())}
        for name, judged in verdicts.items():
            ask = self._asked.get(name)
            if ask is not None and ask.named and judged.verdict not in {Verdict.TAKEN, Verdict.EXCLUDED}:
                verdicts[name] = replace(judged, reason=self._container(name, judged, verdicts))
        yield from verdicts.values()
        yield from self._suspended()

    def _container(self, name: str, judged: Judged, verdicts: dict[str, Judged]) -> str:
        """Return why a named dataset itself is not taken: with ``-r`` it may be one that by its properties is not for mounting.

        Raises KopiatomicError for any other that was named and cannot be taken.
        """
        inside = any(verdicts[other].verdict is Verdict.TAKEN for other in self._below(name))
        volume = self._facts.datasets[name].kind != "filesystem"
        if not self._request.recursive or not inside or volume or judged.incomplete:
            raise KopiatomicError(
                f"{printable(name)} cannot be backed up: {judged.reason}", kind="cannot-take", hint=judged.hint or None
            )
        return f"{judged.reason}; what lies below it is taken"

    def _judged(self, dataset: ZfsDataset) -> Judged:
        name = dataset.name
        ask = self._asked.get(name)
        mount = self._visible(name)
        excluded = self._shared.excluded_by((name, mount.point if mount else ""))
        if excluded is not None:
            return self._verdict(dataset, Verdict.EXCLUDED, f"--exclude {printable(excluded)}")
        if ask is None or not ask.named:
            value, where = self._property(name) if ask or self._request.by_property else ("", "")
            if value in {"off", "children"}:
                reason = f"{self._request.property}={value}, {where}"
                return self._verdict(dataset, Verdict.EXCLUDED, reason)
            if value == _NO_VALUE and ask is not None:
                return self._bad_property(dataset, where)
        if ask is None:
            return self._not_asked_for(dataset)
        if self._facts.jailed and not dataset.zoned:
            return self._not_the_jails(dataset)
        if dataset.kind != "filesystem" and not self._request.volumes:
            hint = "--volumes takes volumes as well, each as a file of its size."
            return self._verdict(dataset, Verdict.VOLUME, f"it is a {dataset.kind}, not a filesystem", hint=hint)
        length = len(name) + len(self._request.suffix)
        useless = self._useless_pool(dataset, ask)
        if useless is not None:
            return useless
        refusal = self._shared.refusal(self._dataset(dataset, ""), named=ask.named)
        if refusal is not None:
            incomplete = refusal.verdict is not Verdict.DELETED
            return self._verdict(dataset, refusal.verdict, refusal.reason, incomplete=incomplete, hint=refusal.hint)
        if mount is None or length > MAX_NAME:
            return self._not_takeable(dataset, ask)
        self._take(dataset, ask, mount.point)
        reason = f"{ask.why}{self._other_places(name, mount)}"
        return self._verdict(dataset, Verdict.TAKEN, reason, places=self._shared.taken[-1].places)

    def _bad_property(self, dataset: ZfsDataset, what: str) -> Judged:
        """Judge a dataset with a bad property: who may set the property of one dataset decides only for that one."""
        word = self._request.property
        hint = f"It must be on, off or children: zfs set {word}=on {printable(dataset.name)}, or zfs inherit."
        return self._verdict(
            dataset, Verdict.BAD_PROPERTY, f"the property {word} is {what}", incomplete=True, hint=hint
        )

    def _not_the_jails(self, dataset: ZfsDataset) -> Judged:
        """Judge a dataset that contains the jail's: a jail sees it, and can neither snapshot nor mount it (zfs-jail(8))."""
        reason = "it is the host's, and not this jail's (jailed=off)"
        hint = f"Back it up on the host, or give it to the jail there: zfs jail JAIL {printable(dataset.name)}"
        return self._verdict(dataset, Verdict.NOT_THE_JAILS, reason, hint=f"{hint} (jailed=on, {JAIL_NEEDS}).")

    def _useless_pool(self, dataset: ZfsDataset, ask: Ask) -> Judged | None:
        """Judge a dataset in an unusable pool: a snapshot waits for ever in a suspended one and is impossible in a read-only one.

        Raises KopiatomicError if the dataset was named.
        """
        pool = self._facts.pools.get(dataset.name.partition("/")[0])
        if pool is not None and pool.suspended:
            if ask.named:
                raise pool_suspended(pool.name)
            return self._verdict(dataset, Verdict.SUSPENDED, _POOL_SUSPENDED, incomplete=True)
        if pool is not None and pool.read_only:
            hint = "Import it writable, or back up its mounted files directly."
            if ask.named:
                reason = f"the pool {printable(pool.name)} is imported read-only: no snapshot can be made in it"
                raise KopiatomicError(reason, kind="pool-read-only", hint=hint)
            reason = "its pool is imported read-only: no snapshot can be made in it"
            return self._verdict(dataset, Verdict.READ_ONLY_POOL, reason, incomplete=True, hint=hint)
        return None

    def _not_asked_for(self, dataset: ZfsDataset) -> Judged:
        top = self._outside.get(dataset.name)
        if top is not None:
            return self._verdict(dataset, Verdict.OUTSIDE, f"it is not mounted below {printable(top)}, which was named")
        if self._request.by_property:
            return self._verdict(dataset, Verdict.NOT_ASKED_FOR, f"{self._request.property} is not set for it")
        return self._verdict(dataset, Verdict.NOT_ASKED_FOR, "it was not named; -r takes it")

    def _not_takeable(self, dataset: ZfsDataset, ask: Ask) -> Judged:
        """Judge a filesystem that was asked for and cannot be taken, or only because of ``--include-unmounted``."""
        name = dataset.name
        length = len(name) + len(self._request.suffix)
        if length > MAX_NAME:
            reason = f"its name is too long for a snapshot's ({len(name)} + {length - len(name)} > {MAX_NAME})"
            hint = "Rename the dataset, or leave it out."
            return self._verdict(dataset, Verdict.NAME_TOO_LONG, reason, incomplete=True, hint=hint)
        whole = [m for m in self._mounts.get(name, ()) if m.root == "/"]
        if whole:
            cover = holder(whole[0].point, self._shared.mounted)
            reason = f"its mount at {printable(whole[0].point)} is covered by {described(cover)}"
            hint = "Unmount what covers it, or leave it out."
            return self._verdict(dataset, Verdict.COVERED, reason, incomplete=True, hint=hint)
        if dataset.keystatus == "unavailable":
            hint = f"zfs load-key {name}" + (f", then zfs mount {name}" if dataset.kind == "filesystem" else "")
            reason = "its encryption key is not loaded"
            return self._verdict(dataset, Verdict.KEY_NOT_LOADED, reason, incomplete=True, hint=hint)
        if dataset.zoned:
            reason = (
                "it belongs to a jail or a user namespace (zoned=on; on FreeBSD jailed=on), and is mounted only there"
            )
            hint = "Back it up from there, or leave it out."
            return self._verdict(dataset, Verdict.MOUNTED_ELSEWHERE, reason, incomplete=True, hint=hint)
        if dataset.kind != "filesystem":
            return self._take_volume(dataset, ask)
        if self._request.include_unmounted:
            return self._take_unmounted(dataset, ask)
        return self._not_mounted(dataset)

    def _not_mounted(self, dataset: ZfsDataset) -> Judged:
        name, point = dataset.name, dataset.mountpoint
        hint = f"Mount it (zfs mount {name}), take it with --include-unmounted, or leave it out."
        parts = [m for m in self._mounts.get(name, ()) if m.root != "/"]
        if parts:
            reason = f"only a part of it is mounted (a bind mount at {printable(parts[0].point)})"
            return self._verdict(dataset, Verdict.MOUNTED_ELSEWHERE, reason, incomplete=True, hint=hint)
        other = self._shared.seen.get(point)
        if other is not None and other.fstype == "zfs" and self._is_environment(dataset, other):
            reason = f"another boot environment is {'booted' if point == '/' else 'mounted there'} ({printable(other.source)})"
            return self._verdict(dataset, Verdict.BOOT_ENVIRONMENT, reason, hint=hint)
        at_boot = self._facts.at_boot.get(name)
        if at_boot is not None:
            reason = f"it should be mounted and is not: /etc/fstab has it at {printable(at_boot)}"
            hint = f"Mount it (mount {printable(at_boot)}), take it with --include-unmounted, or leave it out."
            return self._verdict(dataset, Verdict.NOT_MOUNTED, reason, incomplete=True, hint=hint)
        if point == "legacy" and self._facts.fstab_problem:
            reason = f"perhaps it should be mounted: /etc/fstab cannot be read ({self._facts.fstab_problem})"
            return self._verdict(dataset, Verdict.NOT_MOUNTED, reason, incomplete=True, hint=hint)
        if dataset.canmount == "off":
            return self._verdict(dataset, Verdict.NOT_MOUNTED, "it is not mounted (canmount=off)", hint=hint)
        if point == "none":
            return self._verdict(dataset, Verdict.NO_MOUNT_POINT, "it is not mounted (mountpoint=none)", hint=hint)
        if dataset.should_be_mounted:
            reason = "it should be mounted and is not"
            return self._verdict(dataset, Verdict.NOT_MOUNTED, reason, incomplete=True, hint=hint)
        why = "mountpoint=legacy" if point == "legacy" else f"canmount={dataset.canmount}"
        return self._verdict(dataset, Verdict.NOT_MOUNTED, f"it is not mounted ({why})", hint=hint)

    def _is_environment(self, dataset: ZfsDataset, mounted: Mount) -> bool:
        """Whether a dataset is a boot environment like the one that is mounted in its place: at ``/``, or elsewhere with an
        altroot; there they are siblings that are only mounted by hand.
        """
        siblings = "@" not in mounted.source and _container(dataset.name) == _container(mounted.source)
        return dataset.canmount != "off" and (dataset.mountpoint == "/" or (siblings and dataset.canmount == "noauto"))

    def _take_unmounted(self, dataset: ZfsDataset, ask: Ask) -> Judged:
        """Take a dataset whose snapshot is mounted only in the view."""
        if ask.parts != ("",):
            return self._not_mounted(dataset)
        point = dataset.mountpoint
        usual = dataset.canmount != "off" and point.startswith("/") and point != "/" and self._is_free(point)
        self._take(dataset, ask, point if usual else self._place_aside(dataset.name), mountpoint="")
        reason = f"{ask.why}; it is not mounted, and --include-unmounted takes it"
        return self._verdict(dataset, Verdict.TAKEN, reason, places=self._shared.taken[-1].places)

    def _take_volume(self, dataset: ZfsDataset, ask: Ask) -> Judged:
        self._take(dataset, ask, f"{VOLUMES}/{dataset.name}", mountpoint="")
        reason = f"{ask.why}; it is a volume, and --volumes takes it"
        return self._verdict(dataset, Verdict.TAKEN, reason, places=self._shared.taken[-1].places)

    def _is_free(self, point: str) -> bool:
        """Whether nothing else is or would be at a place, and it exists where a mount of what is taken must provide it."""
        if point in self._shared.seen or len(self._claims[point]) != 1 or point not in self._facts.directories:
            return False
        if point in self._above_asked:
            # It would block what is mounted below its place now.
            return False
        # What is not mounted cannot be examined: nothing is known about a place in it.
        for above in parents(point):
            if above in self._shared.seen:
                return True
            if any(name in self._asked for name in self._claims.get(above, ())):
                return False
        return True

    @cached_property
    def _above_asked(self) -> frozenset[str]:
        """The directories above mounts, or parts of them, that may be taken."""
        found: set[str] = set()
        for mount in self._shared.seen.values():
            ask = self._asked.get(mount.source) if mount.fstype == "zfs" else None
            if ask is not None or mount.fstype == "btrfs":
                for part in ask.parts if ask else ("",):
                    found.update(parents(f"{mount.point}/{part}" if part else mount.point))
        return frozenset(found)

    def _place_aside(self, name: str) -> str:
        """Return a place below ``/.unmounted`` that certainly exists.

        The frozen tree of a dataset that is itself placed there may have no directory for another: what is below that dataset
        goes into a directory next to it whose name ends in ``@``, which no dataset's name does.
        """
        self._aside.add(name)
        place, upper = UNMOUNTED, ""
        for component in name.split("/"):
            place += f"@/{component}" if upper in self._aside else f"/{component}"
            upper = f"{upper}/{component}".lstrip("/")
        return place

    def _take(self, dataset: ZfsDataset, ask: Ask, place: str, mountpoint: str | None = None) -> None:
        what = self._dataset(dataset, place if mountpoint is None else mountpoint)
        self._shared.taken.append(Taken(what, place, ask.named, ask.parts))

    @staticmethod
    def _dataset(dataset: ZfsDataset, mountpoint: str) -> Dataset:
        pool = dataset.name.partition("/")[0]
        volume = dataset.kind != "filesystem"
        return Dataset("zfs", dataset.name, pool, PlannedPath(mountpoint), volume=volume, guid=dataset.guid)

    def _visible(self, name: str) -> Mount | None:
        """Return the visible mount that shows the whole dataset; of several the one that was named, otherwise the first."""
        if name in self._chosen:
            return self._chosen[name]
        for mount in self._mounts.get(name, ()):
            if mount.root == "/" and self._shared.seen.get(mount.point) is mount:
                return mount
        return None

    def _other_places(self, name: str, mount: Mount) -> str:
        others = [printable(m.point) for m in self._mounts[name] if m is not mount and m.root == "/"]
        seen = [m for m in self._mounts[name] if m.root != "/" and self._shared.seen.get(m.point) is m]
        parts = [printable(m.point) for m in seen]
        said = f"; it is mounted at {', '.join(others)} as well" if others else ""
        return said + (f"; parts of it are mounted at {', '.join(parts)} as well" if parts else "")

    def _suspended(self) -> Iterator[Judged]:
        """Judge mounted datasets of suspended pools: zfs does not list them."""
        if not self._request.everything:
            return
        for name in self._mounts:
            pool = self._facts.pools.get(name.partition("/")[0])
            if pool is not None and pool.suspended and name not in self._facts.datasets:
                yield Judged(name, "zfs", Verdict.SUSPENDED, _POOL_SUSPENDED, incomplete=True)

    def _verdict(
        self,
        dataset: ZfsDataset,
        verdict: Verdict,
        reason: str,
        *,
        places: tuple[str, ...] = (),
        incomplete: bool = False,
        hint: str = "",
    ) -> Judged:
        facts = {"type": dataset.kind, "canmount": dataset.canmount, "keystatus": dataset.keystatus}
        if dataset.mountpoint:
            facts["mountpoint"] = dataset.mountpoint
        mounts = self._mounts.get(dataset.name, ())
        facts["mounts"] = ", ".join(m.point for m in mounts) or "none"
        return Judged(
            dataset.name, "zfs", verdict, reason, self._point(dataset.name), places, incomplete, "", hint, facts
        )
