"""A ZFS dataset of a backup becomes a new one: what cannot be set later is set at once, printed commands set the rest."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.filesystems import Pool, imported_pool
from tests.support.programs import Completed, Kopia, command
from tests.zfs.runs import Runner

pytestmark = pytest.mark.in_part(1)

AT_ONCE = {
    "recordsize": "1048576",
    "compression": "zstd",
    "casesensitivity": "insensitive",
    "normalization": "formD",
    "utf8only": "on",
    "acltype": "posix",
    "xattr": "sa",
    "atime": "off",
    "quota": str(90 << 20),
    "refquota": str(80 << 20),
}
RECEIVED = {
    "copies": "2",
    "logbias": "throughput",
    "org:received": "with a stream",
}
LATER = {
    "checksum": "sha256",
    "primarycache": "metadata",
    "secondarycache": "none",
    "sync": "always",
    "snapdir": "visible",
    "relatime": "on",
    "redundant_metadata": "most",
    "dnodesize": "auto",
    "exec": "off",
    "setuid": "off",
    "devices": "off",
    "nbmand": "off",
    "vscan": "off",
    "snapshot_limit": "100",
    "filesystem_limit": "none",
    "reservation": str(1 << 20),
    "refreservation": str(1 << 20),
    "org:plain": "home of everybody",
    "org:quoted": 'it\'s "$(touch /tmp/done-by-a-property)" `id` \\n %s \\',
    "org:lines": "one\ntwo\n\n",
    "org:tab": "a\tb",
    "org:escape": "\x1b[31mred",
    "org:text": "Grüße, 日本",
    "org:empty-ish": " ",
}


@pytest.fixture(scope="module")
def tank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with imported_pool(tmp_path_factory.mktemp("tank") / "pool", size=400 << 20) as pool:
        yield pool


def furnished(top: Path) -> None:
    (top / "Folder").mkdir()
    (top / "Folder/file").write_bytes(os.urandom(200_000))
    os.link(top / "Folder/file", top / "another name")
    (top / "link").symlink_to("Folder/file")
    os.mkfifo(top / "pipe", 0o640)
    os.setxattr(top / "Folder/file", "user.note", b"\0\xff")
    os.chown(top / "Folder", 1234, 5678)
    (top / "Folder").chmod(0o2750)
    command("chmod", "1777", top)
    for path in (top / "Folder/file", top / "Folder", top):
        os.utime(path, ns=(1, 1_600_000_000_123_456_789))


def listed(top: Path) -> dict[str, Any]:
    """All that there is of a tree."""
    found: dict[str, Any] = {}
    # With snapdir=visible there is also a directory of ZFS's.
    for path in [top, *(path for path in sorted(top.rglob("*")) if ".zfs" not in path.parts)]:
        status = path.lstat()
        xattrs = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        numbers = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, path == top or status.st_nlink)
        found[str(path.relative_to(top))] = (*numbers, xattrs, content)
    return found


def properties(dataset: str) -> dict[str, tuple[str, str]]:
    """Value and source of each, one after the other: values have tabs and newlines."""
    names = command("zfs", "get", "-Hp", "-o", "property,source", "all", dataset).stdout.splitlines()
    found = {}
    for name, _, source in (line.partition("\t") for line in names):
        value = command("zfs", "get", "-Hp", "-o", "value", name, dataset).stdout.removesuffix("\n")
        found[name] = value, source
    return found


def restore(run: Runner, kopia: Kopia, *words: str, environment: dict[str, str] | None = None) -> Completed:
    return run("restore", "latest", *words, env={**kopia.environment, **(environment or {})})


def saved(run: Runner, kopia: Kopia, *datasets: str) -> None:
    ended = run("--no-maintenance", *datasets, env=kopia.environment)
    assert ended.returncode == 0, ended


def test_a_dataset_with_thirty_properties(tank: Pool, run: Runner, kopia: Kopia, tmp_path: Path) -> None:
    birth = {key: AT_ONCE[key] for key in ("casesensitivity", "normalization", "acltype")}
    origin = tank.dataset("origin", **birth, **RECEIVED)
    home = f"{tank.name}/home"
    lines = f"zfs snapshot {origin}@s; zfs send -p {origin}@s | zfs receive -u {home}; zfs destroy {home}@s"
    command("sh", "-e", "-c", lines)
    place = tmp_path / "home"
    # What looks like another property is none.
    spoofing = {"org:spoof": f"x\n{home}\tmountpoint\tlocal\t/tmp/spoofed"}
    settings = {
        **spoofing,
        **{key: value for key, value in AT_ONCE.items() if key not in {*birth, "utf8only"}},
        **LATER,
    }
    for key, value in settings.items():
        command("zfs", "set", f"{key}={value}", home)
    command("zfs", "set", f"mountpoint={place}", home)
    command("zfs", "mount", home, check=False)
    furnished(place)
    (place / "ÄRGER").write_text("normal")
    os.utime(place, ns=(1, 1_600_000_000_123_456_789))
    there, tree = properties(home), listed(place)
    recorded = {
        key: value
        for key, (value, source) in there.items()
        if source in {"local", "received"} and key not in {"filesystem_count", "snapshot_count"}
    }
    assert len(recorded) >= 30
    assert {source for _, source in there.values()} >= {"local", "received"}
    saved(run, kopia, home)

    secret = tmp_path / "key"
    secret.write_bytes(bytes(32))
    vault = tank.dataset("vault", encryption="on", keyformat="raw", keylocation=f"file://{secret}", compression="off")
    new = f"{vault}/home"
    # A machine that has never seen the run.
    fresh = {"KOPIATOMIC_STATE_DIR": str(tmp_path / "fresh")}
    ended = restore(run, kopia, "--dataset", home, "--as", new, environment=fresh)
    assert ended.returncode == 0, ended
    made = properties(new)
    # OpenZFS 2.3 calls xattr=sa on.
    assert {name: there[name][0] for name in AT_ONCE} in (AT_ONCE, {**AT_ONCE, "xattr": "on"})
    assert {name: made[name][0] for name in AT_ONCE} == {name: there[name][0] for name in AT_ONCE}
    assert (made["mounted"][0], made["canmount"], made["encryptionroot"][0]) == ("no", ("noauto", "local"), vault)
    assert "kopiatomic:restoring" not in made

    commands = [line for line in ended.stdout.splitlines() if not line.startswith(("Restored", "Metadata"))]
    assert all(line.isprintable() for line in commands)
    different = {name for name, value in recorded.items() if made.get(name, ("",))[0] != value}
    assert different
    assert all(any(f"{name}=" in line for line in commands) for name in different)
    command("zfs", "unmount", home)
    ended_commands = subprocess.run(
        ["sh", "-e", "-c", "\n".join(commands)], check=False, capture_output=True, text=True
    )
    assert ended_commands.returncode == 0, ended_commands
    assert not Path("/tmp/done-by-a-property").exists()
    after = properties(new)
    assert {name: after[name] for name in recorded} == {name: (value, "local") for name, value in recorded.items()}
    # What is different now is what nobody can set, and what the new place decides.
    for name in there.keys() | after.keys():
        (one, source), (other, _) = there.get(name, ("", "")), after.get(name, ("", ""))
        if one != other and source not in {"-", ""}:
            assert name in {"canmount", "encryption", "keyformat", "keylocation"}, (name, one, other)
    assert after["canmount"] == ("on", "local")
    assert listed(place) == tree
    assert (place / "folder/FILE").exists()
    command("zfs", "unmount", new)
    for name in (new, vault, origin, home):
        command("zfs", "destroy", "-r", name, check=False)


@pytest.fixture
def two(tank: Pool, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A dataset in another, each with files."""
    name = f"two-{tmp_path.name[-12:].strip('-_')}"
    above = tank.dataset(name, compression="off")
    furnished(tank.path(name))
    nested = tank.dataset(f"{name}/nested", atime="off")
    furnished(tank.path(f"{name}/nested"))
    os.utime(tank.path(name), ns=(1, 1_600_000_000_123_456_789))
    yield above, nested
    command("zfs", "destroy", "-r", above)
    command("zfs", "destroy", "-r", f"{tank.name}/back", check=False)


def at(tank: Pool, dataset: str) -> Path:
    return tank.path(dataset.partition("/")[2])


def test_several_datasets_one_by_one(tank: Pool, run: Runner, kopia: Kopia, two: tuple[str, str]) -> None:
    above, nested = two
    tree, tree_of_nested = listed(at(tank, above)), listed(at(tank, nested))
    saved(run, kopia, "-r", above)
    ended = restore(run, kopia, "--dataset", above, "--as", f"{tank.name}/back", "--json")
    assert ended.returncode == 0, ended
    document = json.loads(ended.stdout)
    assert (document["others"], document["target"]) == ([nested], f"{tank.name}/back")
    assert document["commands"] == [f"zfs set canmount=on {tank.name}/back", f"zfs mount {tank.name}/back"]
    command("sh", "-e", "-c", "\n".join(document["commands"]))
    back = tank.path("back")
    assert os.listdir(back / "nested") == []
    ended = restore(run, kopia, "--dataset", nested, "--as", f"{tank.name}/back/nested", "--json")
    assert ended.returncode == 0, ended
    command("sh", "-e", "-c", "\n".join(json.loads(ended.stdout)["commands"]))
    assert listed(back / "nested") == tree_of_nested
    assert listed(back) == tree


def test_what_is_wrong_is_said_and_nothing_stays(
    tank: Pool, run: Runner, kopia: Kopia, two: tuple[str, str], tmp_path: Path
) -> None:
    above, nested = two
    saved(run, kopia, "-r", above)
    before = command("zfs", "list", "-H", "-o", "name", "-r", tank.name).stdout
    for new, why in (
        (nested, "exists, and nothing may be overwritten"),
        (tank.name, "is not the name of a dataset in a pool"),
        ("-V", "is not the name of a dataset in a pool"),
        (f"{tank.name}/none/back", "parent does not exist"),
        ("no-such-pool/back", "cannot be made"),
        (f"{tank.name}/ba,ck", "invalid character"),
    ):
        ended = restore(run, kopia, "--dataset", above, f"--as={new}")
        assert (ended.returncode, why in ended.stderr) == (1, True), ended
    closed = tank.dataset("closed", readonly="on")
    ended = restore(run, kopia, "--dataset", above, f"--as={closed}/back")
    assert (ended.returncode, "Read-only file system" in ended.stderr) == (1, True), ended
    command("zfs", "destroy", closed)
    failing = tmp_path / "failing"
    failing.write_text(f'#!/bin/sh\ncase "$*" in *--mode=local*) exit 1;; esac\nexec {shutil.which("kopia")} "$@"\n')
    failing.chmod(0o755)
    failed = {"KOPIATOMIC_KOPIA": str(failing)}
    ended = restore(run, kopia, "--dataset", above, f"--as={tank.name}/back", environment=failed)
    assert ended.returncode == 1, ended
    assert command("zfs", "list", "-H", "-o", "name", "-r", tank.name).stdout == before


@pytest.mark.parametrize("after", [0.2, 0.6, 1.0])
def test_a_killed_restore_goes_on(tank: Pool, run: Runner, kopia: Kopia, two: tuple[str, str], after: float) -> None:
    above, _ = two
    tree = listed(at(tank, above))
    saved(run, kopia, "-r", above)
    new = f"{tank.name}/back"
    with run.started("restore", "latest", "--dataset", above, "--as", new, env=kopia.environment) as started:
        time.sleep(after)
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
    ended = restore(run, kopia, "--dataset", above, "--as", new)
    if ended.returncode != 0:
        # It had already ended.
        assert "exists, and nothing may be overwritten" in ended.stderr, ended
    assert properties(new).get("kopiatomic:restoring") is None
    command("sh", "-e", "-c", f"zfs set canmount=on {new}; zfs mount {new}")
    back = listed(tank.path("back"))
    assert {path: one for path, one in back.items() if path != "nested"} == {
        path: one for path, one in tree.items() if not path.startswith("nested")
    }
