"""kopiatomic hands a backup tool one frozen instant of your filesystems, and leaves nothing behind."""

__version__ = "0.1.0"
