"""A run: its processes, the order of its steps, its record, and its recovery."""
