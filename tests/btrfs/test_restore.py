"""Whole backups restored: with each engine, all that a tree has comes back, and what does not is named."""

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
from jsonschema import Draft202012Validator

from kopiatomic.model.record import INDEX, RecordedEntry
from kopiatomic.paths import is_at_or_below
from kopiatomic.trees import shards
from tests.support.exact_tree import BTRFS, KEPT, LOST, NONE, cells, differences, furnish, listed
from tests.support.filesystems import Btrfs
from tests.support.programs import SOURCE, Completed, Kopia, Kopiatomic, command
from tests.support.repositories import Borg, Restic
from tests.support.schema import valid
from tests.support.without_root import NOBODY, as_nobody

pytestmark = pytest.mark.in_part(3)

ENGINES = ("kopia", "restic", "borg")
RECORD = Draft202012Validator(json.loads((SOURCE / "kopiatomic/trees/record.schema.json").read_text()))


class Ground:
    """A tree of a subvolume with one nested in it, an engine with a repository, and where to restore to."""

    def __init__(self, btrfs: Btrfs, root: Path, kopiatomic: Kopiatomic, words: list[str], environment: dict[str, str]):
        self.source = btrfs.subvolume("home")
        furnish(self.source, BTRFS)
        self.nested = btrfs.subvolume("home/nested")
        furnish(self.nested)
        # Making the last has changed the time of the first.
        os.utime(self.source, ns=(0, 1_234_567_890_123_456_789))
        self.root = root
        self.kopiatomic = kopiatomic
        self.words = words
        self.environment = environment
        self.btrfs = btrfs

    @property
    def engine(self) -> str:
        return self.words[1] if self.words else "kopia"

    def run(self, *more: str | Path) -> Any:
        words = ["--mount-root", self.root, "--json", "-r", *more, self.source]
        ended = self.kopiatomic(*words, *self.words, env=self.environment)
        # No engine keeps sockets, and kopia keeps no two names that become the same.
        assert ended.returncode == 0, str(ended)
        return valid(ended.stdout)

    def restore(self, *words: str | Path) -> Completed:
        return self.kopiatomic("restore", *words, *self.words, env=self.environment)

    def target(self, name: str) -> Path:
        """A directory on the same filesystem, which can hold all that the source has."""
        return self.btrfs.mountpoint / name


@pytest.fixture(params=ENGINES)
def ground(
    request: pytest.FixtureRequest, btrfs: Btrfs, root: Path, kopiatomic: Kopiatomic, kopia: Kopia, tmp_path: Path
) -> Iterator[Ground]:
    if request.param == "kopia":
        words, environment = [], kopia.environment
    else:
        repository = {"restic": Restic, "borg": Borg}[request.param](tmp_path / request.param)
        words, environment = repository.words, repository.environment
    made = Ground(btrfs, root, kopiatomic, words, environment)
    yield made
    subprocess.run(["chattr", "-R", "-f", "-i", "-a", btrfs.mountpoint], check=False)


def test_everything_comes_back(ground: Ground) -> None:
    document = ground.run()
    assert document["metadata"]["saved"]
    assert document["metadata"]["unreadable"] == 0
    target = ground.target("back")
    ended = ground.restore("latest", ground.source, "--to", target)
    assert ended.returncode == 0, str(ended)
    assert differences(ground.source, target) == []
    assert sorted(os.listdir(target)) == sorted(os.listdir(ground.source))
    lost = {row: cell for row, cell in cells(listed(ground.source), listed(target)).items() if cell not in {KEPT, NONE}}
    # Engines write holes out.
    assert lost == {"holes in files": LOST}


def test_parts_of_it_come_back(ground: Ground) -> None:
    run = ground.run()["run_id"]
    one, several, whole = map(ground.target, ("one", "several", "whole"))
    ended = ground.restore("latest", ground.source / "setuid", "--to", one)
    assert ended.returncode == 0, str(ended)
    assert os.listdir(one) == ["setuid"]
    paths = [ground.nested / "d", ground.source / "setuid"]
    ended = ground.restore("latest", *paths, "--to", several)
    assert ended.returncode == 0, str(ended)
    assert differences(paths[0], Path(f"{several}{paths[0]}")) == []
    # A snapshot is also known by the run that made it, where the engine keeps that, or by its time.
    what = run if not ground.words else f"{time.strftime('%Y-')}"
    ended = ground.restore(what, "/", "--to", whole, "--json")
    assert ended.returncode == 0, str(ended)
    assert json.loads(ended.stdout)["differences"] == []
    assert not (whole / ".kopiatomic").exists()
    assert differences(ground.source, Path(f"{whole}{ground.source}")) == []


def test_what_is_in_the_record_alone_can_be_restored_by_itself(ground: Ground) -> None:
    """kopia keeps no FIFO and no device, and no engine keeps a socket."""
    ground.run()
    odd = [ground.source / name for name in ("d/pipe", "d/null", "s")]
    for number, paths in enumerate(([odd[0]], [odd[2]], [*odd, ground.source / "setuid"])):
        target = ground.target(f"back-{number}")
        ended = ground.restore("latest", *paths, "--to", target)
        assert ended.returncode == 0, str(ended)
        for path in paths:
            there = target / path.name if len(paths) == 1 else Path(f"{target}{path}")
            was, now = (os.lstat(one) for one in (path, there))
            kept = ("st_mode", "st_uid", "st_gid", "st_rdev", "st_mtime_ns")
            assert [getattr(was, one) for one in kept] == [getattr(now, one) for one in kept]
            assert os.listxattr(path, follow_symlinks=False) == os.listxattr(there, follow_symlinks=False)
    ended = ground.restore("latest", odd[2], "--to", ground.target("none"), "--no-metadata")
    assert ended.returncode == 1, str(ended)
    assert f"{odd[2]} is not in {ground.engine}'s snapshot" in ended.stderr


def test_the_record_is_what_its_schema_says(ground: Ground) -> None:
    ground.run()
    target = ground.target("raw")
    ended = ground.restore("latest", "/.kopiatomic", "--to", target, "--no-metadata")
    assert ended.returncode == 0, str(ended)
    # Nothing was compared.
    assert ended.stdout.startswith("Restored ")
    assert ended.stdout.count("\n") == 1
    RECORD.validate(json.loads((target / INDEX).read_text()))
    index = shards.read_index((target / INDEX).read_bytes())
    entries = 0
    for shard in index.shards:
        for line in command("zcat", target / shards.path_of(shard)).stdout.splitlines():
            document = json.loads(line)
            RECORD.validate(document)
            entries += "kind" in document
    assert entries == sum(shard.entries for shard in index.shards)


def test_a_second_run_has_the_same_record(ground: Ground) -> None:
    for _ in range(2):
        ground.run()
    listed = ground.kopiatomic("list", "--json", *ground.words, env=ground.environment)
    made: list[dict[str, list[RecordedEntry]]] = []
    for one in json.loads(listed.stdout)["snapshots"]:
        target = ground.target(f"of-{len(made)}")
        ended = ground.restore(one["id"], "/.kopiatomic", "--to", target, "--no-metadata")
        assert ended.returncode == 0, str(ended)
        index = shards.read_index((target / INDEX).read_bytes())
        content = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
        found = dict(shards.Reading(index, content.__getitem__).forward())
        # The directories above are as the host has them, and others make things in them meanwhile.
        made.append({path: entries for path, entries in found.items() if is_at_or_below(path, str(ground.source))})
    assert made[0] == made[1]
    assert made[0]


def test_what_has_not_changed_comes_from_the_cache_and_is_the_same(ground: Ground) -> None:
    cache = Path(ground.kopiatomic.environment["KOPIATOMIC_STATE_DIR"]) / "cache"
    first = ground.run()["metadata"]
    assert first["cached"] == 0
    second = ground.run()["metadata"]
    # The directories above are as the host has them.
    assert 0 < second["cached"] <= second["entries"] < second["cached"] + 20
    (ground.nested / "new").mkdir()
    with_cache = [ground.run() for _ in range(2)]
    assert 0 < with_cache[0]["metadata"]["cached"] < second["cached"] <= with_cache[1]["metadata"]["cached"]
    shutil.rmtree(cache)
    cache.touch()
    without = ground.run()
    assert without["metadata"]["cached"] == 0
    assert [line for line in without["warnings"] if "cache" in line] == [
        f"the cache of metadata records in {cache} cannot be used: Not a directory"
    ]
    records = []
    for number, run in enumerate((*with_cache, without)):
        target = ground.target(f"record-{number}")
        words = [run["engine"]["snapshot_id"], "/.kopiatomic", "--to", target, "--no-metadata"]
        ended = ground.restore(*words)
        assert ended.returncode == 0, str(ended)
        shards_of = {path.name: path.read_bytes() for path in (target / "shards").iterdir()}
        listed = json.loads((target / INDEX).read_bytes())["shards"]
        own = [one["name"] for one in listed if is_at_or_below(one["first"], str(ground.source))]
        records.append([(name, shards_of[f"{name}.jsonl.gz"]) for name in own])
    assert records[0] == records[1] == records[2]
    assert len(records[0]) >= 2


@pytest.mark.parametrize("ground", ["kopia"], indirect=True)
def test_an_attribute_that_cannot_be_recorded_is_named(ground: Ground) -> None:
    """No JSON text can have its name."""
    os.setxattr(ground.source / "setuid", b"user.\xff", b"1")
    words: list[str | Path] = ["--mount-root", ground.root, "--json", "-r", ground.source]
    for _ in range(2):
        ended = ground.kopiatomic(*words, env=ground.environment)
        assert ended.returncode == 3, str(ended)
        document = valid(ended.stdout)
        assert document["metadata"]["unreadable"] == 1
        assert document["incomplete"] == [
            f"what 1 entries have could not be recorded: {ground.source}/setuid (an attribute has a name that is not UTF-8)"
        ]


def test_without_a_record_it_says_so(ground: Ground) -> None:
    assert ground.run("--no-metadata")["metadata"] is None
    target = ground.target("back")
    ended = ground.restore("latest", "--to", target)
    assert ended.returncode == 0, str(ended)
    assert "has no metadata record" in ended.stderr
    ended = ground.restore("latest", "--names", "--to", ground.target("names"))
    assert ended.returncode == 1, str(ended)
    assert "--names needs the metadata record, and" in ended.stderr
    assert not ground.target("names").exists()


def test_a_user_has_all_but_what_only_root_can_give_back(ground: Ground, tmp_path: Path) -> None:
    """Also of files that belong to others: those are then the user's."""
    folder = ground.source / "of-others"
    (folder / "not-to-be-written-to").mkdir(parents=True)
    for path in (folder / "not-to-be-written-to/file", folder / "of-root"):
        path.write_text("hello")
        path.chmod(0o644)
    (folder / "not-to-be-written-to").chmod(0o555)
    os.mkfifo(folder / "pipe")
    ground.run()
    repository = tmp_path / (ground.engine if ground.words else "kopia")
    own = ground.target("of-a-user")
    own.mkdir()
    for path in (repository, own):
        command("chown", "-R", str(NOBODY), path)
    argv = Kopiatomic.argv("restore", "latest", folder, "--to", own / "back", *ground.words)
    environment = {**ground.kopiatomic.environment, **ground.environment}
    if not ground.words:
        # The way to the one on PATH may be closed to users.
        for above in (tmp_path, *tmp_path.parents[:2]):
            above.chmod(above.stat().st_mode | 0o011)
        environment["KOPIATOMIC_KOPIA"] = shutil.copy(str(shutil.which("kopia")), str(tmp_path / "program"))
    ended = command(*as_nobody(*argv), env=environment, check=False)
    # Of directories and FIFOs kopia has recorded the owners.
    assert ended.returncode == (0 if ground.words else 3), str(ended)
    assert ("its owner cannot be set: Operation not permitted" in ended.stderr) == (not ground.words)
    assert "without root, owners, devices and attributes of the system cannot be restored" in ended.stderr
    for name in ("of-root", "not-to-be-written-to/file"):
        status = (own / "back" / name).stat()
        assert (status.st_uid, status.st_mode & 0o777) == (NOBODY, 0o644)
        assert status.st_mtime_ns == (folder / name).stat().st_mtime_ns
        assert (own / "back" / name).read_text() == "hello"
    assert (own / "back/not-to-be-written-to").stat().st_mode & 0o777 == 0o555


def test_nothing_is_overwritten_and_nothing_else_touched(ground: Ground, tmp_path: Path) -> None:
    ground.run()
    target = ground.target("back")
    target.mkdir()
    (target / "mine").write_text("mine")
    ended = ground.restore("latest", "--to", target)
    assert ended.returncode == 1, str(ended)
    assert "is not an empty directory, and nothing may be overwritten" in ended.stderr
    assert (target / "mine").read_text() == "mine"
    user = ground.target("of-a-user")
    user.mkdir()
    shutil.chown(user, "nobody")
    ended = ground.restore("latest", "--to", user / "back")
    assert ended.returncode == 1, str(ended)
    assert "others can replace what leads to it" in ended.stderr
    assert os.listdir(user) == []
    link = ground.target("link")
    link.symlink_to(tmp_path)
    ended = ground.restore("latest", "--to", link)
    assert ended.returncode == 1, str(ended)
    ended = ground.restore("latest", "relative", "--to", target)
    assert ended.returncode == 2, str(ended)
    ended = ground.restore("no-such-snapshot", "--to", ground.target("other"))
    assert ended.returncode == 1, str(ended)
    assert "has no complete snapshot that is meant by no-such-snapshot" in ended.stderr
    assert not ground.target("other").exists()


def test_a_path_that_is_not_in_it_is_an_error(ground: Ground) -> None:
    ground.run()
    good, wrong, target = ground.source / "setuid", f"{ground.source}/no/such", ground.target("back")
    for paths in ([wrong], [good, wrong]):
        ended = ground.restore("latest", *paths, "--to", target)
        assert ended.returncode == 1, str(ended)
        assert f"{wrong} is not in {ground.engine}'s snapshot" in ended.stderr
        assert not target.exists()
    ended = ground.restore("latest", good, "--to", target)
    assert ended.returncode == 0, str(ended)
    for what in ("latest", time.strftime("%Y-")):
        ended = ground.restore(what, f"{ground.root}{ground.source}", "--to", ground.target("none"))
        assert ended.returncode == 1, str(ended)
        assert f"no snapshot that is meant has {ground.root}{ground.source}" in ended.stderr
        assert f"The view root is no part of a path: name it without {ground.root}. Saved were: " in ended.stderr
        ended = ground.restore(what, "/no/such", "--to", ground.target("none"))
        assert ended.returncode == 1, str(ended)
        assert "no snapshot that is meant has /no/such" in ended.stderr
        assert "view root" not in ended.stderr
    assert not ground.target("none").exists()


@pytest.mark.parametrize("after", [0.2, 0.6, 1.2])
def test_a_killed_restore_can_be_run_again(ground: Ground, after: float) -> None:
    ground.run()
    target = ground.target("back")
    words: list[str | Path] = ["restore", "latest", ground.source, "--to", target, *ground.words]
    with ground.kopiatomic.started(*words, env=ground.environment) as process:
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    if target.exists():
        assert oct(target.stat().st_mode)[-3:] in {"700", "755"}
    ended = ground.restore("latest", ground.source, "--to", target)
    if "nothing may be overwritten" in ended.stderr:
        # It had already ended.
        assert not (target / ".kopiatomic-restoring").exists()
    else:
        assert ended.returncode == 0, str(ended)
    assert differences(ground.source, target) == []


def test_list_shows_what_there_is_and_what_is_recorded_of_it(ground: Ground, tmp_path: Path) -> None:
    runs = [ground.run()["run_id"], ground.run("--no-metadata")["run_id"]]
    ended = ground.kopiatomic("list", "--json", *ground.words, env=ground.environment)
    assert ended.returncode == 0, str(ended)
    newer, older = json.loads(ended.stdout)["snapshots"]
    assert [one["run_id"] for one in (older, newer)] == runs
    assert [one["metadata"] for one in (older, newer)] == ["recorded", None]
    for one in (older, newer):
        assert (one["complete"], one["result"], one["series"]) == (True, "saved", str(ground.root))
    narrow = ground.kopiatomic("list", *ground.words, env={**ground.environment, "COLUMNS": "80"})
    assert all(len(line) <= 80 for line in narrow.stdout.splitlines())
    head, *lines = ground.kopiatomic("list", *ground.words, env=ground.environment).stdout.splitlines()
    assert head.split() == ["INSTANT", "(UTC)", ground.engine.upper(), "ID", "SERIES", "RECORD"]
    if ground.engine != "borg":
        day, clock, shown, series, record = lines[1].split()
        assert (f"{day}T{clock}", series, record) == (older["instant"][:19], str(ground.root), "yes")
        assert older["id"].startswith(shown)
    # Another machine has no records of it.
    words: list[str | Path] = ["list", "--json", "--state-dir", tmp_path / "none", *ground.words]
    for one in json.loads(ground.kopiatomic(*words, env=ground.environment).stdout)["snapshots"]:
        assert (one["series"], one["result"]) == (None, None)
        assert one["run_id"] in (set(runs) if ground.engine == "kopia" else {None})


def test_what_the_target_cannot_hold_is_named(ground: Ground, tmp_path: Path) -> None:
    subprocess.run(["chattr", "+C", ground.source / "sticky"], check=True)
    (ground.source / "compressed").mkdir()
    command("btrfs", "property", "set", ground.source / "compressed", "compression", "zstd")
    for number in range(40):
        (ground.source / f"compressed/{number}").touch()
    ground.run()
    ended = ground.restore("latest", ground.source, "--to", tmp_path / "elsewhere")
    assert ended.returncode == 3, str(ended)
    assert ended.stdout.startswith("Restored, but not exactly: ")
    # Once for each kind, and not for each file. Borg says itself what it cannot set.
    said = [line.rpartition("/")[2] for line in ended.stderr.splitlines() if "btrfs.compression" in line]
    cannot = "btrfs.compression cannot be set: Operation not supported (the first of 43 entries)"
    by_itself = "borg: when setting extended attribute btrfs.compression: [Errno 95] Operation not supported (43 times)"
    assert said == [f"kopiatomic: warning: {by_itself}"] * (ground.engine == "borg") + [
        f"directory-c: its attribute {cannot}"
    ]
    assert f"{ground.source}/sticky: its flag C cannot be set: Operation not supported" in ended.stderr


def test_a_record_that_a_user_has_put_there_is_none(ground: Ground) -> None:
    """Only a snapshot that root's run has marked has one; this says that a program belongs to root, for everybody to run."""
    ground.run()
    own = ground.target("own")
    ended = ground.restore("latest", "/.kopiatomic", "--to", own, "--no-metadata")
    assert ended.returncode == 0, str(ended)
    user = ground.btrfs.subvolume("user")
    shutil.copytree(own, user / ".kopiatomic")
    (user / "file").write_text("mine")
    words: list[str | Path] = ["--layout", "in-place", "--no-metadata", "--json", user, *ground.words]
    ended = ground.kopiatomic(*words, env=ground.environment)
    assert ended.returncode == 0, str(ended)
    listed = ground.kopiatomic("list", "--json", *ground.words, env=ground.environment)
    newest = json.loads(listed.stdout)["snapshots"][0]["id"]
    target = ground.target("back")
    ended = ground.restore(newest, "--to", target)
    assert ended.returncode == 0, str(ended)
    assert "has no metadata record" in ended.stderr
    # All of it is there, at true paths.
    assert Path(f"{target}{user}/file").read_text() == "mine"
    assert Path(f"{target}{user}/.kopiatomic/{INDEX}").exists()


def test_a_restore_that_was_interrupted_late_can_be_run_again(ground: Ground) -> None:
    """When what the engine has restored is in its place already, and only what it lost is not."""
    ground.run()
    target = ground.target("back")
    words: list[str | Path] = [ground.source, "--to", target]
    ended = ground.restore("latest", *words)
    assert ended.returncode == 0, str(ended)
    listed = ground.kopiatomic("list", "--json", *ground.words, env=ground.environment)
    (one,) = json.loads(listed.stdout)["snapshots"]
    note = {"engine": ground.engine, "snapshot": one["id"], "paths": str(ground.source)}
    (target / ".kopiatomic-restoring").mkdir(0o700)
    (target / ".kopiatomic-restoring/what.json").write_text(json.dumps(note))
    (target / "setuid").unlink()
    # Until its end it is root's, and closed to others.
    os.chown(target, 0, 0)
    target.chmod(0o700)
    ended = ground.restore("latest", *words)
    assert ended.returncode == 0, str(ended)
    assert differences(ground.source, target) == []


@pytest.mark.parametrize("ground", ["kopia"], indirect=True)
def test_a_name_that_others_have_become_as_well_is_not_restored_by_itself(ground: Ground) -> None:
    """Which of them kopia has given back nobody can tell; in the directory above it keeps the name that kopia has."""
    top = os.fsencode(ground.source)
    os.mkdir(top + b"/alike")
    for name in (b"lat\xe8in", b"lat\xe9in", b"f\xe8", b"one\xe8"):
        with open(top + b"/alike/" + name, "wb") as file:
            file.write(name)
    os.mkfifo(top + b"/alike/f\xe9")
    for name in (b"d\xe8", b"d\xe9"):
        os.mkdir(top + b"/alike/" + name)
        (Path(os.fsdecode(top + b"/alike/" + name)) / "file").write_bytes(name)
    ended = ground.kopiatomic("--mount-root", ground.root, "-r", ground.source, env=ground.environment)
    assert ended.returncode in {0, 3}, str(ended)
    alike = ground.source / "alike"
    one = alike / os.fsdecode(b"one\xe8")
    for number, odd in enumerate((b"lat\xe8in", b"lat\xe9in", b"f\xe8", b"d\xe8/file", "lat\ufffdin".encode())):
        path = alike / os.fsdecode(odd)
        target = ground.target(f"back-{number}")
        for paths in ([path], [one, path]):
            ended = ground.restore("latest", *paths, "--to", target)
            assert ended.returncode == 1, str(ended)
            assert not target.exists()
            if odd == "lat\ufffdin".encode():
                assert "is not in kopia's snapshot" in ended.stderr
            else:
                assert "names have become the same in kopia's snapshot" in ended.stderr
    for number, paths in enumerate(([one], [one, ground.source / "setuid"])):
        target = ground.target(f"one-{number}")
        ended = ground.restore("latest", *paths, "--to", target)
        assert ended.returncode == 0, str(ended)
        there = target / one.name if number == 0 else Path(f"{target}{one}")
        assert there.read_bytes() == b"one\xe8"
    # Without the record nobody knows what the name was.
    target = ground.target("without")
    ended = ground.restore("latest", one, ground.source / "setuid", "--to", target, "--no-metadata")
    assert ended.returncode == 0, str(ended)
    assert os.listdir(f"{target}{alike}") == ["one\ufffd"]
    ended = ground.restore("latest", alike / os.fsdecode(b"lat\xe8in"), "--to", ground.target("no"), "--no-metadata")
    assert ended.returncode == 1, str(ended)
    assert "have become the same in kopia's snapshot" in ended.stderr
