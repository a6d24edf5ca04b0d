"""The sections that the verbs share. Each option states its type, range, unit and meaning; ``--help`` shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from tracked_cls.config.tree import Section, option
from tracked_cls.errors import UserError


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
    accumulate: int = option(
        1,
        "batches per step: their gradients are averaged over all images, so a step sees batch_size times this many",
        ge=1,
        le=4096,
    )
    max_steps: int | None = option(
        None,
        "end after so many optimizer steps, inside an epoch if need be; off: after epochs",
        unit="steps",
        unset="off",
        ge=1,
    )
    precision: Literal["auto", "float32", "bf16", "fp16"] = option(
        "auto", "number format of the forward pass; fp16 with a loss scaler; auto: float32. Tried on one batch before use"
    )
    channels_last: bool = option(True, "memory layout of images and filters; on CPU 2-4 times faster for convolutions")
    compile: bool = option(False, "torch.compile the network: seconds to minutes of compilation first")
    clip_norm: float | None = option(None, "largest norm of all gradients together, clipped after backward", unset="off", gt=0)
    clip_value: float | None = option(None, "largest absolute value of a gradient's entry", unset="off", gt=0)
    ema: float | None = option(
        None, "decay per step of an exponential moving average of the weights, which is then validated and kept; "
        "warms up as (1 + step) / (10 + step)", unset="off", gt=0, lt=1,
    )  # fmt: skip
    average_best: int | None = option(
        None, "average the weights of so many best epochs in the end, and keep that where it validates no worse",
        unit="epochs", unset="off", ge=2, le=100,
    )  # fmt: skip
    on_nan: Literal["stop", "rollback"] = option(
        "stop",
        "when the loss is not finite: stop, or go back to the end of the last epoch and halve the lr (3 times at most)",
    )
    profile: bool = option(False, "log where the time of the first steps goes, as a picture and a table")
    eval_batch_size: int = option(
        512, "batch of validation and test; changes numbers by rounding only", unit="images", ge=1, le=65536
    )

    @model_validator(mode="after")
    def _one_clipping(self) -> TrainingConfig:
        if self.clip_norm is not None and self.clip_value is not None:
            raise UserError("training.clip_norm and training.clip_value do not go together; choose one")
        return self

    @model_validator(mode="after")
    def _min_delta_needs_patience(self) -> TrainingConfig:
        if self.min_delta > 0 and self.patience is None:
            raise UserError(f"training.min_delta={self.min_delta:g} has no effect without training.patience")
        return self


class CheckpointConfig(Section):
    """Local state that a killed run continues from."""

    store: str = option("runs", "folder of checkpoints; relative to the folder of the tracking store")
    keep: int = option(2, "how many of the newest checkpoints stay while the run goes on", ge=1, le=10_000)
    keep_best: int = option(1, "how many of the best epochs' checkpoints stay", ge=1, le=100)
    every_epochs: int | None = option(
        None, "also keep the checkpoint of every so-many-th epoch", unit="epochs", unset="off", ge=1
    )
    at_end: Literal["best", "keep", "none"] = option(
        "best",
        "what stays when the run has finished: the best epochs' and those of every_epochs, all that is there, or none (the "
        "model itself is in MLflow)",
    )
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
    journal: str = option("runs/journal", "folder of what MLflow has not got yet; relative to the folder of the tracking store")


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
    workers: int | None = option(None, "processes that decode; auto: one per core", unset="auto", ge=1, le=256)
    decode_seconds: float | None = option(
        10.0, "a file that takes more computing than this (or six times as long by the clock) gets no label; off: no limit",
        unit="s", unset="off", ge=0.1,
    )  # fmt: skip
    decode_memory_bytes: int | None = option(
        4_000_000_000, "a file that needs more memory than this gets no label; off: no limit", unit="bytes", unset="off",
        ge=100_000_000,
    )  # fmt: skip
