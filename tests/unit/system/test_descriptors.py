"""Which descriptors there are, with a listing of the kernel's and without, and what is done with them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from kopiatomic.system.descriptors import closing

HIGH = 700
"""Of a descriptor that the caller has, above all of ours."""


@pytest.fixture(params=["listed", "missing", "only three"])
def listing(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Linux's listing; none, as in a chroot; that of FreeBSD's /dev/fd without a fdescfs(5)."""
    if request.param == "listed":
        return "/proc/self/fd"
    if request.param == "only three":
        for name in ("0", "1", "2"):
            (tmp_path / name).touch()
        return str(tmp_path)
    return str(tmp_path / "missing")


def in_a_child(code: str, listing: str, *passed: int) -> list[str]:
    """Run code in a process that inherits these; return what it prints."""
    before = f"import os\nfrom kopiatomic.system import descriptors\ndescriptors._LISTING = {listing!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", before + code],
        pass_fds=passed,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096)),
    )
    return done.stdout.split()


def test_no_program_inherits_more_than_three(listing: str) -> None:
    code = f"descriptors.keep_from_programs()\nprint(*map(os.get_inheritable, (0, 1, 2, {HIGH})))"
    with closing(os.dup2(0, HIGH, inheritable=True)):
        assert in_a_child(code, listing, HIGH) == ["True", "True", "True", "False"]


def test_what_cannot_be_listed_is_found_up_to_a_number(listing: str) -> None:
    code = f"descriptors.keep_from_programs(most={HIGH})\nprint(os.get_inheritable({HIGH}))"
    with closing(os.dup2(0, HIGH, inheritable=True)):
        assert in_a_child(code, listing, HIGH) == [str(not listing.startswith("/proc"))]


def test_all_but_four_are_closed(listing: str) -> None:
    code = (
        "one, other = os.pipe()\n"
        "descriptors.close_all_but(other)\n"
        f"print(*(fd for fd in range({HIGH} + 1) if os.path.lexists(f'/proc/self/fd/{{fd}}')), other)"
    )
    with closing(os.dup2(0, HIGH, inheritable=True)):
        *left, other = in_a_child(code, listing, HIGH)
    assert left == ["0", "1", "2", other]


def test_a_block_closes_its_descriptor_however_it_is_left() -> None:
    fd = os.open("/", os.O_RDONLY)
    with pytest.raises(ZeroDivisionError), closing(fd):
        raise ZeroDivisionError
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
