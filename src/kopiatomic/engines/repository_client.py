"""restic and Borg as programs that answer queries about a repository that is given as text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence

from kopiatomic.engines import flags
from kopiatomic.engines.program import Program, Version, user
from kopiatomic.errors import KopiatomicError
from kopiatomic.system import process
from kopiatomic.text import printable


class RepositoryClient(Program):
    """A program with the user's options (``-o``); ``shared`` is what every command of it gets.

    ``variables`` has the options whose value may hold a password, and the variables by which the program gets it in their place:
    its argv can be read by every user. Raises UsageError.
    """

    def __init__(
        self,
        name: str,
        options: Sequence[str],
        environment: Mapping[str, str],
        syntax: flags.Syntax,
        *,
        shared: Collection[str],
        variables: Mapping[str, str],
        install: str,
        attempt: str,
    ) -> None:
        super().__init__(name, environment, install=install, attempt=lambda: attempt)
        self.install = install
        self.given = flags.parse(name, options, syntax)
        self.words = [word for g in self.given if g.flag not in variables for word in g.words]
        """The options as words of an argv."""
        self.common = [g.words for g in self.given if g.flag in shared and g.flag not in variables]
        self.shared = [word for words in self.common for word in words]
        self.additions |= {variables[g.flag]: g.value for g in self.given if g.flag in variables}
        # Times that are passed in, and that are written, are in the process's time zone.
        self.additions["TZ"] = "UTC"
        if not environment.get("HOME"):
            self.additions["HOME"] = user()[1]

    @property
    @abstractmethod
    def where(self) -> str | None:
        """The repository, as the program will find it; None if it is not named."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What identifies the program's snapshots of this host."""

    @property
    @abstractmethod
    def caches(self) -> Mapping[str, str]:
        """The directories that the program writes to, apart from the repository: what, and where."""

    def value(self, flag: str) -> str | None:
        """Return the last value of a flag; None if it was not given."""
        return next((g.value for g in reversed(self.given) if g.flag == flag), None)

    def check_version(self, word: str, supported: Callable[[tuple[int, ...]], bool]) -> Version:
        """Ask for the version with a word of the command line. Raises KopiatomicError of kind NAME-unsupported."""
        said = self.run(word).stdout.decode("utf-8", "backslashreplace").strip()
        version = self.version_in(said, rf"{self.name}\S* (?P<text>(?P<major>\d+)\.(?P<minor>\d+)\.(?P<patch>\d+)\S*)")
        if version.numbers and not supported(version.numbers):
            raise KopiatomicError(
                f"{printable(self.path)} is {self.name} {version.text}, which is not supported",
                kind=f"{self.name}-unsupported",
                hint=self.install,
            )
        return version

    @abstractmethod
    def failure(self, finished: process.Finished) -> KopiatomicError:
        """Return what a failed command means."""
