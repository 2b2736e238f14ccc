"""What ``restic backup --json`` writes: one JSON object per line, on both streams (facts of 0.14.0 to 0.18.0, seen)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from kopiatomic.engines.causes import Cause, cause
from kopiatomic.engines.numbers import about
from kopiatomic.engines.results import PROBLEMS
from kopiatomic.model.engine import FileProblem, Progress
from kopiatomic.system.lines import JsonLines
from kopiatomic.text import printable

KEEP_ERRORS = 20
"""How many of the last lines that are not JSON are kept for a failure message."""


class Output:
    """Takes restic's output as it arrives, in limited memory."""

    def __init__(self) -> None:
        self._streams = {"stdout": JsonLines(), "stderr": JsonLines()}
        self._last: deque[str] = deque(maxlen=KEEP_ERRORS)
        self.summary: Mapping[str, Any] | None = None
        """The result, if any."""
        self.problems: list[FileProblem] = []
        """The first files that could not be saved."""
        self.problem_count = 0

    def feed(self, stream: str, data: bytes) -> list[str | Progress]:
        """Take a piece of a stream (empty: it has ended); return lines to pass through, and progress."""
        return [out for found in self._streams[stream].feed(data) for out in self._take(found)]

    def _take(self, found: Mapping[str, Any] | str) -> Iterator[str | Progress]:
        if isinstance(found, str):
            if found.strip():
                self._last.append(found)
                yield found
            return
        kind = found.get("message_type")
        if kind == "status" and ("bytes_done" in found or "files_done" in found or "total_bytes" in found):
            yield Progress(about(found, "files_done"), about(found, "bytes_done"), about(found, "total_bytes") or None)
        elif kind == "summary":
            self.summary = found
        elif kind == "error":
            yield self._problem(found)
        elif kind == "exit_error":
            text = printable(str(found.get("message", "")))
            self._last.append(text)
            yield text

    def _problem(self, found: Mapping[str, Any]) -> str:
        problem = FileProblem(printable(str(found.get("item") or "?")), _reason(found.get("error")))
        self.problem_count += 1
        if len(self.problems) < PROBLEMS:
            self.problems.append(problem)
        return f"not saved: {problem.path}: {problem.message}"

    @property
    def cause(self) -> Cause | None:
        """The cause that its last lines name."""
        return cause("\n".join(reversed(self._last)))

    def said(self, count: int = 3) -> str:
        """Return the last lines that are not JSON, as one."""
        return "; ".join(line.strip().removeprefix("Fatal: ") for line in list(self._last)[-count:])


def _reason(error: object) -> str:
    """Return why a file failed: a text in later versions, the fields of Go's own error in earlier ones."""
    if not isinstance(error, dict):
        return printable(str(error))
    if isinstance(error.get("message"), str):
        return printable(error["message"])
    cause = error.get("Err")
    if isinstance(cause, int):
        cause = os.strerror(cause)
    return printable(": ".join(str(part) for part in (error.get("Op"), cause) if part) or str(error))
