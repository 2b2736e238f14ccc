"""Tests of platforms/freebsd."""
