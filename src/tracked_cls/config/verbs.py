"""One tree per verb. A params file may hold the options of all verbs: each takes its own."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import field_validator, model_validator

from tracked_cls.config.data import DataConfig, DataIdentity, LoaderConfig
from tracked_cls.config.network import FreezeConfig, ModelConfig
from tracked_cls.config.objective import LossConfig
from tracked_cls.config.optimization import OptimizerConfig, SchedulerConfig
from tracked_cls.config.sections import (
    CheckpointConfig,
    ContestSection,
    DistributedConfig,
    EvaluateSection,
    ExportSection,
    PredictSection,
    PromoteSection,
    ReportSection,
    ServeSection,
    TrackingConfig,
    TrainingConfig,
)
from tracked_cls.config.transforms import PredictTransforms, TransformsConfig
from tracked_cls.config.tree import Section, option
from tracked_cls.config.tuning import TunePromoteSection, TuneSection
from tracked_cls.errors import UserError


class Verb(Section):
    """The tree of one entry point. `bare` names the section whose keys may be given without its name.

    `params` is the file that is read where none is named; a verb whose `own_options_suffice` does without, where it is not.
    """

    verb: ClassVar[str]
    summary: ClassVar[str]
    bare: ClassVar[str | None] = None
    params: ClassVar[str] = "params/train.yaml"
    own_options_suffice: ClassVar[bool] = False


class _Device(Section):
    device: str = option(
        "auto", "auto, cpu, cuda, cuda:<index> or mps; auto: a GPU where there is one", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$"
    )
    threads: int | None = option(
        None, "CPU threads; results on CPU are bit-identical for equal numbers; auto: all cores", unset="auto", ge=1, le=1024
    )


class _Compute(_Device):
    limit: int | None = option(
        None, "use only this many images per split, stratified by class: a smoke run", unit="images", unset="off", ge=1
    )


class PrepareConfig(Verb):
    """``prepare``: images to a checked, split, cached data set."""

    verb: ClassVar[str] = "prepare"
    summary: ClassVar[str] = "Check, split and cache images: from folders, tables, IDX files, torchvision, or a class of yours."
    sample: str | None = option(
        None, "show one image, by number, path or id: as it is, as the model sees it, and augmented", unset="none"
    )
    verify: bool = option(False, "read every source file again and compare it with its SHA-256 when it was prepared")
    export: str | None = option(None, "also write the prepared images to this folder, one folder per class", unset="none")
    data: DataConfig = DataConfig()
    transforms: TransformsConfig = TransformsConfig()
    tracking: TrackingConfig = TrackingConfig()


class TrainConfig(Verb, _Compute):
    """``train``: a prepared data set to a trained, tested, logged and registered model."""

    verb: ClassVar[str] = "train"
    summary: ClassVar[str] = "Train a classifier, test it, log everything to MLflow and register it."
    seed: int = option(0, "seed of weights, order and augmentation", ge=0, lt=2**31)
    epochs: int = option(12, "passes over the training images", ge=1, le=100_000)
    batch_size: int | None = option(
        64,
        "images per batch; auto: the largest of 16 to 1024 that fits into half of the memory, at 20 steps an epoch or more",
        unit="images",
        unset="auto",
        ge=2,
        le=65536,
    )
    folds: int | None = option(
        None, "train so many models, each validated on another part of the training images; none is registered",
        unit="folds", unset="off", ge=2, le=100,
    )  # fmt: skip
    nproc: int = option(
        1,
        "processes of this machine that train one network together, each with its share of every batch, of the threads and of "
        "the GPUs (DistributedDataParallel); several machines: torchrun",
        unit="processes", ge=1, le=1024,
    )  # fmt: skip
    fast_dev_run: bool = option(False, "send one batch through everything, to see that it works; never registered")
    overfit_batches: int | None = option(
        None, "train and validate on the same first batches only: a network that cannot learn them by heart has a mistake",
        unit="batches", unset="off", ge=1,
    )  # fmt: skip
    performance: Literal["auto", "exact"] = option(
        "auto", "auto: fused optimizer where there is one; exact: plain float32 and deterministic algorithms"
    )
    resume: Literal["auto", "never"] = option("auto", "auto: continue an interrupted run of the same data and configuration")
    from_run: str | None = option(
        None,
        "train anew with the config.yaml of this run (id, or runs:/<id>) under the command line, in place of the params file",
        unset="none", pattern=r"^(runs:/)?[0-9a-f]{32}$",
    )  # fmt: skip
    data: DataConfig = DataConfig()
    loader: LoaderConfig = LoaderConfig()
    transforms: TransformsConfig = TransformsConfig()
    model: ModelConfig = ModelConfig()
    freeze: FreezeConfig = FreezeConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    training: TrainingConfig = TrainingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    promote: PromoteSection = PromoteSection()
    distributed: DistributedConfig = DistributedConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("from_run")
    @classmethod
    def _bare_id(cls, value: str | None) -> str | None:
        return value.removeprefix("runs:/") if value else None

    @model_validator(mode="after")
    def _warmup_ends(self) -> TrainConfig:
        warmup = self.scheduler.warmup_epochs
        if warmup is not None and warmup >= self.epochs:
            raise UserError(f"scheduler.warmup_epochs must be below epochs ({self.epochs}), got {warmup:g}")
        return self

    @model_validator(mode="after")
    def _modes_agree(self) -> TrainConfig:
        if self.performance == "exact" and (self.training.precision in ("bf16", "fp16") or self.training.compile):
            raise UserError("performance=exact is plain float32: it goes with neither training.precision nor training.compile")
        if self.freeze.epochs is not None and self.freeze.epochs >= self.epochs:
            raise UserError(
                f"freeze.epochs must be below epochs ({self.epochs}), got {self.freeze.epochs}; off freezes to the end"
            )
        if self.loader.sampler == "weights" and self.loss.sample_weights:
            raise UserError("loader.sampler=weights and loss.sample_weights=true would weigh images twice; choose one")
        if self.loader.sampler == "balanced" and self.loss.class_weights in ("balanced", "effective"):
            raise UserError(
                f"loader.sampler=balanced and loss.class_weights={self.loss.class_weights} weigh classes twice; choose one"
            )
        if self.folds is not None and self.nproc > 1:
            raise UserError(
                "folds and nproc do not go together: train one fold at a time, with data.folds, data.fold and nproc"
            )
        if self.fast_dev_run and self.overfit_batches is not None:
            raise UserError("fast_dev_run and overfit_batches do not go together; choose one")
        if self.folds is not None and (self.data.folds is not None or self.data.fold is not None):
            raise UserError("folds trains every fold; data.folds and data.fold choose one of them: give either")
        if self.training.average_best is not None and self.training.average_best > self.epochs:
            raise UserError(f"training.average_best must be at most epochs ({self.epochs}), got {self.training.average_best}")
        return self

    @model_validator(mode="after")
    def _labels_fit_loss(self) -> TrainConfig:
        if self.data.multi_label and self.loss.name not in self.loss.many_labels:
            raise UserError(f"data.multi_label=true needs loss={' or '.join(self.loss.many_labels)}, got loss={self.loss.name}")
        if self.data.multi_label and any("CutMix" in spec for spec in self.transforms.mixes):
            raise UserError(
                "CutMix does not go with data.multi_label=true: what was cut away may be one of the labels; use MixUp"
            )
        if self.data.multi_label and self.loader.sampler == "balanced":
            raise UserError("loader.sampler=balanced does not go with data.multi_label=true; use weights")
        if self.data.frames and self.transforms.eval:
            raise UserError("transforms.eval does not go with data.frames")
        return self


class MainConfig(TrainConfig):
    """``main``: prepare, train, evaluate and predict under one run."""

    verb: ClassVar[str] = "main"
    summary: ClassVar[str] = "Prepare, train, evaluate and predict in one go, as one run with the others nested in it."

    @model_validator(mode="after")
    def _ends_with_a_model(self) -> MainConfig:
        if self.folds is not None:
            raise UserError("folds belongs to train: main ends with one model, and folds makes none")
        if self.nproc > 1:
            raise UserError("nproc belongs to train: main evaluates and predicts in the process that trains")
        return self


class TuneConfig(TrainConfig):
    """``tune``: a search over the options of ``train``."""

    verb: ClassVar[str] = "tune"
    summary: ClassVar[str] = "Search better options, train the best anew on fresh seeds and register the winner."
    bare: ClassVar[str | None] = "tune"
    params: ClassVar[str] = "params/tune.yaml"
    tune: TuneSection = TuneSection()
    promote: TunePromoteSection = TunePromoteSection()

    @model_validator(mode="after")
    def _trials_are_plain_trainings(self) -> TuneConfig:
        for key in ("folds", "overfit_batches"):
            if getattr(self, key) is not None:
                raise UserError(f"{key} does not go with tune")
        if self.nproc > 1:
            raise UserError("nproc does not go with tune, whose trials run side by side: give tune.workers")
        if self.resume == "never":
            raise UserError("resume=never does not go with tune, which continues a study by its name; give another tune.study")
        if self.fast_dev_run:
            raise UserError("fast_dev_run does not go with tune: no trial would mean anything; try train")
        return self

    @property
    def train(self) -> TrainConfig:
        """What a trial is before the search changes it."""
        return TrainConfig.model_validate(self.model_dump(exclude={"tune"}))


class EvaluateConfig(Verb, _Compute):
    """``evaluate``: any run, version or alias on any prepared split."""

    verb: ClassVar[str] = "evaluate"
    summary: ClassVar[str] = "Score a run, model version or alias on a prepared split."
    bare: ClassVar[str | None] = "evaluate"
    data: DataConfig = DataConfig()
    evaluate: EvaluateSection = EvaluateSection()
    tracking: TrackingConfig = TrackingConfig()


class PromoteConfig(Verb, _Device):
    """``promote``: a challenger against the champion, on the same images."""

    verb: ClassVar[str] = "promote"
    summary: ClassVar[str] = "Compare a challenger with the champion on the same images and move the alias by rule, or back."
    bare: ClassVar[str | None] = "promote"
    data: DataConfig = DataConfig()
    promote: ContestSection = ContestSection()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _rollback_goes_alone(self) -> PromoteConfig:
        if self.promote.rollback and self.promote.model is not None:
            raise UserError("promote.model has no effect with promote.rollback=true, which goes back to the champion before")
        return self


class PredictConfig(Verb):
    """``predict``: labels for images nobody labelled."""

    verb: ClassVar[str] = "predict"
    summary: ClassVar[str] = "Label images - of a folder, list, table or archive - with a registered model."
    bare: ClassVar[str | None] = "predict"
    data: DataIdentity = DataIdentity()
    predict: PredictSection = PredictSection()
    transforms: PredictTransforms = PredictTransforms()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _input_is_given(self) -> PredictConfig:
        if self.predict.input is None:
            raise UserError("predict.input is required: an image, or a folder of images (-P input=some/folder)")
        return self

    @model_validator(mode="after")
    def _engine_gives_embeddings(self) -> PredictConfig:
        if self.predict.embeddings and self.predict.engine == "onnx":
            raise UserError("predict.embeddings=true needs predict.engine=torch (or auto): ONNX Runtime gives logits only")
        return self


class ExportConfig(Verb):
    """``export``: a model as files that need neither MLflow nor this project."""

    verb: ClassVar[str] = "export"
    summary: ClassVar[str] = "Write a model as ONNX, .pt2 and safetensors, each checked against it, and its model card."
    bare: ClassVar[str | None] = "export"
    data: DataIdentity = DataIdentity()
    export: ExportSection = ExportSection()
    tracking: TrackingConfig = TrackingConfig()


class ReportConfig(Verb):
    """``report``: a page about runs that are there."""

    verb: ClassVar[str] = "report"
    summary: ClassVar[str] = "Write the page of a run anew, or one that compares several and says which differences are chance."
    bare: ClassVar[str | None] = "report"
    own_options_suffice: ClassVar[bool] = True
    report: ReportSection = ReportSection()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _runs_are_given(self) -> ReportConfig:
        if not self.report.runs:
            raise UserError("report.runs is required: ids of runs, as mlflow ui shows them (-P runs=<id>,<id>)")
        return self


class ServeConfig(Verb):
    """``serve``: a model that answers requests."""

    verb: ClassVar[str] = "serve"
    summary: ClassVar[str] = "Answer requests for labels over HTTP, on MLflow's scoring server, with limits around it."
    bare: ClassVar[str | None] = "serve"
    data: DataIdentity = DataIdentity()
    serve: ServeSection = ServeSection()
    tracking: TrackingConfig = TrackingConfig()


class SyncConfig(Verb):
    """``sync``: what waits on disk for the tracking store, delivered."""

    verb: ClassVar[str] = "sync"
    summary: ClassVar[str] = "Deliver to MLflow what was logged while its server did not answer."
    own_options_suffice: ClassVar[bool] = True
    patience_seconds: float = option(30.0, "how long a store that does not answer is asked again", unit="s", gt=0, le=86_400)
    tracking: TrackingConfig = TrackingConfig()


VERBS: tuple[type[Verb], ...] = (
    MainConfig,
    PrepareConfig,
    TrainConfig,
    TuneConfig,
    EvaluateConfig,
    PromoteConfig,
    PredictConfig,
    ExportConfig,
    ServeConfig,
    ReportConfig,
    SyncConfig,
)
