"""The engine of ``-c COMMAND``: any program, with what it is to read as its last arguments, judged by its exit status."""

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
    """Runs a command of the user's. Its words come from ``-c`` and ``-o``; none of them is given to a shell."""

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
        """Not asked: any program may be meant."""
        return None

    @property
    def secrets(self) -> Sequence[str]:
        """None are known: what any program takes for a password cannot be."""
        return ()

    def refuses(self, _plan: Plan) -> list[Refusal]:
        """Nothing that could be known."""
        return []

    def breaks_at(self, _folder: str) -> bool:
        """No."""
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
        """Not known: any program may be meant."""
        return Target()

    def own(self, plan: Plan) -> list[Own]:
        """Not known: the user says it (``--writable``)."""
        return []

    def skips(self, path: str) -> bool:
        """The user's command is trusted in this, for nobody else can know."""
        return True

    def command(self, job: Job) -> Command:
        """The command with the root as its last argument; its environment is the caller's."""
        argv = (self._program or self._words[0], *self._words[1:], *self._options, *job.plan.sources)
        return Command(argv=argv, environment={})

    def describe(self, plan: Plan) -> Sequence[str]:
        """The argv as it would be started, whether the program exists or not."""
        return (*self._words, *self._options, *plan.sources)

    def feed(self, stream: str, data: bytes) -> list[str | Progress]:
        """Everything is passed through, line by line; empty ``data`` says that the stream has ended."""
        return list(self._lines[stream].feed(data))

    def judge(self, job: Job, end: EngineEnd) -> EngineResult:
        """Exit status 0 is success, anything else is not: nothing more is known about a program of the user's."""
        if end.status == 0:
            return EngineResult(saved=True, complete=True, message="")
        stopped = ", stopped by this run" if end.stopped else ""
        message = f"{self.name} failed: {ended(end.status)}{stopped}"
        return EngineResult(saved=False, complete=False, message=message)

    def finish(self) -> list[str]:
        """Nothing is put off."""
        return []
