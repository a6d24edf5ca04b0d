"""What the tracking store, and this disk, know of a model that is exported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracked_cls import registry
from tracked_cls.data.cache import COMPLETE, Prepared, open_prepared
from tracked_cls.data.preprocess import Preprocess
from tracked_cls.errors import UserError
from tracked_cls.registry import Version
from tracked_cls.report.artifacts import RunFacts
from tracked_cls.report.publication import collect
from tracked_cls.tracking import StoreError, Tracker


@dataclass(frozen=True, eq=False)
class Evidence:
    """The run that made a model, None where it is gone; the version, None where it is registered nowhere.

    `num_images` counts images by split; `prepared` is the set it was trained on, where that is on this disk; `notes` are
    sentences on what could not be had.
    """

    run: RunFacts | None
    version: Version | None
    aliases: tuple[str, ...] = ()
    num_images: Mapping[str, int] = field(default_factory=dict)
    prepared: Prepared | None = None
    notes: tuple[str, ...] = ()


def gather(tracker: Tracker, exact: str, meta: Mapping[str, Any], scratch: Path) -> Evidence:
    """Return what is known of an exact model (``models:/...``); files of its run are copied into `scratch`."""
    run: RunFacts | None = None
    notes: list[str] = []
    try:
        run = collect(tracker, str(meta["run_id"]), scratch, tables=False)
        notes += ["Some files of that run could not be read."] if run.notes else []
    except UserError:  # why not stays here: the card goes to others, and reasons hold addresses and paths
        notes.append("The run that made the model was deleted, or cannot be read.")
    version = _version(tracker, exact)
    inputs = _inputs(tracker, str(meta["run_id"])) if run else []
    return Evidence(
        run=run,
        version=version,
        aliases=_aliases(tracker, version),
        num_images={name: _count(item) for name, item in inputs},
        prepared=next((found for _, item in inputs if (found := _prepared(item, meta))), None),
        notes=tuple(notes),
    )


def weights_only(tracker: Tracker, address: str) -> str | None:
    """Return why a run (``runs:/<id>``) kept nothing but weights; None where it kept a model, and for any other address."""
    if not address.startswith("runs:/"):
        return None
    try:
        run_id = address.removeprefix("runs:/")
        tags = tracker.client.get_run(run_id).data.tags
        return tags.get("promotion.reason") if tracker.client.list_artifacts(run_id, "weights") else None
    except StoreError:  # what there is, or is not, says the registry
        return None


def _version(tracker: Tracker, exact: str) -> Version | None:
    try:
        return registry.version_at(tracker.client, exact)
    except UserError:  # never registered
        return None


def _aliases(tracker: Tracker, version: Version | None) -> tuple[str, ...]:
    names = (registry.CHAMPION, registry.CHALLENGER)
    holders = {name: registry.by_alias(tracker.client, version.name, name) if version else None for name in names}
    return tuple(name for name, holder in holders.items() if holder and version and holder.number == version.number)


def _inputs(tracker: Tracker, run_id: str) -> list[tuple[str, Any]]:
    """Return (split, data set) of what a run was given, in the order of its splits."""
    known = {"training": "train", "validation": "val"}
    try:
        inputs = tracker.client.get_run(run_id).inputs.dataset_inputs
    except StoreError:
        return []
    contexts = [
        (next((tag.value for tag in item.tags if tag.key == "mlflow.data.context"), ""), item.dataset) for item in inputs
    ]
    found = {known.get(context, context): dataset for context, dataset in contexts}
    return [(split, found[split]) for split in ("train", "val", "test") if split in found]


def _count(dataset: Any) -> int:
    return int(_mapping(dataset.profile).get("num_images", 0))


def _prepared(dataset: Any, meta: Mapping[str, Any]) -> Prepared | None:
    """Return the prepared set behind a data set, where it is on this disk, whole, and as the model sees images."""
    folder = Path(str(_mapping(dataset.source).get("folder", "")))
    if not (folder / COMPLETE).is_file():
        return None
    try:
        found = open_prepared(folder)
    except (UserError, OSError):
        return None
    wanted = Preprocess.from_dict(meta["preprocess"])
    is_same = found.preprocess.geometry == wanted.geometry and found.preprocess.frames == wanted.frames
    return found if is_same and found.manifest.digest == meta["data"]["digest"] else None


def _mapping(text: Any) -> dict[str, Any]:
    """Return what a text of the store holds; nothing for what is no mapping in JSON."""
    try:
        content = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
