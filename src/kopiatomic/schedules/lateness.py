"""Since when a schedule has had no complete success. A run that finds the view root taken (exit code 75) is no failure; if
there is no other for too long, that is one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from kopiatomic import errors
from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.output.summary import duration
from kopiatomic.records import RunRecord
from kopiatomic.schedules import LATE, Schedule


@immutable
class Standing:
    """What the record says of a schedule, whose runs are ``runs``, the newest first. Times in seconds since the epoch."""

    schedule: Schedule
    runs: Sequence[RunRecord]

    @property
    def last_saved(self) -> RunRecord | None:
        """The last complete success."""
        return next((run for run in self.runs if run.exit_code == errors.SAVED and run.result == "saved"), None)

    @property
    def since(self) -> float | None:
        """Since when there is no newer one: since that run began, or else the first that is on record."""
        found = self.last_saved or (self.runs[-1] if self.runs else None)
        return None if found is None else found.started

    def overdue(self, now: float) -> KopiatomicError | None:
        """What is wrong, if it is older than three of the schedule's intervals."""
        since = self.since
        if since is None or now - since <= LATE * self.schedule.interval:
            return None
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(since))
        if self.last_saved is None:
            what = f"has had no complete success at all since its first run on record, {when}"
        else:
            what = f"has had no complete success since {when}"
        return KopiatomicError(
            f"the schedule {self.schedule.name} {what}, {duration(now - since)} ago; it starts every "
            f"{duration(self.schedule.interval)}",
            kind="overdue",
            hint="'kopiatomic history' shows what its runs came to. With exit code 75 another run has its view root each time: "
            "give the schedule a --name of its own, or --wait.",
        )
