"""Which engine a prediction takes."""

from __future__ import annotations

from tracked_cls.config.sections import PredictSection
from tracked_cls.prediction.engines import Checked, Engine, Onnx, name_of
from tracked_cls.serving.classifier import Classifier
from tracked_cls.serving.packaging import Bundle


def engine_of(options: PredictSection, bundle: Bundle, classifier: Classifier) -> Engine:
    """Return the engine that options ask for, on the model of a bundle."""
    if name_of(options) == "onnx":
        return Onnx(classifier)
    from tracked_cls.prediction.network import Torch  # seconds of imports, which ONNX Runtime does without

    return Checked(Torch.load(bundle, classifier.preprocess, with_features=options.embeddings), classifier)
