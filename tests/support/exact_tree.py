"""A tree with every kind of entry and attribute that a restore must bring back, and what judges whether it has.

What judges are programs that know nothing of kopiatomic. :func:`cells` says what a plain engine has kept.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import socket
import stat
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kopiatomic.system import inodes
from kopiatomic.system.descriptors import closing
from tests.support.programs import command

FLAGS = {"i": 0x10, "a": 0x20, "d": 0x40, "A": 0x80, "S": 0x8, "D": 0x10000, "c": 0x4, "m": 0x400, "C": 0x800000}
"""By the letters of chattr(1)."""
ON_FILES, ON_DIRECTORIES = "iadAScmC", "iadASDcmC"

BTRFS = frozenset(FLAGS)
"""The flags that it has; it has no project ids."""
ZFS = frozenset("iad")
PROJECT = 4321

_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_USER_OBJECT, _USER, _GROUP_OBJECT, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
# cap_net_raw=ep, as capabilities(7) has it in revision 2.
_CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
_SECOND = 10**9
EARLY = -5 * _SECOND - 1
LATE = 5_680_000_000 * _SECOND + 987_654_321
"""In the year 2149."""

_ODD_NAMES = ("new\nline", " ", "-n", "\N{ROCKET}", "e\u0301", "back\\slash", "*?[a]", "n" * 255, ".kopiatomic-new")


def access_list(mode: int, *named: tuple[int, int, int]) -> bytes:
    """A POSIX access control list as the kernel takes it: the permission bits, and (tag, id, bits) for users and groups."""
    plain = [(_USER_OBJECT, mode >> 6 & 7), (_GROUP_OBJECT, mode >> 3 & 7), (_MASK, 7), (_OTHER, mode & 7)]
    entries = sorted([*((tag, bits, 0xFFFFFFFF) for tag, bits in plain), *((t, bits, who) for t, who, bits in named)])
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits, who) for tag, bits, who in entries)


def furnish(top: Path, flags: frozenset[str] = frozenset(), *, projects: bool = False) -> None:
    """Make a directory with every kind of entry and attribute; with these flags, and with project ids, if there are any here."""
    (top / "d/e").mkdir(parents=True)
    (top / "d/f").write_text("hello")
    os.link(top / "d/f", top / "d/e/g")
    os.link(top / "d/f", top / "a-third")
    os.mkfifo(top / "d/pipe", 0o640)
    os.mknod(top / "d/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "d/loop", stat.S_IFBLK | 0o660, os.makedev(7, 99))
    (top / "link").symlink_to("d/f")
    os.chown(top / "link", 12, 34, follow_symlinks=False)
    with socket.socket(socket.AF_UNIX) as one, closing(os.open(top, os.O_PATH)) as fd:
        # The path of a socket has at most 107 bytes.
        one.bind(f"/proc/self/fd/{fd}/s")
    for name in ("d/pipe", "d/null", "link", "s"):
        os.link(top / name, top / f"{name}-again", follow_symlinks=False)
    _make_names(top)
    _make_attributes(top)
    _make_contents(top)
    for letter in sorted(flags & set(ON_FILES)):
        (top / f"file-{letter}").touch()
    for letter in sorted(flags & set(ON_DIRECTORIES)):
        (top / f"directory-{letter}").mkdir()
        if letter not in "C":
            (top / f"directory-{letter}/inside").write_text(letter)
    if projects:
        (top / "of-a-project").mkdir()
        (top / "of-a-project/inside").touch()
        for name in ("of-a-project", "of-a-project/inside"):
            with closing(os.open(top / name, os.O_RDONLY)) as fd:
                inodes.set_project(fd, PROJECT)
    _set_times(top)
    for path in sorted(top.iterdir()):
        kind, _, letter = path.name.partition("-")
        if kind in {"file", "directory"} and letter in FLAGS:
            with closing(os.open(path, os.O_RDONLY)) as fd:
                inodes.set_flags(fd, FLAGS[letter])


def _make_names(top: Path) -> None:
    odd = os.fsencode(top)
    for name in (b"/a\xff", b"/d/\x80\x81"):
        os.mkdir(odd + name)
        with open(odd + name + b"/z\xfe", "wb") as file:
            file.write(name)
    (top / "odd-names").mkdir()
    for text in _ODD_NAMES:
        (top / "odd-names" / text).write_text(text)
    os.link(top / "odd-names/-n", top / "odd-names/another-n")


def _make_attributes(top: Path) -> None:
    setuid = top / "setuid"
    setuid.touch()
    os.chown(setuid, 1234, 5678)
    setuid.chmod(0o6750)
    os.setxattr(setuid, "user.note", b"\0\xff")
    os.setxattr(setuid, "user.empty", b"")
    os.setxattr(setuid, "user.l\u00e4nge", b"x" * 2000)
    os.setxattr(setuid, "trusted.note", b"root's")
    os.setxattr(setuid, "security.capability", _CAPABILITY)
    os.setxattr(setuid, _ACCESS, access_list(0o750, (_USER, 1000, 4), (_GROUP, 1001, 6)))
    os.setxattr(top / "link", "trusted.on-link", b"1", follow_symlinks=False)
    os.setxattr(top / "d/pipe", "trusted.on-fifo", b"2")
    os.setxattr(top / "d/loop", _ACCESS, access_list(0o660, (_USER, 1000, 6)))
    os.setxattr(top / "s", _ACCESS, access_list(0o755, (_USER, 1000, 6)))
    os.setxattr(top / "d/e", "user.on-directory", b"3")
    os.setxattr(top / "d/e", _DEFAULT, access_list(0o755, (_USER, 1000, 7)))
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o1777)
    (top / "setgid").mkdir()
    os.chown(top / "setgid", 4_294_967_294, 4_294_967_293)
    (top / "setgid").chmod(0o2771)
    (top / "closed").mkdir()
    (top / "closed/file").touch()
    for path in (top / "closed/file", top / "closed"):
        path.chmod(0)


def _make_contents(top: Path) -> None:
    chance = random.Random(1)
    (top / "empty").touch()
    (top / "large").write_bytes(chance.randbytes(300_000))
    with (top / "holes").open("wb") as file:
        file.write(b"begin")
        file.seek(1 << 20)
        file.write(b"end")


def _set_times(top: Path) -> None:
    """Give each entry a time of its own, to the nanosecond; some of them are far away."""
    for number, path in enumerate((*sorted(top.rglob("*")), top)):
        at = 1_500_000_000_123_456_789 + number * 1_000_000_007
        os.utime(path, ns=(1, at), follow_symlinks=False)
    for name, at in (("empty", EARLY), ("closed", EARLY), ("large", LATE), ("sticky", LATE)):
        os.utime(top / name, ns=(1, at), follow_symlinks=False)


# Judges

_EACH = "%n|%f|%u|%g|%y|%t:%T"
JUDGES: Mapping[str, tuple[str, Sequence[str]]] = {
    "getfacl": ("\n\n", ("getfacl", "--recursive", "--physical", "--numeric", "--absolute-names", ".")),
    "getfattr": ("\n\n", ("getfattr", "-R", "-P", "-d", "-h", "-m", "-", "-e", "hex", ".")),
    "lsattr": ("\n", ("lsattr", "-R", "-a", ".")),
    "stat": ("\0", ("find", ".", "-type", "d", "-exec", "stat", "--printf", f"{_EACH}\\0", "{}", "+")),
    "stat, with sizes": (
        "\0",
        ("find", ".", "!", "-type", "d", "-exec", "stat", "--printf", f"{_EACH}|%s|%N\\0", "{}", "+"),
    ),
    "lsattr, projects": ("\n", ("lsattr", "-R", "-a", "-p", ".")),
}
"""Programs that list a tree, run in it, and what is between two entries of theirs."""
_RSYNC = ("rsync", "-aHAXn", "--checksum", "--delete", "--itemize-changes", "--modify-window=-1")
_SHOWN = 5


def differences(source: Path, target: Path) -> list[str]:
    """What rsync, getfacl, getfattr, lsattr and stat find different."""
    found = command(*_RSYNC, f"{source}/", f"{target}/", timeout=600).stdout.splitlines()
    for judge, (between, argv) in JUDGES.items():
        environment = {**os.environ, "TZ": "UTC", "LC_ALL": "C"}
        # Sockets and devices have no flags, which lsattr says.
        one, other = (
            set(command(*argv, check=False, cwd=at, env=environment, timeout=600).stdout.split(between))
            for at in (source, target)
        )
        found += [f"{judge}: {sorted(one - other)[:_SHOWN]} became {sorted(other - one)[:_SHOWN]}"] * (one != other)
    return found


# What a plain engine keeps


@dataclass(frozen=True)
class Entry:
    """An entry as the kernel has it."""

    status: os.stat_result
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    flags: int = 0
    project: int = 0
    content: str = ""

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.status.st_mode)

    def xattr(self, pattern: str) -> dict[str, bytes]:
        return {name: value for name, value in self.xattrs.items() if re.match(pattern, name)}


def listed(top: Path) -> dict[str, Entry]:
    """All that is in a directory, by path below it, with the directory itself."""
    return {str(path.relative_to(top)): _entry(path) for path in (top, *top.rglob("*"))}


def _entry(path: Path) -> Entry:
    status = path.lstat()
    names = os.listxattr(path, follow_symlinks=False)
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return Entry(status, xattrs, content=os.readlink(path) if path.is_symlink() else "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    with closing(os.open(path, os.O_RDONLY | os.O_NOFOLLOW)) as fd:
        return Entry(status, xattrs, inodes.flags(fd) or 0, inodes.project(fd) or 0, digest)


Probe = Callable[[Entry], object]
Which = Callable[[str, Entry], object]


def _is(*kinds: int) -> Which:
    return lambda _, entry: entry.kind in kinds


def _has(pattern: str, *, links: bool = False) -> Which:
    return lambda _, entry: entry.xattr(pattern) and (entry.kind == stat.S_IFLNK) is links


def _time(entry: Entry) -> object:
    return entry.status.st_mtime_ns


_ATTRIBUTE, _LIST, _CAPABILITIES = r"user\.|trusted\.", r"system\.posix_acl", r"security\."
_USUAL = range(2**31 * _SECOND)

ROWS: Mapping[str, tuple[Which, Probe]] = {
    "owners": (lambda *_: True, lambda entry: (entry.status.st_uid, entry.status.st_gid)),
    "modes": (lambda _, entry: entry.kind != stat.S_IFLNK, lambda entry: stat.S_IMODE(entry.status.st_mode)),
    "contents of files": (_is(stat.S_IFREG), lambda entry: entry.content),
    "links": (_is(stat.S_IFLNK), lambda entry: entry.content),
    "extended attributes": (_has(_ATTRIBUTE), lambda entry: entry.xattr(_ATTRIBUTE)),
    "access control lists": (_has(_LIST), lambda entry: entry.xattr(_LIST)),
    "capabilities": (_has(_CAPABILITIES), lambda entry: entry.xattr(_CAPABILITIES)),
    "extended attributes of links": (_has(_ATTRIBUTE, links=True), lambda entry: entry.xattr(_ATTRIBUTE)),
    "hard links of files": (
        lambda _, entry: entry.kind == stat.S_IFREG and entry.status.st_nlink > 1,
        lambda entry: entry.status.st_nlink,
    ),
    "hard links of FIFOs and devices": (
        lambda _, entry: entry.kind in {stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK} and entry.status.st_nlink > 1,
        lambda entry: entry.status.st_nlink,
    ),
    "hard links of links": (
        lambda _, entry: entry.kind == stat.S_IFLNK and entry.status.st_nlink > 1,
        lambda entry: entry.status.st_nlink,
    ),
    "FIFOs, devices": (_is(stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK), lambda entry: (entry.kind, entry.status.st_rdev)),
    "sockets": (_is(stat.S_IFSOCK), lambda entry: entry.kind),
    "times of files": (lambda _, entry: entry.kind == stat.S_IFREG and _time(entry) in _USUAL, _time),
    "times of directories": (lambda _, entry: entry.kind == stat.S_IFDIR and _time(entry) in _USUAL, _time),
    "times of links to the nanosecond": (lambda _, entry: entry.kind == stat.S_IFLNK and _time(entry) in _USUAL, _time),
    "modification times before 1970": (
        lambda _, entry: entry.kind == stat.S_IFREG and entry.status.st_mtime_ns < 0,
        _time,
    ),
    "modification times after 2038": (
        lambda _, entry: entry.kind == stat.S_IFREG and entry.status.st_mtime_ns >= 2**31 * _SECOND,
        _time,
    ),
    "names that are no text": (lambda path, _: re.search("[\udc80-\udcff]", path), lambda entry: entry.kind),
    "flags i, a, d, c": (lambda _, entry: entry.flags & 0x74, lambda entry: entry.flags),
    "other flags": (lambda _, entry: entry.flags & ~0x74, lambda entry: entry.flags),
    "project ids": (lambda _, entry: entry.project, lambda entry: entry.project),
    "holes in files": (
        lambda _, entry: entry.kind == stat.S_IFREG and entry.status.st_blocks * 512 < entry.status.st_size // 2,
        lambda entry: entry.status.st_blocks * 512 < entry.status.st_size // 2,
    ),
}
"""What can be kept or lost: which entries have it, and what of them."""

MISSED = frozenset({"FIFOs, devices", "sockets", "names that are no text"})
"""Rows of entries that may not be there at all."""
KEPT, LOST, NONE = "kept", "lost", "-"


def cells(source: Mapping[str, Entry], restored: Mapping[str, Entry]) -> dict[str, str]:
    """For each row whether all that have it are as they were, none is, or how many of them; or that the source has none.

    Only the rows of what may be missing count what is.
    """
    found = {}
    for row, (which, probe) in ROWS.items():
        concerned = {path: entry for path, entry in source.items() if which(path, entry)}
        there = {path: entry for path, entry in concerned.items() if path in restored or row in MISSED}
        equal = sum(path in restored and probe(restored[path]) == probe(entry) for path, entry in there.items())
        if not concerned:
            found[row] = NONE
        elif equal in {0, len(there)}:
            found[row] = KEPT if equal else LOST
        else:
            found[row] = f"{equal} of {len(there)}"
    return found


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Cells of several engines in columns."""
    lines = [f"{'':34}" + "".join(f"{name:>24}" for name in columns)]
    lines += [f"{row:34}" + "".join(f"{column[row]:>24}" for column in columns.values()) for row in ROWS]
    return "\n".join(lines)


# Random trees


def grow(top: Path, entries: int, chance: random.Random) -> None:
    """Fill a directory with random entries of all kinds, with names of any bytes, and with random attributes."""
    directories = [top]
    files: list[Path] = []
    for number in range(entries):
        above = chance.choice(directories)
        path = above / os.fsdecode(bytes(chance.choice(b"ab\xff\xfe .\n") for _ in range(3)) + str(number).encode())
        kind = chance.randrange(8)
        if kind == 0:
            path.mkdir()
            directories.append(path)
        elif kind == 1:
            path.symlink_to("x" * chance.randrange(1, 100))
        elif kind == 2:
            os.mkfifo(path)
        elif kind == 3 and files:
            os.link(chance.choice(files), path)
        else:
            path.write_bytes(chance.randbytes(chance.randrange(10)))
            files.append(path)
            for one in range(chance.randrange(3)):
                os.setxattr(path, f"user.{one}", chance.randbytes(5))
        if not path.is_symlink():
            path.chmod(chance.randrange(0o10000))
        os.utime(path, ns=(0, chance.randrange(-(10**18), 2 * 10**18)), follow_symlinks=False)
    for path in directories:
        # What was made in it has changed it.
        os.utime(path, ns=(0, chance.randrange(-(10**18), 2 * 10**18)))
