"""What is installed without a package manager, on clean machines of both suites: by pipx, by uv, and as one file.

Each installs, runs, upgrades and is removed; the network that they would use is a folder of wheels.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kopiatomic import __version__
from tests.packages.conftest import OLDER, copied_tree
from tests.packages.machine import TREE, Machine
from tests.support.filesystems import Btrfs
from tests.support.programs import command

pytestmark = pytest.mark.in_part(3)

PROGRAM = "/usr/local/bin/kopiatomic"


@pytest.fixture(scope="session")
def trees(made_btrfs: tuple[Path, Btrfs]) -> tuple[Path, Path]:
    """Two copies of the tree as a machine names them: one of a lower version, and this one."""
    exchange, _ = made_btrfs
    for name, version in (("older-tree", OLDER), ("tree", "")):
        copied_tree(exchange / name, version)
        command("./build", "pyz", cwd=exchange / name, timeout=300)
    return Path("/exchange/older-tree"), Path("/exchange/tree")


@pytest.fixture(scope="session")
def wheels(made_btrfs: tuple[Path, Btrfs]) -> Path:
    """What pip and uv would download, as a machine names it; ``uv`` is beside them."""
    exchange, _ = made_btrfs
    folder = exchange / "wheels"
    shutil.copytree(command(TREE / "dev/wheels", timeout=600).stdout.strip(), folder)
    (wheel,) = folder.glob("uv-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (program,) = [name for name in archive.namelist() if name.endswith("/scripts/uv")]
        (folder / "uv").write_bytes(archive.read(program))
    (folder / "uv").chmod(0o755)
    return Path("/exchange/wheels")


def it_installs_runs_upgrades_and_is_removed(
    host: Machine, made_btrfs: tuple[Path, Btrfs], install: Callable[[int], Sequence[str]], remove: Sequence[str]
) -> None:
    """``install`` is what installs the lower version (0), and this one over it (1)."""
    home = host.there(made_btrfs[1].mountpoint / "home")
    for number, version in enumerate((OLDER, __version__)):
        host(*install(number), timeout=180)
        assert host(PROGRAM, "--version").stdout == f"kopiatomic {version}\n"
    assert "Usage: kopiatomic" in host(PROGRAM, "-h").stdout
    assert str(home) in host(PROGRAM, "-n", "-c", "true", home).stdout
    host(PROGRAM, "--quiet", "-c", "true", home)
    host(*remove)
    # The records and the folder of its locks are the user's to remove.
    host("rm", "-r", "/var/lib/kopiatomic", "/run/kopiatomic")
    # pipx keeps a log of what it did.
    left = host.shell(
        "find / /run -xdev ! -path '/proc/*' ! -path '*/log*/*' ! -path '/exchange*' -name '*kopiatomic*'"
    )
    assert left.stdout == ""


@pytest.mark.in_part(1)
def test_pipx_installs_it(
    host: Machine, made_btrfs: tuple[Path, Btrfs], trees: tuple[Path, Path], wheels: Path
) -> None:
    host.apt("install", "pipx")
    settings = ["PIPX_HOME=/opt/pipx", "PIPX_BIN_DIR=/usr/local/bin", "PIPX_MAN_DIR=/usr/local/share/man"]
    # pipx brings itself a pip, from Debian's wheels.
    settings.append(f"PIP_FIND_LINKS={wheels} /usr/share/python-wheels")
    pipx = ["env", *settings, "PIP_NO_CACHE_DIR=1", "PIP_NO_INDEX=1", "pipx"]
    it_installs_runs_upgrades_and_is_removed(
        host,
        made_btrfs,
        lambda number: [*pipx, "install", "--force", str(trees[number])],
        [*pipx, "uninstall", "kopiatomic"],
    )


def test_uv_installs_it(host: Machine, made_btrfs: tuple[Path, Btrfs], trees: tuple[Path, Path], wheels: Path) -> None:
    settings = [
        "UV_TOOL_DIR=/opt/uv",
        "UV_TOOL_BIN_DIR=/usr/local/bin",
        "UV_CACHE_DIR=/tmp/uv-cache",
        "UV_LINK_MODE=copy",
    ]
    sources = ["UV_OFFLINE=1", "UV_NO_INDEX=1", f"UV_FIND_LINKS={wheels}", "UV_PYTHON=/usr/bin/python3"]
    uv = ["env", *settings, *sources, str(wheels / "uv")]
    try:
        it_installs_runs_upgrades_and_is_removed(
            host,
            made_btrfs,
            lambda number: [*uv, "tool", "install", "--force", str(trees[number])],
            ["sh", "-ec", '"$@" && rm -r /tmp/uv-cache', "sh", *uv, "tool", "uninstall", "kopiatomic"],
        )
    finally:
        host("rm", "-rf", "/tmp/uv-cache")


def test_the_one_file_is_copied(host: Machine, made_btrfs: tuple[Path, Btrfs], trees: tuple[Path, Path]) -> None:
    it_installs_runs_upgrades_and_is_removed(
        host,
        made_btrfs,
        lambda number: ["install", str(trees[number] / "dist/kopiatomic.pyz"), PROGRAM],
        ["rm", PROGRAM],
    )
