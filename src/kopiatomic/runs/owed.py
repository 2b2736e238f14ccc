"""What a run owes: its ``after_freeze``, recorded before ``before_freeze`` is started, until it has come to its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress

from kopiatomic.model.leftovers import Intent
from kopiatomic.runs.hooks import Prepared
from kopiatomic.state.records import Records
from kopiatomic.state.state_file import NewerStateError, StateError
from kopiatomic.system import host

KIND = "hook"
NAME = "after_freeze"
STARTED = "started"
"""The identity of an intent whose hook was started."""


class Debt:
    """The record of what one run owes. Works in every process of the run.

    ``profile`` is its name, ``file`` the path of its file.
    """

    def __init__(self, records: Records, run_id: str, profile: str, file: str) -> None:
        self._records = records
        self._run_id = run_id
        self._profile = profile
        self._file = file

    def incur(self, hooks: Sequence[Prepared]) -> None:
        """Record the hooks that are owed from now on. Raises StateError, NewerStateError."""
        if hooks:
            self._records.intend_also(self._run_id, [self._intent(hooks)])

    def _intent(self, hooks: Sequence[Prepared]) -> Intent:
        """Return what is recorded: no value of a variable, only its name."""
        owed = [
            {
                "argv": one.hook.argv,
                "timeout": one.hook.timeout,
                "user": one.hook.user,
                "directory": one.hook.directory,
                "variables": sorted(one.variables),
                "place": one.hook.place,
            }
            for one in hooks
        ]
        return Intent(
            KIND,
            self._profile,
            NAME,
            json.dumps({"file": self._file, "boot": host.here().boot_id(), "hooks": owed}),
        )

    def start(self) -> None:
        """Record that they are started now. Where that fails, they run all the same."""
        self._try(lambda: self._records.start(self._run_id, KIND, STARTED))

    def was_started(self) -> bool:
        """Whether they were started, or that cannot be told."""
        try:
            return any(
                intent.identity is not None for intent in self._records.intents(self._run_id) if intent.kind == KIND
            )
        except (StateError, NewerStateError):
            return True

    def settle(self) -> None:
        """Record that they have ended. Where that fails, they run once more."""
        self._try(lambda: self._records.settle(self._run_id, KIND))

    def _try(self, call: Callable[[], None]) -> None:
        with suppress(StateError, NewerStateError):
            call()
