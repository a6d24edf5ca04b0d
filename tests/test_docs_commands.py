"""The commands of the pages do what they say, typed one after the other in a folder with images.

They are made small: a small network, one epoch, few images. What cannot be run at all says why, in the page or here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import mobilenet_v3_small

from tests.faults import harness
from tests.pages import PAGES, ROOT, commands, name

NOT_RUN = {  # the beginning of a command -> why no test runs it
    "python3 -m venv": "installs packages: .ci/run does",
    ".venv/bin/": "the tests, the linters: .ci/run runs them",
    "python -m benchmarks": "minutes to hours on a quiet machine: test_benchmarks.py and test_benchmark_rows.py run its parts",
    "mlflow ui": "serves until it is stopped",
    "mlflow models serve": "serves until it is stopped: tests/test_serving.py loads the model as it does",
    "mlflow run . -e serve": "serves until it is stopped: tests/test_service.py starts it, asks and stops it",
    "python -m pipelines.serve": "serves until it is stopped: tests/test_service.py starts it, asks and stops it",
    "curl": "asks a server: tests/test_service.py asks the same",
    "python -m pipelines.train --params params/train.yaml --nproc": "several processes: tests/faults/test_launch.py",
    "torchrun": "several processes: tests/faults/test_ranks.py",
}
CLASSES = ("daisy", "rose", "tulip")
SMALL = {
    "train": {"model": "small_cnn", "epochs": "1", "threads": "1", "tracking.pictures": "false", "transforms.train": "[]"},
    "predict": {"workers": "1"},
    "evaluate": {"threads": "1"},
    "promote": {"threads": "1"},
}
SMALL["main"] = SMALL["train"]
SMALL["tune"] = SMALL["train"] | {"trials": "2", "workers": "1", "finalists": "1", "finalist_seeds": "1"}
PUBLISHED = {  # a network that the weights fit, and two epochs: its schedule warms up for one
    "model": "mobilenetv3_small", "data.image_size": "32", "freeze.epochs": "1", "epochs": "2"
}  # fmt: skip
DEFAULT_PAGES = ("docs/quickstart.md",)


def _run_by(pages):
    """Return the pages with a command that is run, those that take minutes marked as slow."""
    return [
        pytest.param(page, id=name(page), marks=() if name(page) in DEFAULT_PAGES else pytest.mark.slow)
        for page in pages
        if any(command.of_ours() and not why_not(command) for command in commands(page))
    ]


def why_not(command):
    """Return why a command is not run; empty for one that is."""
    return command.why_not or next((why for start, why in NOT_RUN.items() if command.line.startswith(start)), "")


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_every_command_is_run_or_says_why_not(page):
    untold = [command.line for command in commands(page) if not command.of_ours() and not why_not(command)]
    assert untold == [], "mark the block with <!-- not run: why -->, or say it in NOT_RUN"


def test_no_reason_is_left_over():
    lines = [command.line for page in PAGES for command in commands(page)]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []


@pytest.mark.parametrize("page", _run_by(PAGES))
def test_the_commands_of_a_page_work_one_after_the_other(page, tmp_path):
    home = _furnished(tmp_path)
    if name(page) not in DEFAULT_PAGES:
        _furnish_store(home)
    for command in commands(page):
        ours = command.of_ours(_runs(home)[::-1])
        if ours is not None and not why_not(command):
            _said(home, *ours)


@pytest.mark.slow
def test_the_quick_start_works_word_for_word(tmp_path):
    """In a copy of the checkout, by bash and `mlflow run`; only the install and the server are left out."""
    home = tmp_path / "tracked_cls"
    left = shutil.ignore_patterns(".*", "data", "runs", "mlruns", "mlflow.db*", "build", "dist")
    shutil.copytree(ROOT, home, ignore=lambda folder, names: left(folder, names) if Path(folder) == ROOT else set())
    shutil.copytree(_furnished(tmp_path / "furniture") / "flowers", home / "flowers")
    shutil.copytree(tmp_path / "furniture" / "new_pictures", home / "new_pictures")
    lines = [command.line for command in commands(ROOT / "docs" / "quickstart.md") if not why_not(command)]
    assert len(lines) == 5
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PYTHONPATH"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", "\n".join(lines)], cwd=home, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "registry: models:/flowers-classifier/1, promoted: the first version" in done.stdout
    assert len((home / "labels.csv").read_text().splitlines()) == 1 + len(list((home / "new_pictures").iterdir()))


def _furnished(home):
    """Return a folder with images in classes, images to be labelled, and the params files."""
    for number, label in enumerate(CLASSES):
        (home / "flowers" / label).mkdir(parents=True)
        for index in range(14):
            _picture(number, index).save(home / "flowers" / label / f"{index}.jpg")
    (home / "new_pictures").mkdir()
    for number in range(6):
        _picture(number % 3, 100 + number).save(home / "new_pictures" / f"{number}.jpg")
    (home / "params").symlink_to(ROOT / "params")
    return home


def _furnish_store(home):
    """Put what other pages speak of where they have it: a champion and the one before it, an archive, published weights."""
    with tarfile.open(home / "scans.tar.gz", "w:gz") as archive:
        archive.add(home / "new_pictures", "scans")
    save_file(mobilenet_v3_small(num_classes=1000).state_dict(), home / "weights.safetensors")
    _said(home, "train", ["--promote.auto", "always", "--optimizer.lr", "0.00001"])
    assert ", promoted: " in _said(home, "train", ["--promote.auto", "always", "--promote.class_alpha", "off"])


def _picture(number, index):
    """Return a small photo whose colour tells its class."""
    draws = np.random.default_rng((number, index)).integers(0, 120, (24, 24, 3), np.uint8)
    draws[:, :, number] += 100
    return Image.fromarray(draws)


def _said(home, verb, words):
    """Run a verb as a process of its own would, made small; return what it has said."""
    words = _small(verb, words)
    command = harness.Command(verb, (*words, "--tracking.uri", f"sqlite:///{home / 'mlflow.db'}"), home)
    before = len(_log(home))
    harness.run(command)
    return _log(home)[before:]


def _small(verb, words):
    """Return the words with small ones in place of those that would take minutes."""
    given = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    small = dict(SMALL.get(verb, {}))
    if "finetune" in given.get("params", "") and verb == "train":
        small |= PUBLISHED
    if "model.weights" in given or "from_run" in given:
        small.pop("transforms.train")
    return [word for key, value in {**given, **small}.items() for word in (f"--{key}", value)]


def _log(home):
    path = home / harness.LOG
    return path.read_text(errors="replace") if path.exists() else ""


def _runs(home):
    """Return the ids of the trainings so far."""
    return re.findall(r"^train: .*\n  run: .*/runs/(\w{32})", _log(home), flags=re.MULTILINE)
