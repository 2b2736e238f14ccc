"""Running kopia: which program, which configuration, and what its failures mean for a person."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kopiatomic import presence
from kopiatomic.engines.causes import cause
from kopiatomic.engines.kopia.options import Options
from kopiatomic.engines.program import KEEP, Program, Version, user
from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.system import process
from kopiatomic.text import ended, printable

OLDEST = (0, 13, 0)
"""The oldest kopia that this engine's tests were run with (April 2023).

According to its source, 0.11.0 (July 2022) is the first with all that is used here: ``--start-time`` and ``--auto-maintenance``
came with 0.6.0, ``--tags`` with 0.9.0, ``uniqueIDHex`` in the status and the policy ignore-identical-snapshots with 0.11.0.
"""

CONFIG_NAME = "repository.config"

_INSTALL = "Install kopia (https://kopia.io/docs/installation/), or set KOPIATOMIC_KOPIA to where it is."


@immutable
class Config:
    """The configuration file that kopia will use, and how it was determined, in words."""

    path: str
    why: str


class Client(Program):
    """kopia as a program that answers queries."""

    def __init__(self, options: Options, environment: Mapping[str, str], invoking_user: str | None) -> None:
        super().__init__(
            "kopia", environment, install=_INSTALL, attempt=lambda: self.hint_command("repository", "status")
        )
        self._options = options
        self.shared = options.shared
        """Words that every command gets: which repository, which logs."""
        self._invoking_user = invoking_user
        self.additions |= {
            "KOPIA_CHECK_FOR_UPDATES": "false",
            "KOPIA_DISABLE_COLOR": "true",
            **options.secrets,
        }
        self.config = self._find_config()

    def _find_config(self) -> Config:
        """Apply kopia's own rules (cli/config.go, internal/ospath); if HOME is not set, take it from the passwd database.

        A bare file name is searched for in the configuration directory. Without HOME kopia would look, and write its logs, in
        the current directory: what already exists there is used as it is.
        """
        given = self._options.value("--config-file")
        name = given or self._given.get("KOPIA_CONFIG_PATH") or CONFIG_NAME
        origin = "-o --config-file" if given else "KOPIA_CONFIG_PATH"
        if os.path.basename(name) != name:
            return Config(os.path.abspath(name), origin)
        if name == CONFIG_NAME and not given:
            origin = ""
        if folder := self._given.get("XDG_CONFIG_HOME"):
            why = "XDG_CONFIG_HOME"
        elif home := self._given.get("HOME"):
            folder, why = os.path.join(home, ".config"), "HOME"
        else:
            folder, why = ".config", "HOME is not set: below the current directory"
            if not presence.exists(os.path.join(folder, "kopia", name)):
                home = user()[1]
                self.additions["HOME"] = home
                folder, why = os.path.join(home, ".config"), "HOME is not set: the home directory in the table of users"
        path = os.path.abspath(os.path.join(folder, "kopia", name))
        return Config(path, f"{origin}, {why}" if origin else why)

    def hint_command(self, *words: str) -> str:
        """Return a kopia command for the user to type, for the same repository, quoted for a shell."""
        return printable(shlex.join(["kopia", *words, *self.shared]))

    def ask(self, *words: str) -> Any:
        """Return the JSON answer of one kopia command that opens the repository. Raises KopiatomicError."""
        (answer,) = self.ask_together(words)
        return answer

    def ask_together(self, *commands: Sequence[str]) -> list[Any]:
        """Return the JSON answers of several commands run at the same time. Raises KopiatomicError."""
        answers = []
        for words, finished in zip(commands, self.run_together([[*c, *self.shared] for c in commands]), strict=True):
            if finished.status != 0:
                raise self.failure(finished)
            try:
                answers.append(json.loads(finished.stdout))
            except (ValueError, RecursionError):
                raise KopiatomicError(
                    f"kopia's answer to `{shlex.join(words)}` is no JSON: {_excerpt(finished.stdout)}",
                    kind="kopia-failed",
                    hint=f"Is {printable(self.path)} really kopia?",
                ) from None
        return answers

    def show(self, object_path: str, *, keep: int = KEEP) -> process.Finished:
        """Read an object of the repository, given by an object ID and a path below it."""
        return self.run(*self.showing(object_path), keep=keep)

    def showing(self, object_path: str) -> tuple[str, ...]:
        """Return the words of :meth:`show`."""
        return ("show", object_path, *self.shared)

    def has_manifest(self, manifest_id: str) -> bool:
        """Whether a manifest (for example a snapshot's) is in the repository."""
        return self.run("manifest", "show", manifest_id, *self.shared).status == 0

    def check_version(self) -> Version:
        """Query kopia's version. Raises KopiatomicError of kind kopia-too-old."""
        finished = self.run("--version")
        said = (finished.stdout + finished.stderr).decode("utf-8", "backslashreplace").strip()
        if finished.status != 0:
            raise KopiatomicError(
                f"{printable(self.path)} --version failed ({ended(finished.status)}): {last_error(finished)}",
                kind="kopia-failed",
                hint=_INSTALL,
            )
        version = self.version_in(said, r"v?(?P<text>(?P<major>\d+)\.(?P<minor>\d+)\.(?P<patch>\d+)\S*)")
        if version.text is None:
            return replace(version, text=printable(said[:40]) or None)
        if version.numbers < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise KopiatomicError(
                f"{printable(self.path)} is kopia {version.text}: too old, {oldest} is the oldest supported",
                kind="kopia-too-old",
                hint=_INSTALL,
            )
        return version

    def check_options(self) -> None:
        """Refuse options that kopia does not have. Raises UsageError; that values are right only a backup shows."""
        if self._options.words:
            finished = self.run("snapshot", "create", *self._options.words, "--help")
            if finished.status != 0:
                why = last_error(finished).removeprefix("kopia: error: ").removesuffix(", try --help")
                raise self.refused_option(why)

    def check_connected(self) -> None:
        """Make sure that the configuration file exists. Raises KopiatomicError of kind kopia-not-connected, and OSError."""
        if not presence.exists(self.config.path):
            raise self._not_connected()

    def failure(self, finished: process.Finished) -> KopiatomicError:
        """Return what a failed command means. The texts are those of kopia 0.13 to 0.23, each seen."""
        said = finished.errors
        last = last_error(finished)
        status = self.hint_command("repository", "status")
        if "not connected" in said:
            return self._not_connected()
        if "password prompt error" in said:
            return KopiatomicError(
                "kopia does not know the password of its repository: none is stored beside "
                f"{printable(self.config.path)} and KOPIA_PASSWORD is not set",
                kind="kopia-password-missing",
                hint="Set KOPIA_PASSWORD, or connect with the password stored (--persist-credentials).",
            )
        if "invalid repository password" in said or "access denied" in said:
            return KopiatomicError(
                f"kopia's repository refuses the password: {last}",
                kind="kopia-wrong-password",
                hint=f"Check {self._password_origin()}, then: {status}",
            )
        if re.search(r"cannot open storage|establish\w* session|connection refused|no such host|i/o timeout", said):
            return KopiatomicError(
                f"kopia cannot reach its repository: {last}",
                kind="kopia-unreachable",
                hint=f"Is its storage there (mounted, switched on, server running)? Try: {status}",
            )
        if "config file" in said or "config json" in said:
            return KopiatomicError(
                f"kopia cannot read its configuration {printable(self.config.path)}: {last}",
                kind="kopia-not-connected",
                hint="Check the file, or connect again: kopia repository connect --help",
            )
        found = cause(said)
        if found is not None:
            return found.error("kopia", "kopia")
        return KopiatomicError(
            f"kopia failed ({ended(finished.status)}): {last}", kind="kopia-failed", hint=f"Try: {status}"
        )

    def _password_origin(self) -> str:
        if "KOPIA_PASSWORD" in self._options.secrets:
            return "the password in -o"
        return "KOPIA_PASSWORD" if self._given.get("KOPIA_PASSWORD") else "the stored password"

    def _not_connected(self) -> KopiatomicError:
        hint = f"Connect it as {user()[0]}: kopia repository connect --help"
        other = self._invoking_users_config()
        if other is not None:
            hint = (
                f"{self._invoking_user} has a configuration; to use it: "
                f"-o {shlex.quote('--config-file=' + shlex.quote(other))} or KOPIA_CONFIG_PATH={shlex.quote(other)}. "
                f"{hint}"
            )
        return KopiatomicError(
            f"kopia is not connected to a repository: there is no {printable(self.config.path)} ({self.config.why})",
            kind="kopia-not-connected",
            hint=printable(hint),
        )

    def _invoking_users_config(self) -> str | None:
        """Return the configuration of the user who called sudo, if it exists and is not the one that was examined."""
        if not self._invoking_user:
            return None
        try:
            home = pwd.getpwnam(self._invoking_user).pw_dir
        except KeyError:
            return None
        path = os.path.join(home, ".config", "kopia", CONFIG_NAME)
        return path if path != self.config.path and presence.exists(path) else None


def error_lines(text: str) -> Iterator[str]:
    """Yield kopia's error lines, without the level and what it was doing."""
    for line in text.splitlines():
        plain = line.strip().removeprefix("ERROR").strip()
        plain = plain.removeprefix("open repository: unable to open repository: ").removeprefix("open repository: ")
        if plain:
            yield printable(plain)


def last_error(finished: process.Finished) -> str:
    """Return the last line that a failed kopia wrote to its standard error."""
    return ([*error_lines(finished.errors)] or ["it gave no reason"])[-1]


def _excerpt(data: bytes) -> str:
    return repr(printable(data[:80].decode("utf-8", "backslashreplace"))) if data.strip() else "it is empty"
