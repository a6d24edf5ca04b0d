"""When a training is saved: as often as costs next to nothing, and never less than what the end of it needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from typing import Any

from torch import Tensor

from tracked_cls import checkpoint
from tracked_cls.checkpoint import Attempt
from tracked_cls.config import CheckpointConfig
from tracked_cls.state import TrainState


class Saver:
    """Saves a state at the ends of epochs, and inside long ones.

    Where epochs are so short that saving each would cost more than ``checkpoint.max_cost``, some ends are passed over: what
    the last save took, divided by the time since, stays below it. A best epoch that is passed over is held in memory and
    written before the next checkpoint, so that on disk none ever lacks the best epoch that it knows of.
    `before` is called before anything is written.
    """

    def __init__(self, state: TrainState, attempt: Attempt, policy: CheckpointConfig, before: Callable[[], None]) -> None:
        self._state = state
        self._attempt = attempt
        self._policy = policy
        self._before = before
        self._held: dict[int, dict[str, Any]] = {}
        self._saved_at = time.monotonic()
        self._took = 0.0
        self._saved = (state.epoch, state.batch)

    def after_step(self) -> None:
        """Save inside an epoch that has lasted longer than ``checkpoint.every_seconds``."""
        if time.monotonic() - self._saved_at > self._policy.every_seconds:
            self.save()

    def after_epoch(self) -> None:
        """Save at the end of an epoch, or hold it in memory where it is among the best."""
        if self._is_due():
            self.save()
        else:
            self._hold()

    def save(self) -> None:
        """Save now, with the best epochs that were passed over; nothing where the last save left the state as it is."""
        state = self._state
        if self._saved == (state.epoch, state.batch):
            return
        started = time.monotonic()
        self._before()
        self._write_held()
        checkpoint.save(state, self._attempt, self._policy)
        self._saved_at, self._saved = time.monotonic(), (state.epoch, state.batch)
        self._took = self._saved_at - started

    def save_best(self) -> None:
        """Write the best epochs that were passed over, without which a training has no end; nothing where there are none."""
        if self._held:
            self._before()
            self._write_held()

    def _write_held(self) -> None:
        for epoch in sorted(self._held):
            checkpoint.write(self._held[epoch], self._attempt)
        self._held.clear()

    def _is_due(self) -> bool:
        policy, epoch = self._policy, self._state.epoch
        if policy.max_cost == 1 or (policy.every_epochs is not None and epoch % policy.every_epochs == 0):
            return True
        return self._took <= policy.max_cost * (time.monotonic() - self._saved_at)

    def _hold(self) -> None:
        best = [epoch for _, _, epoch in self._state.ranking[: self._policy.keep_best]]
        self._held = {epoch: content for epoch, content in self._held.items() if epoch in best}
        if self._state.epoch in best:
            self._held[self._state.epoch] = _copied(self._state.state_dict())


def _copied(content: Any) -> Any:
    """Return a copy of a state that further training leaves alone; tensors are copied into main memory."""
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        copied = copy(content)
        copied.update((key, _copied(value)) for key, value in content.items())
        return copied
    if isinstance(content, list | tuple):
        return type(content)(_copied(value) for value in content)
    return content
