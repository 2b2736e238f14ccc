"""A folder for profiles, as the program wants it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def roots_own() -> Iterator[Path]:
    """A folder that root alone can change, as all above it: pytest's are below /tmp."""
    folder = Path(tempfile.mkdtemp(prefix="kopiatomic-profiles-", dir="/run"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
