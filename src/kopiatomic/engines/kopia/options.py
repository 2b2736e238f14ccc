"""The options that the user adds to ``kopia snapshot create`` (``-o``): where each goes, and no secret in an argv.

kopia's parser (kingpin) accepts no abbreviations, and refuses a flag given twice ("cannot be repeated").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from kopiatomic.engines import flags, known_options
from kopiatomic.errors import UsageError
from kopiatomic.immutable import immutable
from kopiatomic.text import printable

_SECRETS = MappingProxyType(
    {
        "--password": "KOPIA_PASSWORD",
        "--metrics-push-password": "KOPIA_METRICS_PUSH_PASSWORD",
    }
)
"""Flags that carry a secret, and the equivalent environment variable (kopia: cli/app.go, observability_flags.go)."""

_SHARED_VALUES = frozenset({"--config-file", "--log-dir", "--upgrade-owner-id"})
_SHARED_SWITCHES = frozenset({"--use-keyring", "--disable-file-logging", "--disable-content-log"})
"""Flags that every kopia command of a run must get: which repository, which logs."""

_SYNTAX = flags.Syntax(
    known_options.KOPIA,
    refused=MappingProxyType(
        {
            "--all": "it backs up other folders than the view",
            "--no-json": "kopia's result could not be read",
            "--stdin-file": "it backs up an input stream in place of the view",
            **dict.fromkeys(("--help", "--help-full", "--help-long", "--help-man", "--version"), "nothing is saved"),
            **dict.fromkeys(
                ("--completion-bash", "--completion-script-bash", "--completion-script-zsh"), "nothing is saved"
            ),
        }
    ),
    kingpin=True,
)


_FORMS = MappingProxyType(
    {
        "--parallel": (re.compile(r"[+-]?[0-9][0-9A-Fa-f_xob]*"), "a whole number"),
        "--tags": (re.compile(r"[^:]+:.*", re.DOTALL), "NAME:VALUE"),
    }
)
"""What kopia takes as values of some flags. Its own ``--help``, which is asked for all names, looks at no value."""


@immutable
class Options:
    """Parsed ``-o``. ``words`` are for the command line of ``snapshot create``, ``common`` are the options for all commands."""

    words: tuple[str, ...]
    common: tuple[tuple[str, ...], ...]
    values: Mapping[str, str]
    """The last value of each flag that had one; for a flag without a value, an empty text."""
    secrets: Mapping[str, str]
    """Environment variables with the secrets from the command line."""
    warnings: tuple[str, ...]

    @property
    def shared(self) -> tuple[str, ...]:
        """The words for the command lines of all commands."""
        return tuple(word for words in self.common for word in words)

    def has(self, flag: str) -> bool:
        """Whether a flag was given, also in its negative form (``--no-progress`` for ``--progress``)."""
        return flag in self.values or _negative(flag) in self.values

    def value(self, flag: str) -> str | None:
        """Return the value of a flag; None if it was not given."""
        return self.values.get(flag)


def _negative(flag: str) -> str:
    return "--no-" + flag.removeprefix("--")


def parse(words: Sequence[str]) -> Options:
    """Parse the options. Raises UsageError for those that would turn the run into something else."""
    plain: list[str] = []
    common: list[tuple[str, ...]] = []
    values: dict[str, str] = {}
    secrets: dict[str, str] = {}
    for given in flags.parse("kopia", words, _SYNTAX):
        flag, value, originals = given.flag, given.value, given.words
        if flag in _SECRETS:
            secrets[_SECRETS[flag]] = value
            continue
        form, what = _FORMS.get(flag, (None, ""))
        if form is not None and form.fullmatch(value) is None:
            raise UsageError(
                f"-o {flag} {printable(value)}: kopia takes {what}",
                kind="engine-option",
                hint="See: kopia snapshot create --help",
            )
        values[flag] = value
        if flag in _SHARED_VALUES or flag.replace("--no-", "--", 1) in _SHARED_SWITCHES:
            common.append(originals)
        if flag.replace("--no-", "--", 1) != "--auto-maintenance":
            plain += originals
    warnings = []
    if "--start-time" in values:
        warnings.append(f"-o sets kopia's start time to {values['--start-time']}: not the instant of the snapshots")
    return Options(tuple(plain), tuple(common), values, secrets, tuple(warnings))
