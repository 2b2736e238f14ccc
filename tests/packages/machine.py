"""A clean Debian in which a test may do as it likes: it is a folder of the cache with all changes in memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.btrfs.conftest import only_child, wait_for
from tests.support.programs import SOURCE, Completed, command

TREE = SOURCE.parent
ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}


@dataclass(frozen=True)
class Machine:
    """Runs commands in it, as root. It has no network; apt finds there what our package and its tests want."""

    suite: str
    exchange: Path
    """A folder of this machine that is ``/exchange`` there."""
    first: int
    """The process id, here, of its first process."""

    def argv(self, *words: str | Path) -> list[str]:
        """What to start here so that these words run there."""
        enter = ["nsenter", f"--target={self.first}", "--mount", "--pid", "--ipc", "--net", "--uts", "--root", "--wd"]
        environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        return [*enter, "env", "-i", *environment, *map(str, words)]

    def __call__(self, *words: str | Path, check: bool = True, timeout: float = 60) -> Completed:
        return command(*self.argv(*words), check=check, timeout=timeout)

    def shell(self, script: str, *, check: bool = True, timeout: float = 60) -> Completed:
        return self("sh", "-ec", script, check=check, timeout=timeout)

    def apt(self, *words: str | Path, check: bool = True) -> Completed:
        """apt-get, without asking."""
        return self("apt-get", "-qq", "-y", "-o", "Dpkg::Use-Pty=0", *words, check=check, timeout=300)

    def there(self, path: Path) -> Path:
        """What a path below ``exchange`` is called there."""
        return Path("/exchange") / path.relative_to(self.exchange)

    def path(self, path: str) -> Path:
        """A path of there as it can be reached from here."""
        return Path(f"/proc/{self.first}/root{path}")


@contextmanager
def machine(suite: str, exchange: Path, kind: str = "user", first: str = "sleep infinity") -> Iterator[Machine]:
    """A clean one, gone at the end with all that runs in it. What is mounted in ``exchange`` by now is to be seen there.

    ``first`` is its first process, as a shell has it.
    """
    script = f"echo >/exchange/ready; exec {first}"
    argv = [str(TREE / "dev/clean-root"), kind, suite, "--exchange", str(exchange), "--", "sh", "-c", script]
    (exchange / "ready").unlink(missing_ok=True)
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            # It may have to be built.
            wait_for(
                lambda: (exchange / "ready").exists() or process.poll() is not None, f"a clean {suite}", within=900
            )
            assert process.returncode is None
            yield Machine(suite, exchange, only_child(process.pid))
        finally:
            process.kill()


@contextmanager
def booted_machine(suite: str, exchange: Path, kind: str = "booted") -> Iterator[Machine]:
    """One with systemd as its first process."""
    # What is started goes into the group that we are in, and takes that for the root of all groups.
    with _own_cgroup(), machine(suite, exchange, kind, "/lib/systemd/systemd") as host:
        wait_for(
            lambda: host("systemctl", "is-system-running", check=False).stdout == "running\n",
            "the system to be up",
            within=120,
        )
        yield host


@contextmanager
def _own_cgroup() -> Iterator[None]:
    """Be in a new control group (version 2) for the length of the block; all groups below it go with it."""
    top = Path(command("findmnt", "-n", "-o", "TARGET", "-t", "cgroup2").stdout.splitlines()[0])
    ours = next(
        line.removeprefix("0::/") for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"
    )
    group = top / ours / f"kopiatomic-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (top / ours / "cgroup.procs").write_text(str(os.getpid()))
        wait_for(lambda: "populated 0" in (group / "cgroup.events").read_text(), "the machine's end", within=120)
        for folder, _, _ in os.walk(group, topdown=False):
            os.rmdir(folder)


@contextmanager
def living_run(host: Machine, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run that goes on until somebody makes ``/tmp/go``."""
    host("rm", "-f", "/tmp/go", "/tmp/begun")
    engine = "sh -c 'touch /tmp/begun; while [ ! -e /tmp/go ]; do sleep 0.05; done'"
    with subprocess.Popen(host.argv("kopiatomic", "--quiet", "-c", engine, home), stdin=subprocess.DEVNULL) as process:
        try:
            wait_for(host.path("/tmp/begun").exists, "the engine's start")
            yield process
        finally:
            host("touch", "/tmp/go")
            process.wait(30)
