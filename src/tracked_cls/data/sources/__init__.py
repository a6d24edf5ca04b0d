"""Where images come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tracked_cls.config import DataConfig
from tracked_cls.data.sources.base import SPLITS, ArraySource, FileSource, Sample, Source, natural_key
from tracked_cls.data.sources.digits import scan_digits
from tracked_cls.data.sources.folder import list_images, scan_folder
from tracked_cls.data.sources.idx import read_idx, scan_idx
from tracked_cls.data.sources.vision import scan_torchvision
from tracked_cls.errors import lookup

_SCANNERS: dict[str, Callable[[DataConfig, Path | None], Source]] = {
    "digits": scan_digits,
    "folder": scan_folder,
    "idx": scan_idx,
    "torchvision": scan_torchvision,
}


def scan(cfg: DataConfig, root: Path | None) -> Source:
    """Return the source that `cfg.source` names. Lists files, reads no image."""
    return lookup(cfg.source, _SCANNERS, "data.source")(cfg, root)


__all__ = [
    "SPLITS",
    "ArraySource",
    "FileSource",
    "Sample",
    "Source",
    "list_images",
    "natural_key",
    "read_idx",
    "scan",
]
