"""Running restic: which repository, which options every command gets, and what its failures mean for a person."""

from __future__ import annotations

import os
import re
import shlex
import socket
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from kopiatomic import presence
from kopiatomic.engines import flags, known_options
from kopiatomic.engines.causes import cause
from kopiatomic.engines.repository_client import RepositoryClient
from kopiatomic.errors import KopiatomicError
from kopiatomic.system import looking, process
from kopiatomic.system.lines import JsonLines
from kopiatomic.text import ended

_INSTALL = "Install restic (https://restic.net), or set KOPIATOMIC_RESTIC to where it is."

_SHARED = frozenset(
    [
        "--repository-file",
        "--password-file",
        "--password-command",
        "--key-hint",
        "--cacert",
        "--tls-client-cert",
        "--insecure-tls",
        "--insecure-no-password",
        "--option",
        "--cache-dir",
        "--no-cache",
        "--retry-lock",
        "--limit-upload",
        "--limit-download",
        "--http-user-agent",
        "--stuck-request-timeout",
    ]
)
"""Flags that every command of a run gets: which repository, how to reach it."""

_SYNTAX = flags.Syntax(
    known_options.RESTIC,
    refused=MappingProxyType(
        {
            "--dry-run": "nothing is saved",
            "--help": "nothing is saved",
            "--version": "nothing is saved",
            "--stdin": "it backs up an input stream in place of the view",
            "--stdin-from-command": "it backs up a command's output in place of the view",
            "--files-from": "it backs up other files than the view",
            "--files-from-verbatim": "it backs up other files than the view",
            "--files-from-raw": "it backs up other files than the view",
            "--skip-if-unchanged": "each run is proven by a snapshot of its own",
        }
    ),
)

_LARGEST = 64 << 10
"""Bytes of a file that names a repository."""

_TIME = re.compile(r"\d{4}-\d\d-\d\d \d{1,2}:\d\d:\d\d([.,]\d+)?")
"""What restic takes as a time (``TimeFormat`` in cmd/restic/global.go, as Go's time.Parse reads it)."""

_OTHER_WAYS = MappingProxyType(
    {
        "--password-file": "RESTIC_PASSWORD_COMMAND",
        "--password-command": "RESTIC_PASSWORD_FILE",
        "--repository-file": "RESTIC_REPOSITORY",
    }
)
"""Options, and the variables that would say the same in another way."""

_KINDS: tuple[tuple[int, str, str, str, str], ...] = (
    (
        12,
        r"wrong password or no key",
        "restic-wrong-password",
        "restic's repository refuses the password",
        "Check RESTIC_PASSWORD, RESTIC_PASSWORD_FILE or RESTIC_PASSWORD_COMMAND.",
    ),
    (
        -1,
        r"empty password|Resolving password failed|unable to read password",
        "restic-password-missing",
        "restic does not know the password of its repository",
        "Set RESTIC_PASSWORD_FILE, RESTIC_PASSWORD_COMMAND or RESTIC_PASSWORD: nobody can be asked for it.",
    ),
    (
        11,
        r"already locked|unable to create lock",
        "restic-locked",
        "restic's repository is locked",
        "Wait until the other restic has ended; if none works on it any more: restic unlock",
    ),
    (
        -1,
        r"[Pp]lease specify repository location",
        "restic-no-repository",
        "restic was not told its repository",
        "Name it: --repository, or RESTIC_REPOSITORY in the environment.",
    ),
    (
        -1,
        r"unsupported repository version",
        "restic-newer-format",
        "restic's repository has a format that this restic does not know",
        "Use a newer restic.",
    ),
    (
        -1,
        r"connection refused|no such host|i/o timeout|sftp session|network is unreachable|no route to host",
        "restic-unreachable",
        "restic cannot reach its repository",
        "Is its storage there (mounted, switched on, server running)?",
    ),
    (
        10,
        r"unable to open config file|repository does not exist",
        "restic-no-repository",
        "there is no repository of restic's",
        "Check its name, or make it first: restic init",
    ),
)
"""What failures mean: exit status (0.17.0 and later), text (all versions, seen with 0.14.0 and 0.18.0), kind, words, hint."""


class Client(RepositoryClient):
    """restic as a program that answers queries. ``named`` is the repository (``--repository``).

    Raises UsageError for options that do not go with a backup of the view.
    """

    def __init__(self, options: Sequence[str], environment: Mapping[str, str], named: str | None) -> None:
        super().__init__(
            "restic",
            options,
            environment,
            _SYNTAX,
            shared=_SHARED,
            variables={"--repo": "RESTIC_REPOSITORY"},
            install=_INSTALL,
            attempt="restic snapshots",
        )
        self.repository = next((g.value for g in self.given if g.flag == "--repo"), named)
        if self.repository is not None:
            self.additions |= {"RESTIC_REPOSITORY": self.repository, "RESTIC_REPOSITORY_FILE": ""}
        # restic fails where the environment says it another way than an option.
        for flag, other in _OTHER_WAYS.items():
            if self.value(flag) is not None and other not in self.additions:
                self.additions[other] = ""

    def check_options(self) -> None:
        """Refuse options that restic does not have, and values that it does not take. Raises UsageError."""
        for given in self.given:
            # restic reads these values after it has shown its help.
            if given.flag == "--time" and _TIME.fullmatch(given.value) is None:
                raise self.refused_option(f"--time {given.value} is not YYYY-MM-DD HH:MM:SS")
            if given.flag in {"--exclude-file", "--iexclude-file"}:
                self._check_file(given)
        if self.words:
            finished = self.run("backup", *self.words, "--help")
            if finished.status != 0:
                raise self.refused_option(finished.errors.partition("\n")[0])

    def _check_file(self, given: flags.Given) -> None:
        """Refuse a file that cannot be read. Raises UsageError."""
        path = os.path.abspath(given.value)
        try:
            looking.call(lambda: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)), path)
        except OSError as error:
            raise self.refused_option(f"{given.flag} {path} cannot be read: {error.strerror}") from None

    @property
    def where(self) -> str | None:
        """The repository as restic will find it. Raises OSError if a file that names it cannot be read."""
        if self.repository is not None:
            return self.repository
        file = self.value("--repository-file") or self._given.get("RESTIC_REPOSITORY_FILE")
        if not file:
            return self._given.get("RESTIC_REPOSITORY")
        try:
            return os.fsdecode(looking.read(os.path.abspath(file), _LARGEST)).strip()
        except OSError as error:
            if presence.absent(error):
                return None
            raise

    @property
    def identity(self) -> str:
        """The host name that its snapshots are kept under."""
        return self.value("--host") or self._given.get("RESTIC_HOST") or socket.gethostname()

    @property
    def caches(self) -> dict[str, str]:
        """Where restic keeps its cache (internal/cache/dir.go)."""
        if any(g.flag == "--no-cache" for g in self.given):
            return {}
        environment = self.environment
        found = self.value("--cache-dir") or environment.get("RESTIC_CACHE_DIR")
        if not found:
            base = environment.get("XDG_CACHE_HOME") or os.path.join(environment["HOME"], ".cache")
            found = os.path.join(base, "restic")
        return {"cache": os.path.abspath(found)}

    def show(
        self, snapshot: str, directories: Sequence[str], take: Callable[[Mapping[str, Any]], None]
    ) -> Mapping[str, Any]:
        """Have restic list directories of a snapshot; ``take`` gets each entry. Returns the snapshot's own data.

        With directories, ``restic ls`` reads only the trees on the way to them, and of these the first level. Raises
        KopiatomicError.
        """
        lines = JsonLines()
        head: dict[str, Any] = {}

        def read(data: bytes) -> None:
            for found in lines.feed(data):
                if isinstance(found, str):
                    continue
                if "path" in found and "type" in found:
                    take(found)
                elif "paths" in found:
                    head.update(found)

        finished = self.run("ls", "--json", "--no-lock", *self.shared, "--", snapshot, *directories, take=read)
        read(b"")
        if finished.status != 0:
            raise self.failure(finished)
        return head

    def failure(self, finished: process.Finished) -> KopiatomicError:
        """Return what a failed command means."""
        said = [line for line in finished.errors.splitlines() if line.strip()]
        reasons = (line for line in said if re.search("Fatal: |failed: |^ignoring error", line))
        last = next(reasons, (said or ["it gave no reason"])[-1])
        last = last.removeprefix("Fatal: ")
        try_it = f"Try: {shlex.join(['restic', 'snapshots', *self.shared])}"
        found = cause(finished.errors)
        if found is not None and found.kind != "unreachable":
            # In these cases restic reports that it cannot lock its repository.
            return found.error("restic", "restic")
        for status, text, kind, what, hint in _KINDS:
            if finished.status == status or re.search(text, finished.errors):
                return KopiatomicError(f"{what}: {last}", kind=kind, hint=hint)
        return KopiatomicError(f"restic failed ({ended(finished.status)}): {last}", kind="restic-failed", hint=try_it)
