"""The sections that the verbs share. Each option states its type, range, unit and meaning; ``--help`` shows them."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import field_validator, model_validator

from tracked_cls.config.tree import Section, option
from tracked_cls.errors import UserError, lookup

EXPORT_FORMATS = ("onnx", "pt2", "safetensors")
_MOST_RUNS = 26  # in one report, each with a letter


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
        "auto",
        "number format of the forward pass; fp16 with a loss scaler; auto: bf16 for networks without depthwise convolutions "
        "on CPUs that multiply it (AVX512-BF16), where it is 1.1 to 2.1 times faster, else float32; tried on 64 images first",
    )
    channels_last: bool = option(True, "memory layout of images and filters; on CPU 2-4 times faster for convolutions")
    sync_batchnorm: bool = option(
        False, "with several processes: BatchNorm over the images of all of them, not of each alone; costs time in every step"
    )
    compile: bool | None = option(
        False,
        "torch.compile the network: seconds to minutes of compilation first; auto: where that pays, on CPU for networks with "
        "depthwise convolutions that are shown 1,200,000 images or more, where there is a C++ compiler",
        unset="auto",
    )
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
    every_seconds: float = option(60.0, "least time between checkpoints inside an epoch", unit="s", gt=0)
    max_cost: float = option(
        0.005,
        "share of the time that saving at the ends of epochs may take: shorter epochs are saved less often (1: each is saved; "
        "so too with training.on_nan=rollback)",
        gt=0,
        le=1,
    )


class DistributedConfig(Section):
    """Several processes that train together."""

    timeout_seconds: float = option(
        60.0,
        "how long a process waits for the others, at the start and in a step, before it gives up",
        unit="s",
        ge=1,
        le=86400,
    )
    restarts: int = option(
        2, "with nproc: how often all are started again, from the newest checkpoint, after one of them was killed", ge=0, le=100
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
    system_metrics_seconds: float | None = option(
        None, "log CPU, memory, disk, network and (with nvidia-ml-py) GPU of the machine every so often", unit="s", unset="off",
        ge=1, le=3600,
    )  # fmt: skip
    pictures: bool = option(
        True, "draw what a run has to show: network, augmentation, curves, galleries, heat maps; some seconds"
    )
    journal: str = option("runs/journal", "folder of what MLflow has not got yet; relative to the folder of the tracking store")


class GateSection(Section):
    """The rules by which a challenger takes the champion's place, both scored on the same images."""

    alpha: float = option(
        0.05, "two-sided level of the exact McNemar test: of equally good challengers at most half of this share is promoted",
        gt=0, lt=1,
    )  # fmt: skip
    min_gain: float = option(0.0, "least gain in accuracy, beside being significant", ge=0, lt=1)
    class_alpha: float | None = option(
        0.05, "level, corrected for the number of classes, at which a class that got worse stops a promotion", unset="off",
        gt=0, lt=1,
    )  # fmt: skip
    max_latency_ratio: float | None = option(
        None, "a challenger that takes longer for one image than so many times the champion is not promoted; measured, so it "
        "needs a quiet machine", unset="off", gt=0,
    )  # fmt: skip
    max_size_ratio: float | None = option(
        None, "a challenger whose weights take more bytes than so many times the champion's is not promoted", unset="off", gt=0
    )
    max_ece_increase: float | None = option(
        None, "a challenger whose expected calibration error is higher by more than this is not promoted", unset="off", ge=0,
        lt=1,
    )  # fmt: skip
    other_data: Literal["refuse", "compare"] = option(
        "refuse", "where a model was tested on other images than those of the data now, it may have been trained on some of "
        "these: keep the champion, or compare all the same",
    )  # fmt: skip

    @property
    def rules(self) -> GateSection:
        """The rules alone."""
        return GateSection(**{name: getattr(self, name) for name in GateSection.model_fields})


class PromoteSection(GateSection):
    """Registration of what was trained."""

    auto: Literal["first", "always", "never"] = option(
        "first", "register after train: only while there is no champion, always (champion if better), or never"
    )


class ContestSection(GateSection):
    """Who is compared with the champion, and on what."""

    model: str | None = option(
        None,
        "the challenger: models:/<name>/<version>, models:/<name>@<alias>, or runs:/<id> of a registered model; auto: the "
        "data's challenger",
        unset="auto",
    )
    rollback: bool = option(False, "give the champion's place back to the version that it took it from; nothing is compared")
    split: Literal["val", "test"] = option("test", "the prepared split that both are scored on")
    batch_size: int = option(512, "images scored at a time; changes rounding only", unit="images", ge=1, le=65536)


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
    slices: list[str] = option(
        ["auto"],
        "columns to show the accuracy by: label, group, folder, weight (in quarters); auto: of group and folder those of 2 to "
        "50 values that tell more than the label",
    )

    @field_validator("slices")
    @classmethod
    def _known_columns(cls, value: list[str]) -> list[str]:
        for name in value:
            lookup(name, dict.fromkeys(("auto", "label", "group", "folder", "weight")), "column in evaluate.slices")
        return value


class PredictSection(Section):
    """What is labelled by what."""

    input: str | None = option(
        None,
        "an image, a folder (searched recursively), a pattern (shots/**/*.jpg), a list (.txt, one path a line), a table (.csv, "
        ".tsv), an archive (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz) or IDX images (*-ubyte, *-ubyte.gz)",
        unset="none",
    )
    column: str | None = option(
        None, "column of a table that holds the paths; auto: path, image, image_id, file or filename, or the only one",
        unset="auto",
    )  # fmt: skip
    output: str | None = option(
        None, "file to write, .csv, .jsonl or .parquet; auto: predictions/<input>-<run>.csv beside the tracking store",
        unset="auto",
    )  # fmt: skip
    overwrite: bool = option(False, "replace an output that exists")
    model: str | None = option(
        None,
        "runs:/<id>, models:/<name>/<version>, models:/<name>@<alias>, or a folder of export; auto: the data's champion",
        unset="auto",
    )
    engine: Literal["auto", "onnx", "torch"] = option(
        "auto", "what computes: ONNX Runtime, or PyTorch (then the first batch is checked against ONNX Runtime); auto: onnx"
    )
    top_k: int = option(1, "likeliest classes to write: label_2, probability_2 and so on", ge=1, le=1000)
    probabilities: bool = option(False, "also write the probability of every class, a column p:<class> each")
    digest: bool = option(True, "also write the SHA-256 of each image's file")
    embeddings: bool = option(
        False, "also write what the layer before the last answers, <output>.embeddings.npy, float32, a row for each row of the "
        "output; by PyTorch",
    )  # fmt: skip
    batch_size: int = option(256, "images decoded and scored at a time", unit="images", ge=1, le=65536)
    tta: Literal["none", "flip", "five_crop", "ten_crop"] = option(
        "none", "test-time augmentation, mean of logits: flip adds the mirror image; five_crop takes corners and middle of the "
        "image at 8/7 of the model's size; ten_crop mirrors those too",
    )  # fmt: skip
    unsure_below: float = option(
        0.5, "mark an answer as unsure whose calibrated probability is lower (of two classes the likelier is never below 0.5: "
        "give 0.8, say); with several labels, whose least certain one has a lower |2p - 1|", ge=0, le=1,
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
    archive_members: int = option(10_000_000, "an archive with more members than this is refused", ge=1)
    archive_bytes: int = option(
        100_000_000_000, "an archive whose members are larger than this together is refused", unit="bytes", ge=1
    )


class ExportSection(Section):
    """Which model leaves MLflow, in which formats."""

    model: str | None = option(
        None,
        "runs:/<id>, models:/<name>/<version> or models:/<name>@<alias>; auto: the data's champion",
        unset="auto",
    )
    output: str | None = option(
        None, "folder to write; auto: exports/<name>-<version, or run> beside the tracking store", unset="auto"
    )
    formats: list[str] = option(
        list(EXPORT_FORMATS),
        "onnx: for ONNX Runtime, and what predict and serve take; pt2: torch.export; safetensors: the tensors, and config.json",
    )
    overwrite: bool = option(False, "replace an export that exists")

    @field_validator("formats", mode="before")
    @classmethod
    def _separated(cls, value: Any) -> Any:
        """Take ``onnx,pt2`` for two formats."""
        return separated(value)

    @field_validator("formats")
    @classmethod
    def _are_known(cls, value: list[str]) -> list[str]:
        for name in value:
            lookup(name, dict.fromkeys(EXPORT_FORMATS), "format in export.formats")
        if not value or len(set(value)) < len(value):
            raise UserError(f"export.formats must name one or more of {', '.join(EXPORT_FORMATS)}, each once")
        return value


class ReportSection(Section):
    """Which runs a page is about."""

    runs: list[str] = option(
        [], "ids of runs, or runs:/<id>, with commas between them: of one its own page, of several a comparison with the first"
    )
    output: str | None = option(
        None, "HTML file to write; auto: reports/<report's run>.html beside the tracking store", unset="auto"
    )
    overwrite: bool = option(False, "replace an output that exists")

    @field_validator("runs", mode="before")
    @classmethod
    def _separated(cls, value: Any) -> Any:
        """Take ``a,b`` for two ids."""
        return separated(value)

    @field_validator("runs")
    @classmethod
    def _are_ids(cls, value: list[str]) -> list[str]:
        ids = [text.removeprefix("runs:/") for text in value]
        for run_id in ids:
            if not re.fullmatch(r"[0-9a-f]{32}", run_id):
                raise UserError(f"report.runs: {run_id[:100]!r} is no id of a run: 32 hex digits, as mlflow ui shows them")
            if ids.count(run_id) > 1:
                raise UserError(f"report.runs names run {run_id} twice; name each run once")
        if len(ids) > _MOST_RUNS:
            raise UserError(f"report.runs must be at most {_MOST_RUNS} runs, got {len(ids)}; compare fewer")
        return ids


def separated(value: Any) -> Any:
    """Return the texts of a list, those with commas between them each on its own; anything else as it is."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        return value
    return [part.strip() for text in texts for part in str(text).split(",")]


class ServeSection(Section):
    """A model behind HTTP, and what one request may cost."""

    model: str | None = option(
        None,
        "runs:/<id>, models:/<name>/<version>, models:/<name>@<alias>, or the folder of an export, which needs no tracking "
        "server; auto: the data's champion",
        unset="auto",
    )
    host: str = option(
        "127.0.0.1", "address that listens; 0.0.0.0 lets every machine of the network in, and nobody is asked who they are"
    )
    port: int = option(5001, "port that listens; 0: a free one, which is printed", ge=0, le=65535)
    threshold: float = option(
        0.0, "mark answers less confident than this as unsure, unless a request gives its own threshold; 0: none", ge=0, le=1
    )
    max_body_bytes: int = option(
        8_388_608, "a request with a larger body is refused before it is read", unit="bytes", ge=1024, le=1_073_741_824
    )
    max_images: int = option(256, "a request of more images is refused", unit="images", ge=1, le=100_000)
    max_pixels: int = option(
        25_000_000, "an image whose header tells of more pixels gets an error in its row", unit="pixels", ge=1, le=1_000_000_000
    )
    max_waiting: int = option(
        256, "requests that wait for a free core; one more is refused, with Retry-After", unit="requests", ge=0, le=10_000
    )
    timeout_seconds: float = option(
        30.0, "how long a request may take to arrive, and then to be answered", unit="s", ge=0.1, le=3600
    )
