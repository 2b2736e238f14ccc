"""The engine of ``-c COMMAND``: any program, with the paths to read as its last arguments, judged by its exit status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kopiatomic.engines import program
from kopiatomic.engines.engine import Job
from kopiatomic.engines.names import OddNames
from kopiatomic.engines.written import WrittenDirectory
from kopiatomic.errors import UsageError
from kopiatomic.immutable import immutable
from kopiatomic.model.engine import Command, EngineEnd, EngineResult, Progress, Target
from kopiatomic.model.plan import Plan, Refusal
from kopiatomic.system.lines import Lines
from kopiatomic.text import ended, printable


class CommandEngine:
    """A command given by the user. Its words come from ``-c`` and ``-o``; none of them is passed to a shell."""

    remembers = False
    records_apart = False
    variables = ()

    def __init__(self, words: Sequence[str], options: Sequence[str], environment: Mapping[str, str]) -> None:
        if not words:
            raise UsageError(
                "-c was given an empty command", kind="usage", hint="Name a program, as in -c 'tar -cf /backup/a.tar'."
            )
        self._words = tuple(words)
        self._options = tuple(options)
        self._environment = dict(environment)

    @property
    def name(self) -> str:
        """The program as the user named it."""
        return printable(self._words[0])

    @property
    def secrets(self) -> Sequence[str]:
        """Empty: it is unknown what an arbitrary program takes for a password."""
        return ()

    def by_hand(self, _environment: Mapping[str, str]) -> Mapping[str, str]:
        """Return nothing: it has no repository that is known."""
        return {}

    @property
    def common(self) -> Sequence[Sequence[str]]:
        """Empty: nothing is known about the program."""
        return ()

    def pinned(self, _environment: Mapping[str, str]) -> Mapping[str, str]:
        """Return nothing: nothing is known about the program."""
        return {}

    def refuses(self, _plan: Plan) -> list[Refusal]:
        """Return no refusals: nothing is known about the program."""
        return []

    def breaks_at(self, _folder: str) -> bool:
        """Return False: nothing is known about the program."""
        return False

    def describe(self, plan: Plan) -> Sequence[str]:
        """Return the argv that would be started, whether or not the program exists."""
        return (*self._words, *self._options, *plan.sources)

    def check(self, plan: Plan) -> UnknownRepository:
        """Find the program. Raises KopiatomicError of kind ``command-missing`` or ``command-not-executable``."""
        path = program.find(
            self._words[0],
            self._environment,
            kind="command",
            hint="-c takes a program and its arguments, split as a shell splits words but not run by one.",
        )
        return UnknownRepository(self.name, (path, *self._words[1:], *self._options))


@immutable
class UnknownRepository:
    """Where a user's command saves: nothing is known of it."""

    name: str
    """The program as the user named it."""
    words: tuple[str, ...]
    """The command, without what it is to read."""
    losses: None = None
    version: str | None = None
    """Not queried, because it may be any program."""
    warnings: tuple[str, ...] = ()
    target: Target = Target()

    def written(self, plan: Plan) -> list[WrittenDirectory]:
        """Return nothing: the user has to say it (``--writable``)."""
        return []

    def skips(self, path: str) -> bool:
        """Return True: the user's command is trusted in this, because nobody else can know."""
        return True

    def backup(self, job: Job) -> CommandBackup:
        """Return the backup of a view that is mounted."""
        return CommandBackup(self.name, (*self.words, *job.plan.sources))


class CommandBackup:
    """One backup with a user's command, which is judged by its exit status."""

    def __init__(self, name: str, argv: Sequence[str]) -> None:
        self._name = name
        self._argv = argv
        self._lines = {"stdout": Lines(), "stderr": Lines()}

    def command(self) -> Command:
        """Return the command with the root as its last argument; its environment is the caller's."""
        return Command(argv=self._argv, environment={})

    def feed(self, stream: str, data: bytes) -> list[str | Progress]:
        """Pass everything through, line by line; empty ``data`` means that the stream has ended."""
        return list(self._lines[stream].feed(data))

    def judge(self, end: EngineEnd, _odd: OddNames) -> EngineResult:
        """Judge by the exit status: 0 is success, anything else is not. Nothing more is known about a user's program."""
        if end.status == 0:
            return EngineResult(saved=True, complete=True, message="")
        stopped = ", stopped by this run" if end.stopped else ""
        message = f"{self._name} failed: {ended(end.status)}{stopped}"
        return EngineResult(saved=False, complete=False, message=message)

    def finish(self) -> list[str]:
        """Do nothing: nothing is postponed."""
        return []
