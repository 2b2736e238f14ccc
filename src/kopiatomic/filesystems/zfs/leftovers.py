"""ZFS snapshots that a dead run left: which they are, what proves them ours, how they are removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from kopiatomic.errors import KopiatomicError, pool_suspended
from kopiatomic.filesystems.zfs import busy
from kopiatomic.filesystems.zfs import look as zfs_look
from kopiatomic.filesystems.zfs import snapshots as zfs
from kopiatomic.filesystems.zfs.look import Seen, look
from kopiatomic.model.leftovers import Claim, Intent, Leftover
from kopiatomic.state import liveness, ownership
from kopiatomic.state.liveness import Life
from kopiatomic.state.ownership import TAG, Mark
from kopiatomic.system import host, libzfs_core, pools
from kopiatomic.text import printable

KIND = "zfs-snapshot"


def recorded(run_id: str, intents: Sequence[Intent]) -> list[Leftover]:
    """Return a dead run's snapshots that are, or may be, left. Others that have taken the name of one of ours are excluded.

    Raises KopiatomicError if that cannot be determined.
    """
    libzfs_core.prepare()
    left = []
    for pool in sorted({intent.place for intent in intents}):
        _require_answer(pool)
        mine = [intent for intent in intents if intent.place == pool]
        found = look([intent.name for intent in mine])
        claims = {i.name: zfs.claim(i, found[i.name]) for i in mine if i.name in found}
        there = {name: claim for name, claim in claims.items() if claim is not None}
        left += [_leftover(run_id, n, found[n], _proof(found[n], claim), claim) for n, claim in there.items()]
        for intent, name, seen in zfs_look.moved(run_id, pool, [i for i in mine if i.name not in there]):
            proof = f"{_proof(seen, Claim.PROVEN)}, made as {printable(intent.name)}"
            left.append(replace(_leftover(run_id, name, seen, proof, Claim.PROVEN), origin=intent.name))
    return left


def _require_answer(pool: str) -> None:
    if not pools.imported(pool):
        raise KopiatomicError(
            f"the pool {printable(pool)} is not imported",
            kind="pool-missing",
            hint="Import it; that alone removes what the kernel holds for us. Then run 'kopiatomic recover'; if it is gone for "
            "good: kopiatomic recover --forget RUN",
        )
    if pools.suspended([pool]):
        raise pool_suspended(pool)


def _proof(seen: Seen, claim: Claim) -> str:
    """Return what proves that a snapshot with a recorded name is ours."""
    identity = f"guid {seen.guid}, createtxg {seen.createtxg}"
    return f"recorded, {identity}" if claim is Claim.PROVEN else f"only its name is recorded; {identity}"


def _leftover(run_id: str, name: str, seen: Seen, proof: str, claim: Claim) -> Leftover:
    pool = name.partition("@")[0].partition("/")[0]
    command = zfs.destroy_command(name, held=bool(seen.holds))
    return Leftover(run_id, KIND, pool, name, proof, command, claim=claim, identity=seen.guid)


def unrecorded(names: Iterable[str] | None, life: Callable[[Mark], Life], problems: list[str]) -> list[Leftover]:
    """Return snapshots with the name of a run in these pools (None: all), recorded or not, unless that run is known to be alive.

    Raises KopiatomicError.
    """
    if names is None and not host.here().has_zfs():
        # Without the kernel module there are no pools.
        return []
    libzfs_core.prepare()
    # zfs silently leaves them out.
    problems += [pool_suspended(pool).message for pool in pools.suspended(names or host.here().pools() or ())]
    named = ((name, ownership.run_of(name.partition("@")[2])) for name in zfs_look.names(names))
    candidates = {name: run_id for name, run_id in named if run_id is not None}
    found = look(list(candidates)) if candidates else {}
    judged = (_judged(name, run_id, found[name], life) for name, run_id in candidates.items() if name in found)
    return [leftover for leftover in judged if leftover is not None]


def _judged(name: str, run_id: str, seen: Seen, life: Callable[[Mark], Life]) -> Leftover | None:
    """Judge a snapshot with a run's name; return None if that run is alive. The record is not consulted."""
    mark = ownership.parse(seen.mark)
    if mark is None or mark.run_id != run_id or not liveness.is_local(mark):
        if life(Mark(run_id, "")) is Life.ALIVE:
            return None
        return _leftover(run_id, name, seen, "a run's name, without this host's mark", Claim.RECEIVED)
    state = life(mark)
    if state is Life.ALIVE:
        return None
    claim = Claim.UNJUDGED if state is Life.UNKNOWN else Claim.UNRECORDED
    return _leftover(run_id, name, seen, f"{ownership.PROPERTY}={mark}, which names this host", claim)


def remove(leftovers: Sequence[Leftover]) -> list[Leftover]:
    """Release our hold, then destroy. Returns those that are left, with the problem. May wait for a transaction group."""
    for pool in sorted({leftover.place for leftover in leftovers}):
        mine = _still([leftover for leftover in leftovers if leftover.place == pool])
        # A hold on a snapshot made by another host's run is not ours.
        held = [o.name for o, seen in mine if seen.holds and o.claim is not Claim.RECEIVED]
        if held:
            _each_if_not_all(lambda some: libzfs_core.release(some, TAG), held)
        if mine:
            _each_if_not_all(lambda some: libzfs_core.destroy(some, deferred=False), [o.name for o, _ in mine])
    left = [leftover for leftover, _ in _still(leftovers)]
    reasons = busy.reasons([leftover.name for leftover in left])
    return [replace(leftover, problem=reasons[leftover.name]) for leftover in left]


def _still(leftovers: Sequence[Leftover]) -> list[tuple[Leftover, Seen]]:
    """Return those that still exist and have not been replaced by another of the same name."""
    found = look([leftover.name for leftover in leftovers])
    return [(o, found[o.name]) for o in leftovers if o.name in found and found[o.name].guid == o.identity]


def _each_if_not_all(call: Callable[[Sequence[str]], None], names: Sequence[str]) -> None:
    """Make one call for all; if one blocks the others, make one call each. What is left is checked later."""
    try:
        call(names)
    except libzfs_core.ZfsCallError:
        for name in names:
            try:
                call([name])
            except libzfs_core.ZfsCallError:
                continue
