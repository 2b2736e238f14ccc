"""The how-to guides, each block as it stands, on clean machines of both Debian suites with their own servers, and real kopia."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.packages.conftest import SUITES
from tests.packages.machine import ENVIRONMENT, Machine, booted_machine
from tests.support.how_to import GUIDES, Step, guide, is_shown
from tests.support.programs import command

pytestmark = pytest.mark.in_part(1)

SUBVOLUMES = {
    name: f"/{folder}/{name}"
    for folder, names in {
        "var/lib": ("postgresql", "mysql", "redis"),
        "srv": ("wal", "redo", "queue", "orders", "app", "uploads"),
    }.items()
    for name in names
}

MOVE = """
systemctl stop 'postgresql@*' mariadb redis-server
mount DEVICE /mnt
for name in NAMES; do btrfs -q subvolume create /mnt/$name; done
umount /mnt
"""

BANK_IN_POSTGRESQL = r"""
systemctl start postgresql@15-main
if runuser -u postgres -- createdb bank; then
    runuser -u postgres -- psql -q bank -c 'CREATE TABLE account (id int PRIMARY KEY, money int)' \
        -c 'INSERT INTO account SELECT i, 100 FROM generate_series(1, 100) i'
fi
cat >/tmp/transfer <<'END'
\set a random(1, 100)
\set b random(1, 100)
BEGIN; UPDATE account SET money = money - 1 WHERE id = least(:a, :b);
UPDATE account SET money = money + 1 WHERE id = greatest(:a, :b); COMMIT;
END
systemd-run --quiet --collect --unit=transfers --property=Restart=always --property=RestartSec=1 --property=User=postgres \
    pgbench -n -c 2 -R 200 -T 3600 -f /tmp/transfer bank
"""

WAL_APART = """
systemctl stop postgresql@15-main
mv /var/lib/postgresql/15/main/pg_wal /srv/wal/main
ln -s /srv/wal/main /var/lib/postgresql/15/main/pg_wal
chown -R postgres:postgres /srv/wal
systemctl start postgresql@15-main
"""

BANK_IN_MARIADB = """
systemctl start mariadb
mariadb -e "CREATE DATABASE IF NOT EXISTS bank; USE bank;
    CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, money int) ENGINE=InnoDB;
    CREATE TABLE IF NOT EXISTS entry (id int AUTO_INCREMENT PRIMARY KEY, account int) ENGINE=Aria;
    INSERT IGNORE INTO account SELECT seq, 100 FROM seq_1_to_100"
cat >/usr/local/bin/transfers <<'END'
#!/bin/sh
i=0
while :; do
    i=$((i % 99 + 1))
    echo "BEGIN; UPDATE account SET money = money - 1 WHERE id = $i; UPDATE account SET money = money + 1 WHERE id = $i + 1;"
    echo "COMMIT; INSERT INTO entry (account) VALUES ($i);"
    sleep 0.01
done | mariadb bank
END
chmod 755 /usr/local/bin/transfers
systemd-run --quiet --collect --unit=transfers --property=Restart=always --property=RestartSec=1 /usr/local/bin/transfers
"""

REDO_APART = """
systemctl stop mariadb
printf '[mariadbd]\\ninnodb_log_group_home_dir = /srv/redo\\n' >/etc/mysql/mariadb.conf.d/90-redo.cnf
mv /var/lib/mysql/ib_logfile0 /srv/redo
chown -R mysql:mysql /srv/redo
systemctl start mariadb
"""

SHOP = """
cat >/usr/local/bin/shop <<'END'
#!/bin/sh
i=$(cat /srv/orders/last || echo 0)
while :; do
    i=$((i + 1))
    echo $i >/srv/queue/new; mv /srv/queue/new /srv/queue/last
    echo $i >/srv/orders/new; mv /srv/orders/new /srv/orders/last
    sleep 0.01
done
END
chmod 755 /usr/local/bin/shop
printf '[Service]\\nExecStart=/usr/local/bin/shop\\n' >/etc/systemd/system/shop.service
systemctl daemon-reload
systemctl start shop
"""

APP = """
rm -rf /srv/app/* /srv/uploads/*
sqlite3 /srv/app/app.db 'PRAGMA journal_mode = WAL; CREATE TABLE upload (name text)' >/dev/null
"""

REDIS = """
systemctl start redis-server
redis-cli set account 100
redis-cli save
"""

GIVEN = {
    "a bank in PostgreSQL": BANK_IN_POSTGRESQL,
    "PostgreSQL's WAL in /srv/wal": BANK_IN_POSTGRESQL + WAL_APART,
    "a bank in MariaDB": BANK_IN_MARIADB,
    "MariaDB's redo log in /srv/redo": BANK_IN_MARIADB + REDO_APART,
    "shop.service over /srv/queue and /srv/orders": SHOP,
    "/srv/app/app.db and /srv/uploads": APP,
    "/srv/app/app.db and Redis": APP + REDIS,
}

AFTER = {
    "postgresql": ("runuser -u postgres -- psql -Atc 'SELECT sum(money), count(*) FROM account' bank", "10000|100\n"),
    "mariadb": (
        "mariadb --batch --skip-column-names -e 'SELECT SUM(money), COUNT(*) FROM account' bank",
        "10000\t100\n",
    ),
    "services": (
        "test $(cat /srv/orders/last) -gt 1; echo $(($(cat /srv/queue/last) - $(cat /srv/orders/last) < 2))",
        "1\n",
    ),
    "own-command": ("sqlite3 /srv/app/app.db 'INSERT INTO upload VALUES (1); SELECT * FROM upload'", "1\n"),
    "others": ("redis-cli get account", "100\n"),
}
"""What shows at the end that what was restored is whole: a script and what it prints."""


def chapters() -> Iterator[ParameterSet]:
    """Each part of a guide that begins with what is given, and needs nothing of the parts before it."""
    for path in GUIDES:
        steps = guide(path)
        begins = [number for number, step in enumerate(steps) if step.mark == "given"]
        for number, (begin, end) in enumerate(pairwise([*begins, len(steps)]), start=1):
            yield pytest.param(path, steps[begin:end], id=f"{path.stem}-{number}")


@dataclass(frozen=True)
class Site:
    """A machine with servers, kopia with a repository, and our package."""

    run: Machine
    postgresql: str
    """Its version."""

    def literally(self, script: str) -> str:
        """Run a block as it stands; what it prints. Only the version of PostgreSQL is Debian 13's there."""
        environment = [f"--setenv={name}={value}" for name, value in ENVIRONMENT.items()]
        # As in a login, it is in a control group of its own.
        unit = ("systemd-run", "--quiet", "--wait", "--pipe", "--collect", *environment)
        ended = self.run(*unit, "sh", "-ec", self.here(script), check=False, timeout=180)
        assert ended.returncode == 0, str(ended)
        return ended.stdout

    def here(self, text: str) -> str:
        return re.sub(r"\b15\b", self.postgresql, text)


@pytest.fixture(scope="module")
def make_device() -> Iterator[Callable[[Path], str]]:
    """Makes a Btrfs filesystem in a file; returns its device, which must be there before a machine is."""
    made = []

    def make(image: Path) -> str:
        command("truncate", "--size=6G", image)
        command("mkfs.btrfs", "--quiet", image)
        made.append(command("losetup", "--find", "--show", image).stdout.strip())
        return made[-1]

    yield make
    for device in made:
        command("losetup", "--detach", device)


@pytest.fixture(scope="module", params=SUITES)
def site(
    request: pytest.FixtureRequest,
    package: Path,
    tmp_path_factory: pytest.TempPathFactory,
    make_device: Callable[[Path], str],
) -> Iterator[Site]:
    exchange = tmp_path_factory.mktemp("exchange")
    kopia = shutil.which("kopia")
    assert kopia is not None
    for file in (package, Path(kopia)):
        shutil.copy(file, exchange)
    device = make_device(exchange / "image")
    with booted_machine(request.param, exchange, "databases") as run:
        run("dpkg", "-i", run.there(exchange / package.name))
        run("install", "-m", "0755", "/exchange/kopia", "/usr/local/bin/kopia")
        run("mkdir", "-p", "/etc/kopiatomic")
        run.shell("KOPIA_PASSWORD=secret kopia repository create filesystem --path=/srv/repository")
        run.shell(MOVE.replace("DEVICE", device).replace("NAMES", " ".join(SUBVOLUMES)))
        for name, place in SUBVOLUMES.items():
            run.shell(
                f"mkdir -p {place}; mount -o subvol={name} {device} /mnt; cp -a {place}/. /mnt; umount /mnt\n"
                f"mount -o noatime,subvol={name} {device} {place}"
            )
        yield Site(run, run("ls", "/etc/postgresql").stdout.strip())


@pytest.mark.parametrize(("path", "steps"), list(chapters()))
def test_a_guide_leads_from_the_first_question_to_what_is_restored(path: Path, steps: list[Step], site: Site) -> None:
    printed = ""
    try:
        for step in steps:
            if step.mark == "given":
                site.literally(GIVEN[step.about])
            elif step.mark == "run":
                printed = site.literally(step.text)
            elif step.mark == "output":
                where = f"{path.name}:{step.line}"
                assert is_shown(site.here(step.text), printed), f"{where} shows\n{step.text}\nand it printed\n{printed}"
        script, printed = AFTER[path.stem]
        assert site.literally(script) == printed
        assert " /kopia" not in site.run("cat", "/proc/self/mounts").stdout
        frozen = site.run.shell("grep -l 1 $(find /sys/fs/cgroup -name cgroup.freeze)", check=False).stdout
        assert frozen == ""
    finally:
        # The next part has the processors for itself.
        site.run("systemctl", "stop", "transfers", "shop", "kopiatomic@*.timer", check=False)
        site.run("systemctl", "stop", "postgresql@*", "mariadb", "redis-server", check=False)
