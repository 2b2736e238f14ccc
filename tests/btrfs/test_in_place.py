"""The in-place layout: the frozen instant at true paths, and all else as it is."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.state import locks
from tests.btrfs.conftest import Gate
from tests.btrfs.test_backups import described, populate
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopia, Kopiatomic, command
from tests.support.schema import valid

pytestmark = pytest.mark.in_part(9)

Leftovers = Callable[..., list[str]]


@contextmanager
def mounted(*words: str | Path) -> Iterator[None]:
    command("mount", *words)
    try:
        yield
    finally:
        command("umount", words[-1])


@pytest.fixture
def in_place(kopiatomic: Kopiatomic, leftovers: Leftovers) -> Callable[..., tuple[Completed, Any]]:
    """Run in place with --json; how it ended, and the document. Nothing of it may be left."""

    def run(*args: str | Path, **more: Any) -> tuple[Completed, Any]:
        # What is nested is of interest to those who ask for it.
        nested = () if {"-a", "-r"}.intersection(args) else ("--no-nested",)
        # The metadata record has tests of its own (test_record_in_place.py).
        ended = kopiatomic("--json", "--layout", "in-place", "--no-metadata", *nested, *args, **more)
        document = valid(ended.stdout)
        assert leftovers(Path(f"{locks.DIRECTORY}/view-{document['run_id']}")) == [], str(ended)
        return ended, document

    return run


InPlace = Callable[..., tuple[Completed, Any]]


class Script:
    """An engine of shell lines, whose output is kept in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, lines: str) -> str:
        script = self.folder / "script"
        script.write_text(f"exec > {shlex.quote(str(self.folder / 'said'))}\n{lines}\n")
        return shlex.join(["sh", "-e", str(script)])

    @property
    def said(self) -> list[str]:
        return (self.folder / "said").read_text().splitlines()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    """A subvolume with one nested in it."""
    data = btrfs.subvolume("data")
    (data / "file").write_text("frozen\n")
    (btrfs.subvolume("data/nested") / "file").write_text("nested\n")
    return data


# What is seen


def test_frozen_files_are_at_their_true_paths_and_the_live_ones_go_on(
    data: Path, kopiatomic: Kopiatomic, make_gate: Callable[[str], Gate], tmp_path: Path
) -> None:
    said = tmp_path / "said"
    gate = make_gate(f"cat {data}/file {data}/nested/file > {said}; touch {data}/new 2>/dev/null || echo no >> {said}")
    with kopiatomic.started("--json", "--layout", "in-place", "-c", gate.command, "-r", data) as process:
        gate.wait()
        (data / "file").write_text("live")
        (data / "nested" / "file").unlink()
        gate.let_go()
        assert process.stdout is not None
        document = valid(process.stdout.read())
    assert said.read_text() == "frozen\nnested\nno\n"
    assert document["exit_code"] == 0
    assert (document["layout"], document["root"]) == ("in-place", "/")
    assert document["sources"] == [str(data)]
    assert [d["path"] for d in document["datasets"]] == [str(data), f"{data}/nested"]


def test_nobody_outside_sees_anything_of_it(data: Path, kopiatomic: Kopiatomic, gate: Gate) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with kopiatomic.started("--layout", "in-place", "-c", gate.command, "-r", data) as process:
        gate.wait()
        assert Path("/proc/self/mountinfo").read_text() == before
        (data / "file").write_text("live")
        assert (data / "file").read_text() == "live"
        with kopiatomic.started("--layout", "in-place", "-c", "true", "-r", data) as second:
            assert second.wait(30) == 0
        gate.let_go()
        assert process.wait(30) == 0


def test_a_part_is_frozen_and_the_rest_of_its_dataset_is_live(btrfs: Btrfs, in_place: InPlace, script: Script) -> None:
    home = btrfs.subvolume("home")
    for name in ("ann", "bob"):
        (home / name / "docs").mkdir(parents=True)
    ended, document = in_place(
        "-c", script(f"touch {home}/bob/live; ls {home}/ann/docs; touch {home}/ann/docs/x || echo no"), home / "ann"
    )
    assert ended.returncode == 0, str(ended)
    assert (home / "bob" / "live").exists()
    assert script.said == ["no"]
    assert document["sources"] == [f"{home}/ann"]


def test_what_is_mounted_twice_is_frozen_twice(
    btrfs: Btrfs, data: Path, in_place: InPlace, script: Script, tmp_path: Path
) -> None:
    again, part = tmp_path / "again", data / "inside"
    again.mkdir()
    part.mkdir()
    (data / "folder").mkdir()
    (data / "folder" / "file").write_text("frozen too\n")
    device = command("findmnt", "-no", "SOURCE", btrfs.mountpoint).stdout.split("[")[0].strip()
    lines = f"cat {again}/file {part}/file; touch {again}/x || echo no; touch {part}/x || echo no"
    with mounted("-o", "subvol=data", device, again), mounted("--bind", data / "folder", part):
        for words in ([data], [data, again], [again, data]):
            ended, _ = in_place("-c", script(lines), *words)
            assert ended.returncode == 0, str(ended)
            assert script.said == ["frozen", "frozen too", "no", "no"]


def test_other_filesystems_are_seen_live_and_told(data: Path, in_place: InPlace, script: Script) -> None:
    point = data / "memory"
    point.mkdir()
    with mounted("-t", "tmpfs", "none", point):
        (point / "file").write_text("live\n")
        ended, document = in_place("-c", script(f"cat {point}/file"), data)
        assert ended.returncode == 0, str(ended)
        assert script.said == ["live"]
        assert [(u["path"], u["live"]) for u in document["uncovered"]] == [(str(point), True)]
        for flag in ("--only-frozen", "--require-atomic"):
            ended, document = in_place(flag, "-c", script(f"ls -A {point}"), data)
            assert ended.returncode == 0, str(ended)
            assert script.said == []
            assert [(u["path"], u["live"]) for u in document["uncovered"]] == [(str(point), False)]


def test_what_was_excluded_is_hidden(
    data: Path, btrfs: Btrfs, in_place: InPlace, script: Script, tmp_path: Path
) -> None:
    """Nested it is an empty folder in the frozen tree; mounted by itself its mount point is."""
    other = btrfs.subvolume("other")
    (other / "file").write_text("secret")
    point = data / "point"
    point.mkdir()
    device = command("findmnt", "-no", "SOURCE", btrfs.mountpoint).stdout.split("[")[0].strip()
    with mounted("-o", "subvol=other", device, point):
        ended, _ = in_place(
            "-c",
            script(f"ls -A {data}/nested {point}"),
            "-r",
            data,
            point,
            "--exclude",
            f"{data}/nested",
            "--exclude",
            str(point),
        )
    assert ended.returncode == 0, str(ended)
    assert "file" not in script.said


def test_what_lies_below_something_hidden_has_its_place(
    data: Path, btrfs: Btrfs, in_place: InPlace, script: Script
) -> None:
    deep = btrfs.subvolume("data/nested/deep")
    (deep / "file").write_text("deep\n")
    ended, _ = in_place("-c", script(f"ls -A {data}/nested; cat {deep}/file"), data, deep)
    assert ended.returncode == 0, str(ended)
    assert script.said == ["deep", "deep"]


def test_sources_are_the_topmost_true_paths(btrfs: Btrfs, in_place: InPlace, script: Script) -> None:
    for name in ("b", "a", "a/inner", "ab"):
        btrfs.subvolume(name)
    top = btrfs.mountpoint
    ended, document = in_place("-c", script("printf '%s\\n' \"$@\""), "-r", top / "b", top / "a", top / "ab")
    assert ended.returncode == 0, str(ended)
    assert script.said == document["sources"] == [f"{top}/a", f"{top}/ab", f"{top}/b"]


@pytest.mark.parametrize("through_a_link", [False, True])
def test_relative_paths_are_frozen(
    through_a_link: bool, data: Path, kopiatomic: Kopiatomic, script: Script, tmp_path: Path
) -> None:
    here, link = data / "here", tmp_path / "link"
    here.mkdir()
    (here / "file").write_text("frozen\n")
    link.symlink_to(data)
    cwd = link / "here" if through_a_link else here
    argv = kopiatomic.argv(
        "--layout",
        "in-place",
        "--no-nested",
        "-c",
        script("cat file; touch x || echo no; cat $PWD/file; touch $PWD/x || echo no"),
        data,
    )
    environment = {**kopiatomic.environment, "PWD": str(cwd)}
    assert command(*argv, env=environment, cwd=cwd, check=False).returncode == 0
    assert script.said == ["frozen", "no", "frozen", "no"]


def test_a_place_that_is_a_link_by_now_is_refused(data: Path, in_place: InPlace, script: Script) -> None:
    """Between the listing and the snapshot somebody puts a link where the part was that was named."""
    (data / "part").mkdir()
    hook = f"rmdir {data}/part && ln -s /etc {data}/part"
    ended, document = in_place("-p", hook, "-c", script("cat hostname"), data / "part")
    assert ended.returncode == 1
    assert document["error"]["kind"] == "place-missing", str(ended)


@pytest.mark.parametrize("layout", ["in-place", "merged"])
@pytest.mark.parametrize(
    ("swap", "said"),
    [
        ("ln -s other {data}/part", "led to elsewhere"),
        ("true", "removed or replaced it"),
    ],
)
def test_a_named_part_that_its_owner_replaces_is_said_to_lead_elsewhere_or_to_be_gone(
    layout: str, swap: str, said: str, data: Path, kopiatomic: Kopiatomic, root: Path
) -> None:
    """Not that it is one too many: the link leads to another part that is named as well."""
    for name in ("part", "other"):
        (data / name).mkdir()
    hook = f"rmdir {data}/part && {swap.format(data=data)}"
    where = () if layout == "in-place" else ("--mount-root", str(root))
    words = ("--json", "--layout", layout, *where, "-p", hook, "-c", "true", data / "part", data / "other")
    error = valid(kopiatomic(*words).stdout)["error"]
    assert error["kind"] == "place-missing"
    assert said in error["hint"]
    assert "one of the two" not in error["hint"]


def test_two_runs_of_the_same_exclude_each_other(data: Path, kopiatomic: Kopiatomic, gate: Gate) -> None:
    words = ["--layout", "in-place", "-c", gate.command, "-r", str(data)]
    with kopiatomic.started(*words) as process:
        gate.wait()
        ended = kopiatomic(*words)
        assert ended.returncode == 75
        assert f"in place: sh -r {data}" in ended.stderr
        gate.let_go()
        assert process.wait(30) == 0


# kopia


def history(kopia: Kopia) -> dict[str, list[str]]:
    """The ids of the snapshots by the path that they are of."""
    found: dict[str, list[str]] = {}
    for snapshot in kopia.json("snapshot", "list", "--all"):
        found.setdefault(snapshot["source"]["path"], []).append(snapshot["id"])
    return found


def test_the_history_and_the_policies_of_a_path_go_on(
    btrfs: Btrfs, data: Path, kopia: Kopia, in_place: InPlace, tmp_path: Path
) -> None:
    home = btrfs.subvolume("home")
    populate(home)
    (data / "ignored.tmp").write_text("x")
    (data / "deep").mkdir()
    policies = {
        data: ["--add-ignore=*.tmp", "--compression=zstd"],
        home: ["--keep-latest=100", "--snapshot-interval=24h"],
        data / "deep": ["--compression=s2-default"],
    }
    for path, words in policies.items():
        kopia("policy", "set", path, *words)
    before = [
        kopia("policy", "list", "--json").stdout,
        *(kopia("policy", "show", "--json", p).stdout for p in policies),
    ]
    for _ in range(5):
        kopia("snapshot", "create", data, home)
    documents = [in_place("--no-maintenance", "-r", data, home, env=kopia.environment)[1] for _ in range(5)]
    assert [document["exit_code"] for document in documents] == [0] * 5, documents
    assert {path: len(ids) for path, ids in history(kopia).items()} == {str(data): 10, str(home): 10}
    assert before == [
        kopia("policy", "list", "--json").stdout,
        *(kopia("policy", "show", "--json", p).stdout for p in policies),
    ]
    second = documents[1]["engine"]
    assert second["statistics"]["files_hashed"] == 0
    assert second["statistics"]["files_cached"] > 10
    sources = {source["source"]: source for source in second["sources"]}
    assert set(sources) == {str(data), str(home)}
    assert any("has a schedule for" in warning and str(home) in warning for warning in documents[0]["warnings"])
    restored = tmp_path / "restored"
    kopia("snapshot", "restore", sources[str(home)]["snapshot_id"], restored)
    assert described(restored) == described(home)
    kopia("snapshot", "restore", sources[str(data)]["snapshot_id"], tmp_path / "data")
    assert (tmp_path / "data" / "nested" / "file").read_text() == "nested\n"
    assert not (tmp_path / "data" / "ignored.tmp").exists()


def test_a_source_that_lacks_something_makes_the_run_incomplete(
    btrfs: Btrfs, data: Path, kopia: Kopia, in_place: InPlace
) -> None:
    home = btrfs.subvolume("home")
    (home / "file").write_text("x")
    kopia("policy", "set", data, "--add-ignore=/nested")
    ended, document = in_place("-r", data, home, env=kopia.environment)
    assert ended.returncode == 3, str(ended)
    complete = {source["source"]: source["complete"] for source in document["engine"]["sources"]}
    assert complete == {str(data): False, str(home): True}
    assert f"{data}: {data}/nested" in document["incomplete"][0]


@pytest.fixture
def kopia_at_home(btrfs: Btrfs, kopia: Kopia) -> tuple[Path, Kopia]:
    """kopia as a user has it: cache and logs in the home directory, which is backed up itself."""
    home = btrfs.subvolume("home")
    (home / "file").write_text("x")
    environment = {k: v for k, v in kopia.environment.items() if k not in {"KOPIA_CACHE_DIRECTORY", "KOPIA_LOG_DIR"}}
    mine = Kopia(
        kopia.folder, {**environment, "HOME": str(home), "KOPIA_CONFIG_PATH": str(home / ".config" / "kopia.config")}
    )
    mine("repository", "connect", "filesystem", "--path", kopia.repository)
    return home, mine


def test_kopias_own_cache_and_logs_are_written_and_never_read(
    kopia_at_home: tuple[Path, Kopia], in_place: InPlace, tmp_path: Path
) -> None:
    home, kopia = kopia_at_home
    ended, document = in_place(home, env=kopia.environment)
    assert ended.returncode == 0, str(ended)
    assert document["engine"]["problem_count"] == 0
    restored = tmp_path / "restored"
    kopia("snapshot", "restore", document["engine"]["snapshot_id"], restored)
    assert list((home / ".cache" / "kopia").glob("*/CACHEDIR.TAG"))
    assert {path.name for path in (restored / ".cache").rglob("*") if path.is_file()} <= {"CACHEDIR.TAG"}
    assert (restored / "file").read_text() == "x"


def test_a_cache_that_would_be_read_is_refused(kopia_at_home: tuple[Path, Kopia], in_place: InPlace) -> None:
    home, kopia = kopia_at_home
    kopia("policy", "set", "--global", "--ignore-cache-dirs=false")
    ended, document = in_place(home, env=kopia.environment)
    assert ended.returncode == 1
    assert document["error"]["kind"] == "own-in-source"
    assert "kopia's cache" in document["error"]["message"]
    assert document["sets"] == []


def test_a_repository_in_a_source_is_refused_unless_kopia_leaves_it_out(
    btrfs: Btrfs, kopia: Kopia, in_place: InPlace, tmp_path: Path
) -> None:
    home = btrfs.subvolume("home")
    repository = home / "repository"
    repository.mkdir()
    (home / "file").write_text("x")
    kopia("repository", "create", "filesystem", "--path", repository)
    ended, document = in_place(home, env=kopia.environment)
    assert ended.returncode == 1
    assert document["error"]["kind"] == "own-in-source"
    assert f"kopia's repository {repository} lies in {home}" in document["error"]["message"]
    assert f"kopia policy set {home} --add-ignore=/repository" in document["error"]["hint"]
    assert document["sets"] == []

    kopia("policy", "set", home, "--add-ignore=/repository")
    ended, document = in_place(home, env=kopia.environment)
    assert ended.returncode == 0, str(ended)
    kopia("snapshot", "restore", document["engine"]["snapshot_id"], tmp_path / "restored")
    assert not (tmp_path / "restored" / "repository").exists()
    kopia("policy", "set", home / "repository", "--compression=zstd")
    ended, document = in_place(home, env=kopia.environment)
    assert (ended.returncode, document["error"]["kind"]) == (1, "own-in-source"), "a policy of its own on the way"


def test_an_override_of_the_source_is_refused(data: Path, kopia: Kopia, in_place: InPlace) -> None:
    ended, document = in_place("-o", "--override-source=a@b:/c", data, env=kopia.environment)
    assert ended.returncode == 1
    assert document["error"]["kind"] == "override-source"


def test_a_history_below_a_source_is_named(data: Path, kopia: Kopia, in_place: InPlace) -> None:
    kopia("snapshot", "create", data / "nested")
    ended, document = in_place("-r", data, env=kopia.environment)
    assert ended.returncode == 0, str(ended)
    assert any("kopia has a history of" in warning and f"{data}/nested" in warning for warning in document["warnings"])


def test_what_is_hidden_and_was_in_the_last_snapshot_is_named(data: Path, kopia: Kopia, in_place: InPlace) -> None:
    full, empty = data / "full", data / "empty"
    for folder in (full, empty):
        folder.mkdir()
    with mounted("-t", "tmpfs", "none", full), mounted("-t", "tmpfs", "none", empty):
        (full / "file").write_text("live")
        _, document = in_place("--only-frozen", data, env=kopia.environment)
        assert not any("is hidden from this backup" in warning for warning in document["warnings"])
        assert in_place(data, env=kopia.environment)[0].returncode == 0
        ended, document = in_place("--only-frozen", data, env=kopia.environment)
        assert ended.returncode == 0, str(ended)
        (warning,) = (warning for warning in document["warnings"] if "is hidden from this backup" in warning)
        assert f"{full} (tmpfs) is hidden from this backup, and was in kopia's last one of {data}" in warning
        _, document = in_place("--only-frozen", data, env=kopia.environment)
        assert not any("is hidden from this backup" in warning for warning in document["warnings"])


def test_a_directory_that_is_asked_for_stays_writable(data: Path, in_place: InPlace, script: Script) -> None:
    wanted = data / "state" / "of engine"
    ended, _ = in_place(
        "--writable", wanted, "-c", script(f"echo written > '{wanted}/file'; touch {data}/x || echo no"), data
    )
    assert ended.returncode == 0, str(ended)
    assert (wanted / "file").read_text() == "written\n"
    assert script.said == ["no"]


def test_a_writable_directory_that_kopia_would_read_is_refused(data: Path, kopia: Kopia, in_place: InPlace) -> None:
    ended, document = in_place("--writable", data / "state", data, env=kopia.environment)
    assert ended.returncode == 1
    assert document["error"]["kind"] == "own-in-source"
    (data / "state").mkdir(exist_ok=True)
    (data / "state" / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    ended, document = in_place("--writable", data / "state", data, env=kopia.environment)
    assert ended.returncode == 0, str(ended)


def test_a_writable_directory_that_makes_no_sense_is_refused(data: Path, in_place: InPlace, tmp_path: Path) -> None:
    """A mistyped one would be found out only by what the engine could not write."""
    ended, document = in_place("--writable", tmp_path / "mistyped", "-c", "true", data)
    assert (ended.returncode, document["error"]["kind"]) == (1, "no-writable")
    assert f"--writable {tmp_path}/mistyped: there is no such directory" in ended.stderr
    ended, document = in_place("--writable", data, "-c", "true", data)
    assert (ended.returncode, document["error"]["kind"]) == (1, "own-in-source")
    assert f"--writable {data} is what is backed up, which is read-only" in ended.stderr


def test_an_engine_has_a_place_for_its_temporary_files(data: Path, in_place: InPlace, script: Script) -> None:
    temporary = data / "tmp"
    temporary.mkdir()
    ended, _ = in_place("-c", script("echo x > $TMPDIR/x && cat $TMPDIR/x"), data, env={"TMPDIR": str(temporary)})
    assert ended.returncode == 0, str(ended)
    assert script.said == ["x"]
    assert list(temporary.iterdir()) == []


def test_what_has_to_be_written_is_there_also_on_a_disk_that_is_hidden(
    data: Path, in_place: InPlace, script: Script
) -> None:
    point = data / "disk"
    point.mkdir()
    with mounted("-t", "tmpfs", "none", point):
        (point / "repository").mkdir()
        (point / "file").touch()
        lines = f"ls {point}; echo x > {point}/repository/written"
        words = ["--only-frozen", "--writable", point / "repository", "-c", script(lines), data]
        ended, _ = in_place(*words)
        assert ended.returncode == 0, str(ended)
        assert script.said == ["repository"]
        assert (point / "repository" / "written").read_text() == "x\n"
