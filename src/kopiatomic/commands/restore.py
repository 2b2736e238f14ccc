"""``kopiatomic restore``: brings back what a backup has, with what the engine has lost of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from kopiatomic import errors, platforms, presence
from kopiatomic.commands.failures import ended
from kopiatomic.commands.profiles import Folder
from kopiatomic.commands.stored import Access, Stored, chosen, described, reader_of, record_of
from kopiatomic.engines.reader import Reader, no_path
from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.immutable import immutable
from kopiatomic.model.plan import RECORD
from kopiatomic.output.console import Console
from kopiatomic.paths import below
from kopiatomic.system import signals
from kopiatomic.text import first_few, printable
from kopiatomic.trees import removal
from kopiatomic.trees.apply import Outcome, Restorer
from kopiatomic.trees.shards import Reading
from kopiatomic.trees.target import Target
from kopiatomic.trees.walk import opened

FORMAT = "kopiatomic-restore-1"

_SHOWN = 20


@immutable
class Wanted:
    """What is to be restored, and into which directory."""

    what: str
    paths: Sequence[str]
    to: str
    metadata: bool = True


def restore(wanted: Wanted, access: Access, folder: Folder, console: Console, *, as_json: bool) -> int:
    """Restore; return the exit code."""
    with signals.handled():
        return ended(lambda: _restore(wanted, access, folder, console, as_json=as_json), console)


def _restore(wanted: Wanted, access: Access, folder: Folder, console: Console, *, as_json: bool) -> int:
    if not platforms.here().records_metadata:
        raise KopiatomicError(
            "restore works on Linux only",
            kind="unsupported",
            hint="The engine's own restore brings the data back: see docs/restore.md, By hand.",
        )
    paths = [_checked(path) for path in wanted.paths]
    reader = reader_of(access, folder)
    console.phase(f"asking {reader.name} what there is")
    stored = chosen(reader, wanted.what, paths)
    if wanted.metadata and stored.problem is not None:
        raise stored.problem
    if os.geteuid() != 0:
        console.warning("without root, owners, devices and attributes of the system cannot be restored")
    if not stored.snapshot.complete:
        console.warning(f"{described(stored.snapshot)} is not complete: files are missing in it")
    if wanted.metadata and stored.index is None:
        console.warning(
            f"{described(stored.snapshot)} has no metadata record: what {reader.name} loses does not come back"
        )
    what = {"engine": reader.name, "snapshot": stored.snapshot.id, "paths": "\n".join(map(printable, paths))}
    with Target.prepared(wanted.to, what) as target:
        _data(reader, stored, paths, target, console)
        outcome = Outcome()
        with ExitStack() as stack:
            restorers = []
            if wanted.metadata and stored.index is not None:
                console.phase(f"giving back what {reader.name} has lost")
                restorers = list(_restorers(record_of(reader, stored), paths, target, outcome, stack))
            for restorer in restorers:
                restorer.apply()
            target.finish()
            for restorer in restorers:
                restorer.last()
        return _said(reader, stored, target, outcome, console, as_json=as_json)


def _checked(path: str) -> str:
    if not os.path.isabs(path) or os.path.normpath(path) != path.rstrip("/"):
        raise UsageError(
            f"{printable(path)} must be an absolute path, as it was when it was saved",
            kind="usage",
            hint="For example: kopiatomic restore latest /home/ann/docs --to /srv/back/docs",
        )
    return path.rstrip("/")


def _data(reader: Reader, stored: Stored, paths: Sequence[str], target: Target, console: Console) -> None:
    """Have the engine restore, and put everything into its place. Raises KopiatomicError, OSError."""
    for path in paths or [""]:
        console.phase(f"{reader.name} is restoring {printable(path or 'everything')}")
        below_it = stored.path(path) if path or stored.root else ""
        reader.restore(stored.snapshot, target.data, below=below_it)
        place = path if len(paths) > 1 else ""
        if not target.take_over(reader.form.restored(below_it), place):
            raise no_path(reader.name, stored.snapshot, below_it)
        removal.remove(target.fd, target.inside_data)
    if not paths and stored.root:
        removal.remove(target.fd, RECORD.strip("/"))


def _restorers(
    record: Reading, paths: Sequence[str], target: Target, outcome: Outcome, stack: ExitStack
) -> Iterator[Restorer]:
    """Yield what gives back what is recorded of each path. Raises OSError."""
    for path in paths or ["/"]:
        inside = below(path, "/") if len(paths) > 1 else ""
        above, name = os.path.split(path)
        is_alone = len(paths) == 1 and not target.is_whole
        if is_alone or not _is_directory(target, inside):
            top = stack.enter_context(opened(target.fd, os.path.dirname(inside)))
            yield Restorer(record, outcome, top, above, name)
        else:
            top = stack.enter_context(opened(target.fd, inside))
            yield Restorer(record, outcome, top, path)


def _is_directory(target: Target, inside: str) -> bool:
    try:
        with opened(target.fd, inside):
            return True
    except OSError as error:
        if presence.moved(error):
            return False
        raise


def _said(reader: Reader, stored: Stored, target: Target, outcome: Outcome, console: Console, *, as_json: bool) -> int:
    """Say what came of it; return the exit code."""
    wrong = bool(outcome.differences or outcome.failures or not stored.snapshot.complete)
    if as_json:
        document: dict[str, Any] = {
            "format": FORMAT,
            "engine": reader.name,
            "snapshot": stored.snapshot.id,
            "target": target.path,
            "metadata": stored.index is not None,
            "applied": outcome.applied,
            "absent": [printable(path) for path in outcome.absent],
            "differences": [str(one) for one in outcome.differences],
            "failures": outcome.failures,
        }
        console.document(document)
    else:
        console.result(f"Restored {described(stored.snapshot)} to {printable(target.path)}")
        if stored.index is not None:
            console.result(
                f"Metadata: {outcome.applied:,} entries given back what {reader.name} had lost, and compared"
            )
    if outcome.absent:
        console.warning(
            f"{len(outcome.absent)} recorded entries are not in what {reader.name} saved; rules or errors left them out: "
            f"{first_few([printable(path) for path in outcome.absent])}"
        )
    for text in [*outcome.failures, *map(str, outcome.differences)][:_SHOWN]:
        console.warning(text)
    more = len(outcome.failures) + len(outcome.differences) - _SHOWN
    if more > 0:
        console.warning(f"and {more} more (--json has all)")
    return errors.INCOMPLETE if wrong else errors.SAVED
