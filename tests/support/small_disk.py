"""A folder on a disk of its own that is soon full, or that nothing can be written to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kopiatomic.system import linux


@contextmanager
def on_small_disk(folder: Path, *, room: int = 3 << 20, read_only: bool = False) -> Iterator[None]:
    """Have what is in a folder on a filesystem with so many bytes of room, which goes with all that was written to it."""
    size = sum(path.stat().st_size + 4096 for path in folder.rglob("*")) + (64 << 10)
    content = folder.with_name("content")
    folder.rename(content)
    folder.mkdir()
    linux.mount("tmpfs", str(folder), "tmpfs", 0, f"size={size + room}")
    try:
        shutil.copytree(content, folder, dirs_exist_ok=True)
        if read_only:
            linux.mount("tmpfs", str(folder), None, linux.MS_REMOUNT | linux.MS_RDONLY)
        yield
    finally:
        linux.detach(str(folder))
        folder.rmdir()
        content.rename(folder)
