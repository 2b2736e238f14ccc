"""The options that the user adds to ``kopia snapshot create`` (``-o``): what goes where, and no secret in an argv.

kopia's parser (kingpin) takes ``--flag=value`` and ``--flag value``, ``-pVALUE`` and ``-p VALUE``, never a value that begins
with a dash as a word of its own, no abbreviations, and refuses a flag given twice ("cannot be repeated").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from kopiatomic.errors import UsageError
from kopiatomic.immutable import immutable

_SECRETS = MappingProxyType(
    {
        "-p": "KOPIA_PASSWORD",
        "--password": "KOPIA_PASSWORD",
        "--metrics-push-password": "KOPIA_METRICS_PUSH_PASSWORD",
    }
)
"""Flags that carry a secret, and the environment variable that does the same (kopia: cli/app.go, observability_flags.go)."""

_SHARED_VALUES = frozenset({"--config-file", "--log-dir", "--upgrade-owner-id"})
_SHARED_SWITCHES = frozenset({"--use-keyring", "--disable-file-logging", "--disable-content-log"})
"""Flags that every kopia command of a run has to be given: which repository, which logs."""

_REFUSED = MappingProxyType(
    {
        "--all": "it backs up other folders than the view",
        "--no-json": "kopia's result could not be read",
        "--stdin-file": "it backs up an input stream in place of the view",
    }
)


@immutable
class Options:
    """``-o``, taken apart. ``words`` are for the command line of ``snapshot create``, ``shared`` for all commands."""

    words: tuple[str, ...]
    shared: tuple[str, ...]
    values: Mapping[str, str]
    """The last value of each flag that was given one; of a flag without a value, an empty text."""
    secrets: Mapping[str, str]
    """Environment variables that carry what was a secret on the command line."""
    warnings: tuple[str, ...]

    def has(self, flag: str) -> bool:
        """Whether a flag was given, also in its negative form (``--no-progress`` for ``--progress``)."""
        return flag in self.values or _negative(flag) in self.values

    def value(self, flag: str) -> str | None:
        """The value of a flag; None where it was not given."""
        return self.values.get(flag)


def _negative(flag: str) -> str:
    return "--no-" + flag.removeprefix("--")


def parse(words: Sequence[str]) -> Options:
    """Take the options apart. Raises UsageError for those that would make the run something else."""
    plain: list[str] = []
    shared: list[str] = []
    values: dict[str, str] = {}
    secrets: dict[str, str] = {}
    for flag, value, originals in _flags(words):
        if flag in _SECRETS:
            secrets[_SECRETS[flag]] = value
            continue
        if flag:
            values[flag] = value
        if flag in _REFUSED:
            raise UsageError(
                f"-o {flag} does not go with a backup of the view: {_REFUSED[flag]}",
                kind="usage",
                hint=f"Leave {flag} out of -o, or run kopia yourself.",
            )
        if flag in _SHARED_VALUES or flag.replace("--no-", "--", 1) in _SHARED_SWITCHES:
            shared += originals
        if flag.replace("--no-", "--", 1) != "--auto-maintenance":
            plain += originals
    warnings = []
    if secrets:
        warnings.append(
            "a password in -o can be read by every local user in the list of processes, as long as kopiatomic runs; "
            "let kopia remember it (kopia repository connect) or set KOPIA_PASSWORD instead"
        )
    if "--start-time" in values:
        warnings.append(f"-o sets kopia's start time to {values['--start-time']}: not the instant of the snapshots")
    return Options(tuple(plain), tuple(shared), values, secrets, tuple(warnings))


def _flags(words: Sequence[str]) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Each option as (flag, value, the words that it was); words that are no flags as ("", word, [word])."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            yield "", word, [word, *rest]
            return
        if word.startswith("-p"):
            word, value = "-p", word[2:]
            originals = [word + value]
        elif word.startswith("-"):
            word, equals, value = word.partition("=")
            originals = [word + equals + value]
            if equals:
                yield word, value, originals
                continue
        else:
            yield "", word, [word]
            continue
        if not value and word in _TAKES_VALUE and rest and not rest[0].startswith("-"):
            value = rest.pop(0)
            originals.append(value)
        yield word, value, originals


_TAKES_VALUE = (
    frozenset(_SECRETS) | _SHARED_VALUES | {"--override-source", "--start-time", "--progress-update-interval"}
)
"""Flags whose value this module has to know; the values of others are passed on as words of their own."""
