"""Reading what ``kopia snapshot create --json`` writes, also when it is not what it should be."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from kopiatomic.engines.kopia.output import KEEP_RESULT, Output, parse_manifest, parse_progress
from kopiatomic.model.engine import Progress

LINE = " | 0 hashing, 12 hashed (3.4 MB), 3 cached (1 KB), uploaded 0 B, estimated 12 GB (3.2%) 1m20s left   "


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "id": "0123abcd",
        "source": {"host": "h", "userName": "u", "path": "/kopia"},
        "stats": {"cachedFiles": 1, "nonCachedFiles": 2},
        "rootEntry": {"name": "kopia", "type": "d", "obj": "k00", "summ": {"files": 3, "numFailed": 0}},
        **changes,
    }


def line_of(document: object) -> bytes:
    """As kopia writes JSON: one line, no spaces."""
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        (LINE, Progress(15, 3_401_000, 12 * 10**9, "1m20s left")),
        (" * 0 hashing, 3 hashed (4 B), 0 cached (0 B), uploaded 186 B, estimating...", Progress(3, 4, None, "")),
        (" - 2 hashing, 0 hashed (1.5 GiB), 0 cached (0 B), uploaded 2 KiB", Progress(0, 3 << 29, None, "")),
        (
            " \\ 0 hashing, 1 hashed (1 B), 0 cached (0 B), uploaded 0 B (3 fatal errors) (1 errors ignored), estimating...",
            Progress(1, 1, None, ""),
        ),
    ],
)
def test_progress_is_read(line: str, progress: Progress) -> None:
    assert parse_progress(line) == progress


@pytest.mark.parametrize(
    "line",
    ["", "Snapshotting root@vm:/kopia ...", LINE.replace("hashing", "hashes"), LINE + "x", " | 0 hashing, x hashed"],
)
def test_anything_else_is_no_progress(line: str) -> None:
    assert parse_progress(line) is None


def test_a_size_that_is_no_number_is_no_progress() -> None:
    assert parse_progress(LINE.replace("3.4 MB", "3.4.1 MB")) is None


def test_lines_between_progress_pass_through_without_control_characters() -> None:
    output = Output()
    data = (
        b"Snapshotting u@h:/kopia ...\n\r"
        + LINE.encode()
        + b'\n ! Error when processing "a\x1b[31m\xff": no\n\r'
        + LINE.encode()
    )
    found = [f for byte in data for f in output.feed("stderr", bytes([byte]))]
    assert found[0] == "Snapshotting u@h:/kopia ..."
    assert found[2] == ' ! Error when processing "a\\x1b[31m\\xff": no'
    assert isinstance(found[1], Progress)
    assert isinstance(output.feed("stderr", b"")[0], Progress)


def test_one_manifest_is_read_for_each_source_in_any_layout() -> None:
    output = Output()
    other = manifest(source={"path": "/other"})
    output.feed("stdout", b"a stray line {}\n" + line_of(manifest()) + json.dumps(other, indent=2).encode() + b"\n")
    assert [m.path for m in output.manifests()] == ["/kopia", "/other"]


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"garbage\n", b"{", b"[]\n", b"{}\n", b'{"id":"x"}\n', b"\xff\xfe\n", b"null\n", b'{"a":' * 100_000],
)
def test_what_is_no_manifest_is_none(data: bytes) -> None:
    output = Output()
    output.feed("stdout", data)
    assert output.manifests() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"id": None},
        {"id": ""},
        {"id": 7},
        {"rootEntry": None},
        {"rootEntry": {"obj": "k0"}},
        {"rootEntry": {"obj": "k0", "summ": 3}},
        {"source": []},
        {"source": {"path": None}},
        {"stats": 7},
    ],
    ids=str,
)
def test_a_manifest_that_lacks_something_is_none(changes: dict[str, Any]) -> None:
    assert parse_manifest(manifest(**changes)) is None


def test_a_result_cut_in_its_failures_is_still_read() -> None:
    """kopia lists every failed file in its result, so that a million of them give 70 MB of JSON."""
    failures = [{"path": f'd/"errors":[{i}', "error": "permission denied"} for i in range(100_000)]
    document = manifest(tags={"tag:a": "b"})
    document["rootEntry"]["summ"] = {"files": 3, "numFailed": 100_000, "errors": failures}
    output = Output()
    data = line_of(document)
    assert len(data) > KEEP_RESULT
    output.feed("stdout", data)
    (found,) = output.manifests()
    assert found.id == "0123abcd"
    assert found.summary["numFailed"] == 100_000
    assert found.summary["errors"] == failures[:20]


def test_a_flood_does_not_fill_the_memory() -> None:
    output = Output()
    chunk = b"x" * (1 << 16)
    tracemalloc.start()
    for _ in range(1 << 9):
        output.feed("stdout", chunk)
        output.feed("stderr", chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * KEEP_RESULT
    assert output.manifests() == []
    assert len(output.excerpt) < 100


def test_the_last_errors_are_kept_without_progress() -> None:
    output = Output()
    output.feed(
        "stderr", b"Snapshotting u@h:/kopia ...\n\r" + LINE.encode() + b"\nfirst\n\nERROR open repository: last\n"
    )
    assert output.errors() == "first; last"


def test_a_panic_is_told_by_its_first_line() -> None:
    output = Output()
    output.feed("stderr", b"panic: out of luck\n\ngoroutine 1 [running]:\nmain.main()\n\t/x/main.go:7\n")
    assert output.errors() == "panic: out of luck"


FULL = """\
Snapshotting root@vm:/data ...
 ! Error when processing "x": unable to get result: no route to host
unable to write diagnostics blob: unable to complete PutBlobInPath:/repo/_/log/_1.f despite 10 retries: can't write \
temporary file: write /repo/_/log/_1.f.tmp.2: no space left on device
flush error: error flushing contents: error writing pack: can't save pack data blob p9: error writing pack file: unable \
to complete PutBlobInPath:/repo/p/9e9.f despite 10 retries: can't write temporary file: write /repo/p/9.tmp: no space \
left on device
"""
"""As kopia 0.22.3 says it, and takes half a minute for."""


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (FULL, "no space is left (write /repo/p/9.tmp: no space left on device)"),
        (
            "flush error: error flushing contents: error writing pack file: storage is read-only\n",
            "what it writes to is read-only (error writing pack file: storage is read-only)",
        ),
        (
            # Of kopia 0.22.3, whose server was killed while it uploaded.
            'unable to create writer: error establishing session: Session(): rpc error: code = Unavailable desc = "transport: '
            'Error while dialing: dial tcp 127.0.0.1:51999: connect: connection refused"\n',
            "its repository does not answer (connect: connection refused)",
        ),
        (
            "a: b: error reading from server: EOF\nc: d: error reading from server: EOF\n",
            "its repository does not answer (d: error reading from server: EOF)",
        ),
    ],
)
def test_the_cause_is_told_once(said: str, cause: str) -> None:
    output = Output()
    output.feed("stderr", said.encode())
    output.feed("stderr", b"")
    assert output.errors() == cause
