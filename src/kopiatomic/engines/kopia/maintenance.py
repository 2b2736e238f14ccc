"""kopia's maintenance, postponed until the snapshots are gone: what kopia would have done by itself, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kopiatomic.engines.kopia.client import Client, last_error
from kopiatomic.errors import KopiatomicError
from kopiatomic.text import ended

INFO = ("maintenance", "info", "--json")
"""The command that reports the schedule."""

TIME_LIMIT = 24 * 3600.0
"""How long (seconds) maintenance may take; full maintenance of a large repository takes hours."""


def due(info: Mapping[str, Any], client_options: Mapping[str, Any], now: datetime) -> str | None:
    """Return which maintenance kopia would do now: "full", "quick", or None.

    The rules of kopia's repo/maintenance/maintenance_run.go (shouldRun): only the owner's client, and the full cycle is
    checked first. A cycle that has never run has the year 1 as its next time.
    """
    owner = f"{client_options.get('username')}@{client_options.get('hostname')}"
    if info.get("owner") != owner:
        return None
    schedule = info.get("schedule") or {}
    for cycle, next_time in (("full", "nextFullMaintenance"), ("quick", "nextQuickMaintenance")):
        if (info.get(cycle) or {}).get("enabled") and now >= _time(schedule[next_time]):
            return cycle
    return None


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def possible(status: Mapping[str, Any]) -> bool:
    """Whether kopia itself would do it: not through a repository server (cli/app.go, maybeRunMaintenance)."""
    return bool((status.get("storage") or {}).get("type"))


def run(client: Client, status: Mapping[str, Any]) -> list[str]:
    """Do the maintenance that is due. Returns warnings: the backup is good whatever happens here. Raises Interrupted."""
    try:
        cycle = due(client.ask(*INFO), status.get("clientOptions") or {}, datetime.now(UTC))
        if cycle is None:
            return []
        words = ["--full"] if cycle == "full" else []
        finished = client.run("maintenance", "run", *words, *client.shared, timeout=TIME_LIMIT)
    except KopiatomicError as error:
        return [f"kopia's maintenance was not done: {error.message}"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"kopia's maintenance was not done: its schedule could not be read ({error!r})"]
    if finished.status != 0:
        return [
            f"kopia's {cycle} maintenance failed ({ended(finished.status)}): {last_error(finished)}; "
            f"the backup is not touched by that. Try: {client.hint_command('maintenance', 'run', *words)}"
        ]
    return []
