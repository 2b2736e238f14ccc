"""Who looks into a directory is seen, and who only passes through or opens something in it is not taken for that."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kopiatomic.system import inotify
from kopiatomic.system.inotify import AccessWatch

MAX_EVENTS = Path("/proc/sys/fs/inotify/max_queued_events")


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        (folder / "inside").mkdir(parents=True)
        for name in ("one", "two"):
            (folder / name).write_text(name)
    return folders


def watching(folders: list[Path]) -> AccessWatch:
    with inotify.watching() as reading:
        for folder in folders:
            fd = os.open(folder, os.O_PATH)
            reading.add(folder.name, fd)
            os.close(fd)
    return reading


def opened(folder: Path) -> None:
    os.close(os.open(folder, os.O_RDONLY))


@pytest.mark.parametrize(
    ("look", "unread"),
    [
        (lambda _: None, ("a", "b")),
        (os.listdir, ("b",)),
        (opened, ("b",)),
        (lambda a: os.listdir(a.parent), ("a", "b")),
        (lambda a: os.listdir(a / "inside"), ("a", "b")),
        (lambda a: (a / "one").read_text(), ("a", "b")),
        (lambda a: (a.stat(), (a / "one").stat(), os.path.realpath(a / "inside")), ("a", "b")),
        (lambda a: os.close(os.open(a / "inside", os.O_PATH)), ("a", "b")),
        (lambda a: (os.listdir(a), os.listdir(a.parent / "b")), ()),
    ],
)
def test_what_counts_as_a_look(look: Callable[[Path], object], unread: tuple[str, ...], folders: list[Path]) -> None:
    reading = watching(folders)
    look(folders[0])
    assert reading.unread() == unread


def test_what_was_seen_stays_seen_and_is_watched_no_longer(folders: list[Path]) -> None:
    reading = watching(folders)
    os.listdir(folders[0])
    reading.follow()
    for _ in range(100):
        os.listdir(folders[0])
    with pytest.raises(BlockingIOError):
        os.read(reading.fileno(), 1 << 16)
    assert reading.unread() == ("b",)


def test_where_the_kernel_has_forgotten_what_was_read_nobody_is_accused(folders: list[Path]) -> None:
    reading = watching(folders)
    for _ in range(int(MAX_EVENTS.read_text()) // 2 + 1):
        for name in ("one", "two"):
            os.close(os.open(folders[0] / name, os.O_RDONLY))
    os.listdir(folders[1])
    assert reading.unread() == ()


def test_one_that_cannot_be_watched_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=r"descriptor|file"), inotify.watching() as reading:
        reading.add("gone", 999_999)
    assert os.listdir("/proc/self/fd") == before
