"""Which platform a system has, and what differs between them that needs no run to be seen."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kopiatomic import platforms
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.plan import Dataset, Plan, PlannedPath, Taken
from kopiatomic.platforms.freebsd.platform import FreeBSDPlatform
from kopiatomic.platforms.linux.platform import LinuxPlatform
from kopiatomic.state import locks
from kopiatomic.system.freebsd_host import FreeBSDHost
from kopiatomic.system.linux_host import LinuxHost
from tests.support.freebsd_shim import Shim, isolated

RUN = "20261122T101112Z-01234567"


def taken(name: str, place: str, *, volume: bool = False) -> Taken:
    return Taken(Dataset("zfs", name, "tank", PlannedPath(place), volume=volume), place, named=True)


def freebsd(shim: Shim | None = None) -> FreeBSDPlatform:
    return FreeBSDPlatform((shim or Shim()).kernel)


def test_each_system_has_its_own() -> None:
    assert isinstance(platforms.on(LinuxHost()), LinuxPlatform)
    assert isinstance(platforms.on(FreeBSDHost(Shim().kernel)), FreeBSDPlatform)
    assert isinstance(platforms.here(), LinuxPlatform)


def test_what_outlives_its_processes_is_looked_for() -> None:
    assert (LinuxPlatform().outlives, list(LinuxPlatform().leftovers())) == (False, ["cgroup"])
    assert (freebsd().outlives, list(freebsd().leftovers())) == (True, ["mount"])


def test_on_freebsd_a_run_has_a_directory_of_its_own_besides() -> None:
    own = f"{locks.DIRECTORY}/view-{RUN}"
    assert list(LinuxPlatform().directories("/kopia", RUN)) == ["/kopia"]
    assert list(freebsd().directories("/kopia", RUN)) == ["/kopia", own]
    assert list(freebsd().directories(own, RUN)) == [own]


def test_on_freebsd_what_is_not_built_is_refused_and_a_setting_warned_about() -> None:
    data, root = taken("tank/data", "/data"), taken("tank", "/")
    aside, volume = (
        taken("tank/aside", "/.unmounted/tank/aside"),
        taken("tank/volume", "/.volumes/tank/volume", volume=True),
    )
    for plan, what in (
        (Plan("/kopia", (data, volume)), "tank/volume, a volume,"),
        (Plan("/kopia", (root, aside)), "a dataset at / together with what has no place of its own"),
    ):
        with pytest.raises(KopiatomicError, match=f"{what} cannot be frozen on FreeBSD") as caught:
            freebsd().check(plan)
        assert caught.value.kind == "not-on-freebsd"
    for fine in ((root, data), (data, aside)):
        assert freebsd().check(Plan("/kopia", fine)) == []
    assert freebsd().check(Plan("/kopia", ())) == []
    (warning,) = freebsd(Shim(sysctls={"vfs.recursive_forced_unmount": 1})).check(Plan("/kopia", ()))
    assert "sysctl vfs.recursive_forced_unmount=0" in warning


@isolated
def test_a_launcher_whose_keeper_is_gone_already_ends() -> None:
    platform = freebsd()
    told, tells = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        if platform.fork() == 0:
            while os.getppid() == platform._parent:
                time.sleep(0.01)
            platform.enter()
            os.write(tells, b"it lives")
        os._exit(0)
    os.waitpid(keeper, 0)
    os.close(tells)
    assert os.read(told, 20) == b""


@isolated
def test_what_a_killed_launcher_leaves_is_the_keepers_and_is_ended(tmp_path: Path) -> None:
    platform = freebsd()
    platform.adopt()
    launcher = platform.fork()
    if launcher == 0:
        platform.enter()
        subprocess.run(["sh", "-c", 'setsid sleep 60 & echo $! >"$0"', tmp_path / "stray"], check=True)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(launcher, 0)
    stray = int((tmp_path / "stray").read_text())
    platform.end_orphans()
    assert not Path(f"/proc/{stray}").exists()
