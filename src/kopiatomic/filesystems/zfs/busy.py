"""Why ZFS snapshots cannot be destroyed: who holds them, who has them mounted or open."""

from __future__ import annotations

from collections.abc import Sequence

from kopiatomic.state.ownership import TAG
from kopiatomic.system import host, process, zfs_program
from kopiatomic.text import first_few, printable


def reasons(names: Sequence[str]) -> dict[str, str]:
    """Return a reason for each snapshot, in words.

    A hold with our tag is named last: it is not a reason by itself, and remains where the kernel could not release it
    because of one of the others.
    """
    mounted = {mount.source for mount in host.here().mounts()}
    tags = _tags([name for name in names if name not in mounted])
    free = [name for name in names if name not in mounted and not set(tags.get(name, ())) - {TAG}]
    users = host.here().users(free, "zfs") if free else {}
    found = {}
    for name in names:
        if name in mounted:
            found[name] = "somebody has mounted it"
        elif others := sorted(set(tags.get(name, ())) - {TAG}):
            found[name] = f"somebody else holds it ({first_few(others)}; see: zfs holds {printable(name)})"
        elif users.get(name):
            found[name] = f"in use by {first_few([str(user) for user in users[name]])}"
        else:
            held = f", or its hold '{TAG}'" if tags.get(name) else ""
            found[name] = f"it is busy: a clone, a receive, a process that has it open and could not be found{held}"
    return found


def _tags(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the tags of the holds on snapshots; no tags for one whose holds cannot be listed."""
    found: dict[str, list[str]] = {}
    for part in process.parts(names):
        result = zfs_program.run(["zfs", "holds", "-H", *part], may_fail=True)
        for line in result.stdout.decode("utf-8", "surrogateescape").splitlines():
            # A tag may contain anything; the name before it and the time after it may not.
            name, _, rest = line.partition("\t")
            found.setdefault(name, []).append(rest.rpartition("\t")[0])
    return found
