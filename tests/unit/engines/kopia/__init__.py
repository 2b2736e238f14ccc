"""Tests of engines/kopia."""
