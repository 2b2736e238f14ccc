"""Boots the test VM and runs commands in it. Started by dev/vm, which builds what this needs.

The guest runs dev/guest/agent.py as process 1. Commands go to it over virtio-serial ports, each of which is a
UNIX socket in the machine's state folder here.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import ctypes
import fcntl
import hashlib
import io
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NoReturn

TREE = Path(__file__).resolve().parent.parent
PORTS = 4
BOOT_LIMIT_S = 300
KERNEL_ARGUMENTS = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off"
NOT_IN_THE_GUEST = {
    ".git",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "__pycache__",
    ".venv",
    "build",
    "dist",
}
PR_SET_PDEATHSIG = 1
EXIT_TIMEOUT, EXIT_VM_ENDED = 124, 125


class VmError(Exception):
    """The VM could not be used; the message says what to do."""


@dataclass(frozen=True)
class Images:
    """What dev/vm-image has built."""

    boot: Path
    root: Path
    kopia: Path


class Machine:
    """A running VM, known by its state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.console = state / "console.log"
        self.exchange = state / "exchange"

    def start(self, images: Images, disks: list[Path], *, survive: bool) -> subprocess.Popen[bytes]:
        """Start qemu; unless `survive`, it dies with this process, however that ends."""
        self.exchange.mkdir(exist_ok=True)
        command = qemu_command(self, images, disks)
        libc = ctypes.CDLL(None)

        def tie() -> None:
            if not survive:
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        with (self.state / "qemu.log").open("wb") as log:
            # A session of its own, so that Ctrl-C reaches only us and we end things in order.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=tie
            )
        (self.state / "pid").write_text(str(process.pid))
        return process

    def wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + BOOT_LIMIT_S
        while b"agent: ready" not in self.console_text():
            if process.poll() is not None:
                raise VmError(f"the VM ended while it booted\n{self.evidence()}")
            if time.monotonic() > deadline:
                raise VmError(f"the VM was not ready after {BOOT_LIMIT_S} s\n{self.evidence()}")
            time.sleep(0.1)

    def console_text(self) -> bytes:
        return self.console.read_bytes() if self.console.exists() else b""

    def evidence(self) -> str:
        """The end of what the VM and qemu have said."""
        qemu = (self.state / "qemu.log").read_text(errors="replace")[-2000:]
        return f"--- end of the VM's console ---\n{self.console_text()[-4000:].decode(errors='replace')}\n--- qemu ---\n{qemu}"

    def alive(self) -> bool:
        try:
            name = Path(f"/proc/{(self.state / 'pid').read_text()}/comm").read_text()
        except OSError:
            return False
        return name.startswith("qemu")

    def kill(self) -> None:
        if self.alive():
            os.kill(int((self.state / "pid").read_text()), signal.SIGKILL)


def qemu_command(machine: Machine, images: Images, disks: list[Path]) -> list[str]:
    accelerator = os.environ.get("KOPIATOMIC_VM_ACCEL", "tcg")
    drives = [
        f"file={images.root}/root.ext4,format=raw,if=virtio,snapshot=on,cache=unsafe",
        f"file={images.kopia}/kopia.ext4,format=raw,if=virtio,readonly=on",
        *(f"file={disk},format=raw,if=virtio,cache=unsafe" for disk in disks),
    ]
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-machine", "q35", "-smp", os.environ.get("KOPIATOMIC_VM_CPUS", "2")]
    command += ["-m", os.environ.get("KOPIATOMIC_VM_MEMORY_MIB", "3072")]
    # Few instructions beyond the base: the emulator is slower at the wide ones, and OpenZFS times all it finds.
    if accelerator == "tcg":
        command += ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem"]
    else:
        command += ["-accel", accelerator, "-cpu", "max"]
    command += ["-kernel", f"{images.boot}/vmlinux", "-initrd", f"{images.boot}/initrd.img"]
    kernel_arguments = f"{KERNEL_ARGUMENTS} {os.environ.get('KOPIATOMIC_VM_KERNEL_ARGUMENTS', '')}"
    command += ["-append", kernel_arguments, "-serial", f"file:{machine.console}"]
    for drive in drives:
        command += ["-drive", drive]
    command += ["-virtfs", f"local,path={machine.exchange},mount_tag=exchange,security_model=none"]
    command += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
    for number in range(PORTS):
        command += ["-chardev", f"socket,id=port{number},path={machine.state}/port{number},server=on,wait=off"]
        command += ["-device", f"virtserialport,chardev=port{number},name=kopiatomic.{number}"]
    return command


@contextlib.contextmanager
def free_port(machine: Machine) -> Iterator[socket.socket]:
    """Connect to a port that no other command uses."""
    with contextlib.ExitStack() as stack:
        while True:
            for number in range(PORTS):
                lock = (machine.state / f"port{number}.lock").open("w")
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    lock.close()
                    continue
                stack.enter_context(lock)
                connection = stack.enter_context(socket.socket(socket.AF_UNIX))
                connection.connect(str(machine.state / f"port{number}"))
                yield connection
                return
            time.sleep(0.1)


def source_archive() -> bytes:
    """The source tree as a tar file, the same bytes for the same tree."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for folder, folders, files in os.walk(TREE):
            folders[:] = sorted(name for name in folders if name not in NOT_IN_THE_GUEST)
            for name in sorted([*files, *folders]):
                path = Path(folder, name)
                try:
                    member = tar.gettarinfo(path, str(path.relative_to(TREE)))
                    if not member.isfile():
                        tar.addfile(member)
                        continue
                    with path.open("rb") as content:
                        tar.addfile(member, content)
                except FileNotFoundError:
                    continue
    return buffer.getvalue()


class Command:
    """One command in the guest, from its request to its exit code."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = b""

    def send(self, **message: Any) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def messages(self) -> Iterator[dict[str, Any]]:
        """The whole messages among what has arrived; waits for the first byte."""
        data = self.connection.recv(1 << 16)
        if not data:
            raise VmError("the VM ended before the command did")
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            if "error" in message:
                raise VmError(f"the guest could not run the command: {message['error']}")
            yield message

    def begin(self, argv: list[str], folder: str, environment: dict[str, str], *, stdin: bool) -> None:
        archive = source_archive()
        digest = hashlib.sha256(archive).hexdigest()
        self.send(argv=argv, cwd=folder, env=environment, stdin=stdin, source=digest)
        wanted = False
        while not (answer := list(self.messages())):
            pass
        wanted = answer[0]["want_source"]
        if wanted:
            self.send(bytes=len(archive))
            self.connection.sendall(archive)

    def follow(self, timeout: float | None, stdin: BinaryIO | None) -> int:
        """Pass the command's streams on until it has ended; returns its exit code, or EXIT_TIMEOUT."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            if stdin is not None:
                try:
                    selector.register(stdin, selectors.EVENT_READ)
                except PermissionError:  # a plain file, which epoll refuses: send it whole
                    self.send(stdin=base64.b64encode(stdin.read()).decode(), eof=True)
            while True:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    say(f"error: the command was still running in the VM after {timeout:g} s; it has been ended")
                    return EXIT_TIMEOUT
                for key, _ in selector.select(left):
                    if key.fileobj is self.connection:
                        for message in self.messages():
                            if "exit" in message:
                                return int(message["exit"])
                            write(message)
                    elif data := os.read(key.fd, 1 << 14):
                        self.send(stdin=base64.b64encode(data).decode())
                    else:
                        self.send(eof=True)
                        selector.unregister(key.fileobj)


def write(message: dict[str, Any]) -> None:
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        if name in message:
            stream.buffer.write(base64.b64decode(message[name]))
            stream.buffer.flush()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def execute(machine: Machine, options: argparse.Namespace) -> int:
    with free_port(machine) as connection:
        command = Command(connection)
        environment = dict(pair.split("=", 1) for pair in options.env)
        stdin = None if sys.stdin is None or sys.stdin.isatty() or not options.stdin else sys.stdin.buffer
        command.begin(options.command, options.folder, environment, stdin=stdin is not None)
        return command.follow(options.timeout, stdin)


@contextlib.contextmanager
def fresh_machine(options: argparse.Namespace) -> Iterator[Machine]:
    """A VM of its own, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="kopiatomic-vm.") as folder:
        machine = Machine(Path(folder))
        if options.exchange:
            machine.exchange = Path(options.exchange).resolve()
        process = machine.start(options.images, options.disk, survive=False)
        try:
            machine.wait_until_ready(process)
            yield machine
        except VmError as error:
            if machine.console_text() and "console" not in str(error):
                raise VmError(f"{error}\n{machine.evidence()}") from error
            raise
        finally:
            process.kill()
            process.wait()


def run(options: argparse.Namespace) -> int:
    with fresh_machine(options) as machine:
        return execute(machine, options)


def up(options: argparse.Namespace) -> int:
    machine = Machine(options.state)
    if machine.alive():
        say("The VM is up already (dev/vm down ends it).")
        return 0
    shutil.rmtree(machine.state, ignore_errors=True)
    machine.state.mkdir(mode=0o700)
    if options.exchange:
        machine.exchange = Path(options.exchange).resolve()
    process = machine.start(options.images, options.disk, survive=True)
    try:
        machine.wait_until_ready(process)
    except BaseException:
        process.kill()
        raise
    say(f"The VM is up. Console: {machine.console}; exchange folder: {machine.exchange} (in the guest /exchange).")
    return 0


def exec_(options: argparse.Namespace) -> int:
    machine = Machine(options.state)
    if not machine.alive():
        raise VmError("no VM is up\n  -> start one: dev/vm up")
    return execute(machine, options)


def down(options: argparse.Namespace) -> int:
    machine = Machine(options.state)
    machine.kill()
    shutil.rmtree(machine.state, ignore_errors=True)
    return 0


def stop_in_order(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="dev/vm", description="Boot the test VM and run commands in it.")
    for name in ("boot", "root", "kopia"):
        top.add_argument(f"--image-{name}", type=Path, required=True, help=argparse.SUPPRESS)
    top.add_argument("--state", type=Path, required=True, help=argparse.SUPPRESS)
    verbs = top.add_subparsers(dest="verb", required=True)
    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument(
        "--disk", type=Path, action="append", default=[], help="a raw disk image: /dev/vdc, then vdd, ..."
    )
    machine.add_argument("--exchange", metavar="DIR", help="folder that the guest sees as /exchange")
    command = argparse.ArgumentParser(add_help=False)
    command.add_argument("--timeout", type=float, metavar="S", help="seconds before the command is ended")
    command.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="set this for the command")
    command.add_argument("--folder", default="/source", help="its working directory (default: %(default)s)")
    command.add_argument("--stdin", action="store_true", help="pass standard input on")
    command.add_argument("command", nargs="+", metavar="COMMAND")
    verbs.add_parser("run", parents=[machine, command], help="boot, run a command, end the VM").set_defaults(call=run)
    verbs.add_parser("up", parents=[machine], help="boot a VM that stays").set_defaults(call=up)
    verbs.add_parser("exec", parents=[command], help="run a command in the VM that is up").set_defaults(call=exec_)
    verbs.add_parser("down", help="end the VM that is up").set_defaults(call=down)
    return top


def main() -> int:
    options = parser().parse_args()
    options.images = Images(options.image_boot, options.image_root, options.image_kopia)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop_in_order)
    try:
        return int(options.call(options))
    except VmError as error:
        say(f"error: {error}")
        return EXIT_VM_ENDED


if __name__ == "__main__":
    sys.exit(main())
