"""How busy the machine is while a run goes on: CPU, memory, disk, network and GPU, by MLflow's own monitors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tracked_cls.console import say
from tracked_cls.tracking.run import Run

_PREFIX = "system/"  # what `mlflow ui` shows under "System metrics"


@contextmanager
def measured(run: Run, interval_seconds: float | None) -> Iterator[None]:
    """Log the machine's load to a run every so many seconds while the block lasts; None does nothing.

    The step is the time in whole seconds since 1970, so that a run that goes on elsewhere goes on here.
    """
    if interval_seconds is None:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_sample, args=(run, interval_seconds, over), name="telemetry", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _sample(run: Run, interval_seconds: float, over: threading.Event) -> None:
    monitors = _monitors()
    while not over.wait(interval_seconds):
        run.log_metrics(_collected(monitors), step=int(time.time()))


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    return [CPUMonitor(), DiskMonitor(), NetworkMonitor(), *_gpu_monitor()]


def _gpu_monitor() -> Iterator[Any]:
    """Yield the monitor of NVIDIA's GPUs, where there are any."""
    import torch

    if not torch.cuda.is_available():
        return
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    try:
        yield GPUMonitor()
    except (ImportError, RuntimeError) as error:
        say(f"warning: tracking.system_metrics_seconds: no metrics of the GPU: {error}")


def _collected(monitors: list[Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        found |= {f"{_PREFIX}{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return found
