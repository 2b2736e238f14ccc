"""PostgreSQL: nothing is held where one instant has all of its files; else its processes are frozen, and run again."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.errors import KopiatomicError
from kopiatomic.hooks import kinds
from kopiatomic.hooks.holder import Finding, Place, Wanted, not_in_backup
from tests.support.programs import command
from tests.unit.support.databases import (
    PostgreSQL,
    as_user,
    copied,
    folder_of,
    postgresql,
    program,
    restored,
    transfers,
)
from tests.unit.support.holders import (
    OUTSIDE,
    WITHIN,
    around,
    eventually,
    held,
    held_elsewhere,
    holder_of,
    thawers,
    used,
)

pytestmark = pytest.mark.in_part(22)

POOL, OTHER = "tank", "other"
WORD = "not-to-be-seen"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with postgresql() as one:
        yield one


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert eventually(lambda: not thawers(), WITHIN)


def wanted(server: PostgreSQL, **settings: Any) -> Wanted:
    return Wanted("postgresql", settings={"host": str(server.folder), "port": int(server.number), **settings})


def found(
    server: PostgreSQL, data: str = POOL, wal: str = POOL, limit: float | None = None, **settings: Any
) -> Finding:
    """What is found where data directory and WAL are in the instants of these pools; in none if empty."""
    places = {
        str(path): Place(f"{pool}/{path.name}", pool)
        for path, pool in ((server.data, data), (server.apart, wal))
        if pool
    }
    (finding,) = kinds.find(replace(wanted(server, **settings), limit=limit), around(places))
    return finding


def refused(server: PostgreSQL, **settings: Any) -> KopiatomicError:
    with pytest.raises(KopiatomicError) as caught:
        found(server, **settings)
    return caught.value


def test_nothing_is_held_where_all_is_in_one_instant(server: PostgreSQL) -> None:
    finding = found(server)
    where = f"{server.data}, WAL in {server.apart}"
    assert str(finding) == f"postgresql 15/test: {where}: all in one instant, nothing to hold"
    assert (finding.holder, finding.in_backup) == (None, True)


def test_its_processes_are_frozen_where_the_wal_has_another_instant(server: PostgreSQL) -> None:
    finding = found(server, wal=OTHER)
    assert "in other/wal, tank/data, which share no instant: its " in finding.text
    assert finding.text.endswith(" processes are frozen for the snapshots")
    with held(holder_of([finding])) as holder:
        assert server.group.is_frozen()
        assert not server.answers("SELECT 1", within=0.5)
        how = holder.release()
        assert server.answers("SELECT 1", within=5)
    assert how.proven
    assert how.stall > 0.5e9


def test_a_database_or_a_tablespace_elsewhere_counts(server: PostgreSQL) -> None:
    server.sql("CREATE DATABASE apart")
    oid = server.sql("SELECT oid FROM pg_database WHERE datname = 'apart'")
    places = {str(server.data): Place("tank/data", POOL), str(server.apart): Place("tank/wal", POOL)}
    inner = {f"{server.data}/base/{oid}": Place("tank/inner", OTHER)}
    (finding,) = kinds.find(wanted(server), around(places | inner))
    assert finding.holder is not None
    server.sql("DROP DATABASE apart")

    space = server.folder / "space"
    command(*as_user(server.user), "mkdir", space)
    server.sql(f"CREATE TABLESPACE space LOCATION '{space}'")
    try:
        (finding,) = kinds.find(wanted(server), around(places))
        assert not finding.in_backup
        assert re.match(rf"{re.escape(str(space))} {OUTSIDE}", finding.text)
        (finding,) = kinds.find(wanted(server), around(places | {str(space): Place("tank/space", POOL)}))
        assert (finding.holder, f", more in {space}: all in one instant" in finding.text) == (None, True)
    finally:
        server.sql("DROP TABLESPACE space")


def test_what_is_not_in_the_backup_is_said_and_is_an_error(server: PostgreSQL) -> None:
    finding = found(server, wal="")
    assert (finding.holder, finding.in_backup) == (None, False)
    assert re.fullmatch(rf"{re.escape(str(server.apart))} {OUTSIDE}", finding.text)
    error = not_in_backup(wanted(server), [found(server), finding])
    assert error is not None
    assert (error.kind, str(finding) in error.message) == ("hold-not-in-backup", True)
    assert not_in_backup(wanted(server), [found(server)]) is None


@pytest.mark.parametrize("wal", [POOL, OTHER])
def test_a_checkpoint_is_made_first(server: PostgreSQL, wal: str) -> None:
    server.sql("CREATE TABLE IF NOT EXISTS written (i int); INSERT INTO written VALUES (1)")
    before = server.sql("SELECT checkpoint_lsn FROM pg_control_checkpoint()")
    with used(holder_of([found(server, wal=wal, checkpoint=True)])):
        assert server.sql("SELECT checkpoint_lsn FROM pg_control_checkpoint()") != before
    assert not server.group.is_frozen()


def test_it_runs_again_after_the_holder_was_killed(server: PostgreSQL) -> None:
    with held_elsewhere(holder_of([found(server, wal=OTHER)])) as pid:
        assert server.group.is_frozen()
        os.kill(pid, signal.SIGKILL)
        assert server.answers("SELECT 1", within=WITHIN)


def test_the_server_can_be_killed_while_it_is_held() -> None:
    with postgresql() as server:
        with held(holder_of([found(server, wal=OTHER)])) as holder:
            (server.group.directory / "cgroup.kill").write_text("1")
            how = holder.release()
            # It may be seen while its processes end.
            assert how.proven or how.why == "one of its processes was killed or came to it meanwhile"
        assert refused(server).kind == "hold-no-server"


# What is restored


def test_copies_made_one_after_the_other_while_it_is_frozen_recover() -> None:
    with postgresql() as server, transfers(server):
        with held(holder_of([found(server, wal=OTHER, limit=60)])) as holder:
            data = copied(server.data, server.folder / "data2")
            time.sleep(0.3)
            wal = copied(server.apart, server.folder / "wal2")
            assert holder.release().proven
        with restored(server, data, wal) as copy:
            assert copy.sql("SELECT sum(money), count(*) FROM account") == "10000|100"
            command(
                *as_user(copy.user),
                program("pg_amcheck"),
                "-h",
                copy.folder,
                "-p",
                copy.number,
                "-d",
                "postgres",
                "--install-missing",
            )


def test_copies_made_one_after_the_other_do_not_recover_otherwise() -> None:
    """The control: checkpoints between the two copies remove what the first one needs of the second."""
    with postgresql() as server, transfers(server):
        data = copied(server.data, server.folder / "data2")
        for _ in range(3):
            server.sql("SELECT pg_switch_wal()")
            server.sql("CHECKPOINT")
        wal = copied(server.apart, server.folder / "wal2")
        with pytest.raises(AssertionError, match="the server has ended"), restored(server, data, wal):
            pass


# What can be wrong


def test_no_server_is_an_error(server: PostgreSQL) -> None:
    error = refused(server, port=1)
    assert error.kind == "hold-no-server"
    assert "No such file or directory" in error.message


def test_a_missing_client_is_an_error(server: PostgreSQL) -> None:
    assert refused(server, client="/none/psql").kind == "hold-no-client"


def test_a_process_of_another_user_is_not_believed(server: PostgreSQL) -> None:
    """Anybody can listen in /tmp, and would be given the password."""
    assert refused(server, system_user="nobody", user="postgres").kind == "hold-peer"


def test_a_missing_right_is_an_error(server: PostgreSQL) -> None:
    server.sql("CREATE ROLE little LOGIN")
    error = refused(server, user="little")
    assert error.kind == "hold-no-right"
    server.sql("GRANT pg_monitor TO little")
    assert found(server, user="little").in_backup


def test_a_wrong_password_is_an_error_and_a_right_one_is_not_seen(server: PostgreSQL) -> None:
    server.sql(f"CREATE ROLE secret LOGIN PASSWORD '{WORD}' IN ROLE pg_monitor")
    rules = server.data / "pg_hba.conf"
    text = rules.read_text()
    rules.write_text(f"local all secret scram-sha-256\n{text}")
    server.sql("SELECT pg_reload_conf()")
    try:
        assert eventually(lambda: refused(server, user="secret").kind == "hold-password")
        assert refused(server, user="secret", password=WORD[1:]).kind == "hold-password"
        # The client is a program that writes down what it was started with.
        seen, client = server.folder / "seen", server.folder / "client"
        client.write_text(f'#!/bin/sh\necho "$@" > {seen}\nexec psql "$@"\n')
        client.chmod(0o755)
        assert found(server, user="secret", password=WORD, client=str(client)).in_backup
        assert "-U secret" in seen.read_text()
        assert WORD not in seen.read_text()
    finally:
        rules.write_text(text)
        server.sql("SELECT pg_reload_conf()")


def test_a_server_that_recovers_is_an_error() -> None:
    with postgresql("hot_standby=off", standby=True) as server:
        assert refused(server).kind == "hold-recovering"


def test_a_standby_is_frozen_like_a_primary() -> None:
    with postgresql(standby=True) as server:
        assert server.sql("SELECT pg_is_in_recovery()") == "t"
        with held(holder_of([found(server, wal=OTHER)])) as holder:
            assert holder.release().proven
        assert server.answers("SELECT 1", within=5)


def test_a_group_shared_with_others_is_refused(server: PostgreSQL) -> None:
    backend = server.started("SELECT pg_sleep(30)")
    try:
        assert eventually(
            lambda: server.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(30)'") > "0"
        )
        pid = server.sql("SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30)'")
        (server.group.directory.parent / "cgroup.procs").write_text(pid)
        error = refused(server, wal=OTHER)
        assert error.kind == "hold-refused"
        assert "is in another control group, /" in error.message
    finally:
        backend.kill()
        backend.wait()
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30)'")


# Which servers there are


def test_all_servers_of_the_user_are_found_by_what_they_listen_on(server: PostgreSQL) -> None:
    findings = kinds.find(Wanted("postgresql"), around({str(server.folder): Place("tank/a", POOL)}))
    assert "postgresql 15/test" in [finding.label for finding in findings]
    for name in ("15/test", server.number):
        findings = kinds.find(Wanted("postgresql", name), around({str(server.folder): Place("tank/a", POOL)}))
        # Other tests may have servers of the same name.
        (finding,) = (one for one in findings if str(server.data) in one.text)
        assert finding.label == f"postgresql {name}"
    with pytest.raises(KopiatomicError) as caught:
        kinds.find(Wanted("postgresql", "none"), around())
    assert caught.value.kind == "hold-no-server"
    assert "with this name or port; there are: " in caught.value.message
    assert f"15/test on port {server.number}" in caught.value.message


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes a pg_lsclusters that the server's user can run, out of a line of the shell."""
    with folder_of("postgres") as folder:

        def make(line: str) -> None:
            (folder / "pg_lsclusters").write_text(f"#!/bin/sh\n{line}\n")
            (folder / "pg_lsclusters").chmod(0o755)

        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield make


def clusters(name: str, data: Path) -> str:
    """What Debian's list has of a cluster that is down by its settings."""
    first = f"Ver Cluster Port Status Owner    {'Data directory'.ljust(len(str(data)))} Log file"
    line = f"15  {name.ljust(7)} 5499 down   postgres {data} /var/log/x y.log"
    return f"cat <<'X'\n{first}\n{line}\nX"


def test_a_server_that_is_down_is_said_and_its_files_must_be_in_the_backup(listed: Callable[[str], None]) -> None:
    with folder_of("postgres") as folder:
        data, wal = folder / "data", folder / "wal"
        for directory in (data, wal, data / "base"):
            directory.mkdir()
        (data / "pg_wal").symlink_to(wal)
        listed(clusters("old", data))
        whole = {str(data): Place("tank/data", POOL), str(wal): Place("tank/wal", OTHER)}
        for name in ("15/old", "5499"):
            (finding,) = kinds.find(Wanted("postgresql", name), around(whole))
            assert str(finding) == "postgresql 15/old: is down: its files do not change, nothing to hold"
        with pytest.raises(KopiatomicError, match=r"with this name or port; there are: .*15/old on port 5499"):
            kinds.find(Wanted("postgresql", "5498"), around(whole))
        del whole[str(wal)]
        (finding,) = kinds.find(Wanted("postgresql", "15/old"), around(whole))
        assert not finding.in_backup
        assert re.fullmatch(rf"is down: its files do not change; {wal} {OUTSIDE}", finding.text)
        # Not mounted, perhaps.
        listed(clusters("old", folder / "none"))
        with pytest.raises(KopiatomicError, match=r"its files cannot be examined: .*/none: No such file"):
            kinds.find(Wanted("postgresql", "15/old"), around(whole))


def test_a_checkpoint_needs_its_right(server: PostgreSQL) -> None:
    server.sql("CREATE ROLE checks LOGIN IN ROLE pg_monitor")
    error = refused(server, user="checks", checkpoint=True)
    assert (error.kind, "may not make one" in error.message) == ("hold-no-right", True)
    server.sql("GRANT pg_checkpoint TO checks")
    with used(holder_of([found(server, user="checks", checkpoint=True)])):
        pass


def test_a_server_that_runs_and_cannot_be_asked_is_an_error(listed: Callable[[str], None]) -> None:
    """Its list says that it is down: it has no socket of Unix, or its settings have been changed."""
    with postgresql() as server:
        listed(clusters("test", server.data))
        whole = {str(server.folder): Place("tank/a", POOL)}
        assert all("is down" not in finding.text for finding in kinds.find(Wanted("postgresql"), around(whole)))
        for path in server.folder.glob(".s.PGSQL.*"):
            path.unlink()
        for name in ("", "15/test"):
            with pytest.raises(KopiatomicError) as caught:
                kinds.find(Wanted("postgresql", name), around(whole))
            assert caught.value.kind == "hold-no-server"
            assert re.search(r"the server 15/test runs \(process \d+\), and no socket", caught.value.message)


@pytest.mark.parametrize(
    ("line", "why"), [("exec sleep 60", "did not end within 0.3 s"), ("echo x; exit 1", "failed: ")]
)
def test_a_list_that_cannot_be_had_is_an_error_and_made_by_the_servers_user(
    line: str, why: str, listed: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kopiatomic.hooks.postgresql._LIST_TIMEOUT", 0.3)
    listed(f"test $(id -un) = postgres || exit 0\n{line}")
    with pytest.raises(KopiatomicError) as caught:
        kinds.find(Wanted("postgresql", "15/none"), around())
    assert caught.value.kind == "hold-no-answer"
    assert f"pg_lsclusters, {why}" in caught.value.message


@pytest.mark.parametrize(
    "answer",
    [
        "hello",
        "null",
        "",
        "[" * 100_000,
        '{"version": 150000}',
        '{"version": "15", "data": "/x", "name": "", "fsync": "on"}',
        '{"version": 150000, "data": "/tmp/\\u0000", "name": "", "fsync": "on"}',
        '{"version": 150000, "data": "/tmp/\\ud800", "name": "", "fsync": "on"}',
        '{"version": 150000, "data": "x", "name": "", "fsync": "on"}',
        '{"version": 150000, "data": "/x", "name": null, "fsync": "on"}',
    ],
)
def test_an_odd_answer_is_an_error(answer: str) -> None:
    with folder_of("postgres") as folder:
        client = folder / "client"
        (folder / "answer").write_text(answer)
        client.write_text(f"#!/bin/sh\ncat > /dev/null\ncat {folder}/answer\n")
        client.chmod(0o755)
        with pytest.raises(KopiatomicError) as caught:
            kinds.find(Wanted("postgresql", settings={"client": str(client), "port": 1}), around())
    assert caught.value.kind == "hold-no-answer"


def test_a_group_with_a_process_of_another_user_is_refused(server: PostgreSQL) -> None:
    """Its user can name any of his processes in postmaster.pid, and would have root freeze what it shares a group with."""
    finding = found(server, wal=OTHER)
    other = server.group.start("sleep", "60")
    try:
        error = refused(server, wal=OTHER)
        assert error.kind == "hold-refused"
        assert (
            f"has sleep (process {other.pid}) of the user root, and the server's files are postgres's" in error.message
        )
        # Also if it came to it since.
        with pytest.raises(KopiatomicError, match="of the user root"), used(holder_of([finding])):
            pass
    finally:
        other.kill()
        other.wait()
