"""A run: its processes, its order of things, its record, and its recovery."""
