"""Runs a function in a fork, follows all its descendants with ptrace(2), and kills them at exact points.

A seccomp filter makes a process stop for its tracer only where it is about to change something (tests/support/syscalls.py),
so a traced run takes hardly longer than another. `strace -e inject` counts for each process by itself, and so would kill
several in one run; here exactly one process is killed, or all of them at once, and everything else goes on.

Who a process is, is told by who forked whom: `main`; its fork is the `keeper`, whose fork is the `launcher`. What they start
with vfork(2) executes another program (Python's subprocess and posix_spawn(3) do that): `engine` below the launcher,
`program` elsewhere. A fork of ours that later executes something was a program as well.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from kopiatomic.system import linux
from tests.support import syscalls

OURS = ("main", "keeper", "launcher")
ROLES = (*OURS, "engine", "program")
_CHILD = {"main": "keeper", "keeper": "launcher", "launcher": "engine"}

_CONT, _SYSCALL, _SEIZE, _LISTEN = 7, 24, 0x4206, 0x4208
_GETEVENTMSG, _GET_SYSCALL_INFO = 0x4201, 0x420E
_EVENT_FORK, _EVENT_VFORK, _EVENT_CLONE, _EVENT_EXEC, _EVENT_SECCOMP, _EVENT_STOP = 1, 2, 3, 4, 7, 128
_OPTIONS = 1 | sum(1 << event for event in (_EVENT_FORK, _EVENT_VFORK, _EVENT_CLONE, _EVENT_EXEC, _EVENT_SECCOMP))
_EXITKILL = 1 << 20
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_WALL = 0x40000000


@dataclass(frozen=True, slots=True)
class Point:
    """A system call that changes something: the `nth` of all processes with this role, counted from 1."""

    role: str
    nth: int
    text: str


@dataclass(frozen=True, slots=True)
class AtPoint:
    """Kill when the `nth` call of a role is about to be made, or has been."""

    role: str
    nth: int
    after: bool
    everyone: bool


@dataclass(frozen=True, slots=True)
class AtTime:
    """Kill so many seconds after the start; `role` None kills all."""

    seconds: float
    role: str | None


@dataclass
class Trace:
    """What happened in a traced run."""

    status: int = 0
    """The main process's exit code, negative for a signal."""
    points: list[Point] = field(default_factory=list)
    closing: set[int] = field(default_factory=set)
    """Descriptors that /dev/zfs was opened as."""
    run_id: str | None = None
    """The first that one of its calls named: its own. None if it did not come to that."""
    killed: list[str] = field(default_factory=list)
    """The roles of the processes that were killed; empty if the run never came to that point."""
    killed_main: bool = False
    where: str = "(it never came to that)"
    began: float = 0.0
    killed_at: float = 0.0
    main_ended: float = 0.0
    ended: float = 0.0
    """When the last process had ended. All are times of CLOCK_MONOTONIC, in seconds."""
    hung: list[str] = field(default_factory=list)
    """Processes that still lived when the time was over."""


def trace(
    function: Callable[[], NoReturn],
    kill: AtPoint | AtTime | None = None,
    *,
    closing: Iterable[int] | None = None,
    limit: float = 120.0,
    trees: bool = False,
) -> Trace:
    """Run a function in a fork, traced, until the last of its descendants has ended (at most `limit` seconds).

    The tracer is a process of its own, so that no other child of this one is ever waited for. `closing` names the
    descriptors whose `close` is a point if they are /dev/zfs; None: any, which is slow. `trees`: what changes entries of a tree
    is a point, too.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            linux.die_with_parent(signal.SIGKILL)
            os.close(reading)
            tracer = _Tracer(kill, closing, trees=trees)
            result = tracer.run(function, limit)
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(pickle.dumps(result))
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        raise RuntimeError(f"the tracer ended with {status}")
    result = pickle.loads(data)  # noqa: S301
    assert isinstance(result, Trace)
    return result


@dataclass
class _Task:
    """A traced thread."""

    process: int
    role: str
    executed: bool = False
    leaving: str | None = None
    """The call at whose end it is to be killed."""


class _Tracer:
    def __init__(self, kill: AtPoint | AtTime | None, closing: Iterable[int] | None, *, trees: bool) -> None:
        self._kill = kill
        self._trees = trees
        self._closing = closing
        self._tasks: dict[int, _Task] = {}
        # Stopped for the first time before its parent's own stop told who it is.
        self._early: set[int] = set()
        self._counts = dict.fromkeys(ROLES, 0)
        self._main = 0
        self._trace = Trace()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
        self._libc.ptrace.restype = ctypes.c_long

    def run(self, function: Callable[[], NoReturn], limit: float) -> Trace:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_DFL)
        reading, writing = os.pipe()
        self._main = os.fork()
        if self._main == 0:
            _become(function, reading, writing, self._closing, trees=self._trees)
        os.close(reading)
        self._tasks[self._main] = _Task(self._main, "main")
        self._ptrace(_SEIZE, self._main, _OPTIONS | _EXITKILL)
        self._trace.began = time.monotonic()
        signal.signal(signal.SIGALRM, self._on_alarm)
        if isinstance(self._kill, AtTime):
            signal.setitimer(signal.ITIMER_REAL, max(0.001, self._kill.seconds))
        self._deadline = self._trace.began + limit
        if not isinstance(self._kill, AtTime):
            signal.setitimer(signal.ITIMER_REAL, limit)
        os.close(writing)
        self._follow()
        self._trace.ended = time.monotonic()
        return self._trace

    def _ptrace(self, request: int, pid: int, data: int = 0) -> bool:
        """False where the process is just being killed."""
        return int(self._libc.ptrace(request, pid, 0, data)) != -1

    def _follow(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, _WALL)
            except ChildProcessError:
                return
            if os.WIFSTOPPED(status):
                self._stopped(pid, os.WSTOPSIG(status), status >> 16)
            else:
                self._ended(pid, status)

    def _ended(self, pid: int, status: int) -> None:
        self._tasks.pop(pid, None)
        self._early.discard(pid)
        self._adopt()
        if pid == self._main:
            self._trace.status = os.waitstatus_to_exitcode(status)
            self._trace.main_ended = time.monotonic()

    def _adopt(self) -> None:
        """Let go, or kill as well, the children whose parent was killed before it could be asked about them."""
        for child in list(self._early):
            if _field(child, "PPid") in self._tasks or not self._trace.killed:
                continue
            self._early.discard(child)
            if self._everyone():
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            self._tasks[child] = _Task(child, _CHILD.get(self._trace.killed[0], "program"))
            self._ptrace(_CONT, child)

    def _everyone(self) -> bool:
        return (
            self._kill.everyone if isinstance(self._kill, AtPoint) else self._kill is not None and not self._kill.role
        )

    def _stopped(self, pid: int, signum: int, event: int) -> None:
        task = self._tasks.get(pid)
        if task is None:
            self._early.add(pid)
            self._adopt()
        elif event in {_EVENT_FORK, _EVENT_VFORK, _EVENT_CLONE}:
            self._forked(pid, task, event)
            self._go_on(pid, task)
        elif event == _EVENT_EXEC:
            # A program that one of ours forked to start it is not one of ours.
            if task.role in OURS and not task.executed:
                task.role = "program"
            task.executed = True
            self._go_on(pid, task)
        elif event == _EVENT_SECCOMP:
            self._at_call(pid, task)
        elif event == _EVENT_STOP:
            self._ptrace(_CONT if signum == signal.SIGTRAP else _LISTEN, pid)
        elif signum == _SYSCALL_STOP:
            self._after_call(pid, task)
        else:
            self._ptrace(_CONT, pid, signum)

    def _go_on(self, pid: int, task: _Task) -> None:
        """On to the end of the call if that is waited for."""
        self._ptrace(_SYSCALL if task.leaving else _CONT, pid)

    def _forked(self, pid: int, task: _Task, event: int) -> None:
        message = ctypes.c_ulong()
        if not self._ptrace(_GETEVENTMSG, pid, ctypes.addressof(message)):
            return
        child = message.value
        if event == _EVENT_CLONE and _field(child, "Tgid") == task.process:
            self._tasks[child] = _Task(task.process, task.role, task.executed)
        elif task.executed:
            self._tasks[child] = _Task(child, task.role, executed=True)
        elif event == _EVENT_VFORK:
            self._tasks[child] = _Task(child, "engine" if task.role == "launcher" else "program")
        else:
            self._tasks[child] = _Task(child, _CHILD.get(task.role, task.role))
        if child in self._early:
            self._early.discard(child)
            self._ptrace(_CONT, child)

    def _at_call(self, pid: int, task: _Task) -> None:
        information = ctypes.create_string_buffer(88)
        if int(self._libc.ptrace(_GET_SYSCALL_INFO, pid, 88, ctypes.addressof(information))) <= 0:
            return
        number, *arguments = struct.unpack_from("7Q", information.raw, 24)
        if syscalls.opens_zfs(pid, number, arguments):
            task.leaving = "/dev/zfs"
        # Of what others do, only that they are started is ours.
        counts = task.role in OURS or (number == syscalls.EXECVE and not task.executed)
        text = syscalls.describe(pid, number, arguments) if counts else None
        if text is not None:
            self._counts[task.role] += 1
            self._trace.run_id = self._trace.run_id or syscalls.run_id_in(text)
            text = syscalls.alike(text)
            point = Point(task.role, self._counts[task.role], text)
            self._trace.points.append(point)
            kill = self._kill
            if isinstance(kill, AtPoint) and (kill.role, kill.nth) == (point.role, point.nth):
                if not kill.after:
                    self._strike(task.process, f"before {text}")
                    return
                task.leaving = text
        self._go_on(pid, task)

    def _after_call(self, pid: int, task: _Task) -> None:
        text, task.leaving = task.leaving, None
        if text == "/dev/zfs":
            information = ctypes.create_string_buffer(88)
            if int(self._libc.ptrace(_GET_SYSCALL_INFO, pid, 88, ctypes.addressof(information))) > 0:
                (descriptor,) = struct.unpack_from("q", information.raw, 24)
                self._trace.closing.add(descriptor)
        elif text is not None:
            self._strike(task.process, f"after {text}")
            return
        self._ptrace(_CONT, pid)

    def _strike(self, process: int, where: str) -> None:
        victims = self._processes() if self._everyone() else {process: self._role_of(process)}
        self._kill_these(victims, where)

    def _kill_these(self, victims: dict[int, str], where: str) -> None:
        self._trace.killed_at = time.monotonic()
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._trace.killed += victims.values()
        self._trace.killed_main = self._main in victims
        self._trace.where = where

    def _processes(self) -> dict[int, str]:
        found = {task.process: task.role for task in self._tasks.values()}
        # A child that nobody has told of yet is one of the run's as well.
        return {**dict.fromkeys(self._early, "?"), **found}

    def _role_of(self, process: int) -> str:
        return next(task.role for task in self._tasks.values() if task.process == process)

    def _on_alarm(self, _signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now >= self._deadline:
            self._trace.hung = [f"{role} {pid} {_command(pid)}" for pid, role in self._processes().items()]
            for pid in self._processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return
        if isinstance(self._kill, AtTime) and not self._trace.killed_at:
            victims = self._processes()
            if self._kill.role is not None:
                victims = {pid: role for pid, role in victims.items() if role == self._kill.role}
            # Of several with one role, one alone.
            chosen = victims if self._kill.role is None else dict(list(victims.items())[:1])
            if not chosen:
                # It is not there yet.
                signal.setitimer(signal.ITIMER_REAL, 0.005)
                return
            self._kill_these(chosen, f"{now - self._trace.began:.3f} s after the start")
        signal.setitimer(signal.ITIMER_REAL, max(0.001, self._deadline - now))


def _become(
    function: Callable[[], NoReturn], reading: int, writing: int, closing: Iterable[int] | None, *, trees: bool
) -> NoReturn:
    """In the fork: wait for the tracer, then be what is traced."""
    try:
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        syscalls.install_filter(closing, trees=trees)
        function()
    finally:
        os._exit(99)


def _field(thread: int, name: str) -> int:
    """A number of `/proc/PID/status`; 0 if the thread has just ended."""
    try:
        lines = Path(f"/proc/{thread}/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:80]
    except OSError:
        return "(just ended)"
