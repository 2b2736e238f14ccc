"""An engine's success counts only where somebody has looked into the view."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.btrfs.test_in_place import InPlace, in_place
from tests.support import repositories
from tests.support.elsewhere import handing_over
from tests.support.filesystems import Btrfs
from tests.support.programs import SOURCE, Completed, Kopia

pytestmark = pytest.mark.in_part(4)

__all__ = ["in_place"]


@pytest.fixture
def home(btrfs: Btrfs) -> Path:
    home = btrfs.subvolume("home")
    (home / "file").write_text("x")
    return home


@pytest.fixture
def work(btrfs: Btrfs) -> Path:
    work = btrfs.subvolume("work")
    (work / "file").write_text("x")
    return work


def engine(name: str, kopia: Kopia, tmp_path: Path) -> tuple[str, dict[str, str], list[str]]:
    """An engine's program, what its environment needs, and the words that choose it."""
    if name == "kopia":
        return shutil.which("kopia") or "", dict(kopia.environment), ["--no-maintenance"]
    repository = repositories.make(name, tmp_path / name)
    return repository.program, repository.environment, repository.words


@pytest.mark.parametrize("name", ["kopia", "restic", "borg"])
def test_a_success_of_who_has_read_live_files_fails_the_run(
    name: str, home: Path, work: Path, kopia: Kopia, in_place: InPlace, tmp_path: Path
) -> None:
    program, environment, words = engine(name, kopia, tmp_path)
    ended, document = in_place(*words, home, work, env=environment)
    assert (ended.returncode, ended.stderr) == (0, ""), str(ended)
    with handing_over(program, tmp_path / "outside") as script:
        environment |= {f"KOPIATOMIC_{name.upper()}": str(script)}
        ended, document = in_place(*words, home, work, env=environment)
    assert ended.returncode == 1, str(ended)
    assert document["error"]["kind"] == "view-not-read"
    assert f"{home}, {work}" in document["error"]["message"]
    assert document["engine"]["snapshot_id"] in document["error"]["hint"] or name == "kopia"
    assert [source["saved"] for source in document["engine"]["sources"]] == [False, False]


def test_one_source_that_nobody_has_read_is_enough(
    home: Path, work: Path, kopia: Kopia, in_place: InPlace, tmp_path: Path
) -> None:
    """What hands over only one of two is a script of our own: the real programs hand over all or nothing."""
    with handing_over(shutil.which("kopia") or "", tmp_path / "outside") as script:
        half = tmp_path / "half"
        half.write_text(
            '#!/bin/sh\ncase "$1 $2" in "snapshot create") ;; *) exec kopia "$@" ;; esac\n'
            f'shift 4\nkopia snapshot create {home} "$@" && exec {script} snapshot create {work} "$@"\n'
        )
        half.chmod(0o755)
        ended, document = in_place(home, work, env={**kopia.environment, "KOPIATOMIC_KOPIA": str(half)})
    assert ended.returncode == 1, str(ended)
    assert document["error"]["kind"] == "view-not-read"
    assert {s["source"]: s["saved"] for s in document["engine"]["sources"]} == {str(home): True, str(work): False}


def test_what_is_unchanged_need_not_be_read(home: Path, work: Path, kopia: Kopia, in_place: InPlace) -> None:
    for expected in ([False, False], [True, True], [False, True]):
        if expected == [False, True]:
            (home / "file").write_text("changed")
        ended, document = in_place("--skip-unchanged", home, work, env=kopia.environment)
        assert ended.returncode == 0, str(ended)
        assert [source["unchanged"] for source in document["engine"]["sources"]] == expected


@pytest.mark.parametrize(
    ("layout", "line", "told"),
    [
        ("merged", "true", True),
        ("merged", "ls $1", False),
        ("in-place", "cat $1/file; stat $1; cd $1", True),
        ("in-place", "cd $1; ls", False),
    ],
)
def test_of_a_command_it_is_said(
    layout: str, line: str, told: bool, home: Path, run: Callable[..., Completed], root: Path, tmp_path: Path
) -> None:
    """Who opens a file in a directory, or enters it, has not looked into it."""
    script = tmp_path / "script"
    script.write_text(line)
    ended = run("--layout", layout, "-c", f"sh {script}", home)
    assert ended.returncode == 0, str(ended)
    assert (f"sh has not looked into {root if layout == 'merged' else home}: " in ended.stderr) is told


def test_a_thousand_files_opened_in_one_source_hide_nothing_of_the_other(
    home: Path, work: Path, in_place: InPlace, tmp_path: Path
) -> None:
    for number in range(1000):
        (home / f"file{number}").touch()
    script = tmp_path / "script"
    script.write_text(f"for i in $(seq 40); do cat {home}/*; done; ls {work}\n")
    ended, document = in_place("-c", f"sh {script}", home, work)
    assert ended.returncode == 0, str(ended)
    assert document["warnings"] == []


def test_where_it_cannot_be_seen_that_is_said(home: Path, kopia: Kopia, in_place: InPlace, tmp_path: Path) -> None:
    """The real refusal is fs.inotify.max_user_instances, which is everybody's: so a watch that refuses stands in for it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, os\nfrom kopiatomic.system import inotify\n"
        "def refuse(self): raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))\n"
        "inotify.AccessWatch.__init__ = refuse\n"
    )
    path = f"{tmp_path}:{SOURCE}"
    ended, document = in_place(home, env={**kopia.environment, "PYTHONPATH": path})
    assert ended.returncode == 0, str(ended)
    assert document["warnings"] == ["whether kopia has read the frozen view could not be seen: Too many open files"]
