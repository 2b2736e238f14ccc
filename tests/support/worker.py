"""Runs batches of tests for another pytest: `python -m tests.support.worker` reads them as lines of JSON and writes reports.

Each batch is run by a pytest of its own, in a child process that has everything imported. What is written to standard output,
a line of JSON each, is: first what this system has, then of each test its start and its reports, and the end of each batch.
All that tests print goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jsonschema  # noqa: F401 - so that each child has it
import pytest

MARK = "KOPIATOMIC_TEST_WORKER"
"""Set in the environment of a worker: it hands nothing on."""

TRACEBACK_AFTER_S = 300


class Reporter:
    """The plugin that runs the tests of a batch, and writes what happens to each."""

    def __init__(self, out: int) -> None:
        self._out = out
        self.batch: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # As arguments, one id with strange characters would be the end of them all.
        place = {nodeid: number for number, nodeid in enumerate(self.batch)}
        items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

    def write(self, **message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._out, data) :]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.write(starts=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        message: dict[str, Any] = {
            "nodeid": report.nodeid,
            "when": report.when,
            "outcome": report.outcome,
            "duration": report.duration,
            "sections": report.sections,
            "wasxfail": getattr(report, "wasxfail", None),
            "skipped": None,
            "text": "",
            "crash": "",
        }
        if report.skipped and isinstance(report.longrepr, tuple):
            message["skipped"] = report.longrepr
        elif report.longrepr is not None:
            message["text"] = report.longreprtext
            message["crash"] = getattr(getattr(report.longrepr, "reprcrash", None), "message", "")
        self.write(**message)


def system() -> dict[str, str]:
    """What a test runs on, by name."""
    found = {"Linux": platform.release(), "Python": platform.python_version()}
    with contextlib.suppress(OSError):
        found["OpenZFS"] = Path("/sys/module/zfs/version").read_text().partition("-")[0].strip()
    return found


def main() -> int:
    reporter = Reporter(os.dup(1))
    os.dup2(2, 1)
    os.environ[MARK] = "yes"
    reporter.write(system=system())
    options = ["-p", "no:cacheprovider", "-q", "-o", f"faulthandler_timeout={TRACEBACK_AFTER_S}"]
    for line in sys.stdin:
        reporter.batch = json.loads(line)
        files = dict.fromkeys(nodeid.partition("::")[0] for nodeid in reporter.batch)
        child = os.fork()
        if child == 0:
            os._exit(pytest.main([*options, *files], plugins=[reporter]))
        _, status = os.waitpid(child, 0)
        reporter.write(ended=os.waitstatus_to_exitcode(status))
    return 0


if __name__ == "__main__":
    sys.exit(main())
