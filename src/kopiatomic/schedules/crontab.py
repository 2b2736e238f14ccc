"""Calendar events of systemd.time(7), as far as crontab(5) can express them as well."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date, timedelta
from itertools import pairwise

from kopiatomic.errors import UsageError
from kopiatomic.immutable import immutable
from kopiatomic.text import printable

_SHORT = {
    "minutely": "*:*",
    "hourly": "*:00",
    "daily": "00:00",
    "weekly": "Mon 00:00",
    "monthly": "*-*-01 00:00",
    "quarterly": "*-01,04,07,10-01 00:00",
    "semiannually": "*-01,07-01 00:00",
    "yearly": "*-01-01 00:00",
    "annually": "*-01-01 00:00",
}
_DAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
"""In cron's order: Sunday is 0."""

_MINUTE = 60.0
_YEARS = 8
"""How far to look ahead: as long as February may be without a 29th."""


@immutable
class Times:
    """When cron starts something; None for every value."""

    minutes: tuple[int, ...] | None
    hours: tuple[int, ...] | None
    days: tuple[int, ...] | None
    months: tuple[int, ...] | None
    weekdays: tuple[int, ...] | None

    @property
    def crontab(self) -> str:
        """The five fields."""
        return " ".join(map(_field, (self.minutes, self.hours, self.days, self.months, self.weekdays)))

    @property
    def interval(self) -> float:
        """The longest time (seconds) between two starts, daylight saving time aside; infinite if there are no two starts."""
        times = [60 * hour + minute for hour in self.hours or range(24) for minute in self.minutes or range(60)]
        days = self._dates()
        apart = [later - earlier for earlier, later in pairwise(times)]
        apart += [(later - earlier).days * 24 * 60 - times[-1] + times[0] for earlier, later in pairwise(days)]
        return max(apart) * _MINUTE if days else float("inf")

    def _dates(self) -> list[date]:
        first = date(2024, 1, 1)
        every = (first + timedelta(number) for number in range(_YEARS * 366))
        return [
            day
            for day in every
            if (self.days is None or day.day in self.days)
            and (self.months is None or day.month in self.months)
            and (self.weekdays is None or day.isoweekday() % 7 in self.weekdays)
        ]


def parse(text: str) -> Times:
    """Parse a calendar event. Raises UsageError if cron cannot express it, or it is unknown."""
    weekdays, day, clock = _parts(text)
    found = Times(
        weekdays=_weekdays(weekdays, text),
        **dict(zip(("months", "days"), _date(day, text), strict=True)),
        **dict(zip(("hours", "minutes"), _clock(clock, text), strict=True)),
    )
    if found.weekdays is not None and found.days is not None:
        raise _refused(text, "cron starts what has both a day of the week and one of the month on either of them")
    if found.interval == float("inf"):
        raise _refused(text, "there is no such day")
    return found


def _parts(text: str) -> tuple[str, str, str]:
    """Return weekdays, date and time, each with its default."""
    weekdays, day, clock = "", "*-*-*", "00:00"
    for word in (_SHORT.get(text.strip().lower(), text)).split():
        if ":" in word:
            clock = word
        elif re.fullmatch(r"[A-Za-z.,]+", word) and word[0].isalpha() and not weekdays:
            weekdays = word
        elif "-" in word:
            day = word
        else:
            raise _refused(text, f"{word!r} is not known")
    return weekdays, day, clock


def _weekdays(text: str, whole: str) -> tuple[int, ...] | None:
    if not text:
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, dots, last = part.partition("..")
        begin = _weekday(first, whole)
        end = _weekday(last, whole) if dots else begin
        found |= {(begin + n) % 7 for n in range((end - begin) % 7 + 1)}
    return None if len(found) == len(_DAYS) else _tuple(found)


def _weekday(name: str, whole: str) -> int:
    for number, day in enumerate(_DAYS):
        if name.lower() in {day, day[:3]}:
            return number
    raise _refused(whole, f"{name!r} is no day of the week")


def _date(text: str, whole: str) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Return months and days."""
    parts = text.split("-")
    if len(parts) == 2:
        parts = ["*", *parts]
    if len(parts) != 3:
        raise _refused(whole, f"{text!r} is no date")
    if parts[0] != "*":
        raise _refused(whole, "cron knows no years")
    return _values(parts[1], range(1, 13), whole), _values(parts[2], range(1, 32), whole)


def _clock(text: str, whole: str) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Return hours and minutes."""
    parts = text.split(":")
    if len(parts) == 3 and re.fullmatch(r"0+", parts[2]):
        parts.pop()
    if len(parts) != 2:
        raise _refused(whole, "cron knows no seconds")
    return _values(parts[0], range(24), whole), _values(parts[1], range(60), whole)


def _values(text: str, known: range, whole: str) -> tuple[int, ...] | None:
    """Return the values of a field; None if they are all possible ones."""
    if text == "*":
        return None
    found: set[int] = set()
    for part in text.split(","):
        read = re.fullmatch(r"(?P<first>\d+|\*)(?:\.\.(?P<last>\d+))?(?:/(?P<step>\d+))?", part)
        if read is None or (read["first"] == "*" and (known.start != 0 or not read["step"] or read["last"])):
            raise _refused(whole, f"cron cannot say {part!r}")
        first = known.start if read["first"] == "*" else int(read["first"])
        last = int(read["last"]) if read["last"] else known.stop - 1 if read["step"] else first
        step = int(read["step"] or 1)
        if first not in known or last not in known or last < first or step == 0:
            raise _refused(whole, f"{part!r} is out of range")
        found.update(range(first, last + 1, step))
    return None if found == set(known) else _tuple(found)


def _tuple(found: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(found))


def _field(values: tuple[int, ...] | None) -> str:
    return "*" if values is None else ",".join(map(str, values))


def _refused(text: str, why: str) -> UsageError:
    return UsageError(
        f"--calendar {printable(text)}: {why}",
        kind="bad-calendar",
        hint="For example 'Mon..Fri 02:30', '*-*-01 04:00' or '*:0/15'.",
    )
