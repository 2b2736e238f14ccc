"""Schedules: backups with a name that a timer starts. One module each for systemd and for cron, in :func:`here`.

The words of the backup are in the file that starts it, once for the program that starts it and once as JSON for us; nothing
else knows of a schedule.
"""

from __future__ import annotations

from kopiatomic.errors import KopiatomicError
from kopiatomic.schedules.schedule import Scheduler
from kopiatomic.system import host


def here(root: str = "/") -> Scheduler:
    """That of this platform. ``root`` is what its files are below."""
    return on(host.system(), root)


def on(platform: str, root: str = "/") -> Scheduler:
    """That of a platform, by its name in ``sys.platform``. Raises KopiatomicError where we know none."""
    if platform == "linux":
        from kopiatomic.schedules.systemd import Systemd  # noqa: PLC0415

        return Systemd(root)
    if platform.startswith("freebsd"):
        from kopiatomic.schedules.cron import Cron  # noqa: PLC0415

        return Cron(root)
    raise KopiatomicError(
        f"kopiatomic knows no timer on {platform}", kind="no-scheduler", hint="Start it by the system's own means."
    )
