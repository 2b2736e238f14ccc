"""ZFS snapshots that a dead run left: which they are, what proves them ours, how they go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from kopiatomic import ownership
from kopiatomic.errors import KopiatomicError, pool_suspended
from kopiatomic.model import Intent, Leftover
from kopiatomic.ownership import TAG
from kopiatomic.snapshots import zfs
from kopiatomic.snapshots.zfs import Seen
from kopiatomic.system import host, libzfs_core, pools, process
from kopiatomic.text import ended, printable

KIND = "zfs-snapshot"
_LIST_TIMEOUT = 300.0


def recorded(run_id: str, intents: Sequence[Intent]) -> list[Leftover]:
    """Those of a dead run's snapshots that are left. What has the name and is not ours, is not among them.

    Raises KopiatomicError where that cannot be told.
    """
    for pool in sorted({intent.place for intent in intents}):
        _require_answer(pool)
    found = zfs.look([intent.name for intent in intents])
    left = []
    for intent in intents:
        seen = found.get(intent.name)
        proof = None if seen is None else _proof(run_id, intent, seen)
        if proof is not None:
            left.append(_leftover(run_id, intent.place, intent.name, proof, held=bool(found[intent.name].holds)))
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


def _proof(run_id: str, intent: Intent, seen: Seen) -> str | None:
    """What proves a snapshot with a recorded name ours; None if it is somebody else's."""
    mark = ownership.parse(seen.mark)
    if mark is None or mark.run_id != run_id:
        return None
    if intent.identity is None:
        # Killed before its guid was known: then it has to name this host as well.
        return f"on record, {ownership.PROPERTY}={mark}" if mark.of_this_host else None
    if (seen.guid, seen.createtxg) != (intent.identity, intent.transaction):
        return None
    return f"on record, {ownership.PROPERTY}={mark}, guid {seen.guid}, createtxg {seen.createtxg}"


def _leftover(run_id: str, pool: str, name: str, proof: str, *, held: bool) -> Leftover:
    return Leftover(run_id, KIND, pool, name, proof, zfs.destroy_command(name, held=held))


def unrecorded(names: Iterable[str] | None, is_dead: Callable[[str], bool], problems: list[str]) -> list[Leftover]:
    """Snapshots of dead runs of this host in these pools (None: in all), on record or not. Raises KopiatomicError."""
    if names is None and not host.here().has_zfs():
        # Without the kernel's module there is no pool.
        return []
    libzfs_core.prepare()
    # zfs leaves them out without a word.
    problems += [pool_suspended(pool).message for pool in pools.suspended(names or host.here().pools() or ())]
    result = process.run(
        ["zfs", "list", "-H", "-t", "snapshot", "-o", "name", "-s", "name", *(["-r", "--", *names] if names else [])],
        timeout=_LIST_TIMEOUT,
        keep=1 << 30,
    )
    if result.status != 0 and b"no datasets available" not in result.stderr:
        raise KopiatomicError(
            f"the snapshots could not be listed: {result.errors.partition(chr(10))[0] or ended(result.status)}",
            kind="zfs-list",
            hint="See 'zfs list -t snapshot'.",
        )
    candidates = []
    for line in result.stdout.splitlines():
        # Most lines of a large pool are other people's: a cheap look first.
        if b"@kopiatomic_" in line:
            name = line.decode("utf-8", "surrogateescape")
            run_id = ownership.run_of(name.partition("@")[2])
            if run_id is not None and is_dead(run_id):
                candidates.append((name, run_id))
    found = zfs.look([name for name, _ in candidates]) if candidates else {}
    left = []
    for name, run_id in candidates:
        mark = ownership.parse(found[name].mark) if name in found else None
        if mark is not None and mark.run_id == run_id and mark.of_this_host:
            pool = name.partition("@")[0].partition("/")[0]
            proof = f"{ownership.PROPERTY}={mark}, which names this host"
            left.append(_leftover(run_id, pool, name, proof, held=bool(found[name].holds)))
    return left


def remove(leftovers: Sequence[Leftover]) -> list[Leftover]:
    """Release our hold, then destroy. Returns those that are left, with the problem. May wait for a transaction group."""
    for pool in sorted({leftover.place for leftover in leftovers}):
        names = [leftover.name for leftover in leftovers if leftover.place == pool]
        held = [name for name, seen in zfs.look(names).items() if seen.holds]
        if held:
            _each_if_not_all(lambda some: libzfs_core.release(some, TAG), held)
        _each_if_not_all(lambda some: libzfs_core.destroy(some, deferred=False), names)
    still = zfs.look([leftover.name for leftover in leftovers])
    return [replace(o, problem=_why(o.name, still[o.name])) for o in leftovers if o.name in still]


def _each_if_not_all(call: Callable[[Sequence[str]], None], names: Sequence[str]) -> None:
    """One call for all; where one of them stands in the way of the others, one for each. Who is left is asked for later."""
    try:
        call(names)
    except libzfs_core.ZfsCallError:
        for name in names:
            try:
                call([name])
            except libzfs_core.ZfsCallError:
                continue


def _why(name: str, seen: Seen) -> str:
    if any(mount.source == name for mount in host.here().mounts()):
        return "somebody has mounted it"
    if seen.holds:
        return f"somebody else holds it (zfs holds {printable(name)})"
    return "it is busy: a clone, a receive, or a mount in another namespace"
