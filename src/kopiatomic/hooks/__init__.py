"""Shell commands that run before and after the snapshots."""
