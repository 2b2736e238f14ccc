"""Which ZFS snapshots exist, asked for by exact name, or found by what identifies them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems.zfs import program
from kopiatomic.immutable import immutable
from kopiatomic.model.leftovers import Intent
from kopiatomic.state.ownership import PREFIX, PROPERTY
from kopiatomic.system import process, zfs_program
from kopiatomic.text import ended, printable

_LIST_TIMEOUT = 300.0

_NUMBERS = ("guid", "createtxg", "userrefs")


@immutable
class Seen:
    """A snapshot as it is now. ``mark`` is the value of our property if it was set on the snapshot itself, otherwise empty."""

    guid: str
    createtxg: int
    mark: str
    holds: int


def look(names: Sequence[str]) -> dict[str, Seen]:
    """Return the snapshots that exist, asked for by exact name: listing a whole pool is slow.

    Raises KopiatomicError if it is not certain that one does not exist.
    """
    fields: dict[str, dict[str, str]] = {}
    gone: set[str] = set()
    waiting = process.parts(names)
    while waiting:
        part = waiting.pop()
        result, found = _get(part, [*_NUMBERS, PROPERTY])
        if found is None:
            # Somebody's property contains tabs or newlines, which our marks never do: bisection finds whose it is.
            middle = len(part) // 2
            if middle:
                waiting += [part[:middle], part[middle:]]
                continue
            result, found = _get(part, _NUMBERS)
            assert found is not None
        fields |= found
        gone |= program.gone(result)
        if unknown := set(part) - fields.keys() - gone:
            raise KopiatomicError(
                f"it cannot be told whether the snapshot {printable(min(unknown))} exists: "
                f"{result.errors.partition(chr(10))[0] or ended(result.status)}",
                kind="zfs-look",
                hint="See 'zpool status'.",
            )
    return {
        name: Seen(f["guid"], int(f["createtxg"]), f.get(PROPERTY, ""), int(f["userrefs"]))
        for name, f in fields.items()
    }


def _get(names: Sequence[str], columns: Sequence[str]) -> tuple[process.Finished, dict[str, dict[str, str]] | None]:
    """Return properties of snapshots by name; of our own property only values set on the snapshot itself.

    None if a value contains tabs or newlines: it may then look like other snapshots' lines. The name after it reveals that:
    such a value must end in a line that begins with the name and one of the columns, which then occur twice.
    """
    argv = ["zfs", "get", "-Hp", "-t", "snapshot", "-o", "name,property,value,source,name", ",".join(columns), *names]
    result = zfs_program.run(argv, may_fail=True)
    found: dict[str, dict[str, str]] = {}
    for line in (
        result.stdout.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n") if result.stdout else ()
    ):
        fields = line.split("\t")
        if len(fields) != 5 or fields[0] != fields[4]:
            return result, None
        name, key, value, source, _ = fields
        of_this = found.setdefault(name, {})
        if key not in columns or key in of_this:
            return result, None
        of_this[key] = value if key != PROPERTY or source == "local" else ""
    return result, found


def names(places: Iterable[str] | None) -> Iterator[str]:
    """Return the names of all snapshots in these pools (None: all). Raises KopiatomicError."""
    within = [] if places is None else ["-r", "--", *sorted(places)]
    argv = ["zfs", "list", "-H", "-t", "snapshot", "-o", "name", "-s", "name", *within]
    result = zfs_program.run(argv, timeout=_LIST_TIMEOUT, may_fail=True)
    if result.status != 0 and b"no datasets available" not in result.stderr:
        raise KopiatomicError(
            f"the snapshots could not be listed: {result.errors.partition(chr(10))[0] or ended(result.status)}",
            kind="zfs-list",
            hint="See 'zfs list -t snapshot'.",
        )
    for line in result.stdout.splitlines():
        yield line.decode("utf-8", "surrogateescape")


def moved(run_id: str, pool: str, intents: Sequence[Intent]) -> list[tuple[Intent, str, Seen]]:
    """Return where those snapshots of a run are now that are not at their recorded names, as far as these identify them.

    A renamed snapshot stays in its dataset; with a dataset that is renamed or promoted, it keeps its own name. Raises
    KopiatomicError.
    """
    wanted = {(i.identity, i.transaction): i for i in intents if i.identity is not None}
    if not wanted:
        return []
    datasets = {intent.name.partition("@")[0] for intent in wanted.values()}
    parted = (name.partition("@") for name in names([pool]))
    candidates = [f"{d}@{s}" for d, _, s in parted if d in datasets or s == PREFIX + run_id]
    found = look(candidates) if candidates else {}
    keys = {name: (seen.guid, seen.createtxg) for name, seen in found.items()}
    return [(wanted[key], name, found[name]) for name, key in keys.items() if key in wanted]
