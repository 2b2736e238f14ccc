"""The engine of ``-c COMMAND``: any program, with the paths to read as its last arguments, judged by its exit status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kopiatomic.engines import program
from kopiatomic.engines.engine import Job
from kopiatomic.engines.lines import Lines
from kopiatomic.engines.written import Own
from kopiatomic.errors import UsageError
from kopiatomic.model.engine import Command, EngineEnd, EngineResult, Progress, Target
from kopiatomic.model.plan import Plan, Refusal
from kopiatomic.text import ended, printable


class CommandEngine:
    """Runs a command given by the user. Its words come from ``-c`` and ``-o``; none of them is passed to a shell."""

    def __init__(self, words: Sequence[str], options: Sequence[str], environment: Mapping[str, str]) -> None:
        if not words:
            raise UsageError(
                "-c was given an empty command", kind="usage", hint="Name a program, as in -c 'tar -cf /backup/a.tar'."
            )
        self._words = tuple(words)
        self._options = tuple(options)
        self._environment = dict(environment)
        self._program: str | None = None
        self._lines = {"stdout": Lines(), "stderr": Lines()}

    @property
    def name(self) -> str:
        """The program as the user named it."""
        return printable(self._words[0])

    @property
    def version(self) -> str | None:
        """None: the version is not queried, because it may be any program."""
        return None

    @property
    def secrets(self) -> Sequence[str]:
        """Empty: it is unknown what an arbitrary program takes for a password."""
        return ()

    def refuses(self, _plan: Plan) -> list[Refusal]:
        """Return no refusals: nothing is known about the program."""
        return []

    def breaks_at(self, _folder: str) -> bool:
        """Return False: nothing is known about the program."""
        return False

    def check(self, plan: Plan) -> list[str]:
        """Find the program. Raises KopiatomicError of kind ``command-missing`` or ``command-not-executable``."""
        self._program = program.find(
            self._words[0],
            self._environment,
            kind="command",
            hint="-c takes a program and its arguments, split as a shell splits words but not run by one.",
        )
        return []

    @property
    def target(self) -> Target:
        """Unknown: it may be any program."""
        return Target()

    def own(self, plan: Plan) -> list[Own]:
        """Return nothing: the user has to say it (``--writable``)."""
        return []

    def skips(self, path: str) -> bool:
        """Return True: the user's command is trusted in this, because nobody else can know."""
        return True

    def command(self, job: Job) -> Command:
        """Return the command with the root as its last argument; its environment is the caller's."""
        argv = (self._program or self._words[0], *self._words[1:], *self._options, *job.plan.sources)
        return Command(argv=argv, environment={})

    def describe(self, plan: Plan) -> Sequence[str]:
        """Return the argv that would be started, whether or not the program exists."""
        return (*self._words, *self._options, *plan.sources)

    def feed(self, stream: str, data: bytes) -> list[str | Progress]:
        """Pass everything through, line by line; empty ``data`` means that the stream has ended."""
        return list(self._lines[stream].feed(data))

    def judge(self, job: Job, end: EngineEnd) -> EngineResult:
        """Judge by the exit status: 0 is success, anything else is not. Nothing more is known about a user's program."""
        if end.status == 0:
            return EngineResult(saved=True, complete=True, message="")
        stopped = ", stopped by this run" if end.stopped else ""
        message = f"{self.name} failed: {ended(end.status)}{stopped}"
        return EngineResult(saved=False, complete=False, message=message)

    def finish(self) -> list[str]:
        """Do nothing: nothing is postponed."""
        return []
