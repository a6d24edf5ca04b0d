"""scikit-learn's handwritten digits: real images that need no files and no network."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np

from tracked_cls.config import DataConfig
from tracked_cls.data.sources.base import Arrays, ArraySource, Sample, digest


def scan_digits(cfg: DataConfig, root: Path | None) -> ArraySource:
    """Return the digits; their fingerprint is the version of scikit-learn."""
    version = importlib.metadata.version("scikit-learn")
    return ArraySource(cfg.label, digest(("digits", version)), _load_digits, group_pattern=cfg.group_pattern)


def _load_digits() -> Arrays:
    from sklearn.datasets import load_digits  # a second to import, not needed when the digits are prepared already

    digits = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)
    return {
        Sample(f"digits/{index:04d}", (str(label),)): image
        for index, (image, label) in enumerate(zip(images, digits.target, strict=True))
    }
