"""Some files of a snapshot, as the readers of kopia, restic and Borg hand them on: real programs and mounts, real damage."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kopiatomic.engines.reader import StoredSnapshot
from kopiatomic.system import host, linux
from tests.support import moments
from tests.unit.engines.test_readers import ENGINES, ODD, Received, Store, children, failed, family, sums, walk, write

pytestmark = pytest.mark.in_part(9)

SERVED = ("kopia", "restic")
"""Engines of which a mount is read."""

VICTIM = b"v" * 5


class Chosen(Received):
    """A receiver that notes what fails."""

    def __init__(self, wanted: Callable[[str], bool] = lambda _: True) -> None:
        super().__init__(wanted)
        self.failed_paths: dict[str, str] = {}

    def failed(self, path: str, why: str) -> None:
        assert why
        assert path not in self.failed_paths
        self.failed_paths[path] = why
        self._path = None


class Damaged(Store):
    """A repository with a file that is most of it, and that is damaged in the middle once :meth:`damage` is called."""

    def back_up(self, source: Path) -> None:
        write(os.fsencode(source) + b"/dir2/" + VICTIM, os.urandom(6 << 20))
        super().back_up(source)

    @property
    def victim(self) -> str:
        return self.path(b"dir2/" + VICTIM)

    def damage(self) -> None:
        folder = {"kopia": "p", "restic": "data", "borg": "data"}[self.engine]
        packs = [path for path in (self.repository / folder).rglob("*") if path.is_file()]
        for pack in packs:
            size = pack.stat().st_size
            if size > 1 << 20:
                pack.chmod(0o600)
                with pack.open("r+b") as file:
                    file.seek(size // 2)
                    data = file.read(64)
                    file.seek(size // 2)
                    file.write(bytes(byte ^ 255 for byte in data))


@pytest.fixture(params=ENGINES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(request.param, tmp_path)


@pytest.fixture(autouse=True)
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(autouse=True)
def _nothing_is_left(place: Path) -> object:
    """No mount, no child, no file."""
    before, ours = Path("/proc/self/mountinfo").read_text(), children()
    yield
    assert Path("/proc/self/mountinfo").read_text() == before
    assert children() - ours == set()
    assert list(place.iterdir()) == []


def chosen(store: Store, paths: list[str], *, snapshot: StoredSnapshot | None = None) -> Chosen:
    received = Chosen()
    store.reader.read_chosen(snapshot or store.snapshot, paths, received, place=str(store.base / "place"))
    return received


def expected(paths: list[str]) -> dict[str, str]:
    files = [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files}


def all_files(store: Store) -> list[str]:
    return [path for path in walk(str(store.source)) if os.path.isfile(path) and not os.path.islink(path)]


STRANGE = (b"dir", b"link", b"not there", b"plain/x", b"dir/not there/x", b"link/x", b"../source2")
"""What is no file of the snapshot."""


def test_the_files_that_are_chosen_come_and_no_others(store: Store) -> None:
    names = (*ODD, b"large", b"empty", b"plain", b"[o]dd*\n/f4", b"n" * 250)
    paths = [store.path(name) for name in names]
    paths += [path for path in walk(str(store.source)) if "/deep/" in path]
    strange = [os.path.normpath(store.path(name)) for name in STRANGE]
    received = chosen(store, [*strange, *paths, "/nowhere"])
    assert received.sums == expected(paths)
    assert len(received.sums) == len(names) + 1
    assert received.failed_paths == {}
    assert received.begun == list(dict.fromkeys(received.begun))


def test_the_paths_that_come_are_those_that_were_asked_for(store: Store) -> None:
    path = store.path(b"bad\xffbyte")
    assert chosen(store, [path, path]).begun == [path]


@pytest.mark.parametrize("names", [(b"plain", b"zweiter name"), (b"zweiter name",), (b"plain",)])
def test_each_name_of_a_file_comes(store: Store, names: tuple[bytes, ...]) -> None:
    paths = [store.path(name) for name in names]
    received = chosen(store, paths)
    assert received.sums == expected(paths)
    assert len(received.begun) == (1 if store.engine == "borg" else len(names))


def test_nothing_is_chosen(store: Store) -> None:
    assert chosen(store, []).begun == []


def test_many_take_one_process(store: Store) -> None:
    snapshot, log = store.snapshot, store.base / "log"
    store.fake(f'echo run >> {log}\nexec "$REAL" "$@"')
    paths = all_files(store)
    received = chosen(store, paths, snapshot=snapshot)
    assert received.sums == expected(paths)
    assert log.read_text() == "run\n"


@pytest.mark.parametrize("engine", ENGINES)
def test_two_thousand_of_five_thousand(engine: str, tmp_path: Path) -> None:
    class Many(Store):
        def back_up(self, source: Path) -> None:
            for number in range(5000):
                (source / "dir" / f"{number}").write_text(f"file {number}")
            super().back_up(source)

    store = Many(engine, tmp_path)
    paths = [store.path(b"dir/%d" % number) for number in range(0, 5000, 5)]
    paths += [store.path(b"dir/%d" % number) for number in range(4999, 0, -5)]
    received = chosen(store, paths)
    assert len(received.sums) == 2000
    assert received.sums == expected(paths)
    assert set(received.begun) == set(paths)


def test_names_that_fit_in_no_line_of_patterns_may_be_more_than_a_command_has_room_for(tmp_path: Path) -> None:
    class Many(Store):
        def back_up(self, source: Path) -> None:
            for number in range(5000):
                (source / "dir" / f"{'n' * 200}\n{number}").touch()
            super().back_up(source)

    store = Many("borg", tmp_path)
    paths = all_files(store)
    received = chosen(store, paths)
    assert received.sums == expected(paths)
    assert received.failed_paths == {}


# Damage


@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_file_fails_and_the_others_come(engine: str, tmp_path: Path) -> None:
    store = Damaged(engine, tmp_path)
    snapshot, paths = store.snapshot, all_files(store)
    # A cache that has all contents is of no use here.
    store.reader.read(snapshot, Received())
    store.damage()
    received = chosen(store, [*paths, store.path(b"not there")], snapshot=snapshot)
    assert store.victim in received.failed_paths
    assert store.victim not in received.sums
    good = expected(paths)
    if engine == "borg":
        # What comes behind it is not known to it.
        assert "Data integrity error" in received.failed_paths[store.victim]
        assert received.sums == {path: good[path] for path in received.sums}
        assert received.sums.keys() | received.failed_paths.keys() == {*paths, store.path(b"not there")}
        others = chosen(store, [path for path in paths if path != store.victim], snapshot=snapshot)
        assert others.failed_paths == {}
        assert others.sums.keys() == good.keys() - {store.victim}
    else:
        assert received.failed_paths == {store.victim: "Input/output error"}
        assert received.sums == {path: good[path] for path in paths if path != store.victim}


@pytest.mark.parametrize("engine", SERVED)
def test_what_is_not_read_because_the_program_dies_fails(engine: str, tmp_path: Path) -> None:
    store = Store(engine, tmp_path)
    snapshot, paths = store.snapshot, all_files(store)
    others = set(moments.children(os.getpid()))

    class Killing(Chosen):
        def begin(self, path: str, size: int) -> bool:
            if not self.begun:
                (attendant,) = set(moments.children(os.getpid())) - others
                for program in moments.children(attendant):
                    os.kill(program, signal.SIGKILL)
            return super().begin(path, size)

    received = Killing()
    first = store.path(b"large")
    # More than a pipe holds, so that the reading cannot be over by then.
    store.reader.read_chosen(
        snapshot, [first, *(path for path in paths if path != first)], received, place=str(tmp_path / "place")
    )
    assert received.failed_paths
    assert received.failed_paths.keys() | received.sums.keys() == set(paths)
    assert any("killed by SIGKILL" in why for why in received.failed_paths.values())


# Without a mount


WITHOUT_FUSERMOUNT = """
case " $* " in *" mount "*)
    for found in $(command -v fusermount fusermount3); do mount --bind /dev/null "$found"; done
esac
exec "$REAL" "$@"
"""
"""The program has a mount namespace of its own by then."""


@pytest.mark.parametrize("why", ["no fusermount", "no namespace", "no such system"])
@pytest.mark.parametrize("engine", SERVED)
def test_without_a_mount_the_same_comes(engine: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(engine, tmp_path)
    snapshot, log = store.snapshot, tmp_path / "log"
    then = WITHOUT_FUSERMOUNT if why == "no fusermount" else 'exec "$REAL" "$@"'
    store.fake(f'echo "$*" >> {log}\n{then}')
    if why == "no namespace":

        def refuse(_: int) -> None:
            raise PermissionError

        monkeypatch.setattr(linux, "unshare", refuse)
    if why == "no such system":
        monkeypatch.setattr(type(host.here()), "secludes", False)
    paths = [store.path(name) for name in (*ODD, b"large", b"empty", b"plain", b"zweiter name")]
    strange = [os.path.normpath(store.path(name)) for name in STRANGE]
    received = chosen(store, [*paths, *strange], snapshot=snapshot)
    assert received.sums == expected(paths)
    assert received.failed_paths == {}
    words = [line.split()[0] for line in log.read_text().splitlines()]
    assert words == [*(["mount"] if why == "no fusermount" else []), "restore" if engine == "kopia" else "dump"]


@pytest.mark.parametrize("engine", SERVED)
def test_without_a_mount_a_damaged_file_does_not_end(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Damaged(engine, tmp_path)
    monkeypatch.setattr(type(host.here()), "secludes", False)
    snapshot, paths = store.snapshot, all_files(store)
    store.damage()
    received = chosen(store, paths, snapshot=snapshot)
    assert store.victim in received.failed_paths
    good = expected(paths)
    assert received.sums == {path: good[path] for path in received.sums}
    assert received.sums.keys() | received.failed_paths.keys() == set(paths)


# Ends


def test_what_the_receiver_raises_ends_everything(store: Store) -> None:
    class FullError(Exception):
        pass

    class Full(Chosen):
        def piece(self, _: bytes) -> None:
            raise FullError

    with pytest.raises(FullError):
        store.reader.read_chosen(store.snapshot, [store.path(b"large")], Full(), place=str(store.base / "place"))


KILLED = """if True:
    import os, sys, time
    from kopiatomic import engines
    from tests.unit.engines.test_chosen import Chosen
    def wait(*_):
        print("reading", flush=True)
        time.sleep(60)
    reader = engines.open_reader(sys.argv[1], environment=dict(os.environ))
    (snapshot,) = reader.snapshots()
    reader.read_chosen(snapshot, sys.argv[3:], Chosen(wait), place=sys.argv[2])
"""


@pytest.mark.parametrize("engine", SERVED)
def test_all_of_a_killed_reader_ends(engine: str, place: Path, tmp_path: Path) -> None:
    store = Store(engine, tmp_path)
    argv = [sys.executable, "-c", KILLED, engine, str(place), store.path(b"large")]
    environment = {**store.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"reading\n"
        below = family(parent.pid)
        assert len(below) == 2
        parent.kill()
    left = [pid for pid in below if not moments.ends(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


# Errors


def test_a_snapshot_that_is_not_there(store: Store) -> None:
    snapshot = store.snapshot
    if store.kopia is not None:
        store.kopia.kopia("snapshot", "delete", snapshot.id, "--delete")
    else:
        assert store.other is not None
        words = ("forget", snapshot.id) if store.engine == "restic" else ("delete", f"::{snapshot.id}")
        store.other(*words)
    said = failed(f"{store.engine}-no-snapshot", lambda: chosen(store, [store.path(b"plain")], snapshot=snapshot))
    assert snapshot.id in said


def test_a_wrong_password(store: Store) -> None:
    snapshot = store.snapshot
    names = {"kopia": "KOPIA_PASSWORD", "restic": "RESTIC_PASSWORD", "borg": "BORG_PASSPHRASE"}
    store.environment[names[store.engine]] = "wrong"
    failed(f"{store.engine}-wrong-password", lambda: chosen(store, [store.path(b"plain")], snapshot=snapshot))


def test_a_repository_that_is_gone(store: Store) -> None:
    snapshot = store.snapshot
    store.repository.rename(store.base / "away")
    kind = "kopia-unreachable" if store.engine == "kopia" else f"{store.engine}-no-repository"
    failed(kind, lambda: chosen(store, [store.path(b"plain")], snapshot=snapshot))


def test_all_of_the_tree_is_what_reading_it_gives(store: Store) -> None:
    received, read = chosen(store, all_files(store)), Received()
    store.reader.read(store.snapshot, read)
    assert {store.shown(path): found for path, found in received.sums.items()} == read.sums
    assert read.sums == sums(store, str(store.source))
