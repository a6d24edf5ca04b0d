"""The two sides of a comparison of training speed: `train` as it is, on a clock, and the bare loop on images in memory.

Each runs in a process of its own and prints one line of JSON; `benchmarks.training` starts them. FILE holds params of `train`.

    python -m benchmarks.loops prepare FILE     prepare the data; leave images and labels beside FILE for the bare loop
    python -m benchmarks.loops ours FILE        train: everything on, the clock from after the first step to after the last
    python -m benchmarks.loops bare FILE        the same network, batches, number format and steps, and nothing else
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from tracked_cls.config import ModelConfig, TrainConfig, load  # noqa: E402 - of this checkout

PIXELS, LABELS, CHOICE = "pixels.npy", "labels.npy", "choice.json"


def main() -> None:
    """Run a side, and print what it found as JSON."""
    verb, params = sys.argv[1], Path(sys.argv[2])
    found = {"prepare": prepare, "ours": ours, "bare": bare}[verb](params)
    print(json.dumps(found), flush=True)


# ---- the clock -------------------------------------------------------------------------------------------------------


@dataclass
class Lap:
    """Seconds by the clock and of computing on all cores, and the images that were trained on meanwhile."""

    images: int
    seconds: float
    computing: float
    validating: float = 0.0

    @property
    def found(self) -> dict[str, float]:
        """The figures of a side: images/s without validation and with it, and microseconds of computing per image."""
        return {
            "images_per_second": self.images / self.seconds,
            "with_validation": self.images / (self.seconds + self.validating),
            "computing_us": 1e6 * self.computing / self.images,
        }


@dataclass
class Clock:
    """Two clocks that run together, and stand still where told."""

    started: tuple[float, float] = (0.0, 0.0)
    stood: list[tuple[float, float]] = field(default_factory=list)

    @staticmethod
    def now() -> tuple[float, float]:
        """Return seconds by the clock, and of computing of this process."""
        return time.perf_counter(), time.process_time()

    def start(self) -> None:
        """Begin."""
        self.started = self.now()

    def stand(self, since: tuple[float, float]) -> None:
        """Leave out what has passed since a moment."""
        now = self.now()
        self.stood.append((now[0] - since[0], now[1] - since[1]))

    def lap(self, images: int) -> Lap:
        """Return what has passed since the start, without what was left out."""
        now = self.now()
        seconds, computing = (now[kind] - self.started[kind] - sum(one[kind] for one in self.stood) for kind in (0, 1))
        return Lap(images, seconds, computing, sum(one[0] for one in self.stood))


# ---- ours ------------------------------------------------------------------------------------------------------------


def ours(params: Path) -> dict[str, float]:
    """Run `train`, and return the figures of its loop.

    The clock runs while the caller of `training.fit` logs and saves, to the very end of the last epoch; it stands while an
    epoch is validated and its BatchNorm statistics are taken anew, which the bare loop does not do.
    """
    from pipelines.train import main as train
    from tracked_cls import training

    laps: list[Lap] = []
    with patch.object(training, "fit", _on_a_clock(training.fit, laps)):
        train(["--params", str(params)])
    return laps[0].found


def _on_a_clock(fit: Callable[..., Iterator[Any]], laps: list[Lap]) -> Callable[..., Iterator[Any]]:
    from tracked_cls.training import EpochResult

    def run(state: Any, *args: Any, **options: Any) -> Iterator[Any]:
        clock, images, first, steps = Clock(), 0, 0, fit(state, *args, **options)
        while True:
            asked, count = clock.now(), state.sums.count
            step = next(steps, None)
            if step is None:
                laps.append(clock.lap(images - first))
                return
            if isinstance(step, EpochResult):
                clock.stand(asked)
                images += count
            elif not first:
                first = state.sums.count
                clock.start()
            yield step

    return run


# ---- the bare loop ---------------------------------------------------------------------------------------------------


def prepare(params: Path) -> dict[str, Any]:
    """Prepare the data of a training; write its images and labels, and what `train` chose for this machine, beside `params`."""
    from tracked_cls import delivery, job

    cfg = load(TrainConfig, ["--params", str(params)])
    with delivery.open_tracker(cfg.tracking) as tracker, job.begun(cfg, tracker, "train", None) as work:
        indices, prepared, compute = work.train.indices, work.train.prepared, work.feed.compute
        choice = {
            "model": work.cfg.model.model_dump(mode="json"),
            "shape": asdict(work.shape),
            "mean": prepared.preprocess.mean,
            "std": prepared.preprocess.std,
            "half": None if compute.half is None else str(compute.half).removeprefix("torch."),
            "channels_last": compute.channels_last,
            "fused": compute.fused,
            "compiled": work.cfg.training.compile is True,
        }
        if prepared.pixels is not None:
            np.save(params.parent / PIXELS, prepared.sized(indices))
            np.save(params.parent / LABELS, np.asarray(prepared.manifest.labels[indices]))
    (params.parent / CHOICE).write_text(json.dumps(choice))
    return choice


def bare(params: Path) -> dict[str, float]:
    """Train on images in memory, uint8 [N,H,W,C], normalised batch by batch; return the figures."""
    cfg = load(TrainConfig, ["--params", str(params)])
    choice = json.loads((params.parent / CHOICE).read_text())
    assert cfg.threads is not None
    assert cfg.batch_size is not None
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    step = _bare_step(choice, cfg)
    pixels, labels = (torch.from_numpy(np.load(params.parent / name)) for name in (PIXELS, LABELS))
    mean, std = (torch.tensor(choice[name]).mul_(255) for name in ("mean", "std"))
    layout = torch.channels_last if choice["channels_last"] else torch.contiguous_format
    clock, first = Clock(), 0
    for _ in range(cfg.epochs):
        for chosen in torch.randperm(len(labels)).tensor_split(-(-len(labels) // cfg.batch_size)):
            images = pixels[chosen].float().sub_(mean).div_(std).permute(0, 3, 1, 2).contiguous(memory_format=layout)
            step(images, labels[chosen])
            if not first:
                first = len(chosen)
                clock.start()
    return clock.lap(cfg.epochs * len(labels) - first).found


def _bare_step(choice: dict[str, Any], cfg: TrainConfig) -> Callable[[Tensor, Tensor], None]:
    """Return one step of training on a network of the same kind, in the format and layout that `train` chose."""
    from tracked_cls import models

    layout = torch.channels_last if choice["channels_last"] else torch.contiguous_format
    network = models.make_model(ModelConfig.model_validate(choice["model"]), models.Shape(**choice["shape"])).train()
    network = network.to(memory_format=layout)
    forward = torch.compile(network) if choice["compiled"] else network
    assert cfg.optimizer.lr is not None
    optimizer = torch.optim.AdamW(network.parameters(), lr=cfg.optimizer.lr, fused=choice["fused"])
    half = None if choice["half"] is None else getattr(torch, choice["half"])

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.autocast("cpu", dtype=half, enabled=half is not None):
            logits = forward(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
