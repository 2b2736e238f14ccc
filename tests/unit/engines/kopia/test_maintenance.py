"""Maintenance after the release: what kopia itself would have done, no more."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.engines.kopia.maintenance import due
from tests.unit.support.kopia_fixtures import Bench, Driven, back_up, make_job

NOW = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
NEVER = "0001-01-01T00:00:00Z"
EARLIER = "2024-01-02T04:04:04.123456789+01:00"
LATER = (NOW + timedelta(seconds=1)).isoformat()
OWNER = {"username": "u", "hostname": "h"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.connect()
    bench.tree("home/f")
    return bench


def info(*, full: str, quick: str, owner: str = "u@h", enabled: tuple[str, ...] = ("full", "quick")) -> dict[str, Any]:
    return {
        "owner": owner,
        "full": {"enabled": "full" in enabled},
        "quick": {"enabled": "quick" in enabled},
        "schedule": {"nextFullMaintenance": full, "nextQuickMaintenance": quick},
    }


@pytest.mark.parametrize(
    ("state", "cycle"),
    [
        (info(full=NEVER, quick=NEVER), "full"),
        (info(full=EARLIER, quick=EARLIER), "full"),
        (info(full=LATER, quick=EARLIER), "quick"),
        (info(full=LATER, quick=LATER), None),
        (info(full=NOW.isoformat(), quick=LATER), "full"),
        (info(full=NEVER, quick=NEVER, enabled=("quick",)), "quick"),
        (info(full=NEVER, quick=NEVER, enabled=()), None),
        (info(full=NEVER, quick=NEVER, owner="u@other"), None),
        (info(full=NEVER, quick=NEVER, owner=""), None),
    ],
)
def test_what_is_due_is_what_kopia_would_do(state: dict[str, Any], cycle: str | None) -> None:
    assert due(state, OWNER, NOW) == cycle


def runs(bench: Bench) -> set[str]:
    """Which tasks of kopia's maintenance have run."""
    return set(bench.ask("maintenance", "info")["schedule"]["runs"] or {})


def after_backup(bench: Bench, *options: str, maintenance: bool = True) -> list[str]:
    plan = bench.plan("/home")
    repository = bench.engine(*options, maintenance=maintenance).check(plan)
    before = runs(bench)
    done = Driven(repository.backup(make_job(plan)), bench)
    assert done.result.complete
    assert runs(bench) == before, "maintenance ran while the snapshots were held"
    return done.backup.finish()


@pytest.mark.parametrize("options", [[], ["--auto-maintenance"]], ids=str)
def test_full_maintenance_runs_after_the_first_backup_and_not_after_the_second(
    bench: Bench, options: list[str]
) -> None:
    assert after_backup(bench, *options) == []
    first = bench.ask("maintenance", "info")["schedule"]
    assert "snapshot-gc" in first["runs"]
    assert after_backup(bench, *options) == []
    assert bench.ask("maintenance", "info")["schedule"] == first


def test_quick_maintenance_where_only_that_is_due(bench: Bench) -> None:
    """A fake that notes what it is asked and is the real kopia else (0.13.0 made its quick maintenance a full one)."""
    bench.kopia("maintenance", "set", "--enable-full=false", "--enable-quick=true")
    bench.fake('echo "$*" >> "$HOME/calls"; exec "$KOPIA" "$@"')
    assert after_backup(bench) == []
    calls = (bench.home / "calls").read_text().splitlines()
    assert [c for c in calls if c.startswith("maintenance run")] == ["maintenance run"]
    schedule = bench.ask("maintenance", "info")["schedule"]
    assert schedule["nextQuickMaintenance"] > "2000"


@pytest.mark.parametrize(
    ("options", "maintenance"), [([], False), (["--no-auto-maintenance"], True), (["--auto-maintenance"], False)]
)
def test_no_maintenance_where_the_user_said_so(bench: Bench, options: list[str], maintenance: bool) -> None:
    assert after_backup(bench, *options, maintenance=maintenance) == []
    assert runs(bench) == set()


def test_another_owners_maintenance_is_left_to_them(bench: Bench) -> None:
    bench.kopia("maintenance", "set", "--owner=somebody@elsewhere", "--no-auto-maintenance")
    assert after_backup(bench) == []
    assert runs(bench) == set()


def test_a_failed_backup_is_not_followed_by_maintenance(bench: Bench) -> None:
    """A fake that fails to back up."""
    bench.fake('[ "$1 $2" = "snapshot create" ] && exit 1; exec "$KOPIA" "$@"')
    done = back_up(bench, bench.plan("/home"))
    assert done.backup.finish() == []
    assert runs(bench) == set()


def test_failing_maintenance_is_a_warning(bench: Bench) -> None:
    """A fake that fails in ``maintenance run``."""
    bench.fake(
        '[ "$1 $2" = "maintenance run" ] && { echo "ERROR clock skew detected" >&2; exit 1; }; exec "$KOPIA" "$@"'
    )
    (warning,) = after_backup(bench)
    assert "full maintenance failed (exit status 1): clock skew detected" in warning
    assert "kopia maintenance run --full" in warning


def test_maintenance_that_cannot_be_asked_for_is_a_warning(bench: Bench) -> None:
    """A fake whose ``maintenance info`` fails after the backup."""
    bench.fake('[ "$1 $2" = "maintenance info" ] && { echo "ERROR gone" >&2; exit 1; }; exec "$KOPIA" "$@"')
    done = back_up(bench, bench.plan("/home"))
    (warning,) = done.backup.finish()
    assert "gone" in warning


@pytest.mark.parametrize(
    "answer", ["{}", "[]", '{"owner":"x"}', '{"owner":"OWNER","full":{"enabled":true},"schedule":{}}']
)
def test_a_schedule_that_cannot_be_read_is_at_most_a_warning(bench: Bench, answer: str) -> None:
    """A fake whose ``maintenance info`` says something else."""
    own = bench.ask("repository", "status")["clientOptions"]
    answer = answer.replace("OWNER", f"{own['username']}@{own['hostname']}")
    bench.fake(f'[ "$1 $2" = "maintenance info" ] && {{ echo \'{answer}\'; exit; }}; exec "$KOPIA" "$@"')
    done = back_up(bench, bench.plan("/home"))
    assert len(done.backup.finish()) <= 1
    assert runs(bench) == set()
