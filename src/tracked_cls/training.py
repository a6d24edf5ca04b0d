"""The training loop, and the one thing in it that changes: `TrainState`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tracked_cls import evaluation, losses, metrics, models, optim
from tracked_cls.compute import Compute
from tracked_cls.config import TrainConfig
from tracked_cls.data.loaders import Split, num_batches
from tracked_cls.errors import StopRun
from tracked_cls.metrics import Sums
from tracked_cls.models import Shape

_POSITION = ("epoch", "batch", "lr", "best_score", "best_loss", "best_epoch", "hurdle", "stale_epochs")
_BN_BATCH = 256  # images per batch whose statistics are averaged


@dataclass(frozen=True)
class Progress:
    """One batch was trained: `batch` of `num_batches` (from 1) in `epoch` (from 1)."""

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


@dataclass
class TrainState:
    """All that training changes, so that saving and loading it is all of a resume.

    `epoch` counts finished epochs, `batch` the finished batches of the one under way; `lr` is the rate of the last batch.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: optim.Schedule
    sums: Sums
    epoch: int = 0
    batch: int = 0
    lr: float = 0.0
    best_score: float = -math.inf
    best_loss: float = math.inf
    best_epoch: int = 0
    hurdle: float = -math.inf
    stale_epochs: int = 0

    @classmethod
    def create(cls, cfg: TrainConfig, shape: Shape, *, train_images: int, compute: Compute) -> TrainState:
        """Build network, optimizer and schedule from the seed."""
        torch.manual_seed(cfg.seed)
        model = compute.place(models.make_model(cfg.model, shape))
        optimizer = optim.make_optimizer(cfg.optimizer, model, fused=compute.fused)
        schedule = optim.Schedule(
            cfg.scheduler, optimizer, epochs=cfg.epochs, steps_per_epoch=num_batches(train_images, cfg.batch_size)
        )
        return cls(model, optimizer, schedule, Sums.zero(compute.device))

    def record_score(self, score: float, loss: float, min_delta: float) -> bool:
        """Note the validation of the epoch that just ended; return whether it is the best so far.

        The best epoch has the highest score and, among equals (small validation sets have many), the lowest loss. An
        epoch is stale unless its score is more than `min_delta` above the score that last was not.
        """
        improved = (score, -loss) > (self.best_score, -self.best_loss)
        if improved:
            self.best_score, self.best_loss, self.best_epoch = score, loss, self.epoch
        self.stale_epochs += 1
        if score > self.hurdle + min_delta:
            self.hurdle, self.stale_epochs = score, 0
        return improved

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values only, fit for `torch.load(weights_only=True)`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "sums": self.sums.state_dict(),
            "position": {name: getattr(self, name) for name in _POSITION},
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        _match_strides(self.optimizer)
        self.schedule.load_state_dict(state["schedule"])
        self.sums.load_state_dict(state["sums"])
        for name, value in state["position"].items():
            setattr(self, name, value)
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])


def fit(state: TrainState, cfg: TrainConfig, *, train: Split, val: Split) -> Iterator[Progress | EpochResult]:
    """Train from where `state` stands to the last epoch, yielding after every batch and every epoch.

    What is done to the images is a matter of the splits (`data.loaders.Feed`). At each yield the state is consistent: saved
    there and loaded into a new one, training goes on bit for bit the same.
    """
    loss_of = losses.make_loss(cfg.loss)
    multi_label = train.prepared.manifest.multi_label
    last_batch = num_batches(len(train), cfg.batch_size)
    while state.epoch < cfg.epochs:
        started, seen_before = time.perf_counter(), state.sums.count
        state.model.train()
        batches = train.train_batches(batch_size=cfg.batch_size, seed=cfg.seed, epoch=state.epoch, start=state.batch)
        for batch in batches:
            logits = state.model(batch.images)
            loss = loss_of(logits, batch.targets, batch.weights if cfg.loss.sample_weights else None)
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            state.lr = state.schedule.lr
            state.optimizer.step()
            state.schedule.after_step()
            state.sums.add(loss, metrics.hits(logits, batch.targets, multi_label=multi_label))
            state.batch += 1
            yield Progress(state.epoch + 1, state.batch, last_batch)
        yield _end_epoch(state, cfg, train, val, started=started, seen_before=seen_before)


def _end_epoch(
    state: TrainState, cfg: TrainConfig, train: Split, val: Split, *, started: float, seen_before: int
) -> EpochResult:
    """Validate, move the schedule on and close the books of the epoch."""
    train_loss, train_accuracy = state.sums.mean_loss, state.sums.accuracy  # waits for the device
    seconds = time.perf_counter() - started
    _require_finite("train_loss", train_loss, state)
    if cfg.training.bn_images is not None:
        sample = train.sample(cfg.training.bn_images, seed=cfg.seed, epoch=state.epoch)
        evaluation.refresh_batchnorm(state.model, sample.eval_batches(_BN_BATCH))
    scores = evaluation.score(state.model, val.eval_batches(cfg.training.eval_batch_size))
    val_loss = scores.loss
    _require_finite("val_loss", val_loss, state)
    images_per_second = (state.sums.count - seen_before) / seconds
    state.epoch, state.batch = state.epoch + 1, 0
    state.sums = Sums.zero(state.sums.loss.device)
    state.schedule.after_epoch(state.epoch, val_loss)
    return EpochResult(
        epoch=state.epoch,
        train_loss=train_loss,
        train_accuracy=train_accuracy,
        val_loss=val_loss,
        val_accuracy=scores.accuracy,
        lr=state.lr,
        seconds=seconds,
        images_per_second=images_per_second,
    )


def _require_finite(name: str, loss: float, state: TrainState) -> None:
    if not math.isfinite(loss):
        raise StopRun("FAILED", f"{name} became {loss} in epoch {state.epoch + 1} at lr {state.lr:g}; lower optimizer.lr")


def _match_strides(optimizer: Optimizer) -> None:
    """Give every state tensor its parameter's strides: fused CPU optimizers read raw memory and do not check."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
