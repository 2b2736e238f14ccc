"""Backups in place and their metadata record: with each engine all comes back, nothing is read again, and nobody is surprised."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.model.record import INDEX, place_in
from tests.btrfs.test_restore import ENGINES
from tests.btrfs.test_shell import session
from tests.support.exact_tree import differences, furnish
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopia, Kopiatomic
from tests.support.repositories import Borg, Restic
from tests.support.schema import valid

pytestmark = pytest.mark.in_part(4)

FEW_KILOBYTES = 16_000


class InPlace:
    """A subvolume with one nested in it, in place, and an engine with a repository."""

    def __init__(
        self, btrfs: Btrfs, kopiatomic: Kopiatomic, engine: str, words: list[str], environment: dict[str, str]
    ):
        self.source = btrfs.subvolume("home")
        furnish(self.source)
        self.nested = btrfs.subvolume("home/nested")
        furnish(self.nested)
        os.utime(self.source, ns=(0, 1_234_567_890_123_456_789))
        self.kopiatomic = kopiatomic
        self.engine = engine
        self.words = words
        self.environment = environment
        self.btrfs = btrfs

    @property
    def state(self) -> Path:
        return Path(self.kopiatomic.environment["KOPIATOMIC_STATE_DIR"])

    def record(self, *asked: str | Path) -> str:
        """Where the record is, if this was asked for with ``-r``."""
        words = " ".join([self.engine, "-r", *map(str, asked or [self.source])])
        return place_in(str(self.state), f"in place: {words}")

    def arguments(self, *more: str | Path) -> list[str | Path]:
        return ["--layout", "in-place", "-r", *more, *self.words]

    def run(self, *more: str | Path, sources: tuple[str | Path, ...] = ()) -> Any:
        ended = self.kopiatomic("--json", *self.arguments(*more, *(sources or (self.source,))), env=self.environment)
        assert ended.returncode == 0, str(ended)
        return valid(ended.stdout)

    def restore(self, *words: str | Path) -> Completed:
        return self.kopiatomic("restore", *words, *self.words, env=self.environment)

    def listed(self) -> list[Any]:
        ended = self.kopiatomic("list", "--json", *self.words, env=self.environment)
        assert ended.returncode == 0, str(ended)
        found: list[Any] = json.loads(ended.stdout)["snapshots"]
        return found

    def target(self, name: str) -> Path:
        return self.btrfs.mountpoint / name


Make = Callable[[str], InPlace]


@pytest.fixture
def make(btrfs: Btrfs, kopiatomic: Kopiatomic, kopia: Kopia, tmp_path: Path) -> Iterator[Make]:
    def made(engine: str) -> InPlace:
        if engine == "kopia":
            return InPlace(btrfs, kopiatomic, engine, [], kopia.environment)
        repository = {"restic": Restic, "borg": Borg}[engine](tmp_path / engine)
        return InPlace(btrfs, kopiatomic, engine, repository.words, repository.environment)

    yield made
    subprocess.run(["chattr", "-R", "-f", "-i", "-a", btrfs.mountpoint], check=False)


@pytest.fixture(params=ENGINES)
def ground(request: pytest.FixtureRequest, make: Make) -> InPlace:
    return make(request.param)


@pytest.fixture
def with_kopia(make: Make) -> InPlace:
    return make("kopia")


def test_everything_comes_back_also_where_our_state_was_never_seen(ground: InPlace) -> None:
    document = ground.run("--metadata")
    assert (document["metadata"]["saved"], document["metadata"]["unreadable"]) == (True, 0)
    assert document["sources"] == [str(ground.source)]
    shutil.rmtree(ground.state)
    (one,) = ground.listed()
    assert one["metadata"] == "recorded"
    single, part, several, whole = map(ground.target, ("single", "part", "several", "whole"))
    for target, *words in (
        (single, "latest", ground.source),
        (part, "latest", ground.nested / "d"),
        (several, one["id"], ground.nested / "d", ground.source / "setuid"),
        (whole, "latest"),
    ):
        ended = ground.restore(*words, "--to", target)
        assert ended.returncode == 0, str(ended)
        assert "warning" not in ended.stderr, str(ended)
    assert differences(ground.source, single) == []
    assert differences(ground.nested / "d", part) == []
    assert differences(ground.nested / "d", Path(f"{several}{ground.nested}/d")) == []
    assert differences(ground.source, Path(f"{whole}{ground.source}")) == []
    # Of the record nothing is there.
    assert [path for path in whole.rglob("*") if path.name in {INDEX, "records", "state"}] == []


def test_the_record_can_be_a_part_of_what_is_backed_up(ground: InPlace) -> None:
    """Then it is no source of kopia's own, and nobody has to agree."""
    state = ground.source / "state"
    document = ground.run("--state-dir", state)
    assert document["metadata"]["saved"]
    assert [warning for warning in document["warnings"] if "metadata" in warning] == []
    (one,) = ground.listed()
    assert one["metadata"] == "recorded"
    if one["sources"]:
        assert one["sources"] == [str(ground.source)]
    for target, *paths in ((ground.target("single"), ground.source), (ground.target("whole"),)):
        ended = ground.restore("latest", *paths, "--to", target)
        assert ended.returncode == 0, str(ended)
        found = target if paths else Path(f"{target}{ground.source}")
        assert list(found.rglob(INDEX)) == []
        # Our database has changed since.
        shutil.rmtree(found / "state")
        shutil.rmtree(state, ignore_errors=True)
        os.utime(found, ns=(0, 0))
        os.utime(ground.source, ns=(0, 0))
        assert differences(ground.source, found) == []


def test_nothing_is_read_again_and_nothing_new_is_a_few_kilobytes(ground: InPlace) -> None:
    (ground.source / "large").write_bytes(os.urandom(3 << 20))
    ground.run("--no-metadata")
    without = ground.run("--no-metadata")["engine"]["statistics"]
    runs = [ground.run("--metadata") for _ in range(2)]
    assert all(run["metadata"]["saved"] for run in runs)
    first, second = (run["engine"]["statistics"] for run in runs)
    keys = ("files_cached", "files_hashed", "bytes_added")
    told = [[found.get(key) for key in keys] for found in (without, first, second)]
    print(
        f"{ground.engine}: cached, read, bytes added without the record, with it for the first time and again: {told}"
    )
    assert without["files_cached"] > 5
    # What else is read is the record: its list, and one shard for each subvolume. kopia counts it apart.
    for found in (first, second):
        assert found["files_cached"] >= without["files_cached"]
        assert found["files_hashed"] <= without["files_hashed"] + (0 if ground.engine == "kopia" else 3)
    # restic saves what it keeps of all entries again where device numbers are new: 2 to 17 kB here, with a record or without,
    # and once 37 kB.
    for found in (first, second) if "bytes_added" in second else ():
        assert found["bytes_added"] < without["bytes_added"] + 3 * FEW_KILOBYTES


def test_a_second_run_adds_a_few_kilobytes_to_kopias_repository(with_kopia: InPlace, kopia: Kopia) -> None:
    def size() -> int:
        return sum(path.stat().st_size for path in kopia.repository.rglob("*") if path.is_file())

    with_kopia.run("--metadata", "--no-maintenance")
    before = size()
    with_kopia.run("--metadata", "--no-maintenance")
    assert size() - before < FEW_KILOBYTES


def test_several_sources_have_one_record(with_kopia: InPlace) -> None:
    other = with_kopia.btrfs.subvolume("other")
    furnish(other)
    document = with_kopia.run("--metadata", sources=(with_kopia.source, other))
    assert document["metadata"]["saved"]
    assert [one["metadata"] for one in with_kopia.listed()] == ["recorded"] * 2
    for source in (with_kopia.source, other):
        target = with_kopia.target(f"{source.name}-back")
        ended = with_kopia.restore("latest", source, "--to", target)
        assert ended.returncode == 0, str(ended)
        assert differences(source, target) == []
    # All of the run, by whatever it is named: each path comes from the snapshot that has it.
    (one, _) = listed = with_kopia.listed()
    for number, words in enumerate((["latest"], [one["run_id"]], [one["instant"][:19]], ["latest", other, "/etc"])):
        target = with_kopia.target(f"all-{number}")
        ended = with_kopia.restore(*words, "--to", target)
        if "/etc" in words:
            assert ended.returncode == 1, str(ended)
            assert not target.exists()
            continue
        assert (ended.returncode, ended.stderr.count("warning")) == (0, 0), str(ended)
        for source in (with_kopia.source, other):
            assert differences(source, Path(f"{target}{source}")) == []
    parts = [with_kopia.source / "d", other / "d"]
    ended = with_kopia.restore(one["run_id"], *parts, "--to", with_kopia.target("parts"))
    assert ended.returncode == 0, str(ended)
    for part in parts:
        assert differences(part, Path(f"{with_kopia.target('parts')}{part}")) == []
    shown = with_kopia.kopiatomic("list", env={**with_kopia.environment, "COLUMNS": "1000"}).stdout.splitlines()[1:]
    assert [of["sources"][0] in line for of, line in zip(listed, shown, strict=True)] == [True, True]
    # All of one: what is recorded of the other is not missed.
    one = next(one for one in listed if one["sources"] == [str(other)])
    ended = with_kopia.restore(one["id"], "--to", with_kopia.target("all"))
    assert (ended.returncode, ended.stderr.count("warning")) == (0, 0), str(ended)
    assert differences(other, Path(f"{with_kopia.target('all')}{other}")) == []


@pytest.mark.parametrize("engine", ["restic", "borg"])
def test_latest_of_several_selections_is_none_of_them(engine: str, make: Make, tmp_path: Path) -> None:
    ground = make(engine)
    other = ground.btrfs.subvolume("other")
    ground.run()
    ground.run(sources=(ground.source, other))
    ended = ground.restore("latest", ground.source, "--to", ground.target("back"))
    assert ended.returncode == 1, str(ended)
    assert "latest means 2 snapshots" in ended.stderr
    ended = ground.restore("latest", other, "--to", ground.target("back"))
    assert ended.returncode == 0, str(ended)
    # On another machine nothing else is known of them.
    words: list[str | Path] = ["list", "--state-dir", tmp_path / "none", *ground.words]
    shown = ground.kopiatomic(*words, env={**ground.environment, "COLUMNS": "1000"}).stdout
    assert [str(other) in line for line in shown.splitlines()] == [False, True, False]


# Agreement


def test_kopia_has_no_source_more_without_an_answer(with_kopia: InPlace, kopia: Kopia) -> None:
    document = with_kopia.run()
    assert document["metadata"] is None
    (warning,) = [warning for warning in document["warnings"] if "metadata record" in warning]
    assert "nobody has agreed to it yet" in warning
    assert "latest 10, hourly 48, daily 7, weekly 4, monthly 24, annual 3" in warning
    assert "--metadata" in warning
    assert {one["source"]["path"] for one in kopia.json("snapshot", "list", "--all")} == {str(with_kopia.source)}
    ended = with_kopia.restore("latest", "--to", with_kopia.target("back"))
    assert (ended.returncode, "has no metadata record" in ended.stderr) == (0, True), str(ended)
    assert with_kopia.run("--no-metadata")["warnings"] == []


def test_a_terminal_is_asked_once(with_kopia: InPlace, kopia: Kopia) -> None:
    kopia("policy", "set", with_kopia.source, "--keep-annual=9", "--keep-latest=2")
    arguments = [*Kopiatomic.argv(*with_kopia.arguments(with_kopia.source))]
    environment = {**with_kopia.kopiatomic.environment, **with_kopia.environment}
    record = with_kopia.record()
    with session(arguments, environment) as asked:
        asked.shows(rf"kopia keeps snapshots of {record}")
        asked.shows("--keep-annual=9")
        asked.shows(r"\[y/N\]")
        asked.types("y\r")
        asked.shows("Metadata: ")
        assert asked.process.wait(30) == 0
    assert with_kopia.run()["metadata"]["saved"]
    shown = kopia.json("policy", "show", f"{user_of(kopia)}:{record}")
    # The most of what holds for the sources and for the record itself.
    assert (shown["retention"]["keepAnnual"], shown["retention"]["keepLatest"]) == (9, 10)
    assert {one["source"]["path"] for one in kopia.json("snapshot", "list", "--all")} == {
        str(with_kopia.source),
        record,
    }


def user_of(kopia: Kopia) -> str:
    client = kopia.json("repository", "status")["clientOptions"]
    return f"{client['username']}@{client['hostname']}"


def test_no_is_an_answer(with_kopia: InPlace) -> None:
    arguments = [*Kopiatomic.argv(*with_kopia.arguments(with_kopia.source))]
    environment = {**with_kopia.kopiatomic.environment, **with_kopia.environment}
    with session(arguments, environment) as asked:
        asked.shows(r"\[y/N\]")
        asked.types("\r")
        asked.shows("without metadata: that was the answer")
        assert asked.process.wait(30) == 0
    document = with_kopia.run()
    assert (document["metadata"], document["warnings"]) == (None, [])


def test_a_record_that_is_gone_is_named(with_kopia: InPlace, kopia: Kopia) -> None:
    with_kopia.run("--metadata")
    record = with_kopia.record()
    (own,) = [one for one in kopia.json("snapshot", "list", "--all") if one["source"]["path"] == record]
    kopia("snapshot", "delete", own["id"], "--delete")
    (one,) = with_kopia.listed()
    assert one["metadata"] == "gone"
    ended = with_kopia.kopiatomic("list", env=with_kopia.environment)
    assert re.search(r" gone *$", ended.stdout, re.MULTILINE), ended.stdout
    target = with_kopia.target("back")
    ended = with_kopia.restore("latest", with_kopia.source, "--to", target)
    # Something has been lost that was kept.
    assert ended.returncode == 3, str(ended)
    assert f"without metadata record: it is gone; the snapshot of {record} of the same run had it" in ended.stderr
    assert (target / "setuid").exists()


def test_what_stands_unchanged_has_its_record(with_kopia: InPlace, kopia: Kopia) -> None:
    def skipped(*words: str) -> bool:
        (one,) = with_kopia.run("--skip-unchanged", *words)["engine"]["sources"]
        return bool(one["unchanged"])

    assert [skipped("--no-metadata") for _ in range(2)] == [False, True]
    # The one that stands has none.
    assert [skipped("--metadata") for _ in range(2)] == [False, True]
    (own,) = [o for o in kopia.json("snapshot", "list", "--all") if o["source"]["path"] == with_kopia.record()]
    kopia("snapshot", "delete", own["id"], "--delete")
    assert [skipped("--metadata") for _ in range(2)] == [False, True]


@pytest.mark.parametrize("engine", ["restic", "borg"])
def test_the_plan_says_where_it_would_be(engine: str, make: Make) -> None:
    ground = make(engine)
    ended = ground.kopiatomic("-n", *ground.arguments(ground.source), env=ground.environment)
    assert f"Metadata: its record would be {ground.record()}, one path more for the engine" in ended.stdout, str(ended)
    assert ended.stdout.rstrip().count(ground.record()) > 1
    assert not ground.state.exists()


def test_the_plan_says_that_kopia_is_asked(with_kopia: InPlace) -> None:
    ended = with_kopia.kopiatomic("-n", *with_kopia.arguments(with_kopia.source), env=with_kopia.environment)
    assert f"a run makes a record at {with_kopia.record()} only if that was agreed to" in ended.stdout, str(ended)


def test_where_it_cannot_be_the_backup_goes_on_without_it(with_kopia: InPlace, tmp_path: Path) -> None:
    state = Path("/run/kopiatomic-test") / tmp_path.name
    try:
        document = with_kopia.run("--metadata", "--state-dir", state)
    finally:
        shutil.rmtree(state.parent, ignore_errors=True)
    assert document["metadata"] is None
    assert [w for w in document["warnings"] if "no backup has what is there" in w], document["warnings"]
