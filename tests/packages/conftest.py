"""Fixtures of the tests of what is installed: our packages, and clean machines of both Debian suites."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packages.booted import PASSWORD, Host
from tests.packages.machine import TREE, Machine, booted_machine, machine
from tests.support.filesystems import Btrfs, mounted_btrfs
from tests.support.programs import command

SUITES = ("bookworm", "trixie")
OLDER = "0.0.9"


def copied_tree(folder: Path, version: str = "") -> Path:
    """A copy of the tree, with another version if one is named."""
    shutil.copytree(
        TREE, folder, ignore=shutil.ignore_patterns(".*_cache", ".git", ".hypothesis", "__pycache__", "dist")
    )
    if version:
        init = folder / "src/kopiatomic/__init__.py"
        init.write_text(re.sub(r'(__version__ = )"[^"]*"', rf'\1"{version}"', init.read_text()))
    return folder


def built(tree: Path, suite: str = "trixie") -> Path:
    """The Debian package of a tree."""
    command("./build", "deb", cwd=tree, env={**os.environ, "KOPIATOMIC_DEB_SUITE": suite}, timeout=900)
    (package,) = (tree / "dist").glob("*.deb")
    return package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package."""
    return built(copied_tree(tmp_path_factory.mktemp("deb") / "tree"))


@pytest.fixture(scope="session")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a lower version."""
    return built(copied_tree(tmp_path_factory.mktemp("older") / "tree", OLDER))


@pytest.fixture(scope="session")
def made_btrfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Btrfs]]:
    """A folder for machines to exchange files in, and in it a Btrfs filesystem with a subvolume."""
    exchange = tmp_path_factory.mktemp("exchange")
    with mounted_btrfs(exchange / "btrfs") as filesystem:
        (filesystem.subvolume("home") / "letter").write_text("Dear Ann,\n")
        yield exchange, filesystem


@pytest.fixture(scope="session", params=SUITES)
def host(
    request: pytest.FixtureRequest, made_btrfs: tuple[Path, Btrfs], package: Path, older: Path
) -> Iterator[Machine]:
    """A machine with what our package needs, and without it. Whoever installs it removes it again."""
    exchange, _ = made_btrfs
    for file in (package, older):
        shutil.copy(file, exchange)
    with machine(request.param, exchange) as host:
        host.apt("install", "python3-click", "python3-rich")
        yield host


@pytest.fixture(scope="session", params=SUITES)
def booted(
    request: pytest.FixtureRequest,
    made_btrfs: tuple[Path, Btrfs],
    package: Path,
) -> Iterator[Host]:
    exchange, filesystem = made_btrfs
    kopia = shutil.which("kopia")
    assert kopia is not None
    for file in (package, Path(kopia)):
        shutil.copy(file, exchange)
    with booted_machine(request.param, exchange) as machine:
        machine("dpkg", "-i", machine.there(exchange / package.name))
        machine("install", "-m", "0755", "/exchange/kopia", "/usr/local/bin/kopia")
        machine.shell(f"umask 077; printf %s '{PASSWORD}' >/etc/kopia.pw")
        host = Host(machine, machine.there(filesystem.mountpoint / "home"), filesystem)
        host.kopia("repository", "create", "filesystem", "--path=/srv/repository", "--no-persist-credentials")
        yield host
