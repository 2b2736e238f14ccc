"""One run on one view root: a lock lives exactly as long as a process of its run."""

import multiprocessing
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kopiatomic.errors import KopiatomicError, LockedError
from kopiatomic.state import locks
from tests.unit.support.view_roots import view_root

pytestmark = pytest.mark.usefixtures("lock_directory")

HOLDER = {"run": "20261122T101112Z-01234567", "pid": 4711}


def refused(root: str = "/kopia") -> LockedError:
    with pytest.raises(LockedError) as caught, view_root(root, {}):
        pass
    return caught.value


@contextmanager
def inherited(root: str) -> Iterator[int]:
    """A forked process that goes on with a lock it inherited, as keeper and launcher do."""
    with view_root(root, HOLDER):
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        locks_of_parent = Path(locks.path_of("root", root))
        # As when the main process is killed: its descriptor closes, and the file stays.
        kept = locks_of_parent.with_name("kept")
        os.link(locks_of_parent, kept)
    os.rename(kept, locks_of_parent)
    try:
        yield pid
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_a_second_run_on_the_same_root_is_refused_and_told_who_has_it() -> None:
    with view_root("/kopia", HOLDER):
        error = refused()
    assert error.exit_code == 75
    assert error.kind == "locked"
    assert error.message == "another run has the view root /kopia (run 20261122T101112Z-01234567, pid 4711)"
    assert "--name" in (error.hint or "")


def test_other_roots_are_free() -> None:
    with view_root("/kopia", HOLDER), view_root("/kopia/home", HOLDER):
        assert refused("/kopia/home").exit_code == 75


def test_a_lock_goes_with_its_run_and_leaves_no_file(lock_directory: Path) -> None:
    with view_root("/kopia", HOLDER):
        pass
    with view_root("/kopia", HOLDER):
        pass
    assert os.listdir(lock_directory) == ["id"]


def test_a_lock_goes_with_a_run_that_fails() -> None:
    with pytest.raises(KeyError), view_root("/kopia", HOLDER):
        raise KeyError
    assert locks.is_free("/kopia")


def test_a_stale_file_that_nobody_holds_is_no_lock() -> None:
    locks.prepare()
    Path(locks.path_of("root", "/kopia")).write_text('{"pid": 1, "a longer holder": "than the new one"}')
    with view_root("/kopia", {"pid": 2}):
        assert "(pid 2)" in refused().message


def test_a_holder_that_cannot_be_read_is_said_to_be_unknown() -> None:
    with view_root("/kopia", HOLDER):
        Path(locks.path_of("root", "/kopia")).write_text("not json")
        assert "holder unknown" in refused().message


def test_a_lock_lives_while_any_process_of_its_run_does() -> None:
    with inherited("/kopia"):
        assert not locks.is_free("/kopia")
        assert "pid 4711" in refused().message
    assert locks.is_free("/kopia")


def test_a_lock_is_not_inherited_by_programs() -> None:
    with view_root("/kopia", HOLDER):
        links = [(fd, os.readlink(f"/proc/self/fd/{fd}")) for fd in os.listdir("/proc/self/fd") if fd_is_open(fd)]
        ours = [int(fd) for fd, target in links if target == locks.path_of("root", "/kopia")]
        assert ours
        assert not any(os.get_inheritable(fd) for fd in ours)


def fd_is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_asking_whether_a_root_is_free_does_not_take_it() -> None:
    assert locks.is_free("/kopia")
    with view_root("/kopia", HOLDER):
        assert not locks.is_free("/kopia")
    assert locks.is_free("/kopia")


def test_clean_up_is_one_at_a_time() -> None:
    order = []

    def second() -> None:
        with locks.clean_up():
            order.append("second")

    with locks.clean_up():
        other = threading.Thread(target=second)
        other.start()
        time.sleep(0.2)
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def _hammer(count: int) -> int:
    """Take and leave the same lock again and again; how often two had it at once."""
    wrong = 0
    claim = Path(locks.DIRECTORY).parent / "claim"
    for _ in range(count):
        try:
            with view_root("/kopia", HOLDER):
                try:
                    claim.mkdir()
                except FileExistsError:
                    wrong += 1
                    continue
                claim.rmdir()
        except LockedError:
            continue
    return wrong


def test_a_file_that_is_removed_while_others_wait_for_it_is_never_held_twice() -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(_hammer, [400] * 4) == [0] * 4


def test_the_directory_is_only_for_its_owner(lock_directory: Path) -> None:
    locks.prepare()
    assert stat.S_IMODE(lock_directory.stat().st_mode) == 0o700


def test_a_directory_that_others_can_enter_is_refused(lock_directory: Path) -> None:
    lock_directory.mkdir(mode=0o755)
    with pytest.raises(KopiatomicError, match="not a directory that only root can enter"):
        locks.prepare()


def test_a_link_in_place_of_the_directory_is_refused(lock_directory: Path, tmp_path: Path) -> None:
    lock_directory.symlink_to(tmp_path)
    with pytest.raises(KopiatomicError, match="not a directory that only root can enter"):
        locks.prepare()


def test_a_file_in_place_of_the_directory_is_refused(lock_directory: Path) -> None:
    lock_directory.write_text("")
    with pytest.raises(KopiatomicError) as caught:
        locks.prepare()
    assert caught.value.kind == "lock-impossible"


def test_a_link_in_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    locks.prepare()
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    Path(locks.path_of("root", "/kopia")).symlink_to(victim)
    with pytest.raises(KopiatomicError):
        refused()
    assert victim.read_text() == "untouched"


def test_roots_with_any_name_have_locks_of_their_own() -> None:
    names = ["/a", "/a/", "/" + "x" * 4000, "/new\nline", os.fsdecode(b"/caf\xe9"), "/café"]
    paths = {locks.path_of("root", name) for name in names} | {locks.path_of("made", "/a")}
    assert len(paths) == len(names) + 1
    assert all(len(os.path.basename(path)) < 255 for path in paths)


def test_what_has_no_root_is_given_none_by_advice() -> None:
    with view_root("in place: kopia /srv", {}):
        hint = str(refused("in place: kopia /srv").hint)
    assert ("--wait" in hint, "--name" in hint) == (True, False)
    with view_root("/kopia", {}):
        assert "--name" in str(refused().hint)
