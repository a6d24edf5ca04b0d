"""What do the numbers of an evaluation cost? Seconds of an evaluation against those of the bare forward pass, in one process.

The images go through the network in batches that are in memory already (forward), and then as `evaluate` and `train` do it:
out of the prepared set, with every number, its interval, and all tables written (evaluation). Imports and pictures are left
out. Both take turns; of each round the ratio is taken, and the median of these counts. The promise: an evaluation of 10,000
images takes at most 3 times the forward pass plus 10 s.

    python -m benchmarks.evaluation --root FOLDER       one folder of images per class: 10,000 of MNIST, say
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tracked_cls import assembly, assessment, evaluation, models, tables  # noqa: E402 - the checkout this file lies in, not an installed copy
from tracked_cls.compute import Compute  # noqa: E402
from tracked_cls.config import DataConfig, LoaderConfig, ModelConfig  # noqa: E402
from tracked_cls.console import say  # noqa: E402
from tracked_cls.data import sources  # noqa: E402
from tracked_cls.data.cache import Prepared  # noqa: E402
from tracked_cls.data.loaders import Feed, Split  # noqa: E402
from tracked_cls.slices import columns_of  # noqa: E402

BATCH = 512
STEPS = 60  # of training, so that confidence and mistakes are of the usual kind
TIMES, SECONDS = 3, 10  # the promise


def main() -> None:
    """Print the seconds of every round, and the medians."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    with TemporaryDirectory() as scratch:
        split = split_of(prepared_of(args.root, Path(scratch), args.image_size), args.threads)
        network = network_for(args.model, split)
        batches = [batch.images for batch in split.eval_batches(BATCH)]
        scores = evaluation.score(network, split.eval_batches(BATCH))
        size = f"{args.model} at {args.image_size} px, {args.threads} threads"
        say(f"{len(split):,} images, {size}, accuracy {scores.accuracy:.3f}")
        rounds = []
        for number in range(args.rounds + 1):
            bare = _seconds(lambda: forward(network, batches))
            whole = _seconds(lambda: _evaluate(network, split, Path(scratch)))
            numbers = _seconds(lambda: _write(_report(scores, split), split, Path(scratch)))
            if number:  # the first one imports and warms up
                rounds.append((bare, whole, numbers))
                say(f"round {number}: forward {bare}, evaluation {whole}, numbers and tables alone {numbers}")
    _conclude(rounds)


@dataclass(frozen=True)
class Seconds:
    """What something took: by the clock, and of computing on all cores."""

    clock: float
    computing: float

    def __str__(self) -> str:
        return f"{self.clock:.2f} s ({self.computing:.2f} of computing)"


def _conclude(rounds: Sequence[tuple[Seconds, Seconds, Seconds]]) -> None:
    for name in ("clock", "computing"):
        bare, whole, numbers = (
            np.array(column) for column in zip(*([getattr(one, name) for one in row] for row in rounds), strict=True)
        )
        allowed = median((whole - SECONDS) / bare)
        say(f"by {name}: forward {median(bare):.2f} s, evaluation {median(whole):.2f} s, "
            f"numbers and tables {median(numbers):.2f} s")  # fmt: skip
        say(f"  evaluation / forward {median(whole / bare):.2f}; (evaluation - {SECONDS} s) / forward {allowed:.2f}: "
            f"{'within' if allowed <= TIMES else 'BEYOND'} the {TIMES} that are promised")  # fmt: skip


def forward(network: nn.Module, batches: list[torch.Tensor]) -> None:
    """Do the bare work: nothing but the network."""
    with torch.inference_mode():
        for images in batches:
            network(images)


def _evaluate(network: nn.Module, split: Split, folder: Path) -> None:
    _write(assessment.score_split(network, split, BATCH, temperature=1.5, slices=["label"]), split, folder)


def _report(scores: evaluation.Scores, split: Split) -> evaluation.EvalReport:
    fresh = replace(scores)  # which has kept no probabilities from the last round
    columns = columns_of(split.prepared.manifest, split.indices, ["label"])
    return evaluation.report(fresh, split.prepared.manifest.classes, 1.5, columns)


def _write(report: evaluation.EvalReport, split: Split, folder: Path) -> None:
    tables.write_tables(report, folder / "tables", "test", split)


def _seconds(work: Callable[[], object]) -> Seconds:
    clock, computing = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - clock, time.process_time() - computing)


def prepared_of(root: Path, store: Path, image_size: int) -> Prepared:
    """Return a folder of images, prepared in `store`."""
    cfg = DataConfig(source="folder", root=str(root), name="benchmark", image_size=image_size, near_duplicates="off")
    return assembly.build(cfg, store, sources.scan(cfg, root))


def split_of(prepared: Prepared, threads: int) -> Split:
    """Return all images, whatever their split."""
    feed = Feed(prepared, Compute(torch.device("cpu"), threads=threads, fused=True), LoaderConfig())
    return Split(feed, np.arange(len(prepared.manifest)))


def network_for(name: str, split: Split) -> nn.Module:
    """Return a network that has seen a few batches of the images."""
    torch.manual_seed(0)
    geometry = split.prepared.preprocess.geometry
    shape = models.Shape(len(split.prepared.manifest.classes), geometry.channels, geometry.image_size)
    network = split.feed.compute.place(models.make_model(ModelConfig.model_validate({"name": name}), shape))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _, batch in zip(range(STEPS), split.sample(STEPS * 128, seed=0, epoch=1).eval_batches(128), strict=False):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch.images), batch.targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    evaluation.refresh_batchnorm(network, split.sample(2048, seed=0, epoch=2).eval_batches(BATCH))
    return network.eval()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with a folder of images for each class")
    parser.add_argument("--model", default="small_cnn", help="network (small_cnn)")
    parser.add_argument("--image-size", type=int, default=28, help="side of an image in pixels (28)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (5)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
