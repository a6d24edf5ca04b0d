"""The classifier behind MLflow's pyfunc interface. This module travels with every registered model."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd

from ..errors import UserError
from .classifier import Classifier

COLUMN = "image"


class ImageClassifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Takes a column ``image`` (encoded bytes, base64 text or uint8 array), gives label and probabilities."""

    def load_context(self, context: Any) -> None:
        """Load the network once per process."""
        self.classifier = Classifier.load(Path(context.artifacts["onnx"]), Path(context.artifacts["meta"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return one row per image: label, probability, and probabilities by class name, the `top_k` highest first."""
        if COLUMN not in model_input:
            raise UserError(f"expected a column {COLUMN!r}, got {', '.join(map(str, model_input.columns))}")
        table = self.classifier.classify([_image(cell) for cell in model_input[COLUMN]])
        top_k = min(int((params or {}).get("top_k", 0)) or table.shape[1], table.shape[1])
        return pd.DataFrame([self._row(row, top_k) for row in table], index=model_input.index)

    def _row(self, row: Any, top_k: int) -> dict[str, Any]:
        order = np.argsort(-row, kind="stable")[:top_k]
        names = self.classifier.classes
        return {
            "label": self.classifier.label(row),
            "probability": float(row[order[0]]),
            "probabilities": {names[index]: float(row[index]) for index in order},
        }


def _image(cell: Any) -> Any:
    """Return the bytes or array of one cell; text is base64."""
    if isinstance(cell, str):
        try:
            return base64.b64decode(cell, validate=True)
        except (binascii.Error, ValueError):
            raise UserError(f"column {COLUMN!r} holds text that is not base64: {cell[:32]!r}") from None
    return bytes(cell) if isinstance(cell, (bytes, bytearray, memoryview)) else cell
