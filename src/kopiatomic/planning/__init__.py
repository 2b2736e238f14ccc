"""From what was named, and what the system has, to a plan."""
