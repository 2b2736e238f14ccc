"""Reports of runs as they end, for tests of what prints them."""

from __future__ import annotations

import signal
from dataclasses import replace

from kopiatomic.errors import Interrupted, KopiatomicError
from kopiatomic.model.changes import Changes, Moved
from kopiatomic.model.engine import EngineEnd, EngineResult, FileProblem
from kopiatomic.model.plan import Dataset, Judged, Plan, PlannedPath, Taken, Verdict
from kopiatomic.model.report import EngineReport, Report, WriterReport
from kopiatomic.model.snapshots import Instant, Sets, Snapshot, SnapshotSet

RUN_ID = "20261122T101112Z-01234567"
START_NS = 1_795_342_272_000_000_000


def made(pool: str, *datasets: str, transactions: tuple[int, ...] = ()) -> SnapshotSet:
    """A set of a pool, of one transaction by default, that took 2 ms."""
    numbers = transactions or (4711,) * len(datasets)
    snapshots = tuple(Snapshot(d, f"{d}@x", n) for d, n in zip(datasets, numbers, strict=True))
    instant = Instant(START_NS, START_NS + 2_000_000, 5_000_000_000, 5_002_000_000)
    return SnapshotSet("zfs", pool, snapshots, instant)


def finished(*mountpoints: str) -> Report:
    """A run that saved all it was asked for."""
    points = mountpoints or ("/usr/home", "/usr/src")
    names = [f"tank{point}" for point in points]
    taken = tuple(
        Taken(Dataset("zfs", name, "tank", PlannedPath(point)), point, named=True)
        for name, point in zip(names, points, strict=True)
    )
    report = Report(RUN_ID, "/kopia", plan=Plan("/kopia", taken), sets=Sets((made("tank", *names),)))
    report.engine = EngineReport(
        "kopia",
        "0.22.3",
        ("kopia", "snapshot", "create", "/kopia"),
        EngineEnd(0, stopped=False),
        EngineResult(
            saved=True,
            complete=True,
            message="",
            snapshot_id="2f3a",
            root_object="k99",
            statistics={"files_total": 123456, "bytes_total": 7_800_000_000, "files_cached": 123000},
        ),
    )
    report.frozen_seconds = 75.5
    report.durations = {"plan": 0.1, "engine": 75.0}
    return report


def several() -> Report:
    """A run over two pools with something missing and something left."""
    report = finished()
    report.sets = Sets((made("tank", "tank/usr/home"), made("other", "other/a", "other/b", transactions=(3, 4))))
    report.changes = Changes(RUN_ID, ["other/b"], ["other/c"], [Moved("other/a", ("/x",), ("/y", "/z"))])
    report.incomplete = ["tank/x: its encryption key is not loaded"]
    report.left_behind = ["snapshot tank@x"]
    report.hook_error = KopiatomicError("the hook -q failed (exit status 1): false", kind="hook-failed")
    assert report.engine is not None
    assert report.engine.result is not None
    problems = (FileProblem("/kopia/a\x1b", "unreadable"),)
    report.engine.result = replace(report.engine.result, problems=problems, problem_count=25)
    return report


def held() -> list[WriterReport]:
    """Writers of such a run: frozen, locked, none of either."""
    return [
        WriterReport("unit mail.service", "its process is frozen for the snapshots", spanning=True),
        WriterReport("mariadb", "InnoDB in one instant; other engines held by BACKUP STAGE", "no binary log"),
        WriterReport("postgresql 15/main", "/srv/pg: all in one instant, nothing to hold", needed=False),
    ]


def planned() -> Report:
    """A dry run that takes one of two datasets, and has a last run to be compared with."""
    home = Taken(Dataset("zfs", "tank/home", "tank", PlannedPath("/usr/home")), "/usr/home", named=True)
    judged = (
        Judged("tank/home", "zfs", Verdict.TAKEN, "it was named", "/usr/home", ("/usr/home",)),
        Judged("tank/secret", "zfs", Verdict.KEY_NOT_LOADED, "its encryption key is not loaded", incomplete=True),
    )
    report = Report(RUN_ID, "/kopia", "/kopia", dry_run=True, plan=Plan("/kopia", (home,), judged=judged))
    report.engine = EngineReport("kopia", None, ("kopia", "snapshot", "create", "/kopia"))
    report.changes = Changes(RUN_ID, removed=["tank/src"])
    report.incomplete = ["tank/secret: its encryption key is not loaded"]
    return report


def failed() -> Report:
    """A run that ended before anything was made."""
    error = KopiatomicError("no such dataset: tank/hom", kind="no-such-dataset", hint="Did you mean tank/home?")
    return Report(RUN_ID, "/kopia", error=error)


def interrupted() -> Report:
    """A run that a signal ended while the engine ran, which left a part behind."""
    report = finished()
    assert report.engine is not None
    report.engine.end = EngineEnd(0, stopped=True)
    report.engine.result = EngineResult(
        saved=False, complete=False, message="kopia was stopped", snapshot_id="2f3a", root_object="k99"
    )
    report.frozen_seconds = None
    report.error = Interrupted(signal.SIGINT)
    return report
