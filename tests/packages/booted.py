"""A clean Debian with a real systemd, our package, kopia, restic and Borg: what its user can see of a backup there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.btrfs.conftest import wait_for
from tests.packages.machine import Machine
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed

PASSWORD = "correct horse"  # noqa: S105 - of throwaway repositories
UNITS = "/etc/systemd/system"


@dataclass(frozen=True)
class Host:
    """A machine with our package, kopia, and a repository whose password is in a file of root's."""

    run: Machine
    home: Path
    filesystem: Btrfs

    def install(self, name: str, *words: str | Path) -> Completed:
        """Install a schedule that hands the password over as a credential."""
        credential = "--credential=KOPIA_PASSWORD=/etc/kopia.pw"
        return self.run("kopiatomic", "schedule", "install", "--yes", credential, name, *words)

    def remove(self, name: str) -> None:
        """Remove a schedule, when no run of it is alive, and see that nothing of it is left."""
        remove = ("kopiatomic", "schedule", "remove", "--yes", name)
        wait_for(lambda: self.run(*remove, check=False).returncode == 0, "the end of its runs", within=60)
        left = self.run("find", UNITS, "/var/lib/systemd/timers", "-name", f"*kopiatomic@{name}.*").stdout
        assert left == "", left

    def kopia(self, *words: str | Path) -> str:
        return self.run("env", f"KOPIA_PASSWORD={PASSWORD}", "kopia", *words).stdout

    def snapshots(self) -> list[dict[str, Any]]:
        """kopia's, incomplete ones as well."""
        listed = self.kopia("snapshot", "list", "--all", "--incomplete", "--json")
        found: list[dict[str, Any]] = json.loads(listed)
        return found

    def start(self, name: str) -> Completed:
        """Start a schedule's service, and wait for its end."""
        return self.run("systemctl", "start", f"kopiatomic@{name}", check=False, timeout=120)

    def state(self, name: str) -> str:
        return self.run("systemctl", "is-failed", f"kopiatomic@{name}", check=False).stdout.strip()

    def shown(self, name: str) -> Any:
        """What ``schedule show`` says of one."""
        (found,) = json.loads(self.run("kopiatomic", "schedule", "show", "--json", name).stdout)["schedules"]
        return found

    def journal(self, name: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", f"kopiatomic@{name}").stdout

    def kopia_reads(self) -> bool:
        return self.run("pgrep", "-f", "^[^ ]*kopia snapshot create", check=False).returncode == 0

    def leftovers(self) -> list[str]:
        """What is there and should not be, once no run lives."""
        found = [f"snapshot {path}" for path in self.filesystem.snapshots()]
        found += [
            f"mount {line}" for line in self.run("cat", "/proc/self/mounts").stdout.splitlines() if " /kopia" in line
        ]
        found += self.run("pgrep", "-a", "kopia", check=False).stdout.splitlines()
        if self.run.path("/kopia").exists():
            found.append("/kopia")
        return found
