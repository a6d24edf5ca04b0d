"""What do several processes bring? `train` with nproc=2, one thread each, against one process of two threads, and of one.

Images/s are those that the runs log (epoch by epoch, validation left out); the first epoch, in which memory is got and the
first step finds its kernels, is not looked at. mobilenetv3 at 28x28, batches of 256.

    python -m benchmarks --only together,together_alone --mnist FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from statistics import median

from benchmarks import preparing
from benchmarks.measuring import ROOT, Found, Goal, Row, Terms, alternating, child
from tracked_cls.console import say

IMAGES, EPOCHS, BATCH = 12_800, 3, 256
RECIPE = [
    *("--model", "mobilenetv3", "--limit", str(IMAGES), "--epochs", str(EPOCHS), "--batch_size", str(BATCH)),
    *("--transforms.train", "[]", "--promote.auto", "never", "--tracking.pictures", "false"),
]


def rate(words: list[str]) -> float:
    """Train as a command, and return the images/s of its epochs after the first."""
    from mlflow import MlflowClient

    name = uuid.uuid4().hex
    command = [sys.executable, "-m", "pipelines.train", *words, "--tracking.run_name", name, "--resume", "never"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    client = MlflowClient(words[words.index("--tracking.uri") + 1])
    (run,) = client.search_runs(["0"], f"tags.`mlflow.runName` = '{name}'")
    speeds = client.get_metric_history(run.info.run_id, "images_per_second")
    return float(median(point.value for point in speeds if point.step > 1))


def _measure(terms: Terms, threads: int) -> Found:
    """Return images/s of two processes of one thread / those of one process with so many."""
    common = [*RECIPE, *preparing.once(terms)]

    def side(nproc: int, threads: int) -> float:
        words = [*common, "--nproc", str(nproc), "--threads", str(threads)]
        return float(child("benchmarks.together", *words, threads=1 if nproc > 1 else threads)["rate"])

    return alternating(
        lambda: side(2, 2),
        lambda: side(1, threads),
        terms.rounds,
        "images/s",
        names=("2 processes of 1 thread", f"1 process of {threads} thread{'s' if threads > 1 else ''}"),
    )


ROWS = [
    Row(
        name="together",
        what="training images/s of 2 processes of 1 thread: mobilenetv3 at 28x28, batches of 256",
        baseline="1 process of 2 threads",
        goal=Goal(0.95, at_least=True),
        measure=lambda terms: _measure(terms, 2),
        minutes=15,
    ),
    Row(
        name="together_alone",
        what="the same",
        baseline="1 process of 1 thread",
        goal=Goal(1.7, at_least=True),
        measure=lambda terms: _measure(terms, 1),
        minutes=20,
        note="Two threads of one process come to 1.34 times one on this machine. In each step the processes send each other"
        " 17 MB of gradients over loopback, some 9 ms of computing in both (of 170), and each updates all weights, which one "
        "alone does once. What would help: to add gradients up in shared memory; larger batches.",
    ),
]


if __name__ == "__main__":
    say(json.dumps({"rate": rate(sys.argv[1:])}))
