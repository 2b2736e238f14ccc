"""Running Borg: which repository, which options every command gets, and what its failures mean for a person."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from kopiatomic.engines import flags, known_options
from kopiatomic.engines.borg.output import first_line, messages
from kopiatomic.engines.causes import cause
from kopiatomic.engines.repository_client import RepositoryClient
from kopiatomic.errors import KopiatomicError
from kopiatomic.system import process
from kopiatomic.text import ended, printable

_INSTALL = "Install Borg 1.2 or 1.4 (https://borgbackup.readthedocs.io), or set KOPIATOMIC_BORG to where it is."

_PASSPHRASES = ("BORG_PASSPHRASE", "BORG_PASSCOMMAND", "BORG_PASSPHRASE_FD")

WARNINGS = frozenset({1, *range(100, 128)})
"""Exit statuses for warnings: the classic one, and those of BORG_EXIT_CODES=modern (1.4)."""

_SHARED = frozenset({"--remote-path", "--lock-wait", "--umask"})
"""Flags that every command of a run gets."""

_VARIABLES = MappingProxyType({"--rsh": "BORG_RSH"})
"""Flags that become variables, which every command of a run gets: ``--rsh='sshpass -p PASSWORD ssh'``."""

_SYNTAX = flags.Syntax(
    known_options.BORG,
    refused=MappingProxyType(
        {
            "--dry-run": "nothing is saved",
            "--help": "nothing is saved",
            "--version": "nothing is saved",
            "--content-from-command": "it backs up a command's output in place of the view",
            "--paths-from-stdin": "it backs up other files than the view",
            "--paths-from-command": "it backs up other files than the view",
            "--paths-from-shell-command": "it backs up other files than the view",
        }
    ),
    abbreviations=True,
)

_KINDS: tuple[tuple[str, str, str, str], ...] = (
    (
        r"LockTimeout|LockError\w*|LockFailed",
        "borg-locked",
        "Borg's repository, or its cache, is locked",
        "Wait until the other Borg has ended; if none works on it any more, because it was killed: borg break-lock",
    ),
    (
        r"PassphraseWrong",
        "borg-wrong-password",
        "Borg's repository refuses the passphrase",
        "Check BORG_PASSPHRASE, BORG_PASSCOMMAND or BORG_PASSPHRASE_FD.",
    ),
    (
        r"NoPassphraseFailure|PasscommandFailure",
        "borg-password-missing",
        "Borg does not know the passphrase of its repository",
        "Set BORG_PASSCOMMAND or BORG_PASSPHRASE: nobody can be asked for it.",
    ),
    (
        r"Repository\.(DoesNotExist|ParentPathDoesNotExist|InvalidRepository|PathAlreadyExists)",
        "borg-no-repository",
        "there is no repository of Borg's",
        "Check its name, or make it first: borg init",
    ),
    (
        r"Cache\.(RepositoryAccessAborted|CacheInitAbortedError|EncryptionMethodMismatch|RepositoryReplay)|.*Tam\w*Error",
        "borg-unconfirmed",
        "Borg wants to be told that this repository is the right one",
        "Say so once yourself, as the same user: borg info",
    ),
    (
        r"MandatoryFeatureUnsupported",
        "borg-newer-format",
        "Borg's repository has a format that this Borg does not know",
        "Use a newer Borg.",
    ),
    (
        r"Connection\w+|UnexpectedRPCDataFormatFromServer",
        "borg-unreachable",
        "Borg cannot reach its repository",
        "Is its server there, and does ssh reach it without asking for anything?",
    ),
    (
        r"KeyfileNotFoundError|RepoKeyNotFoundError",
        "borg-key-missing",
        "Borg has no key for its repository",
        "Is it in ~/.config/borg/keys of the user that this runs as (BORG_KEYS_DIR)?",
    ),
)
"""What failures mean, by Borg's own codes for them (``msgid``)."""


ARCHIVE = "{hostname}-{instant}"
"""The default name of an archive: ``{instant}`` is ours, everything else in braces is Borg's."""


_NOWHERE = "/dev/null/none"
"""A path at which nothing can be."""


class Client(RepositoryClient):
    """Borg as a program that answers queries. ``named`` is the repository (``--repository``), ``archive`` the archives' name.

    Raises UsageError for options that do not go with a backup of the view.
    """

    def __init__(
        self, options: Sequence[str], environment: Mapping[str, str], named: str | None, archive: str | None = None
    ) -> None:
        super().__init__(
            "borg",
            options,
            environment,
            _SYNTAX,
            shared=_SHARED,
            variables=_VARIABLES,
            install=_INSTALL,
            attempt="borg info",
        )
        self.repository = named or environment.get("BORG_REPO")
        self.archive = archive or ARCHIVE
        if named:
            self.additions["BORG_REPO"] = named
        self._without_passphrase = not any(name in environment for name in _PASSPHRASES)
        if self._without_passphrase:
            # If the repository needs no passphrase, this changes nothing; otherwise Borg fails at once and prompts nobody.
            self.additions["BORG_PASSPHRASE"] = ""

    def check_options(self) -> None:
        """Refuse options that Borg does not have, and values that it does not take. Raises UsageError."""
        # What writes a file as soon as Borg starts is for a run alone.
        left = [g.words for g in self.given if g.flag not in _VARIABLES and g.flag != "--debug-profile"]
        if left:
            # Its help is shown whatever the options are. It reads them before it looks for the repository.
            words = [word for given in left for word in given]
            finished = self.run("create", *words, f"{_NOWHERE}::none", _NOWHERE)
            refusal = re.search(r"^(?:borg[^:]*: error|Error): (.*)", finished.errors, re.MULTILINE)
            if refusal is not None:
                raise self.refused_option(refusal[1])

    @property
    def where(self) -> str | None:
        """The repository, as Borg will find it."""
        return self.repository

    @property
    def identity(self) -> str:
        """The archives' name, without what differs from one to the next."""
        return self.archive.replace("{hostname}", socket.gethostname().partition(".")[0])

    @property
    def caches(self) -> dict[str, str]:
        """Where Borg keeps its cache, and its data about known repositories (helpers/fs.py). It only reads keys."""
        environment = self.environment
        base = environment.get("BORG_BASE_DIR")
        home = base or environment["HOME"]

        def below(variable: str, ours: str, general: str, folder: str) -> str:
            general = environment.get(general, "") if not base else ""
            return environment.get(variable) or os.path.join(general or os.path.join(home, folder), ours)

        config = below("BORG_CONFIG_DIR", "borg", "XDG_CONFIG_HOME", ".config")
        return {
            "cache": os.path.abspath(below("BORG_CACHE_DIR", "borg", "XDG_CACHE_HOME", ".cache")),
            "security folder": os.path.abspath(
                environment.get("BORG_SECURITY_DIR") or os.path.join(config, "security")
            ),
        }

    @property
    def glob(self) -> str:
        """The Borg pattern for the archives' names: ``{instant}`` is not filled in yet.

        ``{hostname}`` is the short one (borg/platform/base.py).
        """
        return re.sub(r"\{(?!instant\})[^}]*\}", "*", self.identity)

    def archives(self, *words: str, glob: str) -> list[str]:
        """Return the names of archives, oldest first. Raises KopiatomicError."""
        finished = self.ask("list", "--json", *words, f"--glob-archives={glob}")
        try:
            return [str(archive["name"]) for archive in json.loads(finished.stdout)["archives"]]
        except (ValueError, KeyError, TypeError):
            raise self.failure(finished) from None

    def ask(self, command: str, *words: str, take: Callable[[bytes], None] | None = None) -> process.Finished:
        """Run a command, with its messages as JSON lines on standard error."""
        return self.run(command, "--log-json", *self.shared, *words, take=take)

    def failure(self, finished: process.Finished) -> KopiatomicError:
        """Return what a failed command means."""
        found = cause(finished.errors)
        if found is not None and found.kind != "unreachable":
            # In these cases Borg reports that it cannot lock its repository.
            return found.error("borg", "Borg")
        log = messages(finished.stderr)
        errors = [m for m in log if m.get("levelname") in {"ERROR", "CRITICAL"}] or log
        # The traceback of an error that it has a name for is a message of its own, behind that.
        errors = [m for m in errors if m.get("msgid")] or errors
        said = str(errors[-1].get("message", "")) if errors else finished.errors.strip().rpartition("\n")[2]
        message_id = str(errors[-1].get("msgid") or "") if errors else ""
        return self.meaning(message_id, printable(first_line(said)), finished.status)

    def meaning(self, message_id: str, said: str, status: int) -> KopiatomicError:
        """Return what an error means, by Borg's own code for it."""
        if message_id == "PassphraseWrong" and self._without_passphrase:
            message_id = "NoPassphraseFailure"
            said = f"it wants one, and none of {', '.join(_PASSPHRASES)} is set"
        if message_id == "Repository.InvalidRepositoryConfig" and "not supported" in said:
            message_id = "MandatoryFeatureUnsupported"
        for pattern_, kind, what, hint in _KINDS:
            if re.fullmatch(pattern_, message_id):
                return KopiatomicError(f"{what}: {said}", kind=kind, hint=hint)
        try_it = shlex.join(["borg", "info", *self.shared])
        return KopiatomicError(
            f"borg failed ({ended(status)}): {said or 'it gave no reason'}", kind="borg-failed", hint=f"Try: {try_it}"
        )
