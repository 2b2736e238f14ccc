"""A file for a program that we start, which no other user can read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_NAME = "list"


@contextmanager
def private_file(directory: str, content: bytes) -> Iterator[str]:
    """Make a file in a directory that only we can enter, and remove it at the end of the block; yield its path.

    Raises OSError.
    """
    path = f"{directory}/{_NAME}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(content)
        yield path
    finally:
        os.unlink(path)
