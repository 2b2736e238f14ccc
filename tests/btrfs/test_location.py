"""Whether an engine's own files lie on what a run takes, by what really holds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopia, command

pytestmark = pytest.mark.in_part(3)

Run = Callable[..., Completed]


@pytest.fixture
def data(btrfs: Btrfs, kopia: Kopia) -> Path:
    """A subvolume with the repository in it."""
    data = btrfs.subvolume("data")
    command("cp", "-a", kopia.repository, data / "repository")
    return data


def moved(kopia: Kopia, place: Path) -> dict[str, str]:
    """kopia's environment, connected to the repository at another place."""
    config = Path(kopia.environment["KOPIA_CONFIG_PATH"])
    config.write_text(config.read_text().replace(str(kopia.repository), str(place)))
    return kopia.environment


@pytest.mark.parametrize("how", ["directly", "link", "bind"])
def test_a_repository_on_what_is_taken_is_found(how: str, data: Path, kopia: Kopia, run: Run, tmp_path: Path) -> None:
    """Implied it is refused; named it is backed up into itself, with a warning."""
    place = data / "repository"
    if how == "link":
        place = tmp_path / "link"
        place.symlink_to(data / "repository")
    elif how == "bind":
        place = tmp_path / "bound"
        place.mkdir()
        command("mount", "--bind", data / "repository", place)
    environment = moved(kopia, place)
    try:
        implied = run("-r", "--json", data.parent, env=environment)
        named = run(data, env=environment)
    finally:
        if how == "bind":
            command("umount", place)
    assert implied.returncode == 1
    assert '"kind": "repository-in-selection"' in implied.stdout
    assert f"kopia's repository {place} lies on {data}, which" in implied.stderr
    assert f"warning: kopia's repository {place} lies on {data}, which is in this backup" in named.stderr


def test_a_repository_in_a_subvolume_below_that_is_not_taken_is_no_concern(
    btrfs: Btrfs, data: Path, kopia: Kopia, run: Run
) -> None:
    inner = btrfs.subvolume("data/inner")
    command("mv", data / "repository", inner / "repository")
    (data / "file").write_text("then")
    ended = run(data, env=moved(kopia, inner / "repository"))
    assert "lies on" not in ended.stderr, str(ended)
