"""``-o OPTIONS`` for kopia: secrets leave the command line, what is decided by the run stays decided."""

from __future__ import annotations

import pytest

from kopiatomic.engines.kopia.options import parse
from kopiatomic.errors import UsageError


@pytest.mark.parametrize(
    "words",
    [["--password", "hush"], ["--password=hush"], ["-p", "hush"], ["-phush"]],
    ids=" ".join,
)
def test_a_password_moves_into_the_environment(words: list[str]) -> None:
    options = parse(["--parallel", "4", *words, "--description=x"])
    assert options.words == ("--parallel", "4", "--description=x")
    assert options.secrets == {"KOPIA_PASSWORD": "hush"}
    assert "hush" not in repr(options.words) + repr(options.warnings)
    assert not options.warnings


def test_the_push_gateways_password_is_a_secret_too() -> None:
    options = parse(["--metrics-push-password=hush"])
    assert options.words == ()
    assert options.secrets == {"KOPIA_METRICS_PUSH_PASSWORD": "hush"}


def test_what_merely_looks_like_a_password_flag_stays() -> None:
    words = ["--parallel=4", "--pin=x", "--description", "a -p b", "--persist-credentials"]
    options = parse(words)
    assert options.words == tuple(words)
    assert not options.secrets
    assert not options.warnings


@pytest.mark.parametrize("words", [["--config-file", "/x"], ["--config-file=/x"]], ids=" ".join)
def test_the_configuration_file_goes_to_every_command(words: list[str]) -> None:
    options = parse([*words, "--no-use-keyring", "--parallel=2"])
    assert options.value("--config-file") == "/x"
    assert options.shared == (*words, "--no-use-keyring")
    assert options.words == (*words, "--no-use-keyring", "--parallel=2")


def test_a_flag_is_known_in_both_forms() -> None:
    assert parse(["--no-progress"]).has("--progress")
    assert parse(["--progress"]).has("--progress")
    assert not parse(["--json-indent"]).has("--json")


@pytest.mark.parametrize("flag", ["--auto-maintenance", "--no-auto-maintenance"])
def test_maintenance_never_runs_while_the_snapshots_are_held(flag: str) -> None:
    options = parse([flag, "--json-verbose"])
    assert options.words == ("--json-verbose",)
    assert options.value(flag) == ""


@pytest.mark.parametrize("words", [["--all"], ["--no-json"], ["--stdin-file", "x"], ["--stdin-file=x"]], ids=" ".join)
def test_options_that_make_it_another_backup_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match=words[0].partition("=")[0]) as caught:
        parse(words)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_a_start_time_of_the_users_is_said() -> None:
    assert "2020-01-01" in parse(["--start-time", "2020-01-01 00:00:00 UTC"]).warnings[0]
