"""Loads the shared fixtures and, but in a worker, what hands tests on to workers."""

import os
import random
import signal

pytest_plugins = [
    "tests.support.programs",
    "tests.support.filesystems",
    "tests.support.leftovers",
    "tests.support.repositories",
]
if "KOPIATOMIC_TEST_WORKER" not in os.environ and "KOPIATOMIC_IN_VM" not in os.environ:
    pytest_plugins += [
        "tests.support.parts",
        "tests.support.distribution",
        "tests.support.dead_sessions",
        "tests.support.watchdog",
    ]

# Under nohup(1), and in the background of a shell, these are ignored, and stay so in every program that the tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# Tests that choose some of very many cases choose by this; a failure is repeated with the same one.
os.environ.setdefault("KOPIATOMIC_TEST_SEED", str(random.randrange(1_000_000)))


def pytest_report_header() -> str:
    guest = os.environ.get("KOPIATOMIC_VM_GUEST", "trixie")
    return f"KOPIATOMIC_TEST_SEED={os.environ['KOPIATOMIC_TEST_SEED']}, guest for tests/zfs: {guest}"
