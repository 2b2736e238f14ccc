"""Engines: the programs that back a view up. One module each; a new one is a file and a line in :func:`create`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from kopiatomic.engines.engine import BORG, RESTIC, Engine
from kopiatomic.errors import UsageError


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
        from kopiatomic.engines.restic.backup import Restic  # noqa: PLC0415

        return Restic(options, given, repository)
    if engine == BORG:
        from kopiatomic.engines.borg.backup import Borg  # noqa: PLC0415

        return Borg(options, given, repository, archive)
    from kopiatomic.engines.kopia.backup import Kopia  # noqa: PLC0415

    return Kopia(options, given, invoking_user or given.get("SUDO_USER"), maintenance=maintenance)


def _check_words(command: bool, engine: str | None, repository: str | None, archive: str | None) -> None:
    """Refuse words that do not go together. Raises UsageError."""
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
