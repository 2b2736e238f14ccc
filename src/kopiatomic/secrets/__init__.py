"""Secrets: what counts as one, where it stands, and how it is masked."""
