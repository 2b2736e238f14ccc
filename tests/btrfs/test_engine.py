"""Whatever a program does that is started as an engine: it ends with the run, and its output harms nothing."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.filesystems import Btrfs
from tests.support.parts import share
from tests.support.programs import Completed, Kopiatomic

Leftovers = Callable[..., list[str]]
Run = Callable[..., Completed]

MEMORY_LIMIT_KB = 100_000


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    return btrfs.subvolume("data")


def python(code: str) -> str:
    """A Python program as a value for -c."""
    return shlex.join([sys.executable, "-c", code])


@pytest.mark.parametrize("keeps_streams", [False, True], ids=["closed streams", "open streams"])
def test_a_child_that_makes_itself_a_daemon_ends_with_the_engine(
    keeps_streams: bool, data: Path, run: Run, root: Path, leftovers: Leftovers
) -> None:
    code = "import os, time\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n"
    code += ("" if keeps_streams else "os.closerange(0, 256)\n") + "time.sleep(300)"
    began = time.monotonic()
    ended = run("-c", python(code), data)
    assert ended.returncode == 0, str(ended)
    assert time.monotonic() - began < 10
    assert leftovers(root) == []


def test_a_gigabyte_of_messages_neither_fills_the_memory_nor_blocks(
    data: Path, root: Path, kopiatomic: Kopiatomic, leftovers: Leftovers
) -> None:
    flood = f"sh -c 'head -c {share(1_000_000_000, 200_000_000)} /dev/zero | tr \"\\\\0\" x >&2; echo end >&2'"
    argv = kopiatomic.argv("--mount-root", root, "-c", flood, data)
    most = 0
    with subprocess.Popen(
        argv, env=kopiatomic.environment, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as process:
        while process.poll() is None:
            most = max(most, most_memory_kb(process.pid))
            time.sleep(0.02)
    assert process.returncode == 0
    assert 1000 < most < MEMORY_LIMIT_KB
    assert leftovers(root) == []


def most_memory_kb(pid: int) -> int:
    """The most memory that a process has had at once so far; 0 where it has ended."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


def test_an_engines_words_are_harmless_on_a_terminal(data: Path, run: Run) -> None:
    ended = run("-c", r"printf 'one\033[2Jtwo\007\377\n%s\n'", data)
    assert "one\\x1b[2Jtwo\\x07\\xff" in ended.stderr
    assert "\x1b" not in ended.stderr + ended.stdout


def test_an_engine_has_no_input_and_no_descriptor_of_ours(data: Path, run: Run) -> None:
    code = "import os, sys; print(repr(sys.stdin.read()), sorted(os.listdir('/proc/self/fd')))"
    ended = run("-c", python(code), data)
    # The fourth is that of the listing itself.
    assert "'' ['0', '1', '2', '3']" in ended.stderr


def test_options_come_between_the_command_and_the_root(data: Path, run: Run, root: Path) -> None:
    document = json.loads(run("--json", "-c", "echo 'a b'", "-o", "-x --y='1 2'", data).stdout)
    assert document["engine"]["argv"] == ["/usr/bin/echo", "a b", "-x", "--y=1 2", str(root)]


def test_no_shell_sees_the_command(data: Path, run: Run, tmp_path: Path) -> None:
    ended = run("-c", f"echo $HOME `id` ; touch {tmp_path}/made", data)
    assert "$HOME `id` ; touch" in ended.stderr
    assert not (tmp_path / "made").exists()


def test_an_engine_begins_with_no_signal_ignored_or_blocked(data: Path, run: Run) -> None:
    """Python ignores SIGPIPE, keeper and launcher more: an engine that inherited that would not end with its pipes."""
    told = run("-c", "sh -c 'cat /proc/self/status'", data).stderr.split()
    ignored, blocked = (int(told[told.index(word) + 1], 16) for word in ("SigIgn:", "SigBlk:"))
    # 32 and 33 are glibc's own, whose posix_spawn(3) leaves them so.
    assert ignored & 0x7FFFFFFF == blocked == 0
