"""A guest in User-Mode Linux: a kernel that is a process of this machine, and runs programs at almost native speed.

Its serial lines are socket pairs, which only its parent has. So that any process can give it commands, that parent is a
switchboard (this module, run as a program): it lends each line to one caller at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from select import select
from typing import NoReturn

from machines.machine import GUEST_FILES, PORTS, PR_SET_PDEATHSIG, Images, Machine, setting

HANGUP, HUNG_UP = b'\n{"hangup": true}\n', b'{"hungup": true}\n'


class Uml(Machine):
    """Its disks are /dev/ubdc, ubdd, ... and its ports serial lines, through which little passes in a second.

    What is large goes through the folder `bulk` of the state folder, which the guest has mounted.
    """

    def prepare(self) -> None:
        bulk = self.state / "bulk"
        bulk.mkdir()
        shutil.copy(GUEST_FILES / "agent.py", bulk)

    def command(self, images: Images, disks: Sequence[Path]) -> list[str]:
        linux = [
            f"{images.boot}/linux",
            f"mem={setting('MEMORY_MIB', '3072')}M",
            "con=null",
            "con0=null,fd:1",
            "ssl=null",
        ]
        linux += [f"uml_dir={self.state}", "umid=uml", "root=/dev/ubda", "rw", "quiet", "panic=-1", "seccomp=on"]
        linux += [f"ubd0={self.state}/changed.cow,{images.root}/root.ext4", f"ubd1r={images.kopia}/kopia.ext4"]
        linux += [f"ubd{number}={disk.resolve()}" for number, disk in enumerate(disks, start=2)]
        # "KOPIATOMIC_STATE" comes into the environment of init.
        linux += ["init=/sbin/uml-init", f"KOPIATOMIC_STATE={self.state}", *setting("KERNEL_ARGUMENTS", "").split()]
        return [sys.executable, "-m", "machines.uml", str(self.state), *linux]


def serve(listener: socket.socket, guest: socket.socket) -> NoReturn:
    """Lend a line to one caller after another; nothing of one's command reaches the next."""
    while True:
        caller, _ = listener.accept()
        with caller, contextlib.suppress(ConnectionError):
            relay(caller, guest)
        guest.sendall(HANGUP)
        rest = b""
        while not rest.endswith(HUNG_UP):
            rest = rest[-len(HUNG_UP) :] + receive(guest)


def relay(caller: socket.socket, guest: socket.socket) -> None:
    """Pass on what each says, until the caller leaves."""
    while True:
        ready, _, _ = select([caller, guest], [], [])
        if guest in ready:
            caller.sendall(receive(guest))
        if caller in ready:
            data = caller.recv(1 << 16)
            if not data:
                return
            guest.sendall(data)


def receive(guest: socket.socket) -> bytes:
    data = guest.recv(1 << 16)
    if not data:
        # With the guest goes all that is here.
        os._exit(0)
    return data


def main(state: Path, linux: list[str]) -> int:
    lines = []
    for number in range(PORTS):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(state / f"port{number}"))
        listener.listen()
        lines.append((listener, *socket.socketpair()))
    linux += [f"ssl{number}=fd:{inner.fileno()}" for number, (_, _, inner) in enumerate(lines)]
    libc = ctypes.CDLL(None)
    # What says that the machine is alive was inherited, and is passed on.
    inherited = [int(fd) for fd in os.listdir("/proc/self/fd") if int(fd) > 2 and is_lock(int(fd), state)]
    with (state / "console.log").open("wb") as console:
        process = subprocess.Popen(
            linux,
            stdin=subprocess.DEVNULL,
            stdout=console,
            pass_fds=[*inherited, *(inner.fileno() for _, _, inner in lines)],
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
    for listener, outer, inner in lines:
        inner.close()
        threading.Thread(target=serve, args=(listener, outer), daemon=True).start()
    return process.wait()


def is_lock(fd: int, state: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}") == str(state / "alive")
    return False


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
