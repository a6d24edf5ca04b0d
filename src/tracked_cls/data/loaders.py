"""Batches out of a prepared set: which images, in which order, with which targets and weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracked_cls import randomness
from tracked_cls.data.cache import Prepared
from tracked_cls.data.feed import Feed
from tracked_cls.data.items import ImageDataset, Indices
from tracked_cls.data.manifest import Keys
from tracked_cls.data.order import Chances, Drawn, Lazy, Order, chances_of, in_order, sampled, shuffled
from tracked_cls.data.preprocess import Preprocess
from tracked_cls.distributed import ALONE, Ranks
from tracked_cls.errors import UserError
from tracked_cls.losses import as_shares

_PIECE = 1 << 20

__all__ = ["Batch", "Feed", "ImageDataset", "Split", "in_pieces", "num_batches", "open_split", "preview", "some"]


class Batch(NamedTuple):
    """What a network is fed: images float32 [B,C,S,S] normalised (clips [B,T,C,S,S]) and targets.

    Targets are labels int64 [B], several labels uint8 [B,K], or mixed shares float32 [B,K]; weights are float32 [B] with a
    mean of 1 over the split. With several `views` of each image, `images` holds them next to each other: [B*views,...]. It is a
    part of the `step_images` of a step, which several processes take together, or all of them.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor | None = None
    views: int = 1
    step_images: int | None = None


@dataclass(frozen=True, eq=False)
class Split:
    """Some samples of a prepared set, in the order of its manifest, and the feed that brings them."""

    feed: Feed
    indices: Indices

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def prepared(self) -> Prepared:
        """The set the samples belong to."""
        return self.feed.prepared

    def sample(self, size: int, *, seed: int, epoch: int) -> Split:
        """Return up to `size` of the samples in the random order of (seed, epoch), so that its batches mix the classes."""
        return replace(self, indices=self.indices[randomness.permutation(seed, epoch, len(self))[:size]])

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield batches without augmentation, in manifest order."""
        chosen = np.array_split(self.indices, num_batches(len(self), batch_size))
        for indices, (images, num_views) in zip(chosen, self.feed.plain(chosen), strict=True):
            yield Batch(images, self._labels(indices), views=num_views)

    def shared(self, ranks: Ranks) -> Split:
        """Return this process's part of the samples."""
        return replace(self, indices=self.indices[ranks.share(len(self))])

    def train_batches(self, *, batch_size: int, seed: int, epoch: int, start: int, ranks: Ranks = ALONE) -> Iterator[Batch]:
        """Yield this process's part of the augmented batches of one epoch, from batch number `start` on.

        The order is a function of (seed, epoch, position), the augmentation of (seed, epoch, sample), a mixed image's partner
        the one before it in the batch: all the same for any number of processes.
        """
        order = self.order(batch_size=batch_size, seed=seed, epoch=epoch)
        before = int(ranks.are_several and self.feed.mixing is not None)  # a partner for the first image of a part
        parts = Lazy(order.num_batches, lambda number: order.part(number, ranks, before))[start:]
        for number, images in enumerate(self.feed.augmented(parts, seed=seed, epoch=epoch), start):
            indices, keys = parts[number - start]
            mixed, targets = self.mix(images, indices, keys, seed=seed, epoch=epoch)
            weights = self._weights_of(indices[before:])
            yield Batch(mixed[before:], targets[before:], weights, step_images=order.length_of(number))

    def order(self, *, batch_size: int, seed: int, epoch: int) -> Order:
        """Return which samples an epoch visits: all of them once, or drawn with replacement by a sampler."""
        manifest, loader = self.prepared.manifest, self.feed.loader
        if not loader.shuffle:
            visits = in_order(manifest, self.indices)
        elif loader.sampler == "none":
            visits = shuffled(manifest, self.indices, seed=seed, epoch=epoch)
        else:
            visits = sampled(manifest, self.indices, self._chances, seed=seed, epoch=epoch)
        return Order(len(self), num_batches(len(self), batch_size), visits)

    @cached_property
    def _chances(self) -> Chances:
        return chances_of(self.prepared.manifest, self.indices, self.feed.loader.sampler)

    def mix(self, images: Tensor, chosen: Indices, keys: Keys, *, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the images of a batch and their targets, mixed where the configuration says so."""
        if self.feed.mixing is None:
            return images, self._labels(chosen)
        shares = as_shares(self._labels(chosen), len(self.prepared.manifest.classes))
        return self.feed.mixing(images, shares, keys, seed=seed, epoch=epoch)

    def _labels(self, chosen: Indices) -> Tensor:
        labels = torch.from_numpy(np.asarray(self.prepared.manifest.labels[chosen]))
        return labels.to(self.feed.compute.device, non_blocking=True)

    @cached_property
    def _mean_weight(self) -> float:
        weights = self.prepared.manifest.weights
        sums = [float(np.sum(weights[some], dtype=np.float64)) for some in in_pieces(self.indices)]
        return sum(sums) / len(self)

    def _weights_of(self, chosen: Indices) -> Tensor:
        weights = np.asarray(self.prepared.manifest.weights[chosen]) / self._mean_weight
        return torch.from_numpy(weights.astype(np.float32)).to(self.feed.compute.device, non_blocking=True)


def num_batches(size: int, batch_size: int) -> int:
    """Return the batches of an epoch; they differ by one image at most, and none holds a lone image.

    BatchNorm cannot train on one: so an odd number of images in batches of 2 leaves one batch of 3.
    """
    return max(1, min(-(-size // batch_size), size // 2))


def open_split(feed: Feed, split: str, *, limit: int | None = None) -> Split:
    """Return a split, or `limit` of its images, stratified by class; raises `UserError` for an empty split."""
    manifest = feed.prepared.manifest
    indices = manifest.indices(split)
    if len(indices) == 0:
        raise UserError(f"the {split} split of {manifest.name!r} has no images")
    if limit is not None and limit < len(indices):
        if limit < len(manifest.classes):
            raise UserError(f"limit must be at least the number of classes ({len(manifest.classes)}), got {limit}")
        indices = _stratified(indices, manifest.strata()[indices], limit)
    return Split(feed, indices)


def in_pieces(indices: Indices) -> Iterator[Indices]:
    """Yield positions a million at a time: what a column holds of all of them need not fit into memory."""
    for start in range(0, len(indices), _PIECE):
        yield indices[start : start + _PIECE]


def some(split: Split, count: int) -> Split:
    """Return up to `count` samples of a split, stratified by class; of millions, among some that are evenly spread."""
    if count >= len(split):
        return split
    if len(split) > _PIECE and count < _PIECE // 2:
        return some(replace(split, indices=split.indices[:: -(-len(split) // _PIECE)]), count)
    return replace(split, indices=_stratified(split.indices, split.prepared.manifest.strata()[split.indices], count))


def preview(split: Split, *, draws: int, seed: int) -> npt.NDArray[np.uint8]:
    """Return pictures uint8 [N,1+draws,S,S,C]: each image of a split plain, then as the first epochs of training see it.

    Of a clip the middle frame, of several views the first.
    """
    feed, keys = split.feed, split.prepared.manifest.keys[split.indices]
    columns = [images[::num_views] for images, num_views in feed.plain([split.indices])]
    for epoch in range(draws):
        (images,) = feed.augmented([Drawn(split.indices, keys)], seed=seed, epoch=epoch)
        columns.append(split.mix(images, split.indices, keys, seed=seed, epoch=epoch)[0])
    return np.stack([_pictures(images, split.prepared.preprocess) for images in columns], axis=1)


def _pictures(images: Tensor, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """Return normalised [N,C,S,S] or [N,T,C,S,S] as pixels uint8 [N,S,S,C]."""
    single = images if preprocess.frames is None else images[:, preprocess.frames // 2]
    scaled = single.movedim(1, -1).cpu().numpy() * np.asarray(preprocess.std) + np.asarray(preprocess.mean)
    return np.asarray(np.clip(np.rint(scaled * 255), 0, 255), np.uint8)


def _stratified(indices: Indices, labels: npt.NDArray[np.int64], limit: int) -> Indices:
    """Return `limit` of the indices: classes take turns, each giving its images evenly spread over the split."""
    rank_in_class = np.empty(len(indices))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        spread = randomness.permutation(0, int(label), len(members))
        rank_in_class[members[spread]] = np.arange(len(members)) / len(members)
    chosen: Indices = np.sort(indices[np.lexsort((labels, rank_in_class))[:limit]])
    return chosen
