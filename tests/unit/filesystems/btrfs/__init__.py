"""Tests of filesystems/btrfs."""
