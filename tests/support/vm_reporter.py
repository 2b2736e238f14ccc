"""Runs in the VM as a pytest plugin: writes each test report to standard output as one line of JSON.

Everything else that is printed goes to standard error, so that the lines stay whole.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

_reports = os.dup(1)
os.dup2(2, 1)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
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
    os.write(_reports, json.dumps(message).encode() + b"\n")
