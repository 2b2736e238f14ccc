"""What a FreeBSD host or jail must allow is said before anything is made, all of it at once."""

import pytest

from kopiatomic.errors import KopiatomicError
from kopiatomic.platforms.freebsd import permissions
from tests.support.freebsd_shim import JAIL, Shim


def lacking(settings: dict[str, int]) -> str:
    with pytest.raises(KopiatomicError) as caught:
        permissions.require(Shim(sysctls=settings).kernel)
    assert caught.value.kind == "jail"
    assert "jail.conf" in (caught.value.hint or "")
    return caught.value.message.partition("it lacks ")[2]


@pytest.mark.parametrize("statfs", [0, 1])
def test_a_jail_that_may_do_all_of_it_is_fine(statfs: int) -> None:
    permissions.require(Shim(sysctls={**JAIL, "security.jail.enforce_statfs": statfs}).kernel)


def test_outside_of_jails_nothing_is_asked_for() -> None:
    permissions.require(Shim(sysctls={"security.jail.jailed": 0}).kernel)
    permissions.require(Shim(sysctls={**dict.fromkeys(JAIL, 0), "security.jail.enforce_statfs": 2}).kernel)
    permissions.require(Shim().kernel)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("security.jail.mount_allowed", "allow.mount"),
        ("security.jail.mount_nullfs_allowed", "allow.mount.nullfs"),
        ("security.jail.mount_tmpfs_allowed", "allow.mount.tmpfs"),
        ("security.jail.mount_zfs_allowed", "allow.mount.zfs"),
    ],
)
def test_what_is_not_allowed_or_not_loaded_is_named_as_in_jail_conf(name: str, word: str) -> None:
    assert lacking({**JAIL, name: 0}) == word
    assert lacking({key: value for key, value in JAIL.items() if key != name}) == word


def test_all_that_is_lacking_is_named_at_once() -> None:
    assert lacking({"security.jail.jailed": 1, "security.jail.enforce_statfs": 2}) == (
        "allow.mount, allow.mount.nullfs, allow.mount.tmpfs, allow.mount.zfs, enforce_statfs = 1"
    )


def test_upper_mounts_that_go_with_lower_ones_are_warned_about() -> None:
    shim = Shim()
    assert permissions.warnings(shim.kernel) == []
    shim.sysctls["vfs.recursive_forced_unmount"] = (0, 1)
    assert permissions.warnings(shim.kernel) == []
    shim.sysctls["vfs.recursive_forced_unmount"] = (1, 1)
    (warning,) = permissions.warnings(shim.kernel)
    assert "vfs.recursive_forced_unmount" in warning
