"""A running guest, known by its state folder: what User-Mode Linux and qemu have in common.

The guest runs dev/guest/agent.py as process 1. Commands go to it over serial ports, each of which is a UNIX socket in the
state folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
GUEST_FILES = TREE / "dev" / "guest"
PORTS = 4
BOOT_LIMIT_S = 300
PR_SET_PDEATHSIG = 1


class MachineError(Exception):
    """The machine could not be used; the message says what to do."""


@dataclass(frozen=True)
class Images:
    """The folders that dev/uml-image or dev/qemu-image has filled."""

    boot: Path
    root: Path
    kopia: Path


class Machine(ABC):
    """A guest that runs, or is about to."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.console = state / "console.log"
        self.exchange = state / "exchange"

    @abstractmethod
    def command(self, images: Images, disks: Sequence[Path]) -> list[str]:
        """What boots it: a process that lives as long as the machine."""

    @abstractmethod
    def prepare(self) -> None:
        """Put into the state folder what the guest reads from there."""

    def start(
        self, images: Images, disks: Sequence[Path], exchange: Path | None, *, survive: bool
    ) -> subprocess.Popen[bytes]:
        """Start the machine; unless `survive`, it dies with this process, however that ends."""
        if exchange is None:
            self.exchange.mkdir()
        else:
            self.exchange.symlink_to(exchange)
        self.prepare()
        libc = ctypes.CDLL(None)
        processor = setting("PROCESSOR", "")

        def tie() -> None:
            if not survive:
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if processor:
                os.sched_setaffinity(0, {int(processor)})

        with (self.state / "machine.log").open("wb") as log, (self.state / "alive").open("w") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)
            # A session of its own, so that Ctrl-C reaches only us and we end things in order.
            process = subprocess.Popen(
                self.command(images, disks),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[alive.fileno()],
                preexec_fn=tie,
            )
        (self.state / "pid").write_text(str(process.pid))
        return process

    def wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + BOOT_LIMIT_S
        while b"agent: ready" not in self.console_text():
            if process.poll() is not None:
                raise MachineError(f"the machine ended while it booted\n{self.evidence()}")
            if time.monotonic() > deadline:
                raise MachineError(f"the machine was not ready after {BOOT_LIMIT_S} s\n{self.evidence()}")
            time.sleep(0.05)

    def console_text(self) -> bytes:
        return self.console.read_bytes() if self.console.exists() else b""

    def evidence(self) -> str:
        """The end of what the guest and its emulator have said."""
        log = (self.state / "machine.log").read_text(errors="replace")[-2000:]
        console = self.console_text()[-4000:].decode(errors="replace")
        return f"--- end of the guest's console ---\n{console}\n--- emulator ---\n{log}"

    def alive(self) -> bool:
        """Whether its process holds the lock that it was started with."""
        try:
            with (self.state / "alive").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            pass
        return False

    def kill(self) -> None:
        if self.alive():
            os.kill(int((self.state / "pid").read_text()), signal.SIGKILL)
        while self.alive():
            time.sleep(0.05)

    def remove(self) -> None:
        """Remove the state folder of a machine that has ended."""
        # A folder of the caller's is a link in it, which is not followed.
        shutil.rmtree(self.state, ignore_errors=True)

    @contextlib.contextmanager
    def free_port(self) -> Iterator[socket.socket]:
        """Connect to a port that no other command uses."""
        with contextlib.ExitStack() as stack:
            while True:
                for number in range(PORTS):
                    lock = (self.state / f"port{number}.lock").open("w")
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        lock.close()
                        continue
                    stack.enter_context(lock)
                    connection = stack.enter_context(socket.socket(socket.AF_UNIX))
                    connection.connect(str(self.state / f"port{number}"))
                    yield connection
                    return
                time.sleep(0.1)


def setting(name: str, otherwise: str) -> str:
    """Return what the environment says of a machine."""
    return os.environ.get(f"KOPIATOMIC_VM_{name}", otherwise)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
