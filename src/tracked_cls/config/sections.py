"""The sections that the verbs share. Each option states its type, range, unit and meaning; ``--help`` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from tracked_cls.config.tree import Section, option, unset_to_none
from tracked_cls.errors import UserError, lookup


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
    name: Literal["cross_entropy", "bce"] = option(
        "cross_entropy", "the loss, mean over samples; bce: binary cross entropy per class, which data.multi_label needs"
    )
    smoothing: float = option(0.0, "label smoothing", ge=0, lt=1)
    sample_weights: bool = option(False, "weigh each image by its weight in the data (column weight), scaled to a mean of 1")


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
    tta: Literal["none", "flip", "five_crop", "ten_crop"] = option(
        "none", "test-time augmentation, mean of logits: flip adds the mirror image; five_crop takes corners and middle of the "
        "image at 8/7 of the model's size; ten_crop mirrors those too",
    )  # fmt: skip


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
    tta: Literal["none", "flip", "five_crop", "ten_crop"] = option(
        "none", "test-time augmentation, mean of logits: flip adds the mirror image; five_crop takes corners and middle of the "
        "image at 8/7 of the model's size; ten_crop mirrors those too",
    )  # fmt: skip
    workers: int | None = option(None, "threads that decode; auto: one per core", unset="auto", ge=1, le=256)
