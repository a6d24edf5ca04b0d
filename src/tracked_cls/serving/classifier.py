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

from ..data.decode import as_array, decode
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

    def probabilities(self, images: Sequence[Pixels]) -> npt.NDArray[np.float64]:
        """Return probabilities [B,K] (rows sum to 1) of decoded images uint8 [H,W,C], of any sizes."""
        return self.probabilities_of(np.stack([self.preprocess.geometry.apply(image) for image in images]))

    def probabilities_of(self, batch: Pixels) -> npt.NDArray[np.float64]:
        """Return probabilities [B,K] of images that have the model's size already, uint8 [B,S,S,C]."""
        (logits,) = self.session.run(None, {self.session.get_inputs()[0].name: self.preprocess.normalise(batch)})
        return softmax(logits)

    def classify(self, images: Iterable[bytes | Pixels]) -> npt.NDArray[np.float64]:
        """Return probabilities [B,K] of encoded (bytes) or decoded (array) images."""
        return self.probabilities([decode(image) if isinstance(image, bytes) else as_array(image) for image in images])


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
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
