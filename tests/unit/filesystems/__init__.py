"""Tests of filesystems."""
