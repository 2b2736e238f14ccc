"""What cannot be read when the record is made is named, and what is gone ends it."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kopiatomic.model.record import Losses, Recorded, Unrecorded
from kopiatomic.system.descriptors import closing
from kopiatomic.trees.record import Recorder
from kopiatomic.trees.shards import Writer

LOSSES = Losses(xattrs=True, directory_times=True)


def recorded(source: Path, record: Path) -> Recorded:
    record.mkdir()
    with closing(os.open(record, os.O_RDONLY)) as fd, closing(os.open(source, os.O_RDONLY)) as top:
        recorder = Recorder(Writer(fd), LOSSES)
        recorder.add(top, "/home")
    return recorder.recorded()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    for name in ("d/inside", "e"):
        (source / name).mkdir(parents=True)
    for name in ("bad", "d/bad", "good"):
        (source / name).touch()
        os.setxattr(source / name, "user.a", b"1")
    return source


def failing(call: Callable[..., object], number: int, ending: str) -> Callable[..., object]:
    """A system call that fails for a file or directory with such a path."""

    def fails(path: str | int, *words: object, **more: object) -> object:
        whole = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
        if whole.endswith(ending):
            raise OSError(number, os.strerror(number))
        return call(path, *words, **more)

    return fails


@pytest.mark.parametrize("call", ["listxattr", "getxattr"])
def test_attributes_that_cannot_be_read_are_named(
    call: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, call, failing(getattr(os, call), errno.EIO, "/bad"))
    found = recorded(source, tmp_path / "record")
    why = os.strerror(errno.EIO)
    assert found.named == (Unrecorded("/home/bad", why), Unrecorded("/home/d/bad", why))
    assert found.unreadable == 2
    # The directories, and the one file whose attributes are known.
    assert found.entries == 5


def test_those_that_a_list_is_about_have_names_also_where_the_engine_keeps_the_list(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "file").touch()
    os.mkfifo(source / "fifo")
    for words in (("-m", "u:1:r", "file"), ("-m", "g:2:r", "fifo"), ("-d", "-m", "u:3:rx", "d")):
        subprocess.run(["setfacl", *words], check=True, cwd=source)
    (tmp_path / "record").mkdir()
    with closing(os.open(tmp_path / "record", os.O_RDONLY)) as fd, closing(os.open(source, os.O_RDONLY)) as top:
        recorder = Recorder(Writer(fd), Losses())
        recorder.add(top, "/home")
    assert recorder.recorded().entries == 0
    names = recorder.names()
    assert ({1, 3} <= names.users.keys(), 2 in names.groups) == (True, True)


def test_an_attribute_with_a_name_that_is_no_text_is_named(source: Path, tmp_path: Path) -> None:
    os.setxattr(source / "good", b"user.\xff", b"1")
    found = recorded(source, tmp_path / "record")
    assert found.named == (Unrecorded("/home/good", "an attribute has a name that is not UTF-8"),)


def test_a_directory_that_cannot_be_listed_is_named_and_the_others_are_recorded(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "scandir", failing(os.scandir, errno.EIO, "/source/d"))
    found = recorded(source, tmp_path / "record")
    assert found.named == (Unrecorded("/home/d", os.strerror(errno.EIO)),)
    assert found.entries == 4


@pytest.mark.parametrize("call", ["listxattr", "scandir"])
def test_what_is_gone_ends_it(call: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = "/bad" if call == "listxattr" else "/source/d"
    monkeypatch.setattr(os, call, failing(getattr(os, call), errno.ENOENT, ending))
    with pytest.raises(FileNotFoundError):
        recorded(source, tmp_path / "record")


def test_twenty_are_named_and_all_are_counted(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        (source / f"e/{number}-bad").touch()
    monkeypatch.setattr(os, "listxattr", failing(os.listxattr, errno.EIO, "-bad"))
    found = recorded(source, tmp_path / "record")
    assert (found.unreadable, len(found.named)) == (30, 20)
