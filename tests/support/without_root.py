"""Running a program with less than root has."""

from __future__ import annotations

import shutil

NOBODY = 65534


def as_nobody(*argv: str) -> list[str]:
    """A command line that runs another one as nobody, who may still read the tests' files."""
    return [*_setpriv(f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *_ambient("dac_read_search")), *argv]


def as_anybody(*argv: str) -> list[str]:
    """A command line that runs another one as nobody, who may do nothing more than any other user."""
    return [*_setpriv(f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"), *argv]


def without_capability(name: str, *argv: str) -> list[str]:
    """A command line that runs another one as root without one of its capabilities, such as ``sys_admin``."""
    return [*_setpriv(f"--bounding-set=-{name}", f"--inh-caps=-{name}"), *argv]


def _ambient(name: str) -> list[str]:
    return [f"--inh-caps=+{name}", f"--ambient-caps=+{name}"]


def _setpriv(*options: str) -> list[str]:
    return [str(shutil.which("setpriv")), *options, "--"]
