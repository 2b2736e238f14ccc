"""Borg."""
