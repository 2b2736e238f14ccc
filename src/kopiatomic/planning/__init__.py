"""Turns what was named, and what the system has, into a plan."""
