"""Names that become one where bytes that are no text have one sign."""

from __future__ import annotations

import os
from pathlib import Path

from kopiatomic.engines.names import OddNames, find_breaking, find_collisions

SIGN = "\ufffd"


def made(folder: Path, *names: bytes) -> None:
    for name in names:
        (folder / os.fsdecode(name)).touch()


def test_names_that_become_another_of_their_directory_are_found(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    made(tmp_path, b"plain", "é".encode(), b"alone\xff")
    made(tmp_path / "deep", b"alone\xfe")
    assert find_collisions(None, [str(tmp_path)], SIGN, lambda: True) == OddNames()
    made(tmp_path / "deep" / "er", b"a\xff", b"a\xfe", b"b\xff", f"b{SIGN}".encode(), b"c\xff")
    (tmp_path / "deep" / os.fsdecode(b"d\xff")).mkdir()
    made(tmp_path / "deep", b"d\xfe")
    names = [
        b"deep/d\xfe",
        b"deep/d\xff",
        b"deep/er/a\xfe",
        b"deep/er/a\xff",
        b"deep/er/b\xff",
        "deep/er/b\ufffd".encode(),
    ]
    found = find_collisions(None, [str(tmp_path)], SIGN, lambda: True)
    assert (found.count, sorted(found.paths)) == (6, sorted(f"{tmp_path}/{os.fsdecode(name)}" for name in names))


def test_a_root_stands_for_the_top_and_links_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "view" / "home").mkdir(parents=True)
    made(tmp_path / "view" / "home", b"a\xff", b"a\xfe")
    (tmp_path / "view" / "link").symlink_to(tmp_path / "view" / "home")
    root = os.open(tmp_path / "view", os.O_RDONLY)
    assert find_collisions(root, ["/home", "/link", "/gone"], SIGN, lambda: True).count == 2


def test_it_ends_when_it_is_told_to_and_names_no_more_than_twenty(tmp_path: Path) -> None:
    made(tmp_path, *(b"a%d\xff" % n for n in range(30)), *(b"a%d\xfe" % n for n in range(30)))
    found = find_collisions(None, [str(tmp_path)], SIGN, lambda: True)
    assert (found.count, len(found.paths)) == (60, 20)
    assert find_collisions(None, [str(tmp_path)], SIGN, lambda: False) == OddNames()


def test_directories_whose_names_make_an_engine_fail_are_found_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a/b.odd/c.odd", "d.odd", "e.odd.not"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file.odd").touch()
    (tmp_path / "link.odd").symlink_to("a")
    found = find_breaking(None, [str(tmp_path)], ".odd", lambda: True)
    assert sorted(found.breaking) == [f"{tmp_path}/{name}" for name in ("a/b.odd", "a/b.odd/c.odd", "d.odd")]
    assert find_breaking(None, [str(tmp_path)], ".odd", lambda: False) == OddNames()
    for number in range(30):
        (tmp_path / f"{number}.odd").mkdir()
    assert len(find_breaking(None, [str(tmp_path)], ".odd", lambda: True).breaking) == 20
