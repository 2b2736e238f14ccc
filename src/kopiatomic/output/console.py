"""What a person sees: the summary on stdout; progress, warnings and errors on stderr.

Neither a closed nor a full output ends a run: what cannot be written is dropped. :meth:`Console.exit_code` decides what happens
to a command whose answer was lost. All texts are masked on their way (``secrets/masking.py``), and none of their control
characters reaches a terminal.
"""

from __future__ import annotations

import errno
import json
import os
import re
import select
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from kopiatomic.config.invocation import Invocation
from kopiatomic.errors import FAILED, INCOMPLETE, SAVED, UNCLEAN, EndError
from kopiatomic.model.engine import Progress
from kopiatomic.model.plan import Plan
from kopiatomic.model.report import EngineReport, Report
from kopiatomic.output.summary import Line, Style, duration, has_summary, planned_metadata, planned_writers, size
from kopiatomic.output.summary import summary as summary_lines
from kopiatomic.secrets.masking import Secrets
from kopiatomic.system import signals
from kopiatomic.text import harmless

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

_PLAIN_INTERVAL = 60.0
"""Seconds between progress lines where stderr is not a terminal."""

_LABEL = re.compile(r"(?:[A-Z][a-z]+:| ) +")
"""How the lines of a summary begin: a word with a colon, or spaces."""


def write(stream: TextIO, text: str) -> OSError | None:
    """Write a line if possible; return why it was not."""
    try:
        stream.write(text + "\n")
        stream.flush()
    except (OSError, ValueError) as error:
        # Closed or full: the run goes on. What is buffered must not fail again when the interpreter exits.
        discard(stream)
        return error if isinstance(error, OSError) else OSError(errno.EBADF, os.strerror(errno.EBADF))
    return None


def discard(stream: TextIO) -> None:
    """Discard what is still buffered and all that follows."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        return


class Console:
    """The listener of a run for a person, and the printer of its report."""

    def __init__(
        self,
        called: Invocation = Invocation(),  # noqa: B008 - immutable
        *,
        verbose: bool = False,
        quiet: bool = False,
        chatter: bool = True,
        animated: bool = True,
    ) -> None:
        self._verbose = verbose
        self._quiet = quiet
        self._animated = animated
        """Whether a terminal may show a progress line that changes."""
        self._chatter = chatter and not quiet
        """Whether anything except warnings and errors goes to stderr."""
        self._warned: set[str] = set()
        self._about = ""
        """What all lines on stderr that are ours begin with."""
        self._secrets = Secrets(called.words, called.environment)
        self.command_line = self._secrets.command_line(["kopiatomic", *called.words])
        """The command as it was typed, quoted for a shell, as it may be shown: for hints that can be copied."""
        self._live: Live | None = None
        self._lost: OSError | None = None
        """Why some of the output for stdout could not be written."""
        self.acted = False
        """Whether something permanent was done: stdout then has a report of it, otherwise an answer."""
        self._started = time.monotonic()
        self._last_plain = self._started
        self._phase = ""
        self._progress = Progress()

    def about(self, name: str) -> None:
        """Name a profile, one of several, in every line of ours on stderr from here on."""
        self._about = f"{name}: "

    def hide(self, secrets: Secrets) -> None:
        """Mask these secrets, and no others, from here on."""
        self._secrets = secrets

    @contextmanager
    def still_hiding(self) -> Iterator[None]:
        """Within, others may be masked; afterwards what was masked before is masked again."""
        secrets = self._secrets
        try:
            yield
        finally:
            self._secrets = secrets

    # While the run goes on

    def phase(self, text: str) -> None:
        """Begin a new part of the run."""
        if _is_terminal(sys.stdout) or _is_terminal(sys.stderr):
            # Load now what shows the end: the program may be replaced by another version in the meantime.
            import rich.console  # noqa: F401
        self._phase = text
        self._progress = Progress()
        if self._terminal():
            self._refresh()
        elif self._chatter:
            self._line(f"{text} ...")

    def warning(self, text: str) -> None:
        """Show something that the user should know and that does not end the run."""
        self._line(f"warning: {text}", "yellow")

    def warning_once(self, text: str) -> None:
        """Show a warning that holds for all that this command does, at the first of these."""
        if text not in self._warned:
            self._warned.add(text)
            self.warning(text)

    def notice(self, text: str) -> None:
        """Show something that the user must be told, whatever the flags say."""
        self._line(text)

    def engine_line(self, text: str) -> None:
        """Show a line of the engine's own output."""
        if self._chatter:
            self._line(text, prefix="")

    def progress(self, progress: Progress) -> None:
        """Show how far the engine has got."""
        self._progress = progress
        if self._terminal():
            self._refresh()
        elif self._chatter and time.monotonic() - self._last_plain >= _PLAIN_INTERVAL:
            self._last_plain = time.monotonic()
            self._line(self._progress_text())

    def ask(self, question: str) -> bool | None:
        """Ask on the terminal; None if there is none, or if nothing but warnings may be shown. Raises Interrupted."""
        if not self._chatter or not _is_terminal(sys.stdin) or not _is_terminal(sys.stderr):
            return None
        self.end()
        self._line(f"{question} [y/N]")
        poll = select.poll()
        poll.register(sys.stdin, select.POLLIN)
        wakeup = signals.fd()
        if wakeup is not None:
            poll.register(wakeup, select.POLLIN)
        ready: set[int] = set()
        while sys.stdin.fileno() not in ready:
            ready = {fd for fd, _ in poll.poll()}
            signals.check()
        answer = sys.stdin.readline()
        return answer.strip().lower() in {"y", "yes"} if answer else None

    def end(self) -> None:
        """Remove the progress line."""
        if self._live is not None:
            with self._surviving():
                self._live.stop()
            self._live = None

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Go on without the terminal if it has gone away."""
        try:
            yield
        except OSError:
            self._live = None
            discard(sys.stderr)

    def _terminal(self) -> bool:
        return self._chatter and self._animated and _is_terminal(sys.stderr)

    def _refresh(self) -> None:
        from rich.text import Text

        if self._live is None:
            from rich.console import Console as Rich
            from rich.live import Live

            # stdout is left alone: it is the result.
            console = Rich(stderr=True, highlight=False)
            self._live = Live(
                console=console, transient=True, redirect_stdout=False, redirect_stderr=False, auto_refresh=False
            )
        text = Text(self._progress_text(), overflow="ellipsis", no_wrap=True)
        with self._surviving():
            self._live.start()
            self._live.update(text, refresh=True)

    def _progress_text(self) -> str:
        parts = [self._phase]
        progress = self._progress
        if progress.files is not None:
            parts.append(f"{progress.files:,} file{'' if progress.files == 1 else 's'}")
        if progress.bytes_done is not None:
            done = size(progress.bytes_done)
            parts.append(f"{done} of {size(progress.bytes_total)}" if progress.bytes_total else done)
        if progress.text:
            parts.append(progress.text)
        parts.append(f"{duration(time.monotonic() - self._started)} elapsed")
        return ", ".join(parts)

    def _line(self, text: str, style: Style = "", prefix: str | None = None) -> None:
        if prefix is None:
            prefix = f"kopiatomic: {self._about}"
        if self._live is not None:
            with self._surviving():
                self._live.console.print(_rich(style, prefix + self._shown(text)), soft_wrap=True)
        else:
            self._styled(sys.stderr, [(style, prefix + text)])

    def _shown(self, text: str) -> str:
        """Return a text without secrets, and without anything that a terminal would interpret, whatever its origin."""
        return harmless(self._secrets.hide(text))

    def _styled(self, stream: TextIO, lines: Iterable[Line]) -> OSError | None:
        return _styled(stream, [(style, self._shown(text)) for style, text in lines])

    # At its end

    def result(self, text: str) -> None:
        """Write lines to stdout."""
        self.verbatim(self._shown(text))

    def document(self, document: Any, *, indent: int | None = 2) -> None:
        """Write a JSON document to stdout, ASCII only.

        Bytes of names that are not UTF-8 appear as lone surrogates (``\\udcff``).
        """
        self.verbatim(json.dumps(self.hidden(document), indent=indent))

    def hidden(self, document: Any) -> Any:
        """Return a JSON document without the secrets of this run."""
        return self._secrets.hide_in(document)

    def verbatim(self, text: str) -> None:
        """Write to stdout what contains no secret, such as the content of a file that every user may read."""
        self._keep(write(sys.stdout, text))

    def _keep(self, lost: OSError | None) -> None:
        self._lost = self._lost or lost

    def exit_code(self, code: int) -> int:
        """Return the exit code of a command that would end with ``code``: an answer that could not be written is a failure.

        A reader that closes a pipe has read enough.
        """
        if self._lost is None or self._lost.errno == errno.EPIPE:
            return code
        if self.acted:
            self.warning(f"the output was lost: {self._lost.strerror}")
            return code
        self.error_text(f"the answer could not be written: {self._lost.strerror}")
        return FAILED if code in {SAVED, INCOMPLETE, UNCLEAN} else code

    def report(self, report: Report, *, summary: bool) -> None:
        """Print the summary on stdout, unless --quiet; errors on stderr."""
        self.end()
        if not summary or self._quiet:
            pass
        elif report.dry_run and report.plan and report.engine:
            self._plan(report.plan, report.engine)
            self._keep(self._styled(sys.stdout, [("", line) for line in planned_metadata(report)]))
            if report.writers:
                self._keep(self._styled(sys.stdout, [("", "Writers while the snapshots are made:")]))
                self._keep(self._styled(sys.stdout, [("", line) for line in planned_writers(report.writers)]))
            if report.changes is not None:
                self._keep(self._styled(sys.stdout, [("", line) for line in report.changes.lines(report.series)]))
        elif has_summary(report):
            self._keep(self._styled(sys.stdout, summary_lines(report, verbose=self._verbose)))
        for text in report.incomplete:
            self.error_text("not complete: " + text)
        for text in report.left_behind:
            self.error_text("left behind: " + text)
        for error in (report.error, report.hook_error):
            if error is not None:
                self.error(error)

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Write rows of plain texts to stdout, in columns."""
        self._columns([[("", harmless(cell)) for cell in row] for row in rows])

    def _columns(self, table: Sequence[Sequence[tuple[str, str]]]) -> None:
        from kopiatomic.output import columns

        self.verbatim(self._secrets.hide("\n".join(columns.rows(table, *columns.look(sys.stdout)))))

    def _plan(self, plan: Plan, engine: EngineReport) -> None:
        from kopiatomic.output import plan_table

        self._keep(self._styled(sys.stdout, [plan_table.headline(plan)]))
        self._columns(plan_table.table(plan))
        self._keep(self._styled(sys.stdout, list(plan_table.lines(plan, engine, verbose=self._verbose))))

    def error(self, error: EndError) -> None:
        """Print a failure and what to do."""
        self.error_text(error.message)
        if error.hint:
            self._styled(sys.stderr, [("", f"  {error.hint}")])

    def error_text(self, text: str) -> None:
        """Print a failure in one line."""
        self._styled(sys.stderr, [("red", f"kopiatomic: {self._about}{text}")])


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:
        return False


def _styled(stream: TextIO, lines: list[Line]) -> OSError | None:
    """Print lines, styled if the stream is a terminal that supports it; rich handles NO_COLOR and TERM=dumb.

    Returns why they could not be written.
    """
    if not _is_terminal(stream):
        return next(filter(None, [write(stream, text) for _, text in lines]), None)
    from rich.console import Console as Rich

    console = Rich(file=stream, highlight=False)
    try:
        for style, text in _wrapped(lines, console.width):
            console.print(_rich(style, text))
    except OSError as error:
        discard(stream)
        return error
    return None


def _rich(style: Style, text: str) -> Text:
    """Return bold text with the first word in colour: whole lines in colour are hard to read on some backgrounds."""
    from rich.text import Text

    shown = Text(text, style="bold" if style else "")
    if style not in {"", "bold"}:
        shown.stylize(style, 0, len(text.split(" ", 1)[0]))
    return shown


def _wrapped(lines: list[Line], width: int) -> Iterator[Line]:
    """Break long lines between words, and indent what follows to where the text of the first line begins."""
    from textwrap import wrap

    for style, text in lines:
        label = _LABEL.match(text)
        indent = " " * (label.end() if label else 2)
        parts = wrap(
            text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
        )
        yield style, parts[0] if parts else ""
        yield from (("bold" if style else "", part) for part in parts[1:])
