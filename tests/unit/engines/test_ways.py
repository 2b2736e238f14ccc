"""Several ways to say one thing: what a profile says by one, nothing around it undoes by another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kopiatomic.engines.ways import combined, without_others
from tests.unit.support.engine_bench import EngineBench


@pytest.mark.parametrize(
    ("around", "own", "found"),
    [
        ({"RESTIC_PASSWORD_FILE": "/wrong"}, {"RESTIC_PASSWORD": "x"}, {"RESTIC_PASSWORD": "x"}),
        ({"RESTIC_PASSWORD_COMMAND": "no"}, {"RESTIC_PASSWORD": "x"}, {"RESTIC_PASSWORD": "x"}),
        ({"BORG_PASSPHRASE": "no"}, {"BORG_PASSCOMMAND": "cat /x"}, {"BORG_PASSCOMMAND": "cat /x"}),
        ({"RESTIC_REPOSITORY": "/no"}, {"RESTIC_REPOSITORY_FILE": "/x"}, {"RESTIC_REPOSITORY_FILE": "/x"}),
        ({"KOPIA_CONFIG_PATH": "/no"}, {"XDG_CONFIG_HOME": "/x"}, {"XDG_CONFIG_HOME": "/x"}),
        (
            {"RESTIC_PASSWORD_FILE": "/x"},
            {"RESTIC_CACHE_DIR": "/c"},
            {"RESTIC_PASSWORD_FILE": "/x", "RESTIC_CACHE_DIR": "/c"},
        ),
        ({"PATH": "/bin", "RESTIC_PASSWORD": "no"}, {"RESTIC_PASSWORD": "x"}, {"PATH": "/bin", "RESTIC_PASSWORD": "x"}),
    ],
)
def test_what_is_said_holds_whichever_way(around: dict[str, str], own: dict[str, str], found: dict[str, str]) -> None:
    assert combined(around, own) == found


def test_what_comes_from_one_place_stays_as_it_is() -> None:
    """It is the program's own order that decides there."""
    both = {"RESTIC_PASSWORD": "x", "RESTIC_PASSWORD_FILE": "/x"}
    assert combined({}, both) == both
    assert without_others(both, both.keys()) == both


def test_an_option_holds_against_the_environment(restic_bench: EngineBench, tmp_path: Path) -> None:
    """restic fails where one names a file and the other a command."""
    file = tmp_path / "password"
    file.write_text(restic_bench.environment.pop("RESTIC_PASSWORD"))
    restic_bench.environment["RESTIC_PASSWORD_COMMAND"] = "echo wrong"  # noqa: S105
    assert restic_bench.engine(f"--password-file={file}").check(restic_bench.plan).warnings == ()
    restic_bench.environment |= {"RESTIC_PASSWORD_COMMAND": "", "RESTIC_PASSWORD_FILE": os.devnull}
    restic_bench.engine(f"--password-command=cat {file}").check(restic_bench.plan)
