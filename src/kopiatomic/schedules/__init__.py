"""Schedules: named backups that a timer starts. One module each for systemd and for cron, chosen in :func:`here`.

The words of the backup are in the file that starts it, once for the program that starts it and once as JSON for us; nothing else
knows of a schedule.
"""

from __future__ import annotations

from kopiatomic.errors import KopiatomicError
from kopiatomic.schedules.schedule import Scheduler
from kopiatomic.system import host


def here(root: str = "/") -> Scheduler:
    """Return this platform's scheduler. Its files are below ``root``."""
    return on(host.system(), root)


def on(platform: str, root: str = "/") -> Scheduler:
    """Return a platform's scheduler, by its name in ``sys.platform``. Raises KopiatomicError for an unknown one."""
    if platform == "linux":
        from kopiatomic.schedules.systemd import Systemd  # noqa: PLC0415

        return Systemd(root)
    if platform.startswith("freebsd"):
        from kopiatomic.schedules.cron import Cron  # noqa: PLC0415

        return Cron(root)
    raise KopiatomicError(
        f"kopiatomic knows no timer on {platform}", kind="no-scheduler", hint="Start it by the system's own means."
    )
