"""A password stays where the user put it: no process that we start shows it, and nothing that is kept has it."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.btrfs.conftest import Gate
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopia, Kopiatomic, command
from tests.support.without_root import as_nobody

pytestmark = pytest.mark.in_part(4)

Run = Callable[..., Completed]
FORMS = ["--password={}", "--password {}", "-p {}", "-p{}"]


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    (btrfs.subvolume("data") / "file").write_text("x")
    return btrfs.mountpoint / "data"


@pytest.fixture
def password() -> str:
    """What is looked for afterwards."""
    return secrets.token_hex(16)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def protected(kopia: Kopia, password: str) -> Kopia:
    """A repository with that password, which its `environment` does not have."""
    kopia("repository", "change-password", "--new-password", password)
    return replace(kopia, environment={k: v for k, v in kopia.environment.items() if k != "KOPIA_PASSWORD"})


def values(state: Path) -> Iterator[bytes]:
    """Every value in the state database, and what is packed in it unpacked."""
    database = sqlite3.connect(state / "state.db")
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        for row in database.execute(f"SELECT * FROM {table}"):
            for value in row:
                content = value if isinstance(value, bytes) else str(value).encode()
                yield content
                try:
                    yield zlib.decompress(content)
                except zlib.error:
                    continue
    database.close()


def places_of(secret: str, folder: Path, *texts: str) -> list[str]:
    """Where a secret is: files below a folder, values of the state database in it, and texts."""
    found = [str(path) for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    kept = list(values(folder / "state"))
    assert any(b"kopiatomic" in value for value in kept)
    found += [f"database: {value!r}" for value in kept if secret.encode() in value]
    return found + [text for text in texts if secret in text]


def told(kopiatomic: Kopiatomic, state: Path) -> list[str]:
    """All that can be asked of the record afterwards."""
    listed = kopiatomic("history", "--json", env=where(state))
    (newest,) = json.loads(listed.stdout)["runs"]
    answers = [listed, kopiatomic("history", "--state-dir", state)]
    answers += [kopiatomic("history", newest["run_id"], *words, env=where(state)) for words in ((), ("--json",))]
    answers.append(kopiatomic("recover", "--json", env=where(state)))
    for answer in answers:
        assert answer.returncode == 0, str(answer)
    return [answer.stdout + answer.stderr for answer in answers]


def where(state: Path) -> dict[str, str]:
    return {"KOPIATOMIC_STATE_DIR": str(state)}


@pytest.mark.in_part(3)
@pytest.mark.parametrize("form", FORMS)
def test_a_password_in_the_options_is_nowhere_else(
    form: str,
    data: Path,
    root: Path,
    protected: Kopia,
    kopiatomic: Kopiatomic,
    password: str,
    state: Path,
    tmp_path: Path,
) -> None:
    """It wins over the one in KOPIA_PASSWORD, which is not shown either."""
    other = secrets.token_hex(16)
    log = tmp_path / "strace"
    hook = f"env >> {tmp_path}/hooks; cp -r /run/kopiatomic {tmp_path}/locks || true"
    words = ["--json", "--mount-root", str(root), "-p", hook, "-q", hook, "-o", form.format(password), str(data)]
    argv = ["strace", "-f", "-qq", "-s", "100000", "-e", "trace=execve,execveat", "-o", str(log)]
    environment = {**kopiatomic.environment, **protected.environment, **where(state), "KOPIA_PASSWORD": other}
    ended = command(*argv, *kopiatomic.argv(*words), env=environment, check=False)
    assert ended.returncode == 0, str(ended)
    assert "a password in -o can be read by every local user" in ended.stderr
    typed, *started = log.read_text().splitlines()
    log.unlink()
    assert password in typed
    assert any('"snapshot", "create"' in line for line in started)
    assert "KOPIATOMIC_RUN_ID" in (tmp_path / "hooks").read_text()
    assert "KOPIATOMIC_RESULT=saved" in (tmp_path / "hooks").read_text()
    for secret in (password, other):
        assert [line for line in started if secret in line] == []
        assert places_of(secret, tmp_path, ended.stdout, ended.stderr, *told(kopiatomic, state)) == []


@pytest.mark.in_part(1)
@pytest.mark.parametrize("form", FORMS[::3])
def test_a_wrong_password_is_not_shown_either(
    form: str, data: Path, run: Run, protected: Kopia, kopiatomic: Kopiatomic, state: Path, tmp_path: Path
) -> None:
    wrong = secrets.token_hex(16)
    ended = run("-o", form.format(wrong), data, env={**protected.environment, **where(state)})
    assert ended.returncode == 1
    assert places_of(wrong, tmp_path, ended.stdout, ended.stderr, *told(kopiatomic, state)) == []


def test_quotes_in_a_password_do_not_uncover_a_part_of_it(
    data: Path, run: Run, kopia: Kopia, kopiatomic: Kopiatomic, state: Path, tmp_path: Path
) -> None:
    parts = [secrets.token_hex(8) for _ in range(4)]
    odd = "{} {}'{}\"{}".format(*parts)
    for form, quoted in (("--password={}", shlex.quote(odd)), ("-p {}", re.sub(r"(\W)", r"\\\1", odd))):
        assert odd in shlex.split(form.format(quoted))[-1]
        ended = run("-o", form.format(quoted), data, env={**kopia.environment, **where(state)})
        assert ended.returncode == 1
        for part in parts:
            assert places_of(part, tmp_path, ended.stdout, ended.stderr) == []


COMMAND_FORMS = ["--password={}", "--password {}", "--api-token={}", "--secret-key {}", "--passphrase={}"]


@pytest.mark.in_part(3)
@pytest.mark.parametrize("form", COMMAND_FORMS)
@pytest.mark.parametrize("flag", ["-c", "-o"])
def test_a_secret_of_a_command_reaches_it_and_no_record(
    flag: str, form: str, data: Path, run: Run, kopiatomic: Kopiatomic, password: str, state: Path, tmp_path: Path
) -> None:
    """A command must be given it in its arguments, because we do not know its environment."""
    got = tmp_path / "got"
    engine = tmp_path / "engine"
    engine.write_text(f'echo "$@" > {got}\n')
    secret = form.format(password)
    words = ["-c", f"sh {engine} {secret}"] if flag == "-c" else ["-c", f"sh {engine}", "-o", secret]
    ended = run("--json", *words, data, env=where(state))
    assert ended.returncode == 0, str(ended)
    assert secret in got.read_text()
    got.unlink()
    assert places_of(password, tmp_path, ended.stdout, ended.stderr, *told(kopiatomic, state)) == []


def test_who_is_refused_is_not_told_the_holders_password(
    data: Path, root: Path, gate: Gate, run: Run, kopiatomic: Kopiatomic, password: str, state: Path
) -> None:
    words = ("--mount-root", root, "-c", gate.command, "-o", f"--password={password}", data)
    with kopiatomic.started(*words, env=where(state)) as process:
        gate.wait()
        refused = run("-c", "true", data, env=where(state))
        shown = [path.read_bytes() for path in Path("/run/kopiatomic").iterdir()]
        gate.let_go()
        process.communicate(timeout=20)
    assert refused.returncode == 75
    assert "--password=" in refused.stderr
    assert password not in refused.stderr
    assert [content for content in shown if password.encode() in content] == []


@pytest.mark.in_part(3)
@pytest.mark.parametrize("form", FORMS)
def test_an_error_does_not_repeat_a_password(form: str, data: Path, kopiatomic: Kopiatomic, password: str) -> None:
    """Neither that of a user who is not root, who is told what to type, nor that of unbalanced quotes."""
    secret = form.format(password)
    as_user = command(*as_nobody(*kopiatomic.argv("-o", secret, data)), env=kopiatomic.environment, check=False)
    assert (as_user.returncode, "sudo kopiatomic" in as_user.stderr) == (1, True)
    assert password not in as_user.stderr
    for flag in ("-o", "-c"):
        unbalanced = kopiatomic(flag, shlex.quote(secret)[:-1] + ' "', data)
        assert unbalanced.returncode == 2
        assert password not in unbalanced.stderr + unbalanced.stdout


@pytest.mark.in_part(2)
@pytest.mark.parametrize("form", COMMAND_FORMS)
def test_a_dry_run_does_not_show_a_commands_secret(
    form: str, data: Path, kopiatomic: Kopiatomic, password: str
) -> None:
    for words in ((), ("--json",)):
        shown = kopiatomic("-n", *words, "-c", f"true {form.format(password)}", data)
        assert shown.returncode == 0
        assert password not in shown.stdout + shown.stderr


@pytest.mark.parametrize("engine", ["borg", "restic"])
def test_the_password_in_a_repositorys_url_is_shown_nowhere(
    engine: str, data: Path, run: Run, kopiatomic: Kopiatomic, password: str, state: Path, tmp_path: Path
) -> None:
    """Neither in an engine's own words, nor in ours; a password of two letters is masked in its place."""
    for secret, words in ((password, ["--json"]), ("pw", ["--repository"])):
        where_to = (
            f"ssh://me:{secret}@localhost:1/repo" if engine == "borg" else f"rest:http://me:{secret}@localhost:1/"
        )
        environment = {**where(state), "BORG_REPO": where_to, "RESTIC_REPOSITORY": where_to, "RESTIC_PASSWORD": "of it"}
        shutil.rmtree(state, ignore_errors=True)
        more = [where_to] if words == ["--repository"] else []
        ended = run("--engine", engine, *words, *more, data, env=environment)
        assert ended.returncode == 1
        assert engine in ended.stderr
        assert places_of(f":{secret}@", tmp_path, ended.stdout, ended.stderr, *told(kopiatomic, state)) == []


def test_another_user_does_not_get_the_callers_secrets(
    data: Path, kopiatomic: Kopiatomic, password: str, state: Path
) -> None:
    secret = {"B2_ACCOUNT_KEY": password, "BORG_REPO": f"ssh://me:{password}@host/", "NOTE": f"{password} it is"}
    environment = {**secret, "RESTIC_PASSWORD_FILE": "/root/restic.pw", **where(state)}
    for user, expected in (("games", 0), ("root", 0), (None, 3)):
        words = ("--user", user) if user else ()
        ended = kopiatomic("exec", *words, data, "--", "env", env=environment)
        assert ended.returncode == 0, str(ended)
        assert ended.stdout.count(password) == expected
        assert "RESTIC_PASSWORD_FILE=/root/restic.pw" in ended.stdout
