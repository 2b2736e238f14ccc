"""A command in the guest, from its request to its exit code."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import os
import selectors
import socket
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from machines.machine import TREE, Machine, MachineError, say

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
EXIT_TIMEOUT = 124
LARGE_BYTES = 200
"""A message that is larger goes through the machine's folder for that, where it has one. Its serial line is no more than a bell:
what the guest has not read yet may never come near 4 KiB, or User-Mode Linux throttles the line and never reads from it again."""


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
    """One command, over one port."""

    def __init__(self, machine: Machine, connection: socket.socket, cut_at: bytes | None = None) -> None:
        self._machine = machine
        self._cut_at = cut_at
        self._connection = connection
        self._buffer = b""
        bulk = machine.state / "bulk"
        self._bulk = bulk if bulk.is_dir() else None
        self._files = (f"in.{os.getpid()}.{connection.fileno()}.{number}" for number in itertools.count())

    def _send(self, **message: Any) -> None:
        data = json.dumps(message).encode()
        if self._bulk is not None and len(data) > LARGE_BYTES:
            file = next(self._files)
            (self._bulk / file).write_bytes(data)
            data = json.dumps({"file": file}).encode()
        self._connection.sendall(data + b"\n")

    def _send_data(self, name: str, data: bytes) -> None:
        self._send(**{name: base64.b64encode(data).decode()})

    def _messages(self) -> Iterator[dict[str, Any]]:
        """The whole messages among what has arrived; waits for the first byte."""
        data = self._connection.recv(1 << 16)
        if not data:
            raise MachineError("the machine ended before the command did")
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            if self._bulk is not None and "file" in message:
                file = self._bulk / str(message["file"])
                message = json.loads(file.read_bytes())
                file.unlink()
            if "error" in message:
                raise MachineError(f"the guest could not run the command: {message['error']}")
            yield message

    def begin(self, argv: Sequence[str], folder: str, environment: Mapping[str, str], *, stdin: bool) -> None:
        archive = source_archive()
        digest = hashlib.sha256(archive).hexdigest()
        self._send(argv=argv, cwd=folder, env=environment, stdin=stdin, source=digest)
        while not (answer := list(self._messages())):
            pass
        if not answer[0]["want_source"]:
            return
        if self._bulk is not None:
            self._send_data("archive", archive)
            return
        self._send(bytes=len(archive))
        self._connection.sendall(archive)

    def follow(self, timeout: float | None, stdin: BinaryIO | None) -> int:
        """Pass the command's streams on until it has ended; returns its exit code, or EXIT_TIMEOUT."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with selectors.SelectSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            if stdin is not None:
                selector.register(stdin, selectors.EVENT_READ)
            while True:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    say(f"error: the command was still running in the machine after {timeout:g} s; it has been ended")
                    return EXIT_TIMEOUT
                for key, _ in selector.select(left):
                    if key.fileobj is self._connection:
                        for message in self._messages():
                            if "exit" in message:
                                return int(message["exit"])
                            if "took" in message:
                                # The command has read what it was sent: it may have more.
                                assert stdin is not None
                                selector.register(stdin, selectors.EVENT_READ)
                            self._show(message)
                    else:
                        selector.unregister(key.fileobj)
                        if data := os.read(key.fd, 1 << 16):
                            self._send_data("stdin", data)
                        else:
                            self._send(eof=True)

    def _show(self, message: dict[str, Any]) -> None:
        for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
            if data := base64.b64decode(message.get(name, "")):
                stream.buffer.write(data)
                stream.buffer.flush()
                if self._cut_at is not None and self._cut_at in data:
                    self._machine.kill()
                    raise MachineError("the power was cut, as asked for")
