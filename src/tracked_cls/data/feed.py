"""The way from a prepared set to a network: transforms, loading processes, normalisation."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tracked_cls import randomness
from tracked_cls.compute import Compute
from tracked_cls.config import LoaderConfig, TransformsConfig
from tracked_cls.console import say
from tracked_cls.data.cache import Prepared
from tracked_cls.data.ingest import start_worker
from tracked_cls.data.items import ImageDataset, Indices, Request, channels_first
from tracked_cls.data.order import Drawn, Lazy
from tracked_cls.data.preprocess import Geometry
from tracked_cls.distributed import cores_here
from tracked_cls.errors import UserError
from tracked_cls.host import open_more_files
from tracked_cls.transforms import BatchPipeline, Mixing, SamplePipeline, plan_training
from tracked_cls.transforms.inference import plan_evaluation
from tracked_cls.transforms.views import views

_MAX_LOSSES = 3  # of worker processes in one pass over the data
_SHOWN_IDS = 5
_ENDING_SECONDS = 0.5  # from what its pipe tells to its end


@dataclass(frozen=True)
class _Fit:
    """The model's own geometry for what a list of transforms leaves: uint8 [C,H,W] to [C,S,S]."""

    geometry: Geometry

    def __call__(self, image: Tensor) -> Tensor:
        return channels_first(self.geometry.apply(np.ascontiguousarray(image.movedim(-3, -1).numpy())))


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

    def augmented(self, batches: Sequence[Drawn], *, seed: int, epoch: int) -> Iterator[Tensor]:
        """Yield augmented images, normalised. The randomness is a function of (seed, epoch, key)."""
        by_sample = self.train if isinstance(self.train, SamplePipeline) else None
        by_batch = self.train if isinstance(self.train, BatchPipeline) else None

        def request(number: int) -> Request:
            indices, keys = batches[number]
            return Request(indices, randomness.seeds(seed, epoch, keys) if by_sample else None)

        requests = Lazy(len(batches), request)
        fetched = self._fetch(requests) if by_sample or self.evaluation is None else map(self._stored, requests)
        for images, batch in zip(fetched, batches, strict=True):
            scaled = self._on_device(images)
            drawn = scaled if by_batch is None else by_batch(scaled, batch.keys, seed=seed, epoch=epoch)
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
        return channels_first(self.prepared.sized(request.indices))

    def _fetch(self, requests: Sequence[Request]) -> Iterator[Tensor]:
        """Yield what `ImageDataset.batch` makes of each request, in order, in worker processes where that is wanted."""
        if self._workers == 0:
            yield from (self._dataset.batch(request) for request in requests)
            return
        fetched, losses = 0, 0
        while fetched < len(requests):
            first = fetched
            try:
                for images in self._pool.serve(requests[first:]):
                    yield images
                    fetched += 1
            except (RuntimeError, OSError, EOFError) as error:
                lost = self._pool.lost(fetched - first)
                if lost is None:
                    raise  # an error of a transform
                losses += 1
                self._replace_workers(losses, lost, requests[min(first + lost.batch, len(requests) - 1)], error)

    def _replace_workers(self, losses: int, lost: _Loss, request: Request, error: Exception) -> None:
        """Have new workers made, which bring the same images; raises `UserError` where they are lost again and again."""
        self.close()
        ids = [self.prepared.manifest.ids[index] for index in request.indices[:_SHOWN_IDS]]
        more = f" and {len(request.indices) - len(ids)} more" if len(request.indices) > len(ids) else ""
        what = f"a loading process {lost.how} (pid {lost.pid}), at the samples {', '.join(ids)}{more} or later"
        if losses > _MAX_LOSSES:
            raise UserError(
                f"{what}, as {losses - 1} before it: too little memory? set loader.workers lower (0: none), or "
                "loader.prefetch; the same command continues from the newest checkpoint"
            ) from error
        say(f"warning: {what}; new ones take over, and bring the same images")

    @property
    def _workers(self) -> int:
        if self.loader.workers is not None:
            return self.loader.workers
        from_cache = self.prepared.pixels is not None and self._dataset.train is None and self.evaluation is None
        return 0 if from_cache else cores_here()

    @cached_property
    def _pool(self) -> _Pool:
        pin = self.loader.pin_memory
        pins = self.compute.device.type == "cuda" if pin is None else pin
        return _Pool(self._dataset, workers=self._workers, prefetch=self.loader.prefetch, pin_memory=pins)

    def _views(self, images: Tensor) -> Tensor:
        """Return [B,V,C,S,S] of uint8 [B,C,R,R]; clips [B,V,T,C,S,S] of [B,T,C,R,R]."""
        size = self.image_size or images.shape[-1]
        return channels_first(np.ascontiguousarray(views(images.movedim(-3, -1).numpy(), size, self.tta)))

    def _on_device(self, images: Tensor) -> Tensor:
        """Return images on the device, uint8 ones as float32 in [0, 1]."""
        placed = images.to(self.compute.device, non_blocking=True)
        return placed.float().div_(255.0) if placed.dtype == torch.uint8 else placed

    def _finish(self, images: Tensor, pipeline: SamplePipeline | None) -> Tensor:
        """Normalise, unless a list of transforms has done so."""
        if pipeline is not None and pipeline.normalises:
            return self.compute.place_images(images)
        mean, std = self._normalisation
        return self.compute.place_images(images.sub_(mean).div_(std))  # nobody else holds them

    @cached_property
    def _normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and std of the channels [C,1,1], on the device."""
        preprocess, device = self.prepared.preprocess, self.compute.device
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (preprocess.mean, preprocess.std))
        return mean, std


# ---- loading processes -------------------------------------------------------------------------------------------------


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


class _Loss(NamedTuple):
    """A worker that is gone: how, and the batch (counted from the first of the pass) it was to bring next."""

    pid: int | None
    how: str
    batch: int


class _Pool:
    """Worker processes that bring the images of requests, in their order, and live on from pass to pass."""

    def __init__(self, images: ImageDataset, *, workers: int, prefetch: int, pin_memory: bool) -> None:
        open_more_files()
        self.queue = _Queue()
        self.loader: DataLoader[Tensor] = DataLoader(
            _Batches(images),
            batch_size=None,
            sampler=self.queue,
            num_workers=workers,
            prefetch_factor=prefetch,
            persistent_workers=True,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # its own: a draw from the global one would move dropout
        )

    def serve(self, requests: Sequence[Request]) -> Iterator[Tensor]:
        """Yield what `ImageDataset.batch` makes of each request."""
        self.queue.requests = requests
        with _deaths_noticed_here_only():
            batches = iter(self.loader)
        yield from batches

    @property
    def processes(self) -> list[BaseProcess]:
        """The worker processes, once there are any."""
        return list(getattr(self.loader._iterator, "_workers", []))

    def lost(self, fetched: int) -> _Loss | None:
        """Return the worker that is gone, after `fetched` batches were served; None where all are there."""
        workers = self.processes
        connection.wait([worker.sentinel for worker in workers], timeout=_ENDING_SECONDS)
        for number, worker in enumerate(workers):
            if worker.exitcode is not None:
                code = worker.exitcode
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                return _Loss(worker.pid, how, fetched + (number - fetched) % len(workers))  # they take turns
        return None


@contextmanager
def _deaths_noticed_here_only() -> Iterator[None]:
    """Keep PyTorch from raising the death of a worker wherever the main thread stands, in the middle of a step even.

    It is noticed, within five seconds, where the next batch is waited for.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


def _start_worker(_: int) -> None:
    """Set a loading process up: as one that decodes; it leaves SIGHUP to its parent too, and ends by SIGTERM."""
    start_worker()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
