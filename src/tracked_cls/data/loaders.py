"""Batches out of a prepared set: which images, in which order, and what is done to them on the way to the network."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tracked_cls import randomness
from tracked_cls.compute import Compute
from tracked_cls.config import LoaderConfig, TransformsConfig
from tracked_cls.data.cache import Prepared, open_prepared
from tracked_cls.data.ingest import start_worker
from tracked_cls.data.preprocess import Geometry, Preprocess
from tracked_cls.errors import UserError
from tracked_cls.losses import as_shares
from tracked_cls.provenance import num_cores
from tracked_cls.transforms import BatchPipeline, Mixing, SamplePipeline, plan_training
from tracked_cls.transforms.inference import plan_evaluation
from tracked_cls.transforms.views import views

Indices = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


class Batch(NamedTuple):
    """What a network is fed: images float32 [B,C,S,S] normalised (clips [B,T,C,S,S]) and targets.

    Targets are labels int64 [B], several labels uint8 [B,K], or mixed shares float32 [B,K]; weights are float32 [B] with a
    mean of 1 over the split. With several `views` of each image, `images` holds them next to each other: [B*views,...].
    """

    images: Tensor
    targets: Tensor
    weights: Tensor | None = None
    views: int = 1


class Item(NamedTuple):
    """One image as it is stored, uint8 [C,S,S] (clips [T,C,S,S]), its label, and the id that names it everywhere."""

    image: Tensor
    label: Tensor
    sample_id: str


@dataclass(frozen=True)
class _Fit:
    """The model's own geometry for what a list of transforms leaves: uint8 [C,H,W] to [C,S,S]."""

    geometry: Geometry

    def __call__(self, image: Tensor) -> Tensor:
        return _channels_first(self.geometry.apply(np.ascontiguousarray(image.movedim(-3, -1).numpy())))


class Request(NamedTuple):
    """A batch to fetch: positions [B], and a seed for each image [B] where it is to be transformed at random."""

    indices: Indices
    seeds: npt.NDArray[np.uint64] | None


class ImageDataset(Dataset[Item]):
    """A prepared set as PyTorch sees one. Light to send to a worker process, which opens the files itself."""

    def __init__(
        self, prepared: Prepared, train: SamplePipeline | None = None, evaluation: SamplePipeline | None = None
    ) -> None:
        self.prepared = prepared
        self.train = train
        self.evaluation = evaluation

    def __len__(self) -> int:
        return len(self.prepared.manifest)

    def __getitem__(self, index: int) -> Item:
        label = torch.as_tensor(np.asarray(self.prepared.manifest.labels[index]))
        stored = _channels_first(self.prepared.sized(np.array([index])))[0]
        return Item(stored, label, self.prepared.manifest.ids[index])

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.prepared.folder, "train": self.train, "evaluation": self.evaluation}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(open_prepared(state["folder"]), state["train"], state["evaluation"])  # type: ignore[misc]

    def batch(self, request: Request) -> Tensor:
        """Return images as they leave their transforms: uint8 or float32 [B,C,S,S], [B,V,C,S,S] after five or ten crops.

        A request with seeds is one for training; where no list of transforms works image by image, images come as stored.
        """
        pipeline = self.evaluation if request.seeds is None else self.train
        if pipeline is None:
            return _channels_first(self.prepared.sized(request.indices))
        seeds = self.prepared.manifest.keys[request.indices] if request.seeds is None else request.seeds
        originals = (_channels_first(self.prepared.original(int(index))) for index in request.indices)
        return torch.stack([pipeline(image, int(seed)) for image, seed in zip(originals, seeds, strict=True)])


class _Batches(Dataset[Tensor]):
    """Lets a DataLoader ask for whole batches."""

    def __init__(self, images: ImageDataset) -> None:
        self.images = images

    def __getitem__(self, request: Request) -> Tensor:
        return self.images.batch(request)


class _Queue(Sampler[Request]):
    """The requests of the next pass: workers that live on get other ones each time."""

    def __init__(self) -> None:
        self.requests: Sequence[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


@dataclass(frozen=True, eq=False)
class Feed:
    """The way from a prepared set to a network: transforms, workers, normalisation.

    `train` works on whole batches or image by image, `mixing` on batches after it; `evaluation` is a user's own list for
    validation and test; `tta` names the views of each image that evaluation looks at, of side `image_size` (None: all of it).
    """

    prepared: Prepared
    compute: Compute
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    train: BatchPipeline | SamplePipeline | None = None
    mixing: Mixing | None = None
    evaluation: SamplePipeline | None = None
    tta: str = "none"
    image_size: int | None = None

    @classmethod
    def create(cls, prepared: Prepared, compute: Compute, transforms: TransformsConfig, loader: LoaderConfig) -> Feed:
        """Return the feed that a configuration describes; a transform that does not fit the data is a `UserError`."""
        geometry, frames = prepared.preprocess.geometry, prepared.preprocess.frames
        shape, fit = (geometry.channels, geometry.image_size), _Fit(geometry)
        search, whole_photos = (Path.cwd(),), prepared.pixels is None
        own = plan_training(transforms, shape, whole_photos=whole_photos, frames=frames, fit=fit, search=search)
        evaluation = plan_evaluation(transforms, shape, whole_photos=whole_photos, fit=fit, search=search)
        return cls(prepared, compute, loader, own.images, own.mixing, evaluation)

    def close(self) -> None:
        """End the worker processes; they start again when they are needed."""
        self.__dict__.pop("_pool", None)

    def plain(self, batches: Sequence[Indices]) -> Iterator[tuple[Tensor, int]]:
        """Yield (images for evaluation, normalised, with the views of an image side by side; number of views)."""
        for images in self._fetch([Request(indices, None) for indices in batches]):
            seen = images if self.tta == "none" else self._views(images)
            if seen.dim() == self._image_dims:
                yield self._finish(self._on_device(seen), self.evaluation), 1
            else:
                yield self._finish(self._on_device(seen.flatten(0, 1)), self.evaluation), seen.shape[1]

    def augmented(self, batches: Sequence[Indices], keys: Sequence[Keys], *, seed: int, epoch: int) -> Iterator[Tensor]:
        """Yield augmented images, normalised. The randomness is a function of (seed, epoch, key)."""
        by_sample = self.train if isinstance(self.train, SamplePipeline) else None
        by_batch = self.train if isinstance(self.train, BatchPipeline) else None
        requests = [
            Request(indices, randomness.seeds(seed, epoch, own) if by_sample else None)
            for indices, own in zip(batches, keys, strict=True)
        ]
        fetched = self._fetch(requests) if by_sample or self.evaluation is None else map(self._stored, requests)
        for images, own in zip(fetched, keys, strict=True):
            scaled = self._on_device(images)
            drawn = scaled if by_batch is None else by_batch(scaled, own, seed=seed, epoch=epoch)
            yield self._finish(drawn, by_sample)

    @property
    def _image_dims(self) -> int:
        """Dimensions of a batch of inputs: [B,C,S,S], or [B,T,C,S,S] for clips."""
        return 4 if self.prepared.preprocess.frames is None else 5

    @cached_property
    def _dataset(self) -> ImageDataset:
        train = self.train if isinstance(self.train, SamplePipeline) else None
        return ImageDataset(self.prepared, train, self.evaluation)

    def _stored(self, request: Request) -> Tensor:
        return _channels_first(self.prepared.sized(request.indices))

    def _fetch(self, requests: Sequence[Request]) -> Iterator[Tensor]:
        """Yield what `ImageDataset.batch` makes of each request, in order, in worker processes where that is wanted."""
        if self._workers == 0:
            yield from (self._dataset.batch(request) for request in requests)
            return
        queue, loader = self._pool
        queue.requests = requests
        yield from loader

    @property
    def _workers(self) -> int:
        if self.loader.workers is not None:
            return self.loader.workers
        from_cache = self.prepared.pixels is not None and self._dataset.train is None and self.evaluation is None
        return 0 if from_cache else num_cores()

    @cached_property
    def _pool(self) -> tuple[_Queue, DataLoader[Tensor]]:
        queue = _Queue()
        pin = self.loader.pin_memory
        loader = DataLoader(
            _Batches(self._dataset),
            batch_size=None,
            sampler=queue,
            num_workers=self._workers,
            prefetch_factor=self.loader.prefetch,
            persistent_workers=True,
            pin_memory=self.compute.device.type == "cuda" if pin is None else pin,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # its own: a draw from the global one would move dropout
        )
        return queue, loader

    def _views(self, images: Tensor) -> Tensor:
        """Return [B,V,C,S,S] of uint8 [B,C,R,R]; clips [B,V,T,C,S,S] of [B,T,C,R,R]."""
        size = self.image_size or images.shape[-1]
        return _channels_first(np.ascontiguousarray(views(images.movedim(-3, -1).numpy(), size, self.tta)))

    def _on_device(self, images: Tensor) -> Tensor:
        """Return images on the device, uint8 ones as float32 in [0, 1]."""
        placed = images.to(self.compute.device, non_blocking=True)
        return placed.float().div_(255.0) if placed.dtype == torch.uint8 else placed

    def _finish(self, images: Tensor, pipeline: SamplePipeline | None) -> Tensor:
        """Normalise, unless a list of transforms has done so."""
        if pipeline is not None and pipeline.normalises:
            return self.compute.place_images(images)
        preprocess = self.prepared.preprocess
        mean = torch.tensor(preprocess.mean, device=images.device)[:, None, None]
        std = torch.tensor(preprocess.std, device=images.device)[:, None, None]
        return self.compute.place_images((images - mean) / std)


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

    def train_batches(self, *, batch_size: int, seed: int, epoch: int, start: int) -> Iterator[Batch]:
        """Yield augmented batches of one epoch from batch number `start` on.

        The order is a function of (seed, epoch, position), the augmentation of (seed, epoch, sample).
        """
        order = self._order(seed, epoch)
        keys = _occurrences(self.prepared.manifest.keys[order], order)
        count = num_batches(len(order), batch_size)
        chosen, own = np.array_split(order, count)[start:], np.array_split(keys, count)[start:]
        images_of = self.feed.augmented(chosen, own, seed=seed, epoch=epoch)
        for indices, batch_keys, images in zip(chosen, own, images_of, strict=True):
            mixed, targets = self.mix(images, indices, batch_keys, seed=seed, epoch=epoch)
            yield Batch(mixed, targets, self._weights_of(indices))

    def _order(self, seed: int, epoch: int) -> Indices:
        """Return the positions that an epoch visits: all of them once, or drawn with replacement by a sampler."""
        if not self.feed.loader.shuffle:
            return self.indices
        if self._chances is None:
            return self.indices[randomness.permutation(seed, epoch, len(self))]
        return self.indices[randomness.draw(seed, epoch, self._chances)]

    @cached_property
    def _chances(self) -> npt.NDArray[np.float64] | None:
        """Probability of each sample to be drawn [N]; None without a sampler."""
        sampler = self.feed.loader.sampler
        if sampler == "none":
            return None
        manifest = self.prepared.manifest
        if sampler == "weights":
            chances = np.asarray(manifest.weights[self.indices], np.float64)
        else:
            labels = np.asarray(manifest.labels[self.indices])
            chances = 1.0 / np.bincount(labels)[labels]
        if not chances.sum() > 0:
            raise UserError("loader.sampler=weights: all weights of the training images are 0")
        return np.asarray(chances / chances.sum())

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
        return float(np.mean(self.prepared.manifest.weights[self.indices]))

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


def some(split: Split, count: int) -> Split:
    """Return up to `count` samples of a split, stratified by class."""
    if count >= len(split):
        return split
    return replace(split, indices=_stratified(split.indices, split.prepared.manifest.strata()[split.indices], count))


def preview(split: Split, *, draws: int, seed: int) -> npt.NDArray[np.uint8]:
    """Return pictures uint8 [N,1+draws,S,S,C]: each image of a split plain, then as the first epochs of training see it.

    Of a clip the middle frame, of several views the first.
    """
    feed, keys = split.feed, split.prepared.manifest.keys[split.indices]
    columns = [images[::num_views] for images, num_views in feed.plain([split.indices])]
    for epoch in range(draws):
        (images,) = feed.augmented([split.indices], [keys], seed=seed, epoch=epoch)
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


def _occurrences(keys: Keys, order: Indices) -> Keys:
    """Return keys that differ where a sampler draws the same image again, so that each copy is augmented differently."""
    if len(np.unique(order)) == len(order):
        return keys
    by_index = np.argsort(order, kind="stable")
    first = np.concatenate([[True], np.diff(order[by_index]) > 0])
    starts = np.flatnonzero(first)
    ordinal = np.empty(len(order), np.uint64)
    ordinal[by_index] = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    return randomness.nth(keys, ordinal)


def _channels_first(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Return uint8 [...,H,W,C] as a tensor [...,C,H,W], channels last in memory, as the cache is."""
    return torch.from_numpy(np.asarray(pixels)).movedim(-1, -3)


def _start_worker(_: int) -> None:
    """Set a loading process up: as one that decodes, and SIGTERM, by which the loader ends it, ends it."""
    start_worker()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
