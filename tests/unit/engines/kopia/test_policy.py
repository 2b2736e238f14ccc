"""Policies: what is computed from ``kopia policy list`` must be what kopia does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from kopiatomic.engines.kopia.policy import Policies, Source, parse_source
from kopiatomic.errors import KopiatomicError
from tests.unit.support.kopia_fixtures import PASSWORD, Bench

pytestmark = pytest.mark.in_part(7)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.connect()
    return bench


def source_of(bench: Bench) -> Source:
    own = bench.ask("repository", "status")["clientOptions"]
    return Source(own["username"], own["hostname"], str(bench.view))


YES, NO, ALONE = "--one-file-system=true", "--one-file-system=false", "--inherit=false"
SETTINGS: list[dict[str, list[str]]] = [
    {},
    {"user": [YES]},
    {"host": [YES]},
    {"host": [NO]},
    {"above": [YES]},
    {"root": [YES]},
    {"root": [NO]},
    {"host": [YES], "user": [NO]},
    {"user": [YES], "above": [NO]},
    {"root": [ALONE]},
    {"above": [ALONE]},
    {"root": [ALONE, YES]},
    {"host": [YES], "above": [ALONE], "root": [NO]},
    {"above": [YES], "other": [NO]},
    {"other": [YES]},
]


@pytest.mark.parametrize("everywhere", [None, YES])
def test_the_setting_at_the_root_is_the_one_that_kopia_shows(bench: Bench, everywhere: str | None) -> None:
    """Each combination has a user and a host of its own, so that one repository holds all of them."""
    if everywhere:
        bench.kopia("policy", "set", "--global", everywhere)
    for i, settings in enumerate(SETTINGS):
        user = f"u{i}@h{i}"
        targets = {
            "user": user,
            "host": f"@h{i}",
            "above": f"{user}:/a",
            "root": f"{user}:/a/b",
            "other": f"{user}:/a/bc",
        }
        for target, flags in settings.items():
            bench.kopia("policy", "set", targets[target], *flags)
    documents = bench.ask("policy", "list")
    for i, settings in enumerate(SETTINGS):
        shown = bench.ask("policy", "show", f"u{i}@h{i}:/a/b")
        setting = Policies(documents, Source(f"u{i}", f"h{i}", "/a/b")).at_root("files", "oneFileSystem")
        assert bool(setting.value) == bool(shown["files"].get("oneFileSystem")), settings


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"": "true"},
        {"a": "true"},
        {"a/b": "true"},
        {"--global": "true", "a": None},
        {"": "true", "a": None},
        {"": "true", "a": "false"},
        {"--global": "true", "": "false"},
        {"a": "true", "a/b": None},
        {"a/b/c": "true"},
    ],
    ids=str,
)
def test_a_mount_is_dropped_exactly_where_the_policies_say(bench: Bench, settings: dict[str, str | None]) -> None:
    """Mounts at /m, /a/m, /a/b/m in a mount namespace (user namespace too, where the tests do not run as root)."""
    for target, value in settings.items():
        words = ["--add-ignore=nothing-like-this"] if value is None else [f"--one-file-system={value}"]
        bench.kopia("policy", "set", target if target.startswith("-") else str(bench.view / target), *words)
    places = ["m", "a/m", "a/b/m"]
    bench.tree(*(f"{place}/" for place in places))
    mounts = "".join(f'mount -t tmpfs t "{bench.view}/{p}" && : > "{bench.view}/{p}/file" && ' for p in places)
    script = f'{mounts} exec "{bench.program}" snapshot create "{bench.view}" --json --no-progress'
    flags = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user", "--user"]
    done = subprocess.run(
        ["unshare", *flags, "sh", "-c", script], env=bench.environment, capture_output=True, check=True
    )
    root_object = json.loads(done.stdout)["rootEntry"]["obj"]
    listing = bench.kopia("ls", "--recursive", "--no-long", root_object).splitlines()
    shown = {place for place in places if f"{root_object}/{place}/file" in listing}

    policies = Policies(bench.ask("policy", "list"), source_of(bench))
    kept = {p for p in places if not policies.at(os.path.dirname(str(bench.view / p)), "files", "oneFileSystem").value}
    assert kept == shown


def refusal(bench: Bench, *options: str) -> KopiatomicError:
    plan = bench.plan("/usr", "/usr/home", "/usr/home/deep er")
    with pytest.raises(KopiatomicError) as caught:
        bench.engine(*options).check(plan)
    assert caught.value.kind == "one-file-system"
    return caught.value


def test_one_file_system_at_the_root_is_refused_and_the_hint_mends_it(bench: Bench) -> None:
    bench.kopia("policy", "set", "--global", "--one-file-system=true")
    error = refusal(bench)
    assert "(global)" in error.message
    assert f"{bench.view}/usr (tank/usr)" in error.message
    assert error.hint
    command = error.hint.partition(": ")[2].split(" ", 1)
    assert command[0] == "kopia"
    subprocess.run(f"{bench.program} {command[1]}", shell=True, env=bench.environment, check=True)  # noqa: S602
    bench.engine().check(bench.plan("/usr", "/usr/home", "/usr/home/deep er"))
    assert bench.ask("policy", "show", "--global")["files"]["oneFileSystem"] is True


def test_one_file_system_below_the_root_is_refused_and_the_hint_mends_it(bench: Bench) -> None:
    bench.kopia("policy", "set", str(bench.view / "usr/home"), "--one-file-system=true")
    error = refusal(bench)
    assert f"{bench.view}/usr/home" in error.message
    assert "deep er" in error.message
    assert error.hint
    line = error.hint.partition(": kopia ")[2]
    subprocess.run(f"{bench.program} {line}", shell=True, env=bench.environment, check=True)  # noqa: S602
    bench.engine().check(bench.plan("/usr", "/usr/home", "/usr/home/deep er"))


def test_one_file_system_where_no_mount_lies_is_no_reason_to_refuse(bench: Bench) -> None:
    bench.kopia("policy", "set", str(bench.view / "usr/home/deep er"), "--one-file-system=true")
    bench.kopia("policy", "set", str(bench.view / "usr/src"), "--one-file-system=true")
    bench.engine().check(bench.plan("/usr", "/usr/home", "/usr/home/deep er"))


def test_one_file_system_does_no_harm_where_the_only_mount_is_the_root(bench: Bench) -> None:
    bench.kopia("policy", "set", str(bench.view), "--one-file-system=true")
    bench.engine().check(bench.plan("/"))


def test_the_policies_of_an_overridden_source_count(bench: Bench) -> None:
    bench.kopia("policy", "set", "me@there:/data", "--one-file-system=true")
    bench.engine().check(bench.plan("/usr"))
    error = refusal(bench, "--override-source", "me@there:/data")
    assert "me@there:/data" in error.message


def test_an_action_that_may_redirect_kopia_is_refused_unless_the_user_insists(bench: Bench) -> None:
    bench.kopia("policy", "set", str(bench.view), "--before-snapshot-root-action=/bin/true")
    assert bench.engine().check(bench.plan("/usr")).warnings == ()
    (warning,) = bench.engine("--force-enable-actions").check(bench.plan("/usr")).warnings
    assert "KOPIA_SNAPSHOT_PATH" in warning
    bench.kopia(
        "repository",
        "connect",
        "filesystem",
        f"--path={bench.repository}",
        f"--password={PASSWORD}",
        "--enable-actions",
    )
    with pytest.raises(KopiatomicError) as caught:
        bench.engine().check(bench.plan("/usr"))
    assert caught.value.kind == "action"
    assert str(bench.view) in caught.value.message
    assert bench.engine("--force-disable-actions").check(bench.plan("/usr")).warnings == ()


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("u@h:/a", Source("u", "h", "/a")),
        ("u@h:/a@b:c", Source("u", "h", "/a@b:c")),
        ("/a", Source("me", "here", "/a")),
    ],
)
def test_sources_are_read_as_kopia_reads_them(text: str, source: Source) -> None:
    assert parse_source(text, Source("me", "here", "/x")) == source
