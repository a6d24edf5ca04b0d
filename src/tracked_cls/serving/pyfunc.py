"""The classifier behind MLflow's pyfunc interface. This module travels with every registered model."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.exceptions import MlflowException

from ..data.decode import MAX_PIXELS, Pixels, RejectedImage
from ..errors import UserError
from .classifier import Classifier

COLUMN = "image"
COLUMNS = ("label", "probability", "probabilities", "unsure", "error")
_BATCH, _BATCH_VALUES = 64, 2_000_000  # images, and pixels times channels, that the network is given at once
_SHOWN, _SHOWN_LETTERS = 3, 40  # column names in an error, and letters of each: they are the caller's data
_NOTHING = "there is no image in this row; give base64 text, bytes or a uint8 array"


class ImageClassifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Takes a column ``image`` (encoded bytes, base64 text or uint8 array), gives one row per image, or its error."""

    def load_context(self, context: Any) -> None:
        """Load the network once per process."""
        self.classifier = Classifier.load(Path(context.artifacts["onnx"]), Path(context.artifacts["meta"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return label, probability, probabilities by class name, unsure and error of each image, as `table_of` does."""
        try:
            return table_of(self.classifier, model_input, Wanted.of(params or {}))
        except UserError as error:  # a scoring server shows the message of MLflow's own exceptions only
            raise MlflowException.invalid_parameter_value(str(error)) from None


@dataclass(frozen=True)
class Wanted:
    """What a caller wants of each answer: so many of the likeliest classes (0: all), and which confidence is too low."""

    top_k: int = 0
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, (int, np.integer)) or self.top_k < 0:
            raise UserError("top_k must be a whole number >= 0 (0: all classes)")
        is_number = isinstance(self.threshold, (int, float, np.floating)) and not isinstance(self.threshold, bool)
        if not is_number or not 0 <= self.threshold <= 1:
            raise UserError("threshold must be a number from 0 (off) to 1: answers less confident than that are unsure")

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Wanted:
        """Return what MLflow's params say; raises `UserError` naming parameter and range."""
        unknown = sorted(set(params) - {"top_k", "threshold"}, key=str)
        if unknown:
            raise UserError(f"unknown parameter {shown(unknown[0])}; known: threshold, top_k")
        return cls(**params)


def table_of(classifier: Classifier, model_input: pd.DataFrame, wanted: Wanted, **limits: Any) -> pd.DataFrame:
    """Return the `rows` of the column ``image`` as a table with the same index; raises `UserError` where there is none."""
    columns = list(model_input.columns)
    if columns.count(COLUMN) != 1:
        raise wrong_columns(columns)
    found = rows(classifier, model_input[COLUMN].tolist(), wanted, **limits)
    # of mixed types: a missing probability is None, which is null in JSON; NaN would be no JSON at all
    return pd.DataFrame(found, index=model_input.index, columns=list(COLUMNS), dtype=object)


def wrong_columns(columns: Sequence[Any]) -> UserError:
    """Return what to say of a table with other columns than ``image``."""
    named = ", ".join(map(shown, columns[:_SHOWN])) + (", ..." if len(columns) > _SHOWN else "")
    return UserError(f"one column {COLUMN!r} is expected, got {named or 'no column'}")


def shown(name: Any) -> str:
    """Return as much of a name that a caller gave as an error may show."""
    return repr(str(name)[:_SHOWN_LETTERS])


def rows(
    classifier: Classifier,
    cells: Sequence[Any],
    wanted: Wanted,
    max_pixels: int = MAX_PIXELS,
    before_each: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Return one row per cell: encoded bytes, base64 text, or an array.

    A cell that is no image the model can take has its reason in ``error`` (``"CODE: reason"``), no label, and is unsure; the
    others are answered as if it were not there. `before_each` is called before each image, and may raise to end it all.
    """
    shape = classifier.preprocess
    values = shape.geometry.image_size**2 * shape.geometry.channels * (shape.frames or 1)
    size = max(1, min(_BATCH, _BATCH_VALUES // values))
    found: list[dict[str, Any]] = []
    for start in range(0, len(cells), size):
        seen = []
        for cell in cells[start : start + size]:
            before_each()
            seen.append(_pixels(classifier, cell, max_pixels))
        found += _scored(classifier, seen, wanted)
    return found


def _pixels(classifier: Classifier, cell: Any, max_pixels: int) -> Pixels | RejectedImage:
    """Return a cell as uint8 [S,S,C] (clips [T,S,S,C]), or why it is none: of large images one is held at a time."""
    try:
        return classifier.preprocess.geometry.apply(classifier.read(_image(cell), max_pixels))
    except RejectedImage as rejected:
        return rejected


def _scored(classifier: Classifier, seen: Sequence[Pixels | RejectedImage], wanted: Wanted) -> list[dict[str, Any]]:
    good = [pixels for pixels in seen if not isinstance(pixels, RejectedImage)]
    table = iter(classifier.probabilities_of(np.stack(good)) if good else ())
    return [_failed(one) if isinstance(one, RejectedImage) else _row(classifier, next(table), wanted) for one in seen]


def _row(classifier: Classifier, probabilities: npt.NDArray[np.float64], wanted: Wanted) -> dict[str, Any]:
    if not np.isfinite(probabilities).all():
        return _failed(RejectedImage("E_MODEL", "the model's answer to this image is no number"))
    order = np.argsort(-probabilities, kind="stable")[: wanted.top_k or None]
    return {
        "label": classifier.label(probabilities),
        "probability": float(probabilities[order[0]]),
        "probabilities": {classifier.classes[index]: float(probabilities[index]) for index in order},
        "unsure": classifier.confidence(probabilities) < wanted.threshold,
        "error": None,
    }


def _failed(rejected: RejectedImage) -> dict[str, Any]:
    error = str(rejected).replace(" (data.max_pixels)", "")  # an option of `prepare`, which the caller has not
    return {"label": None, "probability": None, "probabilities": {}, "unsure": True, "error": error}


def _image(cell: Any) -> Any:
    """Return the bytes or array of one cell; text is base64, perhaps in lines."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        raise RejectedImage("E_EMPTY", _NOTHING)
    if isinstance(cell, str):
        try:
            return base64.b64decode("".join(cell.split()), validate=True)
        except (binascii.Error, ValueError):
            cure = "send what stands behind the comma" if cell.startswith("data:") else "encode the image file's bytes"
            raise RejectedImage("E_BASE64", f"the text is not base64; {cure}") from None
    return bytes(cell) if isinstance(cell, (bytes, bytearray, memoryview)) else cell
