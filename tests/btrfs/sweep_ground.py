"""What the kill sweep's runs on Btrfs read, and the decoys around it.

Two filesystems: on one lie other people's things where ours lie as well, and a live run; from the other everything of ours has
to go, the directory `.kopiatomic` included. Of that one the top-level subvolume is taken too.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kopiatomic.system import btrfs as ioctls
from tests.support import forked
from tests.support.filesystems import Btrfs
from tests.support.programs import command
from tests.support.sweep_ground import Ground

RUN_IDS = ["20250101T010101Z-0000000a", "20250101T010101Z-0000000b", "20250101T010101Z-0000000c"]
MARK = "trusted.kopiatomic.run"
OTHER_HOST = "0123456789abcdef"
_STUB_INODE = 2
"""The empty directory in a snapshot where the original has a subvolume; its times are those of the look."""


@dataclass
class BtrfsGround(Ground):
    """See `Ground`."""

    tied = False

    crowded: Btrfs
    plain: Btrfs

    def __post_init__(self) -> None:
        self._mine = [self.crowded.mountpoint / "data", self.plain.mountpoint]
        self._mine += [self.plain.mountpoint / f"data{number}" for number in range(3)]

    def words(self) -> list[str]:
        return list(map(str, self._mine))

    def next_words(self) -> list[str]:
        return [str(self.crowded.mountpoint / "other")]

    def sources(self) -> list[Path]:
        return self._mine

    def make(self) -> None:
        """Make it all, decoys included."""
        for name in ("data", "other"):
            self.crowded.subvolume(name)
        for number in range(3):
            self.plain.subvolume(f"data{number}")
        for path in self._mine:
            (path / "file").write_text(f"{path}\n")
        self._make_decoys()
        self.make_neighbours()

    def _make_decoys(self) -> None:
        top = self.crowded.mountpoint
        ours = top / ".kopiatomic"
        ours.mkdir(0o700)
        (ours / "file").write_text("somebody's\n")
        (ours / "somebody").mkdir()
        (ours / "somebody" / "file").write_text("somebody's\n")
        self.crowded.subvolume(".kopiatomic/kopiatomic_x")
        unmarked, foreign, misnamed = (ours / f"kopiatomic_{run_id}" for run_id in RUN_IDS)
        for place in (unmarked, foreign, misnamed):
            place.mkdir(0o700)
            (place / "0").mkdir()
            self._snapshot(top / "data", place / "0" / "snapshot")
            # No delete may reach what lies beside a snapshot.
            self._snapshot(top / "other", place / "0" / "nested")
        os.setxattr(foreign, MARK, f"{RUN_IDS[1]}@{OTHER_HOST}".encode())
        os.setxattr(misnamed, MARK, f"{RUN_IDS[0]}@{OTHER_HOST}".encode())
        self._snapshot(top / "data", top / f"kopiatomic_{RUN_IDS[0]}")
        self._snapshot(top / "other", top / "data" / "kopiatomic_x")

    @staticmethod
    def _snapshot(source: Path, target: Path) -> None:
        command("btrfs", "subvolume", "snapshot", "-r", source, target)

    @contextmanager
    def living_run(self) -> Iterator[None]:
        """Another run over the same subvolume, recorded elsewhere, that goes on while the block is run."""
        root, home = self.beside / "living", self.folder / "living"
        home.mkdir()
        words = ["--mount-root", str(root), str(self._mine[0])]
        with forked.living(words, home, f"{root}{self._mine[0]}/file"):
            self.remember()
            yield

    def look(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for top in (self.crowded.mountpoint, self.plain.mountpoint, self.beside):
            _walk(top, found)
        # Its own runs make and remove things in these.
        for path in (self.root, self.next_root, self.beside, self.plain.mountpoint, self.crowded.mountpoint):
            found.pop(str(path), None)
        shared = str(self.crowded.mountpoint / ".kopiatomic")
        found[shared] = found[shared].partition(" ")[0] if shared in found else "gone"
        return found

    def tidy(self) -> None:
        extra = sorted(path for path in self.look() if path not in self._baseline)
        for path in reversed(extra):
            if os.path.isdir(path) and os.stat(path).st_ino == ioctls.SUBVOLUME_INODE:
                command("btrfs", "subvolume", "delete", path)
        for path in extra:
            if os.path.isdir(path):
                shutil.rmtree(path)


def _walk(path: Path, found: dict[str, str]) -> None:
    """Write down all there is to a file or directory and to what lies in it, its times of reading apart."""
    status = path.lstat()
    marks = {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}
    text = f"{status.st_mode:o},{status.st_ino},{status.st_uid},{status.st_gid},{marks}"
    if status.st_ino != _STUB_INODE:
        text += f" {status.st_mtime_ns}"
    if stat.S_ISREG(status.st_mode):
        text += f" {path.read_bytes()!r}"
    elif stat.S_ISDIR(status.st_mode):
        if status.st_ino == ioctls.SUBVOLUME_INODE:
            text += f" {_identity(path)}"
        for inside in sorted(path.iterdir()):
            _walk(inside, found)
    found[str(path)] = text


def _identity(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not ioctls.is_top(fd):
            return ""
        found = ioctls.subvolume(fd)
        # A snapshot changes the tree of its source, and what happened to be not on the disk yet is.
        return str(replace(found, generation=0, changed=0))
    finally:
        os.close(fd)
