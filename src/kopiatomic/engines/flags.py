"""Parsing of the options that the user adds to an engine (``-o``).

All three parsers (pflag, argparse, kopia's kingpin) accept ``--flag=value``, ``--flag value``, ``-fvalue`` and ``-f value``;
the first two also ``-xf value``, and a value that begins with a dash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kopiatomic.engines.known_options import Known
from kopiatomic.errors import UsageError
from kopiatomic.immutable import immutable
from kopiatomic.text import printable


@immutable
class Syntax:
    """What must be known about a program's flags."""

    known: Known
    refused: Mapping[str, str]
    """Long names of flags that would turn the run into something else, and what that would be."""
    kingpin: bool = False
    """Whether its parser takes no word that begins with a dash as a value, and ``=`` after a short flag as part of the value."""
    abbreviations: bool = False
    """Whether its parser accepts an unambiguous beginning of a long flag as the flag."""


@immutable
class Given:
    """A flag by its long name, its value (empty: no value), and the words that it consisted of."""

    flag: str
    value: str
    words: tuple[str, ...]


def parse(engine: str, words: Sequence[str], syntax: Syntax) -> list[Given]:
    """Parse the options. Raises UsageError for words that do not go with a backup of the view.

    A word that is neither an option nor an option's value would be one more source, and a live one.
    """
    found = list(_parsed(engine, words, syntax))
    for given in found:
        if given.flag in syntax.refused:
            raise UsageError(
                f"-o {given.flag} does not go with a backup of the view: {syntax.refused[given.flag]}",
                kind="usage",
                hint=f"Leave {given.flag} out of -o, or run {engine} yourself.",
            )
    return found


def _parsed(engine: str, words: Sequence[str], syntax: Syntax) -> Iterator[Given]:
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            # What follows would be additional sources.
            raise UsageError("-o -- does not go with a backup of the view", kind="usage", hint="Name options only.")
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            flag = _spelled_out(flag, syntax)
            given = [word]
            if not equals and _takes_next(flag, rest, syntax):
                value = rest.pop(0)
                given.append(value)
            yield Given(flag, value, tuple(given))
        elif word.startswith("-") and word != "-":
            yield from _cluster(word, rest, syntax)
        else:
            raise UsageError(
                f"-o: {printable(word)} is neither an option of {engine}'s nor the value of one: {engine} would back it up as "
                "well, live",
                kind="usage",
                hint="What is to be backed up is named to kopiatomic itself. A value can be joined to its option: "
                "--option=VALUE.",
            )


def _spelled_out(flag: str, syntax: Syntax) -> str:
    known = syntax.known.valued | syntax.known.switches
    if not syntax.abbreviations or flag in known:
        return flag
    meant = [name for name in known if name.startswith(flag)]
    return meant[0] if len(meant) == 1 else flag


def _cluster(word: str, rest: list[str], syntax: Syntax) -> Iterator[Given]:
    """Yield each letter of ``-xf value`` separately."""
    letters = word[1:]
    while letters:
        short, letters = f"-{letters[0]}", letters[1:]
        flag = syntax.known.long.get(short, short)
        if not letters and _takes_next(flag, rest, syntax):
            value = rest.pop(0)
            yield Given(flag, value, (short, value))
        elif (flag in syntax.known.valued and letters) or letters.startswith("="):
            yield Given(flag, letters if syntax.kingpin else letters.removeprefix("="), (short + letters,))
            return
        else:
            yield Given(flag, "", (short,))


def _takes_next(flag: str, rest: Sequence[str], syntax: Syntax) -> bool:
    """Whether the next word is a flag's value. For an unknown flag it may be one, unless it may be a path.

    Whether there is such a path is not looked at: that would tell whoever has written the options what root can see.
    """
    if not rest or (syntax.kingpin and rest[0].startswith("-")):
        return False
    if flag in syntax.known.valued:
        return True
    return flag not in syntax.known.switches and not rest[0].startswith("-") and "/" not in rest[0]
