"""What a part of the benchmark has found: times, and figures with their goals. Goes through JSON from the VM to the host."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge, "=": operator.eq}


@dataclass(frozen=True)
class Figure:
    """One number. ``low`` and ``high`` are the least and the greatest of its rounds; ``goal`` is None where there is none."""

    name: str
    value: float
    low: float
    high: float
    unit: str = ""
    compare: str = "<="
    goal: float | None = None
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached, to the digits that are shown."""
        return None if self.goal is None else _COMPARE[self.compare](round(self.value, 3), self.goal)


def figure(name: str, values: Sequence[float], goal: str = "", *, unit: str = "", note: str = "") -> Figure:
    """The median of some rounds. ``goal`` is such as ``<=1.3``."""
    compare = goal.rstrip("0123456789.") or "<="
    limit = float(goal.removeprefix(compare)) if goal else None
    return Figure(name, median(values), min(values), max(values), unit, compare, limit, note)


@dataclass(frozen=True)
class Times:
    """Seconds of whole processes, round by round."""

    what: str
    datasets: int
    seconds: list[float]
    note: str = ""


@dataclass
class Results:
    """Those of one part, and the machine that it ran on."""

    part: str
    machine: str
    times: list[Times] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


def dump(results: Results) -> str:
    return json.dumps(asdict(results), indent=2)


def load(text: str) -> Results:
    data = json.loads(text)
    data["times"] = [Times(**one) for one in data["times"]]
    data["figures"] = [Figure(**one) for one in data["figures"]]
    return Results(**data)
