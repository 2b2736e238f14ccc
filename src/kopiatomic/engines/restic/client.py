"""Running restic: which repository, which options every command gets, and what its failures mean for a person."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from kopiatomic.engines import flags, known_options
from kopiatomic.engines.causes import cause
from kopiatomic.engines.repository_client import RepositoryClient
from kopiatomic.errors import KopiatomicError
from kopiatomic.system import process
from kopiatomic.text import ended

_INSTALL = "Install restic (https://restic.net), or set KOPIATOMIC_RESTIC to where it is."

_SHARED = frozenset(
    [
        "--repo",
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
            "--stdin": "it backs up an input stream in place of the view",
            "--stdin-from-command": "it backs up a command's output in place of the view",
            "--files-from": "it backs up other files than the view",
            "--files-from-verbatim": "it backs up other files than the view",
            "--files-from-raw": "it backs up other files than the view",
            "--skip-if-unchanged": "each run is proven by a snapshot of its own",
        }
    ),
)

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
            "restic", options, environment, _SYNTAX, _SHARED - {"--repo"}, install=_INSTALL, attempt="restic snapshots"
        )
        self.repository = next((g.value for g in self.given if g.flag == "--repo"), named)
        if self.repository is not None:
            # Not in its argv, which every user can read: it may contain a password.
            self.additions |= {"RESTIC_REPOSITORY": self.repository, "RESTIC_REPOSITORY_FILE": ""}

    def failure(self, finished: process.Finished) -> KopiatomicError:
        """Return what a failed command means."""
        said = [line for line in finished.errors.splitlines() if line.strip()]
        last = next(
            (line for line in said if "Fatal: " in line or "failed: " in line), (said or ["it gave no reason"])[-1]
        )
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
