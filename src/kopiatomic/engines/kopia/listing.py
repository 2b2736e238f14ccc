"""Whether kopia's new snapshot shows every mount of the view, checked in the repository: what kopia listed is what it kept."""

from __future__ import annotations

import json
import os.path
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from kopiatomic.engines.engine import Job
from kopiatomic.engines.kopia.client import Client, last_error
from kopiatomic.engines.kopia.output import Manifest
from kopiatomic.engines.listing import record_in
from kopiatomic.engines.names import OddNames
from kopiatomic.engines.numbers import number
from kopiatomic.engines.program import KEEP
from kopiatomic.errors import KopiatomicError
from kopiatomic.paths import below, is_at_or_below
from kopiatomic.system import process
from kopiatomic.text import first_few, printable, spelled

HEAD = b'{"stream":"kopia:directory","entries":'
"""How a directory's object begins; ``null`` or a list follows (snapshot/manifest.go, DirManifest)."""

_BEGINNING = 4096
"""How much (bytes) of a directory's object is enough to see whether it has an entry."""

STAND_IN = "\ufffd"
"""What kopia's JSON has for each byte of a name that is not text: two names may become one, and a restore keeps only one."""

_ABSENT = ("entry not found", "parent is not a directory")


def missing(client: Client, manifest: Manifest, job: Job, source: str) -> list[str]:
    """Return what the snapshot of a source lacks, in words: mounts that it does not show, or shows empty although they are not.

    Uses one process for each directory that holds mount points. A place that could not be examined is reported as well.
    """
    problems = []
    mounted = job.places(source)
    place = mounted.get("/")
    if place is not None and place in job.filled and not _holds_something(manifest.summary):
        problems.append(_empty(job, place))
    for parent, places in _by_parent(mounted).items():
        try:
            problems += _below(client, manifest, job, parent, places)
        except KopiatomicError as error:
            problems.append(f"kopia's snapshot could not be looked at below {printable(parent)}: {error.message}")
    return problems


def has_record(client: Client, manifest: Manifest, job: Job, source: str) -> bool:
    """Whether the metadata record is in the snapshot of a source; what could not be found out counts as no."""
    path = below(record_in(job.plan), source)
    if not path:
        return False
    try:
        return not _is_absent(client.show(f"{manifest.root_object}/{path}", keep=1))
    except KopiatomicError:
        return False


def confused(client: Client, manifest: Manifest, odd: OddNames, source: str) -> list[str]:
    """Return names that are the same in the snapshot of a source, in words; what kopia was told to ignore is not in it."""
    kept: list[str] = []
    by_folder: dict[str, list[str]] = {}
    for path in odd.paths:
        if is_at_or_below(path, source):
            by_folder.setdefault(os.path.dirname(path), []).append(path)
    for folder, paths in by_folder.items():
        names = _names(client, manifest, spelled(f"/{below(folder, source)}", STAND_IN))
        kept += [p for p in paths if names is None or names[spelled(os.path.basename(p), STAND_IN)] > 1]
    if not kept:
        return []
    count = len(kept) + odd.count - len(odd.paths)
    return [
        f"{count} names are not their own in kopia, which has one sign for every byte that is no text, and of those that become "
        f"equal a restore keeps one: {first_few(kept)} (rename them, or use --engine restic or borg)"
    ]


def _names(client: Client, manifest: Manifest, folder: str) -> Counter[str] | None:
    """Return how often each name is in a directory of a snapshot; None if that cannot be determined."""
    try:
        finished = client.show(_folder(manifest, folder))
        entries = [] if _is_absent(finished) else json.loads(finished.stdout)["entries"] or []
        return Counter(str(entry["name"]) for entry in entries)
    except (KopiatomicError, ValueError, KeyError, TypeError):
        return None


def questions(client: Client, manifest: Manifest, job: Job, source: str) -> list[tuple[str, ...]]:
    """Return the commands that :func:`missing` will run, to be run ahead of time."""
    return [client.showing(_folder(manifest, parent)) for parent in _by_parent(job.places(source))]


def _by_parent(mounted: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
    """Return the places that are mounted in a source, without its own root, by the directory that they are in."""
    found: dict[str, dict[str, str]] = {}
    for path, place in mounted.items():
        if path != "/":
            found.setdefault(os.path.dirname(path), {})[path] = place
    return found


def _folder(manifest: Manifest, parent: str) -> str:
    return manifest.root_object + parent.rstrip("/")


def holds(client: Client, root_object: str, path: str) -> bool:
    """Whether a snapshot has something in a directory. Raises KopiatomicError if that cannot be determined."""
    finished = client.show(root_object + path, keep=_BEGINNING)
    return not _is_absent(finished) and finished.stdout.startswith(HEAD + b"[")


def _below(client: Client, manifest: Manifest, job: Job, parent: str, places: Mapping[str, str]) -> Iterator[str]:
    finished = client.show(_folder(manifest, parent))
    if len(finished.stdout) >= KEEP:
        # A directory of some 250,000 entries: query each mount separately.
        yield from _one_by_one(client, manifest, job, places)
        return
    entries = {} if _is_absent(finished) else _entries(finished)
    volumes = job.volumes
    for path, place in places.items():
        entry = entries.get(os.path.basename(path))
        volume = place in volumes
        if entry is None or entry.get("type") != ("f" if volume else "d"):
            yield _absent(job, place)
        elif volume and entry.get("size") != volumes[place]:
            yield f"{job.named(place)} has {entry.get('size')} bytes in kopia's snapshot, and the volume has {volumes[place]}"
        elif place in job.filled and not _holds_something(entry.get("summ") or {}):
            yield _empty(job, place)


def _one_by_one(client: Client, manifest: Manifest, job: Job, places: Mapping[str, str]) -> Iterator[str]:
    for path, place in places.items():
        finished = client.show(manifest.root_object + path, keep=_BEGINNING)
        if _is_absent(finished) or not finished.stdout.startswith(HEAD):
            yield _absent(job, place)
        elif place in job.filled and not finished.stdout.startswith(b"[", len(HEAD)):
            yield _empty(job, place)


def _is_absent(finished: process.Finished) -> bool:
    """Whether kopia reports that there is no such directory. Raises KopiatomicError for any other failure."""
    if finished.status == 0:
        return False
    if any(text in finished.errors for text in _ABSENT):
        return True
    raise KopiatomicError(last_error(finished), kind="kopia-failed")


def _entries(finished: process.Finished) -> dict[str, Mapping[str, Any]]:
    """Return the entries of a directory by name. Raises KopiatomicError if the object is not a kopia directory."""
    try:
        document = json.loads(finished.stdout)
        return {entry["name"]: entry for entry in document["entries"] or []}
    except (ValueError, RecursionError, KeyError, TypeError):
        raise KopiatomicError("kopia shows it as something else than a folder", kind="kopia-failed") from None


def _holds_something(summary: Mapping[str, Any]) -> bool:
    """Whether more than the directory itself, which is in ``dirs``, is counted. Failed entries are too, and reported
    separately.
    """
    return number(summary, "dirs") > 1 or any(
        number(summary, key) for key in ("files", "symlinks", "numFailed", "numIgnoredErrors")
    )


def _absent(job: Job, place: str) -> str:
    return f"{job.named(place)} is not in kopia's snapshot: do kopia's ignore rules or its policies leave it out?"


def _empty(job: Job, place: str) -> str:
    return (
        f"{job.named(place)} is empty in kopia's snapshot, and the dataset is not: do kopia's ignore rules or a "
        "CACHEDIR.TAG leave its content out, or is it only sockets, pipes and devices, which kopia cannot store?"
    )
