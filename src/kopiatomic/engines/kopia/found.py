"""What was found when kopia was checked: which repository, as whom, and under which policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kopiatomic.engines.kopia.client import Client
from kopiatomic.engines.kopia.options import Options
from kopiatomic.engines.kopia.policy import Policies, Source, parse_source
from kopiatomic.immutable import immutable


@immutable
class Found:
    """kopia, which has answered, and what it said of its repository. ``status`` is kopia's own object."""

    client: Client
    options: Options
    version: str | None
    status: Mapping[str, Any]
    policies: Mapping[str, Policies]
    """The policies that apply to each source, by its path."""
    maintains: bool
    """Whether a good backup ends with the maintenance that is due."""

    def source(self, root: str) -> Source:
        """Return the source whose history and policies kopia will use."""
        return source_of(self.status, self.options, root)


def source_of(status: Mapping[str, Any], options: Options, root: str) -> Source:
    """Return the source that a path is to kopia, by the status of its repository."""
    client_options = mapping(status.get("clientOptions") or {})
    own = Source(str(client_options.get("username", "")), str(client_options.get("hostname", "")), root)
    override = options.value("--override-source")
    return own if override is None else parse_source(override, own)


def mapping(value: object) -> Mapping[str, Any]:
    """Return a JSON value if it is an object, and otherwise an empty one."""
    return value if isinstance(value, dict) else {}
