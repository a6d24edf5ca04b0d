"""What a program or a notebook calls: each verb as a function, and a trained model as a callable.

    import tracked_cls

    done = tracked_cls.train(model="mobilenetv3", epochs=12, optimizer={"lr": 1e-3})
    clf = tracked_cls.load_classifier("models:/digits-classifier@champion")
    clf("picture.png").label

Options are those of the commands (``python -m pipelines.train --help``), as keywords: ``epochs=3``; a section's as a mapping,
``optimizer={"name": "sgd", "lr": 0.1}``, or by their dotted names, ``**{"optimizer.lr": 0.1}``. `params` names a file of
``params/`` below them; without one the built-in defaults hold. Mistakes raise `errors.UserError`, whose text names the option,
the rule and the value. What is written goes where the commands would write it: to the MLflow store of ``tracking.uri``, by
default ``sqlite:///mlflow.db`` in the working folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from tracked_cls.config import (
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    PrepareConfig,
    PromoteConfig,
    TrackingConfig,
    TrainConfig,
    TuneConfig,
    resolve,
    tracking_uri,
)
from tracked_cls.data.decode import Pixels, RejectedImage, even_indices, frames_of, pixels_of
from tracked_cls.data.ingest import Rejection
from tracked_cls.data.reading import read
from tracked_cls.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from tracked_cls.assessment import Evaluation
    from tracked_cls.experiment import Outcome
    from tracked_cls.export import Exported
    from tracked_cls.folds import FoldsOutcome
    from tracked_cls.prediction import Predictions
    from tracked_cls.preparation import Preparation
    from tracked_cls.promotion import Decision
    from tracked_cls.serving.classifier import Classifier
    from tracked_cls.serving.packaging import Bundle
    from tracked_cls.tuning.results import Found

    Encoded: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
    ImageLike: TypeAlias = Encoded | npt.NDArray[np.uint8] | Image.Image

_AT_ONCE = 64  # images that are decoded and scored together
_FORMS = "an image is a path, bytes, an open file, a Pillow image or a uint8 array"

# ---- the verbs -------------------------------------------------------------------------------------------------------


def prepare(*, params: str | None = None, **options: Any) -> Preparation:
    """Check, decode and store the data once; what is prepared already is found again."""
    cfg = resolve(PrepareConfig, options, params)
    from tracked_cls import delivery, preparation

    with delivery.open_tracker(cfg.tracking) as tracker:
        return preparation.run(cfg, tracker)


def train(*, params: str | None = None, **options: Any) -> Outcome | FoldsOutcome:
    """Train, test, log and register a model (with ``folds=K`` K of them, validated across); an interrupted one is continued."""
    cfg = resolve(TrainConfig, options, params)
    _refuse_what_commands_do(cfg)
    from tracked_cls import delivery, experiment, folds

    with delivery.open_tracker(cfg.tracking) as tracker:
        return experiment.run(cfg, tracker) if cfg.folds is None else folds.run(cfg, tracker)


def tune(*, params: str | None = None, **options: Any) -> Found:
    """Search the space ``tune={"space": ...}``, train the best trials on fresh seeds, and register the winner."""
    cfg = resolve(TuneConfig, options, params)
    _refuse_what_commands_do(cfg)
    from tracked_cls import delivery
    from tracked_cls.tuning import campaign, space

    space.corners(cfg)
    with delivery.open_tracker(cfg.tracking, must_answer=True) as tracker:
        return campaign.run(cfg, tracker)


def evaluate(*, params: str | None = None, **options: Any) -> Evaluation:
    """Score a model, by default the champion, on a split: ``model="runs:/..."``, ``split="val"``."""
    cfg = resolve(EvaluateConfig, options, params)
    from tracked_cls import assessment, delivery

    with delivery.open_tracker(cfg.tracking, must_answer=True) as tracker:
        return assessment.run(cfg, tracker)


def promote(*, params: str | None = None, **options: Any) -> Decision:
    """Compare a version with the champion on the same images, and let it take its place if it is better."""
    cfg = resolve(PromoteConfig, options, params)
    from tracked_cls import delivery, promotion

    with delivery.open_tracker(cfg.tracking, must_answer=True) as tracker:
        return promotion.run(cfg, tracker)


def predict(*, params: str | None = None, **options: Any) -> Predictions:
    """Write the labels of many images to a file: ``input="some/folder"``, ``output="labels.csv"``."""
    cfg = resolve(PredictConfig, options, params)
    from tracked_cls import delivery, prediction

    with delivery.open_tracker(cfg.tracking, must_answer=True) as tracker:
        return prediction.run(cfg, tracker)


def export_model(*, params: str | None = None, **options: Any) -> Exported:
    """Write a model to a folder as ONNX, .pt2 and safetensors, each checked against it."""
    cfg = resolve(ExportConfig, options, params)
    from tracked_cls import delivery, export

    with delivery.open_tracker(cfg.tracking, must_answer=True) as tracker:
        return export.run(cfg, tracker)


def _refuse_what_commands_do(cfg: TrainConfig) -> None:
    """Raise `UserError` for options that say how a command begins, which would have no effect here."""
    given = {"nproc": cfg.nproc if cfg.nproc > 1 else None, "from_run": cfg.from_run}
    for key, value in given.items():
        if value is not None:
            raise UserError(f"{key} belongs to the command: python -m pipelines.{cfg.verb} --{key} {value}")


# ---- a model to call -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a model says of one image.

    `probability` is that of `label` in [0, 1], calibrated; `probabilities` holds one for each class, the highest first.
    `confidence` in [0, 1] says how sure the answer is: the same, or with several labels |2p - 1| of the least certain one.
    """

    label: str
    probability: float
    confidence: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class ImageClassifier:
    """A trained model: call it with an image, or with several. `model` is its exact address, or its folder."""

    model: str
    classifier: Classifier

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the network's outputs."""
        return self.classifier.classes

    @property
    def run_id(self) -> str:
        """The run that trained it; empty where the description does not say."""
        return str(self.classifier.meta.get("run_id", ""))

    @property
    def data_digest(self) -> str:
        """The digest of the data that it learned from; empty where the description does not say."""
        return str(self.classifier.meta.get("data", {}).get("digest", ""))

    @overload
    def __call__(self, image: ImageLike) -> Answer: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, image: Iterable[ImageLike]) -> list[Answer]: ...

    def __call__(self, image: ImageLike | Iterable[ImageLike]) -> Answer | list[Answer]:
        """Return what the model says of an image: a path, bytes, an open file, a Pillow image, or uint8 [H,W] or [H,W,C].

        Of a list, or anything else that gives images one after the other, each is answered in turn. Whatever the image's size,
        it is prepared as the training images were. A model of clips takes a folder of frames, an animated image, or uint8
        [T,H,W,C]. Raises `errors.UserError`, with code and reason, where one is no image; where many may be none, `predict`
        lists them and goes on.
        """
        if _is_one(image, 3 if self.classifier.preprocess.frames is None else 4):
            return self._answers([image], 0, is_alone=True)[0]
        images, found = _several(image), list[Answer]()
        while batch := list(islice(images, _AT_ONCE)):
            found += self._answers(batch, len(found))
        return found

    def _answers(self, images: list[Any], first: int, *, is_alone: bool = False) -> list[Answer]:
        preprocess = self.classifier.preprocess
        sized = []
        for number, image in enumerate(images, first):
            try:
                sized.append(preprocess.geometry.apply(_pixels(image, preprocess.frames)))
            except RejectedImage as error:
                raise RejectedImage(error.code, f"{_named(image, None if is_alone else number)}{error.reason}") from None
        return [self._answer(row) for row in self.classifier.probabilities_of(np.stack(sized))]

    def _answer(self, row: npt.NDArray[np.float64]) -> Answer:
        order = np.argsort(-row, kind="stable")
        return Answer(
            label=self.classifier.label(row),
            probability=float(row.max()),
            confidence=self.classifier.confidence(row),
            probabilities={self.classes[index]: float(row[index]) for index in order},
        )


def load_classifier(
    model: str | os.PathLike[str], *, tracking_uri: str | None = None, threads: int | None = None
) -> ImageClassifier:
    """Return a trained model, on ONNX Runtime and without torch, its files verified by their digests.

    `model`: ``models:/<name>@<alias>``, ``models:/<name>/<version>``, ``runs:/<id>``, or a folder that `export_model` wrote,
    which needs no MLflow store. `tracking_uri`: where to look, by default where the commands do. `threads` compute; None: one
    per core. Raises `errors.UserError` where there is no such model, or it is not what was logged.
    """
    from tracked_cls.serving.classifier import Classifier

    bundle, exact = _found(model, TrackingConfig(uri=tracking_uri))
    return ImageClassifier(exact, Classifier.load(bundle.onnx, bundle.meta, threads))


def _found(model: object, cfg: TrackingConfig) -> tuple[Bundle, str]:
    if not isinstance(model, str | os.PathLike) or not str(model):
        raise UserError(f"a model is an address (models:/<name>@<alias>, runs:/<id>) or a folder of export, got {model!r}")
    from tracked_cls.serving.packaging import exported_bundle

    address = model if isinstance(model, str) else str(Path(model).absolute())  # a path is never an address
    exported = exported_bundle(address, cfg, "model")
    if exported is not None:
        return exported, str(exported.folder)
    uri = tracking_uri(cfg)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"tracking_uri: there is no store at {uri}, so no model {address}")
    from tracked_cls import registry, tracking

    with tracking.open_tracker(cfg, must_answer=True) as tracker:
        return registry.resolve(tracker.client, address)


# ---- images in all their forms ---------------------------------------------------------------------------------------


def _is_one(image: object, dimensions: int) -> bool:
    """Whether what was given is one image: an array of more dimensions than an image has is a batch."""
    if isinstance(image, np.ndarray):
        return image.ndim <= dimensions
    return isinstance(image, str | os.PathLike | bytes | bytearray | memoryview) or _is_pillow(image) or hasattr(image, "read")


def _is_pillow(image: object) -> bool:
    return hasattr(image, "getbands")


def _several(images: Any) -> Iterator[Any]:
    try:
        return iter(images)
    except TypeError:
        raise RejectedImage("E_TYPE", f"{_FORMS}, got {type(images).__name__}") from None


def _named(image: object, number: int | None) -> str:
    """Return how a message begins that speaks of an image: its place among several, counted from 0, and its path."""
    path = [repr(os.fspath(image))] if isinstance(image, str | os.PathLike) else []
    return "".join(f"{part}: " for part in [*([] if number is None else [f"image {number}"]), *path])


def _pixels(image: Any, frames: int | None) -> Pixels:
    """Return an image as uint8 [H,W,C], a clip as [T,H,W,C]; raises `RejectedImage`, and nothing else."""
    if _is_pillow(image):
        return _of_pillow(image, frames)
    if isinstance(image, str | os.PathLike):
        payload: Any = os.fspath(image)
    else:
        payload = image.read() if hasattr(image, "read") else image
    if isinstance(payload, bytearray | memoryview):
        payload = bytes(payload)
    if not isinstance(payload, str | bytes | np.ndarray):
        raise RejectedImage("E_TYPE", f"{_FORMS}, got {type(payload).__name__}")
    if isinstance(payload, str) and "\0" in payload:
        raise RejectedImage("E_NAME", "a path holds no NUL")
    (found,) = read([payload], frames, None, digests=False)
    if isinstance(found, Rejection):
        raise RejectedImage(found.code, found.reason)
    return found.pixels


def _of_pillow(image: Any, frames: int | None) -> Pixels:
    """Return an opened Pillow image as `decode` would return its file."""
    try:
        if frames is None:
            return pixels_of(image)
        place, count = image.tell(), getattr(image, "n_frames", 1)
        found = []
        for index in sorted(set(even_indices(count, frames))):
            image.seek(index)
            found.append(pixels_of(image))
        image.seek(place)
        return frames_of(found, frames)
    except RejectedImage:
        raise
    except Exception as error:  # Pillow raises whatever its parsers meet, as late as here
        raise RejectedImage("E_CORRUPT", f"the Pillow image cannot be read: {error}") from None
