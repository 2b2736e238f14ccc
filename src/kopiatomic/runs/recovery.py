"""Clears what dead runs left: snapshots, directories, lock files, and on FreeBSD mounts.

:mod:`kopiatomic.state.liveness` decides which runs are dead. The next run clears what is recorded, ``kopiatomic recover`` also
what is not, as far as :class:`Allowed` permits. A child process does the removal, since a pool may hold it up; that child keeps
the dead run's lock, so that no other process does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from kopiatomic import platforms
from kopiatomic.errors import EndError, Interrupted, KopiatomicError
from kopiatomic.filesystems import KINDS, backends, watched
from kopiatomic.filesystems.backends import Leftovers
from kopiatomic.immutable import immutable
from kopiatomic.model.leftovers import Claim, Cleared, Intent, Leftover
from kopiatomic.runs import owed
from kopiatomic.runs.patience import Patience
from kopiatomic.state import liveness, locks, root_leftovers
from kopiatomic.state.liveness import Life
from kopiatomic.state.locks import RunLocks
from kopiatomic.state.ownership import Mark
from kopiatomic.state.records import INTERRUPTED, NOT_RECORDED, Records, Unfinished
from kopiatomic.state.state_file import NewerStateError, StateError
from kopiatomic.system import signals, worker
from kopiatomic.system.channel import Channel

_TIMEOUT = 180.0
"""Seconds for the leftovers of one run."""

_STALE = 1000
"""How many lock files of killed runs may stay, whose records are in other state directories."""


def kinds(records: Records) -> dict[str, Leftovers]:
    """Return what finds leftovers, by the kind of their intents, in the order of removal.

    The platform's own first: frozen processes wait, and what mounts show cannot be removed before. Then what is owed. Directories
    last: the snapshots' clean-up does not need them.
    """
    platform = platforms.here()
    made = {name: backends.of(KINDS[name]).leftovers for name in platform.filesystems}
    return {**platform.leftovers(), "hook": owed.Owed(records), **made, "directory": root_leftovers}


@immutable
class Allowed:
    """What may be removed besides what is proven ours, because an administrator has looked at it."""

    unrecorded: bool = False
    """What has this host's mark and is not recorded."""
    received: bool = False
    """What another host's run made, or what came with a stream."""
    assumed_dead: frozenset[str] = frozenset()
    """What these runs made, which cannot be judged from here."""
    hooks: frozenset[str] | None = frozenset()
    """The profiles whose hooks may be run, if they are owed; None: all."""

    def settle(self, leftover: Leftover) -> Leftover:
        """Return the leftover, with the reason if it must stay."""
        if leftover.claim is Claim.UNJUDGED:
            problem = f"{liveness.unknown_text(leftover.run_id)}; {liveness.assume_hint(leftover.run_id)}"
            return replace(leftover, problem=problem)
        if leftover.claim is Claim.UNRECORDED and not self.unrecorded:
            return replace(leftover, problem=_UNRECORDED)
        if leftover.kind == owed.KIND and self.hooks is not None and leftover.place not in self.hooks:
            return replace(leftover, problem=_OWED)
        return leftover


_UNRECORDED = (
    "no record proves that a run made it, and others may have given it name and mark (zfs allow): look at it first; "
    "'kopiatomic recover --unrecorded' removes all such"
)


_OWED = "it is run by the next run of that profile, or by 'kopiatomic recover'"


@immutable
class _Result:
    leftovers: list[Leftover]
    problems: list[str]
    news: str = ""
    """What was recorded as the run's end just now; empty where there was one."""


class Recovery:
    """One search for leftovers. ``own`` is the run that searches, if any: it is not a leftover of itself."""

    def __init__(
        self,
        records: Records,
        *,
        own: str | None,
        dry_run: bool,
        warn: Callable[[str], None],
        allowed: Allowed = Allowed(),  # noqa: B008 - immutable
    ) -> None:
        self._allowed = allowed
        self._kinds = kinds(records)
        self._records = records
        self._own = own
        self._dry_run = dry_run
        self._warn = warn
        self.cleared = Cleared()

    def recorded(self, only: Collection[str] | None = None) -> Cleared:
        """Clear what dead runs (``only`` these) have recorded. Raises StateError, NewerStateError, Interrupted."""
        for run in self._records.unfinished(mend=not self._dry_run):
            run_id = run.mark.run_id
            if run_id == self._own or (only is not None and run_id not in only):
                continue
            signals.check()
            self._consider(run)
        return self.cleared

    def _consider(self, run: Unfinished) -> None:
        run_id = run.mark.run_id
        life = self._life(run.mark)
        if life is Life.UNKNOWN:
            self.cleared.unjudged.append(run_id)
        elif self._dry_run or life is Life.ALIVE:
            self._take(run_id, None if life is Life.ALIVE else self._look(run_id), has_ended=run.has_ended)
        else:
            with locks.claim(run_id) as held:
                self._take(run_id, None if held is None else self._clear(run_id, held), has_ended=run.has_ended)

    def _life(self, mark: Mark) -> Life:
        if mark.run_id == self._own:
            return Life.ALIVE
        life = liveness.life(mark)
        return Life.DEAD if life is Life.UNKNOWN and mark.run_id in self._allowed.assumed_dead else life

    def _take(self, run_id: str, result: _Result | None, *, has_ended: bool) -> None:
        if result is None:
            pid = locks.cleared_by(run_id)
            if pid is not None:
                self.cleared.problems.append(f"what run {run_id} left is being removed by process {pid}")
            elif has_ended:
                self.cleared.problems.append(
                    f"run {run_id} has ended and a process of it still runs its after_freeze, or waits for the kernel to let it "
                    "remove its snapshots (is a pool suspended, or a filesystem frozen? See 'zpool status' and 'dmesg')"
                )
            else:
                self.cleared.alive.append(run_id)
            return
        self.cleared.leftovers += result.leftovers
        self.cleared.problems += result.problems
        if result.news:
            (self.cleared.interrupted if result.news == INTERRUPTED else self.cleared.unended).append(run_id)

    def _look(self, run_id: str) -> _Result:
        found, problems, _ = _find(self._kinds, run_id, self._records.intents(run_id))
        return _Result(list(map(self._allowed.settle, found)), problems)

    def _clear(self, run_id: str, held: RunLocks) -> _Result:
        """Have a child clear what a run left; the child shares the lock that we hold for it."""
        intents = self._records.intents(run_id)
        places = {(intent.kind, intent.place) for intent in intents}

        def clear() -> _Result:
            try:
                return self._clear_here(run_id, held)
            finally:
                held.let_go()

        try:
            return self._in_child(clear, places, owed.time_limit(intents))
        except EndError as error:
            held.keep()
            if isinstance(error, Interrupted):
                raise
            return _Result([], [f"what run {run_id} left: {error.message}"])

    def _in_child(self, function: Callable[[], _Result], places: set[tuple[str, str]], longer: float = 0.0) -> _Result:
        """Call a function in a child, for ``longer`` seconds more than removing something takes."""
        pools = watched(places)
        others = {place for kind, place in places if kind in KINDS} - pools
        patience = Patience(pools, 0.0, self._warn, others=others)

        def receive(channel: Channel) -> object:
            return patience.receive_at_the_end(channel, _TIMEOUT + longer)

        try:
            return worker.call(function, receive)
        except worker.StuckError as stuck:
            if patience.given_up is None:
                raise
            raise patience.given_up.stops(stuck.pid) from None

    def _clear_here(self, run_id: str, held: RunLocks) -> _Result:
        end = _end_of(held)
        intents = self._records.intents(run_id)
        if not held.died and all(run.result != INTERRUPTED for run in self._records.run(run_id)):
            intents = owed.surely_started(intents)
        found, problems, unknown = _find(self._kinds, run_id, intents)
        found = list(map(self._allowed.settle, found))
        left: list[Leftover] = []
        for kind, leftovers in _by_kind(self._kinds, found):
            left += _removed(self._kinds[kind], leftovers)
        still = [leftover for leftover in [*left, *found] if leftover.problem is not None]
        kept = {(one.place, name) for one in still if not one.is_over for name in (one.name, one.origin)}
        gone = [i for i in intents if (i.kind, i.place) not in unknown and (i.place, i.name) not in kept]
        self._records.forget(run_id, gone)
        news = self._records.end_dead(run_id, end)
        held.settle()
        return _Result(_with_problems(found, left), problems, end if news else "")

    def forget(self, mark: Mark) -> Life:
        """Delete a dead run's intents without looking. Does nothing if it is not dead. Raises StateError."""
        life = self._life(mark)
        if life is not Life.DEAD:
            return life
        with locks.claim(mark.run_id) as held:
            if held is None:
                return Life.ALIVE
            self._records.forget(mark.run_id)
            self._records.settle(mark.run_id, owed.KIND)
            self._records.end_dead(mark.run_id, _end_of(held))
            held.settle()
            return life

    def unrecorded(self, names: dict[str, set[str]] | None) -> Cleared:
        """Find what runs left unrecorded in these pools and filesystems (by kind; None: in all).

        Only looks; :meth:`remove` removes. Raises Interrupted.
        """
        known = {(leftover.place, leftover.name) for leftover in self.cleared.leftovers}
        for kind, module in self._kinds.items():
            places = None if names is None else names.get(kind)
            if names is not None and not places:
                continue
            try:
                found = module.unrecorded(places, self._life, self.cleared.problems)
            except KopiatomicError as error:
                self.cleared.problems.append(error.message)
                continue
            for leftover in found:
                if leftover.claim is Claim.RECEIVED and not self._allowed.received:
                    self.cleared.received += 1
                elif (leftover.place, leftover.name) not in known:
                    self.cleared.leftovers.append(self._allowed.settle(leftover))
        return self.cleared

    def remove(self, leftovers: Sequence[Leftover]) -> None:
        """Remove what :meth:`unrecorded` found. Raises Interrupted."""
        # Directories last: on FreeBSD a run's mounts stand on them.
        for run_id in sorted({leftover.run_id for leftover in leftovers}, key=lambda run_id: (not run_id, run_id)):
            mine = [leftover for leftover in leftovers if leftover.run_id == run_id]
            if not run_id:
                # Whose they are is not known, and does not matter where no run has a view there.
                self._replace(mine, self._remove(mine, None))
                continue
            with locks.claim(run_id) as held:
                if held is None:
                    self._replace(mine, [replace(o, problem="its run lives, or is being cleared") for o in mine])
                else:
                    self._replace(mine, self._remove(mine, held))

    def _remove(self, leftovers: Sequence[Leftover], held: RunLocks | None) -> list[Leftover]:
        result: list[Leftover] = []
        for kind, mine in _by_kind(self._kinds, leftovers):
            module = self._kinds[kind]
            places = {(kind, leftover.place) for leftover in mine}

            def remove(module: Leftovers = module, mine: Sequence[Leftover] = mine) -> _Result:
                return _Result(_with_problems(mine, _removed(module, mine)), [])

            try:
                result += self._in_child(remove, places).leftovers
            except Interrupted:
                if held is not None:
                    held.keep()
                raise
            except KopiatomicError as error:
                result += [replace(leftover, problem=error.message) for leftover in mine]
        return result + [leftover for leftover in leftovers if leftover.problem is not None]

    def _replace(self, before: Sequence[Leftover], after: Sequence[Leftover]) -> None:
        old = {(leftover.place, leftover.name) for leftover in before}
        kept = [o for o in self.cleared.leftovers if (o.place, o.name) not in old]
        self.cleared.leftovers = [*kept, *after]

    def remove_stale_files(self) -> None:
        """Remove the lock files of killed runs, except of those whose end is not recorded yet.

        That a run was killed is to be seen in its file alone, and another state directory may have its record. What no run with
        that directory ever asks for stays until the next boot, up to :data:`_STALE` files.
        """
        locks.remove_stale_roots()
        try:
            open_ends = {run.mark.run_id for run in self._records.unfinished() if not run.has_ended}
        except (StateError, NewerStateError):
            # Any of them may be a run of ours.
            return
        others = []
        for run_id in locks.runs():
            if run_id == self._own or run_id in open_ends or locks.alive(run_id):
                continue
            if locks.records_of(run_id) in {"", self._records.directory}:
                self._settle(run_id)
            else:
                others.append(run_id)
        # The oldest first: an id begins with the time.
        for run_id in others[: max(0, len(others) - _STALE)]:
            self._settle(run_id)

    def _settle(self, run_id: str) -> None:
        with locks.claim(run_id) as held:
            if held is not None:
                held.settle()


def _end_of(held: RunLocks) -> str:
    """Return the end of the dead run whose lock we hold: a run that ended in order removed its file with its last process."""
    return INTERRUPTED if held.died else NOT_RECORDED


def _find(
    modules: Mapping[str, Leftovers], run_id: str, intents: Sequence[Intent]
) -> tuple[list[Leftover], list[str], set[tuple[str, str]]]:
    """Return what is left of a run; in words, what could not be examined; and the kinds and places of that.

    A pool or filesystem that does not answer does not hold up the others.
    """
    found: list[Leftover] = []
    problems: list[str] = []
    unknown: set[tuple[str, str]] = set()
    for kind, module in modules.items():
        for place in sorted({intent.place for intent in intents if intent.kind == kind}):
            try:
                found += module.recorded(run_id, [i for i in intents if (i.kind, i.place) == (kind, place)])
            except KopiatomicError as error:
                unknown.add((kind, place))
                hint = f" ({error.hint.replace('RUN', run_id)})" if error.hint else ""
                problems.append(f"what run {run_id} left on {kind}: {error.message}{hint}")
    return found, problems, unknown


def _by_kind(modules: Mapping[str, Leftovers], leftovers: Sequence[Leftover]) -> list[tuple[str, list[Leftover]]]:
    groups = []
    for kind, module in modules.items():
        mine = [o for o in leftovers if o.kind == module.KIND and o.problem is None]
        if mine:
            groups.append((kind, mine))
    return groups


def _removed(module: Leftovers, leftovers: Sequence[Leftover]) -> list[Leftover]:
    """Remove the leftovers. Return what is left."""
    try:
        return module.remove(leftovers)
    except KopiatomicError as error:
        return [replace(leftover, problem=error.message) for leftover in leftovers]
    except OSError as error:
        return [replace(leftover, problem=error.strerror or str(error)) for leftover in leftovers]


def _with_problems(found: Sequence[Leftover], left: Sequence[Leftover]) -> list[Leftover]:
    """Return what was found, each in its present state, and add what else turned out to be left."""
    problems = {(leftover.place, leftover.name): leftover for leftover in left}
    result = [problems.pop((o.place, o.name), o) for o in found]
    return result + list(problems.values())
