"""What the command line asks for, as data, and what can be said about it before anything is examined."""

from __future__ import annotations

import os
import re
import shlex

from kopiatomic.config.settings import LONGEST, MOUNT_ROOT, STATE_DIRECTORY, Setting
from kopiatomic.errors import UsageError
from kopiatomic.hooks.holder import Wanted
from kopiatomic.hooks.hook import Hook
from kopiatomic.immutable import immutable
from kopiatomic.model.facts import Facts
from kopiatomic.model.plan import Layout
from kopiatomic.model.request import Request, is_path, is_pattern
from kopiatomic.model.user_property import PROPERTY, is_user_property
from kopiatomic.secrets.source import Source
from kopiatomic.state import ownership
from kopiatomic.text import printable


@immutable
class HoldBlock:
    """A writer that a profile wants held still. ``sources`` are those of the kind's own settings that say where a text is."""

    wanted: Wanted
    sources: tuple[Source, ...] = ()


@immutable
class Options:
    """The command line's options. Times in seconds."""

    names: tuple[str, ...] = ()
    everything: bool = False
    recursive: bool = False
    exclude: tuple[str, ...] = ()
    by_property: bool = False
    property: str = PROPERTY
    no_nested: bool = False
    include_unmounted: bool = False
    volumes: bool = False
    layout: Layout = Layout.MERGED
    only_frozen: bool = False
    live_system: bool = False
    writable: tuple[str, ...] = ()
    skip_unchanged: bool = False
    engine: str | None = None
    repository: str | None = None
    archive: str | None = None
    command: str | None = None
    options: str = ""
    pre_hook: str | None = None
    post_hook: str | None = None
    hook_timeout: float = 600.0
    stop_timeout: float = 30.0
    mount_root: str = MOUNT_ROOT
    name: str | None = None
    require_atomic: bool = False
    dry_run: bool = False
    maintenance: bool = True
    timeout: float | None = None
    wait: float | None = None
    schedule: str | None = None
    state_dir: str = STATE_DIRECTORY
    keep_history: float = 400 * 86400.0
    profile: str = ""
    """The profile that says all this; empty for words on the command line."""
    profile_file: str = ""
    """The path of its file."""
    variables: tuple[Source, ...] = ()
    """Variables for the engine alone."""
    hook_variables: tuple[Source, ...] = ()
    hooks: tuple[Hook, ...] = ()
    """The hooks of a profile, in their order."""
    holds: tuple[str, ...] = ()
    """Writers to hold still, as words: ``KIND`` or ``KIND:NAME``."""
    hold_blocks: tuple[HoldBlock, ...] = ()
    """Those of a profile."""
    on_lock: str = "failure"
    """Whether a lock that another run has is a ``failure`` for the hooks; ``skip``: it is not."""
    nice: int | None = None
    """The engine's nice value; None for the caller's."""
    ionice: str | None = None
    """The engine's I/O class; None for the caller's."""
    facts: Facts | None = None
    """Plan from these facts instead of looking; only with ``dry_run``."""

    def view_root(self) -> str:
        """Return the root of a merged view."""
        return self.mount_root if self.name is None else f"{self.mount_root}/{self.name}"

    def selection_words(self) -> list[str]:
        """Return what the selection was asked for, in a fixed order: equal requests give equal words."""
        flags = {
            "-a": self.everything,
            "-r": self.recursive,
            "--by-property": self.by_property,
            "--no-nested": self.no_nested,
            "--include-unmounted": self.include_unmounted,
            "--only-frozen": self.only_frozen or self.require_atomic,
        }
        more = [f"--exclude={pattern}" for pattern in sorted(self.exclude)]
        return [*(flag for flag, given in flags.items() if given), *more, *sorted(self.names)]

    def hold_wanted(self) -> list[HoldBlock]:
        """Return the writers that must be held still, in their order. Raises UsageError for words that name none."""
        return [*self.hold_blocks, *(HoldBlock(_hold(word)) for word in self.holds)]

    def request(self, root: str, suffix: str) -> Request:
        """Return the request for the selection."""
        return Request(
            names=self.names,
            everything=self.everything,
            recursive=self.recursive,
            root=root,
            suffix=suffix,
            exclude=self.exclude,
            by_property=self.by_property,
            property=self.property,
            no_nested=self.no_nested,
            include_unmounted=self.include_unmounted,
            volumes=self.volumes,
            layout=self.layout,
            only_frozen=self.only_frozen or self.require_atomic,
            live_system=self.live_system,
            bookmark=ownership.bookmark() if self.skip_unchanged else "",
        )


def _hold(word: str) -> Wanted:
    kind, _, name = word.partition(":")
    if not kind:
        raise UsageError(
            f"--hold {printable(word)}: it must be a kind of writer, or KIND:NAME",
            kind="hold-kind",
            hint="For example: --hold postgresql --hold unit:mail.service",
        )
    return Wanted(kind, name)


def check_name(name: str) -> None:
    """Refuse a --name that is not a plain directory name. Raises UsageError."""
    if problem := _bad_directory(name):
        raise UsageError(f"--name {printable(name)}: it {problem}", kind="bad-name", hint="For example: --name home")


def names_path(setting: Setting, value: str) -> bool:
    """Whether a value is a path, which a profile must give as an absolute one: who reads a profile may be in any directory."""
    return setting.directory or (setting.completion is not None and is_path(value))


def problem_with(setting: Setting, value: str) -> str:
    """Return what is wrong with a text in a file, as it follows the setting's name; empty if the text alone shows nothing."""
    if not value.strip() and setting.default != "":
        return "is empty"
    if names_path(setting, value) and not os.path.isabs(value):
        return f"must be an absolute path, and {printable(value)} is not"
    return _WRONG[setting.name](value) if setting.name in _WRONG else ""


def _bad_dataset(name: str) -> str:
    if name.startswith("-"):
        return f"must hold datasets and paths, and {printable(name)} is an option, which has a key of its own"
    if not is_path(name) and not is_pattern(name) and ("@" in name or "#" in name):
        return f"must hold datasets and paths, and {printable(name)} is a snapshot or bookmark"
    return ""


def _bad_directory(name: str) -> str:
    if name in {"", ".", ".."} or "/" in name or name.startswith("-"):
        return "must be one path component, not '.' or '..', without a leading dash"
    if len(os.fsencode(name)) > _LONGEST_NAME or any(letter < " " or letter == "\x7f" for letter in name):
        return f"must be one path component, of at most {_LONGEST_NAME} bytes and without control characters"
    return ""


def _bad_root(path: str) -> str:
    return "must be a directory below /, and is / itself" if os.path.normpath(path) in {"/", "//"} else ""


def _bad_property(name: str) -> str:
    return "" if is_user_property(name) else "must be a user property of ZFS, such as backup:this (see zfsprops(7))"


_CRON = re.compile(r"@\w+|[\d*,/-]+(\s+[\w*,/-]+){4}")


def _bad_calendar(text: str) -> str:
    fields = text.split()
    if _CRON.fullmatch(text.strip()) is None:
        return ""
    daily = len(fields) == 5 and fields[2:] == ["*"] * 3 and all(field.isdigit() for field in fields[:2])
    here = f'here that is "{int(fields[1]):02}:{int(fields[0]):02}"' if daily else 'here it is "Mon..Fri 02:30"'
    return f"is in cron's notation; {here}, as systemd.time(7) has it"


def _bad_words(text: str) -> str:
    try:
        shlex.split(text)
    except ValueError as error:
        return f"is not words as a shell takes them: {str(error)[0].lower()}{str(error)[1:]}"
    return ""


_LONGEST_NAME = 255
"""Bytes (NAME_MAX, limits.h)."""

_WRONG = {
    "names": _bad_dataset,
    "exclude": _bad_dataset,
    "property": _bad_property,
    "mount_root": _bad_root,
    "name": _bad_directory,
    "command": _bad_words,
    "options": _bad_words,
    "calendar": _bad_calendar,
}
"""What finds out, by setting, what is wrong with a text."""


def words(flag: str, text: str) -> list[str]:
    """Split text into words as a shell does. Raises UsageError."""
    try:
        found = shlex.split(text)
    except ValueError as error:
        raise UsageError(
            f"{flag}: {str(error)[0].lower()}{str(error)[1:]}",
            kind="bad-quotes",
            hint="Quotes must be in pairs, as in a shell.",
        ) from None
    if flag == "-c" and not found:
        raise UsageError("-c: the command is empty", kind="no-command", hint="For example: -c 'tar -cf /backup.tar'")
    return found


_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[smhd]?)")


def duration(text: str) -> float:
    """Return seconds from ``90``, ``30s``, ``10m``, ``2h`` or ``1d``. Raises ValueError."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a duration such as 90, 30s, 10m, 2h or 1d")
    return float(found["number"]) * _UNITS[found["unit"]]


def within(seconds: float, shown: str, least: float) -> float:
    """Return a duration that is from ``least`` seconds to ten years; ``shown`` is what was given. Raises ValueError."""
    if not seconds <= LONGEST:
        raise ValueError(f"{shown} is longer than ten years")
    if seconds < least:
        raise ValueError(f"{shown} is shorter than {least:g} s")
    return seconds
