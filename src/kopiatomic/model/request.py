"""What is asked of a selection, as data."""

from __future__ import annotations

from kopiatomic.immutable import immutable
from kopiatomic.model.plan import Layout
from kopiatomic.model.user_property import PROPERTY


@immutable
class Request:
    """What the user asked for. ``suffix`` is what follows a dataset's name in its snapshot's (``@kopiatomic_...``)."""

    names: tuple[str, ...]
    everything: bool
    recursive: bool
    root: str
    suffix: str
    exclude: tuple[str, ...] = ()
    by_property: bool = False
    property: str = PROPERTY
    no_nested: bool = False
    """Btrfs: what is nested in a subvolume is not wanted, and not missed."""
    include_unmounted: bool = False
    volumes: bool = False
    layout: Layout = Layout.MERGED
    only_frozen: bool = False
    """In place: nothing that is not frozen is to be seen in the trees of what is."""
    live_system: bool = False
    """In place: the kernel's filesystems and /run stay as they are. For commands, not for backups."""
    bookmark: str = ""
    """What the bookmarks are called that are to be kept; empty for none."""


def is_path(name: str) -> bool:
    """Whether a name on the command line is a path and not a ZFS name."""
    return name.startswith(("/", "./", "../")) or name in {".", ".."}


def is_pattern(name: str) -> bool:
    """Whether a name stands for several: ``*`` matches within a component, ``**`` any number of them."""
    return "*" in name
