"""Secrets are kept out of what is shown and recorded, and nothing else is."""

from __future__ import annotations

import shlex

import pytest

from kopiatomic.masking import Secrets, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--password=hunter22", "--password=***"),
        ("--password hunter22", "--password ***"),
        ("--password='two words'", "--password=***"),
        ('--sftp-password "x"', "--sftp-password ***"),
        ("PGPASSWORD=hunter22 pg_dump", "PGPASSWORD=*** pg_dump"),
        ("AWS_SECRET_ACCESS_KEY=abc/def cmd", "AWS_SECRET_ACCESS_KEY=*** cmd"),
        ("--secret-access-key=abc/def", "--secret-access-key=***"),
        ("--password-file=/root/pw", "--password-file=/root/pw"),
        ("--password-command 'cat /root/pw'", "--password-command 'cat /root/pw'"),
        ("--parallel=8 --tags token:1", "--parallel=8 --tags token:1"),
        ("tank/password", "tank/password"),
        ("--password=one' two'\\ \"three\" four", "--password=*** four"),
        ("--password=one\\ two\\'three\\\"four five", "--password=*** five"),
        ("sh -c 'a --password=hunter22'", "sh -c 'a --password=***'"),
        ("it's \\ no \"secret", "it's \\ no \"secret"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, shown: str) -> None:
    assert Secrets([text], {}).hide(text) == shown


def test_a_secret_is_masked_wherever_it_stands() -> None:
    secrets = Secrets(["-o", "--password=hunter22"], {"KOPIA_PASSWORD": "correct horse"}, ["p-form"])
    told = {"a": ["said hunter22", {"b": "correct horse, p-form"}], "n": 3, "none": None}
    assert secrets.hide_in(told) == {"a": ["said ***", {"b": "***, ***"}], "n": 3, "none": None}


def test_quotes_in_the_middle_of_a_secret_let_no_part_of_it_through() -> None:
    secrets = Secrets([], {}, ["one two'three\"four"])
    for word in (shlex.quote("one two'three\"four"), "one\\ two\\'three\\\"four", "'one 'two\\'\"three\\\"four\""):
        assert secrets.hide(f"-p {word} --tags a") == "-p *** --tags a"
        assert secrets.hide(f"-p{word}") == "-p***"


def test_switches_and_short_values_do_not_blot_out_other_texts() -> None:
    secrets = Secrets([], {"KOPIA_USE_PASSWORD_CACHE": "true", "TOKEN": "a"})
    assert secrets.hide("true: a word") == "true: a word"


def test_a_command_line_is_quoted_and_printable() -> None:
    secrets = Secrets(["--password=x y"], {})
    assert secrets.command_line(["kopiatomic", "-o", "--password=abcd", "a b", "c\nd"]).startswith(
        "kopiatomic -o '--password=***' 'a b' 'c\\x0ad'"
    )


def test_an_environment_loses_its_secrets_alone() -> None:
    given = {"KOPIA_PASSWORD": "x", "AWS_SECRET_ACCESS_KEY": "y", "HOME": "/root", "PATH": "/bin"}
    assert without_secrets(given) == {"HOME": "/root", "PATH": "/bin"}
