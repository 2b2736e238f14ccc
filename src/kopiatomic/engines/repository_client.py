"""restic and Borg as programs that answer queries about a repository that is given as text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence

from kopiatomic.engines import flags
from kopiatomic.engines.program import Program, user
from kopiatomic.errors import KopiatomicError
from kopiatomic.system import process


class RepositoryClient(Program):
    """A program with the user's options (``-o``); ``shared`` is what every command of it gets. Raises UsageError."""

    def __init__(
        self,
        name: str,
        options: Sequence[str],
        environment: Mapping[str, str],
        syntax: flags.Syntax,
        shared: Collection[str],
        *,
        install: str,
        attempt: str,
    ) -> None:
        super().__init__(name, environment, install=install, attempt=lambda: attempt)
        self.install = install
        self.given = flags.parse(name, options, syntax)
        self.shared = [word for g in self.given if g.flag in shared for word in g.words]
        # Times that are passed in, and that are written, are in the process's time zone.
        self.additions["TZ"] = "UTC"
        if not environment.get("HOME"):
            self.additions["HOME"] = user()[1]

    @abstractmethod
    def failure(self, finished: process.Finished) -> KopiatomicError:
        """Return what a failed command means."""
