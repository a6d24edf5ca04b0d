"""Does the recipe for small data beat the loop that people write? Test accuracy of both, on the same images, seed by seed.

The plain loop is PyTorch as in its tutorials: ImageFolder, random flips, Adam at 1e-3, cross entropy, a fixed number of epochs.
The recipe is `python -m pipelines.train` with a file of params/. Both get the same training folder; the recipe holds out
`data.val_fraction` of it to choose its epoch by, the plain loop trains on all of it. The recipe meets the test images once,
after training; of the plain loop the last epoch counts. Its best epoch, chosen on the test images, is shown as what it
could claim.

    python benchmarks/small_data.py --root FOLDER       where FOLDER holds train/ and test/, each with a folder per class
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tracked_cls import experiment, models, tracking  # noqa: E402 - the checkout this file lies in, not an installed copy
from tracked_cls.config import TrainConfig, load  # noqa: E402
from tracked_cls.console import say  # noqa: E402

Loader = Iterable[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Result:
    """One training: test accuracy as a share of 1, at the end and in its best epoch (None: not looked at), and seconds."""

    seed: int
    accuracy: float
    best: float | None
    seconds: float


def main() -> None:
    """Train both with every seed and print means, spreads and the difference, in points of a hundred."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    plain, recipe = [], []
    for seed in range(args.seeds):
        if not args.only_recipe:
            plain.append(_shown(f"plain loop, {args.model}", train_plain(args, seed)))
        if not args.only_plain:
            recipe.append(_shown(f"recipe, {args.params.name}", train_recipe(args, seed)))
    for name, results in (("plain loop", plain), ("recipe", recipe)):
        if results:
            say(f"{name:10s}  mean {_points([r.accuracy for r in results])}  {mean(r.seconds for r in results):.0f} s each")
    if plain and recipe:
        gains = [100 * (ours.accuracy - theirs.accuracy) for ours, theirs in zip(recipe, plain, strict=True)]
        best = 100 * (mean(r.accuracy for r in recipe) - mean(r.best or 0.0 for r in plain))
        say(f"difference  {mean(gains):+.2f} points (by seed: {', '.join(f'{gain:+.2f}' for gain in gains)})")
        say(f"            {best:+.2f} points against the plain loop's best epochs, chosen on the test images")


def train_recipe(args: argparse.Namespace, seed: int) -> Result:
    """Run `train` with the recipe in a store of its own, which is thrown away."""
    with TemporaryDirectory() as scratch:
        cfg = _recipe(args, seed, Path(scratch))
        started = time.perf_counter()
        with tracking.open_tracker(cfg.tracking) as tracker:
            outcome = experiment.run(cfg, tracker)
    return Result(seed, float(outcome.test.metrics["accuracy"]), None, time.perf_counter() - started)


def train_plain(args: argparse.Namespace, seed: int) -> Result:
    """Train as the tutorials do and test after every epoch."""
    torch.manual_seed(seed)
    train, test = (_loader(args, part) for part in ("train", "test"))
    model = _network(args, train)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    started, accuracies = time.perf_counter(), []
    for epoch in range(args.epochs):
        loss = _train_epoch(model, optimizer, train)
        accuracies.append(_accuracy(model, test))
        if args.verbose:
            say(f"  plain loop, epoch {epoch + 1}/{args.epochs}  train_loss {loss:.4f}  test_accuracy {accuracies[-1]:.4f}")
    return Result(seed, accuracies[-1], max(accuracies), time.perf_counter() - started)


def _train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, train: Loader) -> float:
    """Return the mean loss of the batches."""
    model.train()
    losses = []
    for images, labels in train:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return mean(losses)


@torch.inference_mode()
def _accuracy(model: nn.Module, test: Loader) -> float:
    model.eval()
    hits = [model(images).argmax(1) == labels for images, labels in test]
    return float(torch.cat(hits).float().mean())


def _loader(args: argparse.Namespace, part: str) -> Any:
    from torchvision import datasets, transforms

    flip = [transforms.RandomHorizontalFlip()] if part == "train" else []
    steps = transforms.Compose([*flip, transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    images = datasets.ImageFolder(args.root / part, steps)
    return torch.utils.data.DataLoader(images, batch_size=args.batch_size, shuffle=part == "train")


def _network(args: argparse.Namespace, train: Any) -> nn.Module:
    """Return the recipe's own network, or one of torchvision's with a stem for small images."""
    if args.model == "same":
        cfg = _recipe(args, 0, Path()).model
    else:
        cfg = TrainConfig.model_validate({"model": {"name": args.model, "stem": args.stem}}).model
    channels, size, _ = train.dataset[0][0].shape
    return models.make_model(cfg, models.Shape(len(train.dataset.classes), channels, size))


def _recipe(args: argparse.Namespace, seed: int, scratch: Path) -> TrainConfig:
    own = {
        "params": args.params,
        "data.root": args.root,
        "seed": seed,
        "threads": args.threads,
        "promote.auto": "never",
        "tracking.uri": f"sqlite:///{scratch}/mlflow.db",
    }
    return load(TrainConfig, [part for key, value in own.items() for part in (f"--{key}", str(value))])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with train/ and test/, one folder per class in each")
    parser.add_argument("--params", type=Path, default=ROOT / "params/small_data.yaml", help="the recipe")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind, with seeds 0, 1, ... (3)")
    parser.add_argument("--model", default="same", help="network of the plain loop: same (the recipe's), or torchvision's name")
    parser.add_argument("--stem", default="small", help="with a name: small (stride 1, no pooling) or standard (small)")
    parser.add_argument("--epochs", type=int, default=40, help="epochs of the plain loop (40)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step of the plain loop (64)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument("--only-plain", action="store_true", help="leave the recipe out")
    parser.add_argument("--only-recipe", action="store_true", help="leave the plain loop out")
    parser.add_argument("--verbose", action="store_true", help="print every epoch of the plain loop")
    return parser.parse_args()


def _shown(name: str, result: Result) -> Result:
    best = "" if result.best is None else f" (best epoch {100 * result.best:.2f} %)"
    say(f"{name}, seed {result.seed}: test accuracy {100 * result.accuracy:.2f} %{best}, {result.seconds:.0f} s")
    return result


def _points(accuracies: list[float]) -> str:
    spread = f"+- {100 * stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{100 * mean(accuracies):.2f} % {spread}".strip()


if __name__ == "__main__":
    main()
