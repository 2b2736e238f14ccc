"""The ZFS user property that selects datasets. Imports little: the command line needs it for its help."""

from __future__ import annotations

import re

PROPERTY = "kopiatomic:backup"
"""The one that ``--by-property`` selects by, by default."""


def is_user_property(name: str) -> bool:
    """Whether ZFS takes this for the name of a property of its users (zfsprops(7)): any other means something to it."""
    return ":" in name and re.fullmatch(r"[a-z0-9_.:][a-z0-9_.:-]{0,255}", name) is not None
