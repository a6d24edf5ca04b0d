"""A trained classifier on ONNX Runtime: no torch, no mlflow, no pickle.

This module travels with every registered model: it imports the standard library, numpy, ONNX Runtime and, relatively,
the modules that travel beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from ..data.decode import MAX_PIXELS, as_array, as_clip, decode, decode_frames, frames_of
from ..data.preprocess import Preprocess
from ..errors import UserError

Pixels = npt.NDArray[np.uint8]
TOLERANCE = 1e-4  # in probability: what rounding explains between two ways to compute the same
_MOST_THREADS = 1024


@dataclass(frozen=True)
class Classifier:
    """Class names, preprocessing and network of one model."""

    classes: tuple[str, ...]
    preprocess: Preprocess
    session: onnxruntime.InferenceSession
    meta: dict[str, Any]

    @classmethod
    def load(cls, onnx: Path, meta_file: Path, threads: int | None = None) -> Classifier:
        """Load from ``model.onnx`` and ``meta.json``.

        `threads` compute one batch; None: one per core. A server of single images answers most of them with 1.
        Raises `UserError` where one of the files is damaged, or they do not fit each other.
        """
        options, meta = _options(threads), read_meta(meta_file)
        preprocess = _preprocess_of(meta_file, meta)
        try:
            session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise UserError(f"{onnx}: not a sound ONNX model: {str(error).splitlines()[0]}") from None
        _require_fit(onnx, session, preprocess, len(meta["classes"]))
        return cls(tuple(meta["classes"]), preprocess, session, meta)

    @property
    def temperature(self) -> float:
        """What logits are divided by, so that the confidence is honest; fitted on validation images, 1 where it was not."""
        return float(self.meta.get("temperature", 1.0))  # checked when it was read

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of labels."""
        return bool(self.meta.get("multi_label", False))

    def read(self, image: bytes | Pixels, max_pixels: int = MAX_PIXELS) -> Pixels:
        """Return an encoded (bytes) or decoded (array) image as uint8 [H,W,C], a clip as [T,H,W,C] of the model's T.

        Raises `RejectedImage`, and nothing else, whatever it is given.
        """
        frames = self.preprocess.frames
        if isinstance(image, bytes):
            return decode(image, max_pixels) if frames is None else decode_frames(image, frames, max_pixels)
        if isinstance(image, (list, tuple)) and frames is not None:
            return frames_of([as_array(frame) for frame in image], frames)
        return as_array(image) if frames is None else as_clip(image, frames)

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


def _options(threads: int | None) -> onnxruntime.SessionOptions:
    if threads is not None and (type(threads) is not int or not 1 <= threads <= _MOST_THREADS):
        raise UserError(f"threads must be a whole number from 1 to {_MOST_THREADS}, or None for one per core, got {threads!r}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0  # 0: one per core
    # idle threads that spin win a little on an idle machine, and take the cores from decoding on a busy one
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def sigmoid(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return a probability for each logit, in double precision."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits.astype(np.float64))))


def softmax(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return probabilities [B,K] of logits [B,K], in double precision."""
    wide = logits.astype(np.float64)
    exponents = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))


# ---- meta.json, which may be anybody's -------------------------------------------------------------------------------


def read_meta(path: Path) -> dict[str, Any]:
    """Read ``meta.json``; raises `UserError` where it is no such file, or its classes or temperature cannot be."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable model description: {error}") from None
    if not isinstance(meta, dict):
        raise UserError(f"{path}: not a model description: expected a mapping, got {type(meta).__name__}")
    missing = {"classes", "preprocess", "architecture", "weights_digest"} - set(meta)
    if missing:
        raise UserError(f"{path}: the model description lacks {', '.join(sorted(missing))}")
    try:
        temperature_of(meta)
        _require_labels(meta)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return meta


def temperature_of(meta: Mapping[str, Any]) -> float:
    """Return what a model's logits are divided by before they become probabilities; 1 for one that was never calibrated."""
    temperature = meta.get("temperature", 1.0)
    if type(temperature) not in (int, float) or not 0 < temperature <= sys.float_info.max:
        raise UserError(f"temperature must be a number above 0, got {temperature!r:.60}; train again")
    return float(temperature)


def _require_labels(meta: Mapping[str, Any]) -> None:
    """Raise `UserError` where the names of the classes, or what stands between several of them, cannot be."""
    names = meta["classes"]
    are_names = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    if not are_names or len(set(names)) < len(names):
        raise UserError(f"classes must be a list of names, each once, got {names!r:.100}; train again")
    if meta.get("multi_label") and not isinstance(meta.get("label_separator"), str):
        raise UserError(f"label_separator must be text, got {meta.get('label_separator')!r:.60}; train again")


def _preprocess_of(path: Path, meta: Mapping[str, Any]) -> Preprocess:
    try:
        return Preprocess.from_dict(meta["preprocess"])
    except (UserError, TypeError, ArithmeticError) as error:  # no mapping at all; a size that is infinite
        raise UserError(f"{path}: {error}") from None


def _require_fit(onnx: Path, session: onnxruntime.InferenceSession, preprocess: Preprocess, num_classes: int) -> None:
    """Raise `UserError` where the network takes other images, or gives another number of logits, than is described."""
    geometry, frames = preprocess.geometry, preprocess.frames
    clip = () if frames is None else (frames,)
    described = [("images", session.get_inputs(), (*clip, geometry.channels, geometry.image_size, geometry.image_size))]
    described += [("logits", session.get_outputs(), (num_classes,))]
    for what, sockets, wanted in described:
        found = [tuple(socket.shape[1:]) for socket in sockets]  # the batch has any size
        if len(found) != 1 or not _is_like(found[0], wanted):
            shown = ", ".join(map(str, found)) or "none"
            raise UserError(f"{onnx}: its {what} are {shown}, and {wanted} in meta.json; export or train the model again")


def _is_like(found: tuple[Any, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a network's sizes are these; one that it does not fix may be any."""
    sizes = zip(found, wanted, strict=False)
    return len(found) == len(wanted) and all(size == given for size, given in sizes if isinstance(size, int))
