"""``kopiatomic list``: what a repository has that can be restored."""

from __future__ import annotations

from kopiatomic import errors
from kopiatomic.commands.failures import ended
from kopiatomic.commands.profiles import Folder
from kopiatomic.commands.stored import Access, reader_of
from kopiatomic.output.console import Console
from kopiatomic.output.document import instant_text, instant_words
from kopiatomic.system import signals
from kopiatomic.text import first_few, printable

FORMAT = "kopiatomic-list-1"


def run(access: Access, folder: Folder, console: Console, *, as_json: bool) -> int:
    """List the snapshots; return the exit code."""
    with signals.handled():
        return ended(lambda: _run(access, folder, console, as_json=as_json), console)


def _run(access: Access, folder: Folder, console: Console, *, as_json: bool) -> int:
    reader = reader_of(access, folder)
    console.phase(f"asking {reader.name} what there is")
    snapshots = reader.snapshots()[::-1]
    if as_json:
        listed = [
            {
                "id": one.id,
                "instant": instant_text(one.started_ns),
                "host": one.host,
                "user": one.user,
                "sources": [printable(source) for source in one.sources],
                "complete": one.complete,
                "run_id": one.run,
            }
            for one in snapshots
        ]
        console.document({"format": FORMAT, "engine": reader.name, "snapshots": listed})
    elif not snapshots:
        console.result(f"{reader.name}'s repository has no snapshot")
    else:
        rows = [("INSTANT", "ID", "OF", "")]
        for one in snapshots:
            of = first_few([printable(source) for source in one.sources]) or printable(one.host)
            note = "" if one.complete else "incomplete"
            rows.append((instant_words(one.started_ns)[:19], printable(one.id), of, note))
        console.table(rows)
    return errors.SAVED
