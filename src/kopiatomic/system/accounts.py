"""Users and groups by name."""

from __future__ import annotations

import grp
import pwd


def user(uid: int) -> str:
    """Return a user's name, or the number if there is no name."""
    return user_name(uid) or str(uid)


def group(gid: int) -> str:
    """Return a group's name, or the number if there is no name."""
    return group_name(gid) or str(gid)


def user_name(uid: int) -> str | None:
    """Return a user's name; None if there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return None


def group_name(gid: int) -> str | None:
    """Return a group's name; None if there is none."""
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return None


def uid_of(name: str) -> int | None:
    """Return the number of the user with a name; None if there is none."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def gid_of(name: str) -> int | None:
    """Return the number of the group with a name; None if there is none."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def find(name: str) -> pwd.struct_passwd | None:
    """Return the account with a name or a number; None if there is none."""
    try:
        return pwd.getpwuid(int(name)) if name.isascii() and name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        return None


def variables(account: pwd.struct_passwd) -> dict[str, str]:
    """Return the environment variables that login(1) sets for an account."""
    return {
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell or "/bin/sh",
    }
