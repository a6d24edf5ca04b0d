"""Small jobs of every verb with everything random switched on, and what of them must come out the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults import remains
from tests.faults.harness import ROOT, Command, ask

MODEL = "digits-classifier"
_NETWORK = ("--model", "small_cnn", "--model.args", "{width: 4, pairs: 2}", "--model.dropout", "0.1", "--threads", "1")
_MEASURED = "plots/network.png"  # shows how long the network takes


@dataclass(frozen=True)
class Site:
    """A folder with a tracking store, shared by jobs that differ in name; each has its experiment and its local state."""

    home: Path

    @property
    def uri(self) -> str:
        """The tracking store."""
        return f"sqlite:///{self.home / 'mlflow.db'}"

    # ---- commands ----------------------------------------------------------------------------------------------------

    def train(self, name: str, *extra: str, epochs: int = 3, network: Sequence[str] = _NETWORK) -> Command:
        """Train on the digits for some epochs of 21 steps, with a checkpoint after nearly every one."""
        words = (*network, "--epochs", str(epochs), "--training.ema", "0.9", "--checkpoint.at_end", "keep")
        return self._learn("train", name, *words, "--checkpoint.every_seconds", "0.01", *extra)

    def tune(self, name: str, *extra: str) -> Command:
        """Search three trials of two epochs, and train the best again."""
        space = "{optimizer.lr: {low: 0.001, high: 0.1, log: true}}"
        words = (*_NETWORK, "--epochs", "2", "--limit", "300", "--tune.space", space, "--tune.trials", "3")
        finals = ("--tune.finalists", "1", "--tune.finalist_seeds", "1", "--tune.max_restarts", "100")
        own = ("--tune.study", name, "--checkpoint.every_seconds", "0.01")
        return self._learn("tune", name, *words, *finals, *own, *extra)

    def _learn(self, verb: str, name: str, *words: str) -> Command:
        data = ("--data.image_size", "8", "--checkpoint.store", f"runs-{name}", "--checkpoint.max_cost", "1")
        return self._command(verb, name, *data, *words)

    def evaluate(self, name: str) -> Command:
        """Score the champion on the test split."""
        return self._command("evaluate", name, "--threads", "1")

    def predict(self, name: str, *extra: str) -> Command:
        """Label the images by the champion, a few at a time."""
        output = ("--output", str(self.predictions(name)), "--predict.batch_size", "16", "--predict.workers", "1")
        return self._command("predict", name, "--input", str(self.images), *output, *extra)

    def prepare(self, name: str, *extra: str) -> Command:
        """Prepare a folder of images, one of which is none."""
        source = ("--data.source", "folder", "--data.root", str(self.images), "--data.name", "pictures", "--data.workers", "1")
        return self._command("prepare", name, *source, "--data.store", self.data(name), *extra)

    def _command(self, verb: str, name: str, *words: str) -> Command:
        params = ("--params", str(ROOT / "params" / "train.yaml"))
        return Command(verb, (*params, *words, "--tracking.uri", self.uri, "--tracking.experiment", name), self.home)

    # ---- what they work on and leave ---------------------------------------------------------------------------------

    @property
    def images(self) -> Path:
        """The folder that `make_images` fills."""
        return self.home / "pictures"

    def predictions(self, name: str) -> Path:
        """The file that `predict` writes."""
        return self.home / f"{name}.csv"

    def data(self, name: str) -> str:
        """The folder of the prepared sets of a preparation."""
        return str(self.home / f"data-{name}")

    def store(self, name: str) -> str:
        """The folder of the checkpoints of a job."""
        return str(self.home / f"runs-{name}")

    def left(self, name: str, *kinds: str) -> dict[str, Any]:
        """Return all that must be the same after any kills: runs of these kinds, and the newest checkpoints."""
        runs = {kind: ask(remains.of_run, self.uri, name, kind) for kind in kinds}
        for run in (run for found in runs.values() for run in found):
            run["files"].pop(_MEASURED, None)
        return {**runs, "state": ask(remains.of_state, self.store(name))}

    def prepared(self, name: str) -> dict[str, Any]:
        """Return the prepared sets of a job, by digest of every file."""
        return dict(ask(remains.of_prepared, self.data(name)))


def make_images(folder: Path, count: int) -> None:
    """Write small random pictures of three classes, and a file that is no picture."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class-{number % 3}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (12, 12), dtype=np.uint8)).save(path)
    (folder / "class-0" / "broken.png").write_text("no picture")
