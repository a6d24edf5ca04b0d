"""Whether a model that was packed answers like the network that was evaluated, wherever it is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from torch import nn

from tracked_cls import evaluation
from tracked_cls.data.encode import to_png
from tracked_cls.data.loaders import Split, some
from tracked_cls.errors import UserError
from tracked_cls.redaction import redacted
from tracked_cls.serving.classifier import TOLERANCE, Classifier
from tracked_cls.serving.packaging import Bundle

_MAX_IMAGES, _MAX_BYTES = 64, 2_000_000
_MAX_SECONDS = 600
_APART = Path(__file__).parent / "serving" / "apart.py"  # run by its path: importing it would load MLflow here


@dataclass(frozen=True, eq=False)
class Golden:
    """What the evaluated network says: `images` are N encoded images, `probabilities` [N,K] its answers, by class `names`."""

    names: tuple[str, ...]
    images: tuple[bytes, ...]
    probabilities: npt.NDArray[np.float64]

    def save(self, path: Path) -> None:
        """Write what `load` and the process apart read."""
        ends = np.cumsum([len(image) for image in self.images])
        encoded = np.frombuffer(b"".join(self.images), np.uint8)
        with path.open("wb") as file:
            np.savez(file, names=np.array(self.names), bytes=encoded, ends=ends, probabilities=self.probabilities)

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Read the file of a model; raises `UserError` where it is no such file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                encoded, ends = file["bytes"].tobytes(), file["ends"].tolist()
                images = tuple(encoded[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True))
                return cls(tuple(file["names"].tolist()), images, np.asarray(file["probabilities"], np.float64))
        except FileNotFoundError:
            raise UserError(f"{path}: missing: the model cannot be checked before it is used; train it again") from None
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: cannot be read ({redacted(str(error))[:200]}); train the model again") from None


def keep_golden(network: nn.Module, bundle: Bundle, split: Split) -> None:
    """Write some images of a split beside a model, with what the network says of them on the way that evaluation takes."""
    bytes_of_one = max(split.prepared.sized(split.indices[:1]).nbytes, 1)
    sample = some(split, max(1, min(_MAX_IMAGES, _MAX_BYTES // bytes_of_one)))
    classifier = Classifier.load(bundle.onnx, bundle.meta)
    logits = evaluation.score(network, sample.eval_batches(_MAX_IMAGES)).logits
    images = tuple(to_png(image) for image in sample.prepared.sized(sample.indices))
    Golden(classifier.classes, images, classifier.activate(logits)).save(bundle.golden)


def of_export(bundle: Bundle) -> float:
    """Return the largest difference in probability between the evaluated network and its ONNX form, loaded here."""
    golden, classifier = Golden.load(bundle.golden), Classifier.load(bundle.onnx, bundle.meta)
    return _difference(classifier.classify(golden.images), golden)


def check(bundle: Bundle) -> float:
    """Load a logged model as anybody would, in a process of its own; return the largest difference in probability.

    Loaded in ours, its code could be mistaken for ours. Raises `UserError` where the model cannot be loaded there, or where it
    or its ONNX form answers otherwise than the evaluated network did, by more than 1e-4.
    """
    golden = Golden.load(bundle.golden)
    difference = max(of_export(bundle), _difference(answers(bundle), golden))
    require(difference)
    return difference


def require(difference: float) -> None:
    """Raise `UserError` for a difference that rounding does not explain."""
    if not difference <= TOLERANCE:
        raise UserError(
            f"the packed model differs from the evaluated one by {difference:.2g} in probability (at most {TOLERANCE:g} is "
            "allowed); it is not registered"
        )


def answers(bundle: Bundle) -> npt.NDArray[np.float64]:
    """Return the probabilities [N,K] of the golden images that the logged model gives in a process without our code."""
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "answers.npy"
        words = [sys.executable, "-PB", str(_APART), str(bundle.folder.parent), str(bundle.golden), str(out)]
        places = os.pathsep.join(path for path in sys.path if path and not (Path(path) / "tracked_cls").is_dir())
        environment = {**os.environ, "PYTHONPATH": places, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
        try:
            done = subprocess.run(  # noqa: S603 - words of our own
                words, env=environment, capture_output=True, text=True, errors="replace", timeout=_MAX_SECONDS, cwd=scratch
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"the logged model gives no answer within {_MAX_SECONDS} s in a process of its own") from None
        if done.returncode or not out.exists():
            last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            raise UserError(f"the logged model does not work in a process of its own: {redacted(last)[:300]}")
        return np.asarray(np.load(out, allow_pickle=False), np.float64)


def _difference(found: npt.NDArray[np.float64], golden: Golden) -> float:
    if found.shape != golden.probabilities.shape:
        raise UserError(
            f"the packed model gives {found.shape} probabilities for {golden.probabilities.shape} of the evaluated one"
        )
    return float(np.abs(found - golden.probabilities).max())
