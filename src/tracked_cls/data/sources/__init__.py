"""Where images come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from tracked_cls.config import DataConfig
from tracked_cls.config.data import SplitSource
from tracked_cls.data.files import Stamp, list_clips, list_images
from tracked_cls.data.names import natural_key
from tracked_cls.data.sources.base import SPLITS, ArraySource, FileSource, Sample, Source
from tracked_cls.data.sources.composite import CompositeSource
from tracked_cls.data.sources.digits import scan_digits
from tracked_cls.data.sources.folder import scan_folder
from tracked_cls.data.sources.idx import read_idx, scan_idx
from tracked_cls.data.sources.python import scan_python
from tracked_cls.data.sources.tables import scan_table
from tracked_cls.data.sources.vision import scan_torchvision
from tracked_cls.errors import UserError, lookup

_SCANNERS: dict[str, Callable[[DataConfig, Path | None], Source]] = {
    "digits": scan_digits,
    "folder": scan_folder,
    "csv": scan_table,
    "txt": scan_table,
    "parquet": scan_table,
    "idx": scan_idx,
    "torchvision": scan_torchvision,
    "python": scan_python,
}
_NONE: Mapping[str, Path | None] = MappingProxyType({})


def scan(cfg: DataConfig, root: Path | None, others: Mapping[str, Path | None] = _NONE) -> Source:
    """Return the source that `cfg.source` names. Lists files, reads no image (a dataset without a fingerprint aside).

    `others`: the root of ``data.val`` and ``data.test`` by split, where they take their images from somewhere else.
    """
    main = lookup(cfg.source, _SCANNERS, "data.source")(cfg, root)
    places = {split: place for split, place in (("val", cfg.val), ("test", cfg.test)) if place.source is not None}
    if not places:
        return main
    parts = {split: _scan_part(cfg, split, place, others.get(split)) for split, place in places.items()}
    return CompositeSource(main, parts, multi_label=cfg.multi_label)


def _scan_part(cfg: DataConfig, split: str, place: SplitSource, root: Path | None) -> Source:
    own = {key: getattr(place, key) for key in ("source", "name", "root", "table", "dataset")}
    own["dataset_args"] = cfg.dataset_args if place.dataset_args is None else place.dataset_args
    try:
        return scan(cfg.model_copy(update={**own, "val": SplitSource(), "test": SplitSource()}), root)
    except UserError as error:  # it speaks of data.root and the like
        raise UserError(f"data.{split}: {error}") from None


__all__ = [
    "SPLITS",
    "ArraySource",
    "CompositeSource",
    "FileSource",
    "Sample",
    "Source",
    "Stamp",
    "list_clips",
    "list_images",
    "natural_key",
    "read_idx",
    "scan",
]
