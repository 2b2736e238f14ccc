"""What a run takes: the plan, made again without what turns out not to be takeable, and a report of everything missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from kopiatomic import engines, platforms
from kopiatomic.config.options import Options
from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems import backends
from kopiatomic.model.engine import Progress
from kopiatomic.model.facts import Facts
from kopiatomic.model.mounts import visible
from kopiatomic.model.plan import Plan, Refusal, Verdict
from kopiatomic.model.report import Report
from kopiatomic.model.request import Request, is_pattern
from kopiatomic.paths import below
from kopiatomic.planning import plan
from kopiatomic.planning.gather import gather
from kopiatomic.platforms.steps import View, missing_text
from kopiatomic.secrets.masking import Secrets
from kopiatomic.state import roots
from kopiatomic.state.ownership import PREFIX
from kopiatomic.text import few, first_few, printable


class Listener(Protocol):
    """Receives the progress of a run."""

    def hide(self, secrets: Secrets) -> None:
        """Mask these in all later output."""

    def phase(self, text: str) -> None:
        """Announce a new part of the run."""

    def warning(self, text: str) -> None:
        """Report something that the user should know but that does not end the run."""

    def engine_line(self, text: str) -> None:
        """Print a line of the engine's own output, which is safe to print."""

    def progress(self, progress: Progress) -> None:
        """Show how far the engine is."""

    def ask(self, question: str) -> bool | None:
        """Ask a person whether something is to be done; None if nobody can be asked. Raises Interrupted."""


class Selecting:
    """What one run takes, and why. ``report`` must say where the view is mounted before anything is called."""

    def __init__(
        self,
        options: Options,
        report: Report,
        listener: Listener,
        *,
        refuses: Callable[[Plan], Sequence[Refusal]] = lambda _: (),
        breaks_at: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """``refuses`` and ``breaks_at`` are the engine's (:class:`kopiatomic.engines.engine.Engine`)."""
        self.options = options
        self.report = report
        self.listener = listener
        self.platform = platforms.here()
        self._refuses = refuses
        self._breaks_at = breaks_at
        self._facts: Facts | None = None
        self._refused: dict[tuple[str, str, str], Refusal] = {}
        """What the plan would take and was found out not to be takeable, by its key."""
        self._moved: dict[tuple[str, str, str], Refusal] = {}
        """What was not at its place any more, so that everything was listed again."""

    def directories(self) -> Sequence[str]:
        """The directories that the view needs."""
        return self.platform.directories(self.report.root, self.report.run_id)

    def warn(self, text: str) -> None:
        """Warn the user, once, and add the warning to the report."""
        if text not in self.report.warnings:
            self.report.warnings.append(text)
            self.listener.warning(text)

    def select(self) -> Plan:
        """Return the plan: what is taken. Raises KopiatomicError."""
        with self.report.phase("plan"):
            if self._facts is None:
                self._facts = self._gather()
            selected = plan.select(self._facts, self._request(), self._refused.values())
            while refused := self._refuses(selected):
                self._refused |= {refusal.dataset.key: refusal for refusal in refused}
                selected = plan.select(self._facts, self._request(), self._refused.values())
            selected = replace(self._without_folders(selected, self._facts), ignore_files=engines.IGNORE_FILES)
        missed = [o for o in selected.left_out if o.incomplete]
        self.report.incomplete = few(list(dict.fromkeys(o.line or f"{printable(o.name)}: {o.reason}" for o in missed)))
        for note in selected.notes:
            self.warn(note)
        if self.options.require_atomic:
            _require_one_pool(selected)
            self._require_complete()
        return selected

    def _without_folders(self, selected: Plan, facts: Facts) -> Plan:
        """Leave out the empty folders of nested subvolumes that are not taken, where such a folder would end the backup."""
        taken = {(t.dataset.pool, t.dataset.name) for t in selected.taken}
        ids = {subvolume.path: (subvolume.filesystem, subvolume.id) for subvolume in facts.subvolumes}
        found: dict[tuple[str, int], list[str]] = {}
        for subvolume in facts.subvolumes:
            path, above = subvolume.path, subvolume.above
            is_taken = (subvolume.filesystem, path) in taken
            if above is not None and not is_taken and self._breaks_at(path.rpartition("/")[2]):
                found.setdefault(ids[above], []).append(below(path, above))
        if not found:
            return selected
        everything = (
            replace(t, hidden=tuple(found.get((t.dataset.pool, t.dataset.subvolume), ()))) for t in selected.taken
        )
        return replace(selected, taken=tuple(everything))

    def _require_complete(self) -> None:
        """Refuse to continue if anything is missing with --require-atomic. Raises KopiatomicError."""
        if self.report.incomplete:
            raise not_atomic(
                f"not everything can be taken: {self.report.incomplete[0]}",
                "Take it as well, or say that it is not wanted: --exclude, and on Btrfs --no-nested.",
            )

    def _gather(self) -> Facts:
        return gather(self._request()) if self.options.facts is None else self.options.facts

    def _request(self) -> Request:
        return self.options.request(self.report.root, f"@{PREFIX}{self.report.run_id}")

    def check_places(self, selected: Plan) -> None:
        """Make the checks that need no record. Raises KopiatomicError."""
        for directory in self.directories():
            roots.check(directory)
        for warning in self.platform.check(selected):
            self.warn(warning)
        mapped = self.idmapped(selected)
        if mapped:
            self.warn(
                f"{first_few(mapped)}: the mount maps user ids (mount_setattr(2)); the frozen view shows owners as stored"
            )
        for maker in backends.makers(selected, self.report.run_id):
            maker.check()

    def idmapped(self, selected: Plan) -> list[str]:
        """Return the mount points of what is taken that map user ids: there, files have other owners than in the view."""
        assert self._facts is not None
        seen = visible(self._facts.mounts)
        points = (t.dataset.mountpoint.text for t in selected.taken if not t.dataset.volume)
        return [point for point in points if point in seen and "idmapped" in seen[point].options]

    def leave_out(self, refused: Sequence[Refusal], *, again: Callable[[], Plan], last: bool) -> bool:
        """Plan again without what cannot be taken; returns whether everything was listed again, and is to be tried again.

        That is where something was moved, unless this was the ``last`` try. Raises KopiatomicError where one was named, or
        nothing is left.
        """
        if not refused:
            return False
        report = self.report
        assert report.plan is not None
        named = {t.dataset.key for t in report.plan.taken if t.named}
        moved = {r.dataset.key: r for r in refused if r.verdict is Verdict.MOVED}
        list_again = bool(moved) and not last and not named.intersection(r.dataset.key for r in refused)
        if list_again:
            names = [r.dataset.name for r in moved.values()]
            self.warn(f"{first_few(names)} vanished; the datasets are listed again")
            self._moved |= moved
            self._refused.clear()
            self._facts = None
        else:
            self._refused |= {r.dataset.key: r for r in refused}
        report.plan = again()
        return list_again

    def report_moved(self) -> None:
        """Say what was moved and has not been found again. Raises KopiatomicError with --require-atomic."""
        report = self.report
        assert report.plan is not None
        taken = {t.dataset.key for t in report.plan.taken}
        gone = [self._moved[key] for key in self._moved.keys() - self._refused.keys() - taken]
        self._miss([f"{printable(m.dataset.name)}: {m.reason}, and is not among what was found then" for m in gone])

    def _miss(self, texts: Sequence[str]) -> None:
        """Record what was asked for and is not in the view. Raises KopiatomicError with --require-atomic."""
        for text in few(texts):
            self.report.incomplete.append(text)
            self.warn(text)
        if texts and self.options.require_atomic:
            self._require_complete()

    def look_again(self) -> None:
        """Warn of what ``-r`` or ``-a`` would take now and did not take when the listing was made."""
        options, report = self.options, self.report
        implied = options.recursive or options.everything or options.by_property
        if not implied and not any(map(is_pattern, options.names)):
            return
        assert report.plan is not None
        with report.phase("plan"):
            try:
                facts = self._gather()
                if self._facts is not None:
                    # How full other filesystems are has no part in what is taken, and what has room stays as it was planned.
                    facts = replace(facts, sizes=self._facts.sizes, room=self._facts.room)
                # The same facts make the same plan.
                if facts == self._facts:
                    return
                taken = plan.select(facts, self._request(), self._refused.values()).taken
            except KopiatomicError as error:
                self.warn(f"what was created meanwhile could not be listed: {error.message}")
                return
        known = {t.dataset for t in report.plan.taken}
        new = [one.dataset.name for one in taken if one.dataset not in known]
        if new:
            are = "is" if len(new) == 1 else "are"
            self.warn(f"{first_few(new)} appeared after the listing and {are} not in this backup")

    def report_missing(self, view: View) -> None:
        for missing in view.missing:
            if missing.live:
                self.warn(missing_text(missing))
        self._miss([missing_text(missing) for missing in view.missing if not missing.live])


def not_atomic(why: str, hint: str) -> KopiatomicError:
    """Return the error of a run that must be one proven instant, and cannot be."""
    return KopiatomicError(f"--require-atomic: {why}", kind="not-atomic", hint=hint)


def _require_one_pool(selected: Plan) -> None:
    """Refuse, before anything is made, what cannot share one instant. Raises KopiatomicError."""
    places = {(t.dataset.kind, t.dataset.pool) for t in selected.taken}
    if len(places) > 1:
        where = ", ".join(f"{filesystem} {printable(pool)}" for filesystem, pool in sorted(places))
        raise not_atomic(
            f"the datasets lie in {len(places)} pools or filesystems ({where}), which share no instant",
            "Back them up with one command for each pool or filesystem.",
        )
