"""Whatever a name holds, printing it neither fails nor moves the cursor."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kopiatomic.text import is_text, printable, spelled


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/tank/home", "/tank/home"),
        ("/müsli/日本", "/müsli/日本"),
        ("with space", "with space"),
        ("a\nb\tc", "a\\x0ab\\x09c"),
        ("\x1b[31mred", "\\x1b[31mred"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("\u202eabc", "\\u202eabc"),
        ("\u2028", "\\u2028"),
        ("\U000e0001", "\\ue0001"),
        ("", ""),
    ],
)
def test_names_are_shown_so_that_they_can_be_read(name: str, shown: str) -> None:
    assert printable(name) == shown


@given(st.binary())
def test_every_name_there_can_be_becomes_printable_utf8(name: bytes) -> None:
    shown = printable(os.fsdecode(name))
    assert shown.isprintable()
    shown.encode("utf-8")


@given(st.text(st.characters(codec="utf-8")).filter(str.isprintable))
def test_what_is_printable_already_stays_as_it_is(name: str) -> None:
    assert printable(name) == name


def test_each_byte_that_is_no_text_has_a_sign_as_in_go() -> None:
    for name, written in ((b"a\xff", "a_"), (b"\xe2\x82", "__"), (b"\xed\xa0\x80", "___"), ("é€".encode(), "é€")):
        assert spelled(os.fsdecode(name), "_") == written
        assert is_text(os.fsdecode(name)) == (written == os.fsdecode(name))
