"""ZFS: one snapshot call per pool, held and deferred-destroyed so that the kernel ties it to the run's descriptor."""

from __future__ import annotations

import errno
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from kopiatomic.errors import KopiatomicError, concerns_all, pool_suspended
from kopiatomic.filesystems.zfs import bookmarks, busy, program
from kopiatomic.filesystems.zfs import look as zfs_look
from kopiatomic.filesystems.zfs.look import Seen, look
from kopiatomic.model.leftovers import Claim, Intent
from kopiatomic.model.plan import Dataset, Refusal, Taken, Verdict
from kopiatomic.model.snapshots import Instant, Sets, Snapshot, SnapshotSet
from kopiatomic.state.liveness import mark
from kopiatomic.state.ownership import PREFIX, PROPERTY, TAG
from kopiatomic.system import host, libzfs_core, process, zfs_program
from kopiatomic.text import few, printable

GONE_TIMEOUT = 60.0
"""Seconds to wait until the kernel has destroyed a released set."""

_HELD_TIMEOUT = 5.0
"""Seconds after which a remaining hold cannot be ours: ours has been released several times before that."""

_REFUSED_TRIES = 20
_REFUSED_TIMEOUT = 60.0
"""How often, and for how long (seconds), the snapshots are requested again without those that were refused."""

_GROUPS = 16
"""How many transaction groups may pass between the record of a snapshot and the snapshot: 80 s by ``zfs_txg_timeout``, less
if much is written. A snapshot later than that is left alone and reported."""

_RESUMED_POLL = 0.5
"""Seconds between two attempts to release what a suspended pool blocks."""


class ZfsMaker:
    """The set of one pool."""

    def __init__(self, run_id: str, pool: str, taken: Sequence[Taken], bookmark: str = "") -> None:
        self._run_id = run_id
        self._pool = pool
        self._bookmark = bookmark
        self._datasets = {f"{t.dataset.name}@{PREFIX}{run_id}": t.dataset for t in taken}
        """The datasets, by the names of their snapshots."""
        self._intents = {name: Intent("zfs", pool, name) for name in self._datasets}
        """The intents for all that may have been made, including what has been left out since."""
        self._renamed: list[Intent] = []
        """The snapshots that were not found by name while still held: somebody has renamed them."""
        self.refused: list[Refusal] = []
        self.once = False

    def needs_descriptor(self) -> bool:
        """Return True: temporary holds depend on a descriptor."""
        return True

    def check(self) -> None:
        """Load libzfs_core; the keeper inherits it."""
        libzfs_core.prepare()

    def intents(self) -> list[Intent]:
        """Return the exact names, and the transaction groups that the snapshots can belong to."""
        group = host.here().transaction_group(self._pool)
        between = None if group is None else (group, group + _GROUPS)
        self._intents = {name: Intent("zfs", self._pool, name, between=between) for name in self._names}
        return list(self._intents.values())

    def prepare(self) -> None:
        """Do nothing: datasets go by name, and the call itself reports which are gone."""

    def write_out(self) -> None:
        """End the open transaction group: sync(2) writes to the intent log only, and a snapshot waits for the group."""
        libzfs_core.sync(self._pool)

    @property
    def _names(self) -> list[str]:
        return list(self._datasets)

    def make(self) -> Instant | None:
        """Make the snapshots in one call and one transaction group: all or none. Refused ones are left out and it is repeated.

        Raises KopiatomicError.
        """
        deadline = time.monotonic() + _REFUSED_TIMEOUT
        tries = _REFUSED_TRIES
        while self._datasets:
            before = time.time_ns(), time.monotonic_ns()
            try:
                libzfs_core.snapshot(self._names, {PROPERTY: str(mark(self._run_id))})
            except libzfs_core.ZfsCallError as error:
                tries -= 1
                if not tries or time.monotonic() > deadline:
                    raise self._snapshot_error(error) from None
                self._leave_out(error)
                continue
            monotonic_after, wall_after = time.monotonic_ns(), time.time_ns()
            return Instant(before[0], wall_after, before[1], monotonic_after)
        return None

    def _leave_out(self, error: libzfs_core.ZfsCallError) -> None:
        """Leave out what the kernel refused by name. Raises KopiatomicError if no single dataset is at fault."""
        refused = {name: number for name, number in error.errors.items() if name in self._datasets}
        if not error.errors and error.errno == errno.ENOENT:
            # The pool itself is gone.
            refused = dict.fromkeys(self._datasets, errno.ENOENT)
        numbers = set(refused.values())
        # If only some have no room, a reservation is exhausted and not the pool.
        full = numbers == {errno.ENOSPC} and len(refused) < len(self._datasets)
        if not refused or (any(map(concerns_all, numbers)) and not full):
            raise self._snapshot_error(error)
        guids = self._guids() if errno.ENOENT in numbers else None
        for name, number in sorted(refused.items()):
            dataset = self._datasets.pop(name)
            if number == errno.ENOENT:
                self.refused.append(_gone(dataset, guids))
            else:
                reason, hint = _NO_ROOM if full else _REASONS.get(number, (os.strerror(number), "See 'dmesg'."))
                self.refused.append(Refusal(dataset, f"no snapshot was made of it: {reason}", hint=hint))

    def _guids(self) -> Mapping[str, str] | None:
        """Return the datasets of the pool by guid; None if they cannot be listed."""
        argv = ["zfs", "list", "-Hp", "-r", "-t", "filesystem,volume", "-o", "guid,name", "--", self._pool]
        try:
            result = zfs_program.run(argv, timeout=GONE_TIMEOUT)
        except (OSError, process.TimeLimitError, zfs_program.FailedError):
            return None
        found = {}
        for line in result.stdout.decode("utf-8", "surrogateescape").splitlines():
            guid, _, name = line.partition("\t")
            found[guid] = name
        return found

    def tie(self, cleanup_fd: int | None) -> None:
        """Place temporary holds, then destroy deferred: the kernel destroys the set at the descriptor's last close."""
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
        """Return the set with the ``createtxg`` of each: equal within a pool exactly if they are of one transaction group."""
        found = look(self._names)
        for name in [name for name in self._names if name not in found]:
            reason = "its snapshot disappeared right after it was made"
            hint = "Somebody else destroys snapshots here; run again."
            self.refused.append(Refusal(self._datasets.pop(name), reason, hint=hint))
        volumes = [name for name, dataset in self._datasets.items() if dataset.volume]
        sizes = _sizes(volumes) if volumes else {}
        states = bookmarks.follow({n: found[n].guid for n in self._names}, self._bookmark) if self._bookmark else {}
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
        if made.snapshots and (not made.one_instant or self._older(found)):
            raise KopiatomicError(
                f"the snapshots of pool {self._pool} are not of one transaction group of this run, although one call made them",
                kind="not-one-txg",
                hint="Has somebody else renamed them, or made one anew? Run again; if it happens twice, please report it.",
            )
        self.recall(Sets((made,)))
        return made

    def _older(self, found: Mapping[str, Seen]) -> bool:
        """Whether a snapshot existed before the run: somebody gave it the name of one that the run made."""
        between = {name: self._intents[name].between for name in found}
        return any(groups is not None and found[name].createtxg < groups[0] for name, groups in between.items())

    def recall(self, sets: Sets) -> None:
        """Take over guid and createtxg of each: from now on only they prove that it is ours."""
        for made in sets.sets:
            for snapshot in made.snapshots:
                intent = self._intents.get(snapshot.source)
                if intent is not None:
                    self._intents[intent.name] = replace(
                        intent, identity=snapshot.identity, transaction=snapshot.transaction
                    )

    def untie(self) -> None:
        """Release the holds by a call that waits for the pool, so that the last close has nothing to wait for.

        While the last close of the descriptor waits for a suspended pool, no process can open /dev/zfs: not even ``zpool
        clear`` can, and only a reboot helps (the kernel holds its list of open descriptors locked then; seen on 2.1.11). A
        waiting call blocks nobody.
        """
        made = [intent for intent in self._intents.values() if intent.identity is not None]
        self._renamed = [intent for intent in made if not libzfs_core.may_exist([intent.name])]
        while True:
            try:
                libzfs_core.release(self._names, TAG)
                return
            except libzfs_core.ZfsCallError as error:
                # The pool was suspended before the call: OpenZFS refuses it at once.
                if errno.EAGAIN not in {error.errno, *error.errors.values()}:
                    return
            time.sleep(_RESUMED_POLL)

    def remove(self) -> list[str]:
        """Wait until the kernel has destroyed the released set; destroy what was not tied."""
        self._follow_renamed()
        left, unproven = self._ours(list(self._intents))
        began = time.monotonic()
        pause = 0.01
        while left and not self._in_vain(left, time.monotonic() - began):
            try:
                libzfs_core.destroy(left, deferred=False)
            except libzfs_core.ZfsCallError:
                # Still held or mounted: the kernel has not finished with it, or its release failed because somebody had
                # mounted one.
                with suppress(libzfs_core.ZfsCallError):
                    libzfs_core.release(left, TAG)
                time.sleep(pause)
                pause = min(1.0, pause * 2)
            left, _ = self._ours(left)
        seen = look(left) if left else {}
        reasons = {**busy.reasons(list(seen)), **dict.fromkeys(unproven, UNPROVEN)}
        return few(
            [f"snapshot {printable(n)}: {reasons[n]} ({_by_hand(n, of)})" for n, of in {**seen, **unproven}.items()]
        )

    def _follow_renamed(self) -> None:
        """Find our snapshots that have been renamed, or whose name another snapshot now has."""
        names = list(self._intents)
        there = look(names) if libzfs_core.may_exist(names) else {}
        strangers = [self._intents[name] for name, seen in there.items() if claim(self._intents[name], seen) is None]
        for intent, name, _ in zfs_look.moved(self._run_id, self._pool, [*self._renamed, *strangers]):
            self._intents[name] = replace(intent, name=name)

    def _in_vain(self, left: Sequence[str], waited: float) -> bool:
        """Whether waiting any longer is pointless: it took too long, or only what other people hold is left."""
        if waited < _HELD_TIMEOUT:
            return False
        return waited > GONE_TIMEOUT or all(seen.holds for seen in look(left).values())

    def _ours(self, names: Sequence[str]) -> tuple[list[str], dict[str, Seen]]:
        """Return those that are left and proven ours, and those that are left and may be ours."""
        if not libzfs_core.may_exist(names):
            return [], {}
        found = look(names)
        claims = {name: claim(self._intents[name], seen) for name, seen in found.items()}
        proven = [name for name, claim in claims.items() if claim is Claim.PROVEN]
        return proven, {name: found[name] for name, claim in claims.items() if claim is Claim.UNRECORDED}

    def _snapshot_error(self, error: libzfs_core.ZfsCallError) -> KopiatomicError:
        numbers = set(error.errors.values()) or {error.errno}
        if errno.EAGAIN in numbers:
            # OpenZFS answers this if the pool is suspended already; if this very call suspends it, the call waits.
            return pool_suspended(self._pool, "no snapshot was made")
        number = numbers.pop()
        reason, hint = _REASONS.get(number, (os.strerror(number), "See 'zpool status' and 'dmesg'."))
        on = ", ".join(printable(name.partition("@")[0]) for name in sorted(error.errors)[:3]) or f"pool {self._pool}"
        return KopiatomicError(f"no snapshot was made of {on}: {reason}", kind="zfs-snapshot", hint=hint)


UNPROVEN = "it has the recorded name, and nothing proves that it is the one that the run made"


def _by_hand(name: str, seen: Seen) -> str:
    return f"remove it with: {destroy_command(name, held=bool(seen.holds))}"


def claim(intent: Intent, seen: Seen) -> Claim | None:
    """Return how sure it is that the snapshot with a recorded name is the one that the run made; None if it is another one.

    No property proves it: anybody who may rename snapshots and set properties (zfs-allow(8)) can give any of them name and mark.
    A run that was killed before its guid was known is believed to have made what its pool's transaction groups allow.
    """
    if intent.identity is not None:
        return Claim.PROVEN if (seen.guid, seen.createtxg) == (intent.identity, intent.transaction) else None
    if intent.between is not None and intent.between[0] <= seen.createtxg <= intent.between[1]:
        return Claim.PROVEN
    return Claim.UNRECORDED


def destroy_command(name: str, *, held: bool) -> str:
    """Return what a person types to destroy a snapshot, and before that to release our hold."""
    destroy = shlex.join(["zfs", "destroy", printable(name)])
    return f"{shlex.join(['zfs', 'release', TAG, printable(name)])}; {destroy}" if held else destroy


def _gone(dataset: Dataset, guids: Mapping[str, str] | None) -> Refusal:
    """Return why a dataset is not where it was listed. ``guids``: what the pool holds now; None if unknown."""
    if guids is not None and dataset.guid and dataset.guid not in guids:
        return Refusal(dataset, "it was deleted between listing and snapshot", Verdict.DELETED)
    moved = (guids or {}).get(dataset.guid)
    where = f"it is {printable(moved)} now" if moved else "it cannot be found"
    return Refusal(dataset, f"it vanished between listing and snapshot: {where}", Verdict.MOVED)


_NO_ROOM = ("there is no room for its reservation", "See 'zfs get refreservation,quota'; free space in the pool.")

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


def _sizes(names: Sequence[str]) -> dict[str, int]:
    """Return the sizes (bytes) of volumes at the instant of these snapshots. Raises KopiatomicError."""
    sizes = {name: int(value) for name, value in program.number(names, "snapshot", "volsize").items()}
    if unknown := set(names) - sizes.keys():
        raise KopiatomicError(
            f"the size of the volume {printable(min(unknown).partition('@')[0])} cannot be read", kind="zfs-look"
        )
    return sizes
