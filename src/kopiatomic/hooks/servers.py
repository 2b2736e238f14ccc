"""What the kinds of databases share: where a server's files lie, which process it is, and how its client is run."""

from __future__ import annotations

import os
import pwd
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, TypeVar

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError, unforeseen
from kopiatomic.filesystems import KINDS
from kopiatomic.hooks import freezer
from kopiatomic.hooks.holder import Around, Finding, Place, Wanted
from kopiatomic.immutable import immutable
from kopiatomic.model.mounts import holder, visible
from kopiatomic.paths import is_at_or_below, parents
from kopiatomic.system import cgroups, coprocess, descriptors, host, looking, process
from kopiatomic.system.coprocess import Coprocess
from kopiatomic.system.process import Finished
from kopiatomic.system.spawn import User, UserError
from kopiatomic.text import printable

T = TypeVar("T")

CONNECT_TIMEOUT = 5
"""Seconds that a client has to connect."""


@immutable
class Account:
    """The user that a client runs as; None for our own."""

    name: str
    home: str
    user: User | None


def account(wanted: Wanted, default: str) -> Account:
    """Return the user that a client runs as. Raises KopiatomicError."""
    name = str(wanted.settings.get("system_user", default))
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise KopiatomicError(
            f"--hold {wanted}: there is no user {printable(name)}",
            kind="no-such-user",
            hint="Name the user that the database's client runs as: system_user.",
        ) from None
    user = User.of(entry)
    return Account(name, entry.pw_dir, None if entry.pw_uid == os.geteuid() else user)


def environment(who: Account, more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a client, with nothing of ours but PATH. Its messages are read, so they are in English."""
    path = os.environ.get("PATH", os.defpath)
    return {"HOME": who.home, "LC_ALL": "C", "LOGNAME": who.name, "PATH": path, "USER": who.name, **more}


@immutable
class Client:
    """A database's own client, ready to be started. ``package`` has it in Debian."""

    argv: Sequence[str]
    variables: Mapping[str, str] = field(repr=False)
    who: Account
    package: str

    def ask(self, wanted: Wanted, text: str) -> Finished:
        """Run it with statements as its input. Raises KopiatomicError, Interrupted."""
        deadline = time.monotonic() + wanted.timeout
        try:
            return coprocess.run(self.argv, self.variables, deadline, text=text.encode(), user=self.who.user)
        except TimeoutError:
            raise KopiatomicError(
                f"--hold {wanted}: the server did not answer within {wanted.timeout:g} s",
                kind="hold-no-answer",
                hint="See its log. A longer time: timeout.",
            ) from None
        except OSError as error:
            raise self.not_started(wanted, error) from None

    def shown(self, wanted: Wanted, *words: str) -> str:
        """Return what it prints with more words, asking no server. Raises KopiatomicError, Interrupted."""
        return os.fsdecode(replace(self, argv=[*self.argv, *words]).ask(wanted, "").stdout)

    def start(self, wanted: Wanted) -> Coprocess:
        """Start it, for statements one after the other. Raises KopiatomicError."""
        try:
            return Coprocess(self.argv, self.variables, user=self.who.user)
        except OSError as error:
            raise self.not_started(wanted, error) from None

    def not_started(self, wanted: Wanted, error: OSError) -> KopiatomicError:
        """Return the error for a client that could not be started."""
        program = printable(self.argv[0])
        if isinstance(error, UserError):
            return KopiatomicError(
                f"--hold {wanted}: its client runs as {printable(self.who.name)}, and this process may not become that user",
                kind="hold-user",
                hint="Only root may, with CAP_SETUID. system_user names another user for the client.",
            )
        if not isinstance(error, FileNotFoundError | PermissionError):
            return unforeseen(error)
        return KopiatomicError(
            f"--hold {wanted}: the client {program} is not there or cannot be executed",
            kind="hold-no-client",
            hint=f"Install it (in Debian: {self.package}), or name another one: client.",
        )


Check = Callable[[object], bool]


def is_text(value: object) -> bool:
    """Whether an answer's value is a text that can be a path's."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def is_path(value: object) -> bool:
    """Whether an answer's value is an absolute path."""
    return isinstance(value, str) and is_text(value) and value.startswith("/")


def is_number(value: object) -> bool:
    """Whether an answer's value is a whole number."""
    return type(value) is int


def checked(wanted: Wanted, answer: object, needed: Mapping[str, Check]) -> Mapping[str, Any]:
    """Return what a server answers, if it has all that is needed, and that is of its kind. Raises KopiatomicError.

    What answers may be another program than the one that is meant.
    """
    if isinstance(answer, Mapping):
        wrong = next((key for key, is_right in needed.items() if not is_right(answer.get(key))), None)
        if wrong is None:
            return answer
    what = f"has no usable {wrong}" if isinstance(answer, Mapping) else "is of another form"
    raise KopiatomicError(
        f"--hold {wanted}: the server's answer {what}",
        kind="hold-no-answer",
        hint="Does the server that is meant listen there, and is the client its own? A proxy answers otherwise.",
    )


@immutable
class Spot:
    """A path of a server's. ``real`` is without links; ``place`` None if it is not in the backup.

    Then ``outside`` says where it is.
    """

    real: str
    place: Place | None
    outside: str = ""

    def __str__(self) -> str:
        if self.place is None:
            return self.outside
        return f"{printable(self.real)} in {printable(self.place.dataset)}"


def spots(paths: Iterable[str], around: Around) -> list[Spot]:
    """Return where real paths lie, in their order, each once. Raises KopiatomicError, OSError."""
    seen = visible(host.here().mounts())
    found = []
    for path in dict.fromkeys(paths):
        place = around.place_of(path)
        found.append(Spot(path, place, "" if place is not None else _outside(path, holder(path, seen).fstype)))
    return found


def _outside(path: str, fstype: str) -> str:
    """Say where a path lies that is not in the backup. Raises KopiatomicError, OSError."""
    if fstype not in KINDS:
        return f"{printable(path)} is on {printable(fstype)}: NOT in this backup"
    return f"{printable(path)} lies in {printable(_top(path))}, which is NOT in this backup: name it as well"


def _top(path: str) -> str:
    """Return the topmost directory of the dataset or subvolume of a path: what lies above has another number.

    Raises KopiatomicError, OSError.
    """
    device = _device(path)
    for above in parents(path):
        if _device(above) != device:
            break
        path = above
    return path


def _device(path: str) -> int | None:
    found = looking.call(lambda: presence.status(path), path)
    return None if found is None else found.st_dev


def share_one_instant(places: Iterable[Spot]) -> bool:
    """Whether all of these are in the backup, and in one proven instant."""
    instants = {spot.place.instant if spot.place else None for spot in places}
    return len(instants) == 1 and None not in instants


def datasets(places: Iterable[Spot]) -> str:
    """Return the datasets of these, in words."""
    names = sorted({spot.place.dataset for spot in places if spot.place})
    return ", ".join(map(printable, names))


def outside(places: Iterable[Spot]) -> Spot | None:
    """Return the first that is not in the backup."""
    return next((spot for spot in places if spot.place is None), None)


def look(wanted: Wanted, path: str, at: Callable[[], T]) -> T:
    """Look at what the server's user controls, in a child. Raises KopiatomicError, Interrupted."""
    try:
        return looking.call(at, path)
    except OSError as error:
        raise KopiatomicError(
            f"--hold {wanted}: its files cannot be examined: {printable(path)}: {error.strerror}",
            kind="hold-elsewhere" if presence.absent(error) else "hold-files",
            hint=_ELSEWHERE,
        ) from None


@immutable
class Server:
    """The process of a server, and the user that its files belong to."""

    pid: int
    user: int


def process_of(wanted: Wanted, pid_file: str, directory: str) -> Server:
    """Return the process of a server that works in its data directory and has written its number into a file.

    So a server in a container or on another host, whose paths mean something else here, is recognized. Raises KopiatomicError,
    Interrupted.
    """
    found = look(wanted, pid_file, lambda: _process_of(pid_file, directory))
    if found is None:
        raise KopiatomicError(
            f"--hold {wanted}: no process here works in {printable(directory)}, although the server says so",
            kind="hold-elsewhere",
            hint=_ELSEWHERE,
        )
    return found


def worker_in(wanted: Wanted, pid_file: str, directory: str) -> int | None:
    """Return the same one's number; None if no such process works there, or nothing is there. Raises as that does."""
    found = look(wanted, pid_file, lambda: _process_of(pid_file, directory) if _is_there(pid_file) else None)
    return None if found is None else found.pid


def _is_there(path: str) -> bool:
    looking.at(path)
    return presence.exists(path)


def frozen(
    label: str,
    wanted: Wanted,
    server: Server,
    around: Around,
    *,
    text: str,
    first: Callable[[float], None] | None = None,
) -> Finding:
    """Return a finding whose holder freezes the control group of a server, if it has all of its processes, and no other user's.

    Else the server's user could name any of his processes, and have one frozen that is not his. Raises KopiatomicError.
    """
    path = cgroups.path_of(server.pid)
    for child, name in process.family(server.pid):
        try:
            other = cgroups.path_of(child)
        except KopiatomicError as error:
            if error.kind != "hold-no-process":
                raise
            continue
        if not is_at_or_below(other, path):
            raise KopiatomicError(
                f"{label} cannot be frozen: its process {child} ({name}) is in another control group, {printable(other)}",
                kind="hold-refused",
                hint="Start it so that all its processes stay in one control group.",
            )
    return freezer.frozen(label, wanted, path, around, text=text, first=first, user=server.user)


_ELSEWHERE = (
    "Does it run in a container or on another host? Then its paths are not those of here: --hold container:NAME"
)


def _process_of(pid_file: str, directory: str) -> Server | None:
    """In a child: read the number, and see whether that process works there and is the owner's."""
    looking.at(pid_file)
    # A device or a pipe must not be opened, and its path may lead to another one between two looks.
    with descriptors.closing(os.open(pid_file, os.O_PATH | os.O_CLOEXEC)) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        with open(host.here().open_again(fd, os.O_RDONLY | os.O_CLOEXEC), encoding="ascii", errors="replace") as file:
            first = file.readline(32).strip()
    looking.at(directory)
    data = os.stat(directory)
    if not first.isdecimal():
        return None
    # The directory is reached through the kernel's own link, and may be on what does not answer.
    works_in = presence.status(f"/proc/{first}/cwd")
    if works_in is None or not os.path.samestat(works_in, data):
        return None
    # Whoever can write to the file could otherwise name a process of another user's.
    return Server(int(first), data.st_uid) if cgroups.user_of(int(first)) == data.st_uid else None


def real_entries(directory: str, below: Sequence[str]) -> list[str]:
    """In a child: return the real paths of a directory, of the directories and links in it, and of those in some of them.

    ``below`` are names of directories in it, or empty for all. Raises OSError.
    """
    looking.at(directory)
    found = [os.path.realpath(directory)]
    inner = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_symlink() or entry.is_dir(follow_symlinks=False):
                looking.at(entry.path)
                found.append(os.path.realpath(entry.path))
                inner += [entry.path] if not below or entry.name in below else []
    for path in inner:
        looking.at(path)
        if presence.is_directory(path):
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_symlink() or (below and entry.is_dir(follow_symlinks=False)):
                        looking.at(entry.path)
                        found.append(os.path.realpath(entry.path))
    return list(dict.fromkeys(found))


def real_paths(paths: Iterable[str]) -> list[str]:
    """In a child: return paths without links, each once. Raises OSError."""
    found = []
    for path in dict.fromkeys(paths):
        looking.at(path)
        found.append(os.path.realpath(path, strict=True))
    return list(dict.fromkeys(found))
