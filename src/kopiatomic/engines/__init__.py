"""Engines: the programs that back up a view. One folder each; docs/architecture.md says what a new one needs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kopiatomic.engines.engine import BORG, KOPIA, RESTIC, Engine
from kopiatomic.engines.kopia import ignore_file
from kopiatomic.errors import UsageError

if TYPE_CHECKING:
    from kopiatomic.engines.reader import Reader


IGNORE_FILES = ((ignore_file.NAME, ignore_file.EVERYTHING),)
"""Names and contents of files that have an engine leave out the directory that they are in."""


def create(
    command: Sequence[str] | None,
    options: Sequence[str],
    *,
    engine: str | None = None,
    repository: str | None = None,
    archive: str | None = None,
    maintenance: bool = True,
    environment: Mapping[str, str] | None = None,
    invoking_user: str | None = None,
) -> Engine:
    """Create the engine of a run: the user's command if given (``-c``), otherwise the named engine, by default kopia.

    ``repository`` is for restic and Borg, ``archive`` the name of Borg's archive, ``environment`` by default this process's own,
    ``invoking_user`` the user who called sudo. Raises UsageError.
    """
    given = os.environ if environment is None else environment
    _check_words(command is not None, engine, repository, archive)
    if command is not None:
        from kopiatomic.engines.command import CommandEngine  # noqa: PLC0415

        return CommandEngine(command, options, given)
    if engine == RESTIC:
        from kopiatomic.engines.restic.engine import Restic  # noqa: PLC0415

        return Restic(options, given, repository)
    if engine == BORG:
        from kopiatomic.engines.borg.engine import Borg  # noqa: PLC0415

        return Borg(options, given, repository, archive)
    from kopiatomic.engines.kopia.engine import Kopia  # noqa: PLC0415

    return Kopia(options, given, invoking_user or given.get("SUDO_USER"), maintenance=maintenance)


def open_reader(
    engine: str = KOPIA,
    options: Sequence[str] = (),
    *,
    repository: str | None = None,
    environment: Mapping[str, str] | None = None,
    invoking_user: str | None = None,
) -> Reader:
    """Create a reader of an engine's repository; the arguments are those of :func:`create`. Raises UsageError."""
    given = os.environ if environment is None else environment
    _check_words(False, engine, repository, None)
    if engine == RESTIC:
        from kopiatomic.engines.restic.reader import ResticReader  # noqa: PLC0415

        return ResticReader(options, given, repository)
    if engine == BORG:
        from kopiatomic.engines.borg.reader import BorgReader  # noqa: PLC0415

        return BorgReader(options, given, repository)
    from kopiatomic.engines.kopia.reader import KopiaReader  # noqa: PLC0415

    return KopiaReader(options, given, invoking_user or given.get("SUDO_USER"))


def _check_words(command: bool, engine: str | None, repository: str | None, archive: str | None) -> None:
    """Refuse options that do not go together. Raises UsageError."""
    if command and engine is not None:
        raise UsageError(
            "-c and --engine exclude each other", kind="usage", hint="-c runs any command, --engine one that is known."
        )
    if repository is not None and engine not in {RESTIC, BORG}:
        raise UsageError(
            "--repository is for --engine restic and borg",
            kind="usage",
            hint="kopia's is the one that it is connected to (kopia repository connect, or -o --config-file=FILE).",
        )
    if archive is not None and engine != BORG:
        raise UsageError("--archive is for --engine borg", kind="usage", hint="Only Borg gives its archives names.")
