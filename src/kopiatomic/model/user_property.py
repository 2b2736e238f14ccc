"""The ZFS user property that selects datasets. Imports little, because the command line needs it for its help."""

from __future__ import annotations

import re

PROPERTY = "kopiatomic:backup"
"""The property that ``--by-property`` uses by default."""


def is_user_property(name: str) -> bool:
    """Whether ZFS accepts this as the name of a user property (zfsprops(7)): it gives any other name a meaning of its own."""
    return ":" in name and re.fullmatch(r"[a-z0-9_.:][a-z0-9_.:-]{0,255}", name) is not None
