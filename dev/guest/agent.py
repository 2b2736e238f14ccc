"""Process 1 of a test machine: sets it up, then runs the commands that the host sends.

Each port (in qemu a virtio-serial port named kopiatomic.N, in User-Mode Linux a serial line) carries one command at a time,
as lines of JSON (see `serve`), so as many commands run side by side as there are ports. A host that hangs up ends its command.
"""

from __future__ import annotations

import base64
import ctypes
import io
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tarfile
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

SOURCE = Path("/source")
SERIAL_LINES = 4
SOURCE_DIGEST = Path("/run/source.digest")
STATE = os.environ.get("KOPIATOMIC_STATE")
"""In User-Mode Linux: the machine's folder on the host, of which `bulk` is BULK here."""

ENVIRONMENT = {
    "HOME": "/root",
    "KOPIATOMIC_IN_VM": "qemu" if STATE is None else "uml",
    "LANG": "C.UTF-8",
    "PATH": "/opt/kopia:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": "/source/src",
    "TERM": "dumb",
    "TMPDIR": "/tmp",
    "USER": "root",
}
LAUNCHER = """#!/usr/bin/python3
import sys
from kopiatomic.cli.entry import main
sys.exit(main())
"""
BULK = Path("/bulk")
LARGE_BYTES = 200
"""A message that is larger goes through a file in BULK where the port is a serial line, through which little passes."""

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_SHARED = 1, 2, 4, 8, 1 << 14, 1 << 20
HOST_IS_AWAY_S = 0.05
libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """Mount without starting a process, each of which costs 0.1 s and more in the emulator."""
    os.makedirs(target, exist_ok=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"mount {source} on {target}: {os.strerror(error)}")


def set_up() -> None:
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if not os.path.exists(f"/dev/{name}"):
            os.symlink(f"/proc/self/fd/{number}", f"/dev/{name}")
    if not os.path.exists("/dev/fd"):
        os.symlink("/proc/self/fd", "/dev/fd")
    mount("sys", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("pts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "ptmxmode=666,gid=5,mode=620")
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV)
    mount("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    mount("tmp", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=90%,mode=1777")
    mount("source", str(SOURCE), "tmpfs", MS_NOSUID | MS_NODEV)
    # What the kernel starts with is private; what systemd, and so every server, has is shared.
    mount("none", "/", "none", MS_REC | MS_SHARED)
    if STATE is None:
        subprocess.run(["modprobe", "-a", "zfs", "btrfs", "loop", "9pnet_virtio", "9p"], check=True)
        mount("exchange", "/exchange", "9p", 0, "trans=virtio,version=9p2000.L,msize=262144,cache=none")
        mount("/dev/vdb", "/opt/kopia", "ext4", MS_RDONLY)
    else:
        # Debian's own kernel of this kind has some as modules.
        subprocess.run(["modprobe", "-a", "zfs", "loop"], check=True)
        mount("exchange", "/exchange", "hostfs", 0, f"{STATE}/exchange")
        mount("/dev/ubdb", "/opt/kopia", "ext4", MS_RDONLY)
    launcher = Path("/usr/local/bin/kopiatomic")
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=False)


def ports() -> Iterator[Port]:
    if STATE is not None:
        for number in range(SERIAL_LINES):
            yield SerialPort(f"/dev/ttyS{number}")
        return
    for entry in sorted(os.listdir("/sys/class/virtio-ports")):
        name = Path("/sys/class/virtio-ports", entry, "name").read_text().strip()
        if name.startswith("kopiatomic."):
            yield Port(f"/dev/{entry}")


class Port:
    """Lines of JSON, and after some of them raw bytes, over one virtio-serial port."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        self.buffer = b""

    def wait_for_host(self) -> None:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        self.buffer = b""
        while any(event & select.POLLHUP for _, event in poll.poll()):
            time.sleep(HOST_IS_AWAY_S)

    def fill(self) -> None:
        data = os.read(self.fd, 1 << 16)
        if not data:
            raise EOFError
        self.buffer += data

    def line(self) -> dict[str, Any] | None:
        """Return the next whole line already read, if there is one."""
        line, newline, rest = self.buffer.partition(b"\n")
        if not newline:
            return None
        self.buffer = rest
        message: dict[str, Any] = json.loads(line)
        return message

    def receive(self) -> dict[str, Any]:
        while (message := self.line()) is None:
            self.fill()
        return message

    def receive_bytes(self, count: int) -> bytes:
        chunks = [self.buffer[:count]]
        self.buffer = self.buffer[count:]
        have = len(chunks[0])
        while have < count:
            self.fill()
            chunk, self.buffer = self.buffer[: count - have], self.buffer[count - have :]
            chunks.append(chunk)
            have += len(chunk)
        return b"".join(chunks)

    def archive(self) -> bytes:
        """Return the source tree that the host sends next."""
        return self.receive_bytes(self.receive()["bytes"])

    def send(self, **message: Any) -> None:
        self.write(json.dumps(message).encode())

    def write(self, line: bytes) -> None:
        data = line + b"\n"
        while data:
            data = data[os.write(self.fd, data) :]


class SerialPort(Port):
    """The same over a serial line: who hangs up says so, and what is large comes and goes as a file in BULK."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        tty.setraw(self.fd)
        self.files = (f"{Path(path).name}.{number}" for number in itertools.count())

    def wait_for_host(self) -> None:
        """Do nothing: it is there, or has hung up."""

    def line(self) -> dict[str, Any] | None:
        while self.buffer.startswith(b"\n"):
            self.buffer = self.buffer[1:]
        message = super().line()
        if message is None:
            return None
        if "hangup" in message:
            self.buffer = b""
            self.send(hungup=True)
            raise EOFError
        if "file" in message:
            file = BULK / str(message["file"])
            message = json.loads(file.read_bytes())
            file.unlink()
        return message

    def archive(self) -> bytes:
        return base64.b64decode(self.receive()["archive"])

    def write(self, line: bytes) -> None:
        if len(line) <= LARGE_BYTES:
            super().write(line)
            return
        file = next(self.files)
        with (BULK / file).open("wb") as out:
            out.write(line)
            out.flush()
            # Only then can the host read it.
            os.fsync(out.fileno())
        super().write(json.dumps({"file": file}).encode())


def unpack_source(archive: BinaryIO) -> None:
    """Make /source equal to the archive; unchanged files keep their times, and so their compiled bytecode."""
    wanted = set()
    with tarfile.open(fileobj=archive) as tar:
        for member in tar:
            path = SOURCE / member.name
            wanted.add(path)
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            if path.is_symlink() or path.exists():
                known = path.lstat()
                if (known.st_size, int(known.st_mtime)) == (member.size, int(member.mtime)) and member.isfile():
                    continue
                path.unlink()
            tar.extract(member, SOURCE)
    for folder, folders, files in os.walk(SOURCE, topdown=False):
        for name in files:
            path = Path(folder, name)
            if path not in wanted and path.parent.name != "__pycache__":
                path.unlink()
        for name in folders:
            path = Path(folder, name)
            if path not in wanted and name != "__pycache__" and not path.is_symlink():
                remove_stale_folder(path)


def remove_stale_folder(path: Path) -> None:
    cache = path / "__pycache__"
    if cache.is_dir():
        for file in cache.iterdir():
            file.unlink()
        cache.rmdir()
    if not any(path.iterdir()):
        path.rmdir()


def run(port: Port, request: dict[str, Any]) -> None:
    """Run one command, passing its output on as it comes; returns when it has ended."""
    with subprocess.Popen(
        request["argv"],
        cwd=request.get("cwd") or "/",
        env={**ENVIRONMENT, **request.get("env", {})},
        stdin=subprocess.PIPE if request.get("stdin") else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as child:
        try:
            relay(port, child)
        finally:
            # Only what is left of the command's own session; what made itself a new one may be meant to stay.
            kill_group(child.pid, signal.SIGKILL)
            for stream in (child.stdout, child.stderr, child.stdin):
                close_quietly(stream)
    code = child.returncode
    port.send(exit=code if code >= 0 else 128 - code)


def close_quietly(stream: Any) -> None:
    try:
        if stream is not None:
            stream.close()
    except OSError:
        pass


def kill_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass


def relay(port: Port, child: subprocess.Popen[bytes]) -> None:
    assert child.stdout is not None
    assert child.stderr is not None
    ended = os.pidfd_open(child.pid)
    streams = {child.stdout.fileno(): "out", child.stderr.fileno(): "err"}
    poll = select.poll()
    for fd in (*streams, ended, port.fd):
        poll.register(fd, select.POLLIN)
    try:
        while True:
            while (message := port.line()) is not None:
                obey(port, message, child)
            ready = {fd for fd, _ in poll.poll()}
            for fd in ready & streams.keys():
                if data := os.read(fd, 1 << 16):
                    port.send(**{streams[fd]: base64.b64encode(data).decode()})
                else:
                    poll.unregister(fd)
                    del streams[fd]
            if port.fd in ready:
                port.fill()
            # Last, so that all that was written before the end has been passed on.
            if ended in ready and not ready & streams.keys():
                return
    finally:
        os.close(ended)


def obey(port: Port, message: dict[str, Any], child: subprocess.Popen[bytes]) -> None:
    if "signal" in message:
        kill_group(child.pid, message["signal"])
    if "stdin" in message and child.stdin is not None:
        try:
            child.stdin.write(base64.b64decode(message["stdin"]))
            child.stdin.flush()
        except BrokenPipeError:
            pass
        port.send(took=True)
    if message.get("eof"):
        close_quietly(child.stdin)


def serve(port: Port) -> NoReturn:
    while True:
        port.wait_for_host()
        try:
            handle(port, port.receive())
        except EOFError:
            continue
        except Exception as error:
            port.send(error=f"{type(error).__name__}: {error}")


def handle(port: Port, request: dict[str, Any]) -> None:
    digest = request.get("source")
    known = SOURCE_DIGEST.read_text() if SOURCE_DIGEST.exists() else None
    port.send(want_source=digest not in (None, known))
    if digest not in (None, known):
        unpack_source(io.BytesIO(port.archive()))
        SOURCE_DIGEST.write_text(digest)
    run(port, request)


def main() -> NoReturn:
    set_up()
    for port in ports():
        if os.fork() == 0:
            serve(port)
    print("agent: ready", flush=True)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            signal.pause()


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        print(f"agent: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise
