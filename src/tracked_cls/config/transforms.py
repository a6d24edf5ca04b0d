"""Options of the transforms: lists of torchvision's names with their arguments, checked before anything is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import field_validator, model_validator

from tracked_cls.config.tree import Section, option
from tracked_cls.errors import UserError, lookup

TransformSpec = dict[str, dict[str, Any]]

# torchvision.transforms.v2 without what needs boxes, key points or a function; a test compares the two
TRANSFORM_NAMES = (
    "AugMix", "AutoAugment", "CenterCrop", "ColorJitter", "Compose", "ConvertImageDtype", "CutMix", "ElasticTransform",
    "FiveCrop", "GaussianBlur", "GaussianNoise", "Grayscale", "Identity", "JPEG", "LinearTransformation", "MixUp",
    "Normalize", "PILToTensor", "Pad", "RGB", "RandAugment", "RandomAdjustSharpness", "RandomAffine", "RandomApply",
    "RandomAutocontrast", "RandomChannelPermutation", "RandomChoice", "RandomCrop", "RandomEqualize", "RandomErasing",
    "RandomGrayscale", "RandomHorizontalFlip", "RandomInvert", "RandomOrder", "RandomPerspective",
    "RandomPhotometricDistort", "RandomPosterize", "RandomResize", "RandomResizedCrop", "RandomRotation",
    "RandomShortestSize", "RandomSolarize", "RandomVerticalFlip", "RandomZoomOut", "Resize", "ScaleJitter", "TenCrop",
    "ToDtype", "ToImage", "ToPILImage", "ToPureTensor", "ToTensor", "TrivialAugmentWide", "UniformTemporalSubsample",
)  # fmt: skip
MIXES = ("MixUp", "CutMix")
CROPS = ("FiveCrop", "TenCrop")


class PredictTransforms(Section):
    """Transforms of the pictures that ``predict`` reads."""

    predict: list[TransformSpec] = option(
        [], "list of {name: {argument: value}} applied to each picture before the model's own preprocessing",
        choices=TRANSFORM_NAMES,
    )  # fmt: skip

    @field_validator("predict", mode="before")
    @classmethod
    def _checked(cls, value: Any) -> Any:
        specs = _specs(value, "transforms.predict")
        _refuse(specs, (*MIXES, *CROPS), "transforms.predict", "predict.tta offers five_crop and ten_crop")
        return specs


class TransformsConfig(Section):
    """What is done to the images, by torchvision's names, or by a user's own (``my_pkg.my_module:MyTransform``)."""

    train: list[TransformSpec] = option(
        [], "augmentation: list of {name: {argument: value}}, each drawn anew for every image and epoch",
        choices=TRANSFORM_NAMES,
    )  # fmt: skip
    eval: list[TransformSpec] = option(
        [], "what validation and test images get beyond resizing and normalisation; such a model is not registered "
        "(ToTensor and Normalize travel with it and are no hindrance)",
        choices=TRANSFORM_NAMES,
    )  # fmt: skip
    normalize: Literal["auto", "data", "imagenet", "half", "none"] = option(
        "auto",
        "mean and std of the input: data (of the training images), imagenet, half (0.5 and 0.5: x*2-1), none (0 and 1); "
        "auto: those of model.weights where they are known, else data. A Normalize in the lists takes its place",
    )
    speed: Literal["auto", "batch", "sample"] = option(
        "auto", "batch: whole batches at once; sample: image by image in loader workers; auto: batch where every transform can"
    )

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _checked(cls, value: Any, info: Any) -> Any:
        return _specs(value, f"transforms.{info.field_name}")

    @model_validator(mode="after")
    def _in_their_places(self) -> TransformsConfig:
        _refuse(self.train, CROPS, "transforms.train", "it makes several images of one; put it into transforms.eval")
        _refuse(self.eval, MIXES, "transforms.eval", "it mixes labels; put it into transforms.train")
        names = [name for spec in self.train for name in spec]
        last = len(names) - sum(name in MIXES for name in names)
        if any(name in MIXES for name in names[:last]):
            raise UserError("transforms.train: MixUp and CutMix work on whole batches; put them at the end of the list")
        means = [(spec["Normalize"].get("mean"), spec["Normalize"].get("std")) for spec in (*self.train, *self.eval)
                 if "Normalize" in spec]  # fmt: skip
        if any(mean != means[0] for mean in means):
            raise UserError("transforms: Normalize has other values in train than in eval: the network would see two scales")
        if means and self.normalize != "auto":
            raise UserError(f"transforms.normalize={self.normalize} contradicts the Normalize in the list; keep one of them")
        return self

    @property
    def mixes(self) -> list[TransformSpec]:
        """MixUp and CutMix, which stand at the end of ``train``."""
        return [spec for spec in self.train if set(spec) & set(MIXES)]

    @property
    def own_normalisation(self) -> dict[str, Any] | None:
        """Arguments of the Normalize in the lists, if there is one."""
        return next((spec["Normalize"] for spec in (*self.train, *self.eval) if "Normalize" in spec), None)


def _specs(value: Any, key: str) -> Any:
    """Return a list of {name: arguments}, nested lists included; bare names get no arguments."""
    if not isinstance(value, list):
        return value
    specs = [{item: {}} if isinstance(item, str) else item for item in value]
    for spec in specs:
        if not isinstance(spec, Mapping) or len(spec) != 1:
            raise UserError(f"{key}: each entry is one name with its arguments, got {spec!r}")
        name, args = next(iter(spec.items()))
        if not isinstance(args or {}, Mapping):
            raise UserError(f"{key}: the arguments of {name} are a mapping {{argument: value}}, got {args!r}")
        if ":" not in str(name):
            lookup(str(name), dict.fromkeys(TRANSFORM_NAMES), "transform")
    return [{str(name): _arguments(dict(args or {}), key) for name, args in spec.items()} for spec in specs]


def _arguments(args: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: _specs(value, key) if name == "transforms" else value for name, value in args.items()}


def _refuse(specs: Sequence[TransformSpec], names: Sequence[str], key: str, why: str) -> None:
    for name in _all_names(specs):
        if name in names:
            raise UserError(f"{key}: {name} does not belong there: {why}")


def _all_names(specs: Sequence[TransformSpec]) -> Iterator[str]:
    for spec in specs:
        for name, args in spec.items():
            yield name
            yield from _all_names(args.get("transforms", []))
