"""``kopiatomic restore``: brings back what a backup has, with what the engine has lost of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from kopiatomic import errors, platforms, presence
from kopiatomic.commands import datasets
from kopiatomic.commands.datasets import Part
from kopiatomic.commands.failures import ended
from kopiatomic.commands.folding import require_distinct
from kopiatomic.commands.profiles import Folder
from kopiatomic.commands.stored import NO_SUCH, Access, Stored, chosen, described, reader_of, record_of
from kopiatomic.engines import confining
from kopiatomic.engines.reader import Reader, StoredSnapshot, no_path, same_names
from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.filesystems.backends import NewDataset
from kopiatomic.immutable import immutable
from kopiatomic.model.plan import UNMOUNTED, VOLUMES
from kopiatomic.model.record import MADE
from kopiatomic.output.console import Console
from kopiatomic.paths import below, is_at_or_below, parents
from kopiatomic.system import signals
from kopiatomic.text import counted, few, first_few, printable
from kopiatomic.trees import removal
from kopiatomic.trees.apply import Restorer, joined, renamed
from kopiatomic.trees.attributes import without
from kopiatomic.trees.outcome import Outcome
from kopiatomic.trees.owners import Occurring, Owners, give, here
from kopiatomic.trees.shards import Changed, Group
from kopiatomic.trees.target import Done, Target
from kopiatomic.trees.walk import opened

FORMAT = "kopiatomic-restore-1"

_SHOWN = 20


@immutable
class Wanted:
    """What is to be restored, and into what."""

    what: str
    paths: Sequence[str] = ()
    to: str = ""
    """A directory."""
    dataset: str = ""
    """A dataset that was saved, and that a new one of the name ``new`` is made for."""
    new: str = ""
    metadata: bool = True
    names: bool = False
    """Whether owners are those with the recorded names, not numbers."""


def restore(wanted: Wanted, access: Access, folder: Folder, console: Console, *, as_json: bool) -> int:
    """Restore; return the exit code."""
    with signals.handled():
        return ended(lambda: _restore(wanted, access, folder, console, as_json=as_json), console)


def _restore(wanted: Wanted, access: Access, folder: Folder, console: Console, *, as_json: bool) -> int:
    _require_sense(wanted)
    if not platforms.here().records_metadata:
        raise KopiatomicError(
            "restore works on Linux only",
            kind="unsupported",
            hint="The engine's own restore brings the data back: see docs/restore.md, By hand.",
        )
    paths = [_checked(path) for path in wanted.paths]
    # All of it is below the root.
    paths = paths if all(paths) else []
    reader = reader_of(access, folder)
    console.phase(f"asking {reader.name} what there is")
    stored, part = _chosen(reader, wanted, paths)
    if wanted.metadata and stored.problem is not None:
        raise stored.problem
    applies = wanted.metadata and stored.index is not None
    if wanted.names and not applies:
        raise KopiatomicError(
            f"--names needs the metadata record, and {stored.described} {stored.without}",
            kind="no-record",
            hint="Without --names owners are the numbers that they were.",
        )
    if applies:
        _require_told(reader, stored, paths)
    made = _require_there(reader, stored, paths, applies=applies)
    if os.geteuid() != 0:
        console.warning("without root, owners, devices and attributes of the system cannot be restored")
    if (why := confining.refusal()) is not None:
        console.warning(
            f"{reader.name} can write outside of the target here ({why}): this is safe only if you trust whoever can write to "
            "its repository"
        )
    for one in stored.snapshots:
        if not one.complete:
            console.warning(f"{described(one)} is not complete: files are missing in it")
    if wanted.metadata and stored.index is None:
        console.warning(f"{stored.described} {stored.without}: what {reader.name} loses does not come back")
    what = {
        "engine": reader.name,
        "snapshot": ", ".join(one.id for one in stored.snapshots),
        "paths": "\n".join(map(printable, paths)),
    }
    if part is not None:
        what["dataset"] = printable(part.dataset.name)
    whole = stored.complete and not (wanted.metadata and stored.is_gone)
    with ExitStack() as stack:
        new = None
        if part is None:
            target = stack.enter_context(Target.prepared(wanted.to, what))
        else:
            new, target = stack.enter_context(datasets.made(part.dataset, wanted.new, what))
        restoring = _Restoring(reader, stored, target, paths, part, made, applies, console)
        owners = here(stored.index.names) if wanted.names and stored.index is not None else Owners()
        outcome = restoring.run(owners, new)
        code = _said(restoring, outcome, new, whole=whole, as_json=as_json)
        # From now on it need not be run again.
        target.release()
        return code


def _require_sense(wanted: Wanted) -> None:
    """Refuse options that do not go together. Raises UsageError, and KopiatomicError without root."""
    problem = None
    example = "restore latest /home/ann --to /srv/back"
    if not wanted.what or os.path.isabs(wanted.what):
        problem = (
            f"{printable(wanted.what) or 'nothing'} is no snapshot: "
            "the first word is 'latest', or the beginning of an id or a time"
        )
    elif wanted.to and (wanted.dataset or wanted.new):
        problem = "--to is for a directory, --dataset and --as are for a dataset"
    elif bool(wanted.dataset) != bool(wanted.new):
        problem = "--dataset and --as go together: what was saved, and the new dataset"
    elif not wanted.to and not wanted.dataset:
        problem = "it is not said where to: a directory (--to DIR), or a new dataset (--dataset D --as NEW)"
    elif wanted.dataset and wanted.paths:
        problem = "--dataset restores all of a dataset, without paths"
    elif not wanted.metadata and (wanted.dataset or wanted.names):
        problem = f"{'--dataset' if wanted.dataset else '--names'} needs the metadata record"
    if problem is not None:
        if wanted.dataset or wanted.new:
            example = "restore latest --dataset tank/home --as tank/home.restored"
        raise UsageError(problem, kind="usage", hint=f"For example: kopiatomic {example}")
    if (wanted.dataset or wanted.names) and os.geteuid() != 0:
        what = "datasets are made and mounted" if wanted.dataset else "owners are set"
        raise KopiatomicError(f"{what} by root alone", kind="not-root", hint="Run it as root.")


def _chosen(reader: Reader, wanted: Wanted, paths: list[str]) -> tuple[Stored, Part | None]:
    """Return the snapshot, and the dataset of it if one is wanted, whose place is then the one path. Raises KopiatomicError."""
    if wanted.dataset:
        # A path, of a Btrfs subvolume, may be completed with a slash.
        name = wanted.dataset.rstrip("/") or "/"
        stored = datasets.find(reader, wanted.what, name)
        part = datasets.part_of(stored, name)
        paths.append(part.place.rstrip("/"))
        return stored.narrowed(paths), part

    looked_at: list[Stored] = []

    def holds(one: Stored) -> bool:
        looked_at.append(one)
        return not one.known or all(map(one.holds, paths))

    try:
        stored = chosen(reader, wanted.what, holds if paths else None)
    except KopiatomicError as error:
        if error.kind != NO_SUCH or not looked_at:
            raise
        raise _nowhere(looked_at, paths) from None
    if not holds(stored):
        raise _nowhere([stored], paths)
    if stored.others and not any(paths):
        # All of the run: each of its paths.
        paths[:] = stored.tops()
    return stored.narrowed(paths), None


def _require_told(reader: Reader, stored: Stored, paths: Sequence[str]) -> None:
    """Refuse a path that is not the one which the engine would restore, or of which nobody can tell. Raises KopiatomicError."""
    form = reader.form
    if not form.changes_names or not any(form.stand_in in form.path(path) for path in paths):
        return
    names = renamed(record_of(reader, stored).forward())
    for path in paths:
        for one in (path, *parents(path)):
            directory, name = os.path.split(one)
            found = names.get((directory, form.path(name)), {name})
            if name not in found:
                raise no_path(reader.name, stored.of(path), path)
            if len(found) > 1:
                raise same_names(reader.name, path)


def _require_there(reader: Reader, stored: Stored, paths: Sequence[str], *, applies: bool) -> frozenset[str]:
    """Refuse paths that are not there; return those that are in the metadata record alone, which is enough to make them.

    Raises KopiatomicError.
    """
    absent: dict[str, KopiatomicError] = {}
    for path in filter(None, paths):
        try:
            reader.require(stored.of(path), stored.path(path))
        except KopiatomicError as error:
            if error.kind != f"{reader.name}-no-path" or not applies:
                raise
            absent[path] = error
    made: set[str] = set()
    for directory, entries in record_of(reader, stored).forward() if absent else ():
        made |= {path for one in entries if one.kind in MADE and (path := joined(directory, one)) in absent}
    for path in absent.keys() - made:
        raise absent[path]
    return frozenset(made)


def _nowhere(looked_at: Sequence[Stored], paths: Sequence[str]) -> KopiatomicError:
    """Return the error for paths that are in none of some snapshots."""
    roots = {one.root for one in looked_at if one.root.strip("/")}
    with_root = [path for path in paths if any(is_at_or_below(path, root) for root in roots)]
    hint = f"Saved were: {first_few(list(dict.fromkeys(place for one in looked_at for place in one.places())))}"
    if with_root:
        hint = f"The view root is no part of a path: name it without {first_few(sorted(roots))}. {hint}"
    return KopiatomicError(
        f"no snapshot that is meant has {first_few(list(with_root or paths))}", kind="no-such-path", hint=hint
    )


def _checked(path: str) -> str:
    if not os.path.isabs(path) or os.path.normpath(path) != (path.rstrip("/") or "/"):
        raise UsageError(
            f"{printable(path)} must be an absolute path, as it was when it was saved",
            kind="usage",
            hint="For example: kopiatomic restore latest /home/ann/docs --to /srv/back/docs",
        )
    return path.rstrip("/")


@immutable
class _Restoring:
    """A restore, from what and into what."""

    reader: Reader
    stored: Stored
    target: Target
    paths: Sequence[str]
    part: Part | None
    """The dataset, if one is restored; ``paths`` is then its place."""
    made: frozenset[str]
    """The paths that the engine does not have: they are made as they are recorded."""
    metadata: bool
    """Whether it has a metadata record that is applied."""
    console: Console

    def run(self, owners: Owners, new: NewDataset | None) -> Outcome:
        """Restore; return what came of it. Raises KopiatomicError, OSError."""
        outcome, owned, done = Outcome(), Occurring(), self.target.done
        if done is None:
            self._fill(outcome, owners, owned, new)
        else:
            self.console.notice("all of it is there already: only the last part is done again, and the comparison")
            outcome.applied = done.applied
            if done.failures:
                outcome.said.append(
                    f"the restore that was interrupted could not give back {done.failures} things, which only it could name: "
                    "restore into another place to see them"
                )
        with ExitStack() as stack:
            restorers = []
            if self.metadata:
                self.console.phase(
                    f"giving back what {self.reader.name} has lost"
                    if done is None
                    else "comparing with what is recorded"
                )
                restorers = list(self._restorers(self._record(owners, owned), outcome, stack))
            for restorer in restorers:
                restorer.apply() if done is None else restorer.compare()
            if new is not None:
                outcome.said += new.settle()
            self.target.finish(owners, Done(outcome.applied, len(outcome.reasons)))
            for restorer in restorers:
                restorer.last()
        if strange := owned.among(owners.strange):
            self.console.warning(f"nobody has these names here, and the numbers stay: {', '.join(few(strange, 100))}")
        return outcome

    def _fill(self, outcome: Outcome, owners: Owners, owned: Occurring, new: NewDataset | None) -> None:
        """Have the engine restore into the target. Raises KopiatomicError, OSError."""
        if new is None:
            self._look()
        outcome.said += self._data()
        if new is not None and new.inherited and not self.reader.form.keeps_attributes:
            # What had them is recorded.
            outcome.failures += without(self.target.fd, new.inherited)
        if owners:
            self.console.phase("setting owners by their names")
            outcome.failures += give(self.target.fd, owners, owned)

    def _look(self) -> None:
        """Refuse, or warn of, what the target cannot hold and the engine loses in silence. Raises KopiatomicError, OSError."""
        if self.target.folds_case:
            places = [(self.stored.of(path), self.stored.path(path)) for path in self.paths or [""]]
            require_distinct(self.reader, places, self.target.path)
        if self.reader.form.skips_attributes:
            for text in self.target.lacks():
                self.console.warning(text)

    def _data(self) -> list[str]:
        """Have the engine restore, and put everything into its place; return what it could not give back, in words.

        Raises KopiatomicError, OSError.
        """
        reader, stored, target = self.reader, self.stored, self.target
        failures: list[str] = []
        for path in self.paths or [""]:
            if path in self.made:
                target.make_way(below(os.path.dirname(path), "/") if len(self.paths) > 1 else "")
                continue
            self.console.phase(f"{reader.name} is restoring {printable(path or 'everything')}")
            below_it = stored.path(path) if path or stored.root else ""
            failures += self._restored(stored.of(path), below_it)
            for point in self.part.points if self.part is not None else ():
                removal.hollow(target.fd, f"{target.inside_data}{reader.form.restored(stored.path(point))}")
            # Without the record nobody can tell that the name is the one that was asked for.
            place = path if self.metadata else reader.form.restored(path)
            place = place if len(self.paths) > 1 else ""
            if not target.take_over(reader.form.restored(below_it), place):
                raise no_path(reader.name, stored.of(path), below_it)
            removal.remove(target.fd, target.inside_data)
        if stored.holder is not None:
            self._remove_record()
        if self.part is not None and not self.paths[0] and stored.root:
            # What else the view had at its root, and no dataset.
            for name in (UNMOUNTED, VOLUMES):
                removal.remove(target.fd, name.strip("/"))
        return failures

    def _restored(self, snapshot: StoredSnapshot, stored_path: str) -> Sequence[str]:
        """Have the engine restore; return what it could not give back, in words. Raises KopiatomicError, OSError."""
        try:
            return self.reader.restore(snapshot, self.target.data, below=stored_path)
        except KopiatomicError as error:
            if error.kind == f"{self.reader.name}-full":
                place = printable(self.target.name)
                error.hint = (
                    f"Make room in {place}, or where {self.reader.name} has its cache. The same command goes on later."
                )
            elif error.kind == f"{self.reader.name}-read-only":
                error.hint = (
                    f"{self.reader.name} can write into {printable(self.target.name)} alone: does the snapshot lead "
                    "elsewhere, by a link or by '..'? Or is that filesystem, or the repository's, mounted read-only?"
                )
            raise

    def _remove_record(self) -> None:
        """Remove the metadata record from what was restored, unless it was asked for by its path. Raises OSError."""
        record, fd = self.stored.record, self.target.fd
        for path in self.paths or [""]:
            if inside := below(record, path):
                removal.remove(fd, inside if len(self.paths) == 1 else below(record, "/"))
        if not self.paths and self.stored.is_beside:
            removal.remove_empty(fd, os.path.dirname(below(record, "/")))

    def _record(self, owners: Owners, owned: Occurring) -> Changed:
        """Return the metadata record of what is restored; what its entries belonged to is noted when it is read."""
        points = self.part.points if self.part is not None else ()
        tops = [path or "/" for path in self.paths or [""]]

        def change(group: Group) -> Group | None:
            path, entries = group
            if any(is_at_or_below(path, point) for point in points):
                return None
            if not owners:
                return group
            for entry in entries:
                if any(is_at_or_below(joined(path, entry), top) for top in tops):
                    owned.add(entry.uid, entry.gid)
                    owned.add_lists(entry.xattrs)
            return path, list(map(owners.entry, entries))

        return Changed(record_of(self.reader, self.stored), change)

    def _restorers(self, record: Changed, outcome: Outcome, stack: ExitStack) -> Iterator[Restorer]:
        """Yield what gives back what is recorded of each path. Raises OSError."""
        target = self.target
        for path in self.paths or self.stored.tops():
            # One path gives its content to the target; several, and all there is, have their places in it.
            inside = below(path, "/") if len(self.paths) != 1 else ""
            above, name = os.path.split(path)
            is_alone = len(self.paths) == 1 and not target.is_whole and self.part is None
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


def _said(restoring: _Restoring, outcome: Outcome, new: NewDataset | None, *, whole: bool, as_json: bool) -> int:
    """Say what came of it; return the exit code. ``whole``: whether the snapshot lacks nothing that it should have."""
    reader, stored, target, console = restoring.reader, restoring.stored, restoring.target, restoring.console
    wrong = bool(outcome.differences or outcome.reasons or not whole)
    if as_json:
        document: dict[str, Any] = {
            "format": FORMAT,
            "engine": reader.name,
            "snapshot": stored.snapshot.id,
            "snapshots": [one.id for one in stored.snapshots],
            "target": target.name,
            "metadata": restoring.metadata,
            "applied": outcome.applied,
            "absent": [printable(path) for path in outcome.absent],
            "differences": [str(one) for one in outcome.differences],
            "failures": outcome.reasons,
        }
        if new is not None and restoring.part is not None:
            document |= {
                "dataset": restoring.part.dataset.name,
                "others": list(restoring.part.others),
                "commands": list(new.commands),
                "notes": list(new.notes),
            }
        console.document(document)
    else:
        how = ", but not exactly: " if wrong else " "
        console.result(f"Restored{how}{stored.described} to {printable(target.name)}")
        if restoring.metadata:
            console.result(
                f"Metadata: {counted(outcome.applied, 'entry', 'entries')} given back what {reader.name} had lost, and compared"
            )
    if outcome.absent:
        console.warning(
            f"not in what {reader.name} saved, because of rules or errors: "
            f"{counted(len(outcome.absent), 'recorded entry', 'recorded entries')}: {first_few(outcome.absent)}"
        )
    kinds = outcome.kinds()
    for text in kinds[:_SHOWN]:
        console.warning(text)
    if len(kinds) > _SHOWN:
        console.warning(f"and {len(kinds) - _SHOWN} kinds of differences more (--json has all)")
    if new is not None and restoring.part is not None:
        _say_rest(restoring.part, new, target.name, console, as_json=as_json)
    return errors.INCOMPLETE if wrong else errors.SAVED


def _say_rest(part: Part, new: NewDataset, name: str, console: Console, *, as_json: bool) -> None:
    """Say what a new dataset does not have, and how it gets it."""
    for note in new.notes:
        console.notice(note)
    if part.others:
        shown = ", ".join(few(list(map(printable, part.others)), 100))
        console.notice(f"not in it are the datasets that lay below it, each of which is restored by itself: {shown}")
    if new.commands and not as_json:
        console.notice(
            f"what else was set on {printable(part.dataset.name)} is not set yet; these commands do it for {printable(name)}:"
        )
        for command in new.commands:
            console.result(command)
