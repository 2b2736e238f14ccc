"""What the commands of profiles share: where they are, which there are, and what a backup of one is."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kopiatomic import presence
from kopiatomic.config import credentials
from kopiatomic.config import profile as profiles
from kopiatomic.config.options import HoldBlock, Options
from kopiatomic.config.profile import SUFFIX, Entry, Origin, Problem, Profile, ProfileError, source_of
from kopiatomic.config.settings import COMMANDS, STATE_DIRECTORY
from kopiatomic.engines.ways import combined
from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.hooks import kinds
from kopiatomic.hooks.holder import TIMEOUT, Wanted
from kopiatomic.hooks.hook import DEFAULT_TIMEOUT, Hook, Moment
from kopiatomic.immutable import immutable
from kopiatomic.model.plan import Layout
from kopiatomic.schedules import trust
from kopiatomic.system import host, safety
from kopiatomic.text import printable


@immutable
class Folder:
    """The folder of the profiles. From ``top`` on, everything must belong to root only."""

    path: str
    top: str = "/"

    def file(self, name: str) -> str:
        """Return the path of a profile. Raises UsageError for what cannot be the name of one."""
        profiles.check_name(name)
        return os.path.join(self.path, name + SUFFIX)

    def names(self) -> list[str]:
        """Return the profiles that can be run: not those that are only a base. Raises KopiatomicError."""
        return [name for name in profiles.names(self.path) if not name.startswith("_")]

    def warnings(self) -> list[str]:
        """Return which files no command takes for profiles, in words. Raises OSError."""
        return [
            f"{printable(os.path.join(self.path, entry))} is not looked at: the name of a profile has letters, digits, '.', '_' "
            "and '-' alone"
            for entry in profiles.no_names(self.path)
        ]

    def some(self, names: Sequence[str], *, everything: bool) -> list[str]:
        """Return the names that were asked for, each once. Raises UsageError, and KopiatomicError where there are none."""
        if everything and names:
            raise UsageError("--all and names exclude each other", kind="usage", hint="--all takes all profiles.")
        if everything:
            names = self.names()
            if not names:
                raise self.empty()
        for name in names:
            profiles.check_name(name)
            if name.startswith("_"):
                raise UsageError(
                    f"{name} is only a base for other profiles, as its name begins with '_'",
                    kind="bad-name",
                    hint="Name a profile that extends it.",
                )
        return list(dict.fromkeys(names))

    def empty(self) -> KopiatomicError:
        """Return the error that there is no profile."""
        return KopiatomicError(
            f"there is no profile in {printable(self.path)}",
            kind="no-profile",
            hint="kopiatomic profile new NAME -- DATASET... makes one.",
        )

    def require(self) -> None:
        """Refuse a folder that does not exist, unless it is the system's, which is made when needed. Raises KopiatomicError."""
        if self.path != host.here().profiles and not presence.is_directory(self.path):
            raise self.empty()

    def load(self, name: str, *, trusted: bool = True) -> Profile:
        """Read a profile.

        ``trusted``: root acts on it, so nobody else may be able to change it. Raises KopiatomicError.
        """
        path = self.file(name)
        try:
            return self._load(path, trusted=trusted)
        except ProfileError as error:
            if not presence.exists(path, follow_links=False):
                error.hint = f"kopiatomic profile new {name} -- DATASET... makes it from the words of a backup."
            raise
        except OSError as error:
            raise KopiatomicError(
                f"the profile {printable(path)} cannot be looked at: {error.strerror}",
                kind="profiles",
                hint="Look at it, and at its folder (ls -l); --config-dir names another folder.",
            ) from None

    def _load(self, path: str, *, trusted: bool) -> Profile:
        if trusted and not safety.is_plainly_safe(self.path):
            trust.check(self.path, "the folder of the profiles", top=self.top)
        return profiles.load(path, self.require_roots_alone if trusted else require_plain)

    def require_roots_alone(self, path: str) -> None:
        """Refuse a file of a profile that others than root can change, as root acts on it. Raises KopiatomicError, OSError."""
        # Not only if what it leads to exists: a user may make that a moment later.
        if presence.exists(path, follow_links=False):
            trust.check(path, "the profile", top=self.top)


def require_plain(path: str) -> None:
    """Refuse a file to which another user has led root by a link. Raises KopiatomicError, OSError.

    A profile is shown, and its lines where something is wrong with it, to whoever asked root for that.
    """
    why = safety.diverted(path) if os.geteuid() == 0 else ""
    if why:
        raise KopiatomicError(
            f"the profile {printable(path)} is not read by root: {why}",
            kind="not-roots-alone",
            hint="Ask as the user whose file it is, or copy the file itself to where root alone can write.",
        )


def folder(asked: str | None) -> Folder:
    """Return the folder of the profiles: the one that was asked for, or the system's."""
    return Folder(os.path.abspath(asked) if asked else host.here().profiles)


def work_as_timers_do() -> None:
    """Change to ``/``, where a timer runs: what works here must work there. Our own variables stay what they are."""
    for name in (
        "KOPIATOMIC_CONFIG_DIR",
        "KOPIATOMIC_STATE_DIR",
        "KOPIATOMIC_KOPIA",
        "KOPIATOMIC_RESTIC",
        "KOPIATOMIC_BORG",
    ):
        value = os.environ.get(name, "")
        if value and (name.endswith("_DIR") or "/" in value):
            os.environ[name] = os.path.abspath(value)
    os.chdir("/")


def options(profile: Profile, overrides: Mapping[str, Any]) -> Options:
    """Return what a run of a profile is asked for. ``overrides``, by the names of the settings, hold against the file.

    A merged view has a root of its own by default, ``/kopia/NAME``, so that no two profiles share a history. Raises
    ProfileError if nothing is selected.
    """
    values = {**profile.options(), **overrides}
    values["layout"] = layout = Layout(values.get("layout", Layout.MERGED))
    if layout is Layout.MERGED and not {"mount_root", "name"} & values.keys():
        values["name"] = profile.name
    _check_overrides(profile, overrides, layout)
    # As on a command line, the environment counts where nothing else is said.
    values.setdefault("state_dir", os.environ.get("KOPIATOMIC_STATE_DIR") or STATE_DIRECTORY)
    found = Options(
        maintenance=not values.pop("no_maintenance", False),
        variables=tuple(profile.sources("engine")),
        hook_variables=tuple(profile.sources("hooks")),
        hooks=tuple(_hooks(profile)),
        profile_file=profile.path,
        # Writers that are named for one run stand for all of the file's.
        hold_blocks=() if values.get("holds") else tuple(map(_hold, profile.entries("hold"))),
        **values,
    )
    if found.request("", "").asks_for_nothing():
        nothing = "nothing is selected: below [select] it needs datasets = [...], all = true or by_property = true"
        raise ProfileError([Problem(nothing, Origin(profile.path, None, ""))])
    return found


def _hold(entry: Entry) -> HoldBlock:
    """Return a writer that a profile wants held still."""
    values = {key: value.value for key, value in entry.values.items()}
    settings: dict[str, Any] = {}
    sources = []
    for key, of in kinds.of(values["kind"]).settings.items():
        if isinstance(values.get(key), dict):
            sources.append(source_of(key, entry.values[key]))
        elif key in values:
            settings[key] = shlex.split(values[key]) if of.type is list else values[key]
    wanted = Wanted(
        values["kind"],
        values.get("name", ""),
        values.get("timeout", TIMEOUT),
        values.get("limit"),
        values.get("required", True),
        settings,
    )
    return HoldBlock(wanted, tuple(sources))


def _check_overrides(profile: Profile, overrides: Mapping[str, Any], layout: Layout) -> None:
    """Refuse options that are for another layout than that of the profile, as its file may not have them. Raises UsageError."""
    for setting in COMMANDS["run"]:
        value = overrides.get(setting.name)
        if value and setting.layout is not None and setting.layout != layout.value:
            raise UsageError(
                f"{setting.flags[-1]} is for --layout {setting.layout}, and the layout of {profile.name} is {layout.value}",
                kind="usage",
                hint=f"Leave {setting.flags[-1]} out.",
            )


def _hooks(profile: Profile) -> Iterator[Hook]:
    """Yield the hooks of a profile, by moment and then in the order of the file."""
    for moment in Moment:
        for entry in profile.entries("hooks", moment.value):
            line, words = entry.value("shell"), entry.value("command", "")
            yield Hook(
                moment,
                tuple(shlex.split(words)) if line is None else ("/bin/sh", "-c", line),
                timeout=entry.value("timeout", DEFAULT_TIMEOUT),
                user=entry.value("user", ""),
                directory=entry.value("directory", "/"),
                required=entry.value("required", True),
                variables=tuple(entry.sources()),
                place=entry.origin.place,
            )


def engine_environment(options: Options) -> dict[str, str]:
    """Return the environment of a profile's engine outside of a run: ours, with what the profile and a service manager give it.

    From then on the folder of credentials is in no environment. Raises KopiatomicError, and Interrupted.
    """
    folder = credentials.folder_of(os.environ)
    os.environ.pop("CREDENTIALS_DIRECTORY", None)
    own = credentials.resolve(options.variables, folder).values
    return combined(os.environ, combined(credentials.handed(folder), own))


WORST = (1, 2, 4, 3, 75, 0)
"""Exit codes of several runs: the first of these that is among them is that of all."""


def worst(codes: Iterable[int]) -> int:
    """Return the exit code of several runs: a signal's before all others."""
    found = set(codes)
    signalled = [code for code in found if code > 128]
    return max(signalled) if signalled else next((code for code in WORST if code in found), max(found, default=0))
