"""What all processes of a training do alike, step by step, and how the others follow the first one.

One process alone takes the same steps; then nothing is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from tracked_cls import distributed, signals, training
from tracked_cls.config import TrainConfig
from tracked_cls.console import say
from tracked_cls.distributed import Ranks
from tracked_cls.errors import ProcessLost
from tracked_cls.job import Task, followed
from tracked_cls.losses import Teacher
from tracked_cls.state import TrainState
from tracked_cls.step import Diverged
from tracked_cls.training import EpochResult, Progress

_MAX_ROLLBACKS = 3


def begin(task: Task) -> TrainState:
    """Return the state that a training begins with, on this process's device."""
    cfg, compute = task.cfg, task.feed.compute
    state = TrainState.create(cfg, task.shape, train_images=len(task.train), compute=compute)
    state.world_size = task.ranks.world_size
    if cfg.training.sync_batchnorm and task.ranks.are_several:
        state.model = nn.SyncBatchNorm.convert_sync_batchnorm(state.model)  # type: ignore[no-untyped-call]
    return state


def share(state: TrainState, ranks: Ranks) -> None:
    """Have every process stand where the first one does."""
    if not ranks.are_several:
        return
    content = ranks.told(state.to_bytes() if ranks.is_first else b"")
    if not ranks.is_first:
        state.load_bytes(content)


def steps(
    task: Task, state: TrainState, teacher: Teacher | None, interrupted: Callable[[], bool]
) -> Iterator[Progress | EpochResult]:
    """Yield every step and every validated epoch, to the end, an early stop, or an interruption of any of the processes.

    A training that had stopped early takes none.
    """
    cfg = task.cfg
    if is_stale(cfg, state):
        return
    for step in training.fit(state, cfg, train=task.train, val=task.val, teacher=teacher, ranks=task.ranks):
        if isinstance(step, EpochResult):
            state.record_score(step.val_accuracy, step.val_loss, cfg.training.min_delta)
        yield step
        if task.ranks.any(interrupted()):
            if not interrupted():
                signals.join_in()
            break
        if is_stale(cfg, state):
            break


def is_stale(cfg: TrainConfig, state: TrainState) -> bool:
    """Whether so many epochs brought nothing better that the training ends."""
    return cfg.training.patience is not None and state.stale_epochs >= cfg.training.patience


def hand_over(state: TrainState, ranks: Ranks) -> None:
    """Say what it changes that other processes go on than those that began, and note who they are."""
    before, now = state.world_size, ranks.world_size
    if before != now:
        by = "1 process" if now == 1 else f"{now} processes"
        say(f"continued by {by} instead of {before}: each step has the same images, augmented alike, but gradients are added "
            "up in another order, dropout is drawn anew, and BatchNorm sees shares of another size: the weights will differ "
            "slightly from those of a run that was not interrupted")  # fmt: skip
    state.world_size = now


def gives_up(cfg: TrainConfig, state: TrainState) -> bool:
    """Whether a loss that is not finite ends the training."""
    return cfg.training.on_nan == "stop" or state.schedule.scale <= 0.5**_MAX_ROLLBACKS


def follow(cfg: TrainConfig, ranks: Ranks) -> None:
    """Train beside the first process of several, which says with what; nothing is tracked, saved or tested here."""
    with ranks.watched(), followed(cfg, ranks) as task:
        state = begin(task)
        teacher = task.beginning.open_teacher(task.feed)
        share(state, ranks)
        with signals.deferred() as interrupted:
            while True:
                try:
                    for _ in steps(task, state, teacher, interrupted):
                        pass
                    break
                except Diverged as trouble:
                    if gives_up(task.cfg, state):
                        raise ProcessLost("the first process says what happened") from trouble
                    share(state, ranks)
    distributed.leave()  # as the first one does here
