"""Writers that are held by the kernel's freezer of control groups: services, containers, any group of processes.

Several pools, subvolumes or filesystems become one instant for frozen processes: none of them writes between the snapshots. The
kernel's file is written directly: systemd and Docker have freezers of their own, with a state that only they change.

What delays the snapshots also delays what is frozen. So the thawer (``system/thawer.py``) exists before anything is frozen. It is
outside of every group that a kill of ours reaches: in a transient scope of systemd's, or in a group beside ours.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import kopiatomic
from kopiatomic.errors import Interrupted, KopiatomicError, UsageError, unforeseen
from kopiatomic.hooks.holder import SHORT_LIMIT, Around, Finding, Held, Key, PlaceOf, Wanted, not_in_time
from kopiatomic.hooks.leftovers import KIND as INTENT
from kopiatomic.model.leftovers import Intent
from kopiatomic.model.mounts import visible
from kopiatomic.paths import is_at_or_below, parents
from kopiatomic.system import accounts, cgroups, host, mappings, process
from kopiatomic.system.cgroups import Freezer, GoneError, Group
from kopiatomic.system.coprocess import Coprocess, EndedError
from kopiatomic.text import printable

_ASK_TIMEOUT = 10.0
"""Seconds that systemctl, docker and podman have to answer."""

_END_TIMEOUT = 2.0
"""Seconds that a thawer has to end when it is no longer needed."""

_LATE = frozenset(["overlay", "zfs"])
"""Types of filesystems whose snapshots lack what is written by mmap(2) until it is written out.

ZFS puts such a page into a transaction group only at its writeback (zpl_writepage, module/os/linux/zfs/zpl_file.c). Btrfs writes
out what a subvolume has before its snapshot (btrfs_start_delalloc_snapshot, fs/btrfs/inode.c). An overlay may lie on ZFS.
"""

_MESSAGES = "without which services do not talk to each other"
_LOGS = "which whatever logs would wait for"
_LOGINS = "which logins would wait for"
_NAMES = "which answers for names of users and hosts"
_STORAGE = "which a disk or pool may wait for"
_CONTAINERS = "which runs the containers"
_ENGINE = "the engine"

_NEEDED: Mapping[str, str] = MappingProxyType(
    {
        "dbus-daemon": _MESSAGES,
        "dbus-broker": _MESSAGES,
        "dbus-broker-lau": _MESSAGES,
        "systemd-journal": _LOGS,
        "systemd-logind": _LOGINS,
        "elogind-daemon": _LOGINS,
        "systemd-udevd": _STORAGE,
        "(udev-worker)": _STORAGE,
        "containerd": _CONTAINERS,
        "dockerd": _CONTAINERS,
        "sssd": _NAMES,
        "sssd_be": _NAMES,
        "sssd_nss": _NAMES,
        "sssd_pam": _NAMES,
        "nscd": _NAMES,
        "nslcd": _NAMES,
        "winbindd": _NAMES,
        "systemd-userdbd": _NAMES,
        "systemd-resolve": _NAMES,
        "iscsid": _STORAGE,
        "multipathd": _STORAGE,
        "zed": _STORAGE,
        "nbd-client": _STORAGE,
        "nbd-server": _STORAGE,
        "qemu-nbd": _STORAGE,
        "rbd-nbd": _STORAGE,
        "dmeventd": _STORAGE,
        "kopia": _ENGINE,
        "restic": _ENGINE,
        "borg": _ENGINE,
    }
)
"""Names of processes that must not be frozen, as the kernel has them (15 characters), and why. In a PID namespace of its own one
serves only a container, but for storage.
"""

_NAMES_OF_THAWERS = re.compile(r"kopiatomic-thaw-(\d+)-[0-9a-f]+")
"""The names of the thawers' groups: the process that starts one, and a random number. A kill of all may leave one."""


def require_freezable(label: str, group: Group, place_of: PlaceOf, user: int | None = None) -> int:
    """Return how many processes are in a group that can be frozen safely.

    Refuses one that this system, this login or the backup itself needs meanwhile, and one with a process of another than ``user``
    (None: they may be anybody's). Raises KopiatomicError, OSError.
    """
    if is_at_or_below(cgroups.path_of(os.getpid()), group.path):
        raise _refused(label, group, "has kopiatomic itself", _LOGIN)
    members = cgroups.members(group)
    above = set(cgroups.forebears(os.getpid()))
    for member in members:
        has = f"has {printable(member.name)} (process {member.pid})"
        if member.pid == 1:
            raise _refused(label, group, f"{has}, the first process", _NEEDED_BY_OTHERS)
        if member.pid in above:
            raise _refused(label, group, f"{has}, which kopiatomic was started by", _LOGIN)
        # Root as well: its shell may be what the server was started from.
        owner = cgroups.user_of(member.pid)
        if user is not None and owner is not None and owner != user:
            users = f"of the user {accounts.user(owner)}, and the server's files are {accounts.user(user)}'s"
            raise _refused(label, group, f"{has} {printable(users)}", _SHARED)
        why = _NEEDED.get(member.name)
        if why is not None and (why == _STORAGE or cgroups.shares_our_numbers(member.pid)):
            raise _refused(label, group, f"{has}, {why}", _NEEDED_BY_OTHERS)
    mounts = _fuse_in_backup(place_of)
    if mounts:
        for member in members:
            if cgroups.has_open(member.pid, "/dev/fuse"):
                has = f"has {printable(member.name)} (process {member.pid})"
                fuse = f"a FUSE daemon, and {printable(mounts[0])} is a mount of one"
                raise _refused(label, group, f"{has}, {fuse}", _NEEDED_BY_OTHERS)
    return len(members)


_LOGIN = (
    "Was it started from this login? Start it by its service ('systemctl start NAME'), or as one: "
    "'systemd-run --unit=NAME COMMAND'."
)
_SHARED = (
    "Start it by its service ('systemctl start NAME'), which has a control group of its own. Or name what may stand still with "
    "all that is in it: --hold unit:NAME or --hold cgroup:PATH"
)
_NEEDED_BY_OTHERS = "That one must not stand still. Hold the service that writes the files, if it is another."


def _refused(label: str, group: Group, why: str, hint: str) -> KopiatomicError:
    return KopiatomicError(
        f"{label} cannot be frozen: its control group {printable(group.path)} {why}", kind="hold-refused", hint=hint
    )


def _fuse_in_backup(place_of: PlaceOf) -> list[str]:
    """Return where FUSE filesystems are mounted in what is backed up: something may look at them meanwhile."""
    seen = visible(host.here().mounts())
    points = [point for point, mount in seen.items() if mount.fstype.partition(".")[0] in {"fuse", "fuseblk"}]
    return [point for point in points if point != "/" and place_of(parents(point)[0]) is not None]


class _Thawer:
    """The process that thaws a group if we end, or hold it for too long. Raises KopiatomicError."""

    def __init__(self, group: Group, deadline: float) -> None:
        own = cgroups.path_of(os.getpid())
        name = f"kopiatomic-thaw-{os.getpid()}-{secrets.token_hex(4)}"
        first: list[str] = []
        theirs = home = ""
        self._group = ""
        if cgroups.belong_to_systemd():
            first = ["systemd-run", "--scope", "--quiet", "--collect", f"--unit={name}", "--"]
        else:
            home = cgroups.group_at(own).directory
            beside = cgroups.group_at(parents(own)[0] if own != "/" else "/").directory
            cgroups.remove_unused(beside, _NAMES_OF_THAWERS)
            self._group = theirs = f"{beside}/{name}"
        package = os.path.dirname(os.path.dirname(kopiatomic.__file__))
        code = "import sys; sys.path.insert(0, sys.argv[1]); from kopiatomic.system import thawer; thawer.main(*sys.argv[2:])"
        words = [sys.executable, "-I", "-S", "-c", code, package, group.directory, theirs, home]
        try:
            self._program = Coprocess([*first, *words], {"PATH": os.environ.get("PATH", os.defpath)}, tied=False)
        except OSError as error:
            raise _no_thawer(error.strerror or str(error)) from None
        try:
            self._expect(b"ready", deadline)
            now = cgroups.path_of(self._program.pid)
            if is_at_or_below(now, group.path) or now == own:
                raise _no_thawer(f"it is in {printable(now)}")
        except BaseException:
            self._program.kill()
            raise

    def arm(self, limit: float, deadline: float) -> None:
        """Have it thaw the group if we end, or after ``limit`` seconds."""
        try:
            self._program.send(b"freeze %f\n" % limit)
        except EndedError as error:
            raise _no_thawer(str(error)) from None
        self._expect(b"armed", deadline)

    def let_off(self) -> None:
        """Have it do nothing any more."""
        try:
            self._program.send(b"done\n")
        except EndedError:
            # It has thawed the group, which was to be done, or was killed.
            return

    def end(self) -> None:
        """Wait for its end. If it is still armed, it thaws the group. One that was killed has left its own group."""
        try:
            self._program.finish(time.monotonic() + _END_TIMEOUT)
        except (TimeoutError, Interrupted):
            # It has been killed.
            pass
        if self._group:
            cgroups.remove(self._group)

    def _expect(self, answer: bytes, deadline: float) -> None:
        try:
            given = self._program.line(deadline)
        except TimeoutError:
            raise _no_thawer("it did not start in time") from None
        except EndedError as error:
            raise _no_thawer(str(error)) from None
        if given != answer:
            raise _no_thawer(f"it answered {printable(os.fsdecode(given))}")


def _no_thawer(why: str) -> KopiatomicError:
    return KopiatomicError(
        f"nothing can be frozen: the process that would thaw it after a kill could not be used: {printable(why)}",
        kind="hold-no-thawer",
        hint="It needs a control group beside that of kopiatomic: see whether 'systemd-run --scope true' works.",
    )


class FrozenHolder:
    """Holds the processes of one control group. Satisfies :class:`kopiatomic.hooks.holder.Holder`.

    ``first`` is called by ``prepare`` with its deadline.
    """

    def __init__(
        self,
        label: str,
        wanted: Wanted,
        group: Group,
        place_of: PlaceOf,
        *,
        first: Callable[[float], None] | None = None,
        user: int | None = None,
    ) -> None:
        self.label = label
        self.wanted = wanted
        self._group = group
        self._place_of = place_of
        self._first = first
        self._user = user
        self._limit = SHORT_LIMIT if wanted.limit is None else wanted.limit
        self._freezer: Freezer | None = None
        self._thawer: _Thawer | None = None
        self._devices: set[str] = set()
        self._since = 0
        self._held = False
        self._ours = False

    def intents(self) -> list[Intent]:
        """Return nothing if somebody else has it frozen now: that is not ours to thaw."""
        freezer = self._open()
        try:
            if freezer.is_asked() or freezer.is_frozen():
                return []
        except GoneError:
            raise self._gone() from None
        finally:
            freezer.close()
        where = cgroups.hierarchy().point
        boot = host.here().boot_id()
        return [Intent(INTENT, where, self._group.path, origin=boot, identity=str(self._group.identity))]

    def prepare(self, deadline: float) -> None:
        """Start the thawer, and look again at what is in the group."""
        if self._first is not None:
            self._first(deadline)
        try:
            if cgroups.group_at(self._group.path).identity != self._group.identity:
                raise self._gone()
            require_freezable(self.label, self._group, self._place_of, self._user)
            self._devices = mappings.devices(self._pids(), _LATE)
            self._freezer = self._open()
            self._thawer = _Thawer(self._group, deadline)
        except OSError as error:
            self.close()
            raise unforeseen(error) from None
        except BaseException:
            self.close()
            raise

    def hold(self, deadline: float) -> None:
        """Freeze it, or find that somebody has."""
        assert self._freezer is not None
        assert self._thawer is not None
        try:
            self._ours = not (self._freezer.is_asked() or self._freezer.is_frozen())
            if self._ours:
                self._thawer.arm(self._limit, deadline)
                self._since = time.monotonic_ns()
                self._freezer.ask(frozen=True)
            self._held = True
            # Then the thawer has it run again.
            self._freezer.wait(min(deadline, time.monotonic() + self._limit))
        except GoneError:
            self.close()
            raise self._gone() from None
        except TimeoutError:
            self.close()
            what = "a process in it waits in the kernel for something that does not answer, or it grows all the time"
            within = min(self.wanted.timeout, self._limit)
            raise not_in_time(self.label, f"{what}, or kopiatomic was stopped", within) from None
        except BaseException:
            self.close()
            raise

    def settle(self) -> None:
        """Write out the filesystems of which it has files mapped, where that is needed."""
        if not self._devices:
            return
        try:
            mappings.write_out(self._pids(), self._devices)
        except OSError as error:
            self.close()
            raise unforeseen(error) from None

    def release(self) -> Held:
        """Thaw it, if we froze it."""
        assert self._freezer is not None
        held, self._held = self._held, False
        why = "frozen before and after"
        stall = 0
        try:
            if not self._freezer.is_frozen():
                held, why = False, self._why_not()
            elif not self._ours:
                why = "frozen by somebody else before and after"
            if self._ours:
                self._freezer.ask(frozen=False)
                stall = time.monotonic_ns() - self._since
        except GoneError:
            held, why = False, "its control group has been removed meanwhile"
        if self._thawer is not None:
            self._thawer.let_off()
        return Held(self.label, stall, held, why)

    def _why_not(self) -> str:
        """Say why it is not frozen any more. Raises GoneError."""
        assert self._freezer is not None
        if self._freezer.is_asked():
            return "one of its processes was killed or came to it meanwhile"
        if not self._ours:
            return "somebody else had frozen it, and thawed it meanwhile"
        return f"its processes ran before the last snapshot existed: the limit is {self._limit:g} s"

    def close(self) -> None:
        """Thaw it if it is frozen, and end the thawer."""
        freezer, self._freezer = self._freezer, None
        thawer, self._thawer = self._thawer, None
        if freezer is not None:
            try:
                if self._held and self._ours:
                    freezer.ask(frozen=False)
            except GoneError:
                pass
            finally:
                freezer.close()
        self._held = False
        if thawer is not None:
            thawer.let_off()
            thawer.end()

    def _open(self) -> Freezer:
        try:
            return Freezer(self._group)
        except (GoneError, FileNotFoundError):
            raise self._gone() from None

    def _pids(self) -> list[int]:
        return [member.pid for member in cgroups.members(self._group)]

    def _gone(self) -> KopiatomicError:
        return KopiatomicError(
            f"{self.label} has just been stopped or restarted: its control group {printable(self._group.path)} is another now",
            kind="hold-changed",
            hint="Try again.",
        )


def frozen(
    label: str,
    wanted: Wanted,
    path: str,
    around: Around,
    *,
    text: str = "",
    first: Callable[[float], None] | None = None,
    user: int | None = None,
) -> Finding:
    """Return a finding whose holder freezes the group at a path as in /proc/PID/cgroup. Raises KopiatomicError.

    ``user``: all its processes must be this one's.
    """
    group = cgroups.group_at(path)
    try:
        count = require_freezable(label, group, around.place_of, user)
    except OSError as error:
        raise unforeseen(error) from None
    if not count:
        raise _no_processes(label)
    holder = FrozenHolder(label, wanted, group, around.place_of, first=first, user=user)
    what = "its process is" if count == 1 else f"its {count} processes are"
    return Finding(label, f"{text}{what} frozen for the snapshots", holder, frozen=True)


def _no_processes(label: str) -> KopiatomicError:
    return KopiatomicError(
        f"{label} has no processes, so that nothing would be frozen",
        kind="hold-no-process",
        hint="Name what has them: 'systemd-cgls' shows all. Debian's PostgreSQL is unit:postgresql@15-main, not unit:postgresql.",
    )


def _ask(words: Sequence[str], kind: str) -> process.Finished:
    """Run a program that knows what runs here. Raises KopiatomicError, Interrupted."""
    try:
        return process.run(words, timeout=_ASK_TIMEOUT, environment={**os.environ, "LC_ALL": "C"})
    except FileNotFoundError:
        raise KopiatomicError(
            f"--hold {kind}: {words[0]} is not there",
            kind="hold-no-client",
            hint="Install it, or name the control group itself: --hold cgroup:PATH",
        ) from None


def _name(wanted: Wanted, example: str) -> str:
    if not wanted.name:
        raise UsageError(f"--hold {wanted}: it needs a name", kind="hold-name", hint=f"For example --hold {example}")
    return wanted.name


class _Unit:
    """A unit of systemd's: by the group of its main process, or the unit's where that is wider."""

    name = "unit"
    settings: Mapping[str, Key] = MappingProxyType({})
    programs = ()

    def find(self, wanted: Wanted, around: Around) -> list[Finding]:
        """Ask systemd."""
        name = _name(wanted, "unit:redis-server.service")
        fields = ("Id", "LoadState", "ActiveState", "MainPID", "ControlGroup")
        answer = _ask(["systemctl", "show", f"--property={','.join(fields)}", "--", name], "unit")
        if answer.status != 0:
            raise KopiatomicError(
                f"--hold {wanted}: systemd could not be asked: {answer.why}",
                kind="hold-no-server",
                hint="Is it running?",
            )
        lines = answer.stdout.decode("utf-8", "surrogateescape").splitlines()
        told = dict.fromkeys(fields, "") | dict(line.split("=", 1) for line in lines if "=" in line)
        if told["LoadState"] != "loaded":
            raise KopiatomicError(
                f"--hold {wanted}: systemd has no unit of this name",
                kind="hold-no-server",
                hint="'systemctl list-units' shows them.",
            )
        label = f"unit {printable(told['Id'])}"
        pid = int(told["MainPID"] or 0)
        path = told["ControlGroup"]
        if told["ActiveState"] in {"inactive", "failed"}:
            return [Finding(label, "does not run: nothing to hold")]
        if not pid and not path:
            raise _no_processes(label)
        if pid:
            main = cgroups.path_of(pid)
            path = path if path and is_at_or_below(main, path) else main
        return [frozen(label, wanted, path, around)]


class _Container:
    """A container of Docker's or Podman's: by the group of its first process."""

    name = "container"
    settings: Mapping[str, Key] = MappingProxyType(
        {"program": Key(str, "Docker or Podman, by its path; by default whichever knows the container.")}
    )
    programs = ("program",)

    def find(self, wanted: Wanted, around: Around) -> list[Finding]:
        """Ask Docker and Podman, whichever is there, or the one that is set."""
        name = _name(wanted, "container:nextcloud-db")
        programs = [wanted.settings["program"]] if "program" in wanted.settings else ["docker", "podman"]
        problems: list[KopiatomicError] = []
        for program in programs:
            try:
                told = self._inspected(program, name, wanted)
            except KopiatomicError as error:
                problems.append(error)
                continue
            label = f"container {printable(name)}"
            pid = int(told["State"].get("Pid") or 0)
            if not pid:
                return [Finding(label, "does not run: nothing to hold")]
            return [frozen(label, wanted, _whole(cgroups.path_of(pid), str(told["Id"])), around)]
        # One that is missing says less than one that does not know the container.
        raise next((error for error in problems if error.kind != "hold-no-client"), problems[0])

    @staticmethod
    def _inspected(program: str, name: str, wanted: Wanted) -> Mapping[str, Any]:
        answer = _ask([program, "inspect", "--type=container", "--", name], "container")
        try:
            told = json.loads(answer.stdout) if answer.status == 0 else []
        except ValueError:
            told = []
        if not told:
            raise KopiatomicError(
                f"--hold {wanted}: {program} knows no such container: {answer.why}",
                kind="hold-no-server",
                hint=f"'{program} ps' shows those that run.",
            )
        found: Mapping[str, Any] = told[0]
        return found


def _whole(path: str, identity: str) -> str:
    """Return the group of a whole container, whose first process may be in a group further down.

    Its name has the container's id: ``docker-ID.scope``, ``/docker/ID``, ``libpod-ID.scope/container``.
    """
    around = [above for above in (path, *parents(path)) if identity and identity in above.rpartition("/")[2]]
    return around[-1] if around else path


class _Cgroup:
    """A control group by its path, as in /proc/PID/cgroup or in the mounted hierarchy."""

    name = "cgroup"
    settings: Mapping[str, Key] = MappingProxyType({})
    programs = ()

    def find(self, wanted: Wanted, around: Around) -> list[Finding]:
        """Look for it in the hierarchy."""
        name = os.path.normpath("/" + _name(wanted, "cgroup:/machine.slice/web.scope").lstrip("/"))
        point = cgroups.hierarchy().point
        path = name[len(point) :] or "/" if is_at_or_below(name, point) else name
        return [frozen(f"cgroup {printable(path)}", wanted, path, around)]


UNIT = _Unit()
CONTAINER = _Container()
CGROUP = _Cgroup()
