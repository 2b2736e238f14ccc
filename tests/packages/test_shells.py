"""A shell of Debian's completes kopiatomic as soon as the package is there, with no line in any start-up file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packages.machine import Machine

BASH = """
. /usr/share/bash-completion/bash_completion
_completion_loader kopiatomic
complete -p kopiatomic >/dev/null
COMP_LINE='kopiatomic --eng' COMP_POINT=16
_kopiatomic_completion kopiatomic
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = "complete -C 'kopiatomic --eng'"
# A terminal in which somebody presses Tab.
ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1=; autoload -U compinit; compinit -u -D; print rea""dy'
zpty -r -m shell line '*ready*'
zpty -w -n shell $'kopiatomic --eng\\t'
zpty -r -m shell line '*kopiatomic --engine*'
print -r -- "${line##* }"
"""


@pytest.mark.in_part(3)
@pytest.mark.parametrize(("shell", "script"), [("bash", BASH), ("fish", FISH), ("zsh", ZSH)])
def test_the_shell_completes_it(shell: str, script: str, host: Machine, package: Path) -> None:
    host.apt("install", host.there(host.exchange / package.name), shell, "bash-completion")
    try:
        assert host("timeout", "30", shell, "-c", script).stdout.strip().startswith("--engine")
    finally:
        host.apt("purge", "kopiatomic")
