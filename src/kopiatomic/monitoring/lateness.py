"""Since when a schedule has had no complete success. A run that finds the view root taken (exit code 75) is not a failure, but
it is one if only such runs happen for too long.

A recorded run that began in the future was recorded with a wrong clock: it is not a success, or it would count as one until then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from kopiatomic import errors
from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.model.schedule import Schedule
from kopiatomic.output.summary import duration
from kopiatomic.state.records import AHEAD, RunRecord

LATE = 3
"""After how many of its intervals without a complete success a schedule has failed."""


@immutable
class Standing:
    """The state of a schedule according to the record; its ``runs`` are sorted newest first.

    Times in seconds since the epoch. ``synchronised``: whether the clock that says ``now`` was synchronised in this boot.
    """

    schedule: Schedule
    runs: Sequence[RunRecord]
    now: float
    synchronised: bool

    @property
    def _past(self) -> list[RunRecord]:
        return [run for run in self.runs if run.started <= self.now + AHEAD]

    @property
    def last_saved(self) -> RunRecord | None:
        """The last complete success, unless it is in the future."""
        return next((run for run in self._past if run.exit_code == errors.SAVED and run.result == "saved"), None)

    @property
    def since(self) -> float | None:
        """Since when there has been no newer success: the start of the last one, or else of the first recorded run."""
        past = self._past
        found = self.last_saved or (past[-1] if past else None)
        return None if found is None else found.started

    def overdue(self) -> KopiatomicError | None:
        """Return what is wrong: the recorded time, or a last success that is older than three of the schedule's intervals.

        A clock that has not been set yet may well be behind the record: nothing is then said about the future.
        """
        newest = self.runs[0] if self.runs else None
        if self.synchronised and newest is not None and newest.started > self.now + AHEAD:
            return self._wrong_time(newest)
        since = self.since
        if since is None or self.now - since <= LATE * self.schedule.interval:
            return None
        if self.last_saved is None:
            what = f"has had no complete success at all since its first recorded run, {_when(since)}"
        else:
            what = f"has had no complete success since {_when(since)}"
        return KopiatomicError(
            f"the schedule {self.schedule.name} {what}, {duration(self.now - since)} ago; it starts every "
            f"{duration(self.schedule.interval)}",
            kind="overdue",
            hint="'kopiatomic history' shows what its runs came to. With exit code 75 another run has its view root each time: "
            "give the schedule a --name of its own, or --wait.",
        )

    def _wrong_time(self, newest: RunRecord) -> KopiatomicError:
        return KopiatomicError(
            f"the newest run of the schedule {self.schedule.name}, {newest.id}, is recorded as begun at {_when(newest.started)}, "
            f"which is {duration(newest.started - self.now)} in the future: the clock was set back, or that record is wrong",
            kind="clock",
            hint="Is the clock right now ('date -u')? Until its date that run counts as no success; the next run ends this.",
        )


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
