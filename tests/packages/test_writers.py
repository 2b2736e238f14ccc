"""Services of systemd and containers of Podman that the installed program holds still, on clean machines of both suites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import pytest

from tests.btrfs.conftest import wait_for
from tests.packages.booted import Host
from tests.support.parts import share
from tests.support.programs import Completed, command
from tests.support.schema import valid
from tests.unit.support.holders import IN_ORDER, count_torn, is_torn

pytestmark = pytest.mark.in_part(2)

SETS = share(20, 2)

IMAGE = """
mkdir -p /tmp/image/usr
for name in bin lib lib64; do ln -s usr/$name /tmp/image/$name; done
tar -C /tmp/image -c . | podman import --quiet - ours
"""
"""One with nothing in it: this machine's programs are mounted there."""


def as_service(host: Host, *words: str) -> Completed:
    """Run a command as systemd runs one: with this machine's control groups around it."""
    return host.run("systemd-run", "--quiet", "--wait", "--collect", *words)


@contextmanager
def unit(host: Host, words: Sequence[str]) -> Iterator[str]:
    host.run("systemd-run", "--quiet", "--unit=writer", *words)
    try:
        yield "unit:writer.service"
    finally:
        host.run("systemctl", "kill", "--signal=KILL", "writer")
        host.run("systemctl", "reset-failed", check=False)


@contextmanager
def container(host: Host, words: Sequence[str]) -> Iterator[str]:
    if not host.run.path("/tmp/image").exists():
        as_service(host, "sh", "-ec", IMAGE)
    volumes = ("--volume=/usr:/usr:ro", "--volume=/exchange:/exchange")
    # Limits on devices are programs that only somebody with CAP_SYS_RESOURCE can load, which we need not have.
    how = ("--name=writer", "--network=none", "--privileged", "--pull=never")
    host.run("systemd-run", "--quiet", "--unit=container", "podman", "run", *how, *volumes, "ours", *words)
    try:
        yield "container:writer"
    finally:
        as_service(host, "podman", "rm", "--force", "--time=0", "writer")
        host.run("systemctl", "reset-failed", check=False)


Start = Callable[[Host, Sequence[str]], AbstractContextManager[str]]


@pytest.fixture
def files(booted: Host) -> Iterator[list[str]]:
    """A file in each of four subvolumes, as the machine names it."""
    subvolumes = [booted.filesystem.subvolume(name) for name in "abcd"]
    yield [str(booted.run.there(path) / "file") for path in subvolumes]
    for path in subvolumes:
        command("btrfs", "subvolume", "delete", path)


@pytest.fixture(params=[unit, container], ids=["unit", "container"])
def writer(request: pytest.FixtureRequest, booted: Host, files: list[str]) -> Iterator[str]:
    """What writes the same growing number to each, one after the other; how --hold names it."""
    (booted.run.exchange / "writer.py").write_text(IN_ORDER)
    start: Start = request.param
    with start(booted, ["/usr/bin/python3", "/exchange/writer.py", "written", *files]) as name:
        wait_for(lambda: len(booted.run("cat", *files, check=False).stdout) == 4 * 4096, "the first number", within=60)
        yield name


def backup(host: Host, files: Sequence[str], *words: str) -> Completed:
    """A whole run, whose engine says which numbers are in the files of the view."""
    reads = "; ".join(f"od -An -t u8 -N 8 /kopia{file}" for file in files)
    places = [file.removesuffix("/file") for file in files]
    return as_service(host, "--pipe", "kopiatomic", "--json", "--verbose", *words, "-c", f"sh -c '{reads}'", *places)


def shows_several_instants(ended: Completed) -> bool:
    """Whether the numbers that its engine read are not of one instant. A file that is still empty has none."""
    found = [int(line) for line in ended.stderr.splitlines() if line.strip().isdecimal()]
    return len(found) != 4 or is_torn(found)


def test_several_subvolumes_are_one_instant_for_what_is_held(booted: Host, files: list[str], writer: str) -> None:
    kind, name = writer.split(":")
    for _ in range(SETS):
        ended = backup(booted, files, "--hold", writer)
        (held,) = valid(ended.stdout)["writers"]
        assert (held["writer"], held["why"]) == (f"{kind} {name}", "frozen before and after")
        assert 0 < held["stall_seconds"] < 2
        assert not shows_several_instants(ended), str(ended)
    wait_for(lambda: booted.leftovers() == [], "the removal of everything")
    listed = ("systemctl", "list-units", "--no-legend", "--plain", "kopiatomic-thaw-*.scope")
    wait_for(lambda: booted.run(*listed).stdout == "", "the end of what thaws")


def test_otherwise_they_are_not(booted: Host, files: list[str], writer: str) -> None:
    """The control: the test above could not fail otherwise."""
    del writer
    assert count_torn(lambda: shows_several_instants(backup(booted, files)), SETS)
