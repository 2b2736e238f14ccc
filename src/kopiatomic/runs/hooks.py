"""The hooks of one run: what each is told, which of them run, and what a failure means."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kopiatomic.errors import KopiatomicError
from kopiatomic.hooks import run as hooks
from kopiatomic.hooks import shell
from kopiatomic.hooks.hook import Hook, Moment
from kopiatomic.hooks.run import HookError
from kopiatomic.immutable import immutable
from kopiatomic.model.report import HookRun, Report
from kopiatomic.output.document import document
from kopiatomic.secrets.masking import Secrets

FORMAT = "kopiatomic-hook-1"


@immutable
class Prepared:
    """A hook with the values of its variables, which are secret."""

    hook: Hook
    variables: Mapping[str, str]


@immutable
class Told:
    """What the hooks of one moment are told: the document on their input, and variables."""

    document: Mapping[str, Any]
    variables: Mapping[str, str]


class Hooks:
    """The hooks of a run. ``base`` is the environment that all of them have, without what only the engine may know."""

    def __init__(
        self,
        prepared: Sequence[Prepared],
        base: Mapping[str, str],
        report: Report,
        *,
        secrets: Secrets,
        profile: str,
        say: Callable[[str], None],
    ) -> None:
        self._prepared = prepared
        self._base = base
        self._report = report
        self._secrets = secrets
        self._profile = profile
        self._say = say

    @property
    def say(self) -> Callable[[str], None]:
        """Takes a line of a hook's output, in the main process."""
        return self._say

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Return the whole environment of a hook with these variables."""
        return shell.environment(self._base, variables)

    def of(self, *moments: Moment) -> list[Prepared]:
        """Return the hooks of these moments, in their order."""
        return [one for one in self._prepared if one.hook.moment in moments]

    def told(self, moment: Moment, *, final: bool, again: str = "") -> Told:
        """Return what the hooks of a moment are told now.

        ``final``: the run's result is known. ``again`` becomes KOPIATOMIC_AGAIN: why they run once more.
        """
        report = self._report
        about = document(report)
        if not final:
            about |= {"result": None, "exit_code": None}
        if report.plan is not None:
            variables = shell.variables(report.run_id, report.plan)
        else:
            variables = {"KOPIATOMIC_RUN_ID": report.run_id, "KOPIATOMIC_ROOT": report.root}
        variables |= {"KOPIATOMIC_HOOK": moment.value, "KOPIATOMIC_PROFILE": self._profile}
        if again:
            variables["KOPIATOMIC_AGAIN"] = again
        if final:
            variables |= shell.outcome(report)
        whole = {"format": FORMAT, "hook": moment.value, "again": again or None, "run": about}
        return Told(self._secrets.hide_in(whole), variables)

    def run(self, moment: Moment, *, final: bool = False) -> None:
        """Run the hooks of a moment, until one fails. Raises HookError, Interrupted."""
        told = self.told(moment, final=final) if self.of(moment) else None
        for prepared in self.of(moment):
            assert told is not None
            self._report.hooks.append(self.call(prepared, told, self._say))
            if (error := self._report.hooks[-1].error) is not None:
                raise error

    def run_all(self, moment: Moment, *, final: bool = True) -> list[KopiatomicError]:
        """Run all hooks of a moment, whatever becomes of each. Return what went wrong."""
        told = self.told(moment, final=final) if self.of(moment) else None
        for prepared in self.of(moment):
            assert told is not None
            self._report.hooks.append(self.call(prepared, told, self._say))
        return [one.error for one in self._report.hooks if one.moment == moment and one.error is not None]

    def call(self, prepared: Prepared, told: Told, say: Callable[[str], None], *, insistent: bool = True) -> HookRun:
        """Run one hook, in any process of the run. Return what came of it. Raises Interrupted."""
        began = time.monotonic()
        error = None
        try:
            hooks.run(
                prepared.hook,
                told.document,
                self.environment({**told.variables, **prepared.variables}),
                say,
                insistent=insistent,
            )
        except HookError as failure:
            error = failure
        return HookRun(prepared.hook.moment.value, prepared.hook.place, time.monotonic() - began, error)
