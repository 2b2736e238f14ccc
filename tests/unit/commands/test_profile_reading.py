"""Which files root reads as profiles: none that another user has led it to, and none to act on that others can change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kopiatomic.commands import profile as commands
from kopiatomic.commands.profiles import Folder
from kopiatomic.config.invocation import Invocation
from kopiatomic.output.console import Console

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="it is about what root reads for others")

ANN = 12345


@pytest.fixture
def ann(tmp_path: Path) -> Path:
    """A user's folder."""
    folder = tmp_path / "ann"
    folder.mkdir()
    os.chown(folder, ANN, ANN)
    return folder


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of root's, like /etc/shadow."""
    path = tmp_path / "shadow"
    path.touch(0o600)
    path.write_text("root:hunter2zz\n")
    return path


Said = Callable[..., tuple[int, str]]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Said:
    """``profile check --file`` as root: its exit code, and all that it wrote."""

    def check(path: Path, *, offline: bool) -> tuple[int, str]:
        folder = Folder(str(path.parent), top=str(path.parent))
        code = commands.check((), str(path), folder, Console(), Invocation(), offline=offline)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return check


def users(path: Path, text: str) -> Path:
    path.write_text(text)
    os.chown(path, ANN, ANN)
    return path


def test_a_base_that_a_user_can_change_is_not_acted_on(tmp_path: Path, check: Said) -> None:
    """The check as root runs commands that a profile names."""
    ran = tmp_path / "ran"
    users(
        tmp_path / "_base.toml",
        f'[engine]\nengine = "kopia"\n[engine.environment]\nX = {{command = ["touch", "{ran}"]}}',
    )
    path = tmp_path / "home.toml"
    path.write_text('extends = "_base"\n[select]\nall = true\n')
    code, said = check(path, offline=False)
    assert code == 1
    assert f"{tmp_path}/_base.toml is used by root, and user {ANN} can change" in said
    assert not ran.exists()


@pytest.mark.parametrize("offline", [True, False])
def test_no_file_that_a_user_has_linked_is_quoted(ann: Path, secret: Path, check: Said, offline: bool) -> None:
    (ann / "_s.toml").symlink_to(secret)
    path = users(ann / "x.toml", 'extends = "_s"\n[select]\nall = true\n')
    code, said = check(path, offline=offline)
    assert code == 1
    assert "hunter2zz" not in said
    if offline:
        assert f"{ann}/_s.toml is a link, and user {ANN} can change {ann}" in said


@pytest.mark.parametrize("way", ["itself", "folder", "hard link"])
def test_nor_one_that_is_reached_in_other_ways(ann: Path, secret: Path, check: Said, way: str) -> None:
    path = ann / "x.toml"
    if way == "itself":
        path.symlink_to(secret)
    elif way == "folder":
        (secret.parent / "closed").mkdir(0o700)
        os.rename(secret, secret.parent / "closed" / "x.toml")
        (ann / "there").symlink_to(secret.parent / "closed")
        path = ann / "there" / "x.toml"
    else:
        os.link(secret, path)
    code, said = check(path, offline=True)
    assert (code, "hunter2zz" in said, "is not read by root" in said) == (1, False, True), said


def test_the_files_of_a_user_and_the_links_of_root_are_read(tmp_path: Path, ann: Path, check: Said) -> None:
    users(ann / "_base.toml", "[select]\nall = true\n").chmod(0o600)
    path = users(ann / "x.toml", 'extends = "_base"\n')
    assert check(path, offline=True)[0] == 0
    (tmp_path / "real.toml").write_text("[select]\nall = true\n")
    (tmp_path / "linked.toml").symlink_to("real.toml")
    assert check(tmp_path / "linked.toml", offline=True)[0] == 0
