"""The mount root: made where it is missing, removed by who made it, never anything else's."""

import itertools
import os
import shutil
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest

from kopiatomic.errors import KopiatomicError
from kopiatomic.state import roots
from tests.unit.support.view_roots import view_root

pytestmark = pytest.mark.usefixtures("lock_directory")


def refused(root: Path) -> KopiatomicError:
    with pytest.raises(KopiatomicError) as caught:
        roots.make(roots.resolve(str(root)))
    assert caught.value.kind == "mount-root"
    assert str(root) in caught.value.message
    assert caught.value.hint
    return caught.value


def marks(lock_directory: Path) -> list[str]:
    return [path.name for path in lock_directory.iterdir() if path.name != "id"]


def test_a_missing_root_is_made_for_its_owner_alone_and_removed(tmp_path: Path, lock_directory: Path) -> None:
    root = tmp_path / "view"
    roots.make(str(root))
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert roots.remove(str(root)) == []
    assert not root.exists()
    assert marks(lock_directory) == []


def test_an_empty_directory_that_was_there_is_used_and_stays(tmp_path: Path, lock_directory: Path) -> None:
    root = tmp_path / "view"
    root.mkdir(mode=0o750)
    roots.make(str(root))
    assert roots.remove(str(root)) == []
    assert stat.S_IMODE(root.stat().st_mode) == 0o750
    assert marks(lock_directory) == []


def test_what_was_made_above_the_root_goes_as_well_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    root = tmp_path / "there" / "a" / "b" / "c"
    roots.make(str(root))
    assert roots.remove(str(root)) == []
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param("file", "not a directory", id="a file"),
        pytest.param("fifo", "not a directory", id="a fifo"),
        pytest.param("entry", "not empty (important)", id="not empty"),
        pytest.param("hidden", "not empty (.hidden)", id="a hidden entry"),
        pytest.param("link", "a symbolic link", id="a link"),
        pytest.param("dangling", "a symbolic link", id="a link to nothing"),
    ],
)
def test_a_root_that_is_something_else_is_refused_and_left_as_it_is(content: str, reason: str, tmp_path: Path) -> None:
    root = tmp_path / "view"
    match content:
        case "file":
            root.write_text("kept")
        case "fifo":
            os.mkfifo(root)
        case "entry":
            root.mkdir()
            (root / "important").write_text("kept")
        case "hidden":
            root.mkdir()
            (root / ".hidden").write_text("kept")
        case "link":
            root.symlink_to(tmp_path)
        case "dangling":
            root.symlink_to(tmp_path / "nowhere")
    before = sorted((p, p.lstat().st_mtime_ns) for p in tmp_path.iterdir())
    assert reason in refused(root).message
    assert [entry for entry in before if entry[0] == root] == [(root, root.lstat().st_mtime_ns)]


def test_the_root_of_the_system_is_refused() -> None:
    assert "root of the whole system" in refused(Path("/")).message


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refused(tmp_path / "file" / "view").message


def test_a_name_too_long_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    assert "File name too long" in refused(tmp_path / "new" / ("x" * 256)).message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("view", "{cwd}/view"),
        ("./a/../view/", "{cwd}/view"),
        ("//kopia", "/kopia"),
        ("/kopia//x/.", "/kopia/x"),
        ("{cwd}/link/view", "{cwd}/real/view"),
    ],
)
def test_a_root_is_made_absolute_as_the_kernel_sees_it(
    given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert roots.resolve(given.format(cwd=tmp_path)) == meant.format(cwd=tmp_path)


@pytest.mark.parametrize("order", [*itertools.permutations(["", "a", "b"])], ids="-".join)
def test_nested_roots_of_several_runs_go_in_any_order(
    order: tuple[str, ...], tmp_path: Path, lock_directory: Path
) -> None:
    base = tmp_path / "kopia"
    with ExitStack() as held:
        holding = {}
        for name in ("", "a", "b"):
            root = str(base / name)
            holding[name] = held.enter_context(ExitStack())
            holding[name].enter_context(view_root(root, {}))
            roots.make(root)
        for position, name in enumerate(order):
            assert roots.remove(str(base / name)) == []
            holding[name].close()
            assert all((base / other).is_dir() for other in order[position + 1 :])
    assert not base.exists()
    assert marks(lock_directory) == []


def test_a_root_that_another_run_lives_in_is_no_foreign_content(tmp_path: Path) -> None:
    base = tmp_path / "kopia"
    roots.make(str(base / "home"))
    roots.check(str(base))


def test_something_foreign_that_came_meanwhile_is_kept_and_said(tmp_path: Path) -> None:
    root = tmp_path / "view"
    roots.make(str(root))
    (root / "file").write_text("kept")
    (left,) = roots.remove(str(root))
    assert str(root) in left
    assert "rmdir" in left
    assert (root / "file").read_text() == "kept"


def test_a_root_that_a_killed_run_left_is_used_and_removed(tmp_path: Path, lock_directory: Path) -> None:
    root = tmp_path / "view"
    roots.make(str(root))
    roots.make(str(root))
    assert roots.remove(str(root)) == []
    assert not root.exists()
    assert marks(lock_directory) == []


def test_removing_twice_harms_nothing(tmp_path: Path) -> None:
    root = tmp_path / "view"
    roots.make(str(root))
    assert roots.remove(str(root)) == []
    root.mkdir()
    assert roots.remove(str(root)) == []
    assert root.is_dir()


@pytest.mark.parametrize("gone", ["removed", "a file now"])
def test_a_directory_whose_parents_are_gone_is_forgotten(gone: str, tmp_path: Path, lock_directory: Path) -> None:
    """Whoever removed them removed it with them: nothing is left to warn of."""
    above = tmp_path / "disk" / "mnt"
    above.mkdir(parents=True)
    root = above / "made" / "view"
    roots.make(str(root))
    shutil.rmtree(tmp_path / "disk")
    if gone == "a file now":
        (tmp_path / "disk").touch()
    assert roots.remove(str(root)) == []
    assert marks(lock_directory) == []


# Directories that others can change


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away is root's")
@pytest.mark.parametrize("where", ["itself", "above", "far above", "behind a link"])
def test_a_root_in_or_below_a_directory_of_somebody_else_is_refused(where: str, tmp_path: Path) -> None:
    root = tmp_path / "a" / "b" / "view"
    root.parent.mkdir(parents=True)
    theirs = {"itself": root, "above": root.parent, "far above": root.parent.parent}.get(where, tmp_path / "linked")
    theirs.mkdir(exist_ok=True)
    os.chown(theirs, 12345, 12345)
    given = root
    if where == "behind a link":
        (theirs / "link").symlink_to(root.parent)
        given = theirs / "link" / "view"
    with pytest.raises(KopiatomicError) as caught:
        roots.resolve(str(given))
    assert caught.value.kind == "mount-root"
    assert "user 12345 can change" in caught.value.message
    assert where == "itself" or f"{theirs}, which is 12345's" in caught.value.message
    assert (root.exists(), root.parent.exists()) == (where == "itself", True)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away is root's")
def test_a_root_in_a_sticky_directory_is_safe_if_it_is_roots(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    roots.make(roots.resolve(str(shared / "view")))
    assert roots.remove(str(shared / "view")) == []
    (shared / "theirs").mkdir()
    os.chown(shared / "theirs", 12345, 0)
    with pytest.raises(KopiatomicError, match=f"user 12345 owns {shared}/theirs and can move it"):
        roots.resolve(str(shared / "theirs"))


def test_another_directory_at_the_path_of_the_root_is_kept_and_said(tmp_path: Path, lock_directory: Path) -> None:
    """Something was mounted over the one above it; or it was exchanged, by root alone."""
    root = tmp_path / "above" / "view"
    root.parent.mkdir()
    roots.make(str(root))
    moved = tmp_path / "moved"
    root.parent.rename(moved)
    (tmp_path / "above" / "view").mkdir(parents=True)
    (left,) = roots.remove(str(root))
    assert "another directory is above it by now" in left
    assert root.is_dir()
    root.rmdir()
    root.parent.rmdir()
    moved.rename(root.parent)
    (root.parent / "kept").mkdir()
    root.rename(tmp_path / "other")
    (root.parent / "kept").rename(root)
    (left,) = roots.remove(str(root))
    assert "another one is at its path by now" in left
    root.rmdir()
    (tmp_path / "other").rename(root)
    assert roots.remove(str(root)) == []
    assert marks(lock_directory) == []
