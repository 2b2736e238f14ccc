"""``exec`` and ``shell``: any command inside the frozen instant, with the caller's streams and terminal."""

from __future__ import annotations

import errno
import os
import pwd
import shlex
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from kopiatomic.commands.failures import require_root_to_freeze
from kopiatomic.config.invocation import Invocation
from kopiatomic.config.options import Options
from kopiatomic.engines.written import in_place
from kopiatomic.errors import KopiatomicError, StartError
from kopiatomic.filesystems import KINDS
from kopiatomic.hooks import shell
from kopiatomic.immutable import immutable
from kopiatomic.model.engine import Command, Progress
from kopiatomic.model.plan import Layout, Plan
from kopiatomic.model.report import CommandReport, EngineReport, ShellReport
from kopiatomic.model.snapshots import Sets
from kopiatomic.output.document import instant_text, instant_words
from kopiatomic.output.summary import shielded
from kopiatomic.planning import plan
from kopiatomic.runs.freezing import Frozen, failures_in, new_run_id, recorded
from kopiatomic.runs.launcher import Checked, Start, Started, StartOptions
from kopiatomic.runs.selecting import Listener, Selecting
from kopiatomic.runs.streams import CallerStreams
from kopiatomic.secrets.masking import Secrets
from kopiatomic.state import lists, roots
from kopiatomic.system import accounts, inherited, signals
from kopiatomic.system.spawn import User
from kopiatomic.text import first_few, printable

_SHELL = "/bin/sh"
_FEW = 5
"""How many of the directories that are not live are named when a shell starts."""

_NOT_EXECUTABLE = 126
_NOT_FOUND = 127

_REFUSES_TO_STOP = "kopiatomic: Ctrl-Z is not heeded before the command runs; Ctrl-C ends it"


class Speaker(Listener, Protocol):
    """A listener that can also say what must be said in any case."""

    def notice(self, text: str) -> None:
        """Tell the user something, even in quiet mode."""


@immutable
class CommandRequest:
    """What to run: ``argv``, or the user's shell if that is empty. ``user``: a name or number, or the caller."""

    argv: Sequence[str] = ()
    user: str | None = None


def run(options: Options, wanted: CommandRequest, speaker: Speaker, called: Invocation) -> CommandReport:
    """Run a command or a shell. Every failure is in the report; nothing is raised."""
    kind = CommandReport if wanted.argv else ShellReport
    report = kind(new_run_id(), options.mount_root)
    with signals.handled(limit=options.timeout, on_stop=_REFUSES_TO_STOP), failures_in(report):
        _Inside(options, wanted, report, speaker, called).run()
    return report


class _StartError(KopiatomicError):
    """The command could not be started; the exit code is the one that a shell uses for that."""

    def __init__(self, cause: StartError, exit_code: int) -> None:
        hint = cause.hint if cause.kind == "engine-interpreter" else "Is it there at that instant, and executable?"
        super().__init__(cause.message, kind="command-start", hint=hint)
        self._exit_code = exit_code

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return self._exit_code


class _Aside:
    """A listener that takes into account that the command may have the terminal."""

    def __init__(self, speaker: Speaker) -> None:
        self._speaker = speaker
        self.streams: CallerStreams | None = None

    def _aside(self) -> AbstractContextManager[None]:
        return nullcontext() if self.streams is None else self.streams.aside()

    def hide(self, secrets: Secrets) -> None:
        """Pass the secrets on."""
        self._speaker.hide(secrets)

    def phase(self, text: str) -> None:
        """Pass the text on."""
        self._speaker.phase(text)

    def warning(self, text: str) -> None:
        """Pass the text on, even while the command has the terminal."""
        with self._aside():
            self._speaker.warning(text)

    def notice(self, text: str) -> None:
        """Pass the text on, even while the command has the terminal."""
        with self._aside():
            self._speaker.notice(text)

    def engine_line(self, text: str) -> None:
        """Do nothing: there is no engine."""

    def progress(self, progress: Progress) -> None:
        """Do nothing: there is no engine."""

    def ask(self, question: str) -> bool | None:
        """Return None: nothing is asked, since nothing is saved."""


class _Inside:
    def __init__(
        self, options: Options, wanted: CommandRequest, report: CommandReport, speaker: Speaker, called: Invocation
    ) -> None:
        self._options = options
        self._called = called
        self._report = report
        self._listener = _Aside(speaker)
        self._secrets = Secrets(called.words, os.environ)
        speaker.hide(self._secrets)
        self._selecting = Selecting(options, report, self._listener)
        self._is_shell = not wanted.argv
        self._account = None if wanted.user is None else _account(wanted.user)
        self._argv = wanted.argv or [self._shell()]
        self._user = self._account and User.of(self._account)

    def run(self) -> None:
        options, report = self._options, self._report
        plan.require_names(options.request("", ""))
        if self._is_shell and not os.isatty(0):
            raise KopiatomicError(
                "a shell needs a terminal, and standard input is none",
                kind="no-terminal",
                hint="'ssh -t' gives one from afar. A command does without (any in place of 'ls'): "
                + self._secrets.command_line(["kopiatomic", "exec", *self._called.words[1:], "--", "ls"]),
            )
        shown = self._secrets.command_line(["kopiatomic", *self._called.words])
        require_root_to_freeze(shown)
        report.root = self._place()
        # Not in the series of any backup: an open shell blocks nobody.
        report.series = printable(f"{report.kind}: {shlex.join(options.selection_words())}")
        with recorded(self._selecting, self._secrets, shown) as session:
            session.take_root(report.root, shown, None)
            session.clear_leftovers()
            report.plan = self._selecting.select()
            with report.phase("check"):
                session.check(report.plan)
                self._require_own_ids(report.plan)
            report.engine = EngineReport(printable(self._argv[0]), None, self._secrets.hide_words(self._argv))
            self._write_lists(report.plan)
            with session.view(self._selecting.select) as frozen:
                checked = self._started(frozen)
            self._conclude(checked)

    def _require_own_ids(self, selected: Plan) -> None:
        """Refuse another user where the frozen files have other owners than the live ones. Raises KopiatomicError."""
        mapped = self._selecting.idmapped(selected) if self._user is not None else []
        if mapped:
            raise KopiatomicError(
                f"{first_few(mapped)}: the mount maps user ids, so --user would read by other rights than on the live system",
                kind="idmapped",
                hint="Do without --user, or name the place where the same is mounted without such a map.",
            )

    def _place(self) -> str:
        """Return where on the host the view is mounted. Raises KopiatomicError."""
        if self._options.layout is Layout.MERGED:
            return roots.resolve(self._options.mount_root)
        return roots.of_run(self._report.run_id)

    def _shell(self) -> str:
        if self._account is not None:
            return self._account.pw_shell or _SHELL
        return os.environ.get("SHELL") or _SHELL

    def _streams(self) -> CallerStreams:
        owner = None if self._user is None else self._user.uid
        self._listener.streams = streams = CallerStreams(
            owner=owner, say=self._listener.notice, started=self._tell_where
        )
        return streams

    def _started(self, frozen: Frozen) -> Checked:
        """Run the command to its end."""
        report = self._report
        assert report.plan is not None
        assert report.engine is not None
        self._listener.phase(f"running {report.engine.name}")
        if self._is_shell:
            for line in _welcome(report.plan, frozen.sets):
                self._listener.notice(line)
        if report.plan.might_hang:
            self._listener.notice(f"hidden, for it might not answer: {first_few(report.plan.might_hang)}")
        # What is taken may have changed.
        self._write_lists(report.plan)
        frozen_too = in_place(report.plan, inherited.temporary_directory())
        start_options = StartOptions(
            user=self._user,
            anywhere=self._is_shell,
            stop=signal.SIGHUP if self._is_shell else signal.SIGTERM,
            temporary=lists.mount_point(report.run_id) if frozen_too else "",
        )
        start = Start(Command(self._argv, {}), self._environment(report.plan, frozen.sets), start_options)
        with report.phase("command"):
            try:
                checked = frozen.supervisor.run(start, self._streams(), self._options.stop_timeout)
            except StartError as error:
                raise _as_a_shell_says(error) from None
        report.engine.end = checked.end
        return checked

    def _write_lists(self, plan: Plan) -> None:
        lists.write(self._report.run_id, plan, 0 if self._user is None else self._user.uid)

    def _tell_where(self, started: Started) -> None:
        if self._is_shell and started.elsewhere:
            self._listener.notice("the working directory cannot be entered at that instant: this shell starts in /")

    def _environment(self, plan: Plan, sets: Sets) -> Mapping[str, str]:
        instant = instant_text(sets.started_ns)
        callers = os.environ if self._user is None else self._secrets.withheld_from(os.environ)
        variables = {**shell.variables(self._report.run_id, plan), "KOPIATOMIC_INSTANT": instant}
        if self._account is not None:
            variables |= accounts.variables(self._account)
        if self._is_shell:
            variables |= _prompt(
                f"(frozen {instant[11:19]}Z) ", callers.get("PROMPT_COMMAND", ""), root=self._user is None
            )
        return shell.environment(callers, variables)

    def _conclude(self, checked: Checked) -> None:
        """Combine the command's end and the check of the mounts into the run's outcome."""
        report = self._report
        assert report.engine is not None
        if checked.problems:
            raise KopiatomicError(
                f"what {report.engine.name} saw is not the frozen view: {'; '.join(checked.problems)}",
                kind="view-changed",
                hint="What it made of that is not to be trusted. Find out who removed it, and run again.",
            )
        reason = signals.reason()
        if checked.end.stopped and reason is not None:
            raise reason
        if checked.strays:
            what = "a process" if checked.strays == 1 else f"{checked.strays} processes"
            self._selecting.warn(f"{what} that {report.engine.name} left running ended with it")


def _account(name: str) -> pwd.struct_passwd:
    """Return the account with a name or a number. Raises KopiatomicError."""
    found = accounts.find(name)
    if found is None:
        raise KopiatomicError(
            f"--user {printable(name)}: there is no such user", kind="no-such-user", hint="'getent passwd' lists them."
        )
    return found


def _as_a_shell_says(error: StartError) -> KopiatomicError:
    if error.kind == "no-directory":
        return error
    return _StartError(error, _NOT_FOUND if error.number in {errno.ENOENT, errno.ENOTDIR} else _NOT_EXECUTABLE)


def _welcome(plan: Plan, sets: Sets) -> list[str]:
    """Return the message shown when a shell starts."""
    when = instant_words(sets.started_ns)
    count = len(plan.taken)
    what = f"{count} datasets" if count > 1 else "one dataset"
    instant = "one instant" if sets.atomic else f"NOT one instant, up to {sets.skew_ns / 1e9:.3f} s apart"
    where = first_few([plan.path(place) for taken in plan.taken for place in taken.places])
    lines = [f"frozen at {when} ({instant}): {what}, in {where}; all else is live"]
    live = [u.point for u in plan.uncovered if u.live]
    if live and not plan.live_system:
        lines.append(f"live in these trees: {first_few(live)}")
    lines += shielded(plan)[:_FEW]
    blocked = "it keeps the space of what is deleted meanwhile"
    made = {one.kind for one in sets.sets}
    blocked += "".join(kind.blocked for kind in KINDS.values() if kind.name in made)
    return [*lines, f"as long as this shell is open {blocked}"]


def _prompt(marker: str, before: str, *, root: bool) -> dict[str, str]:
    """Mark the prompt: for sh, dash and ksh through PS1, for bash whatever its start-up files do to PS1."""
    command = f'case $PS1 in "{marker}"*) ;; *) PS1="{marker}$PS1" ;; esac'
    return {
        "PS1": marker + ("# " if root else "$ "),
        "PROMPT_COMMAND": f"{command}; {before}" if before else command,
    }
