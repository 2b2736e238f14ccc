"""Btrfs snapshots that a dead run left: which they are, what proves them ours, how they are removed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems.btrfs import folder
from kopiatomic.model.leftovers import Claim, Intent, Leftover
from kopiatomic.state import liveness, ownership
from kopiatomic.state.liveness import Life
from kopiatomic.state.ownership import Mark
from kopiatomic.system import btrfs, mountinfo
from kopiatomic.text import printable

KIND = "btrfs-snapshot"
_SYSFS = Path("/sys/fs/btrfs")


def recorded(run_id: str, intents: Sequence[Intent]) -> list[Leftover]:
    """Return a dead run's remaining snapshots, and its folders. Raises KopiatomicError if that cannot be determined."""
    left = []
    for filesystem in sorted({intent.place for intent in intents}):
        mine = {intent.name: intent for intent in intents if intent.place == filesystem}
        with _filesystem(filesystem) as (top, device), _refusals_in_words(device):
            # What a process deleted just before it was killed is not seen here, and could reappear after its record is gone.
            btrfs.commit(top)
            found = folder.entries(top, run_id)
            for entry in found or ():
                intent = mine.get(entry.path)
                if intent is not None:
                    left.append(_leftover(filesystem, device, entry, _proof(intent, entry)))
            known = {entry.path: entry.subvolume.uuid.hex() for entry in found or () if entry.subvolume is not None}
            # An intent without an identity was perhaps never made: the run's folder would hold the snapshot.
            unseen = [
                i for i in mine.values() if (found is None if i.identity is None else known.get(i.name) != i.identity)
            ]
            left += _elsewhere(top, run_id, device, unseen)
            if found == []:
                left.append(_empty(filesystem, run_id, device))
            elif found is None and folder.is_deserted(top):
                proof = "recorded: the run was to make it; it is root's alone, and empty"
                left.append(_directory(filesystem, run_id, device, folder.DIRECTORY, proof))
    return left


def _proof(intent: Intent, entry: folder.Entry) -> str:
    """Return what proves a snapshot in a run's own folder ours; empty if nothing does."""
    found = entry.subvolume
    if found is None:
        return "recorded, an empty directory in the run's own folder"
    if intent.identity is None:
        same = found.parent_uuid.hex() == intent.origin
        return f"recorded, in the run's own folder, a snapshot of subvolume {intent.origin}" if same else ""
    return f"recorded, in the run's own folder, UUID {intent.identity}" if found.uuid.hex() == intent.identity else ""


def _elsewhere(top: int, run_id: str, device: str, intents: Sequence[Intent]) -> Iterator[Leftover]:
    """Find those of a run's snapshots that are left, but not where the run made them: they are reported and not removed.

    They are searched for by their UUID, or by the name of their folder if no UUID is recorded. Raises OSError.
    """
    places = {intent.name: btrfs.place_of(top, bytes.fromhex(intent.identity)) for intent in intents if intent.identity}
    if any(intent.identity is None for intent in intents):
        for path in folder.astray(top, run_id):
            name = folder.name_of(run_id) + path.rpartition(ownership.PREFIX + run_id)[2]
            places.setdefault(name, path)
    for intent in intents:
        place = places.get(intent.name)
        if place is not None:
            known = f", UUID {intent.identity}" if intent.identity else ""
            command = folder.delete_command(printable(device), printable(place))
            problem = folder.moved(place, intent.name)
            yield Leftover(run_id, KIND, intent.place, intent.name, f"recorded{known}", command, problem)


def _leftover(filesystem: str, device: str, entry: folder.Entry, proof: str) -> Leftover:
    command = folder.delete_command(printable(device), entry.path)
    problem = None if proof else "it is not the snapshot that the run made there; look at it, and remove it by hand"
    return Leftover(entry.run_id, KIND, filesystem, entry.path, proof, command, problem)


def _empty(filesystem: str, run_id: str, device: str) -> Leftover:
    name = folder.name_of(run_id)
    return _directory(filesystem, run_id, device, name, "an empty directory with the run's name")


def _directory(filesystem: str, run_id: str, device: str, name: str, proof: str) -> Leftover:
    command = f"mount {printable(device)} with subvolid=5, then: rmdir MOUNT/{name}"
    return Leftover(run_id, KIND, filesystem, name, proof, command)


def unrecorded(names: Iterable[str] | None, life: Callable[[Mark], Life], problems: list[str]) -> list[Leftover]:
    """Return snapshots of runs on these filesystems (UUIDs; None: all that are mounted), recorded or not.

    Snapshots of runs that are known to be alive are left out.
    """
    wanted = None if names is None else set(names)
    left: list[Leftover] = []
    for filesystem, device in _mounted().items():
        if wanted is not None and filesystem not in wanted:
            continue
        try:
            with folder.top(device) as top, _refusals_in_words(device):
                for run_id in folder.runs(top):
                    left += _unrecorded_in(top, filesystem, device, run_id, life)
        except KopiatomicError as error:
            problems.append(error.message)
    return left


def _unrecorded_in(
    top: int, filesystem: str, device: str, run_id: str, life: Callable[[Mark], Life]
) -> Iterator[Leftover]:
    found = folder.entries(top, run_id)
    if found is None:
        return
    mark = folder.mark_of(top, run_id)
    ours = mark is not None and mark.run_id == run_id and liveness.is_local(mark)
    state = life(mark if ours and mark is not None else Mark(run_id, ""))
    if state is Life.UNKNOWN and folder.is_locked(top, run_id):
        # The lock on the folder belongs to the filesystem: every container and mount namespace sees it.
        state = Life.ALIVE
    if state is Life.ALIVE:
        return
    if found == []:
        if not folder.is_locked(top, run_id):
            yield _empty(filesystem, run_id, device)
        return
    claim = Claim.RECEIVED if not ours else Claim.UNJUDGED if state is Life.UNKNOWN else Claim.PROVEN
    proof = f"in a folder that only root enters and that is marked {mark}" if mark else "in a folder without a mark"
    for entry in found:
        yield replace(_leftover(filesystem, device, entry, proof), claim=claim)


def remove(leftovers: Sequence[Leftover]) -> list[Leftover]:
    """Delete the snapshots, then their folders. Returns those that are left, with the problem. Raises KopiatomicError."""
    left: list[Leftover] = []
    for filesystem, run_id in sorted({(leftover.place, leftover.run_id) for leftover in leftovers}):
        mine = {o.name: o for o in leftovers if (o.place, o.run_id) == (filesystem, run_id)}
        proven = {name for name, leftover in mine.items() if leftover.proof}
        with _filesystem(filesystem) as (top, device), _refusals_in_words(device):
            # Each path was proven a moment ago, in a folder that only root can enter.
            problems = folder.remove(top, run_id, lambda entry, proven=proven: entry.path in proven)  # type: ignore[misc]
        for name, reason in problems.items():
            command = folder.delete_command(printable(device), name)
            leftover = mine.get(name) or Leftover(run_id, KIND, filesystem, name, "", command)
            left.append(replace(leftover, problem=leftover.problem or reason))
    return left


@contextmanager
def _filesystem(uuid: str) -> Iterator[tuple[int, str]]:
    """Open the top-level subvolume of a mounted filesystem, and name a device of it. Raises KopiatomicError.

    A filesystem that is not mounted is left alone: its device may belong to somebody else now.
    """
    device = _mounted().get(uuid)
    if device is not None:
        with folder.top(device) as top:
            yield top, device
        return
    raise KopiatomicError(
        f"the Btrfs filesystem {uuid} is not mounted, or is mounted read-only",
        kind="btrfs-missing",
        hint="Mount it writable, then run 'kopiatomic recover'; if it is gone for good: kopiatomic recover --forget RUN",
    )


def _mounted() -> dict[str, str]:
    """Return a device of each mounted, writable Btrfs filesystem, by the filesystem's UUID.

    From sysfs (Documentation/ABI/testing/sysfs-fs-btrfs), so that no other filesystem is touched: it may be frozen. Raises
    KopiatomicError.
    """
    sources = {
        os.path.basename(os.path.realpath(mount.source)): mount.source
        for mount in mountinfo.read()
        if mount.fstype == "btrfs" and "ro" not in mount.super_options
    }
    found = {}
    try:
        for uuid in sorted(presence.names(str(_SYSFS))):
            devices = sorted(presence.names(str(_SYSFS / uuid / "devices")))
            device = next((sources[name] for name in devices if name in sources), None)
            if device is not None:
                found[uuid] = device
    except OSError as error:
        raise folder.failed("the mounted Btrfs filesystems cannot be listed", error) from None
    return found


@contextmanager
def _refusals_in_words(device: str) -> Iterator[None]:
    """Report in words what the kernel refuses inside the block."""
    try:
        yield
    except OSError as error:
        raise folder.failed(f"{folder.DIRECTORY} on {printable(device)} cannot be looked at", error) from None
