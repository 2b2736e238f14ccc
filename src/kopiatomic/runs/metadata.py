"""What the metadata record says besides the entries: the engine, the layout, and each dataset with its properties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kopiatomic.filesystems import KINDS, backends
from kopiatomic.model.facts import PropertySetting
from kopiatomic.model.plan import Plan, Taken
from kopiatomic.model.report import EngineReport
from kopiatomic.trees.shards import put


def about(plan: Plan, engine: EngineReport) -> Mapping[str, Any]:
    """Return it as JSON types; nothing of it depends on the run. Raises KopiatomicError, Interrupted."""
    properties: dict[tuple[str, str], Mapping[str, PropertySetting]] = {}
    for name, kind in KINDS.items():
        datasets = [taken.dataset for taken in plan.taken if taken.dataset.kind == name]
        if datasets:
            found = backends.of(kind).properties(datasets)
            properties |= {(name, dataset): values for dataset, values in found.items()}
    return {
        "engine": {"name": engine.name, "version": engine.version},
        "layout": str(plan.layout),
        "datasets": [
            _dataset(taken, properties.get((taken.dataset.kind, taken.dataset.name), {})) for taken in plan.taken
        ],
    }


def _dataset(taken: Taken, properties: Mapping[str, PropertySetting]) -> Mapping[str, Any]:
    dataset = taken.dataset
    document: dict[str, Any] = {"filesystem": dataset.kind, "pool": dataset.pool, "properties": {}}
    for name, setting in properties.items():
        shown: dict[str, Any] = {"source": setting.source}
        put(shown, "value", setting.value)
        document["properties"][name] = shown
    put(document, "dataset", dataset.name)
    if dataset.mountpoint:
        put(document, "mountpoint", dataset.mountpoint.text)
    document["places"] = []
    for place, part in taken.asked:
        where: dict[str, Any] = {}
        put(where, "path", place)
        put(where, "part", part)
        document["places"].append(where)
    return document
