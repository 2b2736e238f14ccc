"""The administrator's own shell lines before and after a run. The one place where a shell is used, and as it was given."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from kopiatomic.errors import KopiatomicError
from kopiatomic.model.plan import Plan
from kopiatomic.secrets.masking import Secrets
from kopiatomic.state import lists, locks
from kopiatomic.system import channel, host, inherited, signals
from kopiatomic.text import ended, printable

_LOOK = 0.5
"""Seconds between two looks at the signals that came while they were deferred."""

_PAUSE = 0.002
_KILLED_TIMEOUT = 5.0
"""Seconds that what was killed has to end; only a call that nothing ends takes longer."""

_ROOM = 64 << 10
"""Bytes that lists may have in an environment, all together. The kernel takes no variable of more than 128 KiB (execve(2))."""

_OF_A_RUN = frozenset(
    [
        "KOPIATOMIC_DATASETS",
        "KOPIATOMIC_DATASETS_FILE",
        "KOPIATOMIC_EXIT_CODE",
        "KOPIATOMIC_INSTANT",
        "KOPIATOMIC_KOPIA_SNAPSHOT_ID",
        "KOPIATOMIC_RESULT",
        "KOPIATOMIC_ROOT",
        "KOPIATOMIC_RUN_ID",
        "KOPIATOMIC_SOURCES",
        "KOPIATOMIC_SOURCES_FILE",
    ]
)


def variables(run_id: str, plan: Plan) -> dict[str, str]:
    """What hooks and engines are told of a run.

    The lists are there if there is room for them; the files (``state/lists.py``) always are. A name with a newline is in
    those alone.
    """
    told = {
        "KOPIATOMIC_RUN_ID": run_id,
        "KOPIATOMIC_ROOT": plan.top,
        "KOPIATOMIC_SOURCES_FILE": locks.list_of(run_id, "sources"),
        "KOPIATOMIC_DATASETS_FILE": locks.list_of(run_id, "datasets"),
    }
    named = {"KOPIATOMIC_SOURCES": plan.sources, "KOPIATOMIC_DATASETS": lists.dataset_names(plan)}
    joined = {key: "\n".join(name for name in names if "\n" not in name) for key, names in named.items()}
    fits = sum(len(os.fsencode(text)) for text in joined.values()) <= _ROOM
    return told | joined if fits else told


def environment(base: Mapping[str, str], told: Mapping[str, str]) -> dict[str, str]:
    """An environment with what is told of a run in it, and nothing of the run that kopiatomic may itself run in."""
    return {name: value for name, value in base.items() if name not in _OF_A_RUN} | dict(told)


def run(line: str, flag: str, told: Mapping[str, str], timeout: float, secrets: Secrets) -> None:
    """Run a shell line to its end; its output goes to our stderr, its children end with it.

    ``timeout`` is in seconds, ``secrets`` are what it is not told. Where signals are deferred (``-q``) the second that comes
    ends the line. Raises KopiatomicError where it fails, and Interrupted.
    """
    shown = printable(secrets.hide(line))
    with _children_ended():
        hook = subprocess.Popen(
            ["/bin/sh", "-c", line],
            stdin=subprocess.DEVNULL,
            stdout=2,
            env=environment(secrets.withheld_from(os.environ), told),
            process_group=0,
            preexec_fn=inherited.hand_on,  # noqa: PLW1509 - this process has no threads
        )
        watch = host.here().watch(hook.pid)
        try:
            _wait(watch, timeout)
        except _ImpatientError:
            raise KopiatomicError(
                f"the hook {flag} was ended by a second signal: {shown}",
                kind="hook-interrupted",
                hint="What it should have done is not done.",
            ) from None
        except TimeoutError:
            raise KopiatomicError(
                f"the hook {flag} did not end within {timeout:g} s and was ended: {shown}",
                kind="hook-timeout",
                hint="Give it longer with --hook-timeout, or make it end.",
            ) from None
        finally:
            os.close(watch)
            try:
                os.killpg(hook.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            try:
                hook.wait(_KILLED_TIMEOUT)
            except subprocess.TimeoutExpired:
                # In a call that not even SIGKILL ends, such as one into a suspended pool.
                pass
    if hook.returncode != 0:
        how = "it waits in the kernel" if hook.returncode is None else ended(hook.returncode)
        raise KopiatomicError(
            f"the hook {flag} failed ({how}): {shown}",
            kind="hook-failed",
            hint="Its own messages stand above."
            if flag == "-p"
            else "The backup itself is saved or not as said above.",
        )


class _ImpatientError(Exception):
    """A second signal came while signals were deferred."""


def _wait(watch: int, timeout: float) -> None:
    """Wait for a hook's end. Raises TimeoutError, _ImpatientError, Interrupted."""
    deadline = time.monotonic() + timeout
    before = signals.count()
    alarms = signals.alarms()
    while True:
        left = deadline - time.monotonic()
        try:
            channel.wait_readable(watch, min(_LOOK, max(0.0, left)))
        except TimeoutError:
            if left <= 0:
                raise
        else:
            return
        if signals.count() - before - (signals.alarms() - alarms) > 1:
            raise _ImpatientError


@contextmanager
def _children_ended() -> Iterator[None]:
    """End and reap what the block leaves running, also what left its process group: orphans come to us."""
    system = host.here()
    system.adopt_orphans(adopt=True)
    before = set(system.children())
    try:
        yield
    finally:
        with signals.deferred():
            # Where the kernel does not say which they are, the process group alone is ended.
            _end_all(lambda: set(system.children()) - before)
            system.adopt_orphans(adopt=False)


def _end_all(strays: Callable[[], set[int]]) -> None:
    """Kill and reap, with a time limit: what waits in the kernel ends when that lets it, and is nobody's child of ours then."""
    deadline = time.monotonic() + _KILLED_TIMEOUT
    while (left := strays()) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
            except (ProcessLookupError, ChildProcessError):
                continue
        time.sleep(_PAUSE)
