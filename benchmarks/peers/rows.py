"""`train` against the loops of others, on the same 20,000 pictures: MNIST as RGB PNGs of 32x32, which nobody has to resize."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from benchmarks.measuring import Found, Goal, Row, Terms, alternating, child  # noqa: E402
from benchmarks.peers.__main__ import TIMM_SCRIPT  # noqa: E402
from benchmarks.training import Case, Side, side, write  # noqa: E402
from tracked_cls.console import say  # noqa: E402 - of this checkout

FOLDER = Path(__file__).resolve().parent
CASE = Case("mobilenetv3_small", 32, epochs=2)
COUNTS = {"train": 20_000, "val": 2_000, "test": 1_000}
_RATE = re.compile(r"^Train:.*\(\s*[\d.]+s,\s*([\d.,]+)/s\)")  # its average so far, in a line of timm's train script


def pictures(mnist: Path, folder: Path) -> Path:
    """Write `COUNTS` pictures of MNIST as RGB PNGs of 32x32, in a folder per class, the classes evenly."""
    from PIL import Image

    taken = dict.fromkeys(COUNTS, 0)
    for split, count in COUNTS.items():
        source = mnist / ("test" if split == "test" else "train")
        classes = sorted(path.name for path in source.iterdir() if path.is_dir())
        each = count // len(classes)
        first = taken["train"] // len(classes) if split == "val" else 0  # other pictures than those of train
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for path in sorted((source / name).iterdir())[first : first + each]:
                with Image.open(path) as image:
                    image.convert("RGB").resize((32, 32)).save(folder / split / name / f"{path.stem}.png")
        taken[split] = each * len(classes)
    return folder


def _ours(terms: Terms, data: Path) -> Side:
    home = terms.scratch / "ours"
    options = CASE.options(terms, data, home)
    options["data"] |= {"channels": 3}
    del options["limit"]
    params = write(options, home)
    child("benchmarks.loops", "prepare", str(params), threads=terms.threads)
    return side("ours", params, terms)


def _loop(name: str, data: Path, terms: Terms, *words: str) -> Side:
    """Return a loop of this folder, run by the peers' Python."""
    options = ["--epochs", str(CASE.epochs), "--batch-size", str(CASE.batch_size), "--threads", str(terms.threads)]
    command = [str(terms.needed("peers")), str(FOLDER / name), str(data), *words, *options]
    return Side(lambda: child(command, threads=terms.threads, folder=terms.scratch))


def against_lightning(terms: Terms) -> Found:
    """Return `train` / Lightning as it comes, in images/s; and what it gains by channels_last."""
    terms.needed("peers")
    data = pictures(terms.needed("mnist"), terms.scratch / "pictures")
    ours = _ours(terms, data)
    plain, changed = (_lightning(data, terms, *words) for words in ([], ["--channels-last"]))
    found = alternating(ours, plain, terms.rounds, "images/s", ("train", "Lightning"))
    say("  the same with channels_last given to Lightning:")
    second = alternating(ours, changed, terms.rounds, "images/s", ("train again", "Lightning with channels_last"))
    found.details.update(second.details)
    found.details["train / Lightning with channels_last"] = f"{second.value:.2f} ({second.low:.2f} to {second.high:.2f})"
    return found


def _lightning(data: Path, terms: Terms, *words: str) -> Side:
    homes = (terms.scratch / f"lightning{'-'.join(words)}-{number}" for number in range(1000))  # each run a store of its own

    def run() -> float:
        home = next(homes)
        home.mkdir()
        return _loop("lightning_loop.py", data, terms, str(home), *words)()

    return Side(lambda: {"images_per_second": run()})


def against_timm(terms: Terms) -> Found:
    """Return `train` / timm in channels_last, in images/s."""
    python = terms.needed("peers")
    script = python.parents[1] / TIMM_SCRIPT
    data = pictures(terms.needed("mnist"), terms.scratch / "pictures")
    run: Callable[[], float] = _loop("timm_loop.py", data, terms)
    if script.exists():
        run = partial(_timm, script, data, terms)
    found = alternating(_ours(terms, data), run, terms.rounds, "images/s", ("train", "timm"))
    written = "its parts in a loop written for this, since its packages lack the script; without logging or checkpoints"
    found.details["timm is"] = "its train script" if script.exists() else written
    return found


def _timm(script: Path, data: Path, terms: Terms) -> float:
    """Run timm's own train script; return the images/s that it says of its last epoch."""
    options = {
        "model": "mobilenetv3_small_100", "num-classes": "10", "input-size": "3 32 32", "mean": ".13 .13 .13",
        "std": ".31 .31 .31", "batch-size": str(CASE.batch_size), "epochs": str(CASE.epochs), "workers": "2", "opt": "adam",
        "lr": "1e-3", "sched": "none", "train-split": "train", "val-split": "val", "device": "cpu",
        "output": str(terms.scratch / "timm"),
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", *value.split())]
    command = [str(terms.needed("peers")), str(script), str(data), "--channels-last", "--no-aug", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=terms.scratch, timeout=900)
    rates = [
        float(found[1].replace(",", "")) for line in (done.stdout + done.stderr).splitlines() if (found := _RATE.match(line))
    ]
    if done.returncode or not rates:
        raise RuntimeError(f"timm's train script ended with {done.returncode}: {done.stderr[-2000:]}")
    return rates[-1]


WHAT = "training, images/s: mobilenetv3_small at 3x32x32, batch 128, two epochs of 20,000 images"
ROWS = (
    Row(
        "train_against_timm", WHAT, "timm's train script with --channels-last, 2 workers", Goal(1.6, at_least=True),
        against_timm, minutes=7,
    ),
    Row(
        "train_against_lightning", WHAT, "Lightning, MLFlowLogger and ImageFolder, 2 workers, as they come",
        Goal(3.5, at_least=True), against_lightning, minutes=22,
        note="`train` is as fast as the bare loop here (row train_mobilenetv3_small_32), so there is little left to gain: the "
        "goal was set by epochs of 3,072 images, in which what Lightning does once an epoch weighs more. What would help in "
        "trainings of 20 epochs and more: training.compile, 1.1 times.",
    ),
)  # fmt: skip
