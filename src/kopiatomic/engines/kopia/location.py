"""Where kopia keeps its own files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from kopiatomic import presence
from kopiatomic.engines.kopia.client import Client
from kopiatomic.engines.kopia.options import Options
from kopiatomic.secrets.masking import masked
from kopiatomic.text import printable


def repository(status: Mapping[str, Any]) -> str | None:
    """Return the directory of a filesystem repository, from ``kopia repository status``."""
    storage = status.get("storage") or {}
    path = (storage.get("config") or {}).get("path")
    return path if storage.get("type") == "filesystem" and isinstance(path, str) else None


def storage(status: Mapping[str, Any]) -> str:
    """Return kind, location and id of the repository in words, without keys or passwords, from ``kopia repository status``."""
    found = status.get("storage") or {}
    config = found.get("config") or {}
    places = (config.get(key) for key in ("host", "bucket", "container", "url", "remotePath", "path"))
    words = [str(found.get("type") or "repository"), *(place for place in places if isinstance(place, str) and place)]
    unique = status.get("uniqueIDHex")
    return printable(masked(" ".join(words)) + (f" (id {str(unique)[:12]})" if unique else ""))


def folders(client: Client, options: Options) -> Iterator[tuple[str, str]]:
    """Yield cache and logs. kopia puts a CACHEDIR.TAG into them (internal/cachedir)."""
    for what, path in (("cache", cache(client)), ("logs", logs(client, options))):
        if path is not None:
            yield what, path


def cache(client: Client) -> str | None:
    """Return kopia's cache, from its configuration (repo/local_config.go). Raises OSError if that cannot be read."""
    caching = _configuration(client).get("caching")
    found = caching.get("cacheDirectory") if isinstance(caching, dict) else None
    if not isinstance(found, str) or not found:
        return None
    return os.path.normpath(os.path.join(os.path.dirname(client.config.path), found))


def uncached(client: Client) -> dict[str, bytes]:
    """Return the configuration file's path, and its content without a cache; empty if it has none. Raises OSError."""
    found = _configuration(client)
    left = {key: value for key, value in found.items() if key != "caching"}
    return {client.config.path: json.dumps(left).encode()} if left != found else {}


def _configuration(client: Client) -> dict[str, Any]:
    """Return kopia's configuration; empty if there is none that can be understood. Raises OSError."""
    try:
        with open(client.config.path, "rb") as file:
            found = json.load(file)
    except OSError as error:
        if presence.absent(error):
            return {}
        raise
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def logs(client: Client, options: Options) -> str | None:
    """Return where kopia writes its logs (internal/logfile/logfile.go, internal/ospath)."""
    if options.has("--disable-file-logging"):
        return None
    environment = client.environment
    found = options.value("--log-dir") or environment.get("KOPIA_LOG_DIR")
    if not found:
        base = environment.get("XDG_CACHE_HOME") or os.path.join(environment.get("HOME", ""), ".cache")
        found = os.path.join(base, "kopia")
    return os.path.abspath(found)
