"""The commands of ``kopiatomic profile``: what each does, from its arguments to its exit code."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import resources
from typing import Any

from kopiatomic import errors, presence
from kopiatomic.commands import profiles
from kopiatomic.commands.failures import ended, require_root
from kopiatomic.commands.history import result_of
from kopiatomic.commands.profiles import Folder
from kopiatomic.commands.schedule import all_of, of_profiles, outdated
from kopiatomic.config import credentials, profile_text
from kopiatomic.config import profile as reading
from kopiatomic.config.invocation import Invocation
from kopiatomic.config.options import Options, variable_made_absolute
from kopiatomic.config.profile import Entry, Origin, Problem, Profile, ProfileError, Value
from kopiatomic.config.settings import TABLES
from kopiatomic.engines.engine import Engine
from kopiatomic.errors import EndError, Interrupted, KopiatomicError, UsageError
from kopiatomic.hooks import shell
from kopiatomic.hooks.hook import Moment
from kopiatomic.immutable import immutable
from kopiatomic.model.plan import Layout
from kopiatomic.model.report import Report
from kopiatomic.output.console import Console
from kopiatomic.schedules import here, started, trust
from kopiatomic.schedules.environment import created
from kopiatomic.secrets.masking import MASK, Secrets, found_in, is_secret
from kopiatomic.secrets.masking import credentials as credentials_in
from kopiatomic.state import roots
from kopiatomic.state.records import Records
from kopiatomic.system import accounts, host
from kopiatomic.system.descriptors import closing
from kopiatomic.text import first_few, printable

FORMAT = "kopiatomic-profile-1"
LIST_FORMAT = "kopiatomic-profile-list-1"


# new


def new(
    name: str, given: Mapping[tuple[str, str], Any], folder: Folder, console: Console, caller: Mapping[str, str]
) -> int:
    """Write the starting file of a profile with these values, by table and key; never over a file. Return the exit code.

    It takes along what the ``caller``'s environment says to the engine, except secrets.
    """

    def run() -> int:
        path = folder.file(name)
        variables = _said_to_the_engine(given, caller)
        odd = [variable for variable in variables if not reading.is_variable(variable)]
        variables = {variable: value for variable, value in variables.items() if variable not in odd}
        secret = [variable for variable, value in variables.items() if is_secret(variable, value)]
        plain = {variable: value for variable, value in variables.items() if variable not in secret}
        text = profile_text.starting_file(name, given, _schema_path(), plain)
        if not presence.is_directory(folder.path):
            os.makedirs(folder.path, 0o755)
        trust.check(folder.path, "the folder of the profiles", top=folder.top)
        _write(path, text)
        console.acted = True
        for variable in odd:
            console.warning(f"{printable(variable)} of this environment is not in the file: no profile can name it")
        address = given.get(("engine", "repository"))
        if address is not None and credentials_in(address):
            console.warning(
                "the repository's address has a password, which is in the file now: nobody else may read that"
            )
        for variable in secret:
            console.warning(
                f"{variable} of this environment is not in the file: write below [engine.environment] where it is"
            )
        _warn_of_shared_histories(folder, [name], console)
        where = "" if folder.path == host.here().profiles else f" --config-dir {printable(shlex.quote(folder.path))}"
        following = f"kopiatomic profile check{where} {name}; kopiatomic run{where} {name}"
        if name.startswith("_"):
            following = f'in the profiles that it is the base of: extends = "{name}"'
        console.result(f"Wrote {printable(path)}. Next: edit it; {following}")
        return errors.SAVED

    return ended(run, console)


def _said_to_the_engine(given: Mapping[tuple[str, str], Any], caller: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that configure the engine of these values."""
    engine = created(Options(engine=given.get(("engine", "engine")), command=given.get(("engine", "command"))), {})
    where = given.get(("engine", "repository")) or caller.get("RESTIC_REPOSITORY", "")
    return {
        name: variable_made_absolute(name, value)
        for name, value in sorted(caller.items())
        if name.startswith(_prefixes(engine, where))
    }


def _prefixes(engine: Engine, where: str) -> tuple[str, ...]:
    """Return how the variables begin that an engine reads for a repository of this address.

    Those of clouds are for many programs, and most repositories are in none.
    """
    return tuple(
        prefix
        for prefix in engine.variables
        if prefix == f"{engine.name.upper()}_" or where.startswith(_SCHEMES.get(prefix, "?"))
    )


_SCHEMES = {
    "AWS_": "s3:",
    "AZURE_": "azure:",
    "B2_": "b2:",
    "GOOGLE_": "gs:",
    "OS_": "swift:",
    "RCLONE_": "rclone:",
    "ST_": "swift:",
}
"""How the addresses of repositories begin that variables are for, by what the variables begin with."""


def _write(path: str, text: str) -> None:
    """Put a new file onto the disk. Raises KopiatomicError if there is one already."""
    try:
        # It may come to hold a secret.
        with closing(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)) as fd:
            with open(fd, "w", encoding="utf-8", closefd=False) as file:
                file.write(text)
            os.fsync(fd)
    except FileExistsError:
        raise KopiatomicError(
            f"{printable(path)} exists, and no profile is ever written over another file",
            kind="profile-exists",
            hint="Edit it, move it away, or choose another name.",
        ) from None
    except OSError as error:
        raise KopiatomicError(
            f"{printable(path)} cannot be written: {error.strerror}",
            kind="file",
            hint="Look at its folder (space, permissions, read-only?); making a profile needs root.",
        ) from None


def _schema_path() -> str:
    """Return where the schema is, as editors find it: the package's own file, if it is one."""
    found = str(resources.files("kopiatomic.config").joinpath(profile_text.SCHEMA))
    return found if presence.is_file(found) else profile_text.SCHEMA


# show


def show(name: str, folder: Folder, console: Console, *, origin: bool, as_json: bool) -> int:
    """Show what a profile says with everything that it extends; return the exit code."""

    def run() -> int:
        found = folder.load(name, trusted=False)
        if as_json:
            console.document(_document(found))
        else:
            for line in _lines(found, origin=origin):
                console.result(line)
        return console.exit_code(errors.SAVED)

    return ended(run, console)


def _document(found: Profile) -> dict[str, Any]:
    """Return a profile as JSON: ``profile`` has the form of the file, ``origins`` the file and line of each value."""
    tables: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for (table, key), value in found.values.items():
        tables.setdefault(table, {})[key] = _shown(value.given, _receives(found, key))
        origins[f"{table}.{key}"] = value.origin.place
    for (table, name), value in found.environment.items():
        tables.setdefault(table, {}).setdefault("environment", {})[name] = _safe(name, value)
        origins[f"{table}.environment.{name}"] = value.origin.place
    for place, value in found.blocks.items():
        *above, key = place
        within = tables.setdefault(above[0], {}) if above else tables
        within[key] = [_block(entry) for entry in value.value]
        origins[".".join(place)] = value.origin.place
    return {
        "format": FORMAT,
        "name": found.name,
        "files": list(found.files),
        "profile": tables,
        "origins": origins,
        "root": _root(found),
    }


def _block(entry: Entry) -> dict[str, Any]:
    """Return one block in the form of the file, as it may be shown."""
    found = {key: _shown(_safe(key, value)) for key, value in entry.values.items()}
    variables = {name: _safe(name, value) for name, value in entry.environment.items()}
    return {**found, **({"environment": variables} if variables else {})}


def _shown(given: Any, program: str = "") -> Any:
    """Return a value as it may be shown: a password among words or in an address is not.

    ``program`` receives the words; empty for what a program receives that they name, or none.
    """
    if isinstance(given, list) and all(isinstance(word, str) for word in given):
        return Secrets(given, {}, found_in(given, program)).hide_words(given, program)
    return Secrets([given], {}).hide(given, program) if isinstance(given, str) else given


def _receives(found: Profile, key: str) -> str:
    """Return the program that receives the words of a key; empty if they name it themselves."""
    return found.program() if key == "options" else ""


def _safe(name: str, value: Value) -> Any:
    """Return the value of a variable as it may be shown."""
    return MASK if isinstance(value.given, str) and is_secret(name, value.given) else value.given


def _root(found: Profile) -> str | None:
    """Return the root of a merged view; None in place, and of what is only a base."""
    if found.name.startswith("_"):
        return None
    options = profiles.options(found, {})
    return options.view_root() if options.layout is Layout.MERGED else None


def _lines(found: Profile, *, origin: bool) -> list[str]:
    lines: list[str] = [f"# {printable(file)}" for file in found.files]
    for table in TABLES:
        values = [
            (key, _shown(value.given, _receives(found, key)), value)
            for (of, key), value in found.values.items()
            if of == table
        ]
        variables = [
            (name, _safe(name, value), value) for (of, name), value in found.environment.items() if of == table
        ]
        for heading, shown in ((table, values), (f"{table}.environment", variables)):
            if shown:
                lines += ["", f"[{heading}]"]
            for key, given, value in shown:
                lines.append(f"{key} = {profile_text.toml(given)}" + (f"  # {value.origin.place}" if origin else ""))
        lines += _block_lines(found, table, origin=origin)
    for place in found.blocks:
        if place[0] not in TABLES:
            lines += _block_lines(found, place[0], origin=origin)
    if found.name.startswith("_"):
        return [*lines, "", "# It is only a base for other profiles, as its name begins with '_'."]
    root = _root(found)
    if root is not None:
        lines += ["", f"# The root of its view, which is its history in kopia: {printable(root)}"]
    return lines


def _block_lines(found: Profile, table: str, *, origin: bool) -> list[str]:
    lines = []
    for place, blocks in found.blocks.items():
        for entry in blocks.value if place[0] == table else ():
            lines += ["", f"[[{'.'.join(place)}]]" + (f"  # {entry.origin.place}" if origin else "")]
            lines += profile_text.block(".".join(place), _block(entry))
    return lines


# list


@immutable
class _Listed:
    name: str
    selection: str
    engine: str
    schedule: str
    last: str
    """What came of the last run, in words."""
    last_run: Mapping[str, Any] | None = None
    """The same as JSON; None if there was no run."""
    problem: EndError | None = None


def listing(folder: Folder, console: Console, *, as_json: bool) -> int:
    """Show all profiles: engine, schedule, last result, selection. Return the exit code: 1 if a file is wrong."""

    def run() -> int:
        schedules = of_profiles(all_of(here()))
        found = [_listed(name, folder, schedules) for name in folder.names()]
        if not found:
            folder.require()
        for text in folder.warnings():
            console.warning(text)
        if as_json:
            console.document({"format": LIST_FORMAT, "profiles": [_listed_document(one) for one in found]})
        elif not found:
            raise folder.empty()
        else:
            _table(found, console)
        for one in found:
            if one.problem is not None:
                console.error(one.problem)
        return console.exit_code(errors.FAILED if any(one.problem for one in found) else errors.SAVED)

    return ended(run, console)


def _listed(name: str, folder: Folder, schedules: Mapping[str, str]) -> _Listed:
    schedule = schedules.get(name, "")
    try:
        # Only root's runs need to trust it.
        options = profiles.options(folder.load(name, trusted=os.geteuid() == 0), {})
    except Exception as error:
        # Not even a defect of ours keeps the others from being listed.
        return _Listed(name, "", "", schedule, "", None, errors.end_of(error))
    engine = "command" if options.command is not None else options.engine or "kopia"
    said, last = _last(name, options)
    return _Listed(name, shlex.join(options.selection_words()), engine, schedule, said, last)


def _last(name: str, options: Options) -> tuple[str, Mapping[str, Any] | None]:
    """Return what came of the last run of a profile, as far as this user may know: in words, and as JSON."""
    try:
        record = Records(options.state_dir).last_of(name)
    except Exception as error:
        unknown = {"result": "unknown", "exit_code": None, "started": None, "run_id": None}
        return f"unknown: {errors.end_of(error).message}", unknown
    if record is None:
        return "never run", None
    result = result_of(record)
    what = "another run had the root" if record.exit_code == errors.LOCKED else result
    return f"{what}, {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(record.started))}", {
        "result": result,
        "exit_code": record.exit_code,
        "started": record.started,
        "run_id": record.id,
    }


def _table(found: Sequence[_Listed], console: Console) -> None:
    heads = ("PROFILE", "ENGINE", "STARTS", "LAST RUN", "SELECTION")
    console.table(
        [
            heads,
            *(
                (one.name, one.engine or "?", one.schedule or "-", one.last or "?", one.selection or "?")
                for one in found
            ),
        ]
    )


def _listed_document(one: _Listed) -> dict[str, Any]:
    return {
        "name": one.name,
        "selection": one.selection,
        "engine": one.engine,
        "starts": one.schedule or None,
        "last_run": one.last_run,
        "error": None if one.problem is None else {"kind": one.problem.kind, "message": one.problem.message},
    }


# check


def check(
    names: Sequence[str], file: str | None, folder: Folder, console: Console, called: Invocation, *, offline: bool
) -> int:
    """Check profiles, all by default, or one file: what they say, and unless ``offline`` plan and engine. Nothing is made.

    Return the worst exit code.
    """

    def run() -> int:
        if file is not None and names:
            raise UsageError(
                "--file and names exclude each other", kind="usage", hint="--file checks one file anywhere."
            )
        if file is not None:
            path = os.path.abspath(file)
            # Offline nothing of it is acted on.
            return _check(lambda: _trusted(path, folder, offline=offline), console, called, offline=offline)
        asked = folder.some(names, everything=not names)
        for text in () if names else folder.warnings():
            console.warning(text)
        # Only root acts on a profile, and only for root does it matter who can change it.
        trusted = os.geteuid() == 0
        codes: list[int] = []
        for name in asked:
            code = _check(partial(folder.load, name, trusted=trusted), console, called, offline=offline)
            if code > errors.SIGNAL_BASE:
                # Whoever asked for the end of it waits for no other profile.
                return console.exit_code(profiles.worst([*codes, code]))
            if code not in {errors.SAVED, errors.INCOMPLETE}:
                console.result(f"{name}: NOT right, as said above")
            codes.append(code)
        _warn_of_shared_histories(folder, asked, console)
        return console.exit_code(profiles.worst(codes))

    return ended(run, console)


def _trusted(path: str, folder: Folder, *, offline: bool) -> Profile:
    """Read a file, which must be root's alone, with its bases, if root asks for more than what it says.

    Raises KopiatomicError.
    """
    acted_on = not offline and os.geteuid() == 0
    try:
        return reading.load(path, folder.require_roots_alone if acted_on else profiles.require_plain)
    except OSError as error:
        raise KopiatomicError(
            f"the profile {printable(path)} cannot be looked at: {error.strerror}",
            kind="profiles",
            hint="Look at it, and at its folder (ls -l).",
        ) from None


def _check(load: Callable[[], Profile], console: Console, called: Invocation, *, offline: bool) -> int:
    return ended(lambda: _checked(load(), console, called, offline=offline), console)


def _warn_of_others_programs(options: Options, console: Console) -> None:
    """Warn if others than root can change what the profile has root start: a schedule of it is refused."""
    path = os.environ.get("PATH", os.defpath)
    try:
        started.check(options, {"PATH": path})
    except KopiatomicError as error:
        console.warning(error.warning)


def _checked(found: Profile, console: Console, called: Invocation, *, offline: bool) -> int:
    """Check what a profile asks for. Raises KopiatomicError."""
    options = profiles.options(found, {})
    for text in outdated(all_of(here()), found, options):
        console.warning(text)
    if offline:
        created(options, credentials.plain(options.variables).values)
        console.result(f"{found.name}: the file is right (not looked at: datasets, secrets, engine, times)")
        return errors.SAVED
    require_root(
        "what a run needs is root's to look at", console.command_line, "--offline looks at the file alone. Or: "
    )
    from kopiatomic.commands.backup import check as look  # noqa: PLC0415 - it loads all that a run needs

    options = replace(options, profile=found.name)
    _warn_of_callers_secrets(options, console)
    _warn_of_others_programs(options, console)

    def reported(options: Options) -> Report:
        report = look(options, console, called)
        if isinstance(report.error, Interrupted):
            raise report.error
        return report

    def selected(options: Options) -> Report:
        # It reads no secrets, and messages of the whole profile are still to be shown.
        with console.still_hiding():
            return reported(replace(options, dry_run=True, options=""))

    report = reported(options)
    wrong = [*_wrong_around(found, console.warning), *_wrong_within(options, report, selected)]
    console.end()
    for error in wrong:
        if error.kind == "credential":
            error.hint = "Each run needs all of these values: mend it, and check again."
        console.error(error)
    for text in report.incomplete:
        console.error_text("not complete: " + text)
    if wrong:
        return profiles.worst(error.exit_code for error in wrong)
    engine = report.engine
    target = engine.target if engine is not None else None
    taken = [one.dataset.name for one in report.plan.taken] if report.plan is not None else []
    where = "" if target is None or not target.repository else f" saves to {target.repository} as {target.identity}"
    but = "; its runs end with 3, as not all is taken" if report.exit_code == errors.INCOMPLETE else ""
    console.result(
        f"{found.name}: {first_few(taken)}; {engine.name if engine is not None else 'the engine'}{where}{but}"
    )
    for writer in report.writers:
        console.result(f"  {writer.label}: {writer.text}")
    return report.exit_code


def _wrong_within(options: Options, report: Report, selected: Callable[[Options], Report]) -> list[EndError]:
    """Return what is wrong with the selection, the secrets and the engine. A run ends with the first error; a check looks on.

    ``selected`` only plans.
    """
    if report.error is None:
        return []
    wrong: list[EndError] = [report.error]
    try:
        created(options, credentials.plain(options.variables).values)
    except UsageError as error:
        wrong.append(error)
    planned = report if report.plan is not None else selected(options)
    if planned.error is not None:
        wrong.append(planned.error)
        for name in options.names:
            one = selected(replace(options, names=(name,)))
            # That nothing is left of one name is no error among all.
            if one.error is not None and one.error.kind not in {"nothing-found", "nothing-left"}:
                wrong.append(one.error)
    return list({error.message: error for error in wrong}.values())


_OF_PASSWORDS = re.compile(r"PASSWORD|PASSPHRASE|PASSCOMMAND")
"""Variables that say an engine's password, or where it is."""


def _warn_of_callers_secrets(options: Options, console: Console) -> None:
    """Warn of what the engine finds in the caller's environment alone, where no timer has it."""
    named = {source.name for source in options.variables}
    has_password = any(map(_OF_PASSWORDS.search, named))
    said = credentials.plain(options.variables).values
    where = options.repository or said.get("RESTIC_REPOSITORY") or os.environ.get("RESTIC_REPOSITORY", "")
    prefixes = _prefixes(created(replace(options, options=""), {}), where)
    alone = [
        name
        for name, value in sorted(os.environ.items())
        if name.startswith(prefixes)
        and name not in named
        and (
            (_OF_PASSWORDS.search(name) and not has_password)
            or (is_secret(name, value) and not _OF_PASSWORDS.search(name))
        )
    ]
    if alone:
        console.warning(
            f"{', '.join(alone)} of this environment {'is' if len(alone) == 1 else 'are'} not in the profile, and no timer has "
            f'it: below [engine.environment] write where it is, such as {alone[0]} = {{ file = "/root/..." }}'
        )


def _wrong_around(found: Profile, warn: Callable[[str], None]) -> Iterator[EndError]:
    """Yield what is wrong with the times and the hooks: unknown to this machine's scheduler, no shell's line, no program.

    ``warn`` is called with what need not be wrong.
    """
    looks: list[tuple[str, Origin, Callable[[], object]]] = []
    path = _path_in({name: value for (table, name), value in found.environment.items() if table == "hooks"})
    calendar = found.values.get(("schedule", "calendar"))
    if calendar is not None:
        looks.append(("calendar", calendar.origin, partial(here().calendar, found.name, calendar.value)))
    for key in ("pre_hook", "post_hook"):
        line = found.values.get(("hooks", key))
        if line is not None:
            looks.append((key, line.origin, partial(shell.check, line.value, path)))
    for moment in Moment:
        for entry in found.entries("hooks", moment.value):
            looks.append((moment.value, entry.origin, partial(_look_at_hook, entry, path)))
    for name, origin, look in looks:
        try:
            said = look()
            if isinstance(said, str) and said:
                warn(f"{origin.place}: {name} {said}")
        except UsageError as error:
            problem = Problem(f"{name} {error.message.removeprefix('--calendar ')}", origin)
            yield ProfileError([problem], hint=error.hint)
        except KopiatomicError as error:
            yield error


def _path_in(variables: Mapping[str, Value]) -> str | None:
    """Return the PATH among the variables of hooks; None if it is not among them, or not in the file."""
    found = variables.get("PATH")
    return found.value if found is not None and isinstance(found.value, str) else None


def _look_at_hook(entry: Entry, path: str | None) -> str:
    """Refuse a hook that cannot be started; return what need not be wrong, as it follows the hook's name.

    ``path`` is the PATH of all hooks. Raises UsageError, whose message follows the hook's name.
    """
    line, path = entry.value("shell"), _path_in(entry.environment) or path
    said = ""
    if line is not None:
        said = shell.check(line, path)
    else:
        shell.check_program(shlex.split(entry.value("command"))[0], path)
    user = entry.value("user")
    if user is not None and accounts.find(user) is None:
        raise UsageError(
            f"runs as {printable(user)}, and there is no such user", kind="no-such-user", hint="See: getent passwd"
        )
    return said


def _warn_of_shared_histories(folder: Folder, asked: Sequence[str], console: Console) -> None:
    """Warn of profiles that share the root of their view, or in place their selection, and with it their history."""
    sharing: dict[str, list[str]] = {}
    for name in folder.names():
        try:
            found = folder.load(name, trusted=False)
            root, options = _root(found), profiles.options(found, {})
            real = "" if root is None else roots.resolve(root)
        except Interrupted:
            raise
        except Exception:  # noqa: S112 - it is said where that profile itself is checked
            continue
        if real:
            what = f"the root {printable(real)}"
        elif (options.engine or "kopia") != "kopia" or options.command is not None:
            # Other engines have no history of a path.
            continue
        else:
            what = f"the selection {printable(shlex.join(options.selection_words()))}"
        sharing.setdefault(what, []).append(name)
    for what, names in sharing.items():
        if len(names) > 1 and not set(names).isdisjoint(asked):
            console.warning(
                f"{', '.join(names)} share {what}: only one of them can run at a time, and in one repository kopia takes what "
                "one run leaves out for deleted; for views of their own, give them different names under [view]"
            )
