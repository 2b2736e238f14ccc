"""Starts other programs: argv lists only, stdin from /dev/null, bounded in time, never left behind.

A program whose output is read here ends with this process, even if that is killed: the kernel signals it (:func:`_tied`). What it
has started itself must notice its end, as ``borg serve`` does by the end of its pipes. A hook is not ended so.
"""

from __future__ import annotations

import os
import select
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import field

from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.system import channel, children, host, inherited, looking, signals, spawn
from kopiatomic.text import ended, printable

KEEP = 4 << 20
"""How much of a program's output is kept by default (bytes)."""

KILLED_TIMEOUT = 5.0
"""Seconds that a killed program has to end, by default."""

_CHANGES = ("mnt_want_write", "start_transaction", "sb_start_write", "sb_start_intwrite")
"""Functions of Linux that wait for a thaw, as they are seen in a stack."""

_LOOK = 0.5
"""Seconds between two checks for signals that came while they were deferred."""

_PAUSE = 0.002

_POINTER_BYTES = 8


@immutable
class Finished:
    """A program that has ended. ``status`` is negative if a signal ended it."""

    argv: Sequence[str]
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def errors(self) -> str:
        """Return stderr as text, safe to print."""
        return "\n".join(map(printable, self.stderr.decode("utf-8", "backslashreplace").strip().splitlines()))

    @property
    def why(self) -> str:
        """Return why it failed, in one line: the last line of its stderr, or how it ended."""
        return self.errors.rpartition("\n")[2] or ended(self.status)


class TimeLimitError(KopiatomicError):
    """A program exceeded its time limit."""

    argv: Sequence[str] = ()


class ImpatientError(Exception):
    """A second signal came while signals were deferred."""


def parts(words: Iterable[str]) -> list[list[str]]:
    """Split the words into groups that certainly fit into one argv; empty if there are no words.

    A quarter of what the kernel takes (sysconf(3): 2 MiB on Linux at the usual stack size, 256 or 512 KiB on FreeBSD), since the
    environment counts as well, and so does a pointer to each; and no more than 1 MiB, since Linux takes 6 MiB if the stack has no
    limit, whatever sysconf says then (execve(2)).
    """
    limit = min(os.sysconf("SC_ARG_MAX") // 4, 1 << 20)
    found: list[list[str]] = []
    size = 0
    for word in words:
        more = len(os.fsencode(word)) + 1 + _POINTER_BYTES
        size += more
        if not found or size > limit:
            found.append([])
            size = more
        found[-1].append(word)
    return found


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    environment: Mapping[str, str] | None = None,
    keep: int = KEEP,
    take: Callable[[bytes], None] | None = None,
    killed_timeout: float = KILLED_TIMEOUT,
    first: Callable[[], None] | None = None,
) -> Finished:
    """Run a program to its end and return its output (at most ``keep`` bytes of each stream).

    ``timeout`` is in seconds, and so is ``killed_timeout``: how long a killed program has to end. ``take`` is called with each
    piece of standard output, which is then not kept. The program has no terminal, so that it cannot ask for a password. However
    this function is left, the program and its process group have ended; if this process is killed, so is the program. ``first``
    is what the child does before it becomes the program; if that raises anything, SubprocessError is raised here.

    Raises FileNotFoundError, PermissionError, OSError as ``subprocess`` does, TimeLimitError, and Interrupted.
    """
    (finished,) = run_together(
        [argv],
        timeout=timeout,
        environment=environment,
        keep=keep,
        take=take,
        killed_timeout=killed_timeout,
        first=first,
    )
    return finished


def run_together(
    argvs: Iterable[Sequence[str]],
    *,
    timeout: float,
    environment: Mapping[str, str] | None = None,
    keep: int = KEEP,
    take: Callable[[bytes], None] | None = None,
    killed_timeout: float = KILLED_TIMEOUT,
    first: Callable[[], None] | None = None,
) -> list[Finished]:
    """Run programs in parallel, each as :func:`run` does, until the last has ended."""
    # A signal that came while signals were deferred no longer wakes a wait.
    signals.check()
    looking.at("")
    deadline = time.monotonic() + timeout
    running: list[_Running] = []
    try:
        for argv in argvs:
            running.append(_Running(argv, _popen(argv, environment, first)))
        _read(running, deadline, timeout, keep, take)
        for one in running:
            if not _ended(one.process.pid, deadline):
                raise _too_long(one.argv, "closed its output and did not", timeout)
    finally:
        for one in running:
            _end(one.process, killed_timeout)
    return [Finished(one.argv, one.process.returncode, bytes(one.stdout), bytes(one.stderr)) for one in running]


def run_with_family(argv: Sequence[str], *, timeout: float, environment: Mapping[str, str]) -> int | None:
    """Run a program to its end and end all that it has started; its output goes to our stderr, its input is empty.

    ``timeout`` is in seconds. If signals are deferred, the second signal ends it. Return its status, None if it waits in the
    kernel and not even SIGKILL ends it. Raises TimeLimitError, ImpatientError, Interrupted, and OSError as ``subprocess`` does.
    """
    with _children_ended():
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=2,
            env=dict(environment),
            process_group=0,
            preexec_fn=inherited.hand_on,  # noqa: PLW1509 - this process has no threads
        )
        watch = host.here().watch(process.pid)
        try:
            _wait(watch, timeout)
        except TimeoutError:
            raise _too_long(argv, "did not", timeout) from None
        finally:
            os.close(watch)
            _end(process, KILLED_TIMEOUT)
    return process.returncode


@immutable
class Surroundings:
    """What a program that is run for its effects has around it."""

    environment: Mapping[str, str]
    directory: str = "/"
    user: spawn.User | None = None
    content: bytes = b""
    """What it reads from its standard input."""


def run_for_effect(
    argv: Sequence[str], *, timeout: float, around: Surroundings, take: Callable[[bytes], None], insistent: bool = True
) -> int:
    """Run a program to its end and end all that it has started. ``take`` gets its output and errors piece by piece.

    ``timeout`` is in seconds. If signals are deferred, the second signal ends it, unless nobody's insistence counts
    (``insistent`` is False). Return its status. Raises TimeLimitError, ImpatientError, Interrupted, and OSError as
    :func:`spawn.start` does.
    """
    with _children_ended(), ExitStack() as ends:
        our_input, its_input, output, its_output = _pipes(ends)
        options = spawn.SpawnOptions(its_input, its_output, its_output, around.directory, user=around.user, tied=True)
        pid = spawn.start(argv, around.environment, options)
        ends.callback(_end_group, pid)
        for fd in (its_input, its_output):
            os.close(fd)
        watch = host.here().watch(pid)
        ends.callback(os.close, watch)
        feed = Feed(our_input, around.content)
        try:
            _attend(watch, feed, output, take, timeout, insistent=insistent)
        except TimeoutError:
            raise _too_long(argv, "did not", timeout) from None
        finally:
            feed.close()
        _drain(output, take)
        return children.status(pid)


def _pipes(ends: ExitStack) -> tuple[int, int, int, int]:
    """Return our end and the program's of its input, and of its output; ours of the output is closed with ``ends``."""
    its_input, our_input = os.pipe2(os.O_CLOEXEC)
    output, its_output = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(output, False)
    ends.callback(os.close, output)
    return our_input, its_input, output, its_output


class Feed:
    """Writes a content into a pipe, as far as it is read."""

    def __init__(self, fd: int, content: bytes) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._left = memoryview(content)

    def write(self) -> None:
        """Write what the pipe takes; close it at the end, or if nobody reads."""
        try:
            while self._left:
                self._left = self._left[os.write(self.fd, self._left) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            pass
        self.close()

    def close(self) -> None:
        """Close the pipe, unless it is closed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _attend(
    watch: int, feed: Feed, output: int, take: Callable[[bytes], None], timeout: float, *, insistent: bool
) -> None:
    """Feed a program and take its output until it has ended. Raises TimeoutError, ImpatientError, Interrupted."""
    deadline = time.monotonic() + timeout
    impatience = _Impatience()
    wakeup = signals.fd()
    is_open = True
    while True:
        signals.check()
        poll = select.poll()
        for fd in (watch, *([output] if is_open else []), *([wakeup] if wakeup is not None else [])):
            poll.register(fd, select.POLLIN)
        if feed.fd >= 0:
            poll.register(feed.fd, select.POLLOUT)
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        ready = {fd for fd, _ in poll.poll(min(_LOOK, left) * 1000)}
        if feed.fd in ready:
            feed.write()
        if output in ready:
            is_open = _pass_on(output, take)
        if watch in ready:
            return
        if wakeup in ready:
            signals.drain()
        if insistent:
            impatience.check()


def _pass_on(output: int, take: Callable[[bytes], None]) -> bool:
    """Take what is there. Return whether more may come."""
    try:
        data = os.read(output, 1 << 16)
    except BlockingIOError:
        return True
    if data:
        take(data)
    return bool(data)


def _drain(output: int, take: Callable[[bytes], None]) -> None:
    """Take what an ended program has left in its pipe; what it left running may hold that open."""
    # Not select(2): with many descriptors open, this one's number may be too high for it.
    poll = select.poll()
    poll.register(output, select.POLLIN)
    while poll.poll(0) and _pass_on(output, take):
        pass


def _end_group(pid: int) -> None:
    """Kill what is left of a program's process group, even if the program itself has ended, and reap it."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    deadline = time.monotonic() + KILLED_TIMEOUT
    while not children.has_ended(pid) and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    children.reap(pid, wait=False)


class _Impatience:
    """Notices a second signal since now; a time limit that falls into an orderly stop does not count."""

    def __init__(self) -> None:
        self._before = signals.count() - signals.alarms()

    def check(self) -> None:
        """Raise ImpatientError if it came."""
        if signals.count() - signals.alarms() - self._before > 1:
            raise ImpatientError


def _wait(watch: int, timeout: float) -> None:
    """Wait for a program's end. Raises TimeoutError, ImpatientError, Interrupted."""
    deadline = time.monotonic() + timeout
    impatience = _Impatience()
    while True:
        left = deadline - time.monotonic()
        try:
            channel.wait_readable(watch, min(_LOOK, max(0.0, left)))
        except TimeoutError:
            if left <= 0:
                raise
        else:
            return
        impatience.check()


@contextmanager
def _children_ended() -> Iterator[None]:
    """End and reap what the block leaves running, even outside its process group: orphans become our children."""
    system = host.here()
    # On FreeBSD the main process adopts them for as long as its keeper lives.
    is_new = system.adopt_orphans(adopt=True)
    before = set(system.children())
    try:
        yield
    finally:
        with signals.deferred():
            # If the kernel does not name them, only the process group is ended.
            _end_all(lambda: set(system.children()) - before)
            if is_new:
                system.adopt_orphans(adopt=False)


def _end_all(strays: Callable[[], set[int]]) -> None:
    """Kill and reap, with a time limit: what waits in the kernel ends when the kernel lets it, and is then not our child."""
    deadline = time.monotonic() + KILLED_TIMEOUT
    while (left := strays()) and time.monotonic() < deadline:
        for pid in left:
            children.kill(pid)
            children.reap(pid, wait=False)
        time.sleep(_PAUSE)


@immutable
class _Running:
    argv: Sequence[str]
    process: subprocess.Popen[bytes]
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)


def _popen(
    argv: Sequence[str], environment: Mapping[str, str] | None, first: Callable[[], None] | None
) -> subprocess.Popen[bytes]:
    # Search PATH here instead of trying to execute it in one folder after the other. Popen reports what is not found.
    found = shutil.which(argv[0], path=(os.environ if environment is None else environment).get("PATH"))
    return subprocess.Popen(
        argv,
        executable=found,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=None if environment is None else dict(environment),
        start_new_session=True,
        preexec_fn=_tied(first),  # noqa: PLW1509 - this process has no threads
    )


def _tied(first: Callable[[], None] | None) -> Callable[[], None]:
    """Return what a child of this process does before it becomes a program that must not outlive this process; ``first`` is last.

    The kernel takes the thread that forks for the parent (prctl(2)); it waits here until the program has ended. A program that
    waits in the kernel for something else than our pipes would not notice our end otherwise.
    """
    # Not in the child: each would load what that needs.
    system, starter = host.here(), os.getpid()

    def tie() -> None:
        system.end_with_parent(signal.SIGKILL)
        if os.getppid() != starter:
            # It had ended before the kernel was asked to signal that.
            os._exit(1)
        inherited.hand_on()
        if first is not None:
            first()

    return tie


def _read(
    running: Sequence[_Running],
    deadline: float,
    timeout: float,
    keep: int,
    take: Callable[[bytes], None] | None,
) -> None:
    """Read all that they write, until the last stream has ended. Raises TimeLimitError, Interrupted."""
    wakeup_fd = signals.fd()
    with selectors.DefaultSelector() as selector:
        for one in running:
            assert one.process.stdout is not None
            assert one.process.stderr is not None
            selector.register(one.process.stdout, selectors.EVENT_READ, (one, one.stdout))
            selector.register(one.process.stderr, selectors.EVENT_READ, (one, one.stderr))
        open_streams = 2 * len(running)
        if wakeup_fd is not None:
            selector.register(wakeup_fd, selectors.EVENT_READ)
        while open_streams:
            left = deadline - time.monotonic()
            if left <= 0:
                slow = next(key.data[0] for key in selector.get_map().values() if key.data is not None)
                raise _too_long(slow.argv, "did not", timeout)
            for key, _ in selector.select(left):
                if key.fd == wakeup_fd:
                    signals.check()
                    continue
                one, output = key.data
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fileobj)
                    open_streams -= 1
                elif take is not None and output is one.stdout:
                    take(chunk)
                else:
                    output += chunk[: max(0, keep - len(output))]


def _too_long(argv: Sequence[str], what: str, timeout: float) -> TimeLimitError:
    error = TimeLimitError(f"{os.path.basename(argv[0])} {what} end within {timeout:g} s", kind="time-limit")
    error.argv = argv
    return error


def _ended(pid: int, deadline: float) -> bool:
    """Wait for a child's end without reaping it: until then its process group's number cannot be reused."""
    pause = 0.0005
    while not children.has_ended(pid):
        signals.check()
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
    return True


def _end(process: subprocess.Popen[bytes], killed_timeout: float) -> None:
    """Kill what is left of the program's process group, even if the program itself has ended, and reap it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        process.wait(killed_timeout)
    except subprocess.TimeoutExpired:
        # It is in a call that not even SIGKILL ends, such as one into a suspended pool: the kernel ends it when it can.
        pass
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def family(pid: int) -> list[tuple[int, str]]:
    """Return the ids and names of a process and all below it that still live. From Linux's /proc; else the process alone."""
    found: list[tuple[int, str]] = []
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        try:
            with open(f"/proc/{one}/comm", encoding="utf-8", errors="replace") as file:
                found.append((one, printable(file.read().strip())))
            with open(f"/proc/{one}/task/{one}/children", encoding="ascii") as file:
                waiting += map(int, reversed(file.read().split()))
        except OSError:
            found = found or [(pid, "?")]
    return found


def name_of(pid: int) -> str:
    """Return a process's name, safe to print; empty if it has ended, or where there is no /proc of Linux's."""
    return printable(_shown_by_linux(f"{pid}/comm").rstrip("\n"))


def child_waits_for_a_thaw() -> bool:
    """Whether a child of this process is in a call that changes a frozen filesystem (fsfreeze(8)), which waits for the thaw.

    From Linux's /proc, where root may read in which function of the kernel a process waits; elsewhere it is never seen.
    """
    pid = os.getpid()
    stacks = (_shown_by_linux(f"{child}/stack") for child in _shown_by_linux(f"{pid}/task/{pid}/children").split())
    # Who changes a filesystem takes this lock for reading, at one of these places; who freezes it holds it.
    return any("percpu_rwsem_wait" in stack and any(name in stack for name in _CHANGES) for stack in stacks)


def _shown_by_linux(name: str) -> str:
    """Return a text of /proc; empty if it cannot be had: the process has ended, or this kernel does not tell."""
    try:
        with open(f"/proc/{name}", encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
