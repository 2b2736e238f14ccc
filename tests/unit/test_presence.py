"""What is not there is told from what cannot be looked at."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from kopiatomic import presence
from kopiatomic.presence import Meaning


@pytest.mark.parametrize(
    ("number", "meaning"),
    [
        (errno.ENOENT, Meaning.ABSENT),
        (errno.ENOTDIR, Meaning.ABSENT),
        (errno.ELOOP, Meaning.REPLACED),
        (errno.EXDEV, Meaning.REPLACED),
        (errno.ESTALE, Meaning.REPLACED),
    ],
)
def test_what_says_something_of_presence(number: int, meaning: Meaning) -> None:
    error = OSError(number, "")
    assert presence.meaning(error) is meaning
    assert presence.absent(error) == (meaning is Meaning.ABSENT)
    assert presence.moved(error)


def test_every_other_refusal_says_nothing_of_presence() -> None:
    says = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ESTALE}
    for number in errno.errorcode.keys() - says:
        assert presence.meaning(OSError(number, "")) is Meaning.UNKNOWN
    assert presence.meaning(OSError("no number")) is Meaning.UNKNOWN


def test_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    link.symlink_to("nowhere")
    seen = [
        (
            presence.exists(str(path)),
            presence.is_directory(str(path)),
            presence.is_file(str(path)),
            presence.is_link(str(path)),
        )
        for path in (tmp_path, file, link, tmp_path / "none", file / "below")
    ]
    no = (False, False, False, False)
    assert seen == [(True, True, False, False), (True, False, True, False), (False, False, False, True), no, no]
    assert presence.exists(str(link), follow_links=False)
    assert not presence.is_directory(str(link), follow_links=False)
    assert sorted(presence.names(str(tmp_path))) == ["file", "link"]
    assert presence.names(str(tmp_path / "none")) == presence.names(str(file)) == []


def test_what_cannot_be_told_is_raised(tmp_path: Path) -> None:
    """A loop of links, and a name that no filesystem takes: ``os.path.exists`` says of both that they are not there."""
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    for path, number in ((str(loop), errno.ELOOP), ("x" * 300, errno.ENAMETOOLONG)):
        for ask in (presence.exists, presence.is_directory, presence.is_file, presence.names):
            with pytest.raises(OSError, match=r".") as caught:
                ask(path)
            assert caught.value.errno == number


def test_what_was_replaced_meanwhile_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake refuses, since no filesystem here gives ESTALE on request."""
    refusals = [errno.ESTALE, errno.ELOOP]
    real = os.stat

    def refused(path: str, **more: Any) -> os.stat_result:
        if refusals:
            raise OSError(refusals.pop(0), "")
        return real(path, **more)

    monkeypatch.setattr(os, "stat", refused)
    assert presence.exists("/")
    assert refusals == []
