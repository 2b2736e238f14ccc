"""Volumes in the view: each a read-only file of its exact size, whose content comes from the volume's snapshot.

Served by a thread of the launcher: it ends with the view, and nothing in the engine's reach can end it before.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from kopiatomic.errors import KopiatomicError
from kopiatomic.platforms.steps import VolumeFile, VolumesStep
from kopiatomic.system import fuse
from kopiatomic.system.zfs_stream import VolumeReader
from kopiatomic.text import printable


class Volumes:
    """The files of a view, and what went wrong with them."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        """What an engine could not read correctly, in words."""

    def show(self, target: str, step: VolumesStep) -> None:
        """Mount the directory that holds the files, and serve it from now on. Raises OSError, KopiatomicError."""
        try:
            fd = fuse.mount(target, "kopiatomic")
        except FileNotFoundError:
            raise KopiatomicError(
                f"volumes cannot be shown as files: {fuse.DEVICE} does not exist",
                kind="no-fuse",
                hint="Load the kernel's module ('modprobe fuse'); in a container the host must pass the device in.",
            ) from None
        files = {os.path.relpath(f.place, step.place): fuse.File(f.size, self._reader(f)) for f in step.files}
        server = fuse.Server(fd, files, step.instant)
        threading.Thread(target=self._serve, args=(server, fd), daemon=True).start()

    def _reader(self, file: VolumeFile) -> Callable[[int, int], bytes]:
        reader = VolumeReader(file.snapshot)

        def read(offset: int, length: int) -> bytes:
            try:
                return reader.read(offset, length)
            except OSError as error:
                problem = f"the volume {printable(file.dataset)} cannot be read whole: {error.strerror}"
                if problem not in self.problems:
                    self.problems.append(problem)
                raise

        return read

    def _serve(self, server: fuse.Server, fd: int) -> None:
        try:
            server.serve()
        except Exception as error:
            self.problems.append(f"the volumes are not served any more: {error}")
        finally:
            # A process that still waits for an answer gets an error.
            os.close(fd)
