"""What a caller happens to have set neither stops a run nor gets lost: our processes do without it, programs get it back."""

from __future__ import annotations

import os
import re
import resource
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kopiatomic import __version__
from tests.btrfs.conftest import Family, Gate
from tests.support.filesystems import Btrfs
from tests.support.killing import kill_together
from tests.support.programs import Completed, Kopiatomic, command

pytestmark = pytest.mark.in_part(12)

Leftovers = Callable[..., list[str]]

UMASK, FILES, NICER = 0o137, 99, 3
BLOCKED = {signal.SIGALRM, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1}
IGNORED = {signal.SIGCHLD, signal.SIGPIPE, signal.SIGUSR2, signal.SIGHUP}

SAY = 'umask; ulimit -Sn; nice; grep -E "^Sig(Blk|Ign)" /proc/self/status'
"""A shell says what it has inherited; the signals are those of a child: while it waits for that, it blocks some itself."""


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    return btrfs.subvolume("data")


@pytest.fixture
def oddly(kopiatomic: Kopiatomic, tmp_path: Path) -> Callable[..., Completed]:
    """Run the command as a caller would that has set everything otherwise than usual."""

    def settle() -> None:
        os.umask(UMASK)
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        os.nice(NICER)
        for signum in IGNORED:
            signal.signal(signum, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, BLOCKED)

    def run(*args: str | Path) -> Completed:
        argv = Kopiatomic.argv(*args)
        # restore_signals would undo a part of it.
        ended = subprocess.run(
            argv,
            env=kopiatomic.environment,
            preexec_fn=settle,
            restore_signals=False,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Completed(tuple(argv), ended.returncode, ended.stdout, ended.stderr)

    return run


def has_what_the_caller_had(said: str) -> bool:
    umask, files, nice, *masks = said.split("\n")[:5]
    assert (int(umask, 8), int(files), int(nice)) == (UMASK, FILES, os.nice(0) + NICER)
    assert [int(mask.split()[1], 16) for mask in masks] == [0, 0], said
    return True


def test_engines_and_hooks_get_it_back(data: Path, oddly: Callable[..., Completed], root: Path, tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("before", "engine", "after")]
    before, engine, after = (f"{{ {SAY}; }} > {place}" for place in places)
    ended = oddly("--mount-root", root, "-p", before, "-q", after, "-c", shlex.join(["sh", "-c", engine]), data)
    assert ended.returncode == 0, str(ended)
    assert all(has_what_the_caller_had(place.read_text()) for place in places)


@pytest.mark.parametrize("layout", ["merged", "in-place"])
@pytest.mark.parametrize("user", [(), ("--user", "nobody")], ids=["root", "nobody"])
def test_a_command_gets_it_back(
    data: Path, oddly: Callable[..., Completed], user: tuple[str, ...], layout: str
) -> None:
    ended = oddly("exec", "--layout", layout, *user, data, "--", "sh", "-c", SAY)
    assert ended.returncode == 0, str(ended)
    assert has_what_the_caller_had(ended.stdout)


def test_programs_that_are_only_asked_get_it_back(
    data: Path, oddly: Callable[..., Completed], kopiatomic: Kopiatomic, tmp_path: Path
) -> None:
    """A stand-in for kopia writes down what it has when it is asked for its version: the real one does not say."""
    asked = tmp_path / "bin" / "kopia"
    asked.parent.mkdir()
    asked.write_text(f"#!/bin/sh\n{{ {SAY}; }} > {tmp_path}/asked\nexit 1\n")
    asked.chmod(0o755)
    kopiatomic.environment["PATH"] = f"{asked.parent}:{os.environ['PATH']}"
    assert oddly(data).returncode == 1
    assert has_what_the_caller_had((tmp_path / "asked").read_text())


def test_our_own_processes_have_none_of_it(
    data: Path, oddly: Callable[..., Completed], root: Path, tmp_path: Path
) -> None:
    """A hook sees the main process, whose children are made like it."""
    hook = f"cat /proc/$PPID/status /proc/$PPID/limits > {tmp_path}/ours"
    assert oddly("--mount-root", root, "-p", hook, "-c", "true", data).returncode == 0
    ours = (tmp_path / "ours").read_text()
    assert re.search(r"^Umask:\s+0022$", ours, re.M)
    assert re.search(r"^SigBlk:\s+0+$", ours, re.M)
    (limits,) = re.findall(r"^Max open files +(\d+) +(\d+)", ours, re.M)
    assert limits[0] == limits[1] != str(FILES)


@pytest.mark.parametrize("umask", [0, 0o777])
def test_the_parents_of_the_state_directory_are_root_s_alone_to_write(
    umask: int, data: Path, kopiatomic: Kopiatomic, root: Path, tmp_path: Path
) -> None:
    state = tmp_path / "a" / "b" / "state"
    words = Kopiatomic.argv("--mount-root", root, "--state-dir", state, "-c", "true", data)
    command("sh", "-c", f'umask {umask:o}; exec "$@"', "sh", *words, env=kopiatomic.environment)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (state.parent.parent, state.parent, state)]
    assert modes == [0o755, 0o755, 0o700]


def blocking(*signums: signal.Signals) -> list[str]:
    """What a command is started by, so that it begins with these signals blocked."""
    block = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, map(int, sys.argv[1].split())); "
    numbers = " ".join(str(int(signum)) for signum in signums)
    return [sys.executable, "-c", block + "os.execvp(sys.argv[2], sys.argv[2:])", numbers]


@pytest.mark.parametrize("blocked", [(signal.SIGALRM,), (signal.SIGCHLD,), tuple(BLOCKED)], ids=["ALRM", "CHLD", "all"])
def test_the_time_limit_ends_a_run_whatever_is_blocked(
    blocked: tuple[signal.Signals, ...], data: Path, kopiatomic: Kopiatomic, root: Path, leftovers: Leftovers
) -> None:
    words = Kopiatomic.argv("--mount-root", root, "--timeout", "2", "-c", "sh -c 'exec sleep 40'", data)
    ended = command(*blocking(*blocked), *words, env=kopiatomic.environment, timeout=30, check=False)
    assert ended.returncode == 1, str(ended)
    assert "the time limit of 2 s (--timeout) is over" in ended.stderr
    assert leftovers(root) == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_that_was_started_with_it_blocked(
    signum: signal.Signals,
    data: Path,
    kopiatomic: Kopiatomic,
    root: Path,
    leftovers: Leftovers,
    make_gate: Callable[..., Gate],
) -> None:
    gate = make_gate()
    words = [*blocking(signum), *Kopiatomic.argv("--mount-root", root, "-c", gate.command, data)]
    with subprocess.Popen(words, env=kopiatomic.environment, stderr=subprocess.PIPE, text=True) as process:
        gate.wait()
        process.send_signal(signum)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert f"stopped by {signum.name}" in errors
    assert leftovers(root) == []


@pytest.mark.parametrize("layout", ["merged", "in-place"])
def test_no_temporary_directory_is_needed(
    layout: str, data: Path, kopiatomic: Kopiatomic, root: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    """None exists, none can be written to, and neither can the working directory."""
    (data / "file").write_text("frozen")
    engine = f"cat {root if layout == 'merged' else ''}{data}/file"
    words = Kopiatomic.argv("--mount-root", root, "--layout", layout, "-c", shlex.join(["sh", "-c", engine]), data)
    read_only = (
        'for d in /tmp /var/tmp; do mount --rbind "$d" "$d"; mount -o remount,bind,ro "$d"; done; '
        f"mount --rbind {tmp_path} {tmp_path}; mount -o remount,bind,rw {tmp_path}; "
        'cd /proc; TMPDIR=/nowhere exec "$@"'
    )
    words = ["unshare", "-m", "sh", "-ec", read_only, "sh", *words]
    ended = command(*words, env=kopiatomic.environment, check=False)
    assert ended.returncode == 0, str(ended)
    assert "frozen" in ended.stderr
    assert leftovers(root) == []


def test_without_proc_the_version_is_shown_and_a_run_says_what_it_lacks(kopiatomic: Kopiatomic) -> None:
    """In a chroot in which images are built there may be neither /proc nor /dev."""

    def without(*args: str, streams: str = "2>&1") -> Completed:
        script = f'mount -t tmpfs none /proc; mount -t tmpfs none /dev; exec "$@" {streams}'
        words = Kopiatomic.argv(*args)
        return command("unshare", "-m", "sh", "-c", script, "sh", *words, env=kopiatomic.environment, check=False)

    shown = without("--version")
    assert (shown.returncode, shown.stdout) == (0, f"kopiatomic {__version__}\n")
    assert without("--version", streams="<&- >&- 2>&-").returncode == 0
    for words in (("plan", "/"), ("-n", "/"), ("-c", "true", "/")):
        ended = without(*words)
        assert ended.returncode == 1, str(ended)
        assert "kopiatomic: the mounts cannot be seen: /proc/self/mountinfo is not there\n  Mount /proc" in ended.stdout


# What belongs on stdout and cannot be written there

ANSWERS = [
    ("plan", "DATA"),
    ("plan", "--facts", "DATA"),
    ("plan", "--json", "DATA"),
    ("-n", "-c", "true", "DATA"),
    ("history",),
    ("history", "--json"),
    ("recover", "--dry-run"),
    ("recover",),
    ("schedule", "show"),
    ("schedule", "show", "--json"),
]


def redirected(kopiatomic: Kopiatomic, where: str, *args: str | Path) -> Completed:
    """Run the command with its stdout going there; the exit code is its own."""
    words = Kopiatomic.argv(*args)
    script = f'"$@" {where}; exit "${{PIPESTATUS[0]}}"'
    return command("bash", "-c", script, "bash", *words, env=kopiatomic.environment, check=False)


@pytest.mark.parametrize("words", ANSWERS, ids=" ".join)
def test_an_answer_that_cannot_be_written_is_a_failure(
    words: tuple[str, ...], data: Path, kopiatomic: Kopiatomic
) -> None:
    asked = [data if word == "DATA" else word for word in words]
    full = redirected(kopiatomic, "> /dev/full", *asked)
    assert full.returncode == 1, str(full)
    assert full.stderr.endswith("kopiatomic: the answer could not be written: No space left on device\n")
    # The reader has read enough before it begins.
    closed = redirected(kopiatomic, "| :", *asked)
    assert closed.returncode == 0, str(closed)
    assert "written" not in closed.stderr
    assert "lost" not in closed.stderr


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["summary", "json"])
@pytest.mark.parametrize(("engine", "code"), [("true", 0), ("false", 1)])
def test_a_backup_keeps_its_exit_code(
    words: tuple[str, ...], engine: str, code: int, data: Path, kopiatomic: Kopiatomic, root: Path
) -> None:
    asked: list[str | Path] = ["--mount-root", root, *words, "-c", engine, data]
    full = redirected(kopiatomic, "> /dev/full", *asked)
    assert full.returncode == code, str(full)
    lost = "kopiatomic: warning: the output was lost: No space left on device\n"
    # A failure has no summary, but a document.
    assert (lost in full.stderr) == (code == 0 or bool(words))
    closed = redirected(kopiatomic, "| :", *asked)
    assert closed.returncode == code, str(closed)
    assert "lost" not in closed.stderr


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["lines", "json"])
def test_a_recovery_that_removed_something_keeps_its_exit_code(
    words: tuple[str, ...], data: Path, kopiatomic: Kopiatomic, root: Path, gate: Gate, leftovers: Leftovers
) -> None:
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as process:
        gate.wait()
        family = Family.of(process.pid)
        kill_together([family.main, family.keeper, family.launcher, family.engine])
    full = redirected(kopiatomic, "> /dev/full", "recover", *words)
    assert full.returncode == 0, str(full)
    assert "kopiatomic: warning: the output was lost: No space left on device\n" in full.stderr
    assert leftovers(root) == []
    again = redirected(kopiatomic, "> /dev/full", "recover", *words)
    assert again.returncode == 1, str(again)
