"""How tests are handed out (tests/support/distribution.py, stations.py), shown with a small tree of tests of its own.

Its dev/vm is a fake: it runs the worker on this machine, so that it can break and lack a guest where a test wants that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SUPPORT = Path(__file__).resolve().parents[1] / "support"

VM = """#!/bin/bash
[[ $KOPIATOMIC_VM_GUEST != missing ]] || { echo "there is no such machine" >&2; exit 125; }
echo "$KOPIATOMIC_VM_GUEST" >>started
while [[ $1 != -- ]]; do shift; done
shift
exec "$@"
"""

HERE = """
import pytest
def test_here(): pass
"""

BESIDE = """
import os, pytest
def test_it_passes(): pass
def test_it_fails(): assert 1 == 2
def test_it_breaks_its_machine():
    if "PARENT" in os.environ: os.kill(os.getppid(), 9)
    os.kill(os.getpid(), 9)
@pytest.mark.parametrize("text", ["a::b", "a[1]", "[", "x y", "/", "-x"], ids=str)
def test_strange(text): pass
def test_what_follows_is_run(): pass
def test_it_is_skipped(): pytest.skip("a reason")
@pytest.mark.xfail(strict=True)
def test_it_is_expected_to_fail(): raise OSError
"""

CORE = """
import os, pytest
pytestmark = pytest.mark.core
def test_core(): open("ran", "a").write(f"core {os.environ['KOPIATOMIC_VM_GUEST']}\\n")
"""

REST = """
import os
def test_rest(): open("ran", "a").write(f"rest {os.environ['KOPIATOMIC_VM_GUEST']}\\n")
"""

# What is mounted is the business of the session that runs this one.
NOT_LOADED = ["-p", "no:cacheprovider", "-p", "no:tests.support.dead_sessions"]

Tests = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def tests(tmp_path: Path) -> Tests:
    """Run a tree of tests: files by name, and settings."""

    def run(files: dict[str, str], *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        for name, content in {
            "dev/vm": VM,
            "tests/__init__.py": "",
            "tests/conftest.py": (SUPPORT.parent / "conftest.py").read_text().replace("pytest_plugins = [", "_ = ["),
            "tests/support/__init__.py": "",
            "pytest.ini": "[pytest]\nmarkers = core\n",
            **{f"tests/{folder}/__init__.py": "" for folder in ("btrfs", "unit", "zfs")},
            **files,
        }.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        (tmp_path / "dev/vm").chmod(0o755)
        conftest = tmp_path / "tests/conftest.py"
        conftest.write_text(conftest.read_text().replace("pytest_plugins += [", "pytest_plugins = ["))
        for module in ("distribution.py", "parts.py", "stations.py", "watchdog.py", "worker.py"):
            shutil.copy(SUPPORT / module, tmp_path / "tests/support")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KOPIATOMIC_")}
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-rA", *NOT_LOADED, *words, "tests"],
            cwd=tmp_path,
            env={**inherited, **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def outcomes(ended: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Of each test the word that pytest's summary has for it."""
    lines = ended.stdout.partition("short test summary info")[2].splitlines()
    words = {"PASSED", "FAILED", "SKIPPED", "XFAIL"}
    found = (line.split(" - ")[0].split(maxsplit=1) for line in lines if line.split(" ")[0] in words)
    return {name.rpartition("::")[2]: word for word, name in found}


def test_what_a_worker_reports_is_what_is_shown(tests: Tests) -> None:
    ended = tests({"tests/btrfs/test_here.py": HERE, "tests/unit/test_beside.py": BESIDE})
    found = outcomes(ended)
    assert {name: found[name] for name in found if name.startswith(("test_here", "test_it", "test_what"))} == {
        "test_here": "PASSED",
        "test_it_passes": "PASSED",
        "test_it_fails": "FAILED",
        "test_it_breaks_its_machine": "FAILED",
        "test_what_follows_is_run": "PASSED",
        "test_it_is_expected_to_fail": "XFAIL",
    }
    assert "assert 1 == 2" in ended.stdout
    assert "a reason" in ended.stdout
    assert "2 failed, 9 passed, 1 skipped, 1 xfailed" in ended.stdout
    assert ended.returncode == 1


def test_a_machine_that_breaks_costs_one_test(tests: Tests, tmp_path: Path) -> None:
    ended = tests({"tests/zfs/test_it.py": BESIDE}, PARENT="yes", KOPIATOMIC_TEST_VMS="1")
    assert outcomes(ended)["test_it_breaks_its_machine"] == "FAILED"
    assert outcomes(ended)["test_what_follows_is_run"] == "PASSED"
    assert (tmp_path / "started").read_text() == "trixie\ntrixie\n"


def test_a_guest_that_does_not_start_fails_each_of_its_tests(tests: Tests) -> None:
    ended = tests({"tests/zfs/test_core.py": CORE}, KOPIATOMIC_TEST_OTHER_GUESTS="missing")
    assert outcomes(ended) == {"test_core": "PASSED", "test_core@missing": "FAILED"}
    assert "there is no such machine" in ended.stdout


def test_where_time_is_short_the_core_is_run_and_the_rest_is_named(tests: Tests, tmp_path: Path) -> None:
    files = {"tests/zfs/test_core.py": CORE, "tests/zfs/test_a.py": REST}
    settings = {"KOPIATOMIC_TEST_OTHER_GUESTS": "bookworm", "KOPIATOMIC_TEST_NOTES": "IN QEMU"}
    ended = tests(files, KOPIATOMIC_TEST_BUDGET_S="0", **settings)
    assert sorted((tmp_path / "ran").read_text().splitlines()) == ["core bookworm", "core trixie"]
    assert "LEFT OUT: tests/zfs/test_a.py::test_rest on trixie" in ended.stdout
    assert "IN QEMU" in ended.stdout
    assert "2 passed, 1 skipped" in ended.stdout


def test_what_took_longest_comes_first(tests: Tests, tmp_path: Path) -> None:
    files = {f"tests/zfs/test_{name}.py": REST.replace("rest", name) for name in "abc"}
    known = tmp_path / "durations"
    known.write_text('{"trixie:tests/zfs/test_b.py::test_b": 50.0, "trixie:tests/zfs/test_c.py::test_c": 20.0}')
    ended = tests(files, KOPIATOMIC_TEST_DURATIONS=str(known), KOPIATOMIC_TEST_VMS="1")
    assert ended.returncode == 0
    assert (tmp_path / "ran").read_text() == "b trixie\nc trixie\na trixie\n"
    assert '"trixie:tests/zfs/test_a.py::test_a"' in known.read_text()


def test_what_was_never_measured_is_expected_to_take_as_long_as_the_other_cases(tests: Tests, tmp_path: Path) -> None:
    """New cases of a sweep would otherwise be one batch, which one machine has at the end while the others wait."""
    several = REST.replace("rest", "cases").replace(
        "def test_cases()", "@pytest.mark.parametrize('n', range(4))\ndef test_cases(n)"
    )
    files = {"tests/zfs/test_a.py": REST.replace("rest", "a"), "tests/zfs/test_cases.py": "import pytest\n" + several}
    known = tmp_path / "durations"
    name = "trixie:tests/zfs/test_cases.py::test_cases"
    known.write_text(f'{{"{name}[8]": 30.0, "{name}[9]": 50.0, "trixie:tests/zfs/test_a.py::test_a": 39.0}}')
    ended = tests(files, KOPIATOMIC_TEST_DURATIONS=str(known), KOPIATOMIC_TEST_VMS="1")
    assert ended.returncode == 0, ended.stdout
    # Each of the four is a batch of its own, of 40 s.
    assert (tmp_path / "ran").read_text() == "cases trixie\n" * 4 + "a trixie\n"
