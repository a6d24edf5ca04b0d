"""What computes: ONNX Runtime, which needs no PyTorch, or the network itself, which also gives its features."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tracked_cls.config.sections import PredictSection
from tracked_cls.data.decode import Pixels
from tracked_cls.errors import UserError
from tracked_cls.serving.classifier import TOLERANCE, Classifier


class Scored(NamedTuple):
    """Logits float32 [B,K], the mean over the views, and what the layer before the last answers, float32 [B,D], or None."""

    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32] | None = None


class Engine(Protocol):
    """Scores views of images, uint8 [B,V,S,S,C] (clips [B,V,T,S,S,C])."""

    def __call__(self, seen: Pixels) -> Scored:
        """Return what the network says."""
        ...


def name_of(options: PredictSection) -> str:
    """Return the engine that options ask for: ``onnx`` or ``torch``."""
    if options.engine == "auto":
        return "torch" if options.embeddings else "onnx"
    return options.engine


def side_seen(tta: str, size: int) -> int:
    """Return the side of the images that views are cut from, for a model whose input has side `size`."""
    if tta == "none":
        return size
    from tracked_cls.transforms.views import resolution  # whose package imports torch

    return resolution(tta, size)


def seen_by(classifier: Classifier, batch: Pixels, tta: str) -> Pixels:
    """Return the views [B,V,S,S,C] of images that are large enough for them."""
    if tta == "none":
        return batch[:, None]
    from tracked_cls.transforms.views import views  # whose package imports torch

    return views(batch, classifier.preprocess.geometry.image_size, tta)


class Onnx:
    """The model as it is served."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    def __call__(self, seen: Pixels) -> Scored:
        """Return what the network says."""
        logits = self._classifier.logits_of(seen.reshape(-1, *seen.shape[2:]))
        return Scored(logits.reshape(*seen.shape[:2], -1).mean(axis=1))


class Checked:
    """An engine whose first batch is scored by ONNX Runtime too."""

    def __init__(self, engine: Engine, classifier: Classifier) -> None:
        self._engine = engine
        self._classifier = classifier
        self.difference: float | None = None

    def __call__(self, seen: Pixels) -> Scored:
        """Return what the engine says; raises `UserError` where its first probabilities are others than the served model's."""
        scored = self._engine(seen)
        if self.difference is None:
            served = Onnx(self._classifier)(seen).logits
            ours, theirs = self._classifier.activate(scored.logits), self._classifier.activate(served)
            self.difference = float(np.abs(ours - theirs).max())
            _require(self.difference)
        return scored


def _require(difference: float) -> None:
    if not difference <= TOLERANCE:
        raise UserError(
            f"predict.engine=torch: it differs from the served model by {difference:.2g} in probability (at most "
            f"{TOLERANCE:g} is allowed); use predict.engine=onnx, and train the model again"
        )
