"""What is done to the images, at one of two speeds: whole batches at once, or image by image with all of torchvision.

What every model's input goes through anyway, conversion to float and normalisation, is left to the loader where it ends
the list for training: so images travel as bytes and can still be brought to the model's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tracked_cls.config import MIXES, TransformsConfig, TransformSpec
from tracked_cls.errors import UserError
from tracked_cls.transforms.batch import NOTHING, TO_FLOAT, BatchPipeline, NotInBatches, flat
from tracked_cls.transforms.mixing import Mixing
from tracked_cls.transforms.plain import are_plain
from tracked_cls.transforms.samples import Fit, SamplePipeline

__all__ = ["BatchPipeline", "Mixing", "SamplePipeline", "TrainingTransforms", "check", "photo_size", "plan_training", "trimmed"]


class TrainingTransforms(NamedTuple):
    """What training images get: `images` first, whole batches or one by one; then `mixing`."""

    images: BatchPipeline | SamplePipeline
    mixing: Mixing | None


def plan_training(
    cfg: TransformsConfig,
    shape: tuple[int, int],
    *,
    whole_photos: bool,
    frames: int | None = None,
    fit: Fit | None = None,
    search: Sequence[Path] = (),
) -> TrainingTransforms:
    """Choose the speed of ``transforms.train`` for a model's input of `shape` (channels, side).

    `whole_photos`: the cache holds photos of any size, which only come image by image. Raises `UserError` for a mistake
    in the list, which is tried on an image, and for a list that ``speed=batch`` cannot do.
    """
    specs, mixing = _without_mixes(cfg), Mixing.from_specs(cfg.mixes)
    if cfg.speed != "sample" and not whole_photos and are_plain(specs):
        return TrainingTransforms(BatchPipeline.from_specs(specs, shape[1]), mixing)
    SamplePipeline.untried(specs, shape, search, frames=frames)
    trial_size = photo_size(shape) if whole_photos else None
    samples = SamplePipeline.from_specs(trimmed(specs), shape, search, fit=fit, frames=frames, trial_size=trial_size)
    obstacle = "data.cache=files" if whole_photos else _obstacle(specs, shape[1])
    if cfg.speed == "batch" and obstacle:
        raise UserError(f"transforms.speed=batch: {obstacle} is only possible image by image; leave transforms.speed=auto")
    if cfg.speed == "sample" or obstacle:
        return TrainingTransforms(samples, mixing)
    return TrainingTransforms(BatchPipeline.from_specs(specs, shape[1]), mixing)


def check(
    cfg: Any,
    shape: tuple[int, int],
    *,
    whole_photos: bool = False,
    frames: int | None = None,
    search: Sequence[Path] = (),
) -> None:
    """Raise `UserError`, naming the list, for a mistake in any list of a section: ``train``, ``eval``, ``predict``."""
    for key in ("train", "eval", "predict"):
        specs = getattr(cfg, key, [])
        with _naming(key):
            if key == "train" and specs:
                plan_training(cfg, shape, whole_photos=whole_photos, frames=frames, search=search)
            elif trimmed(specs):
                trial_size = photo_size(shape) if whole_photos or key == "predict" else None
                SamplePipeline.from_specs(specs, shape, search, trial_size=trial_size)
            else:
                SamplePipeline.untried(specs, shape, search)


def trimmed(specs: Sequence[TransformSpec]) -> list[TransformSpec]:
    """Return a list, each Compose dissolved, without what ends it and the loader does to every image."""
    entries = list(flat(specs))
    while entries and _is_loaders(*entries[-1]):
        entries.pop()
    return [{name: args} for name, args in entries]


def _is_loaders(name: str, args: dict[str, Any]) -> bool:
    return name == "Normalize" or name in NOTHING or args in TO_FLOAT.get(name, [])


def photo_size(shape: tuple[int, int]) -> int:
    """Return the side of a photo as it may come: larger than the model's input."""
    return max(512, 2 * shape[1])


def _without_mixes(cfg: TransformsConfig) -> list[TransformSpec]:
    return [spec for spec in cfg.train if not set(spec) & set(MIXES)]


def _obstacle(specs: Sequence[TransformSpec], size: int) -> str:
    """Return what keeps a list from whole batches, or an empty text."""
    try:
        BatchPipeline.from_specs(specs, size)
    except NotInBatches as obstacle:
        return str(obstacle)
    return ""


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Name the list in what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"transforms.{key}: {error}") from error
