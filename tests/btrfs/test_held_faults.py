"""While writers are held, processes are stopped or killed, clients and servers end, and disks are full: nothing stays held."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.btrfs.conftest import wait_for
from tests.btrfs.held import WITHIN, Family, Ground, Leftovers, family, ground_of, thawed_after
from tests.support.filesystems import Btrfs, Filesystem, patiently
from tests.support.killing import kill_together
from tests.support.moments import children, held
from tests.support.parts import share
from tests.support.programs import Kopiatomic, command
from tests.support.state_faults import fill
from tests.unit.support.databases import MariaDB, Server, mariadb, postgresql
from tests.unit.support.holders import Grouped, eventually, thawers

pytestmark = pytest.mark.in_part(3)

LIMIT = 1.0
"""Seconds for which frozen processes are held at most, here."""

STOPS = share(60, 4)
ROUND = 4
"""How many runs one test stops."""

SPAN = 0.5
"""Seconds after the start of before_freeze within which a process is stopped."""

COMMIT = "INSERT INTO test.plain VALUES (1)"
"""A statement that waits for MariaDB's lock."""

Make = Callable[..., Ground]


@pytest.fixture
def make(kopiatomic: Kopiatomic, root: Path) -> Iterator[Make]:
    with ExitStack() as stack:

        def make(*datasets: Path) -> Ground:
            return stack.enter_context(ground_of(datasets, kopiatomic, root))

        yield make


@pytest.fixture
def ground(make: Make, btrfs: Btrfs, group: Grouped) -> Ground:
    ground = make(btrfs.subvolume("data"))
    ground.hold_group(group, limit=f"{LIMIT:g}s")
    return ground


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """Processes do nothing during the block."""
    with ExitStack() as stack:
        for pid in pids:
            stack.enter_context(held(pid))
        yield


# Stopped, and killed


@pytest.mark.parametrize("who", ["main", "guardian", "keeper", "thawer", "all"])
def test_what_is_stopped_holds_nothing_for_longer_than_the_limit(
    who: str, ground: Ground, group: Grouped, leftovers: Leftovers
) -> None:
    ground.hold_gate()
    with ground.at_the_gate() as process:
        assert group.is_frozen()
        of = Family.of(process.pid)
        with stopped(of.of_the_run if who == "all" else [getattr(of, who)]):
            if who not in {"keeper", "all"}:
                ground.let_go()
            assert thawed_after(group, LIMIT + WITHIN) < LIMIT + WITHIN
            ground.let_go()
            if who != "thawer":
                time.sleep(0.3)
                assert process.poll() is None
            else:
                wait_for(lambda: process.poll() is not None, "the end of the run")
        code, document = ground.ended(process)
    if who in {"keeper", "all"}:
        assert (code, document["error"]["kind"]) == (1, "hold-lost")
        assert f"its processes ran before the last snapshot existed: the limit is {LIMIT:g} s" in str(document["error"])
    else:
        assert (code, document["error"]) == (0, None)
    ground.require_settled(leftovers, who)


@pytest.mark.parametrize("first", range(0, STOPS, ROUND))
def test_what_is_stopped_at_any_instant_goes_on_honestly(
    first: int, btrfs: Btrfs, make: Make, group: Grouped, leftovers: Leftovers
) -> None:
    ground = make(btrfs.subvolume("data"))
    limit = 0.4
    ground.hold_group(group, limit=f"{limit:g}s")
    for number in range(first, first + ROUND):
        chance = random.Random(f"{os.environ['KOPIATOMIC_TEST_SEED']}/stopped/{number}")
        at_hold, everyone = chance.random() < 0.6, chance.random() < 0.3
        after = chance.random() * (0.02 if at_hold else SPAN)
        with ground.started() as process:
            wait_for(lambda: ground.noted("before_freeze"), "the start of before_freeze")
            while at_hold and not group.is_asked() and process.poll() is None:
                time.sleep(0.0002)
            time.sleep(after)
            below = family(process.pid)
            chosen = below if everyone or not below else [chance.choice(below)]
            case = f"case {number}: {len(chosen)} of {len(below)}, {after:.4f} s after {'the freeze' if at_hold else 'the start'}"
            try:
                for pid in chosen:
                    _signal(pid, signal.SIGSTOP)
                assert thawed_after(group, limit + WITHIN) < limit + WITHIN, case
                time.sleep(2 * limit)
                assert not group.is_asked() or not everyone, case
            finally:
                for pid in chosen:
                    _signal(pid, signal.SIGCONT)
            code, document = ground.ended(process)
        # What was held for too long is not proven, so nothing is saved.
        how = code, document["error"] and document["error"]["kind"]
        assert how in {(0, None), (1, "hold-lost"), (1, "hold-timeout")}, (case, document)
        assert (document["writers"][0]["why"] == "frozen before and after") == (code == 0), (case, document["writers"])
        ground.require_settled(leftovers, case)


def _signal(pid: int, signum: int) -> None:
    """Send a signal to a process that may have just ended."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return


def test_a_killed_thawer_is_not_needed(ground: Ground, group: Grouped, leftovers: Leftovers) -> None:
    ground.hold_gate()
    with ground.at_the_gate() as process:
        os.kill(Family.of(process.pid).thawer, signal.SIGKILL)
        ground.let_go()
        assert thawed_after(group, WITHIN) < WITHIN
        code, document = ground.ended(process)
    assert (code, document["writers"][0]["why"]) == (0, "frozen before and after")
    ground.require_settled(leftovers)


def test_what_stays_frozen_when_the_thawer_is_killed_as_well_is_thawed_by_recover(
    ground: Ground, group: Grouped, root: Path, leftovers: Leftovers
) -> None:
    ground.hold_gate()
    with ground.at_the_gate() as process:
        of = Family.of(process.pid)
        kill_together([of.thawer, *of.of_the_run])
        process.wait(30)
    time.sleep(LIMIT + 0.5)
    assert group.is_frozen()
    said = ground.kopiatomic("recover", env=ground.environment)
    assert said.returncode == 0, str(said)
    assert re.search(rf"^cgroup {group.path}\n  ours: .*\n  thawed$", said.stdout, re.MULTILINE), str(said)
    assert not group.is_asked()
    assert (ground.starts, ground.ends) == (["after_freeze"], ["after_freeze-ended"])
    assert eventually(lambda: leftovers(root) == [])
    # The thawer's own group goes with the next.
    with ground.at_the_gate() as process:
        assert len(thawers()) == 1
        ground.let_go()
        assert ground.ended(process)[0] == 0
    ground.require_settled(leftovers)


def test_nothing_is_held_while_others_are_waited_for_after_the_main_process_was_killed(
    btrfs: Btrfs, make: Make, group: Grouped, leftovers: Leftovers
) -> None:
    """However long the limits are."""
    ground = make(btrfs.subvolume("data"))
    ground.hold_group(group, limit="60s")
    ground.hold("command", command=["sh", "-c", f"echo held; cat; touch {ground.folder}/released"], limit="60s")
    ground.hold_gate()
    with ground.at_the_gate() as process:
        process.kill()
        assert thawed_after(group, WITHIN) < WITHIN
        assert eventually((ground.folder / "released").exists, WITHIN)
        wait_for(lambda: ground.ends, "the end of after_freeze")
    ground.require_settled(leftovers)


# A database's client and server


@pytest.fixture
def server(btrfs: Btrfs) -> Iterator[MariaDB]:
    with mariadb(on={"": btrfs.subvolume("database")}) as one:
        one.sql("CREATE DATABASE test; CREATE TABLE test.plain (i int) ENGINE=InnoDB")
        yield one


@pytest.fixture
def holding_mariadb(make: Make, server: MariaDB) -> Ground:
    ground = make(server.folder)
    ground.hold("mariadb", socket=f"{server.folder}/socket", limit="2s")
    return ground


def pid_of(server: Server) -> int:
    return server.group.processes[0].pid


def client_of(keeper: int) -> int:
    (client,) = (pid for pid in children(keeper) if b"--skip-reconnect" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return client


@pytest.mark.parametrize(
    ("who", "signum", "said"),
    [
        ("client", signal.SIGKILL, "SIGKILL"),
        ("client", signal.SIGSTOP, "nothing was answered within 5 s"),
        ("keeper", signal.SIGSTOP, "ERROR (2006|2013|4031)"),
        ("server", signal.SIGKILL, "ERROR (2006|2013)"),
        ("server", signal.SIGTERM, "ERROR (1053|1927|2006|2013)"),
        ("server", signal.SIGSTOP, "nothing was answered within 5 s"),
    ],
)
def test_a_lock_that_ends_early_is_said_and_nothing_is_locked(
    who: str, signum: int, said: str, server: MariaDB, holding_mariadb: Ground, group: Grouped, leftovers: Leftovers
) -> None:
    ground = holding_mariadb
    ground.hold_group(group)
    ground.hold_gate()
    with ground.at_the_gate() as process:
        assert not server.answers(COMMIT, within=0.3)
        of = Family.of(process.pid)
        pid = {"client": client_of(of.keeper), "keeper": of.keeper, "server": pid_of(server)}[who]
        os.kill(pid, signum)
        try:
            if who != "server":
                # At most by the server's own limit.
                assert server.answers(COMMIT, within=2 + WITHIN)
            elif signum != signal.SIGSTOP:
                server.group.processes[0].wait(30)
            ground.let_go()
            if who == "keeper":
                os.kill(pid, signal.SIGCONT)
            code, document = ground.ended(process)
        finally:
            _signal(pid, signal.SIGCONT)
    assert (code, document["error"]["kind"]) == (1, "hold-lost"), document["error"]
    assert re.search(f"mariadb was not held still until the last snapshot existed: .*{said}", str(document["error"]))
    assert not group.is_asked()
    if who != "server" or signum == signal.SIGSTOP:
        assert server.answers(COMMIT, within=WITHIN)
    ground.require_settled(leftovers)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
@pytest.mark.parametrize("moment", ["before", "before_freeze"])
def test_a_server_that_ends_or_hangs_before_it_is_held_fails_the_run_in_time(
    moment: str, signum: int, server: MariaDB, holding_mariadb: Ground, root: Path, leftovers: Leftovers
) -> None:
    """Before the plan asks it, and between that and the lock."""
    ground = holding_mariadb
    gone = f"while [ -e {server.folder}/pid ]; do sleep 0.05; done" if signum == signal.SIGTERM else "sleep 0.3"
    ground.scripts[moment] = f"kill -{signum:d} {pid_of(server)}; {gone}"
    with ground.started() as process:
        code, document = ground.ended(process, within=20)
    if signum == signal.SIGSTOP:
        os.kill(pid_of(server), signal.SIGCONT)
        assert server.answers(COMMIT, within=WITHIN)
    assert code == 1
    kinds = (
        {"hold-no-server", "hold-lost"} if signum != signal.SIGSTOP else {"hold-lost", "hold-no-answer", "hold-timeout"}
    )
    assert document["error"]["kind"] in kinds, document["error"]
    assert document["sets"] == []
    if moment == "before":
        assert (ground.noted("before_freeze"), ground.starts) == ([], [])
        assert leftovers(root) == []
    else:
        ground.require_settled(leftovers)


@pytest.mark.parametrize("how", ["killed", "ended", "asked while it is stopped"])
def test_a_postgresql_that_ends_while_it_is_frozen(
    how: str, btrfs: Btrfs, make: Make, root: Path, leftovers: Leftovers
) -> None:
    """What is frozen when it is killed writes no more; a request to end comes to it when it is thawed."""
    with postgresql(on={"data": btrfs.subvolume("data"), "wal": btrfs.subvolume("wal")}) as server:
        ground = make(server.data, server.apart)
        ground.hold("postgresql", name=server.number, timeout="5s")
        ground.hold_gate()
        if how == "asked while it is stopped":
            ground.scripts["before"] = f"kill -STOP {pid_of(server)}"
            with ground.started() as process:
                code, document = ground.ended(process)
            os.kill(pid_of(server), signal.SIGCONT)
            assert (code, document["error"]["kind"]) == (1, "hold-no-answer"), document["error"]
            assert (ground.noted("before_freeze"), ground.starts, leftovers(root)) == ([], [], [])
            assert server.sql("SELECT 1") == "1"
            return
        with ground.at_the_gate() as process:
            if how == "killed":
                (server.group.directory / "cgroup.kill").write_text("1")
            else:
                os.kill(pid_of(server), signal.SIGINT)
            ground.let_go()
            code, document = ground.ended(process)
        assert server.group.processes[0].wait(30) in {0, -signal.SIGKILL}
        assert (code, document["writers"][0]["why"]) == (0, "frozen before and after"), document
        assert not server.group.is_asked()
        ground.require_settled(leftovers)


# Disks


@pytest.fixture
def small_state(kopiatomic: Kopiatomic) -> Iterator[Path]:
    """The state directory, on a filesystem of its own with a megabyte."""
    state = Path(kopiatomic.environment["KOPIATOMIC_STATE_DIR"])
    state.mkdir()
    command("mount", "-t", "tmpfs", "-o", "mode=0700,size=1m", "none", state)
    yield state
    command("umount", state)


def test_what_is_owed_cannot_be_recorded_so_nothing_is_started(
    ground: Ground, small_state: Path, group: Grouped, root: Path, leftovers: Leftovers
) -> None:
    ground.scripts["before"] = f"dd if=/dev/zero of={small_state}/hog bs=4k 2>/dev/null"
    with ground.started() as process:
        code, document = ground.ended(process)
    assert (code, document["error"]["kind"]) == (1, "state-unusable"), document["error"]
    assert "full" in document["error"]["message"]
    assert (ground.noted("before_freeze"), ground.starts) == ([], [])
    assert not group.is_asked()
    assert leftovers(root) == []
    (small_state / "hog").unlink()
    ground.scripts["before"] = ":"
    with ground.started() as process:
        assert ground.ended(process)[0] == 0
    ground.require_settled(leftovers)


@pytest.mark.parametrize("at_the_gate", [False, True], ids=["before_freeze", "held"])
def test_a_full_state_directory_lets_everything_go(
    at_the_gate: bool, ground: Ground, small_state: Path, group: Grouped, leftovers: Leftovers
) -> None:
    """The end of after_freeze cannot be recorded, so it runs once more, and is told that."""
    ground.hold_gate()
    if at_the_gate:
        with ground.at_the_gate() as process:
            fill(small_state)
            ground.let_go()
            code, document = ground.ended(process)
        assert (code, document["error"]) == (0, None)
        assert any("full" in warning for warning in document["warnings"]), document["warnings"]
    else:
        ground.scripts["before_freeze"] = f"dd if=/dev/zero of={small_state}/hog bs=4k 2>/dev/null"
        with ground.started() as process:
            code, document = ground.ended(process)
        assert (code, document["error"]["kind"]) == (1, "state-unusable"), document["error"]
        assert not (ground.folder / "holding").exists()
    assert not group.is_asked()
    assert (ground.starts, ground.ends) == (["after_freeze"], ["after_freeze-ended"])
    (small_state / "hog").unlink()
    recovered = ground.kopiatomic("recover", env=ground.environment)
    assert recovered.returncode == 0, str(recovered)
    ground.require_settled(leftovers, times=2)


@pytest.fixture
def tiny(tmp_path: Path, filesystems: list[Filesystem]) -> Iterator[Btrfs]:
    """A filesystem that is soon so full that no snapshot can be made."""
    folder = tmp_path / "tiny"
    found = Btrfs(folder / "mnt", folder / "image")
    found.mountpoint.mkdir(parents=True)
    with found.image.open("wb") as image:
        image.truncate(64 << 20)
    command("mkfs.btrfs", "--quiet", "--mixed", found.image)
    command("mount", "-t", "btrfs", "-o", "loop,noatime", found.image, found.mountpoint)
    filesystems.append(found)
    yield found
    patiently("umount", str(found.mountpoint))


def stuff(filesystem: Btrfs) -> None:
    """Leave no room on it."""
    fill(filesystem.mountpoint)
    os.sync()
    try:
        for number in range(1_000_000):
            (filesystem.mountpoint / f"{number:0200}").touch()
    except OSError:
        os.sync()


@pytest.mark.parametrize("at_the_gate", [False, True], ids=["before_freeze", "held"])
def test_a_full_filesystem_lets_everything_go(
    at_the_gate: bool, tiny: Btrfs, make: Make, group: Grouped, leftovers: Leftovers
) -> None:
    ground = make(tiny.subvolume("data"))
    ground.hold_group(group)
    if at_the_gate:
        ground.hold_gate()
        with ground.at_the_gate() as process:
            stuff(tiny)
            ground.let_go()
            assert thawed_after(group, WITHIN) < WITHIN
            code, document = ground.ended(process)
    else:
        stuff(tiny)
        with ground.started() as process:
            code, document = ground.ended(process)
    assert code == 1, document
    assert document["error"]["message"].endswith("the filesystem is full"), document["error"]
    assert not group.is_asked()
    (tiny.mountpoint / "hog").unlink()
    ground.require_settled(leftovers)


def test_a_filesystem_that_stands_still_holds_nothing_for_longer_than_the_limit(
    ground: Ground, btrfs: Btrfs, group: Grouped, leftovers: Leftovers
) -> None:
    """A call that makes a snapshot waits in the kernel, which no signal interrupts."""
    ground.hold_gate()
    with ground.at_the_gate() as process:
        command("fsfreeze", "--freeze", btrfs.mountpoint)
        try:
            ground.let_go()
            assert thawed_after(group, LIMIT + WITHIN) < LIMIT + WITHIN
        finally:
            command("fsfreeze", "--unfreeze", btrfs.mountpoint)
        code, document = ground.ended(process)
    assert (code, document["error"]["kind"]) == (1, "hold-lost"), document["error"]
    ground.require_settled(leftovers)
