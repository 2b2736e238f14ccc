"""``kopiatomic list``: what a repository has that can be restored, with what this machine has recorded of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from kopiatomic import errors
from kopiatomic.commands import profiles
from kopiatomic.commands.failures import ended
from kopiatomic.commands.profiles import Folder
from kopiatomic.commands.stored import Access, reader_of
from kopiatomic.engines.reader import StoredSnapshot, holders, is_record
from kopiatomic.errors import KopiatomicError
from kopiatomic.output.console import Console
from kopiatomic.output.document import instant_text, instant_words
from kopiatomic.state.records import Records, RunRecord
from kopiatomic.system import signals
from kopiatomic.text import first_few, printable

FORMAT = "kopiatomic-list-1"

_ID = 8
"""The fewest characters of an id that are shown."""

_RECORDED, _GONE = "recorded", "gone"
_SHOWN: Mapping[str | None, str] = MappingProxyType({None: "no", _RECORDED: "yes", _GONE: "gone"})
"""How the table says whether a snapshot has a metadata record."""

Runs = Mapping[tuple[str, str], RunRecord]
"""Recorded runs, by the id of each snapshot that they made and its time to the second."""


def run(access: Access, folder: Folder, state_dir: str, console: Console, *, as_json: bool) -> int:
    """List the snapshots; return the exit code."""
    with signals.handled():
        return ended(lambda: _run(access, folder, state_dir, console, as_json=as_json), console)


def _run(access: Access, folder: Folder, state_dir: str, console: Console, *, as_json: bool) -> int:
    reader = reader_of(access, folder)
    console.phase(f"asking {reader.name} what there is")
    there = reader.snapshots()[::-1]
    snapshots = [one for one in there if not is_record(one)]
    held = holders(there)
    metadata = {one.id: _metadata(one, is_there=one.id in held) for one in snapshots}
    if access.profile:
        state_dir = profiles.options(folder.load(access.profile), {}).state_dir
    runs = _recorded(state_dir, reader.name, console)
    if as_json:
        listed = [_document(one, runs.get(_key(one)), metadata[one.id]) for one in snapshots]
        console.document({"format": FORMAT, "engine": reader.name, "snapshots": listed})
    elif not snapshots:
        console.result(f"{reader.name}'s repository has no snapshot")
    else:
        rows = [("INSTANT (UTC)", f"{reader.name.upper()} ID", "SERIES", "RECORD", "")]
        of_run = Counter(one.run or one.id for one in snapshots)
        ids = _shortened([printable(one.id) for one in snapshots])
        for one, shown in zip(snapshots, ids, strict=True):
            known = runs.get(_key(one))
            record = _SHOWN[metadata[one.id]]
            series = _series(one, known, alone=of_run[one.run or one.id] == 1)
            rows.append((instant_words(one.started_ns)[:19], shown, series, record, _note(one, known)))
        console.table(rows)
    return errors.SAVED


def _recorded(state_dir: str, engine: str, console: Console) -> Runs:
    """Return the runs of an engine that this machine has recorded; only root may read them."""
    if os.geteuid() != 0:
        return {}
    records = Records(state_dir)
    try:
        runs = records.history(-1)
    except KopiatomicError as error:
        console.warning(f"what runs have made is not known here: {error.message}")
        return {}
    for warning in records.warnings:
        console.warning(warning)
    return {key: record for record in runs for key in _made_by(record, engine)}


def _made_by(record: RunRecord, engine: str) -> Iterator[tuple[str, str]]:
    """Yield the keys of the snapshots that a run made."""
    document = record.document or {}
    used, instant = document.get("engine") or {}, document.get("instant")
    if used.get("name") == engine and instant:
        ids = [used.get("snapshot_id"), *(source["snapshot_id"] for source in used.get("sources", ()))]
        # An earlier snapshot that stands for an unchanged source has another time.
        yield from ((one, instant[:19]) for one in ids if one)


def _key(snapshot: StoredSnapshot) -> tuple[str, str]:
    return printable(snapshot.id), instant_text(snapshot.started_ns)[:19]


def _shortened(ids: Sequence[str]) -> list[str]:
    """Return the beginnings that tell hexadecimal ids apart; names stay whole."""
    if not all(set(one) <= set("0123456789abcdef") for one in ids):
        return list(ids)
    length = _ID
    while len({one[:length] for one in ids}) < len(set(ids)):
        length += 1
    return [one[:length] for one in ids]


def _series(snapshot: StoredSnapshot, known: RunRecord | None, *, alone: bool) -> str:
    """Return what a snapshot is one of: by the name that it has here, or by what the engine knows of it.

    ``alone``: whether it is the only one of its run. Of several the path is shown as well.
    """
    sources = first_few(snapshot.shown_sources)
    if known is not None:
        return printable(known.profile or known.schedule or known.series) + ("" if alone else f" {sources}")
    return f"{printable(snapshot.user)}@{printable(snapshot.host)}" + (f":{sources}" if sources else "")


def _note(snapshot: StoredSnapshot, known: RunRecord | None) -> str:
    """Return what is to be said of a snapshot that is not as it should be."""
    if known is not None and known.result not in {None, "saved"}:
        return str(known.result)
    return "" if snapshot.complete else "incomplete"


def _metadata(snapshot: StoredSnapshot, *, is_there: bool) -> str | None:
    """Return whether a snapshot has a metadata record, by its mark, or that it is gone; None if it never had one."""
    if not snapshot.recorded:
        return None
    return _RECORDED if is_there else _GONE


def _document(snapshot: StoredSnapshot, known: RunRecord | None, metadata: str | None) -> dict[str, Any]:
    return {
        "id": snapshot.id,
        "instant": instant_text(snapshot.started_ns),
        "host": snapshot.host,
        "user": snapshot.user,
        "sources": [printable(source) for source in snapshot.sources],
        "complete": snapshot.complete,
        "metadata": metadata,
        "run_id": snapshot.run if known is None else known.id,
        "result": None if known is None else known.result,
        "series": None if known is None else printable(known.series),
        "profile": (None if known is None else known.profile) or None,
        "schedule": (None if known is None else known.schedule) or None,
    }
