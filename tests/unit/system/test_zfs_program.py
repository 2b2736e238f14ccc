"""``zfs`` and ``zpool`` are run in one place: in the C locale, and what fails is an error unless the caller judges it."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

import kopiatomic
from kopiatomic.system import process, zfs_program

PACKAGE = Path(kopiatomic.__file__).parent

PROGRAMS = {"zfs", "zpool"}


@pytest.fixture(autouse=True)
def zfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``zfs`` that says in which locale it was asked, and for what; it complains of, and fails for, ``missing``."""
    program = tmp_path / "zfs"
    program.write_text(
        '#!/bin/sh\necho "$LC_ALL $*"\n[ "$2" != missing ] || { echo "cannot open" >&2; exit 3; }\n', encoding="ascii"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")


def test_it_is_asked_in_the_c_locale() -> None:
    assert zfs_program.run(["zfs", "get", "there"]).stdout == b"C get there\n"


def test_a_failing_exit_status_is_an_error_with_what_it_said() -> None:
    with pytest.raises(zfs_program.FailedError) as failure:
        zfs_program.run(["zfs", "get", "missing"])
    assert failure.value.message == "'zfs get' failed: cannot open"
    again = pickle.loads(pickle.dumps(failure.value))  # noqa: S301 - our own
    assert (again.message, again.kind, again.hint) == (failure.value.message, "zfs-list", failure.value.hint)
    assert again.finished == failure.value.finished
    assert (again.finished.status, again.finished.stdout) == (3, b"C get missing\n")


def test_a_caller_can_judge_the_exit_status_itself() -> None:
    found = zfs_program.run(["zfs", "get", "missing"], may_fail=True)
    assert (found.status, found.stdout, found.errors) == (3, b"C get missing\n", "cannot open")


def test_how_long_it_may_take_is_the_callers(tmp_path: Path) -> None:
    (tmp_path / "zfs").write_text("#!/bin/sh\nexec sleep 60\n", encoding="ascii")
    with pytest.raises(process.TimeLimitError, match=r"zfs did not end within 0\.2 s"):
        zfs_program.run(["zfs", "list"], timeout=0.2, may_fail=True)


def _program(argv: ast.AST) -> object:
    """The program that a list in the source begins with; None if it is no such list, or begins with something else."""
    first = argv.elts[0] if isinstance(argv, ast.List | ast.Tuple) and argv.elts else None
    return first.value if isinstance(first, ast.Constant) else None


def _is_call(node: ast.AST, *beginnings: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).startswith(beginnings)


def _elsewhere(tree: ast.AST) -> Iterator[str]:
    """Yield what starts a program, in a module that has an argv of one of ours, unless it names another program."""
    shown = {id(part) for node in ast.walk(tree) if _is_call(node, "shlex.join") for part in ast.walk(node)}
    if not any(_program(node) in PROGRAMS and id(node) not in shown for node in ast.walk(tree)):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _is_call(node, "process.run", "subprocess.", "os.exec"):
            program = _program(node.args[0])
            if program is None or program in PROGRAMS:
                yield ast.unparse(node)


@pytest.mark.parametrize(
    "code",
    ['process.run(["zfs", "list"], timeout=1)', 'argv = ["zpool", "list"]\nprocess.run_together([argv], timeout=1)'],
)
def test_another_place_that_runs_it_is_seen(code: str) -> None:
    assert list(_elsewhere(ast.parse(code)))


def test_no_other_place_runs_it() -> None:
    found = {p.relative_to(PACKAGE).as_posix(): [*_elsewhere(ast.parse(p.read_text()))] for p in PACKAGE.rglob("*.py")}
    assert {name: calls for name, calls in found.items() if calls} == {}
