"""Warnings about runs that should have happened."""
