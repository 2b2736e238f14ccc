"""The metadata record as files: the same for the same tree, whole or refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tracemalloc
import zlib
from pathlib import Path

import pytest

from kopiatomic.errors import KopiatomicError
from kopiatomic.model.record import INDEX, EntryKind, RecordedEntry, Shard
from kopiatomic.trees import shards
from kopiatomic.trees.shards import Index, Reading, Writer


def entry(name: str, **more: object) -> RecordedEntry:
    usual = {"kind": EntryKind.FILE, "mode": 0o644, "uid": 1, "gid": 2, "mtime_ns": 1_700_000_000_123_456_789}
    return RecordedEntry(name, **{**usual, **more})  # type: ignore[arg-type]


ENTRIES = [
    entry(".", kind=EntryKind.DIRECTORY),
    entry("a b\n\\ü", size=0, xattrs={"user.x": b"\0\xff", "system.posix_acl_access": b"1"}),
    entry("a\udcff", stored="a\ufffd", size=7, same_as="/top/z\udcfe"),
    entry("link", kind=EntryKind.LINK, target="../\udc80"),
    entry("null", kind=EntryKind.CHARACTER, device=(1, 3), mode=0o1666, flags=0x10, project=7),
    entry("old", mtime_ns=-1),
]


def written(folder: Path, directories: dict[str, list[RecordedEntry]]) -> Writer:
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY)
    try:
        writer = Writer(fd)
        for path, entries in directories.items():
            writer.add(path, entries)
        writer.end({"engine": "kopia", "datasets": []})
    finally:
        os.close(fd)
    return writer


def index(folder: Path) -> Index:
    return shards.read_index((folder / INDEX).read_bytes())


def read(folder: Path) -> dict[str, list[RecordedEntry]]:
    return dict(Reading(index(folder), lambda path: (folder / path).read_bytes()).forward())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    directories = {"/top": ENTRIES, "/top/\udcff": [entry(".", kind=EntryKind.DIRECTORY)]}
    written(tmp_path / "record", {**directories, "/top/nothing": []})
    assert read(tmp_path / "record") == directories
    assert index(tmp_path / "record").about["engine"] == "kopia"


def many(changed: int | None = None) -> dict[str, list[RecordedEntry]]:
    names = {f"/d{number:04}": [entry(f"f{one:02}") for one in range(20)] for number in range(1000)}
    if changed is not None:
        names[f"/d{changed:04}"].append(entry("new"))
    return names


def test_the_same_tree_is_the_same_files_and_a_change_is_in_one(tmp_path: Path) -> None:
    before, again, after = (
        written(tmp_path / name, many(changed)) for name, changed in (("a", None), ("b", None), ("c", 500))
    )
    names = [{shard.name for shard in one.shards} for one in (before, again, after)]
    assert len(names[0]) > 10
    assert names[0] == names[1]
    assert len(names[0] - names[2]) == 1
    assert len(read(tmp_path / "c")) == 1000
    # Engines tell by size and time whether a file has changed.
    indexes = [(tmp_path / name / INDEX).stat() for name in "ac"]
    assert indexes[0].st_mtime != indexes[1].st_mtime
    for path in (tmp_path / "a").rglob("*"):
        same = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.stat().st_mtime_ns == same.stat().st_mtime_ns
        assert path.is_dir() or path.read_bytes() == same.read_bytes()


def test_a_newer_version_says_so(tmp_path: Path) -> None:
    written(tmp_path / "record", {"/": ENTRIES})
    document = json.loads((tmp_path / "record" / INDEX).read_text())
    with pytest.raises(KopiatomicError) as error:
        shards.read_index(json.dumps({**document, "version": 2}).encode())
    assert error.value.kind == "record-newer"
    assert error.value.message == "the metadata record of this backup has version 2, and this kopiatomic knows 1"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"format":"other"}', b'{"format":"kopiatomic-record","version":"1"}']
)
def test_what_is_no_index_is_refused(content: bytes) -> None:
    with pytest.raises(KopiatomicError) as error:
        shards.read_index(content)
    assert error.value.kind == "record-damaged"


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda _: b"", lambda _: gzip.compress(b"{}\n")])
def test_a_damaged_shard_is_refused(damage: object, tmp_path: Path) -> None:
    written(tmp_path / "record", {"/": ENTRIES})
    (shard,) = index(tmp_path / "record").shards
    content = (tmp_path / "record" / shards.path_of(shard)).read_bytes()
    with pytest.raises(KopiatomicError) as error:
        list(shards.read_shard(shard, damage(content)))  # type: ignore[operator]
    assert error.value.kind == "record-damaged"


@pytest.mark.parametrize(
    "more",
    [
        *({"name": name} for name in ("..", "a/b", "", "a\0b", "\ud800", 5)),
        *({"stored": name} for name in ("/etc/shadow", "..", ".", "", "a/b")),
        *({"same_as": path} for path in ("/a/../../etc", "a", "/a//b", "")),
        {"uid": -1},
        {"gid": 1 << 40},
        {"mtime_ns": 10**40},
        {"flags": -1},
        {"size": -1},
        {"device": [-1, 1 << 70]},
        {"device": [1]},
        {"mode": "0644"},
        {"xattrs": {"user.a\0b": ""}},
        {"xattrs": {"user.\ud800": ""}},
        {"target": "a\0b"},
        {"target_base64": "AA=="},
        {"xattrs": {"user.a": "no base 64"}},
        {"kind": "door"},
    ],
    ids=str,
)
def test_an_entry_that_no_filesystem_can_have_is_refused(more: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        shards.decoded({**shards.encoded(entry("x")), **more})


def lines(*parts: RecordedEntry | dict[str, object]) -> bytes:
    documents = (part if isinstance(part, dict) else shards.encoded(part) for part in parts)
    return b"".join(json.dumps(one).encode() + b"\n" for one in documents)


def read_lines(content: bytes, directories: int = 1, entries: int = 1, first: str = "/") -> list[shards.Group]:
    shard = Shard(hashlib.sha256(content).hexdigest(), directories, entries, first)
    return list(shards.read_shard(shard, gzip.compress(content)))


def refuse(content: bytes, directories: int = 1, entries: int = 1, first: str = "/") -> None:
    with pytest.raises(KopiatomicError) as error:
        read_lines(content, directories, entries, first)
    assert error.value.kind == "record-damaged"


@pytest.mark.parametrize("path", ["/../../etc", "etc", "/a/./b", "/a/", "/a\0b"])
def test_a_directory_that_leads_elsewhere_is_refused(path: str) -> None:
    refuse(lines({"directory": path}, entry("x")), first=path)


def packed(head: bytes, repeated: bytes, times: int) -> tuple[bytes, str]:
    """Return a compressed file with very many equal parts, and the digest of what is in it."""
    digest, packer = hashlib.sha256(head), zlib.compressobj(wbits=31)
    parts = [packer.compress(head)]
    for _ in range(times):
        digest.update(repeated)
        parts.append(packer.compress(repeated))
    return b"".join([*parts, packer.flush()]), digest.hexdigest()


@pytest.mark.parametrize(
    "repeated",
    [b"\n" * (1 << 20), b"{}\n" * (1 << 18), b"[" * (1 << 20), b" " * (1 << 20)],
    ids=["empty lines", "objects", "nested", "a long line"],
)
def test_a_small_file_does_not_become_a_large_one_in_memory(repeated: bytes) -> None:
    content, name = packed(b'{"directory":"/"}\n', repeated, 100)
    assert len(content) < 1 << 19
    tracemalloc.start()
    try:
        with pytest.raises(KopiatomicError) as error:
            list(shards.read_shard(Shard(name, 1, 1, "/"), content))
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()
    assert error.value.kind == "record-damaged"


def test_a_shard_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    """A small list would otherwise have the same entries applied any number of times."""
    written(tmp_path / "record", {"/": ENTRIES})
    document = json.loads((tmp_path / "record" / INDEX).read_text())
    with pytest.raises(KopiatomicError) as error:
        shards.read_index(json.dumps({**document, "shards": document["shards"] * 2}).encode())
    assert error.value.kind == "record-damaged"


HEAD: dict[str, object] = {"directory": "/"}


def test_nothing_of_a_shard_is_dropped() -> None:
    assert read_lines(lines(HEAD, entry("x"))) == [("/", [entry("x")])]
    refuse(lines(entry("before"), HEAD, entry("x")), entries=2)
    refuse(lines(HEAD, entry("x")) + lines(entry("y")).rstrip(b"\n"))
    refuse(lines(HEAD, entry("x")), entries=2)
    refuse(lines(HEAD, entry("x")), directories=2)
    refuse(lines(HEAD, entry("x"), entry("y")), directories=2)
    refuse(lines(HEAD, entry("x"), entry("y")))
    refuse(lines(HEAD, entry("x")), first="/home")


def test_the_order_is_that_of_the_walk() -> None:
    here = entry(".", kind=EntryKind.DIRECTORY)
    top: dict[str, object] = {"directory": "/a"}
    inside: dict[str, object] = {"directory": "/a/b"}
    beside: dict[str, object] = {"directory": "/a-b"}
    found = read_lines(lines(top, here, entry("-"), entry("x"), inside, here, beside, here), 3, 5, first="/a")
    assert [path for path, _ in found] == ["/a", "/a/b", "/a-b"]
    # What comes behind the directory itself would be given back when its owner can enter it already.
    refuse(lines(top, entry("-"), here), entries=2, first="/a")
    refuse(lines(top, here, here), entries=2, first="/a")
    refuse(lines(top, entry(".")), first="/a")
    refuse(lines(top, entry("x"), entry("x")), entries=2, first="/a")
    refuse(lines(top, entry("y"), entry("x")), entries=2, first="/a")
    refuse(lines(top, here, top, here), 2, 2, first="/a")
    refuse(lines(inside, here, top, here), 2, 2, first="/a/b")
    refuse(lines(beside, here, inside, here), 2, 2, first="/a-b")


def test_a_directory_without_entries_is_refused() -> None:
    inside: dict[str, object] = {"directory": "/a"}
    refuse(lines(HEAD), entries=0)
    refuse(lines(HEAD, inside, entry("x")), directories=2)
    refuse(lines(HEAD, entry("x"), inside), directories=2)


DATASET = {"dataset": "a", "filesystem": "btrfs", "places": [], "properties": {}}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"users": {"0": "a\0b"}},
        {"groups": {"0": "\ud800"}},
        {"users": {"0": 5}},
        *(
            {"datasets": [{**DATASET, **one}]}
            for one in (
                {"dataset": "\ud800"},
                {"filesystem": "b\0"},
                {"places": [{"path": "/a\ud800"}]},
                {"properties": {"compression": {"value": "\ud800", "source": "local"}}},
                {"properties": {"compression": {"value_base64": "AA==", "source": "local"}}},
                {"properties": {"a\0b": {"value": "x", "source": "local"}}},
            )
        ),
    ],
    ids=ascii,
)
def test_a_text_that_the_system_cannot_be_given_is_refused(more: dict[str, object], tmp_path: Path) -> None:
    written(tmp_path / "record", {"/": ENTRIES})
    content = json.dumps({**json.loads((tmp_path / "record" / INDEX).read_text()), **more}).encode()
    if not more:
        shards.read_index(content)
        return
    with pytest.raises(KopiatomicError) as error:
        shards.read_index(content)
    assert error.value.kind == "record-damaged"


def test_a_mark_of_ours_is_not_taken_from_a_record() -> None:
    """A directory would otherwise say that a restore has left it, or that it is a snapshot of a run."""
    attributes = {"user.a": b"1", "trusted.kopiatomic.restoring": b"2", "trusted.kopiatomic.run": b"3"}
    (found,) = read_lines(lines(HEAD, entry("x", xattrs=attributes)))[0][1]
    assert found.xattrs == {"user.a": b"1"}
