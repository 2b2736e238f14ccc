"""Signals at each moment of a run on ZFS; tests/btrfs/test_signals.py has all of them, twice, and from a terminal."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.common_faults import signal_codes
from tests.support.filesystems import Pool
from tests.support.moments import ENDING, MOMENTS, signalled
from tests.zfs.faults import ZfsGround
from tests.zfs.runs import Runner


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_a_run_at_any_moment(moment: str, tank: Pool, run: Runner, tmp_path: Path) -> None:
    ground = ZfsGround(tank, run, tmp_path)
    for times, signum in enumerate((signal.SIGTERM, ENDING[MOMENTS.index(moment) % len(ENDING)]), 1):
        ground.reset()
        ended = signalled(ground, moment, signum, times=times)
        assert ended.returncode in signal_codes(moment, signum), str(ended)
        if ended.returncode == 0:
            assert ground.proven() == ground.expected()
        else:
            assert f"stopped by {signum.name}" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert ground.left_after(2) == []
