"""Units that are frozen under a real systemd, in clean machines of both Debian suites: found, held, thawed whatever happens."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.btrfs.conftest import wait_for
from tests.packages.machine import Machine, booted_machine
from tests.support.programs import SOURCE

pytestmark = pytest.mark.in_part(2)

HOLD = """
import sys, time
sys.path.insert(0, "/exchange/src")
from kopiatomic.errors import KopiatomicError
from kopiatomic.hooks import kinds
from kopiatomic.hooks.holder import Around, Wanted
try:
    (finding,) = kinds.find(Wanted("unit", sys.argv[1]), Around(lambda path: None))
except KopiatomicError as error:
    sys.exit(f"{error.kind}: {error.message}")
holder = finding.holder
holder.prepare(time.monotonic() + 10)
holder.hold(time.monotonic() + 10)
open("/tmp/held", "w").close()
time.sleep(float(sys.argv[2]))
print(holder.release(), flush=True)
holder.close()
"""

WRITER = "i=0; while :; do i=$((i + 1)); echo $i > /tmp/new; mv /tmp/new /tmp/count; done"


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    exchange: Path = tmp_path_factory.mktemp("exchange")
    shutil.copytree(SOURCE, exchange / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (exchange / "hold.py").write_text(HOLD)
    with booted_machine(request.param, exchange) as one:
        yield one


@pytest.fixture
def writer(host: Machine) -> Iterator[str]:
    """A unit that writes all the time."""
    host("rm", "-f", "/tmp/held", "/tmp/count")
    host("systemd-run", "--quiet", "--unit=writer", "sh", "-c", WRITER)
    wait_for(host.path("/tmp/count").exists, "the writer's start")
    yield "writer.service"
    host("systemctl", "kill", "--signal=KILL", "writer")
    host("systemctl", "reset-failed", check=False)


def writes(host: Machine) -> bool:
    before = host.path("/tmp/count").read_text()
    time.sleep(0.2)
    return host.path("/tmp/count").read_text() != before


def holding(host: Machine, unit: str, seconds: float, *, check: bool = True) -> str:
    """Hold a unit from another unit; what is said of it."""
    words = ("systemd-run", "--quiet", "--wait", "--pipe", "python3", "/exchange/hold.py", unit, str(seconds))
    ended = host(*words, check=check)
    return ended.stdout + ended.stderr


def thawers(host: Machine) -> str:
    return host("systemctl", "list-units", "--no-legend", "--plain", "kopiatomic-thaw-*.scope").stdout


def test_a_unit_is_held_and_released(host: Machine, writer: str) -> None:
    host("systemd-run", "--quiet", "--unit=holder", "python3", "/exchange/hold.py", writer, "1")
    wait_for(host.path("/tmp/held").exists, "the hold")
    assert not writes(host)
    assert re.match(r"kopiatomic-thaw-\d+-[0-9a-f]+\.scope +loaded active running", thawers(host))
    wait_for(lambda: writes(host), "the release")
    wait_for(lambda: thawers(host) == "", "the thawer's end")
    said = holding(host, writer, 0.1)
    assert "label='unit writer.service'" in said
    assert "proven=True, why='frozen before and after'" in said


def test_a_unit_runs_again_when_the_whole_group_of_its_holder_was_killed(host: Machine, writer: str) -> None:
    host("systemd-run", "--quiet", "--unit=holder", "python3", "/exchange/hold.py", writer, "60")
    wait_for(host.path("/tmp/held").exists, "the hold")
    assert not writes(host)
    host("systemctl", "kill", "--kill-whom=all", "--signal=KILL", "holder")
    wait_for(lambda: writes(host), "the thaw", within=2)
    wait_for(lambda: thawers(host) == "", "the thawer's end")


def test_a_unit_that_systemd_has_frozen_stays_frozen(host: Machine, writer: str) -> None:
    host("systemctl", "freeze", writer)
    assert "stall=0, proven=True, why='frozen by somebody else before and after'" in holding(host, writer, 0.1)
    assert not writes(host)
    host("systemctl", "thaw", writer)
    assert writes(host)


@pytest.mark.parametrize(
    "unit",
    ["dbus.service", "systemd-journald.service", "systemd-logind.service", "system.slice", "-.slice", "init.scope"],
)
def test_what_the_system_needs_is_refused(host: Machine, unit: str) -> None:
    assert holding(host, unit, 0, check=False).startswith("hold-refused: ")


def test_a_unit_that_does_not_run_is_said(host: Machine) -> None:
    assert holding(host, "none.service", 0, check=False).startswith("hold-no-server: ")
