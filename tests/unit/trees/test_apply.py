"""A tree that was copied with losses gets back what its record has; what cannot be given back is named."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kopiatomic.model.record import INDEX, LINKED, Losses, Recorded, RecordedEntry
from kopiatomic.system import inodes
from kopiatomic.system.descriptors import closing
from kopiatomic.text import printable
from kopiatomic.trees import shards
from kopiatomic.trees.apply import Restorer
from kopiatomic.trees.outcome import Outcome
from kopiatomic.trees.record import Recorder
from kopiatomic.trees.shards import Changed, Reading, Writer
from tests.support.exact_tree import furnish, grow

ALL = Losses(xattrs=True, hard_links=LINKED, specials=True, directory_times=True, link_step_ns=1000, stand_in="\ufffd")
"""Those of kopia."""


def unchanged(entry: RecordedEntry) -> RecordedEntry:
    return entry


def of_btrfs(entry: RecordedEntry) -> RecordedEntry:
    """What has flags has some that others have not, too."""
    flags = entry.flags and entry.flags | inodes.LETTERS["C"] | inodes.LETTERS["T"]
    return entry._replace(flags=flags, xattrs={**entry.xattrs, "btrfs.compression": b"zstd"} if flags else entry.xattrs)


class Ground:
    """A tree, its record, and a lossy copy."""

    def __init__(self, folder: Path) -> None:
        self.source, self.target, self.record = (folder / name for name in ("source", "target", "record"))
        self.source.mkdir()

    def made(self, losses: Losses = ALL) -> Recorded:
        self.record.mkdir()
        with closing(os.open(self.record, os.O_RDONLY)) as fd, closing(os.open(self.source, os.O_RDONLY)) as top:
            writer = Writer(fd)
            recorder = Recorder(writer, losses)
            recorder.add(top, "/home")
            writer.end({"datasets": []})
        return recorder.recorded()

    def copied(self, below: str = "") -> None:
        """Copy what kopia keeps: contents, links, owners, modes, times of files, and those of links to the microsecond."""
        waiting = [(os.fsencode(self.source / below), os.fsencode(self.target))]
        while waiting:
            source, target = waiting.pop()
            os.mkdir(target)
            _like(source, target)
            for name in sorted(os.listdir(source)):
                path, copy = source + b"/" + name, target + b"/" + name.decode("utf-8", "replace").encode()
                mode = os.lstat(path).st_mode
                if stat.S_ISLNK(mode):
                    os.symlink(os.readlink(path), copy)
                    _like(path, copy)
                elif stat.S_ISDIR(mode):
                    waiting.append((path, copy))
                elif stat.S_ISREG(mode):
                    shutil.copyfile(path, copy)
                    _like(path, copy)

    def applied(self, base: str = "/home", change: Callable[[RecordedEntry], RecordedEntry] = unchanged) -> Outcome:
        """Apply the record, with its entries changed."""
        index = shards.read_index((self.record / INDEX).read_bytes())
        with closing(os.open(self.target, os.O_RDONLY)) as top:
            outcome = Outcome()
            record = Changed(
                Reading(index, lambda path: (self.record / path).read_bytes()),
                lambda group: (group[0], list(map(change, group[1]))),
            )
            restorer = Restorer(record, outcome, top, base)
            restorer.apply()
            restorer.last()
            return outcome

    def differences(self, below: str = "") -> str:
        """What rsync finds different, besides sockets' and links' times, which it may not set."""
        words = ["rsync", "-aHAXn", "--checksum", "--delete", "--itemize-changes", "--specials", "--devices"]
        pair = [f"{self.source / below}/", f"{self.target}/"]
        return subprocess.run([*words, *pair], check=True, capture_output=True, text=True).stdout


def _like(source: bytes, copy: bytes) -> None:
    status = os.lstat(source)
    os.chown(copy, status.st_uid, status.st_gid, follow_symlinks=False)
    step = 1000 if stat.S_ISLNK(status.st_mode) else 1
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(copy, stat.S_IMODE(status.st_mode))
    if not stat.S_ISDIR(status.st_mode):
        os.utime(copy, ns=(0, status.st_mtime_ns // step * step), follow_symlinks=False)


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    yield Ground(tmp_path)
    subprocess.run(["chattr", "-R", "-f", "-i", "-a", tmp_path], check=False)


def test_everything_that_kopia_loses_comes_back(ground: Ground) -> None:
    furnish(ground.source)
    counted = ground.made()
    assert counted.unreadable == 0
    ground.copied()
    assert ground.differences() != ""
    outcome = ground.applied()
    assert (outcome.differences, outcome.failures, outcome.absent) == ([], [], [])
    assert outcome.applied == counted.entries
    assert ground.differences() == ""


def test_flags_come_last_and_again(ground: Ground) -> None:
    furnish(ground.source)
    subprocess.run(["chattr", "+i", ground.source / "d/f"], check=True)
    subprocess.run(["chattr", "+a", ground.source / "sticky"], check=True)
    ground.made()
    ground.copied()
    for _ in range(2):
        outcome = ground.applied()
        assert (outcome.differences, outcome.failures) == ([], [])
    listed = [
        subprocess.run(["lsattr", "-d", "d/f", "sticky"], cwd=at, check=True, capture_output=True, text=True).stdout
        for at in (ground.source, ground.target)
    ]
    assert listed[0] == listed[1]
    assert listed[0].count("i") > 1


def test_a_flag_that_the_target_lacks_takes_no_other_with_it(ground: Ground) -> None:
    """Files have no T, and only those of Btrfs have C."""
    for name in ("file", "append-only"):
        (ground.source / name).touch()
        subprocess.run(["chattr", "+dA", ground.source / name], check=True)
    subprocess.run(["chattr", "+ai", ground.source / "append-only"], check=True)
    ground.made()
    ground.copied()
    outcome = ground.applied(change=of_btrfs)
    with closing(os.open(ground.target / "file", os.O_RDONLY)) as file:
        assert inodes.flags(file) == inodes.LETTERS["d"] | inodes.LETTERS["A"]
    with closing(os.open(ground.target / "append-only", os.O_RDONLY)) as file:
        assert inodes.flags(file) == sum(inodes.LETTERS[letter] for letter in "dAai")
    assert outcome.reasons == [
        f"/home/{name}: its {what} cannot be set: Operation not supported"
        for name in ("file", "append-only")
        for what in ("flag T", "flag C", "attribute btrfs.compression")
    ]
    assert [str(one) for one in outcome.differences] == [
        f"/home/{name}: the {what}"
        for name in ("append-only", "file")
        for what in (
            'attribute btrfs.compression is absent and was "zstd"',
            "flag T is unset and was set",
            "flag C is unset and was set",
        )
    ]


def test_what_many_entries_lack_is_said_once(ground: Ground) -> None:
    """By what could not be set, which need not be said again as a difference."""
    for number in range(30):
        (ground.source / f"{number:02}").touch()
    subprocess.run(["chattr", "+d", *ground.source.iterdir()], check=True)
    (ground.source / "changed").touch()
    os.setxattr(ground.source / "changed", "user.one", b"1")
    ground.made()
    ground.copied()
    (ground.target / "changed").write_text("longer")
    outcome = ground.applied(change=of_btrfs)
    assert outcome.kinds() == [
        *(
            f"/home/29: its {what} cannot be set: Operation not supported (the first of 30 entries)"
            for what in ("flag T", "flag C", "attribute btrfs.compression")
        ),
        "/home/changed: the size is 6 and was 0",
    ]
    assert (len(outcome.reasons), len(outcome.differences)) == (90, 91)


def test_a_part_is_given_what_belongs_to_it(ground: Ground) -> None:
    furnish(ground.source)
    ground.made()
    ground.copied("d")
    outcome = ground.applied("/home/d")
    assert (outcome.differences, outcome.failures, outcome.absent) == ([], [], [])
    assert ground.differences("d") == ""


def test_what_the_engine_left_out_is_counted_and_not_made(ground: Ground) -> None:
    furnish(ground.source)
    ground.made()
    ground.copied()
    shutil.rmtree(ground.target / "d")
    outcome = ground.applied()
    assert outcome.failures == []
    assert not (ground.target / "d").exists()


def test_a_directory_that_the_engine_left_out_is_counted_with_what_is_in_it(ground: Ground) -> None:
    furnish(ground.source)
    ground.made()
    ground.copied()
    shutil.rmtree(ground.target / "d")
    assert {"/home/d", "/home/d/e", "/home/d/e/g", "/home/d/pipe"} <= set(ground.applied().absent)


def test_hard_links_whose_first_name_is_not_there_are_one_file_again(ground: Ground) -> None:
    (ground.source / "a").touch()
    for name in ("b", "c"):
        os.link(ground.source / "a", ground.source / name)
    ground.made()
    ground.copied()
    (ground.target / "a").unlink()
    outcome = ground.applied()
    assert (outcome.differences, outcome.failures, outcome.absent) == ([], [], ["/home/a"])
    assert (ground.target / "b").samefile(ground.target / "c")


@pytest.mark.parametrize("names", [(b"p\xff", b"p\xfe"), (b"p\xff", "p\ufffd".encode())])
@pytest.mark.parametrize("directories", [True, False], ids=["directories", "files"])
def test_names_that_became_the_same_are_left_as_they_are_and_named(
    names: tuple[bytes, bytes], directories: bool, ground: Ground
) -> None:
    """Nobody knows whose content it is."""
    for name in names:
        path = os.fsencode(ground.source) + b"/" + name
        if directories:
            os.mkdir(path)
            os.setxattr(path, "user.of", name)
            path += b"/file"
        with open(path, "wb") as file:
            file.write(name)
        os.setxattr(path, "user.of", name)
    ground.made()
    (ground.target / "p\ufffd").mkdir(parents=True) if directories else ground.target.mkdir()
    (ground.target / "p\ufffd" / ("file" if directories else "")).write_text("one of them")
    outcome = ground.applied()
    assert os.listdir(ground.target) == ["p\ufffd"]
    # Neither is left out by a rule, and nothing is known that could be compared.
    assert (outcome.absent, outcome.differences) == ([], [])
    first = min(names)
    assert outcome.kinds() == [
        f"/home/{printable(os.fsdecode(first))}: another entry has become the same in the backup: "
        "which of them p\ufffd is cannot be told (the first of 2 entries)"
    ]
    # What is known of one of them is given to none.
    assert not os.listxattr(ground.target / "p\ufffd")


def test_a_link_in_the_way_is_not_followed(ground: Ground, tmp_path: Path) -> None:
    furnish(ground.source)
    ground.made()
    ground.copied()
    decoy = tmp_path / "decoy"
    decoy.mkdir(0o700)
    (decoy / "f").write_text("mine")
    before = decoy.stat(), (decoy / "f").stat()
    shutil.rmtree(ground.target / "d")
    (ground.target / "d").symlink_to(decoy)
    (ground.target / "empty").unlink()
    (ground.target / "empty").symlink_to(decoy / "f")
    ground.applied()
    after = decoy.stat(), (decoy / "f").stat()
    assert [(s.st_mode, s.st_uid, s.st_mtime_ns, s.st_ctime_ns) for s in before] == [
        (s.st_mode, s.st_uid, s.st_mtime_ns, s.st_ctime_ns) for s in after
    ]
    assert os.listdir(decoy) == ["f"]


def test_a_mark_of_ours_is_neither_recorded_nor_removed(ground: Ground) -> None:
    (ground.source / "d").mkdir()
    for name in ("user.a", "trusted.kopiatomic.run"):
        os.setxattr(ground.source / "d", name, b"1")
    ground.made()
    ground.copied()
    assert os.listxattr(ground.target / "d") == []
    os.setxattr(ground.target / "d", "trusted.kopiatomic.restoring", b"2")
    outcome = ground.applied()
    assert (outcome.differences, outcome.failures) == ([], [])
    assert sorted(os.listxattr(ground.target / "d")) == ["trusted.kopiatomic.restoring", "user.a"]


def test_what_is_no_directory_where_one_is_recorded_is_a_difference(ground: Ground) -> None:
    """The names in it are lost, and no rule has left them out."""
    furnish(ground.source)
    ground.made()
    ground.copied()
    for name in ("d", "sticky"):
        shutil.rmtree(ground.target / name)
    (ground.target / "d").touch()
    (ground.target / "sticky").symlink_to("d")
    outcome = ground.applied()
    assert [str(one) for one in outcome.differences] == [
        "/home/d: the kind of entry is file and was directory",
        "/home/sticky: the kind of entry is link and was directory",
    ]
    assert {"/home/d/e/g", "/home/sticky"} <= set(outcome.absent)


def test_what_was_changed_afterwards_is_named(ground: Ground) -> None:
    furnish(ground.source)
    ground.made()
    ground.copied()
    (ground.target / "setuid").write_text("longer")
    (ground.target / "d/pipe").mkdir()
    outcome = ground.applied()
    assert [str(one) for one in outcome.differences] == [
        "/home/setuid: the size is 6 and was 0",
        "/home/d/pipe: the kind of entry is directory and was fifo",
    ]


def test_what_the_engine_keeps_is_not_recorded(ground: Ground) -> None:
    (ground.source / "d").mkdir()
    (ground.source / "d/f").touch()
    os.setxattr(ground.source / "d/f", "user.x", b"1")
    os.link(ground.source / "d/f", ground.source / "g")
    assert ground.made(Losses()).entries == 0
    assert os.listdir(ground.record / shards.FOLDER) == []


@pytest.mark.parametrize("seed", range(3))
def test_random_trees(seed: int, ground: Ground) -> None:
    grow(ground.source, 600, random.Random(seed))
    ground.made()
    ground.copied()
    outcome = ground.applied()
    assert (outcome.differences, outcome.failures, outcome.absent) == ([], [], [])
    assert ground.differences() == ""
