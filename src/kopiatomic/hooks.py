"""The administrator's own shell lines before and after a run. The one place where a shell is used, and as it was given."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from kopiatomic.errors import KopiatomicError
from kopiatomic.model import Plan
from kopiatomic.system import channel, linux, process, signals
from kopiatomic.text import ended, printable

_SECRET = re.compile(r"PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|ACCESS_KEY", re.IGNORECASE)


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment less the variables whose names say that they hold a password, passphrase, secret or key."""
    return {name: value for name, value in environment.items() if not _SECRET.search(name)}


def variables(run_id: str, plan: Plan) -> dict[str, str]:
    """What hooks and engines are told of a run."""
    return {
        "KOPIATOMIC_RUN_ID": run_id,
        "KOPIATOMIC_ROOT": plan.root,
        "KOPIATOMIC_DATASETS": "\n".join(t.dataset.name for t in plan.taken),
    }


def run(line: str, flag: str, told: Mapping[str, str], timeout: float) -> None:
    """Run a shell line to its end; its output goes to our stderr, its children end with it.

    ``timeout`` is in seconds. Raises KopiatomicError where it fails, and Interrupted.
    """
    with _children_ended():
        hook = subprocess.Popen(
            ["/bin/sh", "-c", line],
            stdin=subprocess.DEVNULL,
            stdout=2,
            env={**without_secrets(os.environ), **told},
            process_group=0,
        )
        process.started += 1
        pidfd = os.pidfd_open(hook.pid)
        try:
            channel.wait_readable(pidfd, timeout)
        except TimeoutError:
            raise KopiatomicError(
                f"the hook {flag} did not end within {timeout:g} s and was ended: {printable(line)}",
                kind="hook-timeout",
                hint="Give it longer with --hook-timeout, or make it end.",
            ) from None
        finally:
            os.close(pidfd)
            try:
                os.killpg(hook.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            hook.wait()
    if hook.returncode != 0:
        raise KopiatomicError(
            f"the hook {flag} failed ({ended(hook.returncode)}): {printable(line)}",
            kind="hook-failed",
            hint="Its own messages stand above."
            if flag == "-p"
            else "The backup itself is saved or not as said above.",
        )


@contextmanager
def _children_ended() -> Iterator[None]:
    """End and reap what the block leaves running, also what left its process group: orphans come to us."""
    before = set(_children())
    linux.adopt_orphans(adopt=True)
    try:
        yield
    finally:
        with signals.deferred():
            while stray := set(_children()) - before:
                for pid in stray:
                    try:
                        os.kill(pid, signal.SIGKILL)
                        os.waitpid(pid, 0)
                    except (ProcessLookupError, ChildProcessError):
                        continue
            linux.adopt_orphans(adopt=False)


def _children() -> Sequence[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:
        # A kernel built without CONFIG_PROC_CHILDREN: the process group alone is ended then.
        return []
