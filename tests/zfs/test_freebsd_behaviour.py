"""The behaviour tests of a FreeBSD host, here with the shim: what they ask for is the same, and that they can pass is shown."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.freebsd.behaviour import *  # noqa: F403
from tests.freebsd.behaviour import Program

pytestmark = pytest.mark.in_part(6)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return lambda: [sys.executable, "-m", "tests.support.freebsd_program", str(tmp_path / "shim")]


@pytest.fixture
def holder(program: Program) -> Program:
    return program
