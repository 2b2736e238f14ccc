"""What a service manager hands over as files is in the environment of the engine, and of nothing else."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from kopiatomic.commands import backup as run
from kopiatomic.config import credentials
from kopiatomic.config.invocation import Invocation
from kopiatomic.config.options import Options
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.engine import EngineEnd
from kopiatomic.model.plan import Layout, Plan
from kopiatomic.model.report import Report
from kopiatomic.output.console import Console
from kopiatomic.platforms.steps import View
from kopiatomic.runs import freezing, selecting
from kopiatomic.runs.freezing import Frozen
from kopiatomic.runs.launcher import Checked, Start
from kopiatomic.runs.streams import Streams
from kopiatomic.secrets.source import Source
from kopiatomic.state.records import Records
from kopiatomic.system import process
from tests.unit.support.kopia_fixtures import make_job, taken

PASSWORD = "wet paint, dry hat"  # noqa: S105


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as systemd makes it for a unit with LoadCredential=."""
    made = tmp_path / "credentials"
    made.mkdir(0o700)
    (made / "KOPIA_PASSWORD").write_text(f"{PASSWORD}\n")
    (made / "database.pw").write_text("for somebody else")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(made))
    return made


def test_without_a_service_manager_there_are_none() -> None:
    assert credentials.handed("") == {}


def test_those_that_are_named_like_a_variable_are_taken_without_their_newline(folder: Path) -> None:
    (folder / "RESTIC_PASSWORD").write_bytes(b"caf\xe9\n\n")
    found = credentials.handed(str(folder))
    assert found == {"KOPIA_PASSWORD": PASSWORD, "RESTIC_PASSWORD": os.fsdecode(b"caf\xe9\n")}


def test_one_that_cannot_be_read_is_said_before_anything_is_made(folder: Path) -> None:
    (folder / "KOPIA_PASSWORD").write_bytes(b"a\0b")
    for wanted in ("NUL", "No such file"):
        with pytest.raises(KopiatomicError) as caught:
            credentials.handed(str(folder))
        assert caught.value.kind == "credential"
        assert wanted in caught.value.message
        (folder / "KOPIA_PASSWORD").unlink()
        (folder / "KOPIA_PASSWORD").symlink_to("nowhere")


class _Supervisor:
    """Starts the engine as it is told. In place of the real one, which needs a filesystem to freeze."""

    def run(self, start: Start, _streams: Streams, _stop_timeout: float) -> Checked:
        environment = {**start.environment, **start.command.environment}
        finished = process.run(start.command.argv, timeout=60, environment=environment)
        return Checked(EngineEnd(finished.status, stopped=False), ())


@pytest.fixture
def back_up(tmp_path: Path, lock_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    """A backup of a folder, with all that it does but freezing and mounting it."""
    source = tmp_path / "source"
    source.mkdir()
    plan = Plan(str(source), (taken("/"),), layout=Layout.MERGED)
    job = make_job(plan)

    @contextmanager
    def view(this: freezing.Session, *_: object) -> Iterator[Frozen]:
        this._report.sets = job.sets
        yield Frozen(_Supervisor(), job.sets, View(tuple(job.mounted), tuple(job.filled), ()))  # type: ignore[arg-type]

    monkeypatch.setattr(selecting.Selecting, "select", lambda _: plan)
    monkeypatch.setattr(freezing.Session, "check", lambda *_: None)
    monkeypatch.setattr(freezing.Session, "view", view)

    def back_up(called: Invocation = Invocation(), **options: str) -> Report:  # noqa: B008 - immutable
        wanted = Options(names=("tank",), state_dir=str(tmp_path / "state"), **options)  # type: ignore[arg-type]
        return run.backup(wanted, Console(quiet=True), called)

    return back_up


def environment_of(path: Path) -> Mapping[str, str]:
    found: Mapping[str, str] = json.loads(path.read_text())
    return found


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """A program that writes its environment into the file that its first word names."""
    program = tmp_path / "dump"
    program.write_text(
        '#!/usr/bin/python3\nimport json, os, sys\njson.dump(dict(os.environ), open(sys.argv[1], "w"))\n'
    )
    program.chmod(0o755)
    return program


@pytest.mark.usefixtures("folder")
@pytest.mark.skipif(os.geteuid() != 0, reason="a backup is root's")
def test_the_engine_has_them_and_hooks_and_our_own_environment_have_not(
    dump: Path, back_up: Callable[..., Report], tmp_path: Path
) -> None:
    hooks = {f"{name}_hook": f"{dump} {tmp_path / name}" for name in ("pre", "post")}
    report = back_up(command=f"{dump} {tmp_path / 'engine'}", **hooks)
    assert report.error is None, report.error.message
    assert report.exit_code == 0
    assert environment_of(tmp_path / "engine")["KOPIA_PASSWORD"] == PASSWORD
    for name in ("pre", "post"):
        assert environment_of(tmp_path / name)["KOPIATOMIC_RUN_ID"] == report.run_id
        assert PASSWORD not in (tmp_path / name).read_text()
        assert "CREDENTIALS_DIRECTORY" not in environment_of(tmp_path / name)
    assert PASSWORD not in os.environ.values()


@pytest.mark.usefixtures("folder")
@pytest.mark.skipif(os.geteuid() != 0, reason="a backup is root's")
def test_they_are_masked_where_they_would_be_shown_or_kept(
    dump: Path, back_up: Callable[..., Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = Invocation(words=("-c", f"{dump} {PASSWORD}", "tank"))
    report = back_up(called, command=f"{dump} '{tmp_path}/{PASSWORD}'")
    assert report.engine is not None
    assert report.engine.argv
    assert PASSWORD not in str(report.engine.argv)
    (kept,) = Records(str(tmp_path / "state")).history(1)
    assert kept.command.startswith("kopiatomic -c")
    assert PASSWORD not in kept.command + json.dumps(kept.document)


# What a profile says of where a value is


def source(form: str, value: str | tuple[str, ...]) -> Source:
    return Source("RESTIC_PASSWORD", form, value, "home.toml:3:1")


@pytest.fixture
def safe_folder() -> Iterator[Path]:
    """A folder that root alone can change, as all above it: pytest's are below /tmp."""
    with tempfile.TemporaryDirectory(dir="/run") as folder:
        yield Path(folder)


def refused(form: str, value: str | tuple[str, ...], folder: str = "") -> str:
    with pytest.raises(KopiatomicError) as caught:
        credentials.resolve([source(form, value)], folder)
    assert caught.value.kind == "credential"
    assert caught.value.message.startswith("home.toml:3:1: the value of RESTIC_PASSWORD cannot be had: ")
    assert PASSWORD not in caught.value.message
    return caught.value.message


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away is root's")
def test_a_file_of_a_secret_is_roots_alone(safe_folder: Path, tmp_path: Path) -> None:
    path = safe_folder / "pw"
    assert "No such file" in refused("file", str(path))
    path.touch(0o600)
    assert "it is empty" in refused("file", str(path))
    path.write_text(f"{PASSWORD}\n")
    assert credentials.resolve([source("file", str(path))], "").values == {"RESTIC_PASSWORD": PASSWORD}
    path.chmod(0o640)
    # Others may be meant to read it, as they are /etc/passwd.
    told = refused("file", str(path))
    assert told.endswith("put the secret into a new file that root alone can read (mode 600), and name that")
    assert "chmod" not in refused("file", "/etc/passwd")
    path.chmod(0o600)
    os.chown(path, 12345, -1)
    assert "others than root can read or change" in refused("file", str(path))
    os.chown(path, 0, -1)
    safe_folder.chmod(0o777)
    assert "can be replaced: " in refused("file", str(path))
    safe_folder.chmod(0o700)
    (safe_folder / "link").symlink_to(path)
    refused("file", str(safe_folder / "link"))
    os.mkfifo(safe_folder / "pipe")
    assert "is not a file" in refused("file", str(safe_folder / "pipe"))
    path.write_bytes(b"a\0b")
    assert "NUL" in refused("file", str(path))
    path.write_bytes(b"a" * (200 << 10))
    assert "larger than 128 KiB" in refused("file", str(path))


def test_a_command_prints_it_or_the_run_ends(tmp_path: Path) -> None:
    assert credentials.resolve([source("command", ("echo", PASSWORD))], "").values == {"RESTIC_PASSWORD": PASSWORD}
    assert credentials.resolve([source("command", ("printf", "a\n\n"))], "").values == {"RESTIC_PASSWORD": "a\n"}
    assert "it is empty" in refused("command", ("true",))
    assert "failed (status 3)" in refused("command", ("sh", "-c", f"echo {PASSWORD} >&2; exit 3"))
    assert "cannot be started" in refused("command", (str(tmp_path / "none"),))


@pytest.mark.skipif(os.geteuid() != 0, reason="it is about what root starts")
@pytest.mark.parametrize("named", ["by path", "on PATH"])
def test_a_command_that_others_can_exchange_is_not_started(
    named: str, safe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, program = safe_folder / "ran", safe_folder / "getpw"
    program.write_text(f"#!/bin/sh\ntouch {ran}\necho {PASSWORD}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(safe_folder), prepend=":")
    command = (str(program) if named == "by path" else "getpw",)
    assert credentials.resolve([source("command", command)], "").values == {"RESTIC_PASSWORD": PASSWORD}
    ran.unlink()
    os.chown(program, 12345, 0)
    assert f"user 12345 can write to {program}" in refused("command", command)
    assert not ran.exists()


def test_a_credential_is_the_units_or_systemds(
    folder: Path, safe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "restic").write_text(f"{PASSWORD}\n")
    found = credentials.resolve([source("credential", "restic")], str(folder))
    assert (found.values, list(found.secrets)) == ({"RESTIC_PASSWORD": PASSWORD}, [PASSWORD])
    assert "there is no credential other" in refused("credential", "other", str(folder))
    monkeypatch.setattr(credentials, "_STORE", str(safe_folder))
    (safe_folder / "other").touch(0o600)
    (safe_folder / "other").write_text("of the store")
    assert credentials.resolve([source("credential", "other")], "").values == {"RESTIC_PASSWORD": "of the store"}


def test_all_that_cannot_be_had_is_said_at_once() -> None:
    sources = [
        Source("ONE", "command", ("false",), "home.toml:4:1"),
        Source("TWO", "command", ("echo", "x"), "home.toml:5:1"),
        Source("THREE", "credential", "none", "home.toml:6:1"),
    ]
    with pytest.raises(KopiatomicError) as caught:
        credentials.resolve(sources, "")
    first, second = caught.value.message.split("\n")
    assert first == "home.toml:4:1: the value of ONE cannot be had: false failed (status 1)"
    assert second.startswith("home.toml:6:1: the value of THREE cannot be had: there is no credential none")


def test_a_dry_run_reads_and_starts_nothing(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    sources = [source("command", ("touch", str(touched))), Source("PLAIN", "text", "x", "home.toml:4:1")]
    assert credentials.plain(sources).values == {"PLAIN": "x"}
    assert not touched.exists()
