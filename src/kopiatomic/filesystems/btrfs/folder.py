"""Where Btrfs snapshots of runs are: ``.kopiatomic/kopiatomic_RUN/N/snapshot`` of the filesystem's top-level subvolume.

The folder is accessible to root only, exists only while a run is alive, and is reached through a detached mount. A run's folder
carries the run's mark, and its processes hold a lock on it, which every container and mount namespace sees. Nothing is ever
removed except empty directories and subvolumes that the caller has proven ours, and nothing from a locked folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError, advice_of
from kopiatomic.immutable import immutable
from kopiatomic.model.plan import Dataset, Refusal, Verdict
from kopiatomic.state import liveness, ownership
from kopiatomic.system import btrfs, linux, mountinfo, safety
from kopiatomic.system.descriptors import closing
from kopiatomic.text import printable

DIRECTORY = ".kopiatomic"
"""Our directory in the top-level subvolume: 0700."""

SNAPSHOT = "snapshot"
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def name_of(run_id: str) -> str:
    """Return the folder of a run, below the top-level subvolume."""
    return f"{DIRECTORY}/{ownership.PREFIX}{run_id}"


def path_of(run_id: str, position: int) -> str:
    """Return the path of a snapshot of a run, below the top-level subvolume."""
    return f"{name_of(run_id)}/{position}/{SNAPSHOT}"


@contextmanager
def top(device: str) -> Iterator[int]:
    """Open the top-level subvolume as a directory, through a mount that only this block has. Raises KopiatomicError.

    Never done where the filesystem is, or has become, read-only: mounting it once more would silently make it writable for
    everybody (fs/btrfs/super.c, btrfs_reconfigure_for_mount; seen on 6.18).
    """
    try:
        if any(m.source == device and m.fstype == "btrfs" and "ro" in m.super_options for m in mountinfo.read()):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        detached = linux.detached_mount("btrfs", device, {"subvolid": str(btrfs.TOP_LEVEL)})
    except OSError as error:
        raise failed(f"the top-level subvolume of {printable(device)} cannot be mounted", error) from None
    try:
        directory = os.open(".", OPEN_DIRECTORY, dir_fd=detached)
    finally:
        os.close(detached)
    try:
        yield directory
    finally:
        os.close(directory)


def device_of(filesystem: str, known: str) -> str:
    """Return a device of a mounted filesystem (its UUID): the ``known`` one, unless it was removed from it or replaced.

    From sysfs (Documentation/ABI/testing/sysfs-fs-btrfs).
    """
    try:
        names = sorted(presence.names(f"/sys/fs/btrfs/{filesystem}/devices"))
    except OSError:
        # Mounting the known one reports what is wrong.
        return known
    return f"/dev/{names[0]}" if names and os.path.basename(os.path.realpath(known)) not in names else known


def is_clone(filesystem: str, device: str) -> bool:
    """Whether a device holds the copy of another mounted filesystem (an LVM snapshot, a copied image), whose UUID it has.

    Since Linux 6.7 both can be mounted: the copy has a temporary UUID until a second mount of it permanently gives it the
    original's (fs/btrfs, temp_fsid; seen on 6.18). Then snapshots and records of one would be taken for the other's. Older
    kernels refuse to mount a copy. Raises OSError.
    """
    folder = f"/sys/fs/btrfs/{filesystem}"
    try:
        with open(f"{folder}/temp_fsid", encoding="ascii") as file:
            if file.read().strip() == "1":
                return True
        status = os.stat(device)
        numbers = set()
        for name in presence.names(f"{folder}/devices"):
            with open(f"{folder}/devices/{name}/dev", encoding="ascii") as file:
                numbers.add(file.read().strip())
    except OSError as error:
        if not presence.absent(error):
            raise
        return False
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return stat.S_ISBLK(status.st_mode) and number not in numbers


def make(top_fd: int, run_id: str, where: str) -> int:
    """Make a run's folder, for root only, locked and marked. Returns the descriptor with the lock. Raises KopiatomicError.

    The descriptor keeps the filesystem busy, but not the host's mounts. The owner of the top-level subvolume can exchange our
    directory in it at any time: so that is opened once, and everything is made in what was opened.
    """
    name = _own_name(run_id)
    for _ in range(100):
        try:
            with kept_times(top_fd), suppress(FileExistsError):
                os.mkdir(DIRECTORY, 0o700, dir_fd=top_fd)
            with _shared(top_fd) as shared:
                os.mkdir(name, 0o700, dir_fd=shared)
                directory = os.open(name, OPEN_DIRECTORY, dir_fd=shared)
                # A recovery that finds it empty locks it briefly and removes it.
                fcntl.flock(directory, fcntl.LOCK_EX)
                if not _is_at(directory, name, shared):
                    os.close(directory)
                    continue
            os.setxattr(directory, ownership.ATTRIBUTE, str(liveness.mark(run_id)).encode())
        except FileNotFoundError:
            # Another run ended and removed the directory between two of these calls.
            continue
        except NotADirectoryError:
            raise KopiatomicError(
                f"{DIRECTORY} in the top-level subvolume of {where} is not ours: "
                "it is not a directory that only root can enter",
                kind="btrfs-directory",
                hint=f"Look at it (mount {where} with subvolid=5) and rename it.",
            ) from None
        except OSError as error:
            raise failed(f"no directory for the snapshots of {where} can be made", error) from None
        return directory
    raise failed(f"no directory for the snapshots of {where} can be made", OSError(errno.EBUSY, "busy"))


def _own_name(run_id: str) -> str:
    """Return the folder of a run, in the directory that all runs share."""
    return f"{ownership.PREFIX}{run_id}"


@contextmanager
def _shared(top_fd: int) -> Iterator[int]:
    """Open the directory that all runs share, without following a link.

    Raises OSError: NotADirectoryError where it is anything but a directory that only root can enter.
    """
    with closing(os.open(DIRECTORY, OPEN_DIRECTORY, dir_fd=top_fd)) as shared:
        _require_roots_alone(shared, DIRECTORY)
        yield shared


def _require_roots_alone(directory: int, name: str) -> None:
    status = os.fstat(directory)
    if not _is_roots_alone(status):
        raise NotADirectoryError(errno.ENOTDIR, "it is not a directory that only root can enter", name)


def _is_at(directory: int, name: str, above: int) -> bool:
    """Whether an open directory is still the one of this name in another."""
    try:
        return os.path.samestat(os.fstat(directory), os.stat(name, dir_fd=above, follow_symlinks=False))
    except FileNotFoundError:
        return False


def is_locked(top_fd: int, run_id: str) -> bool:
    """Whether a process of a run, in any container, or a recovery holds a run's folder. Raises OSError."""
    try:
        directory = _open_own(top_fd, run_id)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return not _locks(directory, fcntl.LOCK_SH)
    finally:
        os.close(directory)


def _locks(directory: int, kind: int) -> bool:
    """Lock an open folder until the descriptor is closed; return False if somebody else holds the lock."""
    try:
        fcntl.flock(directory, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@immutable
class Entry:
    """What a run's folder holds. ``position`` is its directory's name; ``subvolume`` is None if the snapshot does not exist."""

    run_id: str
    position: str
    subvolume: btrfs.Subvolume | None

    @property
    def path(self) -> str:
        """The path below the top-level subvolume."""
        return f"{name_of(self.run_id)}/{self.position}/{SNAPSHOT}"


def entries(top_fd: int, run_id: str) -> list[Entry] | None:
    """Return what is in a run's folder; None if there is no such folder that only root can enter. Raises OSError."""
    try:
        directory = _open_own(top_fd, run_id)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with closing(directory):
        return _entries(directory, run_id)


def _entries(directory: int, run_id: str) -> list[Entry]:
    return [_entry(directory, run_id, name) for name in sorted(os.listdir(directory))]


def mark_of(top_fd: int, run_id: str) -> ownership.Mark | None:
    """Return the mark on a run's folder. Raises OSError."""
    directory = _open_own(top_fd, run_id)
    try:
        return ownership.parse(os.getxattr(directory, ownership.ATTRIBUTE).decode("ascii", "replace"))
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise
    finally:
        os.close(directory)


def runs(top_fd: int) -> list[str]:
    """Return the runs that have a folder here. Raises OSError."""
    try:
        fd = os.open(DIRECTORY, OPEN_DIRECTORY, dir_fd=top_fd)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        return sorted(run_id for name in os.listdir(fd) if (run_id := ownership.run_of(name)) is not None)
    finally:
        os.close(fd)


def is_deserted(top_fd: int) -> bool:
    """Whether the directory that all runs share exists, is accessible to root only, and is empty. Raises OSError."""
    try:
        with _shared(top_fd) as shared:
            return not os.listdir(shared)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_roots_alone(status: os.stat_result) -> bool:
    """Whether it is a directory that only root can enter, and no subvolume, which we never make here."""
    return safety.is_own(status, shut=True) and status.st_ino != btrfs.SUBVOLUME_INODE


def _open_own(top_fd: int, run_id: str) -> int:
    """Open a run's folder if both directories above its snapshots are accessible to root only. Raises OSError."""
    name = _own_name(run_id)
    with _shared(top_fd) as shared:
        directory = os.open(name, OPEN_DIRECTORY, dir_fd=shared)
    try:
        _require_roots_alone(directory, name)
    except OSError:
        os.close(directory)
        raise
    return directory


def _entry(directory: int, run_id: str, name: str) -> Entry:
    try:
        place = os.open(name, OPEN_DIRECTORY, dir_fd=directory)
        try:
            return Entry(run_id, name, look(place))
        finally:
            os.close(place)
    except OSError as error:
        if presence.absent(error):
            return Entry(run_id, name, None)
        raise


def look(place: int) -> btrfs.Subvolume:
    """Return the snapshot in an open place of a run's folder. Raises OSError."""
    fd = os.open(SNAPSHOT, OPEN_DIRECTORY, dir_fd=place)
    try:
        if not btrfs.is_top(fd):
            raise NotADirectoryError(errno.ENOTDIR, "it is no subvolume", SNAPSHOT)
        return btrfs.subvolume(fd)
    finally:
        os.close(fd)


def astray(top_fd: int, run_id: str) -> list[str]:
    """Return snapshots in folders with the run's name, wherever they are: what :func:`entries` does not see. Raises OSError.

    The owner of the top-level subvolume can rename our directory in it, or put another in its place.
    """
    named = f"/{ownership.PREFIX}{run_id}/"
    paths = (nested.path for nested in btrfs.children(top_fd))
    return sorted(path for path in paths if named in f"/{path}" and path.endswith(f"/{SNAPSHOT}"))


def moved(path: str, name: str) -> str:
    """Return why a snapshot of ours that was made at ``name`` and is now at ``path`` is left alone."""
    if path == name:
        return "its folder is not one that only root can enter any more"
    return f"it was moved to {printable(path)}"


def remove(top_fd: int, run_id: str, is_ours: Callable[[Entry], bool], *, held: int | None = None) -> dict[str, str]:
    """Delete our snapshots, then what is empty. Returns what is left: path and reason. Raises OSError.

    ``held`` is the descriptor of the folder, with its lock, if the caller has it: then the folder is found wherever it is.

    What is gone then stays gone: its record is deleted next, and after a power failure nobody would know about it.
    """
    left = _remove(top_fd, run_id, is_ours, held)
    btrfs.commit(top_fd)
    return left


def _remove(top_fd: int, run_id: str, is_ours: Callable[[Entry], bool], held: int | None) -> dict[str, str]:
    try:
        # Opened again: a listing has nothing that was made after the opening (fs/btrfs/inode.c, btrfs_opendir; seen on 6.18).
        directory = _open_own(top_fd, run_id) if held is None else os.open(".", OPEN_DIRECTORY, dir_fd=held)
    except (FileNotFoundError, NotADirectoryError):
        # The run was killed between making the two directories, or between removing them.
        _remove_shared(top_fd)
        return dict.fromkeys(astray(top_fd, run_id), "it is not in a folder that only root can enter")
    left: dict[str, str] = {}
    with closing(directory):
        try:
            found = _entries(directory, run_id)
            if held is None and not _locks(directory, fcntl.LOCK_EX):
                return {entry.path: LOCKED for entry in found} or {name_of(run_id): LOCKED}
            for entry in found:
                try:
                    _remove_entry(directory, entry, is_ours)
                except OSError as error:
                    left[entry.path] = error.strerror or str(error)
            if not left:
                _remove_own(directory, run_id)
        except OSError as error:
            return {name_of(run_id): error.strerror or str(error)}
    if not left:
        _remove_shared(top_fd)
    return left


def _remove_own(directory: int, run_id: str) -> None:
    """Remove a run's empty folder from the directory that it is really in. Raises OSError."""
    name = _own_name(run_id)
    with closing(os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)) as above:
        if _is_at(directory, name, above):
            os.rmdir(name, dir_fd=above)
        elif os.fstat(directory).st_nlink:
            raise OSError(errno.ENOENT, "its empty folder was renamed")


LOCKED = "its run is alive, perhaps in another container, or it is being removed: a process has locked the run's folder"


def _remove_entry(directory: int, entry: Entry, is_ours: Callable[[Entry], bool]) -> None:
    """Remove a snapshot if it is ours, and its directory. Raises OSError where something is left."""
    place = os.open(entry.position, OPEN_DIRECTORY, dir_fd=directory)
    try:
        if entry.subvolume is not None:
            if not is_ours(entry):
                raise OSError(errno.EPERM, "it is not the snapshot that the run made there")
            try:
                # Check again right before deleting: the name alone proves nothing.
                if look(place).uuid == entry.subvolume.uuid:
                    btrfs.delete(place, SNAPSHOT)
            except FileNotFoundError:
                # Deleted by somebody else.
                pass
    finally:
        os.close(place)
    os.rmdir(entry.position, dir_fd=directory)


def delete_command(where: str, path: str) -> str:
    """Return what a person types to delete a snapshot, in words."""
    return f"mount {where} with subvolid=5, then: btrfs subvolume delete MOUNT/{path}"


def hide(snapshot: int) -> None:
    """Remove our directory from a snapshot of the top-level subvolume, as if it had never existed. Raises OSError."""
    with kept_times(snapshot):
        _remove_directories(DIRECTORY, snapshot)


def hide_left_out(snapshot: int, path: str) -> None:
    """Remove from a snapshot the empty directory that stands for a subvolume nested there, and nothing else. Raises OSError."""
    above, _, name = path.rpartition("/")
    try:
        directory = linux.open_beneath(snapshot, above or ".", OPEN_DIRECTORY)
    except OSError as error:
        if presence.moved(error):
            # The subvolume was moved before the instant.
            return
        raise
    try:
        fd = linux.open_beneath(directory, name, OPEN_DIRECTORY)
        try:
            left_out = btrfs.is_left_out(fd)
        finally:
            os.close(fd)
        if left_out:
            with kept_times(directory):
                os.rmdir(name, dir_fd=directory)
    except OSError as error:
        if not presence.moved(error):
            raise
    finally:
        os.close(directory)


def _remove_directories(name: str, above: int) -> None:
    """Remove a tree as long as it holds nothing but directories; rmdir(2) refuses anything else, and mount points."""
    found = [name]
    for path in found:
        try:
            fd = linux.open_beneath(above, path, OPEN_DIRECTORY)
        except OSError as error:
            if presence.moved(error):
                continue
            raise
        try:
            found += [f"{path}/{inside}" for inside in os.listdir(fd)]
        finally:
            os.close(fd)
    for path in reversed(found):
        directory, _, last = path.rpartition("/")
        fd = linux.open_beneath(above, directory or ".", OPEN_DIRECTORY)
        try:
            os.rmdir(last, dir_fd=fd)
        except OSError as error:
            # What somebody else has put there is part of the filesystem, and therefore of its backup.
            if error.errno != errno.ENOTEMPTY and not presence.absent(error):
                raise
        finally:
            os.close(fd)


@contextmanager
def kept_times(directory: int) -> Iterator[None]:
    """Restore a directory's times after the block has changed an entry in it."""
    before = os.fstat(directory)
    try:
        yield
    finally:
        os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))


def _remove_shared(top_fd: int) -> None:
    """Remove the directory that all runs share, unless another run is in it, or it is not ours. Raises OSError."""
    try:
        with _shared(top_fd), kept_times(top_fd):
            os.rmdir(DIRECTORY, dir_fd=top_fd)
    except OSError as error:
        # Another run is in it, or has removed it.
        if error.errno != errno.ENOTEMPTY and not presence.absent(error):
            raise


def failed(what: str, error: OSError) -> KopiatomicError:
    """Describe a refusal by the kernel: what could not be done, why, what to do."""
    why, hint = reason(error)
    return KopiatomicError(f"{what}: {why}", kind="btrfs-snapshot", hint=hint)


def reason(error: OSError) -> tuple[str, str]:
    """Return why the kernel refused something, and what to do."""
    advice = advice_of(error)
    if advice is not None:
        return error.strerror or str(error), advice
    return _REASONS.get(error.errno or 0, (error.strerror or str(error), "See 'dmesg'."))


def gone(dataset: Dataset) -> Refusal:
    """Return why a subvolume is not at its place: deleted if its id proves that, else moved or replaced."""
    if _is_deleted(dataset):
        return Refusal(dataset, "it was deleted between listing and snapshot", Verdict.DELETED)
    return Refusal(dataset, "it vanished between listing and snapshot: moved or replaced", Verdict.MOVED)


def _is_deleted(dataset: Dataset) -> bool:
    try:
        with top(dataset.device) as top_fd:
            return btrfs.is_deleted(top_fd, dataset.subvolume)
    except (OSError, KopiatomicError):
        # Not proven.
        return False


_REASONS = {
    errno.ENOSPC: ("the filesystem is full", "Free space ('btrfs filesystem usage'), then run again."),
    errno.ETXTBSY: (
        "a file in it is in use as swap space",
        "Turn it off ('swapoff FILE'), or give the file a subvolume of its own that is left out (--exclude).",
    ),
    errno.EDQUOT: ("its quota is reached", "Free space, or raise the limit ('btrfs qgroup show')."),
    errno.EROFS: (
        "the filesystem is read-only",
        "Mount it writable; see 'dmesg' if it became read-only by itself.",
    ),
    errno.EPERM: ("not permitted", "Run as root, with the capability CAP_SYS_ADMIN."),
    errno.EACCES: ("not permitted", "Run as root, with the capability CAP_SYS_ADMIN."),
}
