"""Training on photos: `train` against the loop of torchvision's tutorials, on 2,000 JPEGs of 500x375 that are made first.

The photos are noise with the spectrum of natural pictures (amplitude 1/frequency), about 100 kB each, so that decoding costs
what it costs with photos. Published weights cannot be fetched here, so both fine-tune all of the same network from random
weights: what is computed is the same.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.measuring import Found, Goal, Row, Terms, alternating, child  # noqa: E402
from benchmarks.training import Side, side, write  # noqa: E402
from tracked_cls.console import say  # noqa: E402 - of this checkout

COUNTS = {"train": 2_000, "val": 100, "test": 100}
CLASSES = 10
WIDTH, HEIGHT, QUALITY = 500, 375, 90
_SIDE = 2048  # of the texture that photos are cut from
_GRAIN = 6.0  # standard deviation of what each photo has of its own, in grey levels
BATCH, IMAGE_SIZE = 32, 224


def photos(folder: Path, counts: dict[str, int] | None = None) -> Path:
    """Write JPEGs into train/, val/ and test/, a folder per class, each class with a tint of its own."""
    draw = np.random.default_rng(0)
    texture = _texture(draw)
    tints = draw.uniform(-25, 25, (CLASSES, 3))
    for split, count in (counts or COUNTS).items():
        for number in range(count):
            place = folder / split / f"class{number % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            _photo(texture, tints[number % CLASSES], draw).save(place / f"{number:05}.jpg", quality=QUALITY)
    return folder


def _texture(draw: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return noise of amplitude 1/frequency, around 0 with a standard deviation of 1, float32 [S,S,3]."""
    frequency = np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.rfftfreq(_SIDE)[None, :])
    frequency[0, 0] = np.inf
    spectra = np.fft.rfft2(draw.standard_normal((3, _SIDE, _SIDE))) / frequency
    noise = np.moveaxis(np.fft.irfft2(spectra, s=(_SIDE, _SIDE)), 0, -1)
    grey = noise.mean(axis=-1, keepdims=True)  # colours of nature go together
    joint = grey + 0.5 * (noise - grey)
    return np.asarray((joint - joint.mean()) / joint.std(), np.float32)


def _photo(texture: npt.NDArray[np.float32], tint: npt.NDArray[np.float64], draw: np.random.Generator) -> Image.Image:
    """Return a piece of the texture, mirrored and lit by chance."""
    top, left = draw.integers(0, _SIDE - HEIGHT), draw.integers(0, _SIDE - WIDTH)
    piece = texture[top : top + HEIGHT, left : left + WIDTH][:: draw.choice([-1, 1]), :: draw.choice([-1, 1])]
    lit = 128 + tint + draw.uniform(35, 60) * piece + draw.normal(0, _GRAIN, (HEIGHT, WIDTH, 1))
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))


def measure(terms: Terms) -> Found:
    """Return `train` / plain loop, in images/s; and what the loop gains by channels_last."""
    data = photos(terms.scratch / "photos")
    size = mean(path.stat().st_size for path in data.rglob("*.jpg"))
    ours = _ours(terms, data)
    plain, changed = (_loop(data / "train", terms, *words) for words in ([], ["--channels-last"]))
    found = alternating(ours, plain, terms.rounds, "images/s", ("train", "ImageFolder loop"))
    say("  the same with channels_last given to the loop:")
    second = alternating(ours, changed, terms.rounds, "images/s", ("train again", "ImageFolder loop with channels_last"))
    found.details.update(second.details)
    found.details["train / ImageFolder loop with channels_last"] = f"{second.value:.2f} ({second.low:.2f} to {second.high:.2f})"
    found.details["photos"] = f"{size / 1000:.0f} kB each"
    return found


def _ours(terms: Terms, data: Path) -> Side:
    home = terms.scratch / "ours"
    options = {
        "epochs": 1,
        "batch_size": BATCH,
        "threads": terms.threads,
        "resume": "never",
        "data": {"source": "folder", "root": str(data), "name": "photos", "image_size": IMAGE_SIZE, "cache": "files",
                 "near_duplicates": "off"},
        "model": {"name": "mobilenetv3_small", "stem": "standard"},
        "transforms": {"train": [{"RandomResizedCrop": {"scale": [0.5, 1.0]}}, "RandomHorizontalFlip"]},
        "optimizer": {"name": "adamw", "lr": 0.001},
        "promote": {"auto": "never"},
        "tracking": {"uri": f"sqlite:///{home / 'mlflow.db'}", "pictures": False},
    }  # fmt: skip
    params = write(options, home)
    child("benchmarks.loops", "prepare", str(params), threads=terms.threads)
    return side("ours", params, terms)


def _loop(data: Path, terms: Terms, *words: str) -> Side:
    script = ROOT / "benchmarks" / "peers" / "folder_loop.py"
    command = [sys.executable, str(script), str(data), "--threads", str(terms.threads), *words]
    return Side(lambda: child(command, threads=terms.threads))


ROWS = (
    Row(
        "photos",
        "training on 2,000 photos of 500x375, images/s: mobilenetv3_small at 224, all layers, random crop and flip, one epoch",
        "ImageFolder, RandomResizedCrop, flip, 2 workers, in a plain torchvision loop",
        Goal(1.5, at_least=True),
        measure,
        minutes=20,
    ),
)
