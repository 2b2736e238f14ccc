"""What kopia's policies say about a source: computed from all policies of a repository, by kopia's own rules.

The rules (kopia: snapshot/policy/policy_manager.go, policy_merge.go, policy_tree.go; fs/ignorefs/ignorefs.go; each seen running):
at the root of a snapshot the policies of the path, of the paths above it, of user@host, of the host and the global one are merged
setting by setting, the nearest one that has it wins, and ``noParent`` ends the search. Below the root only policies of the same
user and host count, and each replaces everything above it: a setting that it does not have is at its default there.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kopiatomic.immutable import immutable
from kopiatomic.paths import below, is_at_or_below


@immutable
class Source:
    """What kopia calls a source, and the target of a policy: empty parts mean any."""

    user: str
    host: str
    path: str

    def __str__(self) -> str:
        """Return the source as kopia's command line takes it."""
        if not self.user and not self.host and not self.path:
            return "--global"
        return f"{self.user}@{self.host}" + (f":{self.path}" if self.path else "")


def parse_source(text: str, default: Source) -> Source:
    """Parse ``user@host:/path`` or a path, as kopia's ``--override-source`` takes it (snapshot/source.go)."""
    at, colon = text.find("@"), text.find(":")
    if 0 < at < colon:
        return Source(text[:at], text[at + 1 : colon], text[colon + 1 :])
    return Source(default.user, default.host, os.path.abspath(text))


@immutable
class PolicySetting:
    """The value of a setting and the policy that it comes from (None: not set anywhere)."""

    value: Any
    target: Source | None


UNSET = PolicySetting(None, None)


class Policies:
    """The policies of a repository (``kopia policy list --json``), as they apply to one source."""

    def __init__(self, documents: Iterable[Mapping[str, Any]], source: Source) -> None:
        self.source = source
        self._by_target: dict[Source, list[Mapping[str, Any]]] = {}
        for document in documents:
            target = document.get("target") or {}
            key = Source(target.get("userName", ""), target.get("host", ""), target.get("path", ""))
            self._by_target.setdefault(key, []).append(document)

    def of(self, source: Source) -> Policies:
        """Return the policies as they apply to another source of the same repository."""
        other = Policies((), source)
        other._by_target = self._by_target
        return other

    def in_force(self) -> tuple[Source, ...]:
        """Return the targets of the policies from which the settings at the source itself come."""
        return tuple(target for target in self._above() if target in self._by_target)

    def at_root(self, section: str, key: str) -> PolicySetting:
        """Return a setting in force at the source itself."""
        for target in self._above():
            for policy in self._by_target.get(target, []):
                value = _value(policy, section, key)
                if value is not None:
                    return PolicySetting(value, target)
                if policy.get("noParent"):
                    return UNSET
        return UNSET

    def at(self, path: str, section: str, key: str) -> PolicySetting:
        """Return a setting in force in a directory at or below the source."""
        user, host = self.source.user, self.source.host
        while path != self.source.path and len(path) > len(self.source.path):
            target = Source(user, host, path)
            if target in self._by_target:
                values = [_value(policy, section, key) for policy in self._by_target[target]]
                # Several manifests for one path (two clients at once): kopia takes any of them, so the worst is assumed.
                return PolicySetting(next((v for v in values if v), None), target)
            path = os.path.dirname(path)
        return self.at_root(section, key)

    def ignores(self, path: str) -> bool:
        """Whether a rule certainly excludes a directory: one that names it, or one above it, by its whole path in the source.

        Pattern matching is not computed here; a rule that re-includes something, and a policy of its own on the way, end
        the certainty.
        """
        inside = path[len(self.source.path.rstrip("/")) :]
        ways = {inside}
        while inside.count("/") > 1:
            inside = os.path.dirname(inside)
            ways.add(inside)
        if any(is_at_or_below(path, n.path) for n in self.nested()):
            return False
        rules = self.at_root("files", "ignore").value or []
        return not any(rule.startswith("!") for rule in rules) and any(rule.rstrip("/") in ways for rule in rules)

    def nested(self) -> Iterator[Source]:
        """Yield the targets of policies below the source."""
        return (target for target in self.targets() if below(target.path, self.source.path))

    def targets(self) -> Iterator[Source]:
        """Yield the targets of policies of the source's user and host."""
        for target in self._by_target:
            if (target.user, target.host) == (self.source.user, self.source.host):
                yield target

    def heeded(self) -> Iterator[Source]:
        """Yield the targets of policies that affect this source."""
        return (target for target in (*self.in_force(), *self.nested()) if target in self._by_target)

    def all(self) -> list[Mapping[str, Any]]:
        """Return all policies that affect this source."""
        return [document for target in self.heeded() for document in self._by_target[target]]

    def _above(self) -> Iterator[Source]:
        """Yield where kopia looks for a setting of the root, nearest first."""
        user, host, path = self.source.user, self.source.host, self.source.path
        while True:
            yield Source(user, host, path)
            parent = os.path.dirname(path)
            if parent == path:
                break
            path = parent
        yield Source(user, host, "")
        yield Source("", host, "")
        yield Source("", "", "")


def _value(policy: Mapping[str, Any], section: str, key: str) -> Any:
    settings = policy.get(section)
    return settings.get(key) if isinstance(settings, dict) else None
