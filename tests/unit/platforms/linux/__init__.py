"""Tests of platforms/linux."""
