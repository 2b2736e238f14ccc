"""Values for the engine alone: passwords and keys that a service manager passes as files (systemd.exec(5),
``LoadCredential=``), and the variables of a profile, which say where their value is.

A credential that is named like an environment variable goes into the engine's environment only: not into our own, which hooks
and every program that we run would inherit, nor into the unit's, which every user may read.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Mapping, Sequence

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.secrets.masking import is_secret
from kopiatomic.secrets.source import Source
from kopiatomic.system import process, safety
from kopiatomic.system.descriptors import closing
from kopiatomic.text import printable

_STORE = "/etc/credstore"
_ENCRYPTED_STORE = "/etc/credstore.encrypted"
"""Where systemd looks for credentials that a unit names without a path (systemd.exec(5)), and so do we outside of a unit."""

_COMMAND_TIMEOUT = 30.0
"""Seconds that a command has to print a value."""

_LARGEST = 128 << 10
"""Bytes. The kernel accepts no longer variable (execve(2))."""

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*|https?_proxy")


def is_variable(name: str) -> bool:
    """Whether a credential of this name is meant for the engine's environment."""
    return _VARIABLE.fullmatch(name) is not None


def folder_of(environment: Mapping[str, str]) -> str:
    """Return where a service manager has put credentials; empty outside of a unit."""
    return environment.get("CREDENTIALS_DIRECTORY", "")


def handed(folder: str) -> dict[str, str]:
    """Return the credentials that a service manager has put into a folder, by variable, each without its trailing newline.

    The folder is empty outside of a unit. Raises KopiatomicError of kind ``credential``.
    """
    if not folder:
        return {}
    found = {}
    try:
        for name in sorted(filter(is_variable, os.listdir(folder))):
            path = os.path.join(folder, name)
            try:
                found[name] = _text(_handed(path))
            except ValueError as error:
                raise _unusable(path, str(error)) from None
    except OSError as error:
        raise _unusable(error.filename or folder, error.strerror or str(error)) from None
    return found


def _handed(path: str) -> bytes:
    """Return what a service manager has handed over, as far as a variable could hold it. Raises OSError."""
    with open(path, "rb") as file:
        return file.read(_LARGEST + 1)


def _text(content: bytes) -> str:
    """Return a value without its trailing newline. Raises ValueError with the reason if no variable can have it."""
    if b"\0" in content:
        raise ValueError("it holds a NUL byte, which no environment variable can")
    if len(content) >= _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST >> 10} KiB, which no environment variable can be")
    return os.fsdecode(content.removesuffix(b"\n"))


def _unusable(path: str, reason: str) -> KopiatomicError:
    return KopiatomicError(
        f"the credential {printable(path)} cannot be used: {reason}",
        kind="credential",
        hint="Look at LoadCredential= in the unit, and at the file that it names.",
    )


@immutable
class Resolved:
    """The values of variables, and which of them are secret."""

    values: Mapping[str, str]
    secrets: Sequence[str]


def plain(sources: Sequence[Source]) -> Resolved:
    """Return the values that a profile itself holds: nothing is read and no command is started."""
    values = {
        source.name: source.value for source in sources if isinstance(source.value, str) and source.form == "text"
    }
    return Resolved(values, [value for name, value in values.items() if is_secret(name, value)])


def resolve(sources: Sequence[Source], folder: str) -> Resolved:
    """Return the values of variables, each without its trailing newline. What is wrong with several is said at once.

    ``folder`` is where a service manager has put credentials; empty outside of a unit. Raises KopiatomicError of kind
    ``credential``, and Interrupted.
    """
    found = plain(sources)
    read: dict[str, str] = {}
    wrong: list[KopiatomicError] = []
    for source in sources:
        if source.form != "text":
            try:
                read[source.name] = _read(source, folder)
            except KopiatomicError as error:
                wrong.append(error)
    if wrong:
        raise KopiatomicError("\n".join(error.message for error in wrong), kind="credential", hint=wrong[0].hint)
    return Resolved({**found.values, **read}, [*found.secrets, *read.values()])


def resolve_each(groups: Sequence[Sequence[Source]], folder: str) -> list[Resolved]:
    """Return the values of several groups of variables, as :func:`resolve` does: what is wrong with any is said at once.

    Raises KopiatomicError of kind ``credential``, and Interrupted.
    """
    found: list[Resolved] = []
    wrong: list[KopiatomicError] = []
    for group in groups:
        try:
            found.append(resolve(group, folder))
        except KopiatomicError as error:
            wrong.append(error)
    if wrong:
        raise KopiatomicError("\n".join(error.message for error in wrong), kind="credential", hint=wrong[0].hint)
    return found


def _read(source: Source, folder: str) -> str:
    """Return the value of a variable from where it is. Raises KopiatomicError, Interrupted."""
    try:
        if source.form == "command":
            content = _printed(source)
        elif source.form == "file":
            content = _private(source, str(source.value))
        else:
            content = _credential(source, str(source.value), folder)
    except OSError as error:
        raise _bad(source, f"{printable(error.filename or str(source.value))}: {error.strerror}") from None
    try:
        value = _text(content)
    except ValueError as error:
        raise _bad(source, str(error)) from None
    if not value:
        raise _bad(source, "it is empty")
    return value


def _private(source: Source, path: str) -> bytes:
    """Return the content of a file that root alone can read and change. Raises OSError, KopiatomicError."""
    # Before it is opened: what a user can put there may never answer.
    why = "" if os.geteuid() else safety.unsafe_way(path)
    if why:
        raise _bad(source, f"{printable(path)} can be replaced: {why}")
    with closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)) as fd:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _bad(source, f"{printable(path)} is not a file")
        if status.st_mode & 0o077 or status.st_uid != os.geteuid():
            # What others could read is no secret any more, and the file may be meant for them.
            mend = "put the secret into a new file that root alone can read (mode 600), and name that"
            raise _bad(source, f"others than root can read or change {printable(path)}: {mend}")
        with open(fd, "rb", closefd=False) as file:
            return file.read(_LARGEST + 1)


def _credential(source: Source, name: str, folder: str) -> bytes:
    """Return a credential of systemd, from the unit or from where a unit would get it. Raises OSError, KopiatomicError."""
    if folder and presence.exists(os.path.join(folder, name)):
        return _handed(os.path.join(folder, name))
    path = os.path.join(_STORE, name)
    if presence.exists(path):
        return _private(source, path)
    encrypted = os.path.join(_ENCRYPTED_STORE, name)
    if presence.exists(encrypted):
        return _output(source, ["systemd-creds", "decrypt", f"--name={name}", encrypted, "-"])
    raise _bad(
        source, f"there is no credential {printable(name)}: not in the unit, in {_STORE}, or in {_ENCRYPTED_STORE}"
    )


def _printed(source: Source) -> bytes:
    """Return what a command prints. Raises OSError, KopiatomicError, Interrupted."""
    assert isinstance(source.value, tuple)
    return _output(source, source.value)


def _output(source: Source, argv: Sequence[str]) -> bytes:
    try:
        _require_roots(source, argv[0])
        finished = process.run(argv, timeout=_COMMAND_TIMEOUT)
    except process.TimeLimitError:
        raise _bad(source, f"{printable(argv[0])} did not end within {_COMMAND_TIMEOUT:g} s") from None
    except OSError as error:
        raise _bad(source, f"{printable(argv[0])} cannot be started: {error.strerror}") from None
    if finished.status != 0:
        # What it says is not shown: it may be the secret.
        raise _bad(source, f"{printable(argv[0])} failed (status {finished.status})")
    return finished.stdout


def _require_roots(source: Source, name: str) -> None:
    """Refuse a program that others than root can exchange, since root starts it. Raises OSError, KopiatomicError."""
    if os.geteuid() != 0:
        return
    path = shutil.which(name) if "/" not in name else os.path.abspath(name)
    why = safety.changeable(path) if path is not None else ""
    if why:
        raise _bad(source, f"root would start {printable(path or name)}, and others can change that: {why}")


def _bad(source: Source, reason: str) -> KopiatomicError:
    return KopiatomicError(
        f"{printable(source.place)}: the value of {source.name} cannot be had: {reason}",
        kind="credential",
        hint="No backup was started. 'kopiatomic profile check NAME' looks at all values again.",
    )
