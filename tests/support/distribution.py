"""Spreads the tests over machines: each is an item here, with its own failure text, wherever it runs.

tests/zfs run in guests (dev/vm), one on each processor. Of this machine's own tests those on Btrfs run in this process, and where
there are such, the others in a worker beside it. The tests are collected here as any other, so -k, -x, node ids and --lf
work. They are handed out in batches (tests/support/stations.py), those first that took longest the last time; their reports are
taken up in that order.

Those that are marked ``core`` also run on other guests, if some are named: once more, under their name and the guest's.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from tests.support import parts
from tests.support.stations import BESIDE, BUDGET_S, EMULATORS, GUEST, HERE, TESTS, TREE, Batch, Queue

OTHER_GUESTS = os.environ.get("KOPIATOMIC_TEST_OTHER_GUESTS", "").split()
"""Where the core runs as well."""

OTHER_SHARE = {"qemu": 10, "uml": 20}
"""How many tests of the core each of them runs where the whole suite runs, by its emulator."""

NOTES = os.environ.get("KOPIATOMIC_TEST_NOTES", "").splitlines()
"""What ./test must say of the guests, for the last lines."""

DURATIONS = os.environ.get("KOPIATOMIC_TEST_DURATIONS")
"""A file with what each test took the last time."""

BATCH_S = 60
"""How long a batch takes, at least: each makes anew what its module's tests share."""

PIECES = 16
"""How many batches a place has, at most, if they are longer than that: so many that its machines end at about the same time."""

UNMEASURED_S = 10.0
"""What a test counts for of whose function nothing was measured yet: enough that no batch of many long ones comes about."""


class ElsewhereItem(pytest.Item):
    """A test once more, for another guest."""

    def __init__(self, *, test: pytest.Item, guest: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.test = test
        self.guest = guest

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        path, line, _ = self.test.reportinfo()
        return path, line, self.name

    def runtest(self) -> None:
        raise AssertionError("a guest runs it")


class ElsewhereFailure:
    """A failure's text as a worker's pytest wrote it, in the shape that pytest's terminal wants."""

    def __init__(self, text: str, crash: str) -> None:
        self.text = text
        self.reprcrash = SimpleNamespace(message=crash or text.partition("\n")[0])

    def toterminal(self, writer: Any) -> None:
        writer.line(self.text)

    def __str__(self) -> str:
        return self.text


class Distribution:
    """The plugin."""

    def __init__(self) -> None:
        self.queue: Queue | None = None
        self.batches: list[Batch] = []
        self.durations = known_durations()
        self.averages = averages(self.durations)
        self.measured: dict[str, float] = defaultdict(float)
        self.spread = False

    def place_of(self, item: pytest.Item) -> str:
        if isinstance(item, ElsewhereItem):
            return item.guest
        if item.path.is_relative_to(TESTS / "zfs"):
            return GUEST
        return BESIDE if self.spread and not item.path.is_relative_to(TESTS / "btrfs") else HERE

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        core = [item for item in items if item.path.is_relative_to(TESTS / "zfs") and item.get_closest_marker("core")]
        for guest in OTHER_GUESTS:
            for item in parts.drawn(
                core, f"the core of tests/zfs on {guest}", OTHER_SHARE[EMULATORS.get(guest, "uml")]
            ):
                assert item.parent is not None
                name = f"{item.name}@{guest}"
                items.append(ElsewhereItem.from_parent(item.parent, name=name, test=item, guest=guest))
        folders = {item.path.relative_to(TESTS).parts[0] for item in items if item.path.is_relative_to(TESTS)}
        self.spread = "btrfs" in folders and bool(folders & {"unit", "packages"})
        elsewhere = [item for item in items if self.place_of(item) != HERE]
        self.batches = sorted(self.batched(elsewhere), key=rank)
        order = {
            (batch.place, nodeid): number
            for number, (batch, nodeid) in enumerate(
                (batch, nodeid) for batch in self.batches for nodeid in batch.nodeids
            )
        }
        # Stable: this process's own come first, so that the others run meanwhile.
        items.sort(key=lambda item: order.get((self.place_of(item), nodeid_of(item)), -1))

    def batched(self, items: list[pytest.Item]) -> Iterator[Batch]:
        """Batches of neighbours, which share what is costly to make, none much longer than it must be.

        What is beside shares packages and repositories that are made once in a session: it is one.
        """
        modules: defaultdict[tuple[str, Path], list[pytest.Item]] = defaultdict(list)
        for item in items:
            place = self.place_of(item)
            modules[place, TESTS if place == BESIDE else item.path].append(item)
        whole: defaultdict[str, float] = defaultdict(float)
        for item in items:
            whole[self.place_of(item)] += self.expected(self.place_of(item), nodeid_of(item))
        for (place, _), tests in modules.items():
            limit = math.inf if place == BESIDE else max(BATCH_S, whole[place] / PIECES)
            batch: Batch | None = None
            for item in tests:
                nodeid = nodeid_of(item)
                core = item.get_closest_marker("core") is not None or isinstance(item, ElsewhereItem)
                seconds = self.expected(place, nodeid)
                if batch is None or batch.seconds + seconds > limit:
                    if batch is not None:
                        yield batch
                    batch = Batch(place, [], core, 0.0)
                batch.nodeids.append(nodeid)
                batch.seconds += seconds
            if batch is not None:
                yield batch

    def expected(self, place: str, nodeid: str) -> float:
        """How long a test will take (seconds): as long as the last time, or as its function's other cases did on average."""
        known = self.durations.get(f"{place}:{nodeid}")
        return self.averages.get(f"{place}:{nodeid.partition('[')[0]}", UNMEASURED_S) if known is None else known

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        if session.config.option.collectonly or session.testsfailed or not self.batches:
            return
        here = any(self.place_of(item) == HERE for item in session.items)
        self.queue = Queue(self.batches, here=here)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Literal[True] | None:
        place = self.place_of(item)
        if place == HERE or self.queue is None:
            return None
        self.queue.done_here()
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for message in self.queue.reports(place, nodeid_of(item)):
            self.measured[f"{place}:{message['nodeid']}"] += message["duration"]
            item.ihook.pytest_runtest_logreport(report=report_of(item, message))
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid.startswith("tests/btrfs/"):
            self.measured[f"{HERE}:{report.nodeid}"] += report.duration

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.queue is None:
            return
        for name, place in self.queue.places.items():
            minutes, seconds = divmod(round(place.seconds), 60)
            took = f"{place.count} tests, {minutes} min {seconds} s"
            if name == BESIDE:
                terminalreporter.write_line(f"beside tests/btrfs: {took}")
                continue
            what = "tests/zfs" if name == GUEST else "the core of tests/zfs"
            on = ", ".join(f"{program} {version}" for program, version in place.system.items())
            machine = {"uml": "User-Mode Linux"}.get(EMULATORS.get(name, ""), EMULATORS.get(name, "dev/vm"))
            terminalreporter.write_line(f"{what} on {name} ({machine}: {on}): {took} in {place.machines} machine(s)")
        for line in [*(f"LEFT OUT: {name}" for name in self.queue.left_out), *NOTES]:
            terminalreporter.write_line(line)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        if self.queue is not None:
            self.queue.end()
        if DURATIONS and self.measured:
            new = Path(f"{DURATIONS}.{os.getpid()}")
            new.write_text(json.dumps(known_durations() | self.measured))
            new.replace(DURATIONS)


def rank(batch: Batch) -> tuple[bool, bool, bool, bool, float]:
    """The order in which batches are begun: where time is short the core first; else the slowest machine and the longest."""
    short_of_time = math.isfinite(BUDGET_S)
    slow = EMULATORS.get(batch.place) == "qemu"
    return batch.place == BESIDE, short_of_time and not batch.core, not slow, batch.place != GUEST, -batch.seconds


def nodeid_of(item: pytest.Item) -> str:
    """The name that a worker's pytest knows a test by."""
    return item.test.nodeid if isinstance(item, ElsewhereItem) else item.nodeid


def known_durations() -> dict[str, float]:
    """What tests took the last time, in seconds, by place and node id."""
    try:
        known: dict[str, float] = json.loads(Path(DURATIONS or "").read_text())
    except (OSError, ValueError):
        return {}
    return known


def averages(durations: Mapping[str, float]) -> dict[str, float]:
    """What one case took on average (seconds), by place and function."""
    cases: defaultdict[str, list[float]] = defaultdict(list)
    for name, seconds in durations.items():
        cases[name.partition("[")[0]].append(seconds)
    return {name: statistics.fmean(known) for name, known in cases.items()}


def report_of(item: pytest.Item, message: dict[str, Any]) -> pytest.TestReport:
    longrepr: Any = None
    if message["skipped"] is not None:
        path, line, reason = message["skipped"]
        longrepr = (path.replace("/source/", f"{TREE}/"), line, reason)
    elif message["text"]:
        longrepr = ElsewhereFailure(message["text"], message["crash"])
    report = pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome=message["outcome"],
        longrepr=longrepr,
        when=message["when"],
        sections=[(name, text) for name, text in message["sections"]],
        duration=message["duration"],
    )
    if message["wasxfail"] is not None:
        report.wasxfail = message["wasxfail"]
    return report


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Distribution(), "kopiatomic-distribution")
