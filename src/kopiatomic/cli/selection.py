"""Checks and conversions for the selection options."""

from __future__ import annotations

from typing import Any

import click

from kopiatomic.model.user_property import is_user_property


def _as_layout(_context: click.Context, _parameter: click.Parameter, value: str) -> Any:
    from kopiatomic.model.plan import Layout

    return Layout(value)


def _property_name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not is_user_property(value):
        raise click.BadParameter(f"{value}: it must be a user property of ZFS, such as backup:this (see zfsprops(7))")
    return value


SELECTION = {"layout": {"callback": _as_layout}, "property": {"callback": _property_name}}
"""For :func:`kopiatomic.cli.options.options`."""
