"""ZFS: one snapshot call for a pool, held and deferred-destroyed so that the kernel ties it to the run's descriptor."""

from __future__ import annotations

import errno
import os
import re
import shlex
import time
from collections.abc import Sequence
from contextlib import suppress

from kopiatomic.errors import KopiatomicError, VanishedError
from kopiatomic.immutable import immutable
from kopiatomic.model import Instant, Intent, Snapshot, SnapshotSet, Taken
from kopiatomic.ownership import PREFIX, PROPERTY, TAG, mark
from kopiatomic.snapshots import zfs_bookmarks, zfs_get
from kopiatomic.system import libzfs_core, process
from kopiatomic.text import ended, printable

GONE_TIMEOUT = 60.0
"""Seconds to wait for the kernel to have destroyed a released set."""

_HELD_TIMEOUT = 5.0
"""Seconds after which a hold that is still there is not ours: that one has been released several times by then."""

_RESUMED_POLL = 0.5
"""Seconds between two tries to release what a suspended pool holds up."""


class ZfsMaker:
    """The set of one pool."""

    def __init__(self, run_id: str, pool: str, taken: Sequence[Taken], bookmark: str = "") -> None:
        self._mark = str(mark(run_id))
        self._pool = pool
        self._bookmark = bookmark
        self._names = [f"{t.dataset.name}@{PREFIX}{run_id}" for t in taken]
        self._volumes = [f"{t.dataset.name}@{PREFIX}{run_id}" for t in taken if t.dataset.volume]

    def needs_descriptor(self) -> bool:
        """Temporary holds hang on it."""
        return True

    def check(self) -> None:
        """Load libzfs_core; the keeper inherits it."""
        libzfs_core.prepare()

    def intents(self) -> list[Intent]:
        """The exact names."""
        return [Intent("zfs", self._pool, name) for name in self._names]

    def prepare(self) -> None:
        """Nothing: datasets go by name, and the call itself tells which are gone."""

    def make(self) -> Instant:
        """One call, one transaction group. Raises VanishedError, KopiatomicError."""
        before = time.time_ns(), time.monotonic_ns()
        try:
            libzfs_core.snapshot(self._names, {PROPERTY: self._mark})
        except libzfs_core.ZfsCallError as error:
            raise self._snapshot_error(error) from None
        monotonic_after, wall_after = time.monotonic_ns(), time.time_ns()
        return Instant(before[0], wall_after, before[1], monotonic_after)

    def tie(self, cleanup_fd: int | None) -> None:
        """Temporary holds, then deferred destroy: the kernel destroys the set at the descriptor's last close."""
        assert cleanup_fd is not None
        try:
            libzfs_core.hold(self._names, TAG, cleanup_fd)
            libzfs_core.destroy(self._names, deferred=True)
        except libzfs_core.ZfsCallError as error:
            raise KopiatomicError(
                f"the snapshots of pool {self._pool} could not be tied to this run: {error.message}",
                kind="zfs-hold",
                hint="Was one destroyed or held by somebody else? See 'zpool history -i'.",
            ) from None

    def read_back(self, instant: Instant) -> SnapshotSet:
        """``createtxg`` of each: equal within a pool exactly if they are of one transaction group."""
        found = look(self._names)
        missing = [name for name in self._names if name not in found]
        if missing:
            raise KopiatomicError(
                f"the snapshot {printable(missing[0])} disappeared right after it was made",
                kind="snapshot-gone",
                hint="Somebody else destroys snapshots here; run again.",
            )
        sizes = _sizes(self._volumes) if self._volumes else {}
        states = zfs_bookmarks.follow({n: found[n].guid for n in self._names}, self._bookmark) if self._bookmark else {}
        snapshots = tuple(
            Snapshot(
                name.partition("@")[0],
                name,
                found[name].createtxg,
                found[name].guid,
                sizes.get(name),
                *states.get(name, ("", "")),
            )
            for name in self._names
        )
        made = SnapshotSet("zfs", self._pool, snapshots, instant)
        if not made.one_instant:
            raise KopiatomicError(
                f"the snapshots of pool {self._pool} are not of one transaction group, although one call made them",
                kind="not-one-txg",
                hint="Was one destroyed and made anew by somebody else? Run again; if it happens twice, please report it.",
            )
        return made

    def untie(self) -> None:
        """Release the holds by a call, and wait for the pool in it, so that the last close has nothing to wait for.

        While the last close of the descriptor waits for a suspended pool, no process can open /dev/zfs: not even ``zpool
        clear`` can, and only a reboot helps (the kernel holds its list of open descriptors locked then; seen on 2.1.11). A
        call that waits is in nobody's way.
        """
        while True:
            try:
                libzfs_core.release(self._names, TAG)
                return
            except libzfs_core.ZfsCallError as error:
                # Suspended before the call came: OpenZFS refuses it at once.
                if errno.EAGAIN not in {error.errno, *error.errors.values()}:
                    return
            time.sleep(_RESUMED_POLL)

    def remove(self) -> list[str]:
        """Wait until the kernel has destroyed the released set; destroy what nothing tied."""
        left = self._ours(self._names)
        began = time.monotonic()
        pause = 0.01
        while left and not self._in_vain(left, time.monotonic() - began):
            try:
                libzfs_core.destroy(left, deferred=False)
            except libzfs_core.ZfsCallError:
                # Still held or mounted: the kernel is not done with it yet, or its release failed because somebody had
                # mounted one.
                with suppress(libzfs_core.ZfsCallError):
                    libzfs_core.release(left, TAG)
                time.sleep(pause)
                pause = min(1.0, pause * 2)
            left = self._ours(left)
        held = {name for name, seen in look(left).items() if seen.holds} if left else set()
        return [
            f"snapshot {printable(name)} (remove it with: {destroy_command(name, held=name in held)})" for name in left
        ]

    def _in_vain(self, left: Sequence[str], waited: float) -> bool:
        """Whether it is no use to go on: too long, or nothing is left but what other people hold."""
        if waited < _HELD_TIMEOUT:
            return False
        return waited > GONE_TIMEOUT or all(seen.holds for seen in look(left).values())

    def _ours(self, names: Sequence[str]) -> list[str]:
        if not libzfs_core.may_exist(names):
            return []
        return [name for name, seen in look(names).items() if seen.mark == self._mark]

    def _snapshot_error(self, error: libzfs_core.ZfsCallError) -> KopiatomicError:
        numbers = set(error.errors.values()) or {error.errno}
        if errno.ENOENT in numbers:
            gone = [name.partition("@")[0] for name, number in error.errors.items() if number == errno.ENOENT]
            return VanishedError(gone or [self._pool])
        if errno.EAGAIN in numbers:
            # What OpenZFS answers where the pool is suspended already; if it is by this very call, the call waits.
            pool = printable(self._pool)
            return KopiatomicError(
                f"no snapshot was made: the pool {pool} is suspended: its devices do not answer",
                kind="pool-suspended",
                hint=f"See 'zpool status'; when the devices are back: zpool clear {pool}.",
            )
        number = numbers.pop()
        reason, hint = _REASONS.get(number, (os.strerror(number), "See 'zpool status' and 'dmesg'."))
        on = ", ".join(printable(name.partition("@")[0]) for name in sorted(error.errors)[:3]) or f"pool {self._pool}"
        return KopiatomicError(f"no snapshot was made of {on}: {reason}", kind="zfs-snapshot", hint=hint)


def destroy_command(name: str, *, held: bool) -> str:
    """What a person types to destroy a snapshot, and before it to release our hold."""
    destroy = shlex.join(["zfs", "destroy", printable(name)])
    return f"{shlex.join(['zfs', 'release', TAG, printable(name)])}; {destroy}" if held else destroy


_REASONS = {
    errno.ENOSPC: ("the pool is full", "Free space in the pool ('zfs list -o space'), then run again."),
    errno.EDQUOT: (
        "its quota or snapshot limit is reached",
        "Look at 'zfs get quota,refquota,snapshot_limit'; free space or raise the limit.",
    ),
    errno.EROFS: ("the pool is read-only", "Import it writable ('zpool get readonly')."),
    errno.EPERM: ("not permitted", "Run as root; in a container the host must allow it."),
    errno.EACCES: ("not permitted", "Run as root; in a container the host must allow it."),
    errno.EBUSY: ("it is busy", "Is a receive or rollback under way? Run again."),
    errno.EIO: ("input/output error", "See 'zpool status -v'."),
    errno.ENAMETOOLONG: ("its name is too long for a snapshot's", "Rename the dataset."),
}


_NUMBERS = ("guid", "createtxg", "userrefs")


@immutable
class Seen:
    """A snapshot as it is now. ``mark`` is our property's value if it is set on the snapshot itself, else empty."""

    guid: str
    createtxg: int
    mark: str
    holds: int


def look(names: Sequence[str]) -> dict[str, Seen]:
    """Those of the snapshots that exist, asked for by exact name: listing all of a pool is slow.

    Raises KopiatomicError where that one does not exist is not certain.
    """
    fields: dict[str, dict[str, str]] = {}
    gone: set[str] = set()
    waiting = process.parts(names)
    while waiting:
        part = waiting.pop()
        result, found = _get(part, [*_NUMBERS, PROPERTY])
        if found is None:
            # Somebody's property with tabs or newlines, which no mark of ours has: whose it is, is found by halves.
            middle = len(part) // 2
            if middle:
                waiting += [part[:middle], part[middle:]]
                continue
            result, found = _get(part, _NUMBERS)
            assert found is not None
        fields |= found
        gone |= {text.group(1) for text in _GONE.finditer(result.stderr.decode("utf-8", "surrogateescape"))}
        if unknown := set(part) - fields.keys() - gone:
            raise KopiatomicError(
                f"it cannot be told whether the snapshot {printable(min(unknown))} exists: "
                f"{result.errors.partition(chr(10))[0] or ended(result.status)}",
                kind="zfs-look",
                hint="See 'zpool status'.",
            )
    return {
        name: Seen(f["guid"], int(f["createtxg"]), f.get(PROPERTY, ""), int(f["userrefs"]))
        for name, f in fields.items()
    }


def _get(names: Sequence[str], columns: Sequence[str]) -> tuple[process.Finished, dict[str, dict[str, str]] | None]:
    """Properties of snapshots by name; of ours only what is set on the snapshot itself.

    None where a value holds tabs or newlines: with them it may look like other snapshots' lines. The name behind it shows that:
    such a value has to end in a line that begins with the name and one of the columns, which then are there twice.
    """
    result = zfs_get.run(
        ["get", "-Hp", "-t", "snapshot", "-o", "name,property,value,source,name", ",".join(columns), *names]
    )
    found: dict[str, dict[str, str]] = {}
    for line in (
        result.stdout.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n") if result.stdout else ()
    ):
        fields = line.split("\t")
        if len(fields) != 5 or fields[0] != fields[4]:
            return result, None
        name, key, value, source, _ = fields
        of_this = found.setdefault(name, {})
        if key not in columns or key in of_this:
            return result, None
        of_this[key] = value if key != PROPERTY or source == "local" else ""
    return result, found


def _sizes(names: Sequence[str]) -> dict[str, int]:
    """The sizes (bytes) of volumes at the instant of these snapshots. Raises KopiatomicError."""
    sizes = {name: int(value) for name, value in zfs_get.number(names, "snapshot", "volsize").items()}
    if unknown := set(names) - sizes.keys():
        raise KopiatomicError(
            f"the size of the volume {printable(min(unknown).partition('@')[0])} cannot be read", kind="zfs-look"
        )
    return sizes


_GONE = re.compile(r"^cannot open '(.*)': dataset does not exist$", re.MULTILINE)
