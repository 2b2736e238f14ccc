"""The spelling that a directory itself has for a name, if its ZFS dataset accepts other spellings of the same name.

A dataset may ignore case (``casesensitivity=insensitive``) or not distinguish composed and decomposed letters
(``normalization``). There a path in another spelling leads to the same object, but compared with the mount table it looks like
another path. With ``normalization`` not even the table is reliable: a mount point is spelled there as it was last looked up (seen
on OpenZFS 2.3.9). So the opened objects are compared, and the spelling is looked up in the directory.
"""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems import backends, kind_of
from kopiatomic.model.mounts import Mount, holder
from kopiatomic.paths import parents
from kopiatomic.planning.answering import may_wait
from kopiatomic.system import host
from kopiatomic.text import printable


class Spellings:
    """Answers from the present directories. ``seen`` are the visible mounts, by points in their own spelling."""

    def __init__(self, seen: dict[str, Mount]) -> None:
        self._seen = seen

    def own(self, path: str) -> str:
        """Return a path in the spelling of its directory; the path of the directory is already spelled that way.

        Raises OSError if it cannot be examined, KopiatomicError if no listing has it.
        """
        above, name = parents(path)[0], path.rpartition("/")[2]
        try:
            mount = holder(above, self._seen)
        except KeyError:
            return path
        if path in self._seen or not _may_have_others(mount, name):
            return path
        directory = host.here().open_directory(above, to_list=True)
        try:
            entries = os.listdir(directory)
        finally:
            os.close(directory)
        if name in entries:
            return path
        opened = host.here().identity(path)
        key = _key(name)
        for entry in entries:
            found = f"{above.rstrip('/')}/{entry}"
            if _key(entry) == key and _is(found, opened):
                return found
        # One that its dataset folds in a way that is not known here.
        for entry in entries:
            found = f"{above.rstrip('/')}/{entry}"
            if not entry.isascii() and found not in self._seen and _is(found, opened):
                return found
        raise KopiatomicError(
            f"{printable(path)} is there, and its directory has no such name in its list",
            kind="spelling",
            hint=f"Write it as 'ls {printable(above)}' does; if it does so already, somebody renames it just now: run again.",
        )

    def of_pattern(self, pattern: str) -> str:
        """Return an absolute pattern, or path, with the components before the first star spelled as in their directories.

        What does not exist, or may not answer, is left as it is.
        """
        path = ""
        rest = [part for part in pattern.split("/") if part not in {"", "."}]
        while rest and "*" not in rest[0] and rest[0] != "..":
            step = f"{path}/{rest[0]}"
            if _may_wait(step, self._seen):
                break
            try:
                path = self.own(step)
            except (OSError, KopiatomicError) as error:
                if isinstance(error, OSError) and not presence.moved(error) and error.errno != errno.EACCES:
                    raise
                break
            rest.pop(0)
        return "/".join([path, *rest]) if path or rest else "/"


def _may_have_others(mount: Mount, name: str) -> bool:
    kind = kind_of(mount)
    return kind is not None and backends.of(kind).respells(mount, name)


def own_table(mounts: Iterable[Mount]) -> tuple[Mount, ...]:
    """Return a mount table whose points have the spelling of their directories."""
    table = tuple(mounts)
    if all(mount.point.isascii() for mount in table):
        return table
    known: dict[str, Mount] = {}
    points: dict[str, str] = {}
    spellings = Spellings(known)
    for mount in sorted(table, key=lambda m: len(parents(m.point))):
        # What lies above has been spelled before.
        if mount.point not in points:
            points[mount.point] = mount.point if mount.point.isascii() else spellings.of_pattern(mount.point)
        known[points[mount.point]] = mount
    return tuple(replace(m, point=points[m.point]) if points[m.point] != m.point else m for m in table)


def _may_wait(path: str, seen: Mapping[str, Mount]) -> bool:
    mount = seen.get(path)
    if mount is None:
        return False
    return may_wait(mount)


def _is(path: str, opened: tuple[int, int, int]) -> bool:
    try:
        return host.here().identity(path) == opened
    except OSError as error:
        if presence.moved(error):
            return False
        raise


def _key(name: str) -> str:
    """Return a key that is equal for all names that a dataset may treat as the same, and for some more."""
    plain = unicodedata.normalize("NFKD", name)
    return unicodedata.normalize("NFKD", plain.upper().casefold())
