"""Archives as a stream: in pieces of any size, in all forms that Python writes, and never less than the whole."""

from __future__ import annotations

import io
import tarfile

import pytest

from kopiatomic.engines.tar import TarError, TarStream

FILES = {
    "plain": b"content",
    "empty": b"",
    "block": b"b" * 512,
    "a\udcff\nb": b"odd",
    "ünï": b"text",
    "d/" * 120 + "long": b"l" * 1500,
    "n" * 250: b"name",
}


class Kept:
    """A receiver that keeps everything."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.ended: list[str] = []
        self._path = ""

    def begin(self, path: str, size: int) -> bool:
        assert size == len(FILES[path])
        self._path, self.files[path] = path, b""
        return True

    def piece(self, data: bytes) -> None:
        assert data
        self.files[self._path] += data

    def end(self) -> None:
        self.ended.append(self._path)

    def same(self, path: str, other: str) -> None:
        self.links[path] = other


def archive(form: int) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=form, errors="surrogateescape") as tar:
        for name, content in FILES.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_234_567_890.123
            tar.addfile(info, io.BytesIO(content))
        for name, kind, target in (
            ("folder", tarfile.DIRTYPE, ""),
            ("link", tarfile.SYMTYPE, "x" * 200),
            ("hard", tarfile.LNKTYPE, "d/" * 120 + "long"),
            ("fifo", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    return written.getvalue()


FORMS = pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])


@FORMS
@pytest.mark.parametrize("size", [1, 7, 512, 1 << 16])
def test_files_come_whole_in_pieces_of_any_size(form: int, size: int) -> None:
    kept, data = Kept(), archive(form)
    stream = TarStream(kept, lambda name: name)
    for start in range(0, len(data), size):
        stream.feed(data[start : start + size])
    stream.finish()
    assert kept.files == FILES
    assert kept.ended == list(FILES)
    assert kept.links == {"hard": "d/" * 120 + "long"}
    assert stream.files == len(FILES) + 1


@FORMS
def test_an_archive_that_is_cut_anywhere_is_not_whole(form: int) -> None:
    data = archive(form)
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    for cut in (*range(0, end + 1024, 64), end + 1023):
        kept = Kept()
        stream = TarStream(kept, lambda name: name)
        stream.feed(data[:cut])
        with pytest.raises(TarError, match="ends before the end"):
            stream.finish()
        assert all(kept.files[path] == FILES[path] for path in kept.ended)


def negative() -> bytes:
    """Return the header of a file of -1 bytes, which the form of GNU can say."""
    header = tarfile.TarInfo("x")
    header.size = -1
    return header.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        # Its first byte of content would be taken for ever.
        (negative(), "a negative size"),
        (b"x" * 512, "a header is damaged"),
        (b"no archive at all".ljust(512, b"\0"), "a header is damaged"),
        (b"\0" * 512 + archive(tarfile.GNU_FORMAT), "behind a block of zeros"),
    ],
)
def test_what_is_no_archive_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(TarError, match=why):
        TarStream(Kept(), lambda name: name).feed(data)


@pytest.mark.parametrize("record", [b"9999 path=x\n", b"x path=x\n", b"10 path=xy", b"3 =\n", b"0 path=x\n"])
def test_a_damaged_extension_is_refused(record: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    with pytest.raises(TarError, match="extended header is damaged"):
        TarStream(Kept(), lambda name: name).feed(header.tobuf(tarfile.USTAR_FORMAT) + record)


def test_a_size_that_a_plain_header_has_no_room_for() -> None:
    """Of GNU in the header itself, of pax in the extension: 10 TiB, of which the beginning is enough."""
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        sizes: list[int] = []

        class Sizes(Kept):
            def begin(self, path: str, size: int) -> bool:  # noqa: ARG002
                sizes.append(size)  # noqa: B023
                return False

        info = tarfile.TarInfo("huge")
        info.size = 10 << 40
        TarStream(Sizes(), lambda name: name).feed(info.tobuf(form))
        assert sizes == [10 << 40]
