"""Every option of every command, once: the command line is built from this table, and README, manual and completion are checked
against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any

from kopiatomic.hooks import kinds
from kopiatomic.hooks.holder import Key
from kopiatomic.immutable import immutable
from kopiatomic.model.user_property import PROPERTY

MOUNT_ROOT = "/kopia"
"""Where a merged view is mounted by default."""

STATE_DIRECTORY = "/var/lib/kopiatomic"
"""Where the state database is kept by default."""

LONGEST = 3650 * 86400.0
"""Seconds. The longest duration."""


class Group(StrEnum):
    """What an option is about."""

    SELECT = "select"
    VIEW = "view"
    ENGINE = "engine"
    HOOKS = "hooks"
    RUN = "run"
    SCHEDULE = "schedule"
    RECORDS = "records"
    OUTPUT = "output"


class Form(StrEnum):
    """The type of a value."""

    FLAG = "flag"
    TEXT = "text"
    CHOICE = "choice"
    DURATION = "duration"
    """Seconds; with a unit on the command line."""
    COUNT = "count"
    """A whole number, at least one."""
    NUMBER = "number"
    """A whole number from ``least`` to ``most``."""
    FILE = "file"
    """A file to read, or ``-``."""
    SHARE = "share"
    """A part of what there is, such as ``1%``, or ``all``."""
    SIZE = "size"
    """Bytes; with a unit, such as ``1 GiB``."""
    ANSWER = "answer"
    """Yes or no, each with a flag, or by default neither: ``ask``."""


ASK = "ask"
"""How a file says that neither answer is given (:attr:`Form.ANSWER`)."""


class Completion(StrEnum):
    """What a shell offers for a value."""

    DATASETS = "datasets"
    DIRECTORIES = "directories"
    SCHEDULES = "schedules"
    PROFILES = "profiles"


@immutable
class Setting:
    """One option. ``name`` is used by code and files; without ``flags`` it is an argument."""

    name: str
    flags: tuple[str, ...]
    group: Group
    help: str
    form: Form = Form.FLAG
    default: Any = None
    """The default as written on the command line."""
    value: str | None = None
    """The placeholder for the value in help and documentation."""
    choices: tuple[str, ...] = ()
    least: float = 0.0
    """The shortest duration, in seconds, or the smallest number."""
    most: float = LONGEST
    """The largest number."""
    repeated: bool = False
    words: bool = False
    """A command line or a part of one, which a file may also give as an array of words."""
    engines: tuple[str, ...] = ()
    """The engines that it is for; empty for all of them, and for any command."""
    layout: str | None = None
    """The only layout that it is for."""
    alone: str | None = None
    """The value of the option when it is given without one."""
    directory: bool = False
    """A directory of this machine, whatever its name looks like."""
    shows_default: bool = False
    of_profiles: str | None = None
    """The default in a profile, where it is another; NAME stands for the profile's name."""
    variable: str | None = None
    """The environment variable that sets it."""
    completion: Completion | None = None
    is_secret: bool = False
    """Whether a file may also say where the value is, as of a variable."""

    @property
    def key(self) -> str:
        """The name in a profile: that of the long flag, with underscores."""
        if not self.flags:
            return "datasets" if self.name == "names" else self.name
        return self.flags[-1].lstrip("-").replace("-", "_")


def _text(name: str, flags: str, group: Group, value: str, text: str, **more: Any) -> Setting:
    return Setting(name, tuple(flags.split()), group, text, Form.TEXT, value=value, **more)


def _flag(name: str, flags: str, group: Group, text: str, **more: Any) -> Setting:
    return Setting(name, tuple(flags.split()), group, text, **more)


def _choice(name: str, flags: str, group: Group, choices: tuple[str, ...], text: str, **more: Any) -> Setting:
    return Setting(name, tuple(flags.split()), group, text, Form.CHOICE, choices=choices, **more)


def _duration(name: str, flags: str, group: Group, text: str, value: str = "DURATION", **more: Any) -> Setting:
    return Setting(name, tuple(flags.split()), group, text, Form.DURATION, value=value, **more)


_NAMES = _text(
    "names", "", Group.SELECT, "DATASET_OR_PATH...", "What is taken.", repeated=True, completion=Completion.DATASETS
)
_STATE_DIR = _text(
    "state_dir",
    "--state-dir",
    Group.RECORDS,
    "DIR",
    "Where runs are recorded.",
    default=STATE_DIRECTORY,
    shows_default=True,
    variable="KOPIATOMIC_STATE_DIR",
    directory=True,
    completion=Completion.DIRECTORIES,
)
_JSON = _flag("as_json", "--json", Group.OUTPUT, "One JSON document on stdout.")
_VERBOSE = _flag("verbose", "--verbose", Group.OUTPUT, "Say more.")
_QUIET = _flag("quiet", "--quiet", Group.OUTPUT, "Only warnings and errors.")
_CONFIG_DIR = _text(
    "config_dir",
    "--config-dir",
    Group.RECORDS,
    "DIR",
    "Where the profiles are.",
    variable="KOPIATOMIC_CONFIG_DIR",
    completion=Completion.DIRECTORIES,
)
_YES = _flag("yes", "--yes", Group.SCHEDULE, "Do not ask.")

_SELECT = (
    _NAMES,
    _flag(
        "everything",
        "-a --all",
        Group.SELECT,
        "All mounted ZFS datasets and Btrfs subvolumes, with what is nested in these.",
    ),
    _flag(
        "recursive",
        "-r --recursive",
        Group.SELECT,
        "Also what lies below those named: children, nested subvolumes.",
    ),
    _text(
        "exclude",
        "--exclude",
        Group.SELECT,
        "PATTERN",
        "Leave these out: a name, or a quoted pattern (* in a component, ** any number). Repeatable.",
        repeated=True,
        completion=Completion.DATASETS,
    ),
    _flag(
        "by_property",
        "--by-property",
        Group.SELECT,
        "Those with kopiatomic:backup=on or inherited children; names limit it to their subtrees.",
    ),
    _text("property", "--property", Group.SELECT, "NAME", "Another ZFS user property for that.", default=PROPERTY),
    _flag(
        "no_nested",
        "--no-nested",
        Group.SELECT,
        "Btrfs: without the subvolumes nested in those taken, which are not missed.",
    ),
    _flag("include_unmounted", "--include-unmounted", Group.SELECT, "ZFS: also those that are not mounted."),
    _flag("volumes", "--volumes", Group.SELECT, "ZFS: also volumes, each as a file below /.volumes in the view."),
    _flag(
        "only_frozen",
        "--only-frozen",
        Group.VIEW,
        "In place: hide what is mounted in these trees and not frozen.",
        layout="in-place",
    ),
)

_LAYOUT = _choice(
    "layout",
    "--layout",
    Group.VIEW,
    ("merged", "in-place"),
    "All below one root, or each at its true path.",
    default="merged",
    shows_default=True,
)
_MOUNT_ROOT = _text(
    "mount_root",
    "--mount-root",
    Group.VIEW,
    "DIR",
    "Where a merged view is mounted; in directories that root alone can change.",
    default=MOUNT_ROOT,
    shows_default=True,
    # So that no two profiles share a history.
    of_profiles=f"{MOUNT_ROOT}/NAME",
    layout="merged",
    directory=True,
    completion=Completion.DIRECTORIES,
)

_HOLDS = _text(
    "holds",
    "--hold",
    Group.HOOKS,
    "KIND[:NAME]",
    "Hold a writer still for the snapshots: postgresql, mariadb, mysql, unit, container, cgroup. Repeatable.",
    repeated=True,
)

_ENGINE = (
    _text(
        "command",
        "-c --command",
        Group.ENGINE,
        "COMMAND",
        "Run COMMAND with the view's root as its last argument instead of kopia.",
        words=True,
    ),
    _choice(
        "engine",
        "--engine",
        Group.ENGINE,
        ("kopia", "restic", "borg"),
        "What backs the view up.  [default: kopia]",
    ),
    _text(
        "repository",
        "--repository",
        Group.ENGINE,
        "REPOSITORY",
        "restic, Borg: their repository, instead of RESTIC_REPOSITORY or BORG_REPO.",
        engines=("restic", "borg"),
        completion=Completion.DIRECTORIES,
    ),
    _text(
        "archive",
        "--archive",
        Group.ENGINE,
        "NAME",
        "Borg: the archive's name, where {instant} stands for the time.  [default: {hostname}-{instant}]",
        engines=("borg",),
    ),
    _text(
        "options",
        "-o --options",
        Group.ENGINE,
        "OPTIONS",
        "More options for the engine or COMMAND.",
        default="",
        words=True,
    ),
    _text(
        "writable",
        "--writable",
        Group.VIEW,
        "PATH",
        "In place: a directory that the engine must write to stays live. Repeatable.",
        repeated=True,
        layout="in-place",
        directory=True,
        completion=Completion.DIRECTORIES,
    ),
    _flag(
        "skip_unchanged",
        "--skip-unchanged",
        Group.ENGINE,
        "kopia, in place: where nothing has changed, let the last snapshot stand, and read nothing.",
        engines=("kopia",),
        layout="in-place",
    ),
    _LAYOUT,
    _MOUNT_ROOT,
    _text(
        "name",
        "--name",
        Group.VIEW,
        "NAME",
        "Use DIR/NAME, so that this selection has a history of its own.",
        layout="merged",
    ),
)

_STOP_TIMEOUT = _duration(
    "stop_timeout",
    "--stop-timeout",
    Group.RUN,
    "How long the engine or command has to end after a signal, and a suspended pool or frozen filesystem to go on.",
    default="30s",
    shows_default=True,
)
_TIMEOUT = _duration("timeout", "--timeout", Group.RUN, "How long the whole run may take (90, 10m, 2h).", least=0.1)
_REQUIRE_ATOMIC = _flag(
    "require_atomic",
    "--require-atomic",
    Group.RUN,
    "Fail, before anything is read, unless all share one proven instant and nothing is missing.",
)

_BACKUP = (
    *_SELECT,
    *_ENGINE,
    _flag(
        "dry_run",
        "-n --dry-run",
        Group.RUN,
        "Only say what would be taken, where it would appear, what would run.",
    ),
    _text(
        "pre_hook",
        "-p --pre-hook",
        Group.HOOKS,
        "COMMAND",
        "Shell line to run first; if it fails, nothing is made.",
    ),
    _text("post_hook", "-q --post-hook", Group.HOOKS, "COMMAND", "Shell line to run last, also after a failure."),
    _HOLDS,
    _duration(
        "hook_timeout",
        "--hook-timeout",
        Group.HOOKS,
        "How long a hook may take.",
        default="10m",
        shows_default=True,
        least=0.1,
    ),
    _STOP_TIMEOUT,
    _TIMEOUT,
    _duration(
        "wait",
        "--wait",
        Group.RUN,
        "Wait for another run on the same view root, instead of exit code 75.",
        value="[=DURATION]",
        alone="3650d",
    ),
    _REQUIRE_ATOMIC,
    _flag(
        "no_maintenance",
        "--no-maintenance",
        Group.ENGINE,
        "Leave kopia's own maintenance out.",
        engines=("kopia",),
    ),
    Setting(
        "metadata",
        ("--no-metadata", "--metadata"),
        Group.VIEW,
        "Whether what the engine would lose is recorded: attributes, access control lists, links, devices, times. "
        "In place kopia's users are asked once.",
        Form.ANSWER,
        engines=("kopia", "restic", "borg"),
    ),
    Setting(
        "verify",
        ("--verify",),
        Group.RUN,
        "Compare what was saved with the frozen view: all names, and the contents of so many files.",
        Form.SHARE,
        value="PERCENT|all",
        engines=("kopia", "restic", "borg"),
    ),
    Setting(
        "verify_limit",
        ("--verify-limit",),
        Group.RUN,
        "How much --verify reads back at most.",
        Form.SIZE,
        default="1 GiB",
        value="SIZE",
        shows_default=True,
        engines=("kopia", "restic", "borg"),
    ),
    _duration(
        "verify_time_limit",
        "--verify-time-limit",
        Group.RUN,
        "How long --verify may take: the snapshots exist as much longer.",
        default="1h",
        shows_default=True,
        least=0.1,
        engines=("kopia", "restic", "borg"),
    ),
    _text(
        "schedule",
        "--schedule",
        Group.RECORDS,
        "NAME",
        "Record it as a run of this schedule; 'kopiatomic schedule' sets it.",
    ),
    _STATE_DIR,
    _duration(
        "keep_history",
        "--keep-history",
        Group.RECORDS,
        "How long runs stay recorded.",
        default="400d",
        shows_default=True,
    ),
    _JSON,
    _VERBOSE,
    _QUIET,
    _flag(
        "version",
        "-v --version",
        Group.OUTPUT,
        "Show the version; with --verbose those of all that takes part.",
    ),
)

_PLAN = (
    *_SELECT,
    *_ENGINE,
    _HOLDS,
    _flag("save_facts", "--facts", Group.OUTPUT, "Print what was found as JSON, to plan from it elsewhere."),
    Setting("from_facts", ("--from-facts",), Group.SELECT, "Plan from such a file.", Form.FILE, value="FILE"),
    _flag("diff_last", "--diff-last", Group.OUTPUT, "Say what changed against the last run of that root."),
    _STATE_DIR,
    _JSON,
    replace(_VERBOSE, help="Also the facts behind each verdict."),
    _QUIET,
)

_INSIDE = (
    *_SELECT,
    _text("user", "--user", Group.RUN, "NAME", "Run as this user, without any capability."),
    replace(_LAYOUT, default="in-place"),
    replace(_MOUNT_ROOT, default="/frozen"),
    _REQUIRE_ATOMIC,
    _STOP_TIMEOUT,
    _TIMEOUT,
    _STATE_DIR,
    _VERBOSE,
)

_RECOVER = (
    _flag("dry_run", "-n --dry-run", Group.RUN, "Only say what is left and what would be done."),
    _text(
        "forget",
        "--forget",
        Group.RECORDS,
        "[RUN]",
        "Take a dead run off the record first: its disks are gone for good. "
        "Without RUN: forget what --skip-unchanged keeps, its bookmarks included.",
        alone="",
    ),
    _text("schedule", "--schedule", Group.RECORDS, "NAME", "Only what is recorded of the runs of this schedule."),
    _flag(
        "unrecorded",
        "--unrecorded",
        Group.SELECT,
        "ZFS: also snapshots that have this host's mark and of which there is no record.",
    ),
    _flag(
        "received",
        "--received",
        Group.SELECT,
        "Also snapshots of other hosts' runs, and those that were received with a stream.",
    ),
    _text(
        "assume_dead",
        "--assume-dead",
        Group.SELECT,
        "RUN",
        "Take a run for dead that cannot be judged from here, such as one of another container. Repeatable.",
        repeated=True,
    ),
    _flag("no_hooks", "--no-hooks", Group.RUN, "Leave the hooks that killed runs of profiles still owe."),
    _STATE_DIR,
    _JSON,
)

_HISTORY = (
    _text("run_id", "", Group.RECORDS, "[RUN]", "The run that is shown.", default=""),
    Setting(
        "limit",
        ("--limit",),
        Group.OUTPUT,
        "How many runs.",
        Form.COUNT,
        default=20,
        value="N",
        shows_default=True,
    ),
    _STATE_DIR,
    _JSON,
)

_SCHEDULE = _text("name", "", Group.SCHEDULE, "NAME", "The schedule.", completion=Completion.SCHEDULES)
_PROFILE = _text("name", "", Group.SELECT, "NAME", "The profile.", completion=Completion.PROFILES)

_INSTALL = (
    replace(_SCHEDULE, value="[NAME]", default=""),
    _flag("every_profile", "--all", Group.SELECT, "All profiles of the folder."),
    _CONFIG_DIR,
    _flag("daily", "--daily", Group.SCHEDULE, "Every day (by default)."),
    _flag("hourly", "--hourly", Group.SCHEDULE, "Every hour."),
    _text("calendar", "--calendar", Group.SCHEDULE, "SPEC", "When, as systemd.time(7) has it: 'Mon..Fri 02:30'."),
    _text(
        "credentials",
        "--credential",
        Group.ENGINE,
        "NAME=FILE",
        "Hand what is in FILE to the engine as this variable, such as KOPIA_PASSWORD. Repeatable.",
        repeated=True,
    ),
    _YES,
)

_RUN = (
    _text("profiles", "", Group.SELECT, "PROFILE...", "The profiles.", repeated=True, completion=Completion.PROFILES),
    _flag("every_profile", "--all", Group.SELECT, "All profiles of the folder."),
    _CONFIG_DIR,
    *(setting for setting in _BACKUP if setting.name not in {"names", "everything", "version"}),
)

_PROFILES = {
    "profile new": (_PROFILE, _CONFIG_DIR),
    "profile list": (_CONFIG_DIR, _JSON),
    "profile show": (
        _PROFILE,
        _flag("origin", "--origin", Group.OUTPUT, "Also the file and line of each value."),
        _CONFIG_DIR,
        _JSON,
    ),
    "profile check": (
        _text("names", "", Group.SELECT, "[NAME]...", "The profiles.", repeated=True, completion=Completion.PROFILES),
        _text(
            "file",
            "--file",
            Group.SELECT,
            "PATH",
            "Check this file instead, wherever it is.",
            completion=Completion.DIRECTORIES,
        ),
        _flag("offline", "--offline", Group.RUN, "Only the file: neither datasets nor engine are looked at."),
        _CONFIG_DIR,
    ),
    "profile schema": (),
    "engine": (_PROFILE, _CONFIG_DIR),
}

_NO_METADATA = _flag(
    "no_metadata", "--no-metadata", Group.VIEW, "Without what is recorded of what the engine has lost."
)

_REPOSITORY = (
    replace(next(one for one in _ENGINE if one.name == "engine"), help="What made the backup.  [default: kopia]"),
    *(one for one in _ENGINE if one.name in {"repository", "options"}),
    _text(
        "profile",
        "--profile",
        Group.SELECT,
        "NAME",
        "The repository of this profile.",
        completion=Completion.PROFILES,
    ),
    _CONFIG_DIR,
    _JSON,
)

_RESTORE = (
    _text("what", "", Group.SELECT, "WHAT", "What is restored: 'latest', or the beginning of an id or a time."),
    _text("paths", "", Group.SELECT, "[PATH]...", "Absolute paths as they were; all without any.", repeated=True),
    _text(
        "to",
        "--to",
        Group.VIEW,
        "DIR",
        "A directory that does not exist yet, or is empty.",
        directory=True,
        completion=Completion.DIRECTORIES,
    ),
    _text(
        "dataset",
        "--dataset",
        Group.VIEW,
        "D",
        "Instead all of a dataset, by its name when it was saved.",
        completion=Completion.DATASETS,
    ),
    _text(
        "new",
        "--as",
        Group.VIEW,
        "NEW",
        "The new dataset that is made for it; of a Btrfs subvolume the path.",
        completion=Completion.DATASETS,
    ),
    _flag("names", "--names", Group.VIEW, "Owners by their names instead of their numbers."),
    _NO_METADATA,
    *_REPOSITORY,
)

COMMANDS: Mapping[str, tuple[Setting, ...]] = {
    "backup": _BACKUP,
    "run": _RUN,
    **_PROFILES,
    "plan": _PLAN,
    "exec": _INSIDE,
    "shell": _INSIDE,
    "recover": _RECOVER,
    "history": _HISTORY,
    "list": (*_REPOSITORY[:-1], _STATE_DIR, _JSON),
    "restore": _RESTORE,
    "schedule install": _INSTALL,
    "schedule show": (replace(_SCHEDULE, value="[NAME]", default=""), _JSON),
    "schedule remove": (_SCHEDULE, _YES),
    "schedule check": (replace(_PROFILE, name="profile", flags=("--profile",), value="NAME"),),
    "schedule overdue": (replace(_SCHEDULE, completion=None),),
    "schedule run": (replace(_SCHEDULE, completion=None),),
}
"""The options of each command, in the order of its help."""


_NOT_IN_A_FILE = frozenset({"dry_run", "schedule", "holds"})
"""Options of a backup that are about one run alone."""

_ONLY_IN_A_FILE = (
    Setting("nice", (), Group.ENGINE, "The engine's nice value.", Form.NUMBER, value="N", least=-20, most=19),
    _choice(
        "ionice",
        "",
        Group.ENGINE,
        ("idle", *(f"best-effort:{level}" for level in range(8))),
        "Linux: the engine's I/O class, as ionice(1) has it.",
    ),
    _text(
        "calendar", "", Group.SCHEDULE, "SPEC", "When, as systemd.time(7) has it: 'Mon..Fri 02:30'.", default="daily"
    ),
    _duration("random_delay", "", Group.SCHEDULE, "Up to how long each start is delayed."),
    _flag(
        "persistent", "", Group.SCHEDULE, "Make up for a start that was missed while the machine was off.", default=True
    ),
    _flag("on_battery", "", Group.SCHEDULE, "Start on battery power, too.", default=True),
    _choice(
        "on_lock",
        "",
        Group.HOOKS,
        ("failure", "skip"),
        "Whether on_failure runs where another run has the lock (exit code 75).",
        default="failure",
    ),
)

TABLES: Mapping[str, tuple[Setting, ...]] = {
    group.value: tuple(
        setting
        for setting in (*_BACKUP, *_ONLY_IN_A_FILE)
        if setting.group is group and setting.name not in _NOT_IN_A_FILE
    )
    for group in Group
    if group is not Group.OUTPUT
}
"""The tables of a profile, and the settings in each."""

KEYS: Mapping[tuple[str, str], Setting] = {
    (table, setting.key): setting for table, settings in TABLES.items() for setting in settings
}
"""The settings by table and key."""

WITH_ENVIRONMENT = ("engine", "hooks")
"""The tables that have a table ``environment``: variables and their values, or where these are."""


@immutable
class Block:
    """A table in a profile that says one thing among several of its kind, such as a hook; also written as an array of tables."""

    help: str
    settings: tuple[Setting, ...]
    one_of: tuple[str, ...] = ()
    """The keys of which it needs exactly one."""
    needs: tuple[str, ...] = ()
    """The keys that it must have."""
    has_environment: bool = False
    """Whether it may have a table ``environment``."""
    kinds: Callable[[], Mapping[str, tuple[Setting, ...]]] | None = None
    """Returns the further keys that it has, by its key ``kind``."""

    def of(self, kind: object) -> dict[str, Setting]:
        """Return the settings by key where its key ``kind`` says this; with those of all kinds if there is none of this name."""
        kinds = {} if self.kinds is None else self.kinds()
        own = [kinds[kind]] if isinstance(kind, str) and kind in kinds else kinds.values()
        return {setting.key: setting for settings in (self.settings, *own) for setting in settings}


_HOOK = (
    _text("command", "", Group.HOOKS, "ARGV", "The program with its arguments; no shell reads it.", words=True),
    _text("shell", "", Group.HOOKS, "LINE", "A shell line, instead of command."),
    _duration("timeout", "", Group.HOOKS, "How long it may take.", default="10m"),
    _text("user", "", Group.HOOKS, "USER", "Run as this user, without root's rights, descriptors and secrets."),
    _text("directory", "", Group.HOOKS, "DIR", "Where it runs; by default in /.", directory=True),
)
_REQUIRED = _flag(
    "required", "", Group.HOOKS, "Whether its failure fails the run; else it makes it incomplete.", default=True
)

_HOOKS = {
    "before": "First, when the locks are taken, before anything is looked at. Exit status 75 skips the backup.",
    "before_freeze": "Right before the snapshots, after all checks. If it was started, after_freeze runs, whatever happens.",
    "after_freeze": "As soon as the snapshots exist or cannot be made.",
    "in_view": "In the frozen view, before the engine.",
    "after": "Last, when everything is removed, if before was started.",
    "on_success": "After that, if everything was saved.",
    "on_incomplete": "After that, if something was not saved.",
    "on_failure": "After that, if nothing was saved.",
}

_HOLD = (
    _choice("kind", "", Group.HOOKS, tuple(kinds.KINDS), "What it is."),
    # Not called as --name is, which has rules of its own.
    _text("hold_name", "name", Group.HOOKS, "NAME", "Which one, where there are several.", default=""),
    _duration("timeout", "", Group.HOOKS, "Within which time it must be held.", default="10s", least=0.1),
    _duration(
        "limit", "", Group.HOOKS, "How long it may be held at most: 10s; frozen or locked in a database 2s.", least=0.1
    ),
    _flag("required", "", Group.HOOKS, "Whether a backup fails where it cannot be held.", default=True),
)


def _of_kinds() -> dict[str, tuple[Setting, ...]]:
    """Return the keys that each kind of writers has of its own."""
    return {name: tuple(_own(key, of) for key, of in kinds.of(name).settings.items()) for name in kinds.KINDS}


def _own(name: str, key: Key) -> Setting:
    if key.type is bool:
        return _flag(name, "", Group.HOOKS, key.help)
    if key.type is int:
        return Setting(name, (), Group.HOOKS, key.help, Form.NUMBER, value="PORT", least=1, most=65535)
    more = {"words": key.type is list, "default": key.default, "is_secret": key.is_secret}
    return _text(name, "", Group.HOOKS, "TEXT", key.help, **more)


BLOCKS: Mapping[tuple[str, ...], Block] = {
    ("hold",): Block(
        "A writer that is held still while the snapshots are made.", _HOLD, needs=("kind",), kinds=_of_kinds
    ),
    **{
        ("hooks", moment): Block(
            text,
            (*_HOOK, _REQUIRED) if moment == "in_view" else _HOOK,
            one_of=("command", "shell"),
            has_environment=True,
        )
        for moment, text in _HOOKS.items()
    },
}
"""The blocks of a profile, by the tables that lead to them."""
