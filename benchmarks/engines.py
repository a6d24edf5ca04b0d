"""How fast is a network in each of the forms it can be run in? Milliseconds, memory and start, each in a process of its own.

The forms: eager PyTorch, the same with filters in channels_last, the `.pt2` file of an export, its `model.onnx` on ONNX
Runtime. Each is loaded without MLflow, on one thread, and asked for batches of 1 and 64, in turns with the others; the median
counts. All times are of computing, so that other work of the machine disturbs little. Random weights: they cost what trained
ones do.

    python -m benchmarks.engines                                     mobilenetv3 at 28 px, grey
    python -m benchmarks.engines --model resnet18 --image-size 64 --channels 3 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

ENGINES = ("eager", "channels_last", "pt2", "onnx")
BATCHES = (1, 64)
SECONDS = 1.0  # of asking, per round and size of a batch


def main() -> None:
    """Print a line for each engine, and how many times faster than eager each is."""
    args = _arguments()
    if args.engine:
        _measure(args.engine, Path(args.folder))
        return
    from tracked_cls.console import say

    with TemporaryDirectory() as scratch:
        _export(args, Path(scratch))
        rounds = [{engine: _apart(engine, scratch) for engine in ENGINES} for _ in range(args.rounds)]
    found = {engine: {key: median(one[engine][key] for one in rounds) for key in rounds[0][engine]} for engine in ENGINES}
    shape = f"{args.channels} x {args.image_size} x {args.image_size}"
    say(f"{args.model}, {shape}, 1 thread, computing time, medians of {args.rounds} processes")
    say("| engine | imports | load | memory | batch 1 | batch 64 | faster than eager |")
    say("|---|---|---|---|---|---|---|")
    for engine, one in found.items():
        ratios = " and ".join(f"{found['eager'][key] / one[key]:.1f}" for key in ("1", "64"))
        say(
            f"| {engine} | {one['imports']:.2f} s | {one['load']:.2f} s | {one['megabytes']:.0f} MB | {one['1']:.2f} ms | "
            f"{one['64']:.1f} ms | {ratios} times |"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="mobilenetv3")
    parser.add_argument("--image-size", type=int, default=28)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def _export(args: argparse.Namespace, folder: Path) -> None:
    """Write what the engines load."""
    import torch

    from tracked_cls import conversion, weights
    from tracked_cls.config import ModelConfig
    from tracked_cls.models import Shape, make_model

    torch.manual_seed(0)
    cfg, shape = ModelConfig(name=args.model), Shape(10, args.channels, args.image_size)
    network = make_model(cfg, shape).eval()
    weights.save(network, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model": cfg.model_dump(), "shape": asdict(shape)}))
    conversion.to_onnx(network, shape, folder / "model.onnx")
    conversion.to_pt2(network.to(memory_format=torch.channels_last), shape, folder / "model.pt2", {})


def _apart(engine: str, folder: str) -> dict[str, float]:
    words = [sys.executable, __file__, "--engine", engine, "--folder", folder]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


# ---- in a process of its own -------------------------------------------------------------------------------------------


def _measure(engine: str, folder: Path) -> None:
    """Load one engine, ask it, and print what that took."""
    config = json.loads((folder / "config.json").read_text())
    began = time.process_time()
    load = {"eager": _eager, "channels_last": _channels_last, "pt2": _pt2, "onnx": _onnx}[engine](config)
    imported = time.process_time()
    ask = load(folder)
    loaded = time.process_time()
    size = (config["shape"]["channels"], config["shape"]["image_size"], config["shape"]["image_size"])
    told: dict[str, float] = {"imports": imported - began, "load": loaded - imported}
    told |= {str(batch): _milliseconds(ask, (batch, *size)) for batch in BATCHES}
    told["megabytes"] = _peak_megabytes()
    print(json.dumps(told))


def _peak_megabytes() -> float:
    """Return the most memory this process had; the system's `ru_maxrss` begins at that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _milliseconds(ask: Callable[[Any], Any], size: Sequence[int]) -> float:
    """Return the median time of a batch of random images."""
    import numpy as np

    images = np.random.default_rng(0).random(size, np.float32)
    for _ in range(3):
        ask(images)
    times, until = [], time.process_time() + SECONDS
    while time.process_time() < until or len(times) < 5:
        began = time.process_time()
        ask(images)
        times.append(1000 * (time.process_time() - began))
    return median(times)


def _eager(config: dict[str, Any], **placed: Any) -> Callable[[Path], Callable[[Any], Any]]:
    import torch

    from tracked_cls import weights
    from tracked_cls.config import ModelConfig
    from tracked_cls.models import Shape, make_model

    def load(folder: Path) -> Callable[[Any], Any]:
        torch.set_num_threads(1)
        network = make_model(ModelConfig.model_validate(config["model"]), Shape(**config["shape"])).eval()
        weights.load(network, folder / "model.safetensors")
        return _asked(network.to(**placed))

    return load


def _channels_last(config: dict[str, Any]) -> Callable[[Path], Callable[[Any], Any]]:
    import torch

    return _eager(config, memory_format=torch.channels_last)


def _pt2(_: dict[str, Any]) -> Callable[[Path], Callable[[Any], Any]]:
    import torch

    def load(folder: Path) -> Callable[[Any], Any]:
        torch.set_num_threads(1)
        return _asked(torch.export.load(folder / "model.pt2").module())

    return load


def _asked(network: Any) -> Callable[[Any], Any]:
    import torch

    def ask(images: Any) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return ask


def _onnx(_: dict[str, Any]) -> Callable[[Path], Callable[[Any], Any]]:
    import onnxruntime

    def load(folder: Path) -> Callable[[Any], Any]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"images": images})[0]

    return load


if __name__ == "__main__":
    main()
