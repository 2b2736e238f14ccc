"""What /etc/fstab says is mounted at boot: by its format on both systems, and never "nothing" where it cannot be read."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kopiatomic.system import fstab

TABLE = """
# tank/comment /x zfs defaults
tank/plain /plain zfs defaults 0 0
	tank/indented	/tabs	zfs	rw,nofail
tank/short /short zfs
tank/odd\u00a0space /odd\u2003space zfs
tank/by-hand /x zfs noauto,ro 0 0
tank/automount /x zfs rw,x-systemd.automount
tank/named-alike /alike zfs rw,x-noauto=1
tank/with\\040space /with\\011tab zfs defaults
UUID=1234 / ext4 defaults 0 1
tank/other /x ext4 defaults
broken
"""


def test_what_is_mounted_at_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fstab, "PATH", str(tmp_path / "fstab"))
    assert fstab.at_boot("zfs") == {}
    (tmp_path / "fstab").write_bytes(TABLE.encode() + b"tank/\xff /\xfe zfs")
    assert fstab.at_boot("zfs") == {
        "tank/plain": "/plain",
        "tank/indented": "/tabs",
        "tank/short": "/short",
        "tank/odd\u00a0space": "/odd\u2003space",
        "tank/named-alike": "/alike",
        "tank/with space": "/with\ttab",
        "tank/\udcff": "/\udcfe",
    }


def test_a_file_that_cannot_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fstab, "PATH", str(tmp_path))
    with pytest.raises(OSError, match="directory") as caught:
        fstab.at_boot("zfs")
    assert caught.value.errno == errno.EISDIR
