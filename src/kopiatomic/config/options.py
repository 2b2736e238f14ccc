"""What the command line asks for, as data, and what can be said about it before anything is examined."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping
from types import MappingProxyType

from kopiatomic.config.settings import LONGEST, MOUNT_ROOT, STATE_DIRECTORY, Form, Setting
from kopiatomic.errors import UsageError
from kopiatomic.hooks.holder import Wanted
from kopiatomic.hooks.hook import Hook
from kopiatomic.immutable import immutable
from kopiatomic.model.facts import Facts
from kopiatomic.model.plan import Layout
from kopiatomic.model.request import Request, is_path, is_pattern
from kopiatomic.model.user_property import PROPERTY, is_user_property
from kopiatomic.paths import local_path
from kopiatomic.secrets.masking import masked
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
    metadata: bool | None = None
    """Whether what the engine would lose is recorded; None: where a person must agree first, one is asked."""
    verify: float | None = None
    """How many percent of the files are read back and compared; None: nothing is compared."""
    verify_limit: int = 1 << 30
    """The most bytes of that in a run."""
    verify_time_limit: float = 3600.0
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
        return [*self.hold_blocks, *(HoldBlock(hold(word)) for word in self.holds)]

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


def hold(word: str) -> Wanted:
    """Return the writer that ``--hold KIND[:NAME]`` means. Raises UsageError."""
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
    if setting.name == "repository":
        return local_path(value) is not None
    return setting.directory or (setting.completion is not None and is_path(value))


REPOSITORY_VARIABLES = ("RESTIC_REPOSITORY", "BORG_REPO")
"""Variables that say where a repository is, as the setting does."""

ENGINE_FILE_VARIABLES = r"(?:RESTIC|BORG|KOPIA)_(?:\w+_)?(?:FILE|DIR|DIRECTORY)"
"""Variables of engines that name a file or directory, whatever their value looks like."""

FILE_VARIABLES = r"\w*_(?:FILE|PATH|DIR|DIRECTORY)|KOPIATOMIC_(?:KOPIA|RESTIC|BORG)"
"""Variables that name one if there is a slash in their value."""

COMMAND_VARIABLES = r"\w*(?:COMMAND|_RSH)"
"""Variables that hold a command line."""


def variable_names_path(name: str, value: str) -> bool:
    """Whether a variable's value is a path, which must be absolute as those of settings must."""
    path = local_path(value)
    if name in REPOSITORY_VARIABLES or re.fullmatch(ENGINE_FILE_VARIABLES, name):
        return path is not None
    # What begins so may be expanded by the program that reads it.
    return re.fullmatch(FILE_VARIABLES, name) is not None and path is not None and "/" in path and path[0] not in "$~"


def problem_with_variable(name: str, value: str) -> str:
    """Return what is wrong with the text of a variable in a file, as it follows its name; empty if that alone shows nothing."""
    if variable_names_path(name, value) and not os.path.isabs(local_path(value) or ""):
        # The value is not repeated: somebody may have written a secret itself there.
        return "must be an absolute path, since a timer runs in /"
    return bad_program(value) if re.fullmatch(COMMAND_VARIABLES, name) else ""


def made_absolute(setting: Setting, value: str) -> str:
    """Return a value of the command line as a profile must have it: a path of this machine is absolute."""
    if names_path(setting, value):
        return _absolute(value)
    return _with_program(value) if setting.name in {"command", "pre_hook", "post_hook"} else value


def variable_made_absolute(name: str, value: str) -> str:
    """Return a variable of the environment as a profile must have it, likewise."""
    if variable_names_path(name, value):
        return _absolute(value)
    return _with_program(value) if re.fullmatch(COMMAND_VARIABLES, name) else value


def _absolute(value: str) -> str:
    path = local_path(value)
    assert path is not None
    return value.removesuffix(path) + os.path.abspath(path)


_RELATIVE = re.compile(r"\s*(?P<quote>['\"]?)(?P<folder>\.{1,2})/(?P<rest>[^\s;&|<>()'\"]*)")
"""How a command line begins whose program is named from the working directory."""


def _with_program(line: str) -> str:
    """Return a command line whose program is named by an absolute path."""
    found = _RELATIVE.match(line)
    if found is None:
        return line
    folder = os.path.abspath(found["folder"]).rstrip("/") + "/"
    begin = found["quote"] + folder if found["quote"] else shlex.quote(folder)
    return begin + line[found.start("rest") :]


def bad_program(line: str) -> str:
    """Return what is wrong with the program of a command line in a file; empty if it is named by an absolute path, or by name."""
    found = _RELATIVE.match(line)
    if found is None:
        return ""
    shown = printable(f"{found['folder']}/{found['rest']}")
    return f"must name its program by an absolute path, since a timer starts it in /, and {shown} is none"


def problem_with(setting: Setting, value: str) -> str:
    """Return what is wrong with a text in a file, as it follows the setting's name; empty if the text alone shows nothing."""
    if not value.strip() and setting.default != "":
        return "is empty"
    path = local_path(value) if setting.name == "repository" else value
    if names_path(setting, value) and not os.path.isabs(path or ""):
        return f"must be an absolute path, and {printable(masked(value))} is not"
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


_CRON_NAMES = {
    "@hourly": "hourly",
    "@daily": "daily",
    "@midnight": "daily",
    "@weekly": "weekly",
    "@monthly": "monthly",
    "@yearly": "yearly",
    "@annually": "yearly",
}
_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_EVERY_FEW = re.compile(r"\*/(\d{1,2})( \*){4}")
_AT = re.compile(r"(?P<minute>\d{1,2}) (?P<hour>\d{1,2}|\*) \* \* (?P<days>\*|[0-7](-[0-7])?)")


def _bad_calendar(text: str) -> str:
    if _CRON.fullmatch(text.strip()) is None:
        return ""
    meant = _from_cron(" ".join(text.split()))
    if meant:
        return f'is in cron\'s notation; here that is "{meant}", as systemd.time(7) has it'
    return 'is in cron\'s notation; write it as systemd.time(7) has it, for example "Mon..Fri 02:30"'


def _from_cron(text: str) -> str:
    """Return what a line of cron means in systemd's words; empty if that is not simple."""
    if text in _CRON_NAMES:
        return _CRON_NAMES[text]
    few, at = _EVERY_FEW.fullmatch(text), _AT.fullmatch(text)
    if few is not None and 0 < int(few[1]) < 60:
        return f"*:0/{int(few[1])}"
    if at is None or int(at["minute"]) > 59 or (at["hour"] != "*" and int(at["hour"]) > 23):
        return ""
    hour = "*" if at["hour"] == "*" else f"{int(at['hour']):02}"
    days = "" if at["days"] == "*" else "..".join(_DAYS[int(day)] for day in at["days"].split("-")) + " "
    return f"{days}{hour}:{int(at['minute']):02}"


def _bad_command(text: str) -> str:
    return _bad_words(text) or bad_program(text)


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
    "command": _bad_command,
    "shell": bad_program,
    "pre_hook": bad_program,
    "post_hook": bad_program,
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


_SIZE_UNITS = {"": 1} | {
    f"{letter}{ending}": base**power
    for power, letter in enumerate("KMGT", 1)
    for ending, base in (("", 1024), ("iB", 1024), ("B", 1000))
}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KkMGT]?(?:iB|B)?)")


def size(text: str) -> int:
    """Return bytes from ``1000``, ``10M``, ``1 GiB`` or ``1 GB``. Raises ValueError."""
    found = _SIZE.fullmatch(text.strip())
    unit = "" if found is None or found["unit"] == "B" else found["unit"].replace("k", "K")
    if found is None or unit not in _SIZE_UNITS or float(found["number"]) * _SIZE_UNITS[unit] < 1:
        raise ValueError(f"{text!r} is not a size such as 500M, 1 GiB or 2 GB")
    return int(float(found["number"]) * _SIZE_UNITS[unit])


_SHARE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*%?")


def share(text: str) -> float:
    """Return percent, from ``1%``, ``0.5`` or ``all``. Raises ValueError."""
    if text.strip() == "all":
        return 100.0
    found = _SHARE.fullmatch(text.strip())
    if found is None or not 0.0001 <= float(found["number"]) <= 100:
        raise ValueError(f"{text!r} is not a share such as 1%, 0.1% or all")
    return float(found["number"])


MEASURES: Mapping[Form, Callable[[str], float]] = MappingProxyType({Form.SHARE: share, Form.SIZE: size})
"""What converts a text of each form that is a number with a unit, and no duration."""
