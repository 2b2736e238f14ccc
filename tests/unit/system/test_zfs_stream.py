"""Streams that no real pool sends on request: cut off, refused, of another kind. What it sends: tests/zfs/test_volumes.py."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from kopiatomic.system import libzfs_core, zfs_stream
from kopiatomic.system.zfs_stream import VolumeReader

BLOCK = 8192


def record(kind: int, body: bytes = b"", payload: int = 0) -> bytes:
    return (struct.pack("=II", kind, payload) + body).ljust(312, b"\0")


BEGIN = record(0, struct.pack("=Q", 0x2F5BACBAC), payload=40) + bytes(40)
END = record(5)


def object_(number: int) -> bytes:
    return record(1, struct.pack("=QIIII", number, 23, 0, BLOCK, 3)) + bytes(8)


def write(offset: int, data: bytes, number: int = 1, compression: int = 0) -> bytes:
    fields = struct.pack("=QIIQQQBBB", number, 23, 0, offset, len(data), 0, 0, 0, compression)
    return record(3, fields) + data


class Sender:
    """In the place of ``zfs send``: sends some bytes, and ends with a number."""

    def __init__(self, stream: bytes, number: int = 0) -> None:
        self.stream = stream
        self.number = number
        self.offsets: list[int] = []

    def __call__(self, _snapshot: str, fd: int, number: int, offset: int) -> None:
        assert number == 1
        self.offsets.append(offset)
        try:
            os.write(fd, self.stream)
        except BrokenPipeError:
            raise libzfs_core.ZfsCallError("send", errno.EPIPE, {}) from None
        if self.number:
            raise libzfs_core.ZfsCallError("send", self.number, {})


def reader(monkeypatch: pytest.MonkeyPatch, stream: bytes, number: int = 0) -> tuple[VolumeReader, Sender]:
    sender = Sender(stream, number)
    monkeypatch.setattr(libzfs_core, "send_object", sender)
    return VolumeReader("tank/v@s"), sender


def test_holes_are_zeros_and_blocks_are_cut_to_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    free = record(4, struct.pack("=QQQ", 1, 0, BLOCK)) + record(2, struct.pack("=QQ", 3, 9))
    stream = BEGIN + object_(1) + free + write(BLOCK, b"a" * BLOCK) + write(4 * BLOCK, b"b" * BLOCK) + object_(2) + END
    volume, sender = reader(monkeypatch, stream)
    whole = bytes(BLOCK) + b"a" * BLOCK + bytes(2 * BLOCK) + b"b" * BLOCK + bytes(3 * BLOCK)
    assert volume.read(0, 100) == whole[:100]
    assert volume.read(100, BLOCK) == whole[100 : 100 + BLOCK]
    assert volume.read(100 + BLOCK, 7 * BLOCK - 100) == whole[100 + BLOCK :]
    assert sender.offsets == [0]
    assert volume.read(BLOCK + 5, 10) == b"a" * 10
    assert sender.offsets == [0, BLOCK + 5]


def test_a_few_places_are_read_in_turn_without_beginning_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zfs_stream, "_SKIP", BLOCK)
    volume, sender = reader(monkeypatch, BEGIN + b"".join(write(n * BLOCK, bytes([n]) * BLOCK) for n in range(8)) + END)
    places = [0, 100 * BLOCK, 200 * BLOCK, 300 * BLOCK]
    for step in range(4):
        for place in places:
            expected = bytes([step]) * BLOCK if place == 0 else bytes(BLOCK)
            assert volume.read(place + step * BLOCK, BLOCK) == expected
    assert sender.offsets == places


@pytest.mark.parametrize(
    ("stream", "number", "expected"),
    [
        pytest.param(BEGIN + write(0, b"a" * BLOCK)[:5000], 0, errno.EIO, id="cut off"),
        pytest.param(BEGIN, errno.EIO, errno.EIO, id="a block that cannot be read"),
        pytest.param(b"", errno.EBUSY, errno.EBUSY, id="refused"),
        pytest.param(BEGIN + write(0, b"a" * BLOCK, compression=15) + END, 0, errno.EIO, id="compressed"),
        pytest.param(BEGIN + record(8) + END, 0, errno.EIO, id="of another kind"),
        pytest.param(bytes(312), 0, errno.EIO, id="no stream"),
    ],
)
def test_what_is_not_read_whole_is_an_error(
    stream: bytes, number: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, _ = reader(monkeypatch, stream, number)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        volume.read(0, 2 * BLOCK)
    assert caught.value.errno == expected
