"""The one thing that training changes: `TrainState`, and the plan of its steps."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tracked_cls import freezing, models, optim
from tracked_cls.averaging import MovingAverage
from tracked_cls.compute import Compute
from tracked_cls.config import TrainConfig
from tracked_cls.data.loaders import num_batches
from tracked_cls.metrics import Sums
from tracked_cls.models import Shape

_POSITION = ("epoch", "batch", "parts", "lr", "ranking", "hurdle", "stale_epochs", "world_size")


@dataclass
class TrainState:
    """All that training changes, so that saving and loading it is all of a resume.

    `epoch` counts finished epochs, `batch` the finished batches of the one under way; `lr` is the rate of the last batch.
    A step is computed in `parts`, whose gradients add up. `ranking` holds (score, loss, epoch) of every epoch, the best
    first. `frozen` names the parameters that stay as they are, until an epoch thaws them. `world_size` processes train it.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: optim.Schedule
    scaler: torch.amp.GradScaler
    sums: Sums
    average: MovingAverage | None = None
    frozen: frozenset[str] = frozenset()
    epoch: int = 0
    batch: int = 0
    parts: int = 1
    lr: float = 0.0
    ranking: list[tuple[float, float, int]] = field(default_factory=list)
    hurdle: float = -math.inf
    stale_epochs: int = 0
    world_size: int = 1

    @classmethod
    def create(cls, cfg: TrainConfig, shape: Shape, *, train_images: int, compute: Compute) -> TrainState:
        """Build network, optimizer and schedule from the seed."""
        torch.manual_seed(cfg.seed)
        model = compute.place(models.make_model(cfg.model, shape))
        frozen = freezing.chosen(cfg.freeze, model)
        freezing.freeze(model, frozen)
        for_good = frozen if cfg.freeze.epochs is None else frozenset()
        optimizer = optim.make_optimizer(cfg.optimizer, model, fused=compute.fused, frozen=for_good)
        plan = Plan.of(cfg, train_images)
        schedule = optim.Schedule(cfg.scheduler, optimizer, total_steps=plan.total_steps, steps_per_epoch=plan.steps_per_epoch)
        average = None if cfg.training.ema is None else MovingAverage(model, cfg.training.ema)
        sums = Sums.zero(compute.device)
        return cls(model, optimizer, schedule, compute.make_scaler(), sums, average, frozen, parts=cfg.training.accumulate)

    @property
    def network(self) -> nn.Module:
        """What is validated, tested and kept: the moving average of the weights where there is one, else the network."""
        return self.model if self.average is None else self.average.module

    @property
    def best_score(self) -> float:
        """Highest score of an epoch."""
        return self.ranking[0][0] if self.ranking else -math.inf

    @property
    def best_loss(self) -> float:
        """Validation loss of the best epoch."""
        return self.ranking[0][1] if self.ranking else math.inf

    @property
    def best_epoch(self) -> int:
        """The epoch of the highest score, 0 before the first."""
        return self.ranking[0][2] if self.ranking else 0

    def record_score(self, score: float, loss: float, min_delta: float) -> bool:
        """Note the validation of the epoch that just ended; return whether it is the best so far.

        The best epoch has the highest score and, among equals (small validation sets have many), the lowest loss. An
        epoch is stale unless its score is more than `min_delta` above the score that last was not.
        """
        self.ranking = sorted([*self.ranking, (score, loss, self.epoch)], key=_worst_last)
        self.stale_epochs += 1
        if score > self.hurdle + min_delta:
            self.hurdle, self.stale_epochs = score, 0
        return self.best_epoch == self.epoch

    @property
    def upper_score(self) -> float:
        """Mean score of the better half of the epochs so far (rounded up), which is less a matter of luck than the best one."""
        better = [score for score, _, _ in self.ranking[: -(-len(self.ranking) // 2)]]
        return sum(better) / len(better) if better else -math.inf

    @property
    def curves(self) -> dict[str, list[float]]:
        """The validation of the epochs so far, in their order."""
        by_epoch = sorted(self.ranking, key=lambda entry: entry[2])
        return {"val_loss": [loss for _, loss, _ in by_epoch], "val_accuracy": [score for score, _, _ in by_epoch]}

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values only, fit for `torch.load(weights_only=True)`."""
        return {
            "model": self.model.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sums": self.sums.state_dict(),
            "position": {name: getattr(self, name) for name in _POSITION},
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        optim.load_state(self.optimizer, state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.sums.load_state_dict(state["sums"])
        for name, value in state["position"].items():
            setattr(self, name, value)
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"][: torch.cuda.device_count()])  # it may go on with fewer

    def to_bytes(self) -> bytes:
        """Return `state_dict` as other processes read it."""
        buffer = io.BytesIO()
        torch.save(self.state_dict(), buffer)
        return buffer.getvalue()

    def load_bytes(self, content: bytes) -> None:
        """Continue from `to_bytes`."""
        self.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))

    def load_network(self, state: dict[str, Any]) -> None:
        """Load the weights of `network` alone from a `state_dict`."""
        if self.average is None:
            self.model.load_state_dict(state["model"])
        else:
            self.average.load_state_dict(state["average"])


def _worst_last(entry: tuple[float, float, int]) -> tuple[float, float, int]:
    """Return the place of (score, loss, epoch) in a ranking; what is not a number comes last."""
    score, loss, epoch = entry
    return (math.inf if math.isnan(score) else -score, math.inf if math.isnan(loss) else loss, epoch)


@dataclass(frozen=True)
class Plan:
    """How many steps there are: `num_epochs` of `steps_per_epoch`, the last one cut short where `total_steps` says so."""

    steps_per_epoch: int
    total_steps: int

    @classmethod
    def of(cls, cfg: TrainConfig, train_images: int) -> Plan:
        """Return the plan of a configuration."""
        steps = num_batches(train_images, images_per_step(cfg))
        whole = cfg.epochs * steps
        return cls(steps, whole if cfg.training.max_steps is None else min(whole, cfg.training.max_steps))

    @property
    def num_epochs(self) -> int:
        """Epochs begun before all steps are taken."""
        return -(-self.total_steps // self.steps_per_epoch)

    def steps_of(self, epoch: int) -> int:
        """Return the steps of an epoch (from 0)."""
        return min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)


def images_per_step(cfg: TrainConfig) -> int:
    """Return how many images the gradient of one step is a mean over."""
    assert cfg.batch_size is not None, "batch_size=auto is resolved before training"
    return cfg.batch_size * cfg.training.accumulate
