"""The options that the user adds to restic or Borg (``-o``), taken apart.

Both parsers (pflag, argparse) take ``--flag=value``, ``--flag value``, ``-fvalue``, ``-f value`` and ``-xf value``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kopiatomic.errors import UsageError
from kopiatomic.immutable import immutable


@immutable
class Syntax:
    """What has to be known of a program's flags."""

    long: Mapping[str, str]
    """The long name of each short flag (``{"-r": "--repo"}``)."""
    valued: frozenset[str]
    """Long names of those that take a value, as far as a value may be taken for a flag, or the value matters."""
    refused: Mapping[str, str]
    """Long names of those that would make the run something else, and what that would be."""


@immutable
class Given:
    """A flag by its long name, its value (empty: none), and the words that it was; a word that is no flag has no name."""

    flag: str
    value: str
    words: tuple[str, ...]


def parse(engine: str, words: Sequence[str], syntax: Syntax) -> list[Given]:
    """Take the options apart. Raises UsageError for those that do not go with a backup of the view."""
    found = list(_parsed(words, syntax))
    for given in found:
        if given.flag in syntax.refused:
            raise UsageError(
                f"-o {given.flag} does not go with a backup of the view: {syntax.refused[given.flag]}",
                kind="usage",
                hint=f"Leave {given.flag} out of -o, or run {engine} yourself.",
            )
    return found


def _parsed(words: Sequence[str], syntax: Syntax) -> Iterator[Given]:
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            # What follows would be sources of its own.
            raise UsageError("-o -- does not go with a backup of the view", kind="usage", hint="Name options only.")
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            given = [word]
            if not equals and flag in syntax.valued and rest:
                value = rest.pop(0)
                given.append(value)
            yield Given(flag, value, tuple(given))
        elif word.startswith("-") and word != "-":
            yield from _cluster(word, rest, syntax)
        else:
            yield Given("", word, (word,))


def _cluster(word: str, rest: list[str], syntax: Syntax) -> Iterator[Given]:
    """Each letter of ``-xf value`` for itself."""
    letters = word[1:]
    while letters:
        short, letters = f"-{letters[0]}", letters[1:]
        flag = syntax.long.get(short, short)
        if flag in syntax.valued and not letters and rest:
            value = rest.pop(0)
            yield Given(flag, value, (short, value))
        elif (flag in syntax.valued and letters) or letters.startswith("="):
            yield Given(flag, letters.removeprefix("="), (short + letters,))
            return
        else:
            yield Given(flag, "", (short,))
