"""What a selection is asked for, as data."""

from __future__ import annotations

from kopiatomic.immutable import immutable
from kopiatomic.model.plan import Layout
from kopiatomic.model.user_property import PROPERTY


@immutable
class Request:
    """What the user asked for. ``suffix`` is what follows a dataset's name in its snapshot's name (``@kopiatomic_...``)."""

    names: tuple[str, ...]
    everything: bool
    recursive: bool
    root: str
    suffix: str
    exclude: tuple[str, ...] = ()
    by_property: bool = False
    property: str = PROPERTY
    no_nested: bool = False
    """Btrfs: nested subvolumes are not wanted, and not reported as missing."""
    include_unmounted: bool = False
    volumes: bool = False
    layout: Layout = Layout.MERGED
    only_frozen: bool = False
    """In place: nothing live is visible in the trees of what is frozen."""
    live_system: bool = False
    """In place: the kernel's filesystems and /run stay as they are. For commands, not for backups."""
    bookmark: str = ""
    """The name of the bookmarks to keep; empty for no bookmarks."""

    def asks_for_nothing(self) -> bool:
        """Whether nothing is selected."""
        return not (self.names or self.everything or self.by_property)


def is_path(name: str) -> bool:
    """Whether a name on the command line is a path rather than a ZFS name."""
    return name.startswith(("/", "./", "../")) or name in {".", ".."}


def is_pattern(name: str) -> bool:
    """Whether a name is a pattern: ``*`` matches within a component, ``**`` any number of components."""
    return "*" in name
