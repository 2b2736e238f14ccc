"""What is taken from the cache is what would have been recorded, byte for byte; anything else in it is not used."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from kopiatomic.errors import KopiatomicError
from kopiatomic.model.record import LINKED, Losses, Recorded
from kopiatomic.system.descriptors import closing
from kopiatomic.trees import cache
from kopiatomic.trees.cache import Cache, Known
from kopiatomic.trees.record import Recorder
from kopiatomic.trees.shards import Writer

LOSSES = Losses(xattrs=True, hard_links=LINKED, directory_times=True, stand_in="\ufffd")


class Ground:
    """Some datasets, each with its trees and its state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.directory = folder / "cache"
        self.directory.mkdir(0o700)
        self.trees: dict[str, list[str]] = {}
        self.before: dict[str, str] = {}
        self.now: dict[str, str] = {}
        self._count = 0

    def made(self, *, with_cache: bool = True, losses: Losses = LOSSES) -> tuple[dict[str, bytes], Recorded, str]:
        """Record all of it: the files of the record by their paths, what the recorder says, and what is wrong with the cache."""
        self._count += 1
        record = self.folder / f"record-{self._count}"
        record.mkdir()
        states = {("zfs", name): (self.before.get(name, ""), now) for name, now in self.now.items()}
        places = sorted((place, name) for name, places in self.trees.items() for place in places)
        with closing(os.open(record, os.O_RDONLY)) as fd, closing(os.open(self.directory, os.O_RDONLY)) as kept:
            writer = Writer(fd)
            recorder = Recorder(writer, losses)
            known = Known(Cache(kept, losses) if with_cache else None, states, lambda key: str(self.trees[key[1]]))
            for place, name in places:
                part = known.part(("zfs", name), place)
                if part is not None:
                    recorder.take(part)
                    continue
                with closing(os.open(f"{self.folder}{place}", os.O_RDONLY)) as top:
                    known.note(("zfs", name), place, recorder.add(top, place))
            writer.end({"datasets": []})
            known.keep()
        files = {str(path.relative_to(record)): path.read_bytes() for path in record.rglob("*") if path.is_file()}
        return files, recorder.recorded(), known.problem

    def changed(self, *names: str) -> None:
        """Make the states those of the next run, in which these datasets have changed."""
        self.before = {name: "" if name in names else state for name, state in self.now.items()}
        self.now = {name: f"{state}+" for name, state in self.now.items()}

    @property
    def kept(self) -> list[Path]:
        return [path for path in self.directory.iterdir() if path.name != cache.TAG]


def furnish(top: Path, chance: random.Random) -> None:
    directories = [top]
    top.mkdir(exist_ok=True)
    files: list[Path] = []
    for number in range(chance.randrange(60, 300)):
        name = os.fsdecode(b"\xff%d" % number) if chance.random() < 0.05 else str(number)
        path = chance.choice(directories) / name
        kind = chance.random()
        if kind < 0.2:
            path.mkdir()
            directories.append(path)
        elif kind < 0.3 and files:
            os.link(chance.choice(files), path)
        else:
            path.write_text(name.encode(errors="replace").decode())
            files.append(path)
            if kind > 0.8:
                os.setxattr(path, "user.a", bytes(chance.randrange(40)))


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    """Two trees of one dataset, with a file in both, and three datasets of one tree, one of them between those."""
    made = Ground(tmp_path)
    chance = random.Random(os.environ["KOPIATOMIC_TEST_SEED"])
    made.trees = {"a": ["/a", "/c"], "b": ["/b"], "d": ["/d"], "e": ["/e"]}
    made.now = dict.fromkeys(made.trees, "1")
    for places in made.trees.values():
        for place in places:
            furnish(Path(f"{tmp_path}{place}"), chance)
    os.link(next(path for path in (tmp_path / "a").rglob("*") if path.is_file()), tmp_path / "c/other")
    return made


def test_the_record_is_the_same_with_and_without_the_cache(ground: Ground) -> None:
    assert ground.made()[1].known == 0
    chance = random.Random(os.environ["KOPIATOMIC_TEST_SEED"])
    for _ in range(5):
        some = [name for name in ground.trees if chance.random() < 0.4]
        ground.changed(*some)
        for name in some:
            furnish(Path(f"{ground.folder}{ground.trees[name][0]}") / f"new-{chance.random()}", chance)
        files, recorded, problem = ground.made()
        again, plain, _ = ground.made(with_cache=False)
        assert files == again
        assert (recorded.entries, recorded.size, problem) == (plain.entries, plain.size, "")
        assert (recorded.known == 0) == (len(some) == len(ground.trees))
        assert (recorded.known == recorded.entries) == (not some)
        assert len(ground.kept) == len(ground.trees)


def test_no_shard_is_of_two_trees(ground: Ground) -> None:
    before = set(ground.made(with_cache=False)[0])
    (ground.folder / "b/new").mkdir()
    after = set(ground.made(with_cache=False)[0])
    assert 0 < len(before - after) < len([name for name in before if name.startswith("shards/")])
    (ground.folder / "small").mkdir()
    small = Ground(ground.folder / "small")
    small.trees, small.now = {name: [f"/{name}"] for name in "xyz"}, dict.fromkeys("xyz", "1")
    for name in "xyz":
        (small.folder / name).mkdir()
    assert len([name for name in small.made()[0] if name.startswith("shards/")]) == 3


@pytest.mark.parametrize("what", ["damaged", "cut", "empty", "a link", "another form", "other losses"])
def test_what_is_not_as_it_was_written_is_recorded_anew(what: str, ground: Ground, tmp_path: Path) -> None:
    ground.made()
    ground.changed()
    losses = LOSSES
    for path in ground.kept:
        content = path.read_bytes()
        if what == "damaged":
            path.write_bytes(content[:-9] + b"something")
        elif what == "cut":
            path.write_bytes(content[:-9])
        elif what == "empty":
            path.write_bytes(b"")
        elif what == "a link":
            (tmp_path / path.name).write_bytes(content)
            path.unlink()
            path.symlink_to(tmp_path / path.name)
    if what == "another form":
        (ground.folder / "f").mkdir()
        ground.trees = {name: [*places, "/f"] if name == "b" else places for name, places in ground.trees.items()}
    if what == "other losses":
        losses = Losses(directory_times=True)
    files, recorded, problem = ground.made(losses=losses)
    assert files == ground.made(with_cache=False, losses=losses)[0]
    assert (recorded.known == 0) == (what != "another form")
    assert (problem != "") == (what == "a link")
    if what != "a link":
        ground.changed()
        assert ground.made(losses=losses)[1].known == recorded.entries


def test_it_is_bounded_and_the_least_recently_used_go_first(ground: Ground) -> None:
    ground.made()
    oldest, *_ = paths = ground.kept
    for path in paths:
        os.utime(path, ns=(0, 10**18 + (path is not oldest)))
    (ground.directory / "foreign").write_bytes(b"x")
    os.utime(ground.directory / "foreign", ns=(0, 0))
    with closing(os.open(ground.directory, os.O_RDONLY)) as fd:
        Cache(fd, LOSSES).trim(sum(path.stat().st_size for path in paths) - 1)
    assert set(ground.kept) == set(paths) - {oldest}


def test_what_could_not_be_read_is_not_kept(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: str | int, **_: object) -> list[str]:
        name = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
        if name.endswith("/0"):
            raise OSError(5, os.strerror(5))
        return []

    monkeypatch.setattr(os, "listxattr", unreadable)
    (ground.folder / "b/in/0").parent.mkdir()
    (ground.folder / "b/in/0").touch()
    assert ground.made()[1].unreadable > 0
    ground.changed()
    assert ground.made()[1].unreadable > 0


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    with closing(cache.open_in(str(tmp_path))) as fd:
        assert os.fstat(fd).st_mode & 0o777 == 0o700
    (tmp_path / "cache").chmod(0o755)
    with pytest.raises(KopiatomicError, match="only root can enter"):
        cache.open_in(str(tmp_path))
    with pytest.raises(KopiatomicError, match="No such file"):
        cache.open_in(str(tmp_path / "none"))
