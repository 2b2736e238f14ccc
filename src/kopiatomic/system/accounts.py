"""Users and groups by name, for messages."""

from __future__ import annotations

import grp
import pwd


def user(uid: int) -> str:
    """Return a user's name, or the number if there is no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def group(gid: int) -> str:
    """Return a group's name, or the number if there is no name."""
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return str(gid)
