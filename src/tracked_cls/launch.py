"""Several processes of one machine that train together, started by PyTorch's own elastic launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from tracked_cls import distributed
from tracked_cls.config import TrainConfig
from tracked_cls.console import say
from tracked_cls.errors import Interrupted, StopRun

_MONITOR_SECONDS = 0.1
_SHUTDOWN_SECONDS = 300  # for what a process saves after it was told to stop


def is_wanted(cfg: TrainConfig) -> bool:
    """Whether this process has to start those that train."""
    return cfg.nproc > 1 and distributed.rank() is None


def run(cfg: TrainConfig, module: str, argv: Sequence[str]) -> None:
    """Start ``python -m module`` in ``nproc`` processes and wait for them; where one is killed, all start again.

    Raises `Interrupted` where they were told to stop, and ends with their exit code where one has failed.
    """
    if Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # what they tell each other stays on this machine
    for attempt in range(cfg.distributed.restarts + 1):
        os.environ[distributed.RESTARTS] = str(attempt)
        killed = _run_once(cfg.nproc, module, argv)
        if killed is None:
            return
        name, left = signal.Signals(killed).name, cfg.distributed.restarts - attempt
        if left == 0:
            break
        say(f"one of the {cfg.nproc} processes was killed by {name}: all start again from the newest checkpoint ({left - 1} "
            "restarts are left)")  # fmt: skip
    restarts = f", after {cfg.distributed.restarts} restarts" if cfg.distributed.restarts else ""
    raise StopRun("FAILED", f"one of the {cfg.nproc} processes was killed by {name}{restarts}; the same command continues from "
                  "the newest checkpoint")  # fmt: skip


def _run_once(nproc: int, module: str, argv: Sequence[str]) -> int | None:
    """Run all processes to their end; return the signal that killed one of them, None where all ended well."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _quieten()
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # files of this user alone, not a server that anyone may talk to
    with TemporaryDirectory(prefix="tracked-cls-") as scratch:
        os.environ[distributed.STORE] = f"{scratch}/processes"
        config = LaunchConfig(
            run_id=uuid4().hex,
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            rdzv_backend="c10d",
            rdzv_endpoint=f"{scratch}/launcher",
            rdzv_configs={"store_type": "file"},
            max_restarts=0,  # only after a kill, which is for us to tell
            monitor_interval=_MONITOR_SECONDS,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
            local_addr="127.0.0.1",
            shutdown_timeout=_SHUTDOWN_SECONDS,
        )
        try:
            elastic_launch(config, sys.executable)("-m", module, *argv)
        except SignalException as told:
            raise Interrupted(told.sigval) from None
        except ChildFailedError as failed:
            return _killed_by([failure.exitcode for failure in failed.failures.values()])
    return None


def _killed_by(exit_codes: Sequence[int]) -> int | None:
    """Return the signal that killed a process; one that failed has said why, and this process ends as it did."""
    killed = [-code for code in exit_codes if code < 0]
    if killed:
        return killed[0]
    stopped = [code - 128 for code in exit_codes if code > 128]
    if stopped:
        raise Interrupted(stopped[0])
    raise SystemExit(max(exit_codes))


def _quieten() -> None:
    """Leave it to the processes to say what happened."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
