"""What the whole suite makes in part: so many cases, the same for the same seed, and all where a file is named."""

from __future__ import annotations

import os
import re
import sys

from tests.support.programs import SOURCE, command
from tests.support.worker import MARK

FILE = "tests/btrfs/test_signals.py"
PARTS = {"test_a_signal_ends_a_run_at_any_moment": 16, "test_a_key_of_the_terminal_ends_a_run_at_any_moment": 5}


def collected(seed: str, **more: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if name not in {MARK, "KOPIATOMIC_TEST_IN_PART"}}
    environment = {**kept, "KOPIATOMIC_TEST_SEED": seed, **more}
    argv = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", FILE)
    listed = command(*argv, cwd=SOURCE.parent, env=environment).stdout
    return re.findall(rf"(?m)^{FILE}::(.*)$", listed)


def test_the_cases_are_chosen_by_the_seed() -> None:
    whole = collected("1")
    one, again, other = (collected(seed, KOPIATOMIC_TEST_IN_PART="yes") for seed in ("1", "1", "2"))
    assert one == again != other
    assert set(one) < set(whole)
    for name, count in PARTS.items():
        assert sum(case.startswith(f"{name}[") for case in one) == count
    others = [case for case in whole if not case.startswith(tuple(PARTS))]
    assert [case for case in one if not case.startswith(tuple(PARTS))] == others
