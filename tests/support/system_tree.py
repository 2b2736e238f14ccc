"""A whole system in a directory: what kopiatomic, kopia and a shell need to run with it as their root."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kopiatomic.system import linux
from tests.support.programs import SOURCE, Completed, command

PROGRAMS = (
    *(
        "sh",
        "bash",
        "cat",
        "ls",
        "touch",
        "find",
        "env",
        "id",
        "mount",
        "umount",
        "sleep",
        "true",
        "mkdir",
        "rm",
        "tar",
    ),
    *("zfs", "zpool", "btrfs"),
)
FOLDERS = ("proc", "sys", "dev", "run", "tmp", "root", "var/lib", "var/log", "home", "mnt", "usr/local/bin", "opt")
SITE = "/opt/site"
_KOPIATOMIC = ("/usr/bin/python3", "-m", "kopiatomic")
CONFIGURATION = ("passwd", "group", "nsswitch.conf", "ssl/certs", "ssl/openssl.cnf", "ld.so.cache", "localtime")


@dataclass(frozen=True)
class System:
    """One that is made; its top directory must be a mount point to be entered."""

    top: Path

    def path(self, inside: str) -> Path:
        return self.top / inside.lstrip("/")

    def run(self, *argv: str, env: dict[str, str] | None = None, timeout: float = 120) -> Completed:
        """Run a program with the system as the root of everything, as if it had been booted."""
        return command(*self._words(argv), env=self._environment(env), check=False, timeout=timeout)

    def _words(self, argv: Sequence[str]) -> list[str]:
        return [sys.executable, str(Path(__file__)), str(self.top), *argv]

    @staticmethod
    def _environment(more: dict[str, str] | None) -> dict[str, str]:
        own = {"HOME": "/root", "LANG": "C.UTF-8", "PATH": "/usr/local/bin:/usr/sbin:/usr/bin"}
        return {**own, **(more or {}), "PYTHONPATH": f"{SOURCE}:{SOURCE.parent}"}

    def kopiatomic(self, *words: str, env: dict[str, str] | None = None) -> Completed:
        return self.run(*_KOPIATOMIC, *words, env=env)

    def start(self, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start kopiatomic and leave it running; it becomes the process that is started."""
        null = subprocess.DEVNULL
        words = (*_KOPIATOMIC, *words)
        return subprocess.Popen(
            self._words(words), env=self._environment(env), stdin=null, stdout=null, stderr=null, start_new_session=True
        )


def make(top: Path) -> System:
    """Copy a system into an empty directory."""
    for folder in FOLDERS:
        (top / folder).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (top / "usr" / name).mkdir(exist_ok=True)
        (top / name).symlink_to(f"usr/{name}")
    (top / "tmp").chmod(0o1777)
    python = Path(sys.executable).resolve()
    found = [Path(path) for name in PROGRAMS if (path := shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin"))]
    kopia = Path(shutil.which("kopia") or "kopia")
    for program in {*found, python}:
        _copy(program.resolve(), top / "usr/bin" / program.name)
    (top / "usr/bin/python3").symlink_to(python.name)
    _copy(kopia, top / "usr/local/bin/kopia")
    standard = Path(sysconfig.get_paths()["stdlib"])
    unused = ("test", "tests", "__pycache__", "idlelib", "tkinter", "lib2to3", "distutils", "*-packages", "config-*")
    ignored = shutil.ignore_patterns(*unused)
    shutil.copytree(standard, top / str(standard).lstrip("/"), ignore=ignored, symlinks=True)
    # What rich takes other packages for (colours of source code, Markdown) is not used: they are a third of all files.
    for package in ("click", "rich"):
        shutil.copytree(_package(package), top / SITE.lstrip("/") / package)
    shutil.copytree(SOURCE / "kopiatomic", top / SITE.lstrip("/") / "kopiatomic")
    extensions = (standard / "lib-dynload").glob("*.so")
    dynamic = [Path(path) for name in ("libzfs_core.so.3", "libnvpair.so.3") for path in Path("/usr/lib").rglob(name)]
    for library in _libraries([*found, python, *extensions, *dynamic]) | set(dynamic):
        _copy(library, top / str(library).lstrip("/"))
    for name in CONFIGURATION:
        source = Path("/etc", name)
        if source.is_dir():
            shutil.copytree(source, top / "etc" / name, symlinks=False, ignore_dangling_symlinks=True)
        elif source.exists():
            _copy(source, top / "etc" / name)
    (top / "etc/hosts").write_text("127.0.0.1 localhost backup.example\n")
    (top / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    return System(top)


def _package(name: str) -> Path:
    module = __import__(name)
    assert module.__file__ is not None
    return Path(module.__file__).parent


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(source, target)


def _libraries(programs: Iterable[Path]) -> set[Path]:
    """What they are linked with, by ldd(1)."""
    said = command("ldd", *programs, check=False).stdout
    return {Path(path) for path in re.findall(r"(/\S+\.so\S*) \(0x", said)}


def _enter(top: str) -> None:
    """Make a directory the root of everything, in a mount namespace of our own."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | (1 << 18))
    for fstype, point in (("proc", "proc"), ("sysfs", "sys"), ("tmpfs", "run")):
        linux.mount(fstype, f"{top}/{point}", fstype, 0)
    linux.mount("/dev", f"{top}/dev", None, linux.MS_BIND | linux.MS_REC)
    # Of one boot: what one run leaves is judged by the locks of the next.
    for directory in (Path("/run/kopiatomic"), Path(top, "run/kopiatomic")):
        directory.mkdir(mode=0o700, exist_ok=True)
    linux.mount("/run/kopiatomic", f"{top}/run/kopiatomic", None, linux.MS_BIND)
    resolver = Path(top, "run/systemd/resolve")
    resolver.mkdir(parents=True)
    (resolver / "stub-resolv.conf").write_text("nameserver 127.0.0.1\n")
    os.chdir(top)
    if ctypes.CDLL(None, use_errno=True).pivot_root(b".", b".") != 0:
        raise OSError(ctypes.get_errno(), "pivot_root")
    linux.detach(".")
    os.chdir("/")


def main(words: Sequence[str]) -> None:
    """Started by :meth:`System.run`."""
    _enter(words[0])
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if words[1].endswith("python3"):
        environment["PYTHONPATH"] = SITE
    os.execve(words[1], list(words[1:]), environment)  # noqa: S606 - that is what this is for


if __name__ == "__main__":
    main(sys.argv[1:])
