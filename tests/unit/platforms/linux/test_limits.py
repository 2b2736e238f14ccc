"""Where the system has no more of something, nobody is told to install what is there, or to be given a capability."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from kopiatomic.platforms.linux import view as linux_view
from tests.support.programs import command

TREE = Path(__file__).parents[4]
CODE = """
import os
from kopiatomic.engines.program import Program
from kopiatomic.errors import KopiatomicError
program = Program("sh", os.environ, install="Install it", attempt=lambda: "")
assert program.path
try:
    while True:
        os.dup(0)
except OSError:
    pass
{close}
try:
    program.run("-c", "exit 0")
except KopiatomicError as error:
    print(error.kind, error.message, error.hint)
"""


@pytest.mark.parametrize("free", [0, 1, 2, 3])
def test_a_program_that_cannot_be_started_for_want_of_descriptors_need_not_be_installed(free: int) -> None:
    close = f"for number in range(10, 10 + {free}): os.close(number)"

    ended = command(
        *("prlimit", "--nofile=40:40", sys.executable, "-c", CODE.replace("{close}", close)),
        env={**os.environ, "PYTHONPATH": str(TREE / "src")},
    )
    assert ended.stdout.startswith("system the system refused something that kopiatomic needs: Too many open files")
    assert "ulimit -a" in ended.stdout
    assert "Install" not in ended.stdout


@pytest.mark.parametrize(
    ("number", "kind", "hint"),
    [
        (errno.ENOSPC, "mount-limit", "fs.mount-max"),
        (errno.EMFILE, "system", "LimitNOFILE="),
        (errno.ENOMEM, "system", "memory"),
        (errno.EIO, "mount", "dmesg"),
        (errno.EPERM, "namespace", "CAP_SYS_ADMIN"),
    ],
)
def test_a_mount_that_is_refused_is_told_by_its_reason(number: int, kind: str, hint: str) -> None:
    error = linux_view.refused("nothing can be mounted on /x", OSError(number, os.strerror(number)))
    assert error.kind == kind
    assert hint in str(error.hint)
    assert ("CAP_SYS_ADMIN" in str(error.hint)) == (number == errno.EPERM)
    assert "No space left" not in error.message
