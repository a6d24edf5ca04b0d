"""How fast does `train` train? Images per second between its first and its last step, against loops that do less or otherwise.

The limit is the bare loop: images in memory, no tracking, no checkpoints, nothing validated. The others are what people use.

    python -m benchmarks --only train_small_cnn_28 --mnist FOLDER       one row; `--list` names them
    python -m benchmarks.training profile --mnist FOLDER                a profile of some steps: docs/pictures/profile_epoch.png
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import yaml  # noqa: E402

from benchmarks.measuring import Found, Goal, Row, Terms, alternating, child, spread  # noqa: E402
from tracked_cls.console import say  # noqa: E402 - of this checkout

PICTURE = ROOT / "docs" / "pictures" / "profile_epoch.png"
LIMIT = 0.97  # of the bare loop
Answer = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A training: the network as torchvision ships it, on MNIST in one size."""

    model: str
    image_size: int
    epochs: int = 1
    images: int = 20_000
    batch_size: int = 128

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        return f"train_{self.model}_{self.image_size}"

    def options(self, terms: Terms, root: Path, home: Path) -> dict[str, Any]:
        """Return the params of `train`; `home` is where its store, its data and its local state lie."""
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "threads": terms.threads,
            "limit": self.images,
            "resume": "never",
            "data": {"source": "folder", "root": str(root), "name": "mnist", "image_size": self.image_size,
                     "near_duplicates": "off"},
            "model": {"name": self.model, "stem": "standard"} if self.model != "small_cnn" else {"name": self.model},
            "optimizer": {"name": "adamw", "lr": 0.002},
            "scheduler": "onecycle",
            "promote": {"auto": "never"},
            "tracking": {"uri": f"sqlite:///{home / 'mlflow.db'}", "pictures": False},
        }  # fmt: skip


CASES = (
    Case("mobilenetv3_small", 28, epochs=2),
    Case("mobilenetv3_small", 32, epochs=2),
    Case("mobilenetv3", 28),
    Case("mobilenetv3", 32),
    Case("resnet18", 32),
    Case("small_cnn", 28, epochs=2),
)


def write(options: dict[str, Any], folder: Path) -> Path:
    """Write params of `train` into a folder of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    params = folder / "params.yaml"
    params.write_text(yaml.safe_dump(options), encoding="utf-8")
    return params


class Side:
    """A side that runs again and again in processes of its own, and remembers what it said."""

    def __init__(self, run: Callable[[], Answer]) -> None:
        self._run = run
        self.answers: list[Answer] = []

    def __call__(self) -> float:
        """Run it; return images/s."""
        self.answers.append(self._run())
        return float(self.answers[-1]["images_per_second"])

    def values(self, key: str) -> list[float]:
        """Return a figure of every round."""
        return [float(answer[key]) for answer in self.answers]


def side(verb: str, params: Path, terms: Terms) -> Side:
    """Return a side of `benchmarks.loops`."""
    return Side(lambda: child("benchmarks.loops", verb, str(params), threads=terms.threads))


def against_bare(case: Case, terms: Terms) -> Found:
    """Return `train` / bare loop, in images/s."""
    home = terms.scratch / "mnist"
    params = write(case.options(terms, terms.needed("mnist").resolve(), home), home / case.name)
    choice = child("benchmarks.loops", "prepare", str(params), threads=terms.threads)
    ours, bare = side("ours", params, terms), side("bare", params, terms)
    found = alternating(ours, bare, terms.rounds, "images/s", ("train", "bare loop"))
    found.details.update(_more(ours, bare), chosen=_chosen(choice, terms.threads))
    return found


def _more(ours: Side, bare: Side) -> dict[str, str]:
    pairs = zip(bare.values("computing_us"), ours.values("computing_us"), strict=True)
    return {
        "train, validation included": spread(ours.values("with_validation"), "images/s"),
        "computing of all cores": f"train {spread(ours.values('computing_us'), 'us')}, bare loop "
        f"{spread(bare.values('computing_us'), 'us')} an image; by this the ratio is {median(a / b for a, b in pairs):.3f}",
    }


def _chosen(choice: Answer, threads: int) -> str:
    """Say in which format a training computes."""
    words = [
        choice["half"] or "float32",
        "channels_last" if choice["channels_last"] else "contiguous",
        *(["fused optimizer"] if choice["fused"] else []),
        *(["compiled"] if choice["compiled"] else []),
    ]
    return ", ".join([*words, f"{threads} threads"])


def _row(case: Case) -> Row:
    seconds = "two epochs" if case.epochs == 2 else "one epoch"
    return Row(
        case.name,
        f"training, images/s between first and last step of the whole `train`: {case.model} at {case.image_size}x"
        f"{case.image_size}, batch {case.batch_size}, {seconds} of {case.images:,} images",
        "bare in-memory loop: same network, batches, layout, number format and optimizer",
        Goal(LIMIT, at_least=True),
        partial(against_bare, case),
        minutes=6,
    )


ROWS = tuple(_row(case) for case in CASES)


# ---- a profile as a picture ------------------------------------------------------------------------------------------


def profile(terms: Terms) -> None:
    """Train a little under the product's own profiler, and keep its picture."""
    home = terms.scratch / "profile"
    case = Case("mobilenetv3_small", 28, images=4_000)
    options = case.options(terms, terms.needed("mnist").resolve(), home) | {"training": {"profile": True}}
    child("benchmarks.loops", "ours", str(write(options, home)), threads=terms.threads)
    (picture,) = home.rglob("plots/profile.png")
    PICTURE.parent.mkdir(exist_ok=True)
    shutil.copyfile(picture, PICTURE)
    say(f"wrote {PICTURE.relative_to(ROOT)}")


def main() -> None:
    """Draw the profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["profile"])
    parser.add_argument("--mnist", type=Path, required=True, help="folder with train/ and test/, a folder per class in each")
    words = parser.parse_args()
    with TemporaryDirectory(prefix="benchmark-") as scratch:
        profile(Terms(words.mnist, None, 1, Path(scratch), None))


if __name__ == "__main__":
    main()
