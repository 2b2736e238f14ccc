"""Every error that can be had without ZFS: its exit code, its message, what it tells to do, and that nothing is left.

KOPIATOMIC_ERROR_TABLE=FILE writes the table of messages and exit codes, as they came, to a file (Markdown).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.btrfs.conftest import Gate
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopia, Kopiatomic, command
from tests.support.schema import valid
from tests.support.without_root import as_nobody, without_capability

Leftovers = Callable[..., list[str]]


@dataclass
class Bench:
    """What an error is provoked with."""

    btrfs: Btrfs
    kopia: Kopia
    kopiatomic: Kopiatomic
    tmp: Path
    gate: Gate
    stack: ExitStack
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.tmp / "view"

    @property
    def data(self) -> Path:
        return self.btrfs.mountpoint / "data"

    def run(self, *args: str | Path, wrap: Callable[..., list[str]] | None = None) -> Completed:
        argv = Kopiatomic.argv("--mount-root", self.root, *args)
        environment = {**self.kopiatomic.environment, **self.environment}
        return command(*(argv if wrap is None else wrap(*argv)), env=environment, check=False)

    def file(self, name: str, text: str = "", mode: int = 0o755) -> Path:
        path = self.tmp / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def mounted(self, fstype: str, options: str = "rw") -> Path:
        """A mount that is gone after the test."""
        point = self.tmp / f"mounted-{fstype}-{len(list(self.tmp.iterdir()))}"
        point.mkdir()
        command("mount", "-t", fstype, "-o", options, "none", point)
        self.stack.callback(command, "umount", point)
        return point


@pytest.fixture
def bench(btrfs: Btrfs, kopia: Kopia, kopiatomic: Kopiatomic, tmp_path: Path, gate: Gate) -> Iterator[Bench]:
    btrfs.subvolume("data")
    (btrfs.mountpoint / "data" / "file").write_text("x")
    with ExitStack() as stack:
        yield Bench(btrfs, kopia, kopiatomic, tmp_path, gate, stack)


# How each is provoked


def other_run(bench: Bench) -> Completed:
    with bench.kopiatomic.started("--mount-root", bench.root, "-c", bench.gate.command, bench.data) as first:
        bench.gate.wait()
        second = bench.run("-c", "true", bench.data)
        bench.gate.let_go()
        assert first.wait(20) == 0
        return second


def read_only_root(bench: Bench) -> Completed:
    point = bench.mounted("tmpfs", "ro")
    return bench.run("--mount-root", point / "view", "-c", "true", bench.data)


def openat2_refused(bench: Bench) -> Completed:
    """As in a unit with RestrictSUIDSGID=."""
    code = "import os, sys; from tests.support import seccomp; seccomp.refuse(437); os.execv(sys.argv[1], sys.argv[1:])"
    ended = bench.run("-c", "true", bench.data, wrap=lambda *argv: [sys.executable, "-c", code, *argv])
    assert "Operation not permitted)" in ended.stderr
    return ended


def root_that_is(kind: str) -> Callable[[Bench], Completed]:
    def provoke(bench: Bench) -> Completed:
        path = bench.tmp / "occupied"
        if kind == "file":
            path.write_text("kept")
        elif kind == "link":
            path.symlink_to(bench.tmp)
        else:
            path.mkdir()
            (path / "important").write_text("kept")
        ended = bench.run("--mount-root", path, "-c", "true", bench.data)
        assert path.is_symlink() or path.is_file() or (path / "important").read_text() == "kept"
        return ended

    return provoke


def read_only_run(bench: Bench) -> Completed:
    script = 'mount -t tmpfs -o ro none /run && exec "$@"'
    return bench.run("-c", "true", bench.data, wrap=lambda *argv: ["unshare", "-m", "sh", "-c", script, "sh", *argv])


def foreign_lock_directory(bench: Bench) -> Completed:
    script = 'mount -t tmpfs none /run && mkdir -m 777 /run/kopiatomic && exec "$@"'
    return bench.run("-c", "true", bench.data, wrap=lambda *argv: ["unshare", "-m", "sh", "-c", script, "sh", *argv])


def full_btrfs(bench: Bench) -> Completed:
    """A small filesystem in which data and metadata share their space, so that both are full."""
    image, point = bench.tmp / "small-image", bench.tmp / "small"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(40 << 20)
    command("mkfs.btrfs", "--quiet", "--mixed", image)
    command("mount", "-o", "loop", image, point)
    bench.stack.callback(command, "umount", point)
    ended = command("dd", "if=/dev/zero", f"of={point}/big", "bs=64K", check=False)
    assert "No space left" in ended.stderr
    return bench.run("-c", "true", point)


def read_only_btrfs(bench: Bench) -> Completed:
    command("mount", "-o", "remount,ro", bench.btrfs.mountpoint)
    try:
        return bench.run("-c", "true", bench.data)
    finally:
        text = Path("/proc/self/mountinfo").read_text()
        (line,) = [line for line in text.splitlines() if f" {bench.btrfs.mountpoint} " in line]
        assert " ro," in line.partition(" - ")[0]
        assert " ro," in line.partition(" - ")[2], "the run made a read-only filesystem writable"
        command("mount", "-o", "remount,rw", bench.btrfs.mountpoint)


def not_atomic(bench: Bench) -> Completed:
    others = [bench.btrfs.subvolume(f"other{number}") for number in range(5)]
    return bench.run("-c", "true", "--require-atomic", bench.data, *others)


def killed_engine(bench: Bench) -> Completed:
    return bench.run("-c", "sh -c 'kill -SEGV $$'", bench.data)


def with_kopia(change: Callable[[Bench], None], *args: str) -> Callable[[Bench], Completed]:
    def provoke(bench: Bench) -> Completed:
        bench.environment.update(bench.kopia.environment)
        change(bench)
        return bench.run(*args, bench.data)

    return provoke


def no_kopia(bench: Bench) -> None:
    bench.environment["KOPIATOMIC_KOPIA"] = str(bench.tmp / "no-kopia")


def kopia_not_executable(bench: Bench) -> None:
    bench.environment["KOPIATOMIC_KOPIA"] = str(bench.file("not-executable", mode=0o644))


def old_kopia(bench: Bench) -> None:
    """A fake: no such old kopia can be had here."""
    bench.environment["KOPIATOMIC_KOPIA"] = str(bench.file("old-kopia", "#!/bin/sh\necho 0.8.4 build: x from:\n"))


def not_connected(bench: Bench) -> None:
    bench.environment["KOPIA_CONFIG_PATH"] = str(bench.tmp / "nowhere.config")


def wrong_password(bench: Bench) -> None:
    bench.environment["KOPIA_PASSWORD"] += ", wrong"


def no_password(bench: Bench) -> None:
    del bench.environment["KOPIA_PASSWORD"]


def repository_gone(bench: Bench) -> None:
    bench.kopia.repository.rename(bench.tmp / "moved")


def one_file_system(bench: Bench) -> None:
    bench.kopia("policy", "set", "--global", "--one-file-system=true")


def plain(*args: str) -> Callable[[Bench], Completed]:
    """A command line as it is; DATA stands for a good subvolume, TMP for a directory of this test."""

    def provoke(bench: Bench) -> Completed:
        places = {"DATA": str(bench.data), "TMP": str(bench.tmp)}
        return bench.run(*(re.sub("DATA|TMP", lambda found: places[found[0]], word) for word in args))

    return provoke


@dataclass(frozen=True)
class Case:
    name: str
    provoke: Callable[[Bench], Completed]
    code: int
    kind: str
    message: str
    """A regular expression that the message contains."""
    hint: str
    """Words that the hint contains."""


CASES = [
    Case("no arguments", plain(), 2, "no-arguments", "no dataset was named", "-a for all"),
    Case("unknown flag", plain("--frobnicate"), 2, "usage", "No such option '?--frobnicate", "-h"),
    Case("-c with unbalanced quotes", plain("-c", "tar 'x", "DATA"), 2, "bad-quotes", "-c: no closing quot", "pairs"),
    Case("-o with unbalanced quotes", plain("-o", '"', "DATA"), 2, "bad-quotes", "-o: no closing quot", "pairs"),
    Case("-c empty", plain("-c", "", "DATA"), 2, "no-command", "the command is empty", "-c 'tar"),
    Case(
        "bad --name", plain("--name", "../x", "DATA"), 2, "bad-name", r"--name \.\./x: .*one path comp", "--name home"
    ),
    Case(
        "not root",
        lambda bench: bench.run("-c", "true", bench.data, wrap=as_nobody),
        *(1, "not-root", "needs root", "sudo kopiatomic"),
    ),
    Case(
        "unshare not permitted",
        lambda bench: bench.run("-c", "true", bench.data, wrap=lambda *a: without_capability("sys_admin", *a)),
        *(1, "*", "not permitted", "CAP_SYS_ADMIN"),
    ),
    Case("no such path", plain("TMP/nowhere"), 1, "no-such-path", "/nowhere: No such file", "mount point"),
    Case("no such path without ./", plain("nowhere"), 1, "zfs-missing", "ZFS is not installed", "/ or ./"),
    Case("ZFS not installed", plain("tank/home"), 1, "zfs-missing", "ZFS is not installed.*'zfs'", "zfsutils-linux"),
    Case("a snapshot", plain("tank/home@x"), 1, "not-a-filesystem", "is a snapshot, not a filesystem", "tank/home"),
    Case("a bookmark", plain("tank/home#x"), 1, "not-a-filesystem", "is a bookmark, not a filesystem", "tank/home"),
    Case(
        "a file",
        lambda bench: bench.run("-c", "true", bench.data / "file"),
        *(1, "not-a-directory", "is neither a mount point nor a directory: it lies in the Btrfs", "to take it whole"),
    ),
    Case(
        "on ext4 or the like",
        plain("TMP"),
        *(1, "unsupported-filesystem", r"is on \w+ \(\S+\), which is neither ZFS nor Btrfs", "kopia directly"),
    ),
    Case(
        "on tmpfs",
        lambda bench: bench.run("-c", "true", bench.mounted("tmpfs")),
        *(1, "unsupported-filesystem", r"is on tmpfs \(none\), which is neither", "kopia directly"),
    ),
    Case(
        "mount root a file", root_that_is("file"), 1, "mount-root", "cannot be used: .*not a directory", "--mount-root"
    ),
    Case("mount root a link", root_that_is("link"), 1, "mount-root", "it is a symbolic link", "--mount-root"),
    Case("mount root not empty", root_that_is("full"), 1, "mount-root", r"not empty \(important\)", "--mount-root"),
    Case("mount root read-only", read_only_root, 1, "mount-root", "Read-only file system", "--mount-root"),
    Case("mount root /", plain("--mount-root", "/", "-c", "true", "DATA"), 1, "mount-root", "whole system", "/kopia"),
    Case(
        "mount root of another run", other_run, 75, "locked", r"another run has .* \(run \S+, pid \d+, since", "--name"
    ),
    Case("/run read-only", read_only_run, 1, "lock-impossible", "/run/kopiatomic: Read-only", "writable /run"),
    Case(
        "/run/kopiatomic open to all", foreign_lock_directory, 1, "lock-directory", "only root can enter", "chmod 700"
    ),
    Case(
        "-c missing", plain("-c", "no-such-program", "DATA"), 1, "command-missing", "no program 'no-such-", "-c takes"
    ),
    Case(
        "-c not executable",
        lambda bench: bench.run("-c", str(bench.file("data.txt", mode=0o644)), bench.data),
        *(1, "command-not-executable", "data.txt may not be executed", "chmod"),
    ),
    Case(
        "-c no program",
        lambda bench: bench.run("-c", str(bench.file("garbage", "\x7fELF garbage")), bench.data),
        *(1, "engine-start", "garbage cannot be started: Exec format error", "executable"),
    ),
    Case(
        "-c without its interpreter",
        lambda bench: bench.run("-c", str(bench.file("script", "#!/no/such/shell\n")), bench.data),
        *(1, "engine-interpreter", "script cannot be started: what it names as its interpreter is missing", "#!"),
    ),
    Case(
        "-c fails", plain("-c", "sh -c 'exit 7'", "DATA"), 1, "engine-failed", "sh failed: exit status 7", "Nothing was"
    ),
    Case("-c killed by a signal", killed_engine, 1, "engine-failed", r"sh failed: killed by SIGSEGV \(11\)", "Nothing"),
    Case(
        "-p fails",
        plain("-p", "exit 5", "-c", "true", "DATA"),
        1,
        "hook-failed",
        "hook -p failed .exit status 5",
        "above",
    ),
    Case(
        "-p hangs",
        plain("-p", "sleep 60", "--hook-timeout", "0.3", "-c", "true", "DATA"),
        *(1, "hook-timeout", r"hook -p did not end within 0\.3 s", "--hook-timeout"),
    ),
    Case(
        "-q fails after a good backup",
        plain("-q", "exit 6", "-c", "true", "DATA"),
        *(4, "hook-failed", "hook -q failed .exit status 6.: exit 6", "as said above"),
    ),
    Case(
        "openat2 refused by a filter",
        openat2_refused,
        *(1, "filtered", "the system call openat2 is refused", "RestrictSUIDSGID="),
    ),
    Case(
        "not atomic",
        not_atomic,
        1,
        "not-atomic",
        "--require-atomic: Btrfs put the snapshots",
        "Take fewer subvolumes at once",
    ),
    Case(
        "Btrfs full", full_btrfs, 1, "btrfs-snapshot", "snapshots? .*the filesystem is full", "btrfs filesystem usage"
    ),
    Case("Btrfs read-only", read_only_btrfs, 1, "btrfs-snapshot", "/data: the filesystem is read-only", "writable"),
    Case("kopia missing", with_kopia(no_kopia), 1, "kopia-missing", "no program", "KOPIATOMIC_KOPIA"),
    Case(
        "kopia not executable",
        with_kopia(kopia_not_executable),
        *(1, "kopia-not-executable", "may not be executed", "chmod"),
    ),
    Case("kopia too old", with_kopia(old_kopia), 1, "kopia-too-old", r"is kopia 0\.8\.4: too old", "Install"),
    Case(
        "kopia not connected", with_kopia(not_connected), 1, "kopia-not-connected", r"no \S+/nowhere\.config", "connect"
    ),
    Case(
        "kopia wrong password",
        with_kopia(wrong_password),
        1,
        "kopia-wrong-password",
        "refuses the password",
        "KOPIA_PASS",
    ),
    Case(
        "kopia without password",
        with_kopia(no_password),
        1,
        "kopia-password-missing",
        "does not know",
        "KOPIA_PASSWORD",
    ),
    Case(
        "kopia repository gone", with_kopia(repository_gone), 1, "kopia-unreachable", "cannot reach its repos", "status"
    ),
    Case(
        "kopia one-file-system", with_kopia(one_file_system), 1, "one-file-system", "sets one-file-system", "policy set"
    ),
    Case("kopia -o --all", with_kopia(lambda _: None, "-o", "--all"), 2, "usage", "-o --all does not go", "Leave"),
]


@pytest.mark.in_part(11)
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_every_error_says_what_to_do_and_leaves_nothing(case: Case, bench: Bench, leftovers: Leftovers) -> None:
    ended = case.provoke(bench)
    told = [line for line in ended.stderr.splitlines() if re.search(case.message, line)]
    assert told, str(ended)
    assert ended.returncode == case.code, str(ended)
    after = ended.stderr.splitlines()[ended.stderr.splitlines().index(told[-1]) + 1 :]
    assert case.hint in " ".join(after), str(ended)
    assert "Traceback" not in ended.stderr
    assert "internal error" not in ended.stderr
    write_down(case, told[-1], after, bench)
    assert leftovers(bench.root) == []


def write_down(case: Case, message: str, hint: list[str], bench: Bench) -> None:
    if file := os.environ.get("KOPIATOMIC_ERROR_TABLE"):
        short = {str(bench.tmp): "/tmp/test", os.environ["PATH"]: "PATH"}
        lines = [
            re.sub("|".join(map(re.escape, short)), lambda found: short[found[0]], line) for line in (message, *hint)
        ]
        lines = [lines[0].removeprefix("kopiatomic: "), " ".join(lines[1:]).strip()]
        new = not Path(file).exists()
        with open(file, "a", encoding="utf-8") as table:
            if new:
                table.write("| case | exit code | message | what to do |\n|---|---|---|---|\n")
            cells = [cell.replace("|", "\\|") for cell in (case.name, str(case.code), *lines)]
            table.write(f"| {' | '.join(cells)} |\n")


JSON_CASES = [case for case in CASES if case.name in {"no such path", "-c fails", "mount root a file", "-p fails"}]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in JSON_CASES])
def test_errors_have_a_stable_kind_in_json(case: Case, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: str | Path, wrap: None = None) -> Completed:
        return Bench.run(bench, "--json", *args, wrap=wrap)

    monkeypatch.setattr(bench, "run", run)
    ended = case.provoke(bench)
    document = valid(ended.stdout)
    assert document["exit_code"] == ended.returncode == case.code
    assert document["error"]["kind"] == case.kind
    assert re.search(case.message, document["error"]["message"])
    assert case.hint in document["error"]["hint"]
