"""Whether a test that hangs is the end of that test only."""

from __future__ import annotations

import os
import subprocess
import sys

HANGING = """if True:
    import subprocess, sys
    import pytest
    from tests.support.watchdog import limited
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "tests.support.worker"])
    with pytest.raises(pytest.fail.Exception, match="did not end"), limited(0.5), subprocess.Popen(["sleep", "1000"]) as hangs:
        # And once more in its clean-up.
        hangs.wait()
    assert other.poll() is None, "a worker was killed"
    other.kill()
    with limited(0.5):
        pass
    print(hangs.returncode)
"""


def test_a_test_that_hangs_fails_with_its_place_and_what_it_waited_for() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", HANGING], env=environment, capture_output=True, check=False, timeout=60, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, "-9\n"), ended.stderr
    assert "hangs.wait()" in ended.stderr or "in wait" in ended.stderr
    assert "sleep" in ended.stderr
