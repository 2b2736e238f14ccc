"""The behaviour tests on a FreeBSD host: ``./test freebsd``, as root."""

from __future__ import annotations

import os
import sys

import pytest

from tests.freebsd.behaviour import *  # noqa: F403
from tests.freebsd.behaviour import Program

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("freebsd"), reason="needs a FreeBSD host: run ./test freebsd there"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture
def program() -> Program:
    return lambda: [sys.executable, "-m", "kopiatomic"]


@pytest.fixture
def holder() -> Program:
    return lambda: [sys.executable, "-m", "tests.support.in_a_view"]
