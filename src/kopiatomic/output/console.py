"""What a person sees: the summary on stdout; progress, warnings and errors on stderr.

Neither a closed nor a full output ends a run: what cannot be written is dropped.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from kopiatomic.errors import KopiatomicError
from kopiatomic.model import Plan, Progress, Sets
from kopiatomic.output.document import instant_text
from kopiatomic.report import EngineReport, Report
from kopiatomic.text import printable

if TYPE_CHECKING:
    from rich.live import Live

_PLAIN_INTERVAL = 60.0
"""Seconds between lines of progress where stderr is no terminal."""

_LISTED = 20
"""How many datasets the summary lists; the rest is counted (--verbose lists all)."""

_LABEL = re.compile(r"(?:[A-Z][a-z]+:| ) +")
"""How the lines of a summary begin: a word with a colon, or spaces."""

Style = str


def write(stream: TextIO, text: str) -> None:
    """Write a line if that is possible."""
    try:
        stream.write(text + "\n")
        stream.flush()
    except (OSError, ValueError):
        # Closed or full: the run goes on. What is buffered must not fail again when the interpreter ends.
        _discard(stream)


def _discard(stream: TextIO) -> None:
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        return


class Console:
    """The listener of a run that speaks to a person, and the printer of its report."""

    def __init__(self, *, verbose: bool = False, quiet: bool = False, chatter: bool = True) -> None:
        self._verbose = verbose
        self._quiet = quiet
        self._chatter = chatter and not quiet
        """Whether anything but warnings and errors goes to stderr."""
        self._live: Live | None = None
        self._started = time.monotonic()
        self._last_plain = self._started
        self._phase = ""
        self._progress = Progress()

    # While the run goes on

    def phase(self, text: str) -> None:
        """A new part of the run begins."""
        self._phase = text
        self._progress = Progress()
        if self._terminal():
            self._refresh()
        elif self._chatter:
            self._line(f"{text} ...")

    def warning(self, text: str) -> None:
        """Something that the user should know and that does not end the run."""
        self._line(f"warning: {text}", "bold")

    def engine_line(self, text: str) -> None:
        """A line of the engine's own output."""
        if self._chatter:
            self._line(text, prefix="")

    def progress(self, progress: Progress) -> None:
        """How far the engine is."""
        self._progress = progress
        if self._terminal():
            self._refresh()
        elif self._chatter and time.monotonic() - self._last_plain >= _PLAIN_INTERVAL:
            self._last_plain = time.monotonic()
            self._line(self._progress_text())

    def end(self) -> None:
        """Take the line of progress away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _terminal(self) -> bool:
        return self._chatter and _is_terminal(sys.stderr)

    def _refresh(self) -> None:
        from rich.text import Text

        if self._live is None:
            from rich.console import Console as Rich
            from rich.live import Live

            # stdout stays what it is: it is the result.
            console = Rich(stderr=True, highlight=False)
            self._live = Live(
                console=console, transient=True, redirect_stdout=False, redirect_stderr=False, auto_refresh=False
            )
            self._live.start()
        text = Text(self._progress_text(), overflow="ellipsis", no_wrap=True)
        self._live.update(text, refresh=True)

    def _progress_text(self) -> str:
        parts = [self._phase]
        progress = self._progress
        if progress.files is not None:
            parts.append(f"{progress.files:,} files")
        if progress.bytes_done is not None:
            done = size(progress.bytes_done)
            parts.append(f"{done} of {size(progress.bytes_total)}" if progress.bytes_total else done)
        if progress.text:
            parts.append(progress.text)
        parts.append(duration(time.monotonic() - self._started))
        return ", ".join(parts)

    def _line(self, text: str, style: Style = "", prefix: str = "kopiatomic: ") -> None:
        if self._live is not None:
            self._live.console.print(prefix + text, style=style or None, markup=False, soft_wrap=True)
        else:
            _styled(sys.stderr, [(style, prefix + text)])

    # At its end

    def result(self, text: str) -> None:
        """Write a document to stdout as it is."""
        write(sys.stdout, text)

    def report(self, report: Report, *, summary: bool) -> None:
        """The summary on stdout, unless --quiet; errors on stderr."""
        self.end()
        if not summary or self._quiet:
            pass
        elif report.dry_run and report.plan and report.engine and report.error is None:
            _styled(sys.stdout, self._plan_lines(report.plan, report.engine))
        elif report.saved or _partial(report):
            _styled(sys.stdout, self._summary(report))
        for text in report.incomplete:
            self.error_text("not complete: " + text)
        for text in report.left_behind:
            self.error_text("left behind: " + text)
        for error in (report.error, report.hook_error):
            if error is not None:
                self.error(error)

    def error(self, error: KopiatomicError) -> None:
        """A failure and what to do."""
        self.error_text(error.message)
        if error.hint:
            _styled(sys.stderr, [("", f"  {error.hint}")])

    def error_text(self, text: str) -> None:
        """A failure in a line."""
        _styled(sys.stderr, [("bold red", f"kopiatomic: {text}")])

    def _summary(self, report: Report) -> list[tuple[Style, str]]:
        assert report.plan is not None
        assert report.sets is not None
        assert report.engine is not None
        lines = [_headline(report)]
        lines += [("", line) for line in _table(report.plan, all_of_it=self._verbose)]
        lines += [("", line) for line in proof(report.sets)]
        lines += [("", line) for line in _engine_lines(report.engine)]
        if not report.left_behind:
            lines.append(
                ("", f"Removed:  all snapshots and mounts; they existed for {duration(report.frozen_seconds)}")
            )
        if self._verbose:
            lines.append(("", "Times:    " + ", ".join(f"{k} {v:.2f} s" for k, v in report.durations.items())))
        return lines

    def _plan_lines(self, plan: Plan, engine: EngineReport) -> list[tuple[Style, str]]:
        lines = [("bold", f"Would save {len(plan.taken)} dataset(s) below {printable(plan.root)}; nothing was changed")]
        lines += [("", line) for line in _table(plan, all_of_it=True)]
        for left_out in plan.left_out:
            if self._verbose or left_out.incomplete:
                lines.append(("", f"  {printable(left_out.name)}  not taken: {left_out.reason}"))
        lines.append(("", "Command:  " + shlex.join(map(printable, engine.argv))))
        return lines


def _partial(report: Report) -> bool:
    """Whether something was saved that is not a backup: its name must not stay untold."""
    result = report.engine.result if report.engine else None
    return bool(result and result.snapshot_id and report.sets)


def _headline(report: Report) -> tuple[Style, str]:
    assert report.plan is not None
    assert report.sets is not None
    count = len(report.plan.taken)
    when = instant_text(report.sets.started_ns).replace("T", " ").replace("Z", " UTC")
    if not report.saved:
        return "bold red", f"NOT a backup: interrupted or changed while {count} dataset(s) of {when} were read"
    what = "Saved" if not report.incomplete else "Saved, but not complete:"
    instant = "at one instant" if report.sets.atomic else "NOT at one instant"
    style = "bold green" if report.exit_code == 0 and report.sets.atomic else "bold yellow"
    return style, f"{what} {count} dataset{'s' if count != 1 else ''} {instant}, {when}"


def _table(plan: Plan, *, all_of_it: bool) -> list[str]:
    taken = plan.taken if all_of_it or len(plan.taken) <= _LISTED else plan.taken[: _LISTED - 1]
    names = [printable(t.dataset.name) for t in taken]
    width = min(40, max(map(len, names), default=0))
    lines = [
        f"  {name:<{width}}  in {printable(_view_path(plan.root, t.place))}"
        for name, t in zip(names, taken, strict=True)
    ]
    if len(taken) < len(plan.taken):
        lines.append(f"  and {len(plan.taken) - len(taken)} more (--verbose lists them)")
    return lines


def _view_path(root: str, place: str) -> str:
    return root if place == "/" else root + place


def proof(sets: Sets) -> list[str]:
    """What shows, or does not show, that the snapshots share one instant."""
    lines = []
    for made in sets.sets:
        count = len(made.snapshots)
        kind = "pool" if made.filesystem == "zfs" else "Btrfs filesystem"
        transaction = "transaction group" if made.filesystem == "zfs" else "transaction"
        where = f"{kind} {printable(made.pool)}"
        if count == 1:
            lines.append(f"{where}: one snapshot, {transaction} {made.snapshots[0].transaction}")
        elif made.one_instant:
            lines.append(f"{where}: {count} snapshots, all in {transaction} {made.snapshots[0].transaction}")
        else:
            numbers = [s.transaction for s in made.snapshots]
            lines.append(
                f"{where}: {count} snapshots in {len(set(numbers))} transactions ({min(numbers)} to {max(numbers)})"
            )
    if not sets.atomic:
        lines.append(f"the sets are up to {sets.skew_ns / 1e9:.3f} s apart (an upper bound)")
    return [("Proof:    " if not i else "          ") + line for i, line in enumerate(lines)]


def _engine_lines(engine: EngineReport) -> list[str]:
    result = engine.result
    assert result is not None
    words = [engine.name + (f" {engine.version}" if engine.version else "")]
    if result.snapshot_id:
        words.append(f"snapshot {result.snapshot_id}")
    statistics = result.statistics
    if "files_total" in statistics:
        words.append(f"{statistics['files_total']:,} files, {size(statistics.get('bytes_total', 0))}")
    if "files_cached" in statistics:
        words.append(f"{statistics['files_cached']:,} unchanged")
    lines = ["Engine:   " + ", ".join(words)]
    for problem in result.problems:
        lines.append(f"  not saved: {printable(problem.path)}: {printable(problem.message)}")
    if result.problem_count > len(result.problems):
        lines.append(f"  and {result.problem_count - len(result.problems)} more")
    return lines


def size(count: int | None) -> str:
    """Bytes in decimal units."""
    value = float(count or 0)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


def duration(seconds: float | None) -> str:
    """A time span in words that fit a line."""
    seconds = seconds or 0.0
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:
        return False


def _styled(stream: TextIO, lines: list[tuple[Style, str]]) -> None:
    """Print lines, styled where the stream is a terminal that wants it; NO_COLOR and TERM=dumb are rich's to respect."""
    if not _is_terminal(stream):
        for _, text in lines:
            write(stream, text)
        return
    from rich.console import Console as Rich

    console = Rich(file=stream, highlight=False)
    for style, text in _wrapped(lines, console.width):
        _guarded(lambda style=style, text=text: console.print(text, style=style or None, markup=False), stream)  # type: ignore[misc]


def _wrapped(lines: list[tuple[Style, str]], width: int) -> Iterator[tuple[Style, str]]:
    """Break long lines between words, and indent what follows to where the text of the first one begins."""
    from textwrap import wrap

    for style, text in lines:
        label = _LABEL.match(text)
        indent = " " * (label.end() if label else 2)
        parts = wrap(
            text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
        )
        yield from ((style, part) for part in parts or [""])


def _guarded(print_it: Callable[[], None], stream: TextIO) -> None:
    try:
        print_it()
    except OSError:
        _discard(stream)
