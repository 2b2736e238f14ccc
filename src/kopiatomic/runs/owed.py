"""What a run owes: its ``after_freeze``, recorded before ``before_freeze`` is started, until it has come to its end.

What a run owes whose processes are all dead is run by whoever clears what it left, as far as that may run hooks.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.hooks import run as hook_run
from kopiatomic.hooks import shell
from kopiatomic.hooks.hook import Hook, Moment
from kopiatomic.hooks.run import HookError
from kopiatomic.model.leftovers import Intent, Leftover
from kopiatomic.output.document import FORMAT as RUN_FORMAT
from kopiatomic.runs.hooks import FORMAT, Prepared
from kopiatomic.secrets.masking import Secrets
from kopiatomic.state import locks
from kopiatomic.state.liveness import Life
from kopiatomic.state.ownership import Mark
from kopiatomic.state.records import Records
from kopiatomic.state.state_file import NewerStateError, StateError
from kopiatomic.system import host
from kopiatomic.text import printable

KIND = "hook"
NAME = "after_freeze"
AGAIN = "1"
"""The value of KOPIATOMIC_AGAIN where an earlier start of the hook was killed, or its end was not seen."""

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
        """Record that they are started now. Where no record can be written, it is noted beside the run's lock."""
        _start(self._records, self._run_id)

    def again(self) -> str | None:
        """Return KOPIATOMIC_AGAIN for a start by another process; None if their end is recorded, or none were owed."""
        try:
            mine = [intent for intent in self._records.intents(self._run_id) if intent.kind == KIND]
            if not mine and self._records.run(self._run_id):
                return None
        except (StateError, NewerStateError):
            return AGAIN
        return AGAIN if any(intent.identity is not None for intent in mine) or not mine or _noted(self._run_id) else ""

    def settle(self) -> None:
        """Record that they have ended. Where that fails, they run once more."""
        self._try(lambda: self._records.settle(self._run_id, KIND))

    def _try(self, call: Callable[[], None]) -> None:
        with suppress(StateError, NewerStateError):
            call()


def _start(records: Records, run_id: str) -> None:
    """Record that what a run owes is started now. Where that fails, it runs all the same."""
    try:
        records.start(run_id, KIND, STARTED)
    except (StateError, NewerStateError):
        with suppress(OSError):
            locks.mark_started(run_id)


def _noted(run_id: str) -> bool:
    """Whether it was started and only its lock says so; or may have been."""
    try:
        return locks.has_started(run_id)
    except OSError as error:
        return not presence.absent(error)


# What dead runs owe


def time_limit(intents: Sequence[Intent]) -> float:
    """Return how many seconds the hooks may take that are among these."""
    return sum(
        float(hook["timeout"]) for intent in intents if intent.kind == KIND for hook in _parsed(intent.origin)["hooks"]
    )


def surely_started(intents: Sequence[Intent]) -> list[Intent]:
    """Return the intents of a run that ended in order: it has run what it owed, even if that could not be recorded."""
    return [replace(intent, identity=STARTED) if intent.kind == KIND else intent for intent in intents]


def _parsed(text: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(text)
    return found


class Owed:
    """What dead runs owe, by these records. Satisfies :class:`kopiatomic.filesystems.backends.Leftovers`."""

    KIND = KIND

    def __init__(self, records: Records) -> None:
        self._records = records

    def recorded(self, run_id: str, intents: Sequence[Intent]) -> list[Leftover]:
        """Return what a dead run owes."""
        return [
            Leftover(
                run_id,
                KIND,
                intent.place,
                intent.name,
                f"owed by profile {printable(intent.place)}, recorded before its before_freeze",
                "; ".join(printable(shlex.join(hook["argv"])) for hook in _parsed(intent.origin)["hooks"]),
                origin=intent.origin,
                identity=intent.identity or "",
            )
            for intent in intents
        ]

    def unrecorded(
        self, _names: Iterable[str] | None, _life: Callable[[Mark], Life], _problems: list[str]
    ) -> list[Leftover]:
        """Return nothing: without a record nothing is owed."""
        return []

    def remove(self, leftovers: Sequence[Leftover]) -> list[Leftover]:
        """Run what is owed, each to its end. Return what is still owed, or went wrong, with the problem."""
        return [replace(one, problem=problem, is_over=over) for one in leftovers for problem, over in self._paid(one)]

    def _paid(self, leftover: Leftover) -> Iterator[tuple[str, bool]]:
        """Run what a leftover stands for. Yield what went wrong, and whether it has come to its end all the same."""
        owed = _parsed(leftover.origin)
        was_started = bool(leftover.identity) or _noted(leftover.run_id)
        again = "reboot" if owed["boot"] != host.here().boot_id() else AGAIN if was_started else ""
        try:
            hooks = _prepared(owed)
        except KopiatomicError as error:
            yield f"it is not run: {error.message}", False
            return
        about = {"format": RUN_FORMAT, "run_id": leftover.run_id, "result": None, "exit_code": None}
        document = {"format": FORMAT, "hook": NAME, "again": again or None, "run": about}
        told = {
            "KOPIATOMIC_RUN_ID": leftover.run_id,
            "KOPIATOMIC_HOOK": NAME,
            "KOPIATOMIC_PROFILE": leftover.place,
            **({"KOPIATOMIC_AGAIN": again} if again else {}),
        }
        base = Secrets((), os.environ, [value for one in hooks for value in one.variables.values()]).withheld_from(
            os.environ
        )
        # Before the first is started: this process may be killed as well.
        _start(self._records, leftover.run_id)
        for one in hooks:
            try:
                hook_run.run(
                    one.hook,
                    document,
                    shell.environment(base, {**told, **one.variables}),
                    lambda _: None,
                    insistent=False,
                )
            except HookError as error:
                yield f"it was run: {error.message}", True


def _prepared(owed: Mapping[str, Any]) -> list[Prepared]:
    """Return the hooks that are owed, if the profile still says that root may run them. Raises KopiatomicError.

    What was recorded is run. The profile says where the values of its variables are.
    """
    # Here, since every run loads this module, and few owe anything.
    from kopiatomic.config.credentials import folder_of, resolve  # noqa: PLC0415
    from kopiatomic.config.profile import load  # noqa: PLC0415
    from kopiatomic.schedules import trust  # noqa: PLC0415

    file = owed["file"]
    # Each file before it is read, its bases too.
    profile = load(file, lambda path: trust.check(path, "the profile"))
    entries = profile.entries("hooks", NAME)
    sources = {source.name: source for source in profile.sources("hooks")}
    sources |= {source.name: source for entry in entries for source in entry.sources()}
    found = []
    for hook in owed["hooks"]:
        missing = [name for name in hook["variables"] if name not in sources]
        if missing:
            raise KopiatomicError(
                f"{printable(file)} does not say any more where the value of {missing[0]} is", kind="credential"
            )
        values = resolve([sources[name] for name in hook["variables"]], folder_of(os.environ)).values
        told = {key: hook[key] for key in ("timeout", "user", "directory", "place")}
        found.append(Prepared(Hook(Moment.AFTER_FREEZE, tuple(hook["argv"]), **told), values))
    return found
