"""What ./build makes: the same bytes each time, and programs that run where nothing else of ours is."""

from __future__ import annotations

import os
import shutil
import sys
import venv
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from kopiatomic import __version__
from kopiatomic.schedules.systemd import template
from tests.support.programs import SOURCE, Completed, command

TREE = SOURCE.parent
TEMPLATES = ["kopiatomic@.service", "kopiatomic@.timer"]
WHEEL = f"kopiatomic-{__version__}-py3-none-any.whl"


def built(folder: Path, *, umask: int, zone: str, year: str) -> Path:
    """Build in a copy of the tree that differs in all that is not content; returns its dist/."""
    shutil.copytree(
        TREE, folder, ignore=shutil.ignore_patterns(".*_cache", ".git", ".hypothesis", "__pycache__", "dist")
    )
    script = f"umask {umask:o}; find . -exec touch -h -d {year}-07-01 {{}} +; chmod -R go-rwx src; exec ./build"
    command("bash", "-c", script, cwd=folder, env={**os.environ, "TZ": zone, "LC_ALL": "C"}, timeout=300)
    return folder / "dist"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("one") / "tree", umask=0o022, zone="UTC", year="2025")


def sums(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_tree_gives_the_same_bytes(dist: Path, tmp_path: Path) -> None:
    again = built(tmp_path / "another" / "place", umask=0o077, zone="Asia/Tokyo", year="2001")
    assert sums(dist) == sums(again)
    assert set(sums(dist)) == {
        "completions/_kopiatomic",
        "completions/kopiatomic.bash",
        "completions/kopiatomic.fish",
        WHEEL,
        f"kopiatomic-{__version__}.tar.gz",
        "kopiatomic.pyz",
    }


def alone(*argv: str | Path, folder: Path) -> Completed:
    """Run a program in an empty folder, with an environment that leads it to none of our files."""
    return command(*argv, cwd=folder, env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}, check=False)


def test_the_one_file_runs_alone(dist: Path, tmp_path: Path) -> None:
    program = tmp_path / "kopiatomic"
    shutil.copy(dist / "kopiatomic.pyz", program)
    for argv in ((program,), (sys.executable, "-I", program)):
        ended = alone(*argv, "--version", "--verbose", folder=tmp_path)
        assert ended.stdout.startswith(f"kopiatomic: {__version__} in {program}/kopiatomic\n")
    assert "Usage: kopiatomic" in alone(program, "-h", folder=tmp_path).stdout
    # All that a run needs is in it, and what a run reads besides code.
    code = (
        f"import sys; sys.path[:] = ['{program}', *sys.path[1:]]\n"
        "import kopiatomic.commands.backup, rich.console; print(rich.__file__)"
    )
    assert alone(sys.executable, "-I", "-S", "-c", code, folder=tmp_path).stdout.startswith(str(program))
    code = f"import sys; sys.path[:0] = ['{program}']; from kopiatomic.schedules.systemd import template as t"
    units = alone(sys.executable, "-I", "-c", f"{code}; print(*map(t, {TEMPLATES}))", folder=tmp_path).stdout
    assert units == f"{' '.join(map(template, TEMPLATES))}\n"
    ended = alone(program, "plan", "/nowhere", folder=tmp_path)
    assert (ended.returncode, "/nowhere: No such file" in ended.stderr) == (1, True)
    # A run of profiles works in /, and loads modules there.
    (tmp_path / "home.toml").write_text("[select]\nall = true\nrecursiv = 1\n")
    ended = alone(sys.executable, "-I", program.name, "run", "-n", "--config-dir", ".", "home", folder=tmp_path)
    assert (ended.returncode, "unknown key recursiv" in ended.stderr) == (2, True), ended


def test_the_one_file_says_which_python_it_needs(dist: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(dist / "kopiatomic.pyz") as archive:
        main = archive.read("__main__.py").decode()
    code = f"import sys; sys.version_info = (3, 9, 2); exec({main!r})"
    ended = alone(sys.executable, "-c", code, folder=tmp_path)
    assert (ended.returncode, "needs Python 3.11 or later, and this is 3.9" in ended.stderr) == (1, True)


def test_nothing_in_them_names_the_machine_that_built_them(dist: Path) -> None:
    for name in ("kopiatomic.pyz", WHEEL):
        with zipfile.ZipFile(dist / name) as archive:
            for entry in archive.namelist():
                assert str(dist.parent).encode() not in archive.read(entry), entry


def test_the_wheel_installs_a_program_and_its_manual_page(dist: Path, tmp_path: Path) -> None:
    """As pipx does it, but without a download: click and rich are those that the tests run with."""
    venv.create(tmp_path / "venv", with_pip=True)
    folder = tmp_path / "venv/bin"
    command(folder / "pip", "--quiet", "install", "--no-index", "--no-deps", dist / WHEEL, timeout=120)
    (site,) = (tmp_path / "venv/lib").glob("python3.*/site-packages")
    import click
    import rich

    for package in (click, rich):
        assert package.__file__ is not None
        source = Path(package.__file__).parent
        (site / source.name).symlink_to(source)
    assert alone(folder / "kopiatomic", "--version", folder=tmp_path).stdout == f"kopiatomic {__version__}\n"
    assert "Usage: kopiatomic" in alone(folder / "kopiatomic", "-h", folder=tmp_path).stdout
    assert (tmp_path / "venv/share/man/man8/kopiatomic.8").is_file()
