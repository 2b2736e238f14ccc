"""What counts as a view's content."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from kopiatomic.platforms.steps import holds_something


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        # Its path may be short only.
        here = os.open(path.parent, os.O_PATH)
        one.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


@pytest.mark.parametrize(
    ("make", "counts"),
    [
        pytest.param(Path.mkdir, True, id="a directory"),
        pytest.param(Path.touch, True, id="a file"),
        pytest.param(lambda path: path.symlink_to("nowhere"), True, id="a link"),
        pytest.param(os.mkfifo, False, id="a pipe"),
        pytest.param(a_socket, False, id="a socket"),
        pytest.param(lambda _path: None, False, id="nothing"),
    ],
)
def test_only_what_every_backup_program_keeps_fills_a_directory(
    make: Callable[[Path], None], counts: bool, tmp_path: Path
) -> None:
    make(tmp_path / "entry")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        assert holds_something(directory) is counts
        assert holds_something(str(tmp_path)) is counts
    finally:
        os.close(directory)
