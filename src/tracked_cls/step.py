"""One step of the optimizer: forward and backward over the parts of a batch, clipping, update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tracked_cls import losses, metrics, profiling, randomness
from tracked_cls.compute import is_out_of_memory, release_memory
from tracked_cls.config import TrainConfig
from tracked_cls.console import say
from tracked_cls.data.loaders import Batch, Split, in_pieces
from tracked_cls.distributed import ALONE, Ranks
from tracked_cls.errors import StopRun, UserError
from tracked_cls.losses import Teacher
from tracked_cls.state import TrainState, images_per_step

_SHOWN_IDS = 5


class Diverged(StopRun):
    """A loss is not finite. `sample_ids` are those of the batch, where it was one."""

    def __init__(self, name: str, value: float, state: TrainState, sample_ids: Sequence[str] = ()) -> None:
        self.sample_ids = tuple(sample_ids)
        shown = ", ".join(self.sample_ids[:_SHOWN_IDS])
        more = f" and {len(self.sample_ids) - _SHOWN_IDS} more" if len(self.sample_ids) > _SHOWN_IDS else ""
        where = f"in batch {state.batch + 1} of epoch {state.epoch + 1}" if sample_ids else f"after epoch {state.epoch + 1}"
        samples = f" on the samples {shown}{more}" if sample_ids else ""
        super().__init__(
            "FAILED",
            f"{name} became {value} {where} at lr {state.lr:g}{samples}; "
            "lower optimizer.lr, set training.clip_norm, or go on with training.on_nan=rollback",
        )


class _Done(NamedTuple):
    """What the passes over a batch gave: its mean loss, and for each image [B] whether the network is right."""

    loss: Tensor
    right: Tensor

    @property
    def sums(self) -> tuple[float, float, float]:
        """Loss and hits summed over the images, and their number."""
        return float(self.loss) * len(self.right), float(self.right.sum()), float(len(self.right))


class Stepper:
    """Takes steps on a state, as a configuration says; where `ranks` are several, each of them with its part of the batch."""

    def __init__(
        self, cfg: TrainConfig, state: TrainState, train: Split, teacher: Teacher | None = None, ranks: Ranks = ALONE
    ) -> None:
        self._cfg, self._state, self._train, self._ranks = cfg, state, train, ranks
        self._compute = train.feed.compute
        self._multi_label = train.prepared.manifest.multi_label
        self._replica: DistributedDataParallel | None = None
        self._trained: list[bool] = []
        loss_of = losses.make_loss(cfg.loss, class_counts(train), train.prepared.manifest.classes)
        self._loss_of = loss_of if teacher is None else losses.distillation(cfg.loss, loss_of, teacher)

    def start(self) -> None:
        """Get ready for steps, with the weights that are trained from now on."""
        trained = [parameter.requires_grad for parameter in self._state.model.parameters()]
        if trained == self._trained:
            return
        self._trained = trained
        self._replica = self._ranks.replica(self._state.model) if self._ranks.are_several else None
        network = self._replica or self._state.model
        self._forward: Callable[[Tensor], Tensor] = torch.compile(network) if self._cfg.training.compile else network

    def step(self, batch: Batch) -> None:
        """Move the weights by one batch. Where memory does not suffice, the batch is computed in twice as many parts."""
        state, ranks = self._state, self._ranks
        if ranks.are_several:
            torch.manual_seed(self._own_seed())
        done = self._passes(batch)
        while done is None:
            self._use_more_parts(len(batch.images))
            done = self._passes(batch)
        state.lr = state.schedule.lr
        totals = None if not ranks.are_several else ranks.total(done.sums)
        loss = float(done.loss) if totals is None else totals[0] / totals[2]
        if not math.isfinite(loss):
            raise Diverged("train_loss", loss, state, self._sample_ids())
        with profiling.part("optimizer"):
            self._update()
        state.schedule.after_step()
        if totals is None:
            state.sums.add(done.loss, done.right)
        else:
            state.sums.add_totals(*totals)
        state.batch += 1

    def _own_seed(self) -> int:
        """Return what this process draws dropout from in this step: where it stands says it, so nothing has to be saved."""
        state, ranks = self._state, self._ranks
        place = np.array([state.batch * ranks.world_size + ranks.rank], np.uint64)
        return int(randomness.seeds(self._cfg.seed, state.epoch, place)[0] >> np.uint64(1))

    def _passes(self, batch: Batch) -> _Done | None:
        """Leave the gradient of the mean loss of a batch in the weights; return None where memory ran out."""
        self._state.optimizer.zero_grad(set_to_none=True)
        size = len(batch.images)
        parts = list(_parts(batch, self._state.parts))
        try:
            done = []
            for number, part in enumerate(parts, 1):
                with self._gathering(is_last=number == len(parts)):
                    done.append(self._part(part, batch.step_images or size))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self._ranks.are_several:  # the others are in the middle of adding up
                raise UserError(f"memory of process {self._ranks.rank} does not suffice for {len(parts[0].images)} images at a "
                                "time; lower batch_size, or raise training.accumulate") from None  # fmt: skip
            return None  # outside the handler, whose traceback holds what was allocated
        if len(done) == 1:
            return done[0]
        shares = torch.tensor([len(part.right) / size for part in done], dtype=torch.float64, device=done[0].loss.device)
        return _Done((torch.stack([part.loss for part in done]) * shares).sum(), torch.cat([part.right for part in done]))

    def _gathering(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Have gradients added up over the processes with the last part of a batch only."""
        return nullcontext() if self._replica is None or is_last else self._replica.no_sync()

    def _part(self, part: Batch, size: int) -> _Done:
        """Add the gradient of one part of a step of `size` images."""
        share = losses.gradient_share(self._cfg.loss, len(part.images), size) * self._ranks.world_size  # their mean is taken
        with profiling.part("forward"):
            with self._compute.autocast():
                logits = self._forward(part.images)
            logits = logits.float()
            weights = part.weights if self._cfg.loss.sample_weights else None
            loss = self._loss_of(logits, part.targets, weights, part.images)
        with profiling.part("backward"):
            self._state.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
        return _Done(loss.detach().double(), metrics.hits(logits.detach(), part.targets, multi_label=self._multi_label))

    def _update(self) -> None:
        """Clip what backward left, after taking the scale of the loss out of it, and let the optimizer step."""
        state, training = self._state, self._cfg.training
        state.scaler.unscale_(state.optimizer)
        if training.clip_value is not None:
            torch.nn.utils.clip_grad_value_(state.model.parameters(), training.clip_value)
        if training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), training.clip_norm)
        with state.schedule.scaled():
            state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.average is not None:
            state.average.update_parameters(state.model)

    def _use_more_parts(self, size: int) -> None:
        """Halve what is computed at a time; raises `UserError` where it cannot get smaller."""
        state = self._state
        if state.parts * 2 > size // 2:
            raise UserError(f"memory does not suffice for {-(-size // state.parts)} images at a time; lower data.image_size, "
                            "take a smaller model, or training.precision=bf16")  # fmt: skip
        state.parts *= 2
        state.optimizer.zero_grad(set_to_none=True)
        release_memory(self._compute.device)
        say(f"out of memory: from here on a step of {size} images is computed in {state.parts} parts of "
            f"{-(-size // state.parts)}; with the same images and the same mean")  # fmt: skip

    def _sample_ids(self) -> list[str]:
        """Return the ids of the batch under way."""
        state, cfg = self._state, self._cfg
        order = self._train.order(batch_size=images_per_step(cfg), seed=cfg.seed, epoch=state.epoch)
        chosen = order.batch(state.batch).indices
        return [self._train.prepared.manifest.ids[index] for index in chosen]


def class_counts(split: Split) -> list[int]:
    """Return how many images of a split each class has [K]; an image with several labels counts for each."""
    manifest = split.prepared.manifest
    counts = np.zeros(len(manifest.classes), np.int64)
    for some in in_pieces(split.indices):
        labels = np.asarray(manifest.labels[some])
        counts += labels.sum(axis=0, dtype=np.int64) if labels.ndim == 2 else np.bincount(labels, minlength=len(counts))
    return [int(count) for count in counts]


def _parts(batch: Batch, count: int) -> Iterator[Batch]:
    """Yield a batch in parts that differ by one image at most, none of a lone image."""
    count = max(1, min(count, len(batch.images) // 2))
    weights = [None] * count if batch.weights is None else torch.tensor_split(batch.weights, count)
    for images, targets, own in zip(
        torch.tensor_split(batch.images, count), torch.tensor_split(batch.targets, count), weights, strict=True
    ):
        yield Batch(images, targets, own)
