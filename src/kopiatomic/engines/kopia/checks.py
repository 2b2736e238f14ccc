"""What must be right about a plan and kopia's policies before anything is made."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kopiatomic.engines import hidden_mounts
from kopiatomic.engines.kopia import ignore_file, listing, location
from kopiatomic.engines.kopia.client import Client
from kopiatomic.engines.kopia.options import Options
from kopiatomic.engines.kopia.output import parse_manifest
from kopiatomic.engines.kopia.policy import Policies, Source
from kopiatomic.engines.listing import views_in
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.plan import Plan, Refusal, Taken
from kopiatomic.paths import below, is_at_or_below
from kopiatomic.system import looking
from kopiatomic.text import first_few, printable

PLACEHOLDER_SUFFIX = ".kopia-entry"
"""A directory with such a name ends kopia's backup with an error: kopia takes it for a placeholder of its own."""


def is_unstorable(path: str) -> bool:
    """Whether a path has a name that kopia cannot store."""
    return any(map(_is_unstorable, path.split("/")))


def unstorable(plan: Plan) -> list[Refusal]:
    """Return what would appear in directories whose names kopia cannot store.

    kopia keeps names as JSON text: a byte that is not UTF-8 becomes U+FFFD there, and the name is lost.
    """
    return [refusal for taken in plan.taken if (refusal := _unstorable(plan, taken)) is not None]


def _unstorable(plan: Plan, taken: Taken) -> Refusal | None:
    for appears in map(plan.path, taken.places):
        bad = next((part for part in appears.split("/") if _is_unstorable(part)), None)
        if bad is not None:
            placeholder = bad.endswith(PLACEHOLDER_SUFFIX)
            why = f"folders named *{PLACEHOLDER_SUFFIX}" if placeholder else "names that are not UTF-8"
            return Refusal(
                taken.dataset,
                f"kopia cannot store {why}, and it would appear at {printable(appears)}",
                hint="Give it another mount point, leave it out, or back it up with another program (-c).",
                kind="name-not-storable",
            )
    return None


def _places(plan: Plan) -> Iterator[tuple[Taken, str]]:
    """Yield where kopia crosses from one filesystem into another, and the dataset that is there or below."""
    for taken in plan.taken:
        for place in taken.places:
            yield taken, place
            yield from ((taken, scaffold) for scaffold in plan.scaffolds if below(place, scaffold))


def _is_unstorable(component: str) -> bool:
    return component.endswith(PLACEHOLDER_SUFFIX) or any("\ud800" <= c <= "\udfff" for c in component)


def check_writable(status: Mapping[str, Any], client: Client) -> None:
    """Refuse a read-only repository. Raises KopiatomicError of kind kopia-read-only."""
    if (status.get("clientOptions") or {}).get("readonly"):
        raise KopiatomicError(
            "kopia is connected read-only to its repository: nothing could be saved",
            kind="kopia-read-only",
            hint=f"Connect it without --readonly: {client.hint_command('repository', 'connect', '--help')}",
        )
    folder = location.repository(status)
    if folder is not None and looking.call(lambda: os.statvfs(folder).f_flag, folder) & os.ST_RDONLY:
        raise KopiatomicError(
            f"kopia's repository {printable(folder)} is on a filesystem that is mounted read-only",
            kind="kopia-read-only",
            hint="Find out why, and mount it writable (mount -o remount,rw).",
        )


def check_one_file_system(policies: Policies, plan: Plan, path: str, client: Client) -> None:
    """Refuse a policy that would drop mounts of a source. Raises KopiatomicError of kind one-file-system.

    ``path`` is where the source appears, which differs from kopia's name for it if ``--override-source`` is given.

    With one-file-system kopia silently, and with exit status 0, omits every entry whose device differs from that of the
    directory it is in (fs/ignorefs/ignorefs.go, shouldIncludeByDevice): what counts is the directory that holds a mount.
    """
    root = policies.source.path.rstrip("/")
    for taken, place in _places(plan):
        inside = below(plan.path(place), path)
        if not inside:
            continue
        named = f"{root}/{inside}"
        parent = os.path.dirname(named)
        setting = policies.at(parent, "files", "oneFileSystem")
        if not setting.value:
            continue
        # If set where it takes effect, it cannot be overruled from above and changes nothing for other sources.
        nested = setting.target in set(policies.nested())
        mend = setting.target if nested and setting.target is not None else policies.source
        raise KopiatomicError(
            f"kopia's policy {_target(setting.target)} sets one-file-system, in force at {printable(parent)}: kopia would "
            f"silently leave out {printable(named)} ({printable(taken.dataset.name)}) and every other mount there",
            kind="one-file-system",
            hint=f"Unset it: {client.hint_command('policy', 'set', str(mend), '--one-file-system=false')}",
        )


def _target(target: Source | None) -> str:
    if target is None or str(target) == "--global":
        return "(global)"
    return printable(str(target))


def check_actions(policies: Policies, status: Mapping[str, Any], options: Options) -> list[str]:
    """Refuse actions that run before a directory is read: they can redirect kopia to a path other than the frozen view.

    They run if the connection allows them (``enableActions``) or ``--force-enable-actions`` is given
    (kopia: snapshot/upload/upload_actions.go). A user who gives that option for this run has decided, and is warned. Raises
    KopiatomicError of kind action.
    """
    forced = options.has("--force-enable-actions")
    enabled = forced or (status.get("clientOptions") or {}).get("enableActions")
    targets = sorted({_target(t) for t in _with_actions(policies)})
    if not enabled or options.has("--force-disable-actions") or not targets:
        return []
    text = (
        f"kopia's policy {targets[0]} runs an action before kopia reads: if that names another KOPIA_SNAPSHOT_PATH, kopia "
        "backs up something else than the frozen view"
    )
    if forced:
        return [text]
    raise KopiatomicError(
        text,
        kind="action",
        hint="Do without it in this run: -o --force-disable-actions (what it prepares can be done with -p). If it does not "
        "redirect kopia: -o --force-enable-actions",
    )


def _with_actions(policies: Policies) -> Iterator[Source]:
    places = [policies.source, *policies.nested()]
    for place in places:
        own = policies.at(place.path, "actions", "beforeFolder")
        if own.value and own.target == place:
            yield place
    inherited = policies.at_root("actions", "beforeSnapshotRoot")
    if inherited.value and inherited.target is not None:
        yield inherited.target


def check_merged(policies: Policies, plan: Plan) -> list[str]:
    """Check what only a merged view needs: policies of the true paths do not apply to it. Returns warnings.

    A user who has repeated such a policy for its path in the view knows that.
    """
    source = policies.source
    targets = set(policies.targets())
    found = {}
    for path in sorted(target.path for target in targets - set(policies.heeded()) if target.path):
        place = next((place for taken in plan.taken if (place := _place_of(path, taken)) is not None), None)
        if place is not None:
            seen = (source.path.rstrip("/") + place).rstrip("/") or "/"
            if replace(source, path=seen) not in targets:
                found[path] = seen
    if not found:
        return []
    first, seen = next(iter(found.items()))
    return [
        f"kopia's policies of {first_few(list(found))} do not apply to a merged view, where {printable(first)} is "
        f"{printable(seen)}: set them there, or use --layout in-place"
    ]


def _place_of(path: str, taken: Taken) -> str | None:
    """Return where a true path is in the view; None if it is not in it for this dataset."""
    point = taken.dataset.mountpoint.text
    if point.startswith("/") and is_at_or_below(path, point):
        return f"{taken.place.rstrip('/')}/{below(path, point)}"
    return path if taken.place == point and below(point, path) else None


def check_in_place(
    by_source: Mapping[str, Policies],
    plan: Plan,
    client: Client,
    options: Options,
    documents: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Check what only true paths need. ``documents``: the last snapshot of each source, as kopia lists it.

    Returns warnings; raises KopiatomicError of kind override-source or ignore-rules.
    """
    if options.has("--override-source"):
        raise KopiatomicError(
            "--override-source makes no sense in place: the true paths are the sources",
            kind="override-source",
            hint="Leave it out, or use --layout merged.",
        )
    warnings = []
    for path, policies in by_source.items():
        for place in (*(("/dev", "/run") if path == "/" else ()), *views_in([path])):
            _check_ignore_files(path, place, policies, client)
        for key in ("intervalSeconds", "timeOfDay", "cron"):
            setting = policies.at_root("scheduling", key)
            if setting.value and not policies.at_root("scheduling", "manual").value:
                warnings.append(
                    f"kopia itself has a schedule for {printable(path)} (policy {_target(setting.target)}): what its server or "
                    "KopiaUI saves by it is not frozen"
                )
                break
    last = {m.path: m for m in map(parse_manifest, documents) if m is not None}

    def held(points: Mapping[str, str]) -> list[str]:
        return [
            point
            for point, source in points.items()
            if source in last and listing.holds(client, last[source].root_object, f"/{below(point, source)}")
        ]

    return warnings + _histories_below(plan, documents) + hidden_mounts.warnings("kopia", plan, held)


def _check_ignore_files(source: str, place: str, policies: Policies, client: Client) -> None:
    """Check that kopia heeds the files which exclude the system's own directories, as it does unless a policy says otherwise."""
    setting = policies.at(place, "files", "ignoreDotFiles")
    if setting.value is not None and ignore_file.NAME not in setting.value:
        mend = client.hint_command("policy", "set", str(setting.target), f"--add-dot-ignore={ignore_file.NAME}")
        raise KopiatomicError(
            f"kopia's policy {_target(setting.target)} does not heed {ignore_file.NAME} in {place}, which would be in the backup "
            f"of {printable(source)}",
            kind="ignore-rules",
            hint=f"Add it: {mend}",
        )


def _histories_below(plan: Plan, documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return paths below a source for which kopia has a history that this backup does not continue."""
    known = {str((d.get("source") or {}).get("path", "")) for d in documents}
    sources = plan.sources
    inside = sorted(path for path in known if any(below(path, source) for source in sources))
    if not inside:
        return []
    return [
        f"kopia has a history of {first_few(inside)} of its own; it is a part of this backup and does not go on by itself"
    ]
