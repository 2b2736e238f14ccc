"""What a shell completes: click's own completion where it is right, and the names of datasets, found fast or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

from click import shell_completion
from click.shell_completion import CompletionItem, split_arg_string

from kopiatomic.errors import KopiatomicError
from kopiatomic.schedules import here
from kopiatomic.system import host, pools, process

LIMIT = 1.0
"""Seconds that ``zfs list`` may take. After that the mounted ones, which the mount table knows, have to do."""

_KILLED_TIMEOUT = 0.1
"""Seconds that are waited for its end then: a suspended pool may hold it up for ever, and nobody needs it any more."""


def datasets() -> set[str]:
    """The names of all ZFS filesystems and volumes, or of those that are found in time, and the mount points of Btrfs."""
    try:
        table = host.here().mounts()
    except (OSError, KopiatomicError):
        table = []
    mounted = {mount.source for mount in table if mount.fstype == "zfs" and "@" not in mount.source}
    found = mounted | {mount.point for mount in table if mount.fstype == "btrfs"} | set(_listed())
    # A shell would take a newline for the end of a name, and a terminal an escape for a command.
    return {name for name in found if name.isprintable()}


def _listed() -> Iterable[str]:
    # A pool that is known not to answer is not asked; and ``zfs``, which loads the kernel's module, not without a pool, or
    # not without that module where the kernel does not say which pools there are.
    asked = pools.answering()
    if not (host.here().has_zfs() if asked is None else asked):
        return ()
    try:
        found = process.run(
            ["zfs", "list", "-H", "-o", "name", "-s", "name", "-t", "filesystem,volume", "-r", *(asked or ())],
            timeout=LIMIT,
            killed_timeout=_KILLED_TIMEOUT,
        )
    except (KopiatomicError, OSError):
        return ()
    return found.stdout.decode("utf-8", "replace").splitlines()


def schedules() -> list[str]:
    """The names of the schedules."""
    try:
        return here().names()
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
"""What bash does not take as it is in double quotes."""


class _Bash(shell_completion.BashComplete):
    """Completion for bash, which takes words apart at ``=`` and ``:``, and wants what it gets to be quoted."""

    source_template = _BASH

    def source(self) -> str:
        """The script, without a look at the bash that is here, if one is: a port is built without."""
        return shell_completion.ShellComplete.source(self)

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_WORDS"]
        # A letter shows whether the line ends in a word or behind one.
        *words, last = split_arg_string(line + "x")
        self._incomplete = last[:-1]
        self._quote, self._before_quote = _open_quote(line)
        return words[1:], self._incomplete

    def format_completion(self, item: CompletionItem[Any]) -> str:
        value = str(item.value)
        if self._quote:
            # The quote stays, and what stands before it as well.
            value = value.removeprefix(self._incomplete[: self._before_quote])
            value = value.replace("'", "'\\''") if self._quote == "'" else _MEANS_MORE.sub(r"\\\g<0>", value)
        else:
            if ":" in self._incomplete and ":" in os.environ.get("COMP_BREAKS", ""):
                value = value[self._incomplete.rindex(":") + 1 :]
            value = _PLAIN_IN_BASH.sub(r"\\\g<0>", value)
        return f"{item.type},{value}"


def _open_quote(line: str) -> tuple[str, int]:
    """The quote that a line's last word has open, or nothing, and how many characters of the word stand before it."""
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
    """The whole of ``--option=value``: zsh and fish put what they get in the place of the whole word."""
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
        # Some versions of click take the word as it was typed, quotes included.
        *words, incomplete = split_arg_string(os.environ["COMP_WORDS"] + "x")
        return words[1:], incomplete[:-1]

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[Any]]:
        return _with_option(super().get_completions(args, incomplete), incomplete)


def register() -> None:
    """Have click use these."""
    for shell in (_Bash, _Zsh, _Fish):
        shell_completion.add_completion_class(shell)
