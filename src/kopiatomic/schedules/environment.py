"""The environment of a schedule: a service has almost none of its own, and what a backup needs of the caller's is not secret.

It is complete and fixed when the schedule is installed, so that a run by the timer finds the same programs and the same
repository as the check before it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Mapping

from kopiatomic import engines
from kopiatomic.config.credentials import is_variable, plain
from kopiatomic.config.options import Options, words
from kopiatomic.engines import program
from kopiatomic.engines.engine import Engine
from kopiatomic.engines.ways import without_others
from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.schedules import trust
from kopiatomic.secrets.masking import is_secret
from kopiatomic.text import printable

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where to look for programs: where an administrator and the system's packages put them."""

_SHARED = frozenset({"XDG_CACHE_HOME", "XDG_CONFIG_HOME", "http_proxy", "https_proxy", "no_proxy"})


def of(
    options: Options, caller: Mapping[str, str], home: str, credentials: Collection[str], *, top: str = "/"
) -> Mapping[str, str]:
    """Return the environment of a schedule of this backup. ``home`` is root's, ``credentials`` the variables passed that way.

    What a profile says to the engine holds against the caller. Raises KopiatomicError if the engine's program is missing, or
    others than root can change it; from ``top`` on.
    """
    own = plain(options.variables).values
    # A profile's secrets count as well, whose values are not read here.
    caller = without_others(caller, {*credentials, *(source.name for source in options.variables)})
    engine = created(options, {**caller, **own})
    prefixes = engine.variables
    taken = {name for name in caller if (name in _SHARED or name.startswith(prefixes)) and name not in credentials}
    found = {name: caller[name] for name in taken} | {"HOME": home, "PATH": PATH}
    found |= engine.pinned({**found, **own})
    if options.command is not None:
        _check_command(options.command, own.get("PATH", PATH), top)
        return found
    return found | _program(engine.name, {**caller, **own}, top)


def created(options: Options, environment: Mapping[str, str]) -> Engine:
    """Return the engine of a backup. Raises UsageError."""
    return engines.create(
        None if options.command is None else words("-c", options.command),
        words("-o", options.options),
        engine=options.engine,
        repository=options.repository,
        archive=options.archive,
        environment=environment,
    )


def check_no_secrets(variables: Mapping[str, str], advice: Callable[[str], str], shown: str) -> None:
    """Refuse variables that hold a secret: every user can read a schedule's. Raises KopiatomicError.

    ``advice`` says how the value of a variable can reach the engine otherwise; ``shown`` is the command line as it may be
    shown.
    """
    secret = sorted(name for name, value in variables.items() if is_secret(name, value))
    if secret:
        without = " ".join(f"-u {name}" for name in secret)
        raise KopiatomicError(
            f"{', '.join(secret)} of this environment would be part of the schedule, which every user can read, and "
            f"{'holds a secret' if len(secret) == 1 else 'hold secrets'}",
            kind="secret-in-environment",
            hint=f"{advice(secret[0])} If the schedule does not need it: env {without} {shown}",
        )


def _check_command(command: str, path: str, top: str) -> None:
    """Check that a command will be found, and is root's."""
    hint = f"A schedule looks for programs in {printable(path)}; name the command by its path."
    found = program.find(words("-c", command)[0], {"PATH": path}, kind="command", hint=hint)
    trust.check(found, "the command", top=top)


def _program(engine: str, variables: Mapping[str, str], top: str) -> dict[str, str]:
    """Return where the engine's program is, as a variable."""
    variable = f"KOPIATOMIC_{engine.upper()}"
    named = variables.get(variable) or engine
    path = program.find(named, variables, kind=engine, hint=f"Install it, or set {variable} to where it is.")
    trust.check(path, f"the engine {engine}", top=top)
    return {variable: path}


def check_credential(name: str, path: str, *, top: str = "/") -> None:
    """Refuse a file of a secret that others than root can read or change. Raises KopiatomicError, UsageError."""
    if not is_variable(name) or not os.path.isabs(path) or not path.isprintable():
        raise UsageError(
            f"--credential {printable(name)}={printable(path)}: it must be a variable's name and an absolute path",
            kind="bad-credential",
            hint="For example --credential KOPIA_PASSWORD=/root/kopia.pw",
        )
    trust.check(path, f"the credential {name}", top=top)
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077 or not status.st_size:
        raise KopiatomicError(
            f"the credential {printable(path)} must be a file that root alone can read, and not empty",
            kind="bad-credential",
            hint="Put the secret into a new file that root alone can read (mode 600), and name that.",
        )
