"""What a run does does not grow with the number of datasets: programs, processes, calls, looks at the mount table.

How many programs there are with kopia: test_quick_start.py.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from kopiatomic.system import linux
from tests.support.filesystems import Pool
from tests.support.programs import IN_QEMU
from tests.support.structure import counted
from tests.zfs.runs import Runner

pytestmark = pytest.mark.core

MANY = 50 if IN_QEMU else 200
_FILESYSTEM = 2
"""LZC_DATSET_TYPE_ZFS of libzfs_core.h."""


@pytest.fixture(scope="module")
def pool(tank: Pool) -> Pool:
    """Many datasets with the pool's own, made by calls: a process for each would take minutes.

    In a fork: the library keeps a descriptor of the module that was loaded when it was first used, which all runs of this
    process would have.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _make(tank)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    return tank


def _make(tank: Pool) -> None:
    library = ctypes.CDLL("libzfs_core.so.3")
    assert library.libzfs_core_init() == 0
    for number in range(MANY - 1):
        name, point = f"{tank.name}/d{number}", tank.path(f"d{number}")
        assert library.lzc_create(os.fsencode(name), _FILESYSTEM, None, None, 0) == 0
        point.mkdir()
        linux.mount(name, str(point), "zfs", 0)


def test_a_run_of_many_does_what_a_run_of_two_does(pool: Pool, run: Runner, tmp_path: Path) -> None:
    words = ("--state-dir", tmp_path / "state", "--mount-root", tmp_path / "view", "-c", "true", "-r")
    few, two = counted(tmp_path / "few", *words, f"{pool.name}/d0", f"{pool.name}/d1", env=os.environ)
    many, all_of_them = counted(tmp_path / "many", *words, pool.name, env=os.environ)
    print(dict(few), dict(many))
    assert (two, all_of_them) == (2, MANY)
    assert few == many
    assert {few[call] for call in ("snapshot", "hold", "destroy snapshots", "release")} == {1}
    assert run.left(pool, root=tmp_path / "view") == []
