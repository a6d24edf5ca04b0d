"""Which runs a command takes: one training or one per fold, or the whole way from preparing to predicting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tracked_cls import assessment, experiment, folds, prediction, registry
from tracked_cls.assessment import Evaluation
from tracked_cls.config import EvaluateConfig, MainConfig, PredictConfig, TrainConfig, workspace
from tracked_cls.config.sections import EvaluateSection, PredictSection
from tracked_cls.console import say
from tracked_cls.data.cache import Prepared
from tracked_cls.data.encode import to_png
from tracked_cls.data.sources import SPLITS
from tracked_cls.distributed import ALONE, Ranks
from tracked_cls.errors import UserError
from tracked_cls.experiment import Outcome
from tracked_cls.prediction import Predictions
from tracked_cls.tracking import StoreError, Tracker
from tracked_cls.transforms.inference import lasting

EXAMPLES = 50


@dataclass(frozen=True)
class Whole:
    """What each step of the pipeline reached."""

    url: str
    outcome: Outcome
    evaluation: Evaluation
    predictions: Predictions


@dataclass(frozen=True)
class Training:
    """The end of a training: what to say of it, and the command to go on with, without the store it goes to."""

    lines: list[str]
    next_command: str


def train(cfg: TrainConfig, tracker: Tracker, ranks: Ranks = ALONE) -> Training:
    """Train one model, or one per fold; as the first of several processes, together with them."""
    if cfg.folds is not None:
        if ranks.are_several:  # the others would wait for ever
            raise UserError(f"folds={cfg.folds} and {ranks.world_size} processes do not go together: train one fold at a time, "
                            "with data.folds and data.fold")  # fmt: skip
        across = folds.run(cfg, tracker)
        return Training(folds.lines(across), folds.next_command(across))
    outcome = experiment.run(cfg, tracker, ranks=ranks)
    command = f"mlflow run . -e predict --env-manager local -P input=FOLDER -P model=runs:/{outcome.run_id}"
    if outcome.promotion.verdict == "waiting":
        command = "mlflow run . -e sync --env-manager local"
    return Training([*experiment.lines(outcome), *_compared(cfg, outcome, tracker)], command)


def _compared(cfg: TrainConfig, outcome: Outcome, tracker: Tracker) -> list[str]:
    """Say whether a replay came to the same weights."""
    if cfg.from_run is None:
        return []
    try:
        tags = tracker.client.get_run(cfg.from_run).data.tags
    except StoreError:
        return [f"  replay: run {cfg.from_run} cannot be read now; compare the tags weights.digest"]
    if "weights.digest" not in tags:
        return [f"  replay: run {cfg.from_run} did not end with weights to compare with"]
    if tags["weights.digest"] == outcome.weights_digest:
        return [f"  replay: the same weights as run {cfg.from_run}, digest {outcome.weights_digest[:16]}"]
    other_data = tags.get("data.digest") != outcome.prepared.manifest.digest
    why = "the data have changed since" if other_data else "other options, machine, threads or versions"
    return [f"  replay: other weights than run {cfg.from_run} ({why})"]


def run(cfg: MainConfig, tracker: Tracker) -> Whole:
    """Prepare the data, train, evaluate, and let the champion label some test images (the trained model if there is none)."""
    own = lasting(cfg.transforms.eval)
    if own:
        raise UserError(
            f"transforms.eval: a model that needs {', '.join(own)} is not kept, and main evaluates what it trained; use train"
        )
    with tracker.begin("pipeline", f"pipeline {cfg.model.name} on {cfg.data.label}") as parent:
        nested = tracker.within(parent)
        parent.log_config(cfg)
        outcome = experiment.run(cfg, nested)
        say("evaluate: the trained model on the test split")
        evaluation = assessment.run(_evaluate(cfg, outcome), nested)
        by = _predict(cfg, outcome, nested)
        say(f"predict: {by.predict.model} labels {EXAMPLES} test images, as if nobody had")
        predictions = prediction.run(by, nested)
        parent.log_metrics(assessment.prefixed(evaluation.report.metrics, evaluation.split))
        parent.log_metrics({"val_accuracy_best": outcome.val_accuracy, "best_epoch": outcome.best_epoch})
        parent.log_dataset(outcome.prepared, SPLITS)
        parent.set_tags({"train.run": outcome.run_id, "model": evaluation.model})
    return Whole(parent.url, outcome, evaluation, predictions)


def _evaluate(cfg: MainConfig, outcome: Outcome) -> EvaluateConfig:
    return EvaluateConfig(
        device=cfg.device,
        threads=cfg.threads,
        limit=cfg.limit,
        data=cfg.data,
        evaluate=EvaluateSection(model=f"runs:/{outcome.run_id}"),
        tracking=cfg.tracking,
    )


def _predict(cfg: MainConfig, outcome: Outcome, tracker: Tracker) -> PredictConfig:
    folder = workspace(cfg.tracking) / cfg.checkpoint.store / f"examples-{outcome.prepared.manifest.digest}"
    _write_examples(outcome.prepared, folder)
    champion = registry.by_alias(tracker.client, cfg.data.model_name, registry.CHAMPION)
    model = f"models:/{cfg.data.model_name}@{registry.CHAMPION}" if champion else f"runs:/{outcome.run_id}"
    return PredictConfig(data=cfg.data, predict=PredictSection(input=str(folder), model=model), tracking=cfg.tracking)


def _write_examples(prepared: Prepared, folder: Path) -> None:
    """Write the first test images as PNG files, named by their place in the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in prepared.manifest.indices("test")[:EXAMPLES]:
        (folder / f"{index:06d}.png").write_bytes(to_png(prepared.sized(np.array([index]))[0]))
