"""The commands that set what a restored dataset does not have yet: a shell does exactly that, and a terminal nothing."""

from __future__ import annotations

import os
import subprocess

import pytest

from kopiatomic.filesystems.zfs.new_dataset import set_command

VALUES = (
    "plain",
    "",
    " ",
    'it\'s "$(touch /tmp/x)" `id` $HOME',
    "back\\slash \\n %s %%",
    "a\nb",
    "ends in lines\n\n",
    "\n",
    "a\tb",
    "\x1b[31mred\x07",
    "Grüße, 日本",
    "\udcff no text \udc80",
    "a.\n",
    "12\n345",
    "*?[a] ~ # ! ; & | < >",
)


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("value", VALUES)
def test_a_shell_sets_what_was_set(shell: str, value: str) -> None:
    command = set_command("tank/it's new", "org:key", value)
    assert command.isprintable()
    # In place of the program: what it is given.
    script = f"zfs() {{ printf '%s\\0' \"$@\"; }}\n{command}"
    found = subprocess.run([shell, "-e", "-c", script], check=True, capture_output=True).stdout
    assert found.split(b"\0")[:-1] == [b"set", os.fsencode(f"org:key={value}"), b"tank/it's new"]
