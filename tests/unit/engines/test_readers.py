"""What a repository holds, as the readers of kopia, restic and Borg show it: the real programs, a tree with odd names."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kopiatomic import engines
from kopiatomic.engines import reader
from kopiatomic.engines.borg.reader import _sources
from kopiatomic.engines.reader import Entry, Kind, Reader, StoredSnapshot
from kopiatomic.errors import KopiatomicError
from tests.support import moments, repositories
from tests.unit.support.kopia_fixtures import STARTED_NS, Bench

pytestmark = pytest.mark.in_part(9)


ENGINES = ("kopia", "restic", "borg")
KEEPS_BYTES = ("restic", "borg")
ODD = (
    b"sp ace",
    b"new\nline",
    b"-dash",
    "ünï".encode(),
    b"tr ail ",
    b"back\\slash",
    b"star*[x]?",
    b"bad\xffbyte",
    b"+a",
    b"!b",
)


def fill(top: bytes) -> None:
    """Make the tree that is saved."""
    for folder in (b"dir/sub", b"empty folder", b"dir2", b"[o]dd*\n"):
        os.makedirs(top + b"/" + folder)
    for name in (*ODD, b"plain", b"dir/f1", b"dir/sub/f2", b"dir2/f3", b"[o]dd*\n/f4", b"n" * 250):
        write(top + b"/" + name, b"content of " + name)
    write(top + b"/empty", b"")
    # Larger than a pipe, and no multiple of a block.
    write(top + b"/large", os.urandom(300_001))
    # Deep enough for a name that no plain header of an archive has room for.
    deep = top + b"/deep" + b"/d123456789" * 30
    os.makedirs(deep)
    write(deep + b"/f", b"deep")
    os.symlink(b"plain", top + b"/link")
    os.symlink(b"no where", top + b"/dangling")
    os.link(top + b"/plain", top + b"/zweiter name")
    os.chmod(top + b"/plain", 0o640)
    os.chmod(top + b"/dir/sub", 0o711)
    os.utime(top + b"/plain", ns=(1, 1_234_567_890_123_456_789))
    os.utime(top + b"/-dash", ns=(1, -5 * 10**9 + 7))
    os.utime(top + b"/dir/sub", ns=(1, 1_111_111_111_999_999_999))


def write(path: bytes, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


class Store:
    """A repository of one engine with one snapshot of a tree."""

    def __init__(self, engine: str, base: Path, *, more: int = 0) -> None:
        self.engine = engine
        self.base = base
        self.source = base / "source"
        self.source.mkdir()
        fill(os.fsencode(self.source))
        for number in range(more):
            (self.source / "dir2" / f"{'n' * 100}{number}").touch()
        # A path beside it with the same beginning, which is not saved.
        (base / "source2").mkdir()
        self.kopia = Bench(base) if engine == "kopia" else None
        self.other = None if engine == "kopia" else repositories.make(engine, base / engine)
        if self.kopia is not None:
            self.kopia.connect()
            self.environment = self.kopia.environment
            self.program = self.kopia.program
            self.repository = self.kopia.repository
        else:
            assert self.other is not None
            (base / "home").mkdir()
            self.environment = {"PATH": os.environ["PATH"], "HOME": str(base / "home"), **self.other.environment}
            self.program = self.other.program
            self.repository = self.other.path
        self.back_up(self.source)

    def back_up(self, source: Path) -> None:
        if self.kopia is not None:
            tags = ("--tags", "kopiatomic-run:RUN", "--tags", "kopiatomic-atomic:yes")
            self.kopia.kopia("snapshot", "create", str(source), "--start-time", "2023-11-14 22:13:20 UTC", *tags)
        elif self.engine == "restic":
            assert self.other is not None
            self.other("backup", "--time", "2023-11-14 22:13:20", "--", source)
        else:
            assert self.other is not None
            self.other("create", "--timestamp", "2023-11-14T22:13:20", "::an archive", source)

    @property
    def reader(self) -> Reader:
        return engines.open_reader(self.engine, environment=self.environment)

    @property
    def snapshot(self) -> StoredSnapshot:
        (snapshot,) = self.reader.snapshots()
        return snapshot

    def path(self, name: bytes = b"") -> str:
        return str(self.source) + (f"/{os.fsdecode(name)}" if name else "")

    def fake(self, script: str) -> None:
        """Put a shell script in the program's place. ``$REAL`` is the real one."""
        path = self.base / "fake"
        path.write_text(f"#!/bin/sh\nREAL={self.program}\n{script}\n")
        path.chmod(0o755)
        self.environment[f"KOPIATOMIC_{self.engine.upper()}"] = str(path)

    def cut(self, count: int) -> str:
        """What cuts the output short in a script. By way of a file: kopia would wait at a pipe that nobody reads."""
        return f'"$REAL" "$@" > {self.base}/output; head -c {count} {self.base}/output'

    def shown(self, path: str) -> str:
        """A path as the paths of contents and of what is restored have it."""
        return path if self.engine in KEEPS_BYTES else self.reader.form.path(path)


@pytest.fixture(params=ENGINES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(request.param, tmp_path)


def walk(top: str) -> Iterator[str]:
    for folder, folders, files in os.walk(top):
        yield from (f"{folder}/{name}" for name in (*folders, *files))


def listed(store: Store, below: str = "") -> dict[str, Entry]:
    """The entries by path; none comes twice, and none before the directory that it is in."""
    found: dict[str, Entry] = {}

    def take(entry: Entry) -> None:
        assert entry.path not in found
        found[entry.path] = entry

    store.reader.entries(store.snapshot, take, below=below)
    return found


class Received:
    """A receiver that keeps sums of what came, and not the pieces."""

    def __init__(self, wanted: Callable[[str], bool] = lambda _: True) -> None:
        self.sums: dict[str, str] = {}
        self.begun: list[str] = []
        self.longest = 0
        self._wanted = wanted
        self._path: str | None = None
        self._size = self._come = 0
        self._sum = hashlib.sha256()

    def begin(self, path: str, size: int) -> bool:
        assert self._path is None
        self.begun.append(path)
        if not self._wanted(path):
            return False
        self._path, self._size, self._come, self._sum = path, size, 0, hashlib.sha256()
        return True

    def piece(self, data: bytes) -> None:
        self._sum.update(data)
        self._come += len(data)
        self.longest = max(self.longest, len(data))

    def end(self) -> None:
        assert self._path is not None
        assert self._come == self._size
        self.sums[self._path] = self._sum.hexdigest()
        self._path = None

    def same(self, path: str, other: str) -> None:
        if self._wanted(path):
            self.sums[path] = self.sums[other]


def sums(store: Store, top: str) -> dict[str, str]:
    """Of the files of the source, by the paths that a receiver gets."""
    files = [path for path in (top, *walk(top)) if os.path.isfile(path) and not os.path.islink(path)]
    return {store.shown(path): hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files}


def failed(kind: str, call: Callable[[], object]) -> str:
    with pytest.raises(KopiatomicError) as caught:
        call()
    assert caught.value.kind == kind, caught.value.message
    assert caught.value.hint
    return caught.value.message


# What there is


def test_snapshots_are_listed(store: Store) -> None:
    snapshot = store.snapshot
    assert snapshot.started_ns == STARTED_NS // 10**9 * 10**9
    assert (snapshot.host, snapshot.user) == (os.uname().nodename, "root")
    assert snapshot.sources == (str(store.source),)
    assert snapshot.complete
    assert snapshot.run == ("RUN" if store.engine == "kopia" else None)
    assert reader.find(store.reader, snapshot.id) == snapshot


@pytest.mark.parametrize(
    ("words", "sources"),
    [
        (["/usr/bin/borg", "create", "--comment", "x", "::a b", "/home", "/srv/x y"], ("/home", "/srv/x y")),
        (["borg", "create", "ssh://host/./repository::a", "/home"], ("/home",)),
        (["borg", "create", "::a", "/home", "--exclude", "/home/x"], ()),
        (["borg", "create", "--patterns-from", "file", "::a", "/home"], ()),
        (["borg", "create", "::a", "home"], ()),
        (["borg", "create", "::a", "/home/?"], ()),
        (["borg", "create", "::a"], ()),
        (["borg"], ()),
        ("borg create ::a /home", ()),
        (None, ()),
    ],
)
def test_what_an_archive_is_of_is_read_from_the_command_that_made_it(words: object, sources: tuple[str, ...]) -> None:
    assert _sources(words) == sources


def test_an_id_that_is_another_word_of_a_command_is_refused(store: Store) -> None:
    """A repository may be anybody's."""
    for key in ("id", {"kopia": "obj", "restic": "tree", "borg": "id"}[store.engine]):
        for odd in ("--log-dir=x", "", "a/b"):
            old, new = f'"{key}": *"[0-9A-Za-z]*"', f'"{key}":"{odd}"'
            store.fake(f'"$REAL" "$@" | sed -E \'s#{old}#{new}#g\'')
            failed(f"{store.engine}-cut-short", store.reader.snapshots)


def test_a_repository_without_snapshots_has_none(store: Store) -> None:
    if store.kopia is not None:
        store.kopia.kopia("snapshot", "delete", store.snapshot.id, "--delete")
    else:
        assert store.other is not None
        store.other(*(("forget",) if store.engine == "restic" else ("delete",)), _name(store))
    assert store.reader.snapshots() == []


def _name(store: Store) -> str:
    return f"::{store.snapshot.id}" if store.engine == "borg" else store.snapshot.id


def test_entries_are_those_of_the_tree(store: Store) -> None:
    form, found = store.reader.form, listed(store)
    top = str(store.source)
    inside = {path: entry for path, entry in found.items() if path.startswith(f"{top}/")}
    # restic lists the directories above its sources, and both list the source itself.
    assert all(f"{top}/".startswith(f"{path}/") for path in found.keys() - inside.keys())
    assert inside.keys() == {form.path(path) for path in walk(top)}
    for path in walk(top):
        status, entry = os.lstat(path), inside[form.path(path)]
        kinds = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.LINK}
        assert entry.kind is kinds[stat.S_IFMT(status.st_mode)], path
        if entry.same_as is not None:
            assert os.path.samefile(path, entry.same_as)
        else:
            assert entry.size == (status.st_size if entry.kind is Kind.FILE else None)
        # kopia has the time of the newest entry for that of a directory with something in it.
        if store.engine != "kopia" or entry.kind is not Kind.DIRECTORY:
            assert form.agrees(entry.mtime_ns, status.st_mtime_ns), path


@pytest.mark.parametrize("name", [b"dir", b"[o]dd*\n", b"empty folder", b"plain", b"deep"])
def test_entries_of_a_part(store: Store, name: bytes) -> None:
    top = store.path(name)
    assert listed(store, top).keys() == {store.reader.form.path(path) for path in walk(top)}


# Contents


@pytest.mark.parametrize("name", [b"", b"dir", b"[o]dd*\n", b"empty folder", b"deep", b"empty", b"link", *ODD])
def test_contents_are_those_of_the_files(store: Store, name: bytes) -> None:
    received = Received()
    store.reader.read(store.snapshot, received, below=store.path(name) if name else "")
    expected = sums(store, store.path(name)) if name != b"link" else {}
    assert received.sums == expected
    assert received.longest <= 1 << 16


def test_all_contents_take_one_process(store: Store) -> None:
    log = store.base / "log"
    snapshot = store.snapshot
    store.fake(f'echo run >> {log}\nexec "$REAL" "$@"')
    received = Received()
    store.reader.read(snapshot, received)
    assert log.read_text() == "run\n"
    assert received.sums == sums(store, str(store.source))


def test_only_the_contents_that_are_wanted_come(store: Store) -> None:
    wanted = store.path(b"large")
    received = Received(lambda path: path == wanted)
    store.reader.read(store.snapshot, received)
    assert received.sums.keys() == {wanted}
    assert len(received.begun) > len(ODD)


def test_what_the_receiver_raises_ends_the_process(store: Store) -> None:
    class FullError(Exception):
        pass

    def refuse(_: str) -> bool:
        raise FullError

    # Other tests in this process may have children of theirs.
    before = children()
    with pytest.raises(FullError):
        store.reader.read(store.snapshot, Received(refuse))
    assert children() - before == set()


def children() -> set[str]:
    """Return the process ids of our children."""
    return {pid for path in Path("/proc/self/task/").glob("*/children") for pid in path.read_text().split()}


# A reader that is killed

KILLED = """if True:
    import os, sys, time
    from kopiatomic import engines
    from tests.unit.engines.test_readers import Received
    def wait(*_):
        print("reading", flush=True)
        time.sleep(60)
    reader = engines.open_reader(sys.argv[1], environment=dict(os.environ))
    (snapshot,) = reader.snapshots()
    reader.entries(snapshot, wait) if sys.argv[2] == "entries" else reader.read(snapshot, Received(wait))
"""


def family(pid: int) -> set[int]:
    """All below a process."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        below = moments.children(waiting.pop())
        found.update(below)
        waiting += below
    return found


def killed_while_reading(store: Store, what: str, *, stopped: bool, processes: int = 1) -> None:
    """Kill a process that reads, in the middle of it. What it has started must end."""
    argv = [sys.executable, "-c", KILLED, store.engine, what]
    environment = {**store.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"reading\n"
        (program,) = moments.children(parent.pid)
        below = family(parent.pid)
        assert len(below) == processes
        if stopped:
            # So it does not notice the end of a pipe.
            os.kill(program, signal.SIGSTOP)
        parent.kill()
    left = [pid for pid in below if not moments.ends(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


@pytest.mark.parametrize("stopped", [False, True], ids=["", "stopped"])
@pytest.mark.parametrize("what", ["entries", "contents"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_program_of_a_killed_reader_ends(engine: str, what: str, stopped: bool, tmp_path: Path) -> None:
    # The list of so many entries is more than a pipe holds, as the contents are.
    killed_while_reading(Store(engine, tmp_path, more=2000 if what == "entries" else 0), what, stopped=stopped)


def test_the_server_of_a_killed_reader_ends(tmp_path: Path) -> None:
    """Borg's, which is at the other end of two pipes."""
    store = Store("borg", tmp_path)
    shell = tmp_path / "shell"
    shell.write_text('#!/bin/sh\nshift\nexec "$@"\n')
    shell.chmod(0o755)
    store.environment |= {"BORG_REPO": f"ssh://stand-in{store.repository}", "BORG_RSH": str(shell)}
    store.environment |= {"BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes", "BORG_REMOTE_PATH": store.program}
    killed_while_reading(store, "contents", stopped=True, processes=2)


# Restoring


@pytest.mark.parametrize("name", [b"", b"dir", b"[o]dd*\n", b"plain", b"bad\xffbyte", b"star*[x]?"])
def test_what_is_restored_is_the_tree(store: Store, name: bytes) -> None:
    target = store.base / "target"
    store.reader.restore(store.snapshot, str(target), below=store.path(name) if name else "")
    top = store.path(name)
    restored = {path for path in walk(str(target)) if path.startswith(f"{target}{store.source}/")}
    assert restored == {f"{target}{store.shown(path)}" for path in (*walk(top), *([top] if name else []))}
    for path in (top, *walk(top)):
        was, now = os.lstat(path), os.lstat(f"{target}{store.shown(path)}")
        assert (now.st_mode, now.st_uid, now.st_gid) == (was.st_mode, was.st_uid, was.st_gid), path
        if stat.S_ISLNK(was.st_mode):
            assert os.readlink(path) == os.readlink(f"{target}{path}")
        elif stat.S_ISREG(was.st_mode):
            assert Path(path).read_bytes() == Path(f"{target}{store.shown(path)}").read_bytes()
            assert now.st_mtime_ns == (was.st_mtime_ns if store.engine != "borg" else max(0, was.st_mtime_ns)), path
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


def test_nothing_is_restored_over_anything(store: Store) -> None:
    target = store.base / "target"
    target.mkdir()
    (target / "mine").write_text("mine")
    snapshot = store.snapshot
    places = [target, target / "mine", store.base / "way"]
    places[-1].symlink_to(store.base / "source2")
    for place in places:
        assert str(place) in failed("target-not-empty", lambda: store.reader.restore(snapshot, str(place)))  # noqa: B023
    assert [path.name for path in target.iterdir()] == ["mine"]
    assert list((store.base / "source2").iterdir()) == []


def test_an_empty_directory_is_restored_into(store: Store) -> None:
    target = store.base / "target"
    target.mkdir()
    store.reader.restore(store.snapshot, str(target), below=store.path(b"dir2"))
    assert Path(f"{target}{store.path(b'dir2/f3')}").read_bytes() == b"content of dir2/f3"


# Errors


def calls(store: Store, snapshot: StoredSnapshot, below: str = "") -> list[Callable[[], object]]:
    return [
        lambda: store.reader.entries(snapshot, lambda _: None, below=below),
        lambda: store.reader.read(snapshot, Received(), below=below),
        lambda: store.reader.restore(snapshot, str(store.base / "target"), below=below),
    ]


@pytest.mark.parametrize("below", ["not there", "plain/x", "dir/not there/x", "../source2"])
def test_a_path_that_is_not_in_it(store: Store, below: str) -> None:
    path = os.path.normpath(f"{store.source}/{below}")
    snapshot = store.snapshot
    for call in (*calls(store, snapshot, path), lambda: store.reader.require(snapshot, path)):
        assert path in failed(f"{store.engine}-no-path", call)


def test_a_path_that_is_in_it(store: Store) -> None:
    snapshot = store.snapshot
    for name in (b"", *ODD, b"dir/sub", b"[o]dd*\n/f4"):
        store.reader.require(snapshot, store.path(name))
    if store.kopia is None:
        # kopia alone has nothing of what is above.
        store.reader.require(snapshot, str(store.base))


def test_a_snapshot_that_is_not_there(store: Store) -> None:
    snapshot = store.snapshot
    failed(f"{store.engine}-no-snapshot", lambda: reader.find(store.reader, "0123456789abcdef0123456789abcdef"))
    if store.kopia is not None:
        store.kopia.kopia("snapshot", "delete", snapshot.id, "--delete")
    else:
        assert store.other is not None
        store.other(*(("forget",) if store.engine == "restic" else ("delete",)), _name(store))
    for call in calls(store, snapshot):
        assert snapshot.id in failed(f"{store.engine}-no-snapshot", call)


def test_a_wrong_password(store: Store) -> None:
    snapshot = store.snapshot
    names = {"kopia": "KOPIA_PASSWORD", "restic": "RESTIC_PASSWORD", "borg": "BORG_PASSPHRASE"}
    store.environment[names[store.engine]] = "wrong"
    for call in (store.reader.snapshots, *calls(store, snapshot)):
        assert "wrong " not in failed(f"{store.engine}-wrong-password", call).replace("wrong password", "")


def test_a_repository_that_is_gone(store: Store) -> None:
    snapshot = store.snapshot
    shutil.rmtree(store.repository)
    kind = "kopia-unreachable" if store.engine == "kopia" else f"{store.engine}-no-repository"
    for call in (store.reader.snapshots, *calls(store, snapshot)):
        failed(kind, call)


def test_output_that_is_cut_short_is_an_error(store: Store) -> None:
    """Also where the program ends with 0, as behind a pipe that hides its status."""
    snapshot = store.snapshot
    for count in (0, 1, 700, 5_000, 200_000):
        store.fake(store.cut(count))
        if count == 0 and store.engine == "restic":
            failed("restic-no-snapshot", lambda: store.reader.entries(snapshot, lambda _: None))
        elif count == 0 and store.engine == "borg":
            # Nothing at all is what Borg says of an empty archive.
            store.reader.entries(snapshot, lambda _: None)
        elif count < 5_000:
            failed(f"{store.engine}-cut-short", lambda: store.reader.entries(snapshot, lambda _: None))
        failed(f"{store.engine}-cut-short", lambda: store.reader.read(snapshot, Received()))


def test_a_file_by_itself_that_is_cut_short_is_an_error(store: Store) -> None:
    snapshot, large = store.snapshot, store.path(b"large")
    for count in (0, 1, 200_000, 300_000):
        # Only of the command that writes contents: what a file's size is has come from another.
        first = {"kopia": "*large*", "restic": "dump*", "borg": "export-tar*"}[store.engine]
        store.fake(f'case "$*" in {first}) {store.cut(count)};; *) exec "$REAL" "$@";; esac')
        failed(f"{store.engine}-cut-short", lambda: store.reader.read(snapshot, Received(), below=large))
    store.fake('case "$*" in *large*) "$REAL" "$@" && printf more;; *) exec "$REAL" "$@";; esac')
    if store.engine != "borg":
        failed(f"{store.engine}-cut-short", lambda: store.reader.read(snapshot, Received(), below=large))


def test_a_program_that_fails_at_the_end_has_read_nothing_well(store: Store) -> None:
    snapshot = store.snapshot
    store.fake('"$REAL" "$@"\necho "something broke" >&2\nexit 3')
    for call in (store.reader.snapshots, *calls(store, snapshot)):
        assert "something broke" in failed(f"{store.engine}-failed", call)


def test_a_name_that_is_made_like_a_line_of_kopias_is_found(tmp_path: Path) -> None:
    store = Store("kopia", tmp_path)
    (store.source / "dir2" / f"a\n-rw-r--r--            5 2026-11-29 00:25:29 UTC {'c' * 32}   b").write_text("")
    store.kopia.kopia("snapshot", "delete", store.snapshot.id, "--delete")  # type: ignore[union-attr]
    store.back_up(store.source)
    for below in ("", store.path(b"dir2")):
        message = failed("kopia-cut-short", lambda: store.reader.entries(store.snapshot, lambda _: None, below=below))  # noqa: B023
        assert "entries, and has saved" in message
    received = Received()
    store.reader.read(store.snapshot, received)
    assert received.sums == sums(store, str(store.source))
