"""Looking at images the way a network does: plain, and as the transforms of training draw them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tracked_cls.config import LoaderConfig, TransformsConfig
from tracked_cls.data.cache import Prepared
from tracked_cls.data.decode import Pixels, RejectedImage, decode, read_file
from tracked_cls.data.sources import Source

_IMAGES, _DRAWS = 8, 7  # rows and columns of the augmented images in a report


def augmented(prepared: Prepared, transforms: TransformsConfig) -> Pixels:
    """Return some training images uint8 [N,1+draws,S,S,C], plain and then as the first epochs see them."""
    return _draw(prepared, transforms, draws=_DRAWS)


def draw_sample(prepared: Prepared, index: int, transforms: TransformsConfig, source: Source, path: Path) -> None:
    """Draw one image to a file: as it came, as the model sees it, and in several draws of the training transforms."""
    from tracked_cls import plots  # matplotlib: for those who ask for a picture

    manifest = prepared.manifest
    row = _draw(prepared, transforms, draws=2 * _DRAWS, index=index)[0]
    title = f"{manifest.paths[index]}   {', '.join(manifest.names_of(index))}"
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.sample(_original(source, manifest.paths[index]), row, title, path)


def _draw(prepared: Prepared, transforms: TransformsConfig, *, draws: int, index: int | None = None) -> Pixels:
    """Return pictures of one image, or of some training images of every class."""
    from tracked_cls.compute import cpu  # torch: only those who look need it
    from tracked_cls.data.loaders import Feed, open_split, preview, some

    feed = Feed.create(prepared, cpu(), transforms, LoaderConfig(workers=0))
    train = open_split(feed, "train")
    chosen = some(train, max(_IMAGES, 2)) if index is None else replace(train, indices=np.array([index]))
    return preview(chosen, draws=draws, seed=0)


def _original(source: Source, path: str) -> Pixels | None:
    """Return the image as its source has it, or None where that is no single image any more."""
    sample = next((sample for sample in source.samples if sample.path == path), None)
    if sample is None:
        return None
    file = source.path_of(sample)
    try:
        pixels = source.array(sample) if file is None else decode(read_file(file))
    except RejectedImage:  # a folder of frames
        return None
    return pixels if pixels.ndim == 3 else pixels[len(pixels) // 2] if pixels.ndim == 4 else pixels[:, :, None]
