"""Since when a schedule has had no complete success. A run that finds the view root taken (exit code 75) is no failure; if
there is no other for too long, that is one.

A recorded run that began in the future was recorded by a wrong clock: it is no success, or it would count as one until then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from kopiatomic import errors
from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.output.summary import duration
from kopiatomic.schedules.schedule import LATE, Schedule
from kopiatomic.state.records import AHEAD, RunRecord


@immutable
class Standing:
    """What the record says at a time of a schedule, whose runs are ``runs``, the newest first.

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
        """The last complete success, if it is not of the future."""
        return next((run for run in self._past if run.exit_code == errors.SAVED and run.result == "saved"), None)

    @property
    def since(self) -> float | None:
        """Since when there is no newer one: since that run began, or else the first that is recorded."""
        past = self._past
        found = self.last_saved or (past[-1] if past else None)
        return None if found is None else found.started

    def overdue(self) -> KopiatomicError | None:
        """What is wrong: the recorded time, or a last success that is older than three of the schedule's intervals.

        A clock that was not set yet may well be behind the record: of the future nothing is said then.
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
