"""``python3 -m tests.support.freebsd_program STATE ARGUMENT...``: kopiatomic on a Linux that Python calls a FreeBSD.

Its kernel is the shim, which keeps what it knows of its mounts in the file STATE. ``hold ...`` is not a command of kopiatomic's,
but one of tests/support/in_a_view.py.
"""

from __future__ import annotations

# They ask which system it is when they are imported.
import multiprocessing  # noqa: F401
import shutil  # noqa: F401
import sqlite3  # noqa: F401
import subprocess  # noqa: F401
import sys
import tempfile  # noqa: F401
from pathlib import Path

import pytest  # noqa: F401

sys.platform = "freebsd14"

from kopiatomic.system import freebsd  # noqa: E402
from tests.support.freebsd_shim import Shim, rename_zoned  # noqa: E402


def main() -> None:
    state = Path(sys.argv.pop(1))
    kernel = Shim(None, state=state).kernel
    freebsd.kernel = lambda: kernel  # type: ignore[assignment]
    from kopiatomic.cli import entry as cli
    from tests.support import in_a_view

    rename_zoned()
    if Path(sys.argv[0]) == Path(__file__):
        # Not if a program of another name has started this module.
        sys.argv[0] = "kopiatomic"
    (in_a_view if sys.argv[1:2] == ["hold"] else cli).main()


if __name__ == "__main__":
    main()
