"""MariaDB: InnoDB needs nothing in one instant, a lock that ends with its connection holds the rest; else it is frozen."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kopiatomic.errors import KopiatomicError
from kopiatomic.hooks import kinds
from kopiatomic.hooks.holder import Finding, Place, Wanted
from kopiatomic.hooks.mariadb import BackupStage
from tests.support.programs import command
from tests.unit.support.databases import MariaDB, copied, mariadb, restored_mariadb, transfers_in_innodb
from tests.unit.support.holders import (
    OUTSIDE,
    WITHIN,
    around,
    eventually,
    grouped,
    held,
    held_elsewhere,
    holder_of,
    thawers,
    used,
)

pytestmark = pytest.mark.in_part(24)

POOL, OTHER = "tank", "other"
WORD = "not-to-be-seen"
COMMIT = "INSERT INTO test.plain VALUES (1)"
"""A statement in InnoDB that commits."""


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDB]:
    with mariadb() as one:
        one.sql("CREATE DATABASE test; CREATE TABLE test.plain (i int) ENGINE=InnoDB")
        one.sql("CREATE TABLE test.old (i int) ENGINE=MyISAM; CREATE TABLE test.aria (i int) ENGINE=Aria")
        yield one


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert eventually(lambda: not thawers(), WITHIN)


def wanted(server: MariaDB, timeout: float = 10, limit: float | None = None, **settings: Any) -> Wanted:
    return Wanted("mariadb", "", timeout, limit, settings={"socket": f"{server.folder}/socket", **settings})


def found(server: MariaDB, what: Wanted | None = None, log: str = POOL, binary: str = POOL) -> Finding:
    """What is found where the redo log, and the binary log, are in the instants of these pools; in none if empty."""
    pools = {server.data: POOL, server.apart: log, server.folder / "binary": binary}
    places = {str(path): Place(f"{pool}/{path.name}", pool) for path, pool in pools.items() if pool}
    (finding,) = kinds.find(what or wanted(server), around(places))
    return finding


def refused(server: MariaDB, **settings: Any) -> KopiatomicError:
    with pytest.raises(KopiatomicError) as caught:
        found(server, wanted(server, **settings))
    return caught.value


def test_innodb_in_one_instant_needs_nothing_and_a_lock_holds_the_rest(server: MariaDB) -> None:
    finding = found(server)
    assert str(finding) == "mariadb: InnoDB in one instant; other engines held by BACKUP STAGE"
    assert isinstance(finding.holder, BackupStage)
    with held(finding.holder) as holder:
        assert server.answers("SELECT COUNT(*) FROM test.plain", within=5)
        waiting = [server.started(COMMIT.replace("plain", table)) for table in ("plain", "old", "aria")]
        waiting.append(server.started("CREATE TABLE test.new (i int)"))
        time.sleep(0.5)
        assert [client.poll() for client in waiting] == [None] * 4
        how = holder.release()
        assert [client.wait(5) for client in waiting] == [0] * 4
    assert (how.proven, how.why) == (True, "released in the session that held it")
    assert 0.5e9 < how.stall < 2e9
    server.sql("DROP TABLE test.new")


def test_it_is_frozen_where_innodb_has_two_instants(server: MariaDB) -> None:
    finding = found(server, log=OTHER)
    assert finding.text.startswith("InnoDB in other/log, tank/data, which share no instant, so that no lock helps: ")
    with held(holder_of([finding])) as holder:
        assert server.group.is_frozen()
        assert not server.answers("SELECT 1", within=0.5)
        assert holder.release().proven
    assert server.answers("SELECT 1", within=5)


def test_what_is_not_in_the_backup_is_said(server: MariaDB) -> None:
    finding = found(server, log="")
    assert (finding.holder, finding.in_backup) == (None, False)
    assert re.fullmatch(rf"{re.escape(str(server.apart))} {OUTSIDE}", finding.text)


def test_a_binary_log_elsewhere_is_noted(server: MariaDB) -> None:
    assert found(server, binary=OTHER).note == ""
    assert found(server, binary="").note == f"its binary log in {server.folder}/binary is not in this backup"


def test_a_table_elsewhere_counts(server: MariaDB) -> None:
    (server.folder / "far").mkdir()
    shutil.chown(server.folder / "far", server.user)
    server.sql(f"CREATE TABLE test.far (i int) ENGINE=InnoDB DATA DIRECTORY='{server.folder}/far'")
    try:
        finding = found(server)
        assert (finding.in_backup, finding.text.startswith(f"{server.folder}/far/test is on ")) == (False, True)
    finally:
        server.sql("DROP TABLE test.far")
    server.sql(f"CREATE TABLE test.far (i int) ENGINE=MyISAM DATA DIRECTORY='{server.folder}/far'")
    try:
        assert found(server).text.startswith(f"{server.folder}/far/far.MYD is on ")
    finally:
        server.sql("DROP TABLE test.far")


def test_the_lock_ends_with_the_process_that_holds_it(server: MariaDB) -> None:
    with held_elsewhere(holder_of([found(server)])) as pid:
        assert not server.answers(COMMIT, within=0.5)
        os.kill(pid, signal.SIGKILL)
        assert server.answers(COMMIT, within=WITHIN)


def test_nothing_stays_locked_however_early_or_late_the_holder_is_killed(server: MariaDB) -> None:
    """25 instants of the whole life of a holder, chosen by the seed."""
    random = Random(os.environ["KOPIATOMIC_TEST_SEED"])
    holder = found(server).holder
    assert isinstance(holder, BackupStage)
    began = time.monotonic()
    _hold_once(holder)
    whole = time.monotonic() - began
    for _ in range(25):
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                while True:
                    _hold_once(holder)
            finally:
                os._exit(1)
        time.sleep(random.uniform(0, 2 * whole))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert server.answers(COMMIT, within=WITHIN)


def _hold_once(holder: BackupStage) -> None:
    with held(holder):
        time.sleep(0.02)
        holder.release()


def client_of(server: MariaDB) -> int:
    """The client that holds the lock."""
    return int(command("pgrep", "-f", f"mariadb .*--skip-reconnect.*--socket={server.folder}").stdout)


def test_the_lock_ends_with_its_client(server: MariaDB) -> None:
    with held(holder_of([found(server)])) as holder:
        os.kill(client_of(server), signal.SIGKILL)
        assert server.answers(COMMIT, within=WITHIN)
        how = holder.release()
    assert (how.proven, "SIGKILL" in how.why) == (False, True)


@pytest.mark.parametrize("who", ["client", "holder"])
def test_the_server_ends_the_lock_of_what_is_stopped(server: MariaDB, who: str) -> None:
    with held_elsewhere(holder_of([found(server)])) as pid:
        assert not server.answers(COMMIT, within=0.2)
        os.kill(client_of(server) if who == "client" else pid, signal.SIGSTOP)
        assert server.answers(COMMIT, within=WITHIN + 0.5)


def test_a_lock_that_the_server_has_ended_is_not_proven(server: MariaDB) -> None:
    with held(holder_of([found(server, wanted(server, limit=1))])) as holder:
        assert server.answers(COMMIT, within=WITHIN)
        how = holder.release()
    assert not how.proven
    assert "ERROR 20" in how.why


def test_a_long_write_to_another_engine_is_not_waited_for_for_ever(server: MariaDB) -> None:
    with server.started("INSERT INTO test.old SELECT SLEEP(20)") as writer:
        try:
            assert eventually(lambda: "User sleep" in server.sql("SHOW PROCESSLIST"))
            holder = holder_of([found(server, wanted(server, timeout=1.5))])
            began = time.monotonic()
            with pytest.raises(KopiatomicError) as caught, held(holder):
                pass
            assert (caught.value.kind, time.monotonic() - began < 6) == ("hold-timeout", True)
            # Nothing waits for the lock that was asked for.
            assert server.answers(COMMIT, within=WITHIN)
        finally:
            for number in server.sql(
                "SELECT ID FROM information_schema.PROCESSLIST WHERE INFO LIKE 'INSERT%SLEEP%'"
            ).split():
                server.sql(f"KILL {number}")
            writer.wait()


def test_another_backup_is_an_error_of_its_own(server: MariaDB) -> None:
    holder = holder_of([found(server, wanted(server, timeout=2))])
    with server.started("BACKUP STAGE START; SELECT SLEEP(20)") as other:
        try:
            assert eventually(lambda: "User sleep" in server.sql("SHOW PROCESSLIST"))
            assert refused(server, timeout=2).kind == "hold-backup-running"
            with pytest.raises(KopiatomicError) as caught, held(holder):
                pass
            assert caught.value.kind == "hold-backup-running"
        finally:
            for number in server.sql(
                "SELECT ID FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT SLEEP%'"
            ).split():
                server.sql(f"KILL {number}")
            other.wait()


def test_the_server_can_be_killed_while_it_is_held() -> None:
    with mariadb() as server:
        holder = holder_of([found(server)])
        with held(holder):
            (server.group.directory / "cgroup.kill").write_text("1")
            assert eventually(lambda: "populated 0" in (server.group.directory / "cgroup.events").read_text())
            how = holder.release()
        assert (how.proven, "ERROR 20" in how.why) == (False, True)
        assert refused(server).kind == "hold-no-server"


# What is restored


def copies(server: MariaDB) -> list[Path]:
    """Copies of the data, the redo log and the binary log, the redo log's first, and the others only half a second later."""
    log = copied(server.apart, server.folder / "log2")
    time.sleep(0.5)
    data = copied(server.data, server.folder / "data2")
    return [data, log, copied(server.folder / "binary", server.folder / "binary2")]


def test_copies_made_one_after_the_other_while_it_is_frozen_recover() -> None:
    with mariadb() as server, transfers_in_innodb(server):
        with held(holder_of([found(server, wanted(server, limit=60), log=OTHER)])) as holder:
            paths = copies(server)
            assert holder.release().proven
        with restored_mariadb(server, *paths) as copy:
            assert copy.sql("SELECT SUM(money), COUNT(*) FROM bank.account") == "100000\t1000"
            checked = copy.sql("CHECK TABLE bank.account, mysql.user, mysql.global_priv EXTENDED")
            assert [line.split("\t")[2:] for line in checked.splitlines()] == [["status", "OK"]] * 3


def test_copies_made_one_after_the_other_do_not_recover_otherwise() -> None:
    """The control: pages are newer than the redo log."""
    with mariadb() as server, transfers_in_innodb(server):
        paths = copies(server)
        with pytest.raises(AssertionError, match="the server has ended"), restored_mariadb(server, *paths):
            pass


# What can be wrong


def test_no_server_is_an_error(server: MariaDB) -> None:
    assert refused(server, socket="/none/socket").kind == "hold-no-server"


LISTENS = "Id=dbus.socket\nSubState=running\nListen={other} (Stream)\n\n"
LISTENS += "Id=mariadb.socket\nSubState={state}\nListen={path} (Stream)"


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes a systemctl that says in what state it listens on an address."""

    def says(state: str, path: str) -> None:
        text = LISTENS.format(state=state, path=path, other=path)
        (tmp_path / "systemctl").write_text(f"#!/bin/sh\ncat <<'X'\n{text}\nX\n")
        (tmp_path / "systemctl").chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    tmp_path.chmod(0o755)
    return says


@pytest.mark.parametrize("way", ["socket", "link", "port", "own file"])
def test_a_server_that_asking_would_start_is_not_asked(
    way: str, tmp_path: Path, systemd: Callable[[str, str], None]
) -> None:
    """What listens is this test, and nobody connects to it."""
    kind = socket.AF_INET if way == "port" else socket.AF_UNIX
    with socket.socket(kind) as listener:
        listener.bind(("127.0.0.1", 0) if way == "port" else str(tmp_path / "socket"))
        listener.listen()
        listener.settimeout(0.2)
        settings: dict[str, Any] = {"socket": str(tmp_path / "socket")}
        address = settings["socket"]
        if way == "port":
            settings = {"host": "127.0.0.1", "port": listener.getsockname()[1]}
            address = f"[::]:{settings['port']}"
        elif way == "link":
            (tmp_path / "link").symlink_to(tmp_path)
            settings = {"socket": f"{tmp_path}/link/socket"}
        elif way == "own file":
            (tmp_path / "file").write_text(f"[client]\nsocket={address}\n")
            (tmp_path / "client").write_text(f'#!/bin/sh\nexec mariadb --defaults-file={tmp_path}/file "$@"\n')
            (tmp_path / "client").chmod(0o755)
            settings = {"client": str(tmp_path / "client")}
        wanted = Wanted("mariadb", settings=settings, timeout=1)
        systemd("listening", address)
        with pytest.raises(KopiatomicError) as caught:
            kinds.find(wanted, around())
        assert (caught.value.kind, "mariadb.socket listens on" in caught.value.message) == ("hold-not-running", True)
        with pytest.raises(TimeoutError):
            listener.accept()
        # The control: it runs, and is asked.
        systemd("running", address)
        with pytest.raises(KopiatomicError) as caught:
            kinds.find(wanted, around())
        assert caught.value.kind != "hold-not-running"
        listener.accept()


def test_a_missing_client_is_an_error(server: MariaDB) -> None:
    assert refused(server, client="/none/mariadb").kind == "hold-no-client"


def test_a_missing_right_is_an_error(server: MariaDB) -> None:
    server.sql("CREATE USER little@localhost")
    assert refused(server, user="little").kind == "hold-no-right"
    server.sql("GRANT PROCESS ON *.* TO little@localhost")
    assert refused(server, user="little").kind == "hold-no-right"
    server.sql("GRANT RELOAD ON *.* TO little@localhost")
    assert found(server, wanted(server, user="little")).holder is not None


def test_a_wrong_password_is_an_error_and_a_right_one_is_not_seen(server: MariaDB) -> None:
    server.sql(f"CREATE USER secret@localhost IDENTIFIED BY '{WORD}'; GRANT RELOAD, PROCESS ON *.* TO secret@localhost")
    assert refused(server, user="secret").kind == "hold-password"
    assert refused(server, user="secret", password=WORD[1:]).kind == "hold-password"
    holder = holder_of([found(server, wanted(server, user="secret", password=WORD))])
    with used(holder):
        words = command("ps", "-ww", "-o", "args=", "-p", str(client_of(server))).stdout
        assert "--user=secret" in words
        assert WORD not in words
    assert WORD not in repr(holder.wanted)


# Other versions: a client stands in for them, since these servers are not installed here

VERSIONS = """#!/bin/sh
while read -r line; do
    case $line in
        SHOW*) printf 'version\\t{version}\\ndatadir\\t{data}/\\npid_file\\t{data}/pid\\n'
               printf 'innodb_data_file_path\\tibdata1:12M:autoextend\\ninnodb_data_home_dir\\t\\n'
               printf 'innodb_undo_directory\\t./\\ninnodb_log_group_home_dir\\t{log}\\nlog_bin_basename\\t\\n' ;;
        *INNODB*) echo "$line" >> {data}/asked; printf './test/plain.ibd\\n./undo_001\\n' ;;
        *) exit 9 ;;
    esac
done
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[Callable[[str], dict[str, Any]]]:
    """The settings for a server of a version; its process works in the data directory, in a control group of its own."""
    data, log, client = tmp_path / "data", tmp_path / "redo", tmp_path / "client"
    for directory in (data, log, data / "test"):
        directory.mkdir()
    (data / "ibdata1").touch()
    with grouped() as group:
        server = group.start("sh", "-c", f"cd {data} && exec sleep 60")
        (data / "pid").write_text(f"{server.pid}\n")
        assert eventually(lambda: os.readlink(f"/proc/{server.pid}/cwd") == str(data))

        def settings(version: str) -> dict[str, Any]:
            client.write_text(VERSIONS.format(version=version, data=data, log=log))
            client.chmod(0o755)
            return {"client": str(client)}

        yield settings


def found_at(tmp_path: Path, settings: dict[str, Any], kind: str, redo: str = POOL) -> Finding:
    places = {str(tmp_path / "data"): Place("tank/data", POOL), str(tmp_path / "redo"): Place(f"{redo}/redo", redo)}
    (finding,) = kinds.find(Wanted(kind, settings=settings), around(places))
    return finding


def test_mysql_is_frozen_or_nothing(tmp_path: Path, stand_in: Callable[[str], dict[str, Any]]) -> None:
    settings = stand_in("8.0.36")
    finding = found_at(tmp_path, settings, "mysql")
    assert (finding.holder, finding.text.startswith("InnoDB in one instant, nothing to hold; ")) == (None, True)
    assert "information_schema.INNODB_DATAFILES" in (tmp_path / "data/asked").read_text()
    finding = found_at(tmp_path, settings, "mysql", redo=OTHER)
    assert finding.text == (
        "InnoDB in other/redo, tank/data, which share no instant, so that no lock helps: its process is frozen for the snapshots"
    )
    with held(holder_of([finding])) as holder:
        assert holder.release().proven


@pytest.mark.parametrize(
    ("version", "kind"), [("5.7.44-log", "mysql"), ("10.3.39-MariaDB-1", "mariadb"), ("5.5.68-MariaDB", "mariadb")]
)
def test_older_versions_are_refused(
    tmp_path: Path, stand_in: Callable[[str], dict[str, Any]], version: str, kind: str
) -> None:
    with pytest.raises(KopiatomicError) as caught:
        found_at(tmp_path, stand_in(version), kind)
    assert (caught.value.kind, version in caught.value.message) == ("hold-version", True)


def test_an_older_mariadb_names_its_files_elsewhere(tmp_path: Path, stand_in: Callable[[str], dict[str, Any]]) -> None:
    assert found_at(tmp_path, stand_in("10.5.23-MariaDB"), "mariadb", redo=OTHER).holder is not None
    assert "information_schema.INNODB_SYS_DATAFILES" in (tmp_path / "data/asked").read_text()


def test_a_server_that_is_not_of_this_host_is_refused(
    tmp_path: Path, stand_in: Callable[[str], dict[str, Any]]
) -> None:
    """Its paths mean something else here: all of them could be taken for those of another server."""
    settings = stand_in("8.0.36")
    for text in (str(os.getpid()), "no number", "4194304"):
        (tmp_path / "data/pid").write_text(text)
        with pytest.raises(KopiatomicError) as caught:
            found_at(tmp_path, settings, "mysql")
        assert caught.value.kind == "hold-elsewhere"
    (tmp_path / "data/pid").unlink()
    os.mkfifo(tmp_path / "data/pid")
    with pytest.raises(KopiatomicError) as caught:
        found_at(tmp_path, settings, "mysql")
    assert caught.value.kind == "hold-elsewhere"
    (tmp_path / "data/pid").unlink()
    with pytest.raises(KopiatomicError) as caught:
        found_at(tmp_path, settings, "mysql")
    assert caught.value.kind == "hold-elsewhere"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "hello",
        r"version\t10.6.1-MariaDB\n",
        r"version\tMariaDB\ndatadir\t/x\npid_file\t/x\n",
        r"version\t8.x\ndatadir\t/x\npid_file\t/x\n",
        r"version\t10.6.1-MariaDB\ndatadir\tx\npid_file\t/x\n",
        r"version\t10.6.1-MariaDB\ndatadir\t/x\npid_file\t/\000\n",
    ],
)
def test_an_odd_answer_is_an_error(answer: str, tmp_path: Path) -> None:
    client = tmp_path / "client"
    client.write_text(f"#!/bin/sh\ncat > /dev/null\nprintf '{answer}'\n")
    client.chmod(0o755)
    with pytest.raises(KopiatomicError) as caught:
        kinds.find(Wanted("mariadb", settings={"client": str(client)}), around())
    assert caught.value.kind == "hold-no-answer"


def test_a_group_with_a_process_of_another_user_is_refused(server: MariaDB) -> None:
    """Its user can name any of his processes in the file with its number."""
    other = server.group.start("sleep", "60")
    try:
        with pytest.raises(
            KopiatomicError, match=r"has sleep .* of the user root, and the server's files are \w+'s"
        ) as caught:
            found(server, log=OTHER)
        assert caught.value.kind == "hold-refused"
    finally:
        other.kill()
        other.wait()
