"""The administrator's own shell lines before and after a run. The only place that uses a shell, with the line as it was given."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.model.plan import Plan
from kopiatomic.model.report import Report
from kopiatomic.secrets.masking import Secrets, masked
from kopiatomic.state import lists, locks
from kopiatomic.system import process
from kopiatomic.text import ended, printable

_ROOM = 64 << 10
"""How many bytes lists may take in an environment, in total. The kernel accepts no variable of more than 128 KiB (execve(2))."""

_PROGRAM = re.compile(r"\s*([A-Za-z0-9_./+-]+)(?=\s*(?:$|[;&|<>])|\s+[^\s(])")
"""The first word of a shell line that begins with the plain name of a program, and is no function's."""

_LOOK_TIMEOUT = 10.0
"""Seconds that the shell has to look at a line."""

_OF_A_RUN = frozenset(
    [
        "KOPIATOMIC_AGAIN",
        "KOPIATOMIC_DATASETS",
        "KOPIATOMIC_DATASETS_FILE",
        "KOPIATOMIC_EXIT_CODE",
        "KOPIATOMIC_HOOK",
        "KOPIATOMIC_INSTANT",
        "KOPIATOMIC_KOPIA_SNAPSHOT_ID",
        "KOPIATOMIC_PROFILE",
        "KOPIATOMIC_RESULT",
        "KOPIATOMIC_ROOT",
        "KOPIATOMIC_RUN_ID",
        "KOPIATOMIC_SOURCES",
        "KOPIATOMIC_SOURCES_FILE",
    ]
)


def variables(run_id: str, plan: Plan) -> dict[str, str]:
    """Return the environment variables that describe a run to hooks and engines.

    The lists are included if there is room for them; the files (``state/lists.py``) always are. A name with a newline is only
    in the files.
    """
    described = {
        "KOPIATOMIC_RUN_ID": run_id,
        "KOPIATOMIC_ROOT": plan.top,
        "KOPIATOMIC_SOURCES_FILE": locks.list_of(run_id, "sources"),
        "KOPIATOMIC_DATASETS_FILE": locks.list_of(run_id, "datasets"),
    }
    named = {"KOPIATOMIC_SOURCES": plan.sources, "KOPIATOMIC_DATASETS": lists.dataset_names(plan)}
    joined = {key: "\n".join(name for name in names if "\n" not in name) for key, names in named.items()}
    fits = sum(len(os.fsencode(text)) for text in joined.values()) <= _ROOM
    return described | joined if fits else described


def outcome(report: Report) -> dict[str, str]:
    """Return the environment variables that say how a run has ended."""
    result = report.engine.result if report.engine else None
    return {
        "KOPIATOMIC_RESULT": report.result,
        "KOPIATOMIC_EXIT_CODE": str(report.exit_code),
        "KOPIATOMIC_KOPIA_SNAPSHOT_ID": (result.snapshot_id or "") if result else "",
    }


def environment(base: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with the variables of a run, and nothing of another run in which kopiatomic may itself be running."""
    return {name: value for name, value in base.items() if name not in _OF_A_RUN} | dict(variables)


def check(line: str, path: str | None = None) -> str:
    """Refuse a line that no shell understands, or whose program is not there. Nothing of it is run.

    ``path`` is the PATH that the hook will have; None for our own. Where more follows than what only its success starts, the line
    may succeed all the same: then what is missing is the result, as it follows the name of the hook. Raises UsageError, whose
    message does so, too, and Interrupted.
    """
    parsed = process.run(["/bin/sh", "-n", "-c", line], timeout=_LOOK_TIMEOUT)
    if parsed.status != 0:
        why = printable(masked(parsed.why.rpartition(": ")[2]))
        raise UsageError(f"is no line of a shell: {why}", kind="hook-syntax", hint="Try it with: sh -n -c LINE")
    first = _PROGRAM.match(line)
    if first is None:
        # An assignment, a variable, or the shell's own language, about which only a run can tell.
        return ""
    if _can_be_run(first[1], path):
        return ""
    missing = _no_program(first[1])
    if _MORE.search(_JOINED.sub("", line[first.end() :].rstrip("; \t\n"))):
        return missing.message
    raise missing


_JOINED = re.compile(r"&&|[<>]&|&>")
"""What stands before a command that is run only after success, and redirections."""

_MORE = re.compile(r"[|;&\n]")
"""What ends a command, so that another may decide how a line ends. In quotes it may end none, which nothing is refused for."""


def check_program(program: str, path: str | None = None) -> None:
    """Refuse a program that is not there or cannot be executed. Raises UsageError, as :func:`check` does."""
    if not _can_be_run(program, path):
        raise _no_program(program)


def _no_program(program: str) -> UsageError:
    return UsageError(
        f"begins with {printable(program)}, which is not there or cannot be executed",
        kind="hook-program",
        hint="Name its whole path: a timer's PATH is another than yours.",
    )


_FINDS = 'case $1 in */*) [ -f "$1" ] && [ -x "$1" ];; *) command -v -- "$1";; esac'
"""A shell line that succeeds if its first argument is a program, or something of the shell's own."""


def _can_be_run(word: str, path: str | None) -> bool:
    """Whether a shell would find a program, or something of its own, under a plain name. Raises KopiatomicError, Interrupted."""
    around = None if path is None else {**os.environ, "PATH": path}
    return process.run(["/bin/sh", "-c", _FINDS, "sh", word], timeout=_LOOK_TIMEOUT, environment=around).status == 0


def run(line: str, flag: str, variables: Mapping[str, str], timeout: float, secrets: Secrets) -> None:
    """Run a shell line to its end; its output goes to our stderr, and its children end with it.

    ``timeout`` is in seconds; ``secrets`` are kept from it. Where signals are deferred (``-q``), the second signal
    ends the line. Raises KopiatomicError if it fails, and Interrupted.
    """
    shown = printable(secrets.hide(line))
    whole = environment(secrets.withheld_from(os.environ), variables)
    try:
        status = process.run_with_family(["/bin/sh", "-c", line], timeout=timeout, environment=whole)
    except process.ImpatientError:
        raise KopiatomicError(
            f"the hook {flag} was ended by a second signal: {shown}",
            kind="hook-interrupted",
            hint="What it should have done is not done.",
        ) from None
    except process.TimeLimitError:
        raise KopiatomicError(
            f"the hook {flag} did not end within {timeout:g} s and was ended: {shown}",
            kind="hook-timeout",
            hint="Give it longer with --hook-timeout, or make it end.",
        ) from None
    if status != 0:
        how = "it waits in the kernel" if status is None else ended(status)
        raise KopiatomicError(
            f"the hook {flag} failed ({how}): {shown}",
            kind="hook-failed",
            hint="Its own messages stand above."
            if flag == "-p"
            else "The backup itself is saved or not as said above.",
        )
