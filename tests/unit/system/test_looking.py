"""Looking in a child: what it found comes back as it is, what does not answer is given up, and nobody else looks."""

from __future__ import annotations

import ast
import errno
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import kopiatomic
from kopiatomic.errors import Interrupted, KopiatomicError, StartError
from kopiatomic.system import host, looking, process, signals
from tests.support.programs import command


@pytest.fixture(autouse=True)
def children() -> Iterator[None]:
    """No child is left, but one that a test says waits for ever: those are killed."""
    before = children_of_ours()
    yield
    assert children_of_ours() <= before


def children_of_ours() -> set[str]:
    lists = Path("/proc/self/task").glob("*/children")
    return {pid for listed in lists for pid in listed.read_text().split()}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "LIMIT", 1.0)


def test_what_it_finds_comes_back() -> None:
    found = looking.call(lambda: {"pid": os.getpid(), "name": b"\xff"}, "/")
    assert found["pid"] != os.getpid()
    assert found["name"] == b"\xff"


def test_errors_come_back_as_what_they_are() -> None:
    def refuse() -> None:
        raise StartError("it failed", kind="kind", hint="do this", number=7)

    with pytest.raises(StartError, match="it failed") as failed:
        looking.call(refuse, "/")
    assert (failed.value.kind, failed.value.hint, failed.value.number) == ("kind", "do this", 7)
    with pytest.raises(FileNotFoundError) as missing:
        looking.call(lambda: os.stat("/nowhere/at/all"), "/")
    assert (missing.value.errno, missing.value.filename) == (errno.ENOENT, "/nowhere/at/all")
    with pytest.raises(KopiatomicError, match=r"internal error: ZeroDivisionError: .* \(test_looking.py:"):
        looking.call(lambda: 1 // 0, "/")


def test_a_file_is_read_if_it_is_a_plain_one_of_that_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert looking.read(str(tmp_path / "file"), 3) == b"abc"
    os.mkfifo(tmp_path / "pipe")
    wrong = (("file", 2, errno.EFBIG), ("pipe", 3, errno.EINVAL), (".", 3, errno.EINVAL), ("none", 3, errno.ENOENT))
    for name, most, number in wrong:
        with pytest.raises(OSError, match=r".") as refused:
            looking.read(str(tmp_path / name), most)
        assert refused.value.errno == number, name


def test_a_child_that_is_killed_is_told_from_an_answer() -> None:
    with pytest.raises(KopiatomicError) as killed:
        looking.call(lambda: os.kill(os.getpid(), signal.SIGKILL), "/")
    assert killed.value.kind == "looker-killed"


def test_it_has_nothing_of_ours_open_and_hears_no_terminal() -> None:
    """So that it may live on: who waits for the end of a pipe or a lock does not wait for it."""

    def look() -> tuple[list[str], int]:
        numbers = os.listdir("/proc/self/fd")
        return [
            os.readlink(f"/proc/self/fd/{fd}") for fd in numbers if os.path.lexists(f"/proc/self/fd/{fd}")
        ], os.getsid(0)

    one, other = socket.socketpair()
    with one, other:
        opened, session = looking.call(look, "/")
    assert session != os.getsid(0)
    # The pipe that wakes its waits, and the channel.
    assert sorted(name.partition(":")[0] for name in opened if name != "/dev/null") == ["pipe", "pipe", "socket"]


def stuck(path: str) -> None:
    looking.at("/before")
    looking.at(path)
    # In place of the kernel, which lets nobody go: SIGTERM is ignored.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


@pytest.mark.usefixtures("short")
def test_a_path_that_does_not_answer_is_named() -> None:
    with pytest.raises(looking.NoAnswerError) as error:
        looking.call(lambda: stuck("/a\x1b\udcff"), "/")
    assert error.value.message == "/a\\x1b\\xff did not answer within 1 s"


@pytest.mark.usefixtures("short")
def test_one_that_gets_on_is_waited_for() -> None:
    def slow() -> int:
        for step in range(8):
            looking.at(f"/{step}")
            time.sleep(0.3)
        return 8

    assert looking.call(slow, "/") == 8


@pytest.mark.usefixtures("short")
def test_a_program_has_a_time_limit_of_its_own() -> None:
    assert looking.call(lambda: process.run(["sleep", "2.5"], timeout=10).status, "/") == 0


@pytest.mark.parametrize("program", [True, False], ids=["a program runs", "a path does not answer"])
def test_a_signal_ends_it_at_once(program: bool) -> None:
    seconds = f"5{os.getpid()}"

    def look() -> None:
        os.kill(os.getppid(), signal.SIGTERM)
        if program:
            process.run(["sleep", seconds], timeout=600)
        else:
            stuck("/x")

    with signals.handled(), pytest.raises(Interrupted):
        looking.call(look, "/")
    assert command("pgrep", "-f", f"sleep {seconds}", check=False).stdout == ""


def test_paths_are_opened_in_a_child_for_all_threads(tmp_path: Path) -> None:
    (tmp_path / "a\udcff").mkdir()
    with looking.Opener(lambda path: host.here().open_directory(path, to_list=True)) as opener:
        fd = opener.open(str(tmp_path / "a\udcff"))
        assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / "a\udcff"))
        assert not os.get_inheritable(fd)
        os.close(fd)
        for path, number in ((tmp_path / "none", errno.ENOENT), (Path(__file__), errno.ENOTDIR)):
            with pytest.raises(OSError, match=r".") as refused:
                opener.open(str(path))
            assert (refused.value.errno, refused.value.filename) == (number, str(path))


@pytest.mark.usefixtures("short")
def test_what_cannot_be_opened_in_time_costs_that_path_alone(tmp_path: Path) -> None:
    def open_slowly(path: str) -> int:
        if path == "/stuck":
            stuck(path)
        return os.open(path, os.O_RDONLY)

    with looking.Opener(open_slowly) as opener:
        os.close(opener.open("/"))
        with pytest.raises(TimeoutError) as error:
            opener.open("/stuck")
        assert (error.value.strerror, error.value.filename) == ("it did not answer within 1 s", "/stuck")
        os.close(opener.open("/"))


# Nobody else looks

OF_OS = ("open", "stat", "lstat", "listdir", "scandir", "readlink", "statvfs", "access", "walk", "getxattr")
OF_PATH = ("realpath", "exists", "lexists", "isdir", "isfile", "islink", "ismount", "getsize", "samefile")
OF_PRESENCE = ("status", "exists", "is_directory", "is_file", "is_link", "names")
LOOKS = {"open", *(f"os.{name}" for name in OF_OS), *(f"os.path.{name}" for name in OF_PATH)}
LOOKS |= {f"presence.{name}" for name in OF_PRESENCE}
METHODS = {"open_directory", "make_directory", "link_target", "open_without_links", "read_text", "read_bytes"}

PARTS = (
    "commands/backup",
    "commands/inside",
    "engines/**/*",
    "filesystems/**/selection",
    "hooks/*",
    "model/changes",
    "output/*",
    "planning/fitting",
    "planning/plan",
    "planning/shielding",
    "runs/freezing",
    "runs/selecting",
    "runs/recorder",
    "runs/recording",
    "runs/skipping",
    "runs/supervisor",
)
"""What the main process does with a plan."""

IN_A_CHILD = {
    "engines/self_backup.py": {"look"},
    "engines/reader.py": {"_made"},
    "hooks/servers.py": {"_is_there", "_process_of", "real_entries", "real_paths"},
    "engines/names.py": {"_all"},  # the launcher
    "engines/written.py": {"_is_tagged", "_made"},
}
ROOTS_OWN = {
    "engines/kopia/client.py": {"_find_config", "check_connected", "_invoking_users_config"},
    "engines/kopia/location.py": {"_configuration"},  # kopia's configuration
    "engines/program.py": {"_why_not"},  # where programs are looked for
    "output/console.py": {"discard"},  # /dev/null
}
"""What is no user's to replace. This list may only shrink."""


def looks(tree: ast.AST, function: str = "") -> Iterator[tuple[str, str]]:
    """The calls that look at a path, each with the function that it is in; but for what is called in a child."""
    for node in ast.iter_child_nodes(tree):
        inside = node.name if isinstance(node, ast.FunctionDef) else function
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "looking.call":
                continue
            if name in LOOKS or name.rpartition(".")[2] in METHODS:
                yield inside, name
        yield from looks(node, inside)


def test_the_main_process_looks_at_no_path_that_users_control() -> None:
    package = Path(kopiatomic.__file__).parent
    found: dict[str, set[str]] = {}
    files = {pattern: set(package.glob(f"{pattern}.py")) for pattern in PARTS}
    assert all(files.values()), "a part has been moved"
    for file in sorted(set().union(*files.values())):
        for function, _ in looks(ast.parse(file.read_text())):
            found.setdefault(str(file.relative_to(package)), set()).add(function)
    assert found == IN_A_CHILD | ROOTS_OWN
