"""Whether others than root can exchange a program that root's timer starts."""

from __future__ import annotations

import os
import sys

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.paths import is_at_or_below
from kopiatomic.system import safety
from kopiatomic.text import printable

_IMPORTS = "what its Python imports from"
_IMPORTED = (".py", ".pyc", ".so", ".pth", ".zip", ".egg")
"""The endings of files that Python imports, or reads when it starts."""


def installed(argv0: str, shown: str, *, top: str = "/") -> tuple[str, str]:
    """Return the Python and the program of this process, which a timer may start again. ``argv0`` is its ``sys.argv[0]``,
    ``shown`` the command line as it may be shown.

    Raises KopiatomicError if there is no program, or if others than root can change it, its Python, or what that imports. Only
    what is below ``top`` is examined.
    """
    program = os.path.abspath(argv0)
    if os.path.basename(program) in {"__main__.py", "-c", "-m"} or not presence.is_file(program):
        raise KopiatomicError(
            "kopiatomic was started as a module, and is no program that a timer could start",
            kind="no-program",
            hint=f"Install it (README, 'Installing'), and call it by its path, for example: sudo /usr/local/bin/{shown}",
        )
    check(program, "the program", top=top)
    check(sys.executable, "its Python", top=top)
    for path in sys.path:
        if path and presence.exists(path):
            check(path, _IMPORTS, top=top)
            _check_inside(path, top)
    return sys.executable, program


def _check_inside(folder: str, top: str) -> None:
    """Refuse a package or module, or a ``.pth`` file, that others can change. Raises KopiatomicError."""
    folders, known = [folder], {os.path.realpath(folder)}
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                found = list(entries)
            for entry in found:
                is_folder = entry.is_dir()
                if not (entry.name.isidentifier() if is_folder else entry.name.endswith(_IMPORTED)):
                    continue
                if entry.is_symlink():
                    if not presence.exists(entry.path):
                        continue
                    check(entry.path, _IMPORTS, top=top)
                else:
                    _refuse(entry.path, entry.path, _IMPORTS, top)
                real = os.path.realpath(entry.path)
                if is_folder and real not in known and (entry.name == "__pycache__" or _is_package(real)):
                    known.add(real)
                    folders.append(real)
        except NotADirectoryError:
            # It is an archive of modules.
            continue
        except OSError as error:
            raise _unseen(_IMPORTS, error.filename or folder, error) from None


def _is_package(folder: str) -> bool:
    return any(entry.startswith("__init__.") for entry in os.listdir(folder))


def check(path: str, what: str, *, top: str = "/") -> None:
    """Refuse a path that others than root can write to, at its end or on the way to it. Raises KopiatomicError."""
    try:
        for step in safety.steps(path):
            _refuse(step, path, what, top)
    except OSError as error:
        raise _unseen(what, path, error) from None


def _refuse(step: str, path: str, what: str, top: str) -> None:
    """Refuse one step of a path if others can write to it. Raises KopiatomicError, OSError."""
    who = safety.writers(step)
    if who and is_at_or_below(step, top):
        mend = safety.mend(step, "chmod", "go-w")
        raise KopiatomicError(
            f"{what} {printable(path)} is used by root, and {who} can change {printable(step)}",
            kind="not-roots-alone",
            # A folder stays as it is: others may be meant to write to it, and what they have put there stays, too.
            hint=f"{mend[:1].upper()}{mend[1:]}." if mend == safety.COPY else f"Look at it, then: {mend}",
        )


def _unseen(what: str, path: str, error: OSError) -> KopiatomicError:
    return KopiatomicError(f"{what} {printable(path)} cannot be looked at: {error.strerror}", kind="not-roots-alone")
