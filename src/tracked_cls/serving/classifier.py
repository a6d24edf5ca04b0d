"""A trained classifier on ONNX Runtime: no torch, no mlflow, no pickle.

This module travels with every registered model: it imports the standard library, numpy, ONNX Runtime and, relatively,
the modules that travel beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from ..data.decode import as_array, decode, decode_frames, frames_of
from ..data.preprocess import Preprocess
from ..errors import UserError

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Classifier:
    """Class names, preprocessing and network of one model."""

    classes: tuple[str, ...]
    preprocess: Preprocess
    session: onnxruntime.InferenceSession
    meta: dict[str, Any]

    @classmethod
    def load(cls, onnx: Path, meta_file: Path) -> Classifier:
        """Load from ``model.onnx`` and ``meta.json``.

        Raises `UserError` where one of the files is damaged.
        """
        meta = read_meta(meta_file)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise UserError(f"{onnx}: not a sound ONNX model: {str(error).splitlines()[0]}") from None
        return cls(tuple(meta["classes"]), Preprocess.from_dict(meta["preprocess"]), session, meta)

    @property
    def temperature(self) -> float:
        """What logits are divided by, so that the confidence is honest; fitted on validation images, 1 where it was not."""
        return float(self.meta.get("temperature", 1.0))

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of labels."""
        return bool(self.meta.get("multi_label", False))

    def read(self, image: bytes | Pixels) -> Pixels:
        """Return an encoded (bytes) or decoded (array) image as uint8 [H,W,C], a clip as [T,H,W,C] of the model's T."""
        frames = self.preprocess.frames
        if isinstance(image, bytes):
            return decode(image) if frames is None else decode_frames(image, frames)
        return as_array(image) if frames is None else frames_of([as_array(frame) for frame in image], frames)

    def probabilities(self, images: Sequence[Pixels]) -> npt.NDArray[np.float64]:
        """Return probabilities [B,K] of images as `read` gives them, of any sizes."""
        return self.probabilities_of(np.stack([self.preprocess.geometry.apply(image) for image in images]))

    def probabilities_of(self, batch: Pixels) -> npt.NDArray[np.float64]:
        """Return probabilities [B,K] of images that have the model's size already, uint8 [B,S,S,C] or [B,T,S,S,C]."""
        return self.activate(self.logits_of(batch))

    def logits_of(self, batch: Pixels) -> npt.NDArray[np.float32]:
        """Return logits [B,K] of images that have the model's size already."""
        (logits,) = self.session.run(None, {self.session.get_inputs()[0].name: self.preprocess.normalise(batch)})
        return np.asarray(logits, np.float32)

    def activate(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return calibrated probabilities [B,K]: rows sum to 1, or, with several labels, each class has its own."""
        tempered = logits.astype(np.float64) / self.temperature
        return sigmoid(tempered) if self.multi_label else softmax(tempered)

    def label(self, probabilities: npt.NDArray[np.float64]) -> str:
        """Return the name of the likeliest class for a row [K]; with several labels, all above one half, joined."""
        if not self.multi_label:
            return self.classes[int(probabilities.argmax())]
        chosen = [name for name, value in zip(self.classes, probabilities, strict=True) if value > 0.5]
        return str(self.meta["label_separator"]).join(chosen)

    def confidence(self, probabilities: npt.NDArray[np.float64]) -> float:
        """Return how sure the answer to a row [K] is, in [0, 1]: its probability.

        With several labels it is |2p - 1| of the least certain one: 0 where that might as well be drawn by lot.
        """
        return float(np.abs(2 * probabilities - 1).min() if self.multi_label else probabilities.max())

    def classify(self, images: Iterable[bytes | Pixels]) -> npt.NDArray[np.float64]:
        """Return probabilities [B,K] of encoded (bytes) or decoded (array) images."""
        return self.probabilities([self.read(image) for image in images])


def sigmoid(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return a probability for each logit, in double precision."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits.astype(np.float64))))


def softmax(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return probabilities [B,K] of logits [B,K], in double precision."""
    wide = logits.astype(np.float64)
    exponents = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))


def read_meta(path: Path) -> dict[str, Any]:
    """Read ``meta.json``; raises `UserError` where it is no such file."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable model description: {error}") from None
    missing = {"classes", "preprocess", "architecture", "weights_digest"} - set(meta)
    if missing:
        raise UserError(f"{path}: the model description lacks {', '.join(sorted(missing))}")
    return dict(meta)
