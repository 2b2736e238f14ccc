"""What is known of the engines' options is what their own help says, and what is none goes into no backup."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from kopiatomic import engines
from kopiatomic.engines import flags
from kopiatomic.engines.known_options import BORG, KOPIA, RESTIC, Known
from kopiatomic.errors import UsageError
from tests.support.programs import command

HIDDEN = KOPIA.valued & {
    f"--{name}" for name in ("timezone", "log-dir-max-age", "metrics-push-addr", "upgrade-owner-id")
}
"""Some of those that kopia's help leaves out; each must be asked for by itself."""


def helped(*argv: str) -> str:
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, env={"HOME": "/", "PATH": "/usr/bin:/bin"}
    ).stdout


def restic_help() -> tuple[dict[str, bool], dict[str, str]]:
    """The long options and whether they take a value, and the long names of the short ones."""
    found = re.findall(
        r"^ +(?:(-\w), +)?(--[a-z-]+)(?: (\S+))?(?=  )", helped("restic", "backup", "--help"), re.MULTILINE
    )
    valued = {long: bool(value) for _, long, value in found}
    # pflag shows it as if it took a word, but it is a counter: the number may only follow '='.
    valued["--verbose"] = False
    return valued, {short: long for short, long, _ in found if short}


def borg_help() -> tuple[dict[str, bool], dict[str, str]]:
    valued: dict[str, bool] = {}
    short: dict[str, str] = {}
    for line in re.findall(r"^  (-.*?)(?=  |$)", helped("borg", "create", "--help"), re.MULTILINE):
        words = [word.split() for word in line.split(", ")]
        names = [word[0] for word in words]
        for name in (name for name in names if name.startswith("--")):
            valued[name] = len(words[0]) > 1
        short |= {name: names[-1] for name in names if not name.startswith("--")}
    return valued, short


@pytest.mark.parametrize(("known", "told"), [(RESTIC, restic_help), (BORG, borg_help)], ids=["restic", "borg"])
def test_restic_and_borg_have_these_options(known: Known, told: object) -> None:
    valued, short = told()  # type: ignore[operator]
    newer = known.newer - valued.keys()
    assert {name for name, takes in valued.items() if takes} == known.valued - newer
    assert {name for name, takes in valued.items() if not takes} == known.switches - newer
    assert short == {name: long for name, long in known.long.items() if long not in newer}


def test_kopia_has_these_options(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "KOPIA_CHECK_FOR_UPDATES": "false", "PATH": os.environ["PATH"]}

    def said(*words: str) -> str:
        ended = command("kopia", "snapshot", "create", *words, env=environment, check=False)
        return ended.stdout + ended.stderr

    text = said("--help")
    shown = re.findall(r"^ +(?:(-\w), )?--(\[no-\])?([a-z-]+)(=?)", text.partition("\nArgs:")[0], re.MULTILINE)
    valued = {f"--{name}" for _, _, name, value in shown if value}
    switches = {f"--{no}{name}" for _, negative, name, _ in shown if negative for no in ("", "no-")}
    assert valued <= KOPIA.valued
    assert switches <= KOPIA.switches
    assert {short: f"--{name}" for short, _, name, _ in shown if short} == KOPIA.long
    # What the help leaves out is there all the same: a flag that does not exist is the first thing that kopia says.
    harmless = {name for name in KOPIA.switches if name.startswith("--no-") and not re.search("help|version", name)}
    assert "not connected" in said(*sorted(harmless))
    for name in HIDDEN:
        assert f"expected argument for flag '{name}'" in said(name)
    assert "unknown long flag" in said(*(f"{name}=1" for name in sorted(KOPIA.valued)), "--surely-no-flag")


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        *((engine, words) for engine in ("kopia", "restic", "borg") for words in (
            ["/etc"],
            ["-"],
            ["relative"],
            ["--", "/etc"],
            ["--json", "/etc"],
            ["--a-newer-option", "/etc"],
            ["--a-newer-option", "no/such/path"],
            ["--a-newer-option", "value", "other"],
            ["--a-newer-option=1", "value"],
        )),
        ("kopia", ["--no-progress", "/etc"]),
        ("kopia", ["--parallel", "4", "/etc"]),
        ("kopia", ["--description=x", "y"]),
        ("kopia", ["@/etc/passwd"]),
        ("restic", ["-x", "/etc"]),
        ("restic", ["-v", "/etc"]),
        ("restic", ["-xq", "/etc"]),
        ("restic", ["--verbose", "2"]),
        ("restic", ["--tag", "a", "b"]),
        ("borg", ["-x", "/etc"]),
        ("borg", ["--stats", "/etc"]),
        ("borg", ["-C", "lz4", "/etc"]),
        ("borg", ["--pattern", "R /etc"]),
        ("borg", ["--pattern=r /etc"]),
    ],
)  # fmt: skip
def test_a_word_that_is_no_option_is_refused(engine: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        engines.create(None, words, engine=engine, environment={"HOME": "/"})
    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("kopia", ["--description", "/etc", "--parallel", "4", "-p", "/etc", "--no-progress"]),
        ("kopia", ["--a-newer-option", "value", "--another"]),
        ("kopia", ["--a-newer-option=no/such/path"]),
        ("restic", ["--exclude", "/etc", "-e/etc", "-e", "/etc", "-xve", "/etc", "--verbose=2", "-v=2"]),
        ("restic", ["--exclude-file", "/etc/passwd", "--pack-size", "64", "--exclude", "-x"]),
        ("restic", ["--a-newer-option", "value", "-Z", "value"]),
        ("borg", ["--exclude", "/etc", "-C", "zstd,3", "--pattern", "+ /etc", "--upload-buffer", "1", "--stats"]),
        ("borg", ["--exclude-if", "/etc"]),
        ("borg", ["--a-newer-option", "value"]),
    ],
)
def test_values_and_options_of_other_versions_are_passed_on(engine: str, words: list[str]) -> None:
    engines.create(None, words, engine=engine, environment={"HOME": "/"})


def test_any_words_go_to_a_command_of_the_users() -> None:
    engines.create(["tar"], ["/etc", "--", "-", "x"], environment={})


@pytest.mark.parametrize("word", ["--dry-run", "--dry-ru", "--paths-from-std", "--content"])
def test_an_abbreviation_of_borgs_is_the_option(word: str) -> None:
    with pytest.raises(UsageError, match="does not go with a backup of the view"):
        engines.create(None, [word], engine="borg", environment={"HOME": "/"})


def test_what_an_equals_sign_behind_a_short_flag_is() -> None:
    """pflag and argparse drop it; for kingpin it is a part of the value."""
    for kingpin, value in ((False, "x"), (True, "=x")):
        syntax = flags.Syntax(KOPIA, refused={}, kingpin=kingpin)
        assert [given.value for given in flags.parse("x", ["-p=x"], syntax)] == [value]
