"""Users and groups by name, for messages."""

from __future__ import annotations

import grp
import pwd


def user(uid: int) -> str:
    """A user's name, or the number of one that has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def group(gid: int) -> str:
    """A group's name, or the number of one that has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return str(gid)
