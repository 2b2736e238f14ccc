"""Shell completion: click's own where it is right, and the names of datasets, found fast or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Any

from click import shell_completion
from click.shell_completion import CompletionItem, split_arg_string

from kopiatomic.commands.profiles import folder
from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems import kind_of
from kopiatomic.schedules import here
from kopiatomic.system import host, pools, zfs_program

LIMIT = 1.0
"""Seconds that ``zfs list`` may take. After that the mounted datasets from the mount table must do."""

_KILLED_TIMEOUT = 0.1
"""Seconds to wait for its end after that: a suspended pool may block it for ever, and nobody needs it any more."""


def datasets() -> set[str]:
    """Return the names of all ZFS filesystems and volumes, or of those found in time, and the mount points of Btrfs."""
    try:
        table = host.here().mounts()
    except (OSError, KopiatomicError):
        table = []
    kinds = ((kind_of(mount), mount) for mount in table)
    found = {kind.name_of(mount) for kind, mount in kinds if kind and not kind.is_snapshot(mount)} | set(_listed())
    # A shell would take a newline for the end of a name, and a terminal an escape for a command.
    return {name for name in found if name.isprintable()}


def _listed() -> Iterable[str]:
    # A pool that is known not to answer is not queried. ``zfs``, which loads the kernel module, is not called without a pool, or
    # without that module where the kernel does not say which pools exist.
    asked = pools.answering()
    if not (host.here().has_zfs() if asked is None else asked):
        return ()
    try:
        # Whatever names it has found are of use, however it ended.
        found = zfs_program.run(
            ["zfs", "list", "-H", "-o", "name", "-s", "name", "-t", "filesystem,volume", "-r", *(asked or ())],
            timeout=LIMIT,
            killed_timeout=_KILLED_TIMEOUT,
            may_fail=True,
        )
    except (KopiatomicError, OSError):
        return ()
    return found.stdout.decode("utf-8", "replace").splitlines()


def schedules() -> list[str]:
    """Return the names of the schedules."""
    return _if_known(lambda: here().names())


def profiles(asked: str | None) -> list[str]:
    """Return the names of the profiles in a folder, by default the system's."""
    return _if_known(lambda: folder(asked).names())


def _if_known(names: Callable[[], list[str]]) -> list[str]:
    try:
        return names()
    except (KopiatomicError, OSError):
        return []


_BASH = """\
%(complete_func)s() {
    local type value
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_WORDS=${COMP_LINE:0:COMP_POINT} COMP_BREAKS=$COMP_WORDBREAKS %(complete_var)s=bash_complete "$1")
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""
_PLAIN_IN_BASH = re.compile(r"[^\w@%+=:,./-]")
_MEANS_MORE = re.compile(r"[\\\"$`]")
"""What bash does not take literally in double quotes."""


class _Bash(shell_completion.BashComplete):
    """Completion for bash, which splits words at ``=`` and ``:``, and wants quoted results."""

    source_template = _BASH

    def source(self) -> str:
        """Return the script without checking for bash on this system: ports are built without it."""
        return shell_completion.ShellComplete.source(self)

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_WORDS"]
        # An added letter shows whether the line ends in a word or after one.
        *words, last = split_arg_string(line + "x")
        self._incomplete = last[:-1]
        self._quote, self._before_quote = _open_quote(line)
        return words[1:], self._incomplete

    def format_completion(self, item: CompletionItem[Any]) -> str:
        value = str(item.value)
        if self._quote:
            # The quote stays, and so does what comes before it.
            value = value.removeprefix(self._incomplete[: self._before_quote])
            value = value.replace("'", "'\\''") if self._quote == "'" else _MEANS_MORE.sub(r"\\\g<0>", value)
        else:
            if ":" in self._incomplete and ":" in os.environ.get("COMP_BREAKS", ""):
                value = value[self._incomplete.rindex(":") + 1 :]
            value = _PLAIN_IN_BASH.sub(r"\\\g<0>", value)
        return f"{item.type},{value}"


def _open_quote(line: str) -> tuple[str, int]:
    """Return the open quote of a line's last word, or nothing, and how many characters of the word precede it."""
    quote, length, before = "", 0, 0
    characters = iter(line)
    for character in characters:
        if character == "\\" and quote != "'":
            length += next(characters, "") != ""
        elif character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote, before = character, length
        else:
            length = length + 1 if quote or not character.isspace() else 0
    return quote, before


def _with_option(items: list[CompletionItem[Any]], incomplete: str) -> list[CompletionItem[Any]]:
    """Return the whole of ``--option=value``: zsh and fish replace the whole word with what they get."""
    option, equals, _ = incomplete.partition("=")
    if option.startswith("--") and equals:
        for item in items:
            item.value = f"{option}={item.value}"
    return items


class _Zsh(shell_completion.ZshComplete):
    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[Any]]:
        return _with_option(super().get_completions(args, incomplete), incomplete)


class _Fish(shell_completion.FishComplete):
    def get_completion_args(self) -> tuple[list[str], str]:
        # Some versions of click take the word as it was typed, including quotes.
        *words, incomplete = split_arg_string(os.environ["COMP_WORDS"] + "x")
        return words[1:], incomplete[:-1]

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[Any]]:
        return _with_option(super().get_completions(args, incomplete), incomplete)


def register() -> None:
    """Register these with click."""
    for shell in (_Bash, _Zsh, _Fish):
        shell_completion.add_completion_class(shell)
