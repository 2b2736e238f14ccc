"""Platforms: how one system keeps the processes of a run and its view together, as a value.

``system/host.py`` decides which system it is.
"""

from __future__ import annotations

from kopiatomic.platforms.platform import Platform
from kopiatomic.system import host


def on(system: host.Host) -> Platform:
    """Return the platform of a system."""
    # Each imports what only its own system has.
    from kopiatomic.system.linux_host import LinuxHost  # noqa: PLC0415

    if isinstance(system, LinuxHost):
        from kopiatomic.platforms.linux.platform import LinuxPlatform  # noqa: PLC0415

        return LinuxPlatform()
    from kopiatomic.platforms.freebsd.platform import FreeBSDPlatform  # noqa: PLC0415
    from kopiatomic.system.freebsd_host import FreeBSDHost  # noqa: PLC0415

    assert isinstance(system, FreeBSDHost)
    return FreeBSDPlatform(system.kernel)


def here() -> Platform:
    """Return the platform that this process runs on."""
    return on(host.here())
