"""Batch prediction against the loop that everybody writes: images to a CSV, decoding included, on the same network.

    python -m benchmarks.prediction --root FOLDER         10,000 PNGs of MNIST, say: seconds of each way, in turns
    python -m benchmarks.prediction --root FOLDER --command   the whole command as well, from the start of Python to its end
    python -m benchmarks.prediction --memory              memory for 5,000 and for 50,000 images that are made first

The naive loops open each file with Pillow, send it through torchvision's Compose (Grayscale, Resize, ToTensor, Normalize) and
the network in eager PyTorch (inference_mode, eval): one image at a time, or in batches of 256. Ours is what `predict` does
between the begin and the end of its MLflow run: listing, decoding processes and their start, SHA-256 of each file, ONNX
Runtime, CSV, list of rejected files, sidecar, fsync. The weights are random: what is computed is the same. The promise: at
least 5 times the naive loop.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tracked_cls.console import say  # noqa: E402 - the checkout this file lies in, not an installed copy

if TYPE_CHECKING:  # decoding processes import this file too: what is heavy waits inside functions
    from tracked_cls.serving.packaging import Bundle

MEAN, STD = 0.13, 0.31
TIMES = 5  # the promise
Way = Callable[[Path], int]


def main() -> None:
    """Print the seconds of every round and the medians, or the memory."""
    args = _arguments()
    with TemporaryDirectory(dir=args.scratch) as scratch:
        if args.measured is not None:
            print(json.dumps(_measured(args.measured, args.root)))
        elif args.memory:
            _compare_memory(Path(scratch), args.image_size)
        else:
            _compare(args, Path(scratch))


# ---- speed -----------------------------------------------------------------------------------------------------------


def _compare(args: argparse.Namespace, scratch: Path) -> None:
    bundle = _bundle(scratch / "model", args.model, args.image_size)
    files = sorted(path for path in args.root.rglob("*.png"))
    ways: dict[str, Way] = {
        "naive, one by one": lambda output: _naive(files, bundle, args, output, 1),
        "naive, batches of 256": lambda output: _naive(files, bundle, args, output, 256),
        "ours": lambda output: _ours(args.root, bundle, output, args.workers),
    }
    if args.command:
        ways["ours, the whole command"] = lambda output: _command(args.root, bundle, output)
    say(f"{len(files):,} images, {args.model} at {args.image_size} px, {os.cpu_count()} cores, {args.rounds} rounds")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, way in ways.items():
            if not number and name == "naive, one by one":
                continue  # its imports and caches are those of the batches
            started = time.perf_counter()
            rows = way(scratch / f"{number}-{len(seconds[name])}-{abs(hash(name))}.csv")
            taken = time.perf_counter() - started
            assert rows == len(files), (name, rows)
            if number:  # the first one imports and warms up
                seconds[name].append(taken)
        if number:
            say(f"round {number}: " + ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items()))
    _conclude(seconds, len(files))


def _conclude(seconds: dict[str, list[float]], num: int) -> None:
    ours = np.array(seconds["ours"])
    for name, values in seconds.items():
        ratio = median(np.array(values) / ours)
        promise = f", {'within' if ratio >= TIMES else 'BELOW'} the {TIMES} promised" if name.startswith("naive") else ""
        rate = num / median(values)
        say(f"{name}: median {median(values):.2f} s, {rate:,.0f} images/s, {ratio:.1f} times ours{promise}")


def _naive(files: Sequence[Path], bundle: Bundle, args: argparse.Namespace, output: Path, size: int) -> int:
    import torch
    from torchvision.transforms import Compose, Grayscale, Normalize, Resize, ToTensor

    network = _network(bundle, args)
    transform = Compose([Grayscale(), Resize((args.image_size,) * 2), ToTensor(), Normalize([MEAN], [STD])])
    with output.open("w", newline="") as file, torch.inference_mode():
        writer = csv.writer(file)
        writer.writerow(["image_id", "label", "probability"])
        for start in range(0, len(files), size):
            chosen = files[start : start + size]
            batch = torch.stack([transform(Image.open(path)) for path in chosen])
            best = network(batch).softmax(1).max(1)
            for path, probability, label in zip(chosen, best.values.tolist(), best.indices.tolist(), strict=True):
                writer.writerow([path.name, label, f"{probability:.6f}"])
    return len(files)


_networks: dict[Path, object] = {}


def _network(bundle: Bundle, args: argparse.Namespace):  # type: ignore[no-untyped-def]
    from tracked_cls.assessment import load_network

    if bundle.folder not in _networks:
        _networks[bundle.folder] = load_network(bundle)[0].eval()
    return _networks[bundle.folder]


def _ours(root: Path, bundle: Bundle, output: Path, workers: int | None = None) -> int:
    from tracked_cls.config import PredictConfig
    from tracked_cls.config.sections import PredictSection, TrackingConfig
    from tracked_cls.prediction import labelling, sidecar
    from tracked_cls.prediction.choice import engine_of
    from tracked_cls.prediction.rows import Layout
    from tracked_cls.serving.classifier import Classifier

    cfg = PredictConfig(
        predict=PredictSection(input=str(root), output=str(output), workers=workers), tracking=TrackingConfig(pictures=False)
    )
    classifier = Classifier.load(bundle.onnx, bundle.meta)
    decides = sidecar.about(cfg, classifier, Layout.of(cfg.predict, classifier.classes), address="benchmark", exact="benchmark")
    job = labelling.Job(cfg, classifier, engine_of(cfg.predict, bundle, classifier), output, decides, {})
    told, _ = job.write(labelling.source_of(cfg))
    return told.num_images


def _command(root: Path, bundle: Bundle, output: Path) -> int:
    words = [sys.executable, "-m", "pipelines.predict", "--input", str(root), "--output", str(output)]
    words += ["--predict.model", str(bundle.folder), "--tracking.uri", f"sqlite:///{bundle.folder.parent / 'mlflow.db'}"]
    words += ["--tracking.pictures", "false"]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    with output.open() as file:
        return sum(1 for _ in file) - 1


def _bundle(folder: Path, model: str, image_size: int) -> Bundle:
    """Write a model with random weights as `export` would."""
    import torch

    from tracked_cls import conversion, models, weights
    from tracked_cls.config import ModelConfig
    from tracked_cls.data.preprocess import Geometry, Preprocess
    from tracked_cls.serving.packaging import Bundle

    torch.manual_seed(0)
    folder.mkdir()
    bundle, shape = Bundle(folder), models.Shape(10, 1, image_size)
    chosen = ModelConfig.model_validate({"name": model})
    network = models.make_model(chosen, shape).eval()
    weights.save(network, bundle.weights)
    conversion.to_onnx(network, shape, bundle.onnx)
    meta = {
        "classes": list("0123456789"),
        "preprocess": Preprocess(Geometry(image_size, 1), (MEAN,), (STD,)).to_dict(),
        "architecture": {"model": chosen.model_dump(), "shape": asdict(shape)},
        "weights_digest": weights.digest(network),
    }
    bundle.meta.write_text(json.dumps(meta))
    sums = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir()))
    (folder / "SHA256SUMS").write_text("".join(sums))
    return bundle


# ---- memory ----------------------------------------------------------------------------------------------------------


def _compare_memory(scratch: Path, image_size: int) -> None:
    """Print the largest memory of the process that predicts, for few and for many images in one folder."""
    bundle = _bundle(scratch / "model", "small_cnn", image_size)
    draw, peaks = np.random.default_rng(0), []
    for count in (5_000, 50_000):
        folder = scratch / f"{count}"
        folder.mkdir()
        for number in range(count):
            Image.fromarray(draw.integers(0, 256, (image_size, image_size), dtype=np.uint8)).save(
                folder / f"image-{number}.png"
            )
        words = [sys.executable, "-m", "benchmarks.prediction", "--measured", str(bundle.folder), "--root", str(folder)]
        done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        peaks.append(found["peak_mb"])
        say(f"{count:,} images: peak {found['peak_mb']:.0f} MB, {found['before_mb']:.0f} MB before the first, "
            f"{found['seconds']:.1f} s")  # fmt: skip
    say(f"10 times the images take {peaks[1] - peaks[0]:+.1f} MB")


def _measured(model: Path, root: Path) -> dict[str, float]:
    before, started = _peak_mb(), time.perf_counter()
    with TemporaryDirectory() as scratch:
        from tracked_cls.serving.packaging import Bundle

        _ours(root, Bundle(model), Path(scratch) / "out.csv")
    return {"before_mb": before, "peak_mb": _peak_mb(), "seconds": time.perf_counter() - started}


def _peak_mb() -> float:
    """Return the most memory this process has held; getrusage would also count that of the process it was forked from."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of PNG images")
    parser.add_argument("--model", default="mobilenetv3_small", help="network (mobilenetv3_small)")
    parser.add_argument("--image-size", type=int, default=28, help="side of an image in pixels (28)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (5)")
    parser.add_argument("--workers", type=int, help="decoding processes of ours (one per core)")
    parser.add_argument("--command", action="store_true", help="also run the whole command")
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    parser.add_argument("--measured", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help="folder for what is written")
    args = parser.parse_args()
    if args.root is None and not args.memory:
        parser.error("--root is required: a folder of PNG images")
    return args


if __name__ == "__main__":
    main()
