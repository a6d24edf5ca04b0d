"""Batches out of a prepared set: gathered from the memory-mapped cache and augmented as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracked_cls import randomness
from tracked_cls.compute import Compute
from tracked_cls.data.cache import Prepared
from tracked_cls.errors import UserError
from tracked_cls.transforms import Augmentation

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Some samples of a prepared set, in the order of its manifest."""

    prepared: Prepared
    indices: Indices
    compute: Compute

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, size: int, *, seed: int, epoch: int) -> Split:
        """Return up to `size` of the samples in the random order of (seed, epoch), so that its batches mix the classes."""
        return Split(self.prepared, self.indices[randomness.permutation(seed, epoch, len(self))[:size]], self.compute)

    def eval_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images [B,C,S,S] normalised, labels [B]) in manifest order."""
        for chosen in np.array_split(self.indices, num_batches(len(self), batch_size)):
            yield self._normalise(self._images(chosen)), self._labels(chosen)

    def train_batches(
        self, *, batch_size: int, seed: int, epoch: int, start: int, augmentation: Augmentation
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield augmented batches of one epoch from batch number `start` on.

        The order is a function of (seed, epoch, position), the augmentation of (seed, epoch, sample).
        """
        order = self.indices[randomness.permutation(seed, epoch, len(self))]
        for chosen in np.array_split(order, num_batches(len(self), batch_size))[start:]:
            images = augmentation(self._images(chosen), self.prepared.manifest.keys[chosen], seed=seed, epoch=epoch)
            yield self._normalise(images), self._labels(chosen)

    def _images(self, chosen: Indices) -> Tensor:
        """Return float32 [B,C,S,S] in [0, 1], channels last in memory, as the cache is."""
        pixels = torch.from_numpy(np.asarray(self.prepared.pixels[chosen]))
        return pixels.to(self.compute.device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255.0)

    def _normalise(self, images: Tensor) -> Tensor:
        preprocess = self.prepared.preprocess
        mean = torch.tensor(preprocess.mean, device=images.device)[:, None, None]
        std = torch.tensor(preprocess.std, device=images.device)[:, None, None]
        return self.compute.place_images((images - mean) / std)

    def _labels(self, chosen: Indices) -> Tensor:
        labels = torch.from_numpy(np.asarray(self.prepared.manifest.labels[chosen]))
        return labels.to(self.compute.device, non_blocking=True)


def num_batches(size: int, batch_size: int) -> int:
    """Return the batches of an epoch; they differ by one image at most, and none holds a lone image.

    BatchNorm cannot train on one: so an odd number of images in batches of 2 leaves one batch of 3.
    """
    return max(1, min(-(-size // batch_size), size // 2))


def open_split(prepared: Prepared, split: str, *, compute: Compute, limit: int | None = None) -> Split:
    """Return a split, or `limit` of its images, stratified by class; raises `UserError` for an empty split."""
    indices = prepared.manifest.indices(split)
    if len(indices) == 0:
        raise UserError(f"the {split} split of {prepared.manifest.name!r} has no images")
    if limit is not None and limit < len(indices):
        num_classes = len(prepared.manifest.classes)
        if limit < num_classes:
            raise UserError(f"limit must be at least the number of classes ({num_classes}), got {limit}")
        indices = _stratified(indices, np.asarray(prepared.manifest.labels[indices]), limit)
    return Split(prepared, indices, compute)


def _stratified(indices: Indices, labels: npt.NDArray[np.int64], limit: int) -> Indices:
    """Return `limit` of the indices: classes take turns, each giving its images evenly spread over the split."""
    rank_in_class = np.empty(len(indices))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        spread = randomness.permutation(0, int(label), len(members))
        rank_in_class[members[spread]] = np.arange(len(members)) / len(members)
    chosen: Indices = np.sort(indices[np.lexsort((labels, rank_in_class))[:limit]])
    return chosen
