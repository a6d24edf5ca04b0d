"""Do all the ways to ask a model agree? The same test images by evaluate, predict, pyfunc, HTTP, ONNX and .pt2, in float32.

Trains a model in a folder of its own, evaluates it on its test split, exports it, and asks every way for the same files. An
image counts as different where its label is not that of evaluate, unless its two likeliest classes lie within 1e-4.

    python -m benchmarks.agreement --root FOLDER_OF_MNIST       10,000 test images as PNG files, some minutes
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import tracked_cls  # noqa: E402 - of this checkout
from tracked_cls.console import say  # noqa: E402
from tracked_cls.serving.classifier import Classifier  # noqa: E402

Table = npt.NDArray[np.float64]  # probabilities [N,K]
CLOSE = 1e-4
_BATCH = 100
_ANSWERS_AT = re.compile(r"answers at (http://\S+)")


@dataclass(frozen=True, eq=False)
class Asked:
    """A model that was trained and exported, and the test images it is asked about: N files, their labels int64 [N]."""

    options: dict[str, Any]
    run_id: str
    export: Path
    classifier: Classifier
    files: list[Path]
    labels: npt.NDArray[np.int64]

    @property
    def address(self) -> str:
        """The model's address in MLflow."""
        return f"runs:/{self.run_id}"

    @property
    def root(self) -> Path:
        """The folder that the files are in."""
        return Path(self.options["data"]["root"])

    def pixels(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the images as the model takes them, uint8 [B,S,S,C], in batches."""
        classifier = self.classifier
        for start in range(0, len(self.files), _BATCH):
            read = [classifier.read(path.read_bytes()) for path in self.files[start : start + _BATCH]]
            yield np.stack([classifier.preprocess.geometry.apply(image) for image in read])

    def in_order(self, rows: Mapping[str, list[float]]) -> Table:
        """Return the rows of a table by the file's path below the root."""
        return np.array([rows[path.relative_to(self.root).as_posix()] for path in self.files])


def train(root: Path, home: Path, **options: Any) -> Asked:
    """Train on a folder with ``train/`` and ``test/``, and export; return what is to be asked."""
    kept = {"data": {"source": "folder", "root": str(root), "name": "agreement"},
            "tracking": {"uri": f"sqlite:///{home / 'mlflow.db'}", "pictures": False}}  # fmt: skip
    done = tracked_cls.train(**options, **kept)
    assert not hasattr(done, "folds")
    folder = tracked_cls.export_model(
        model=f"runs:/{done.run_id}", output=str(home / "export"), tracking=kept["tracking"]
    ).folder
    manifest = done.prepared.manifest
    indices = manifest.indices("test")
    return Asked(
        options=kept,
        run_id=done.run_id,
        export=folder,
        classifier=Classifier.load(folder / "model.onnx", folder / "meta.json"),
        files=[root / manifest.paths[index] for index in indices],
        labels=np.asarray(manifest.labels)[indices],
    )


# ---- the ways --------------------------------------------------------------------------------------------------------


def by_evaluate(asked: Asked) -> Table:
    """The network itself, on the prepared pixels: what `evaluate` wrote."""
    import mlflow
    import pandas as pd

    done = tracked_cls.evaluate(model=asked.address, split="test", **asked.options)
    table = pd.read_parquet(
        mlflow.artifacts.download_artifacts(run_id=done.run_id, artifact_path="tables/test_predictions.parquet")
    )
    logits = table[[f"logit:{name}" for name in asked.classifier.classes]].to_numpy(np.float32)
    return asked.in_order(dict(zip(table["path"], asked.classifier.activate(logits).tolist(), strict=True)))


def by_predict(asked: Asked, engine: str = "onnx") -> Table:
    """The file that `predict` writes for the folder."""
    output = asked.export.parent / f"labels-{engine}.jsonl"
    tracked_cls.predict(
        input=str(asked.root / "test"),
        model=asked.address,
        output=str(output),
        probabilities=True,
        engine=engine,
        **asked.options,
    )
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    names = [f"p:{name}" for name in asked.classifier.classes]
    return asked.in_order({f"test/{row['image_id']}": [row[name] for name in names] for row in rows})


def by_pyfunc(asked: Asked) -> Table:
    """The model as MLflow loads it, given the bytes of the files."""
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model(f"{asked.address}/model")
    found = []
    for start in range(0, len(asked.files), _BATCH):
        images = [base64.b64encode(path.read_bytes()).decode() for path in asked.files[start : start + _BATCH]]
        found += model.predict(pd.DataFrame({"image": images}))["probabilities"].tolist()
    return _by_name(asked, found)


def by_http(asked: Asked) -> Table:
    """`serve`, started as the command that it is, and asked over loopback."""
    found = []
    with _served(asked) as url:
        for start in range(0, len(asked.files), _BATCH):
            images = [[base64.b64encode(path.read_bytes()).decode()] for path in asked.files[start : start + _BATCH]]
            body = json.dumps({"dataframe_split": {"columns": ["image"], "data": images}}).encode()
            request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=120) as answer:
                found += [row["probabilities"] for row in json.load(answer)["predictions"]]
    return _by_name(asked, found)


def by_onnx(asked: Asked) -> Table:
    """The exported ONNX file, without this project's code but for decoding."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(asked.export / "model.onnx"), providers=["CPUExecutionProvider"])
    normalise = asked.classifier.preprocess.normalise
    logits = [session.run(None, {"images": normalise(batch)})[0] for batch in asked.pixels()]
    return asked.classifier.activate(np.concatenate(logits))


def by_pt2(asked: Asked) -> Table:
    """The exported program of PyTorch: a file of our own, written a moment ago."""
    import torch

    network = torch.export.load(asked.export / "model.pt2").module()
    normalise = asked.classifier.preprocess.normalise
    with torch.no_grad():
        logits = [network(torch.from_numpy(normalise(batch))).numpy() for batch in asked.pixels()]
    return asked.classifier.activate(np.concatenate(logits))


def by_torch(asked: Asked) -> Table:
    """`predict` with the network itself in place of ONNX Runtime."""
    return by_predict(asked, "torch")


def by_api(asked: Asked) -> Table:
    """The model as a callable."""
    classifier = tracked_cls.load_classifier(asked.export)
    return _by_name(asked, [answer.probabilities for answer in classifier(asked.files)])


WAYS: dict[str, Callable[[Asked], Table]] = {
    "evaluate": by_evaluate,
    "predict": by_predict,
    "predict, engine=torch": by_torch,
    "pyfunc": by_pyfunc,
    "HTTP server": by_http,
    "ONNX file": by_onnx,
    ".pt2 file": by_pt2,
    "load_classifier": by_api,
}


def _by_name(asked: Asked, rows: list[dict[str, float]]) -> Table:
    return np.array([[row[name] for name in asked.classifier.classes] for row in rows])


@contextmanager
def _served(asked: Asked) -> Iterator[str]:
    words = ["--serve.model", asked.address, "--serve.port", "0", "--tracking.uri", asked.options["tracking"]["uri"]]
    command = [sys.executable, "-m", "pipelines.serve", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield next(match[1] for line in server.stdout if (match := _ANSWERS_AT.search(line)))
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=60)


# ---- the comparison --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How a way compares with `evaluate`: other labels (of clear cases), largest difference in probability, accuracy."""

    other_labels: int
    close_calls: int
    probability: float
    accuracy: float


def compare(found: Table, expected: Table, labels: npt.NDArray[np.int64]) -> Difference:
    """Compare probabilities [N,K] with those of `evaluate`."""
    best = np.sort(expected, axis=1)
    is_close = best[:, -1] - best[:, -2] <= CLOSE
    other = found.argmax(axis=1) != expected.argmax(axis=1)
    return Difference(
        other_labels=int((other & ~is_close).sum()),
        close_calls=int(is_close.sum()),
        probability=float(np.abs(found - expected).max()),
        accuracy=float((found.argmax(axis=1) == labels).mean()),
    )


def differences(asked: Asked) -> dict[str, Difference]:
    """Ask every way, and compare it with `evaluate`."""
    expected = by_evaluate(asked)
    return {name: compare(expected if name == "evaluate" else way(asked), expected, asked.labels) for name, way in WAYS.items()}


def main() -> None:
    """Train, ask every way, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of MNIST as pictures, with train/ and test/")
    parser.add_argument("--model", default="mobilenetv3_small")
    parser.add_argument("--limit", type=int, help="train on so many images (default: all)")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="agreement-") as home:
        os.chdir(home)
        training = {"max_steps": max(options.limit // 128, 1)} if options.limit else {}
        asked = train(options.root.absolute(), Path(home), model=options.model, epochs=1, batch_size=128, training=training)
        found = differences(asked)
    count = f"{len(asked.files):,} images of MNIST, {options.model}"
    say(f"| {count} | other labels | largest difference in probability | accuracy |")
    say("|---|---|---|---|")
    for name, one in found.items():
        say(f"| {name} | {one.other_labels} | {one.probability:.1e} | {one.accuracy:.4f} |")
    say(f"({found['evaluate'].close_calls} images whose two likeliest classes are within {CLOSE:g} are not compared)")


if __name__ == "__main__":
    main()
