"""The training loop."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from tracked_cls import evaluation, freezing, losses
from tracked_cls.config import TrainConfig
from tracked_cls.data.loaders import Split
from tracked_cls.distributed import ALONE, Ranks
from tracked_cls.metrics import Sums
from tracked_cls.profiling import timed
from tracked_cls.state import Plan, TrainState, images_per_step
from tracked_cls.step import Diverged, Stepper

_BN_BATCH = 256  # images per batch whose statistics are averaged


@dataclass(frozen=True)
class Progress:
    """One step was taken: `batch` of `num_batches` (from 1) in `epoch` (from 1)."""

    epoch: int
    batch: int
    num_batches: int


@dataclass(frozen=True)
class EpochResult:
    """One epoch was trained and validated. `seconds` and `images_per_second` are clocks: the training part alone."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float
    images_per_second: float

    @property
    def metrics(self) -> dict[str, float]:
        """The values by their names in MLflow."""
        return {
            "train_loss": self.train_loss,
            "train_accuracy": self.train_accuracy,
            "val_loss": self.val_loss,
            "val_accuracy": self.val_accuracy,
            "lr": self.lr,
            "epoch_seconds": self.seconds,
            "images_per_second": self.images_per_second,
        }


def fit(
    state: TrainState,
    cfg: TrainConfig,
    *,
    train: Split,
    val: Split,
    teacher: losses.Teacher | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Progress | EpochResult]:
    """Train from where `state` stands to the last step, yielding after every step and every epoch.

    What is done to the images is a matter of the splits (`data.loaders.Feed`). At each yield the state is consistent: saved
    there and loaded into a new one, training goes on bit for bit the same. Of several processes all are at the same place.
    Raises `Diverged` where a loss is not finite.
    """
    plan = Plan.of(cfg, len(train))
    stepper = Stepper(cfg, state, train, teacher, ranks)
    while state.epoch < plan.num_epochs:
        started, seen_before = time.perf_counter(), state.sums.count
        num_steps = plan.steps_of(state.epoch)
        _start_epoch(state, cfg)
        stepper.start()
        batches = train.train_batches(
            batch_size=images_per_step(cfg), seed=cfg.seed, epoch=state.epoch, start=state.batch, ranks=ranks
        )
        for batch in timed("data", itertools.islice(batches, num_steps - state.batch)):
            stepper.step(batch)
            yield Progress(state.epoch + 1, state.batch, num_steps)
        yield _end_epoch(state, cfg, train, val, ranks, started=started, seen_before=seen_before)


def _start_epoch(state: TrainState, cfg: TrainConfig) -> None:
    """Set the network to training; thaw what was frozen for the first epochs only."""
    if cfg.freeze.epochs is not None and state.epoch >= cfg.freeze.epochs:
        for network in (state.model, state.network):  # the moving average has marks of its own
            freezing.thaw(network, state.frozen)
    state.model.train()
    freezing.hold_batchnorm(state.model)


def _end_epoch(
    state: TrainState, cfg: TrainConfig, train: Split, val: Split, ranks: Ranks, *, started: float, seen_before: int
) -> EpochResult:
    """Validate, move the schedule on and close the books of the epoch."""
    train_loss, train_accuracy = state.sums.mean_loss, state.sums.accuracy  # waits for the device
    seconds = time.perf_counter() - started
    refresh_batchnorm(state.network, cfg, train, epoch=state.epoch)
    val_loss, val_accuracy = evaluation.validate(state.network, val, cfg.training.eval_batch_size, ranks)
    if not math.isfinite(val_loss):
        raise Diverged("val_loss", val_loss, state)
    images_per_second = (state.sums.count - seen_before) / seconds
    state.epoch, state.batch = state.epoch + 1, 0
    state.sums = Sums.zero(state.sums.loss.device)
    state.schedule.after_epoch(state.epoch, val_loss)
    return EpochResult(
        epoch=state.epoch,
        train_loss=train_loss,
        train_accuracy=train_accuracy,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        lr=state.lr,
        seconds=seconds,
        images_per_second=images_per_second,
    )


def refresh_batchnorm(network: nn.Module, cfg: TrainConfig, train: Split, *, epoch: int) -> None:
    """Take the statistics of BatchNorm anew from as many training images as the configuration says."""
    if cfg.training.bn_images is not None:
        sample = train.sample(cfg.training.bn_images, seed=cfg.seed, epoch=epoch)
        evaluation.refresh_batchnorm(network, sample.eval_batches(_BN_BATCH))
