"""Before anything is made: is kopia there, new enough, connected, reachable, and able to store this plan."""

from __future__ import annotations

import getpass
import os
import pwd
import re
import shutil
import socket
import time
from pathlib import Path

import pytest

from kopiatomic import engines
from kopiatomic.engines import program
from kopiatomic.engines.engine import Remembering
from kopiatomic.engines.kopia import location
from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.model.plan import Layout, Plan
from kopiatomic.state import locks
from kopiatomic.text import printable
from tests.support.small_disk import on_small_disk
from tests.unit.support.kopia_fixtures import PASSWORD, Bench, holding, taken

pytestmark = pytest.mark.in_part(32)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.connect()
    return bench


def error_of(
    bench: Bench, *options: str, plan: Plan | None = None, invoking_user: str | None = None
) -> KopiatomicError:
    """The error of a check. It is one message with something to do, and no secret in it."""
    with pytest.raises(KopiatomicError) as caught:
        bench.engine(*options, invoking_user=invoking_user).check(plan or bench.plan("/a"))
    error = caught.value
    assert error.exit_code == 1
    assert error.hint
    assert PASSWORD not in error.message + error.hint
    assert "\n" not in error.message + error.hint
    return error


def test_a_good_kopia_has_nothing_to_warn_of_and_a_version(bench: Bench) -> None:
    engine = bench.engine()
    assert engine.name == "kopia"
    found = engine.check(bench.plan("/a", "/b/c"))
    assert found.warnings == ()
    assert engine.remembers == isinstance(found, Remembering)
    assert str(found.version)[0].isdigit()


def test_repository_and_identity_are_known_after_the_check(bench: Bench) -> None:
    found = bench.engine().check(bench.plan("/a"))
    assert found.target.identity == f"{getpass.getuser()}@{socket.gethostname().lower()}"
    assert re.fullmatch(
        rf"filesystem {re.escape(str(bench.repository))} \(id [0-9a-f]{{12}}\)", found.target.repository
    )


def test_no_password_is_in_the_name_of_a_repository() -> None:
    webdav = {"type": "webdav", "config": {"url": "https://me:hush@host/dav", "password": "hush"}}
    assert location.storage({"storage": webdav, "uniqueIDHex": "0123456789abcdef"}) == (
        "webdav https://me:***@host/dav (id 0123456789ab)"
    )


def test_an_option_that_kopia_has_not_is_refused_before_anything_is_made(bench: Bench) -> None:
    with pytest.raises(
        UsageError, match="kopia refuses what -o gives it: unknown long flag '--no-such-option'"
    ) as caught:
        bench.engine("--parallel=2", "--no-such-option").check(bench.plan("/a"))
    assert caught.value.kind == "engine-option"
    assert bench.engine("--parallel=2").check(bench.plan("/a")).warnings == ()


def test_kopia_missing(bench: Bench) -> None:
    del bench.environment["KOPIATOMIC_KOPIA"]
    bench.environment["PATH"] = str(bench.home)
    error = error_of(bench)
    assert error.kind == "kopia-missing"
    assert "'kopia'" in error.message
    assert "KOPIATOMIC_KOPIA" in str(error.hint)


def test_kopia_is_found_on_path(bench: Bench) -> None:
    del bench.environment["KOPIATOMIC_KOPIA"]
    (bench.base / "bin").mkdir()
    (bench.base / "bin" / "kopia").symlink_to(bench.program)
    bench.environment["PATH"] = f"{bench.base}/bin"
    assert bench.engine().check(bench.plan("/a")).warnings == ()


def test_the_kopia_that_was_named_is_missing(bench: Bench) -> None:
    bench.environment["KOPIATOMIC_KOPIA"] = "/no/such/kopia"
    error = error_of(bench)
    assert error.kind == "kopia-missing"
    assert "/no/such/kopia" in error.message


def test_kopia_not_executable(bench: Bench) -> None:
    bench.fake("exit 0")
    (bench.base / "fake-kopia").chmod(0o644)
    assert error_of(bench).kind == "kopia-not-executable"


def test_kopia_of_another_machine(bench: Bench) -> None:
    """A file with the right permissions that the system cannot run."""
    bench.fake("exit 0")
    (bench.base / "fake-kopia").write_bytes(b"\x7fELF\x00junk")
    error = error_of(bench)
    assert error.kind == "kopia-not-executable"
    assert "Exec format error" in error.message


def test_kopia_too_old(bench: Bench) -> None:
    """A fake: only its version matters."""
    bench.fake("echo 'v0.12.1 build: x from: kopia/kopia'")
    error = error_of(bench)
    assert error.kind == "kopia-too-old"
    assert "0.12.1" in error.message
    assert "0.13.0" in error.message


@pytest.mark.parametrize("version", ["0.13.0", "v0.22.3", "0.100.0", "1.0.0", "20240102.0.133245"])
def test_versions_that_are_new_enough(bench: Bench, version: str) -> None:
    """A fake that answers the question for its version and is the real kopia else."""
    bench.fake(f'[ "$1" = --version ] && {{ echo "{version} build: x from: y"; exit; }}; exec "$KOPIA" "$@"')
    found = bench.engine().check(bench.plan("/a"))
    assert found.warnings == ()
    assert found.version == version.removeprefix("v")


def test_a_version_that_says_nothing_is_a_warning(bench: Bench) -> None:
    """A fake: kopia built as a Go module said this up to 0.21."""
    bench.fake('[ "$1" = --version ] && { echo "v0-unofficial build: unknown from: "; exit; }; exec "$KOPIA" "$@"')
    (warning,) = bench.engine().check(bench.plan("/a")).warnings
    assert "v0-unofficial" in warning


def test_not_connected_names_the_file_that_was_looked_at(bench: Bench) -> None:
    bench.config.unlink()
    error = error_of(bench)
    assert error.kind == "kopia-not-connected"
    assert f"{bench.config} (HOME)" in error.message
    assert "kopia repository connect" in str(error.hint)


@pytest.mark.parametrize(
    ("environment", "options", "path"),
    [
        ({"XDG_CONFIG_HOME": "{base}/xdg"}, [], "{base}/xdg/kopia/repository.config (XDG_CONFIG_HOME)"),
        ({"KOPIA_CONFIG_PATH": "{base}/own"}, [], "{base}/own (KOPIA_CONFIG_PATH)"),
        ({"KOPIA_CONFIG_PATH": "b.config"}, [], "{base}/home/.config/kopia/b.config (KOPIA_CONFIG_PATH, HOME)"),
        ({"KOPIA_CONFIG_PATH": "/x"}, ["--config-file={base}/o"], "{base}/o (-o --config-file)"),
        ({}, ["--config-file", "c.config"], "{base}/home/.config/kopia/c.config (-o --config-file, HOME)"),
    ],
)
def test_the_configuration_is_looked_for_where_kopia_does(
    bench: Bench, environment: dict[str, str], options: list[str], path: str
) -> None:
    bench.environment.update({k: v.format(base=bench.base) for k, v in environment.items()})
    words = [o.format(base=bench.base) for o in options]
    expected = path.format(base=bench.base)
    assert expected in error_of(bench, *words).message
    target = Path(expected.partition(" (")[0])
    target.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", ".kopia-password"):
        shutil.copy(f"{bench.config}{suffix}", f"{target}{suffix}")
    bench.config.unlink()
    assert bench.engine(*words).check(bench.plan("/a")).warnings == ()


def test_without_home_the_users_home_directory_is_taken(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a systemd unit. The test may not write into the real home directory, so that it changes the users' table."""
    del bench.environment["HOME"]
    entry = pwd.getpwuid(os.geteuid())
    changed = pwd.struct_passwd((*entry[:5], str(bench.home), entry[6]))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: changed)
    monkeypatch.chdir(bench.base)
    engine = bench.engine()
    assert engine.check(bench.plan("/a")).warnings == ()
    assert not (bench.base / ".cache").exists()
    bench.config.unlink()
    error = error_of(bench)
    assert str(bench.config) in error.message
    assert "HOME is not set" in error.message


def test_the_configuration_of_the_user_who_called_sudo_is_pointed_at(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = bench.base / "their home"
    shutil.copytree(bench.config.parent, other / ".config" / "kopia")
    shutil.rmtree(bench.home)
    entry = pwd.getpwuid(os.geteuid())
    changed = pwd.struct_passwd((*entry[:5], str(other), entry[6]))
    monkeypatch.setattr(pwd, "getpwnam", lambda _: changed)
    hint = str(error_of(bench, invoking_user="alice").hint)
    path = f"{other}/.config/kopia/repository.config"
    assert "alice" in hint
    assert f"KOPIA_CONFIG_PATH='{path}'" in hint
    assert "alice" not in str(error_of(bench, invoking_user=None).hint)
    # The hint, typed as -o's value, is understood.
    assert bench.engine(f"--config-file={path}").check(bench.plan("/a")).warnings == ()


def test_an_unknown_invoking_user_does_no_harm(bench: Bench) -> None:
    bench.config.unlink()
    assert error_of(bench, invoking_user="no-such-user-here").kind == "kopia-not-connected"


def test_sudo_is_seen_in_the_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**bench.environment, "SUDO_USER": getpass.getuser(), "HOME": "/nonexistent"}
    shutil.copytree(bench.config.parent, bench.base / "u" / ".config" / "kopia")
    entry = pwd.getpwuid(os.geteuid())
    changed = pwd.struct_passwd((*entry[:5], str(bench.base / "u"), entry[6]))
    monkeypatch.setattr(pwd, "getpwnam", lambda _: changed)
    with pytest.raises(KopiatomicError) as caught:
        engines.create(None, [], environment=environment).check(bench.plan("/a"))
    assert f"{bench.base}/u/.config" in str(caught.value.hint)


def test_wrong_password(bench: Bench) -> None:
    bench.environment["KOPIA_PASSWORD"] = "wrong"  # noqa: S105
    error = error_of(bench)
    assert error.kind == "kopia-wrong-password"
    assert "KOPIA_PASSWORD" in str(error.hint)


def test_wrong_password_in_the_options(bench: Bench) -> None:
    error = error_of(bench, "--password", "wrong")
    assert error.kind == "kopia-wrong-password"
    assert "-o" in str(error.hint)


def test_password_missing(bench: Bench) -> None:
    Path(f"{bench.config}.kopia-password").unlink()
    error = error_of(bench)
    assert error.kind == "kopia-password-missing"
    assert "KOPIA_PASSWORD" in str(error.hint)
    assert bench.engine("-p", PASSWORD).check(bench.plan("/a")).warnings == ()


def test_a_repository_whose_folder_is_gone(bench: Bench) -> None:
    bench.repository.rename(bench.base / "elsewhere")
    error = error_of(bench)
    assert error.kind == "kopia-unreachable"
    assert str(bench.repository) in error.message


def test_a_repository_server_that_is_down(bench: Bench) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{unused.getsockname()[1]}"
        bench.config.write_text(
            f'{{"apiServer":{{"url":"{url}","serverCertFingerprint":"{"0" * 64}"}},'
            f'"caching":{{"cacheDirectory":"{bench.base}/cache"}},"hostname":"h","username":"u"}}'
        )
        error = error_of(bench)
    assert error.kind == "kopia-unreachable"


def test_a_repository_that_does_not_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake that hangs on everything but its version, with a short limit."""
    bench.fake('[ "$1" = --version ] && exec "$KOPIA" "$@"; sleep 60')
    monkeypatch.setattr(program, "TIME_LIMIT", 1.0)
    start = time.monotonic()
    error = error_of(bench)
    assert time.monotonic() - start < 20
    assert error.kind == "kopia-unreachable"
    assert "1 s" in error.message


def test_a_configuration_that_cannot_be_read(bench: Bench) -> None:
    bench.config.write_text("{nonsense")
    error = error_of(bench)
    assert error.kind == "kopia-not-connected"
    assert str(bench.config) in error.message


def test_any_other_failure_has_kopias_last_line(bench: Bench) -> None:
    """A fake that fails as kopia does."""
    bench.fake(
        '[ "$1" = --version ] && exec "$KOPIA" "$@"; echo first >&2; printf "ERROR the \\033[1mreason\\n" >&2; exit 7'
    )
    error = error_of(bench)
    assert error.kind == "kopia-failed"
    assert error.message == "kopia failed (exit status 7): the \\x1b[1mreason"


def test_an_answer_that_is_no_json(bench: Bench) -> None:
    """A fake: another program of that name, say."""
    bench.fake('[ "$1" = --version ] && exec "$KOPIA" "$@"; echo "hello"')
    error = error_of(bench)
    assert error.kind == "kopia-failed"
    assert "hello" in error.message


@pytest.mark.parametrize(
    ("place", "words"),
    [
        pytest.param(os.fsdecode(b"/a/b\xff"), "names that are not UTF-8", id="not UTF-8"),
        pytest.param("/a/b.kopia-entry/c", "folders named *.kopia-entry", id="its placeholder"),
    ],
)
def test_what_has_a_name_that_kopia_cannot_store_is_refused_and_nothing_else(
    place: str, words: str, bench: Bench
) -> None:
    plan = bench.plan("/a", taken(place, name="tank/odd", mountpoint=place))
    (refusal,) = bench.engine().refuses(plan)
    assert (refusal.dataset.name, refusal.kind) == ("tank/odd", "name-not-storable")
    assert refusal.reason == f"kopia cannot store {words}, and it would appear at {printable(plan.path(place))}"


def test_odd_names_that_kopia_can_store_are_accepted(bench: Bench) -> None:
    plan = bench.plan("/a b", "/a b/-x\n\ty\\", "/ä/%41", "/kopia-entry")
    assert bench.engine().refuses(plan) == []
    assert bench.engine().check(plan).warnings == ()


def test_a_repository_in_the_selection_that_the_user_named_is_a_warning(bench: Bench) -> None:
    (bench.base / "link").symlink_to(bench.repository)
    bench.config.write_text(bench.config.read_text().replace(str(bench.repository), f"{bench.base}/link"))
    warnings = bench.engine().check(bench.plan("/b", holding(bench.base, "/a"))).warnings
    (warning,) = [w for w in warnings if w.startswith("kopia's repository")]
    assert f"lies on {holding(bench.base, '/a').dataset.name}, which" in warning
    assert f"{bench.base}/link" in warning


def test_a_repository_in_the_selection_that_a_or_r_brought_in_is_an_error(bench: Bench) -> None:
    plan = bench.plan("/b", holding(bench.base, "/a", named=False))
    error = error_of(bench, plan=plan)
    assert error.kind == "repository-in-selection"
    assert f"lies on {holding(bench.base, '/a').dataset.name}, which" in error.message


def test_a_repository_on_another_filesystem_is_no_concern(bench: Bench) -> None:
    plan = bench.plan(taken("/proc", mountpoint="/proc", named=False), taken("/sys", mountpoint="/sys", named=False))
    assert bench.engine().check(plan).warnings == ()


def test_where_the_views_lie_in_a_source_a_policy_has_to_heed_what_keeps_them_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan("/srv/run/kopiatomic/view-x", (taken("/srv"),), layout=Layout.IN_PLACE)
    bench.kopia("policy", "set", "/srv/run", "--add-dot-ignore=.other")
    assert bench.engine().check(plan).warnings == ()
    monkeypatch.setattr(locks, "DIRECTORY", "/srv/run/kopiatomic")
    error = error_of(bench, plan=plan)
    assert error.kind == "ignore-rules"
    assert "in /srv/run/kopiatomic, which would be in the backup of /srv" in error.message
    bench.kopia("policy", "set", "/srv/run", "--add-dot-ignore=.kopiaignore")
    assert bench.engine().check(plan).warnings == ()


def test_kopias_cache_and_logs_in_the_selection_are_said_once(bench: Bench) -> None:
    plan = bench.plan(holding(bench.home, "/a"))
    warnings = bench.engine().check(plan).warnings
    (warning,) = [w for w in warnings if w.startswith("kopia keeps")]
    assert f"{bench.home}/.cache/kopia" in warning
    assert warning.count(f" on {holding(bench.home, '/a').dataset.name}") == 2


def test_describe_needs_neither_kopia_nor_a_repository(bench: Bench) -> None:
    shutil.rmtree(bench.home)
    bench.environment = {"PATH": "/nonexistent"}
    argv = list(bench.engine("--password=hush", "--parallel=2").describe(bench.plan("/a")))
    assert argv[:4] == ["kopia", "snapshot", "create", str(bench.view)]
    assert argv[-1] == "--parallel=2"
    assert "hush" not in " ".join(argv)
    assert "kopiatomic-run:RUN-ID" in argv


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        ((), ""),
        (("/home", "/home/ann/x", "/srv"), "/home, /home/ann/x, /srv"),
        (("/opt", "/homes", "/"), ""),
        (("/home", "VIEW/home"), ""),
        (("/data/x",), "/data/x"),
        (("u@other:/home", "VIEW"), ""),
    ],
)
def test_policies_of_the_true_paths_that_do_not_apply_are_named_in_one_line(
    targets: tuple[str, ...], named: str, bench: Bench
) -> None:
    for target in targets:
        bench.kopia("policy", "set", target.replace("VIEW", str(bench.view)), "--compression=zstd")
    usual = [taken(place, mountpoint=place) for place in ("/home", "/srv/a")]
    plan = bench.plan(*usual, taken("/elsewhere", mountpoint="/data"))
    # The machine's own /home and /srv hold the test's repository, which is another warning.
    found = [warning for warning in bench.engine().check(plan).warnings if warning.startswith("kopia's policies")]
    if not named:
        assert found == []
        return
    (warning,) = found
    assert warning.startswith(f"kopia's policies of {named} do not apply to a merged view, where ")
    first = named.partition(",")[0]
    assert f"where {first} is {bench.view}{first.replace('/data', '/elsewhere')}:" in warning


def test_a_connection_that_only_reads_is_found_before_anything_is_made(bench: Bench) -> None:
    bench.kopia("repository", "disconnect")
    bench.kopia(
        "repository", "connect", "filesystem", "--path", str(bench.repository), "--readonly", "--password", PASSWORD
    )
    error = error_of(bench)
    assert (error.kind, "read-only" in error.message) == ("kopia-read-only", True)


def test_a_repository_on_a_filesystem_that_is_read_only(bench: Bench) -> None:
    with on_small_disk(bench.repository, read_only=True):
        error = error_of(bench)
    assert (error.kind, str(bench.repository) in error.message) == ("kopia-read-only", True)
