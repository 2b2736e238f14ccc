"""Where kopia keeps its own files, and whether that is inside what is being backed up."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from kopiatomic.engines.kopia_client import Client
from kopiatomic.engines.kopia_options import Options
from kopiatomic.errors import KopiatomicError
from kopiatomic.model import Plan, Taken
from kopiatomic.text import printable


def repository(status: Mapping[str, Any]) -> str | None:
    """The folder of a repository that is one, by ``kopia repository status``."""
    storage = status.get("storage") or {}
    path = (storage.get("config") or {}).get("path")
    return path if storage.get("type") == "filesystem" and isinstance(path, str) else None


def check_repository(status: Mapping[str, Any], plan: Plan) -> list[str]:
    """Look whether a repository in a folder lies on a dataset that the run takes. Returns warnings.

    Raises KopiatomicError of kind repository-in-selection where ``-a`` or ``-r`` brought that dataset in.
    """
    path = repository(status)
    if path is None:
        return []
    taken = holder(path, plan)
    if taken is None:
        return []
    where = f"kopia's repository {printable(path)} lies on {printable(taken.dataset.name)}"
    if taken.named:
        return [f"{where}, which is in this backup: the repository is backed up into itself and grows with every run"]
    raise KopiatomicError(
        f"{where}, which -a or -r brought into this backup: it would be backed up into itself",
        kind="repository-in-selection",
        hint="Name the datasets that you want without it, move the repository to a dataset of its own outside of them, "
        f"or name {printable(taken.dataset.name)} as well if you do want it in the backup.",
    )


def notes(client: Client, options: Options, plan: Plan) -> list[str]:
    """Say once where kopia's cache and logs lie on datasets that the run takes.

    kopia puts a CACHEDIR.TAG into these folders, and leaves out the content of such folders unless a policy says
    otherwise (kopia: internal/cachedir, fs/ignorefs).
    """
    found = []
    for what, path in _own_folders(client, options):
        taken = holder(path, plan)
        if taken is not None:
            found.append(f"its {what} {printable(path)} on {printable(taken.dataset.name)}")
    if not found:
        return []
    return [
        f"kopia keeps {' and '.join(found)}, which is in this backup; kopia leaves out what is in these folders "
        "unless the policy ignore-cache-dirs is off"
    ]


def holder(path: str, plan: Plan) -> Taken | None:
    """The dataset of the plan that holds a path, through links and whatever else is mounted.

    Every ZFS dataset and every Btrfs subvolume has a device number (st_dev) of its own, so that equal numbers mean the same
    dataset: also through bind mounts, and not where a dataset that is not taken is mounted in between.
    """
    device = _device(path)
    if device is None:
        return None
    return next(
        (t for t in plan.taken if _device(t.dataset.mountpoint, climb=False) == device and _shows(t, path)), None
    )


def _shows(taken: Taken, path: str) -> bool:
    """Whether what is taken of a dataset has the path in it; where that is not certain it has."""
    if taken.parts == ("",):
        return True
    real = os.path.realpath(path)
    return any(real == place or real.startswith(f"{place}/") for place in taken.places)


def _device(path: str, *, climb: bool = True) -> int | None:
    """The device number of a path, or of the nearest folder above it that exists."""
    while True:
        try:
            return os.stat(path).st_dev
        except FileNotFoundError:
            if not climb or path == os.path.dirname(path):
                return None
            path = os.path.dirname(path)
        except OSError:
            return None


def _own_folders(client: Client, options: Options) -> Iterator[tuple[str, str]]:
    for what, path in (("cache", cache(client)), ("logs", logs(client, options))):
        if path is not None:
            yield what, path


def cache(client: Client) -> str | None:
    """kopia's cache, as its configuration says (repo/local_config.go)."""
    try:
        with open(client.config.path, "rb") as file:
            found = (json.load(file).get("caching") or {}).get("cacheDirectory")
    except (OSError, ValueError, AttributeError):
        return None
    if not isinstance(found, str) or not found:
        return None
    return os.path.normpath(os.path.join(os.path.dirname(client.config.path), found))


def logs(client: Client, options: Options) -> str | None:
    """Where kopia writes its logs (internal/logfile/logfile.go, internal/ospath)."""
    if options.has("--disable-file-logging"):
        return None
    environment = client.environment
    found = options.value("--log-dir") or environment.get("KOPIA_LOG_DIR")
    if not found:
        base = environment.get("XDG_CACHE_HOME") or os.path.join(environment.get("HOME", ""), ".cache")
        found = os.path.join(base, "kopia")
    return os.path.abspath(found)
