"""The sections that the verbs share. Each option states its type, range, unit and meaning; ``--help`` shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from tracked_cls.config.tree import Section, option, unset_to_none
from tracked_cls.errors import UserError, lookup

TransformSpec = dict[str, dict[str, Any]]
AUGMENTATIONS = ("RandomAffine", "RandomCrop", "RandomErasing", "RandomHorizontalFlip", "RandomVerticalFlip")


class DataIdentity(Section):
    """Which data set is meant: enough to name its registered model."""

    source: Literal["digits", "folder", "idx", "torchvision"] = option(
        "digits", "where the images come from; digits (1,797 handwritten digits) needs no files and no network"
    )
    name: str | None = option(
        None,
        "the torchvision set, or the name the data go by; auto: the source, or the folder's name",
        unset="auto",
        pattern=r"^[A-Za-z0-9_.-]{1,100}$",
    )
    root: str | None = option(None, "folder that holds the images or IDX files", unset="none")

    @model_validator(mode="after")
    def _root_fits_source(self) -> DataIdentity:
        if self.source == "digits" and self.root is not None:
            raise UserError("data.root has no effect with data.source=digits; set data.source=folder to read images from it")
        if self.source in ("folder", "idx") and self.root is None:
            raise UserError(f"data.source={self.source} needs data.root, the folder that holds the files")
        if self.source == "torchvision" and self.name is None:
            raise UserError("data.source=torchvision needs data.name, the set to load: MNIST, FashionMNIST, CIFAR10, ...")
        return self

    @property
    def label(self) -> str:
        """The name the data go by: it names the prepared folder and the registered model."""
        if self.name is not None:
            return self.name
        if self.source == "folder" and self.root is not None:
            return re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(self.root).absolute().name).strip("-.") or "folder"
        return self.source

    @property
    def model_name(self) -> str:
        """The registered model that training on these data makes."""
        return f"{self.label}-classifier"


class DataConfig(DataIdentity):
    """How images become a prepared data set."""

    image_size: int | None = option(
        None, "side of the square input; auto: the usual side of the files, 32 below 24, at most 224", unit="pixels",
        unset="auto", ge=8, le=1024,
    )  # fmt: skip
    channels: Literal[1, 3] | None = option(None, "1 grey, 3 colour; auto: 1 if every image is grey", unset="auto")
    fit: Literal["crop", "pad", "stretch"] = option(
        "crop", "how an oblong image becomes square: cut the middle, pad with black, or distort"
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = option("bilinear", "resampling filter of the resize")
    val_fraction: float = option(0.1, "share of the training images held out, where no val split is given", gt=0, lt=1)
    test_fraction: float = option(0.2, "share of all images held out for the test, where no test split is given", gt=0, lt=1)
    split_seed: int = option(0, "seed of the split; apart from `seed`, so that every seed sees the same test images", ge=0)
    max_pixels: int = option(
        64_000_000, "an image with more pixels is rejected before it is decoded", unit="pixels", ge=1, le=89_478_485
    )
    store: str = option("data", "folder of the prepared sets; relative to the folder of the tracking store")
    workers: int | None = option(None, "processes that decode; auto: one per core", unset="auto", ge=1, le=256)
    download: bool = option(True, "torchvision sets: download what is not in data.root")

    @model_validator(mode="after")
    def _fractions_leave_something(self) -> DataConfig:
        if self.val_fraction + self.test_fraction >= 1:
            raise UserError(
                f"data.val_fraction + data.test_fraction must be below 1, got {self.val_fraction} + {self.test_fraction}"
            )
        return self


class TransformsConfig(Section):
    """Augmentation of the training images; evaluation always sees the plain image."""

    train: list[TransformSpec] = option(
        [], "list of {name: {argument: value}}, each drawn anew for every image",
        choices=AUGMENTATIONS,
    )  # fmt: skip

    @field_validator("train", mode="before")
    @classmethod
    def _bare_names(cls, value: Any) -> Any:
        """Accept ``RandomHorizontalFlip`` for ``{RandomHorizontalFlip: {}}``."""
        if not isinstance(value, list):
            return value
        specs = [{item: {}} if isinstance(item, str) else item for item in value]
        for spec in specs:
            if not isinstance(spec, Mapping) or len(spec) != 1:
                raise UserError(f"transforms.train: each entry is one name with its arguments, got {spec!r}")
            lookup(next(iter(spec)), dict.fromkeys(AUGMENTATIONS), "transform")
        return [{name: args or {} for name, args in spec.items()} for spec in specs]


class ModelConfig(Section):
    """The network."""

    choice: ClassVar[bool] = True
    name: str = option("mobilenetv3", "mobilenetv3, mobilenetv3_small, resnet18, small_cnn, or any torchvision classifier")
    stem: Literal["standard", "small"] | None = option(
        None, "first layers: standard, or small (stride 1, no pooling) for small images; auto: by image size", unset="auto"
    )
    dropout: float | None = option(None, "dropout before the head; auto: the architecture's own", unset="auto", ge=0, lt=1)
    bn_momentum: float = option(
        0.1, "BatchNorm momentum; torchvision's mobilenets ship 0.01, which leaves short trainings at chance", gt=0, le=1
    )


class LossConfig(Section):
    """What is minimised."""

    choice: ClassVar[bool] = True
    name: Literal["cross_entropy"] = option("cross_entropy", "the loss; its value is the mean over samples")
    smoothing: float = option(0.0, "label smoothing", ge=0, lt=1)


class _OwnOptions(Section):
    """A choice whose options belong to some of its names only: one set beside another name is an error.

    `own` maps each name to its options with their defaults.
    """

    choice: ClassVar[bool] = True
    own: ClassVar[dict[str, dict[str, Any]]] = {}
    title: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _resolve_own(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = {key: value for key, value in unset_to_none(cls, values).items() if value is not None}
        name = str(given.get("name", cls.model_fields["name"].default))
        own = lookup(name, cls.own, cls.title)
        for key in given:
            takers = [choice for choice, options in cls.own.items() if key in options]
            if takers and name not in takers:
                raise UserError(f"{cls.title}.{key} has no effect with {cls.title}={name}; it belongs to {', '.join(takers)}")
        return {**own, **given}

    def without_effect(self) -> set[str]:
        """Options that belong to other names only."""
        return {key for options in self.own.values() for key in options} - set(self.own[self.name])  # type: ignore[attr-defined]


class OptimizerConfig(_OwnOptions):
    """How weights move. Unset options take the optimizer's own default."""

    title: ClassVar[str] = "optimizer"
    own: ClassVar[dict[str, dict[str, Any]]] = {
        "sgd": {"lr": 0.05, "weight_decay": 5e-4, "momentum": 0.9, "nesterov": True},
        "adam": {"lr": 1e-3, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999},
        "adamw": {"lr": 2e-3, "weight_decay": 0.05, "beta1": 0.9, "beta2": 0.999},
    }
    name: str = option("adamw", "the optimizer", choices=list(own))
    lr: float | None = option(None, "peak learning rate; auto: sgd 0.05, adam 0.001, adamw 0.002", unset="auto", gt=0, le=100)
    weight_decay: float | None = option(
        None, "decay of weights, none on norms and biases; auto: sgd 0.0005, adam 0, adamw 0.05", unset="auto", ge=0, le=10
    )
    momentum: float | None = option(None, "sgd only; auto: 0.9", unset="auto", ge=0, lt=1)
    nesterov: bool | None = option(None, "sgd only; auto: true", unset="auto")
    beta1: float | None = option(None, "adam and adamw; auto: 0.9", unset="auto", ge=0, lt=1)
    beta2: float | None = option(None, "adam and adamw; auto: 0.999", unset="auto", ge=0, lt=1)

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimizerConfig:
        if self.nesterov and self.momentum == 0:
            raise UserError("optimizer.nesterov=true needs optimizer.momentum above 0")
        return self


class SchedulerConfig(_OwnOptions):
    """How the learning rate moves over the run. Unset options take the schedule's own default."""

    title: ClassVar[str] = "scheduler"
    own: ClassVar[dict[str, dict[str, Any]]] = {
        "constant": {"warmup_epochs": 0.0},
        "cosine": {"warmup_epochs": 0.0, "final_ratio": 0.0},
        "step": {"warmup_epochs": 0.0, "step_epochs": 10, "gamma": 0.1},
        "plateau": {"warmup_epochs": 0.0, "patience": 3, "gamma": 0.1},
        "onecycle": {"warmup_fraction": 0.3},
    }
    name: str = option("onecycle", "the schedule; steps after every batch, plateau after every epoch", choices=list(own))
    warmup_epochs: float | None = option(
        None, "linear warm-up in front of the schedule; auto: 0", unit="epochs", unset="auto", ge=0, le=1000
    )
    warmup_fraction: float | None = option(
        None, "onecycle: share of the run with rising lr; auto: 0.3", unset="auto", gt=0, lt=1
    )
    final_ratio: float | None = option(None, "cosine: last lr as a share of the peak; auto: 0", unset="auto", ge=0, lt=1)
    step_epochs: int | None = option(None, "step: epochs between two drops; auto: 10", unit="epochs", unset="auto", ge=1)
    gamma: float | None = option(None, "step, plateau: factor of each drop; auto: 0.1", unset="auto", gt=0, lt=1)
    patience: int | None = option(
        None, "plateau: epochs without a lower val_loss before a drop; auto: 3", unit="epochs", unset="auto", ge=0
    )


class TrainingConfig(Section):
    """The loop."""

    patience: int | None = option(
        None, "stop after this many epochs without a better val_accuracy; off: never", unit="epochs", unset="off", ge=1
    )
    min_delta: float = option(0.0, "with patience: an epoch counts as better only by more than this", ge=0, lt=1)
    bn_images: int | None = option(
        2048, "training images that BatchNorm statistics are taken from anew after each epoch; off: running averages",
        unit="images", unset="off", ge=2,
    )  # fmt: skip
    eval_batch_size: int = option(
        512, "batch of validation and test; changes numbers by rounding only", unit="images", ge=1, le=65536
    )

    @model_validator(mode="after")
    def _min_delta_needs_patience(self) -> TrainingConfig:
        if self.min_delta > 0 and self.patience is None:
            raise UserError(f"training.min_delta={self.min_delta:g} has no effect without training.patience")
        return self


class CheckpointConfig(Section):
    """Local state that a killed run continues from."""

    store: str = option("runs", "folder of checkpoints; relative to the folder of the tracking store")
    every_seconds: float = option(
        60.0, "least time between checkpoints inside an epoch; every epoch ends with one", unit="s", gt=0
    )


class TrackingConfig(Section):
    """Where MLflow keeps runs."""

    uri: str | None = option(
        None,
        "server or database; auto: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working folder",
        unset="auto",
    )
    experiment: str | None = option(None, "its name; auto: $MLFLOW_EXPERIMENT_NAME, else MLflow's Default", unset="auto")
    run_name: str | None = option(None, "name of the run; auto: verb, model and data", unset="auto")


class PromoteConfig(Section):
    """Registration of what was trained."""

    auto: Literal["first", "always", "never"] = option(
        "first", "register after train: only while there is no champion, always (champion if better), or never"
    )


class EvaluateSection(Section):
    """What is evaluated on what."""

    model: str | None = option(
        None,
        "runs:/<id>, models:/<name>/<version> or models:/<name>@<alias>; auto: the data's champion",
        unset="auto",
    )
    split: Literal["train", "val", "test"] = option("test", "the prepared split to score")
    batch_size: int = option(512, "images scored at a time; changes rounding only", unit="images", ge=1, le=65536)


class PredictSection(Section):
    """What is labelled by what."""

    input: str | None = option(None, "an image, or a folder searched recursively", unset="none")
    output: str | None = option(
        None, "CSV file to write; auto: predictions/<input>-<run>.csv beside the tracking store", unset="auto"
    )
    overwrite: bool = option(False, "replace an output that exists")
    model: str | None = option(
        None,
        "runs:/<id>, models:/<name>/<version> or models:/<name>@<alias>; auto: the data's champion",
        unset="auto",
    )
    batch_size: int = option(256, "images decoded and scored at a time", unit="images", ge=1, le=65536)
    workers: int | None = option(None, "threads that decode; auto: one per core", unset="auto", ge=1, le=256)
