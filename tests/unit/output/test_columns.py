"""Tables fit a width, and nothing of a text is lost in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from kopiatomic.output.columns import fold, rows


def plain(_: str, text: str) -> str:
    return text


def table(*lines: tuple[str, ...]) -> list[list[tuple[str, str]]]:
    return [[("", text) for text in line] for line in lines]


def test_columns_are_as_wide_as_what_is_in_them() -> None:
    assert list(rows(table(("a", "bb", "c"), ("aaa", "b", "")), 80, plain)) == ["a    bb  c", "aaa  b"]


def test_what_is_too_long_goes_on_below_in_its_own_column() -> None:
    assert list(rows(table(("tank/a", "it is not mounted at all"), ("b", "x")), 20, plain)) == [
        "tank/a  it is not",
        "        mounted at",
        "        all",
        "b       x",
    ]


def test_styles_take_no_room() -> None:
    styled = [[("red", "no"), ("", "x")], [("", "maybe"), ("", "y")]]
    assert list(rows(styled, 80, lambda style, text: f"<{style}>{text}</>")) == ["<red>no</>     x", "maybe  y"]


def test_wide_characters_count_as_two() -> None:
    assert list(rows(table(("日本", "x"), ("ab", "y")), 80, plain)) == ["日本  x", "ab    y"]


@pytest.mark.parametrize("width", [40, 80, 160])
@given(st.lists(st.tuples(*[st.text(st.sampled_from("ab/ 日é"), max_size=120)] * 3), min_size=1, max_size=5))
def test_every_line_fits(width: int, texts: list[tuple[str, ...]]) -> None:
    assert max(map(cell_len, rows(table(*texts), width, plain))) <= width


@given(st.text(st.sampled_from("ab 日"), max_size=60), st.integers(8, 20))
def test_nothing_but_a_space_at_a_break_is_left_out(text: str, width: int) -> None:
    pieces = list(fold(text, width))
    assert all(cell_len(piece) <= width for piece in pieces)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    assert text.count(" ") - "".join(pieces).count(" ") < len(pieces)
