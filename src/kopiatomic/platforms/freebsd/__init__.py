"""FreeBSD."""
