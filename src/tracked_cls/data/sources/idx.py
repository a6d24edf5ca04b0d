"""IDX files, the format of MNIST."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from tracked_cls.config import DataConfig
from tracked_cls.data.decode import Pixels
from tracked_cls.data.sources.base import Arrays, ArraySource, Sample, digest_of_files
from tracked_cls.errors import UserError

_IDX_SPLITS = {"train": "train", "val": "val", "t10k": "test", "test": "test"}
_IDX_KINDS = {"images": ("images-idx3-ubyte", 3), "labels": ("labels-idx1-ubyte", 1)}
_MAX_GZIP_RATIO = 1032  # deflate cannot do better, so a header that promises more lies


def scan_idx(cfg: DataConfig, root: Path | None) -> ArraySource:
    """Return the images of IDX files below a folder, with the splits their names give."""
    if root is None or not root.is_dir():
        raise UserError(f"data.root: {str(root)!r} is no folder; give the folder that holds train-images-idx3-ubyte[.gz]")
    pairs = _find_idx(root)
    files = [path for pair in pairs.values() for path in pair]
    return ArraySource(cfg.label, digest_of_files(files), lambda: _load_idx(pairs), group_pattern=cfg.group_pattern)


def _find_idx(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return prefix -> (images file, labels file) from the first folder that has any."""
    folders = [root, root / "raw", root / "MNIST" / "raw"]
    for folder in folders:
        pairs: dict[str, tuple[Path, Path]] = {}
        for prefix in _IDX_SPLITS:
            images, labels = (_idx_file(folder, f"{prefix}-{kind}") for kind, _ in _IDX_KINDS.values())
            if (images is None) != (labels is None):
                there = images or labels
                raise UserError(f"{there}: the file of its {'labels' if images else 'images'} is missing beside it")
            if images and labels:
                pairs[prefix] = images, labels
        if pairs:
            _check_idx_splits(folder, pairs)
            return pairs
    raise UserError(f"{root}: no *-images-idx3-ubyte[.gz] in it, nor in its raw or MNIST/raw")


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _check_idx_splits(folder: Path, pairs: Mapping[str, object]) -> None:
    if "train" not in pairs:
        raise UserError(f"{folder}: train-images-idx3-ubyte[.gz] is missing")
    if "t10k" in pairs and "test" in pairs:
        raise UserError(f"{folder}: t10k-* and test-* both mean the test split; keep one of them")


def _load_idx(pairs: Mapping[str, tuple[Path, Path]]) -> Arrays:
    arrays: dict[Sample, Pixels] = {}
    for prefix, (images_file, labels_file) in pairs.items():
        images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
        if len(images) != len(labels):
            raise UserError(f"{images_file}: {len(images)} images, but {labels_file.name} has {len(labels)} labels")
        for index, label in enumerate(labels.tolist()):
            arrays[Sample(f"{prefix}/{index:05d}", (str(label),), _IDX_SPLITS[prefix])] = images[index]
    return arrays


def read_idx(path: Path, ndim: int) -> Pixels:
    """Return an IDX file of unsigned bytes, plain or gzipped; whatever is wrong with it is a `UserError` naming it."""
    is_gzip = path.suffix == ".gz"
    try:
        with path.open("rb") as raw, cast(BinaryIO, gzip.open(raw)) if is_gzip else raw as stream:
            return _read_idx(stream, path, ndim, path.stat().st_size * (_MAX_GZIP_RATIO if is_gzip else 1))
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path}: the file is cut short or damaged ({error}); fetch it anew") from None


def _read_idx(stream: BinaryIO, path: Path, ndim: int, most_bytes: int) -> Pixels:
    header = stream.read(4 + 4 * ndim)
    if len(header) < 4 + 4 * ndim or header[:4] != bytes([0, 0, 8, ndim]):
        raise UserError(f"{path}: not an IDX file of {ndim}-dimensional bytes (its first bytes are {header[:4].hex(' ')})")
    shape = [int.from_bytes(header[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(ndim)]
    size = math.prod(shape)
    if 0 in shape:
        raise UserError(f"{path}: its header says that it is empty: {shape}")
    if size > most_bytes:
        raise UserError(f"{path}: cut short: its header promises {size} bytes, which a file of its length cannot hold")
    content = stream.read(size + 1)
    if len(content) != size:
        more = "more" if len(content) > size else f"only {len(content)}"
        raise UserError(f"{path}: its header promises {size} bytes, but {more} follow; fetch it anew")
    return np.frombuffer(content, np.uint8).reshape(shape)
