"""``kopiatomic recover``: what it removes, and what it reports."""

from __future__ import annotations

from typing import Any

from kopiatomic import errors
from kopiatomic.commands.failures import ended, require_root
from kopiatomic.commands.history import one_of
from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems import KINDS, backends
from kopiatomic.filesystems.backends import Bookmarks
from kopiatomic.model.leftovers import Cleared, Leftover
from kopiatomic.output.console import Console
from kopiatomic.output.summary import ends_of_dead
from kopiatomic.runs.recovery import Allowed, Recovery
from kopiatomic.state import liveness, locks
from kopiatomic.state.liveness import Life
from kopiatomic.state.records import Records
from kopiatomic.state.state_file import NewerStateError, StateError
from kopiatomic.system import signals
from kopiatomic.text import printable

RECOVER_FORMAT = "kopiatomic-recover-1"


def recover(
    state_dir: str,
    console: Console,
    *,
    dry_run: bool,
    as_json: bool,
    forget: str | None = None,
    schedule: str | None = None,
    allowed: Allowed = Allowed(),  # noqa: B008 - immutable
) -> int:
    """Remove what dead runs left, and what else may be removed (``allowed``); return the exit code.

    ``forget`` is a run whose disks no longer exist; if it is empty, what ``--skip-unchanged`` keeps is removed as well.
    ``schedule`` limits the search to the runs of one schedule, as far as they are recorded.
    """

    def run() -> int:
        require_root("removing snapshots needs root", console.command_line)
        records = Records(state_dir)
        if forget:
            _forget(records, forget, console, allowed)
        if schedule is not None:
            cleared = _recovered_of(records, schedule, console, dry_run=dry_run, allowed=allowed)
        else:
            cleared = _recovered(records, console, dry_run=dry_run, allowed=allowed)
        bookmarks = 0
        if forget == "":
            _forget_unchanged(records, cleared, dry_run=dry_run)
        elif schedule is None and not cleared.problems:
            bookmarks = _count_bookmarks(cleared)
        console.acted = not dry_run and any(leftover.problem is None for leftover in cleared.leftovers)
        left = cleared.to_do if dry_run else cleared.left
        if as_json:
            console.document(_recover_document(cleared, dry_run=dry_run, left=left, bookmarks=bookmarks))
        else:
            for line in _recover_lines(cleared, dry_run=dry_run, left=left, bookmarks=bookmarks):
                console.result(line)
        for problem in cleared.problems:
            console.error_text(problem)
        return errors.UNCLEAN if left else errors.SAVED

    with signals.handled():
        return ended(run, console)


def _forget(records: Records, run_id: str, console: Console, allowed: Allowed) -> None:
    (run,) = one_of(records, run_id)
    state = Recovery(records, own=None, dry_run=False, warn=console.warning, allowed=allowed).forget(run.mark)
    if state is Life.UNKNOWN:
        raise KopiatomicError(
            liveness.unknown_text(run.id),
            kind="run-unknown",
            hint=f"If it is dead, add: --assume-dead {run.id}",
        )
    if state is Life.ALIVE:
        raise KopiatomicError(
            f"run {run.id} is alive", kind="run-alive", hint="Only what dead runs left can be forgotten."
        )


def _forget_unchanged(records: Records, cleared: Cleared, *, dry_run: bool) -> None:
    try:
        kept = [(bookmarks, bookmarks.kept()) for bookmarks in _bookmarks()]
        if not dry_run:
            records.forget_standing()
            kept = [(bookmarks, bookmarks.remove(theirs) if theirs else []) for bookmarks, theirs in kept]
        cleared.leftovers += [leftover for _, theirs in kept for leftover in theirs]
    except KopiatomicError as error:
        cleared.problems.append(f"{error.message} ({error.hint})")


def _bookmarks() -> list[Bookmarks]:
    found = [backends.of(kind).bookmarks for kind in KINDS.values() if kind.has_bookmarks]
    return [bookmarks for bookmarks in found if bookmarks is not None]


def _count_bookmarks(cleared: Cleared) -> int:
    try:
        return sum(len(bookmarks.kept()) for bookmarks in _bookmarks())
    except KopiatomicError as error:
        cleared.problems.append(f"{error.message} ({error.hint})")
        return 0


def _recovered(records: Records, console: Console, *, dry_run: bool, allowed: Allowed) -> Cleared:
    locks.prepare()
    recovery = Recovery(records, own=None, dry_run=dry_run, warn=console.warning, allowed=allowed)
    try:
        recovery.recorded()
    except NewerStateError:
        raise
    except StateError as error:
        # What no record mentions can still be found.
        recovery.cleared.problems.append(f"{error.message} ({error.hint})")
    known = len(recovery.cleared.leftovers)
    recovery.unrecorded(None)
    if not dry_run:
        recovery.remove(recovery.cleared.leftovers[known:])
        recovery.remove_stale_files()
    for warning in records.warnings:
        console.warning(warning)
    return recovery.cleared


def _recovered_of(records: Records, schedule: str, console: Console, *, dry_run: bool, allowed: Allowed) -> Cleared:
    """Recover what runs of a schedule left, by their records alone: no pool is queried that they did not use."""
    locks.prepare()
    recovery = Recovery(records, own=None, dry_run=dry_run, warn=console.warning, allowed=allowed)
    recovery.recorded({run.id for run in records.scheduled(schedule)})
    if not dry_run:
        recovery.remove_stale_files()
    for warning in records.warnings:
        console.warning(warning)
    return recovery.cleared


def _recover_document(cleared: Cleared, *, dry_run: bool, left: int, bookmarks: int) -> dict[str, Any]:
    return {
        "format": RECOVER_FORMAT,
        "dry_run": dry_run,
        "leftovers": [
            {
                "run_id": leftover.run_id or None,
                "kind": leftover.kind,
                "place": leftover.place or None,
                "name": leftover.name,
                "proof": leftover.proof,
                "action": leftover.command,
                "done": not dry_run and leftover.problem is None,
                "problem": leftover.problem,
            }
            for leftover in cleared.leftovers
        ],
        "interrupted": cleared.interrupted,
        "end_not_recorded": cleared.unended,
        "alive": cleared.alive,
        "unjudged": cleared.unjudged,
        "received": cleared.received,
        "bookmarks": bookmarks,
        "problems": cleared.problems,
        "left": left,
    }


def _recover_lines(cleared: Cleared, *, dry_run: bool, left: int, bookmarks: int) -> list[str]:
    lines = []
    for leftover in cleared.leftovers:
        if leftover.kind == "hook":
            did = _of_a_hook(leftover, dry_run=dry_run)
        elif leftover.problem is not None:
            did = f"LEFT: {leftover.problem} (remove it with: {leftover.command})"
        else:
            done = "thawed" if leftover.kind == "cgroup" else "removed"
            did = f"would be {done}" if dry_run else done
        lines.append(f"{leftover.kind.replace('-', ' ')} {printable(leftover.name)}")
        lines.append(f"  ours:   {leftover.proof or 'not proven'}")
        lines.append(f"  {did}")
    lines += [f"run {run_id} is alive: what it made is left alone" for run_id in cleared.alive]
    lines += ends_of_dead(cleared)
    lines += [
        f"{liveness.unknown_text(run_id)}: what it made is left alone; {liveness.assume_hint(run_id)}"
        for run_id in cleared.unjudged
    ]
    if bookmarks:
        lines.append(
            f"{bookmarks} bookmark(s) of --skip-unchanged stay: 'zfs rollback' to an older snapshot is refused without -r, "
            "which destroys the bookmark ('kopiatomic recover --forget' removes them all)"
        )
    return lines + _recover_verdict(cleared, dry_run=dry_run, left=left)


def _of_a_hook(leftover: Leftover, *, dry_run: bool) -> str:
    if leftover.problem is None:
        return f"would be run: {leftover.command}" if dry_run else f"run: {leftover.command}"
    if leftover.is_over:
        return leftover.problem
    return (
        f"OWED: {leftover.problem} (by hand: {leftover.command}; then: kopiatomic recover --forget {leftover.run_id})"
    )


def _recover_verdict(cleared: Cleared, *, dry_run: bool, left: int) -> list[str]:
    lines = []
    things = left - len(cleared.problems)
    if things:
        lines.append(f"{things} thing(s) {'to remove' if dry_run else 'left'}.")
    if cleared.problems:
        lines.append("What else is left cannot be told." if things else "Whether anything is left cannot be told.")
    count = cleared.received
    if not count:
        return lines or ["Nothing is left."]
    received = (
        f"{count} snapshot{'s' if count > 1 else ''} of other hosts' runs, or received with a stream, "
        f"{'are' if count > 1 else 'is'} left alone ('kopiatomic recover --received' removes them)."
    )
    return [*lines, received] if lines else [f"Nothing of this host is left; {received}"]
