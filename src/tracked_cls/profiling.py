"""Where the time of a training step goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity

from tracked_cls.compute import Compute

T = TypeVar("T")

PARTS = ("data", "forward", "backward", "optimizer")
_SKIPPED, _MEASURED = 3, 10  # steps


@dataclass
class Profile:
    """The measured steps: seconds per part, and per operation [(name, calls, seconds of its own)], the longest first."""

    num_steps: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    operations: list[tuple[str, int, float]] = field(default_factory=list)


class Profiler:
    """Measures some steps after the first few, once; a disabled one does nothing."""

    def __init__(self, compute: Compute, *, enabled: bool) -> None:
        self.result: Profile | None = None
        self._num_steps = 0
        self._on_gpu = compute.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        schedule = torch.profiler.schedule(wait=_SKIPPED - 1, warmup=1, active=_MEASURED, repeat=1)
        self._inner = torch.profiler.profile(activities=activities, schedule=schedule, on_trace_ready=self._read)
        self._running = enabled
        if enabled:
            self._inner.start()

    def after_step(self) -> None:
        """Count one step."""
        if self._running:
            self._num_steps += 1
            self._inner.step()
            if self.result is not None:
                self.stop()

    def stop(self) -> None:
        """End the measurement, with what there is of it."""
        if self._running:
            self._running = False
            self._inner.stop()

    def _read(self, inner: torch.profiler.profile) -> None:
        """Add up what was recorded; seconds are the device's where there is a GPU, except those of the data."""
        events = inner.key_averages()
        parts = {event.key: event.cpu_time_total / 1e6 for event in events if event.key in PARTS}
        rows = [(event.key, int(event.count), self._own_seconds(event)) for event in events if event.key not in PARTS]
        operations = sorted((row for row in rows if not row[0].startswith("ProfilerStep")), key=lambda row: -row[2])
        self.result = Profile(self._num_steps - _SKIPPED, {name: parts.get(name, 0.0) for name in PARTS}, operations)

    def _own_seconds(self, event: torch.autograd.profiler_util.FunctionEventAvg) -> float:
        return float(event.self_device_time_total if self._on_gpu else event.self_cpu_time_total) / 1e6


@contextmanager
def profiler(compute: Compute, *, enabled: bool) -> Iterator[Profiler]:
    """Measure the steps taken inside the block."""
    measured = Profiler(compute, enabled=enabled)
    try:
        yield measured
    finally:
        measured.stop()


def part(name: str) -> AbstractContextManager[object]:
    """Count the time inside the block as a part of the step, while steps are measured; else it costs nothing."""
    return record_function(name) if torch.autograd._profiler_enabled() else nullcontext()  # type: ignore[attr-defined]


def timed(name: str, items: Iterator[T]) -> Iterator[T]:
    """Yield the items of an iterator; the time that each takes to come counts as part `name`."""
    while True:
        with part(name):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
