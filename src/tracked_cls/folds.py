"""K-fold training: a model for each part of the training images, the spread of their results, and labels put in doubt.

Every image outside the test split is judged by the one model that never saw it. These out-of-fold predictions tell how good
the recipe is on all the data, and which labels are probably wrong.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tracked_cls import assessment, checkpoint, durable, evaluation, experiment, failpoints, gallery, job, plots, preparation
from tracked_cls.beginning import open_beginning
from tracked_cls.checkpoint import Attempt
from tracked_cls.compute import make_compute
from tracked_cls.config import TrainConfig, to_yaml, workspace
from tracked_cls.console import say
from tracked_cls.data.cache import Prepared
from tracked_cls.errors import UserError
from tracked_cls.evaluation import EvalReport, MultiLabelScores, Scores
from tracked_cls.experiment import Trained
from tracked_cls.gallery import OutOfFold
from tracked_cls.tables import write_tables
from tracked_cls.tracking import Run, Tracker

Indices = npt.NDArray[np.int64]

_SPLIT = "out_of_fold"


@dataclass(frozen=True, eq=False)
class FoldResult:
    """What one fold reached: `scores` are those of its best weights on the samples at `indices` [N], which it never saw.

    `curves`: val_loss and val_accuracy, epoch by epoch.
    """

    fold: int
    run_id: str
    best_epoch: int
    curves: dict[str, list[float]]
    indices: Indices
    scores: Scores


@dataclass(frozen=True, eq=False)
class FoldsOutcome:
    """What all folds reached: `spread` holds means and standard deviations over folds, `report` judges all images together.

    `num_suspects`: labels that look wrong, None where images have several labels; `folder` holds what the run shows.
    """

    run_id: str
    url: str
    model: str
    prepared: Prepared
    results: tuple[FoldResult, ...]
    spread: dict[str, float]
    report: EvalReport
    num_suspects: int | None
    folder: Path


def run(cfg: TrainConfig, tracker: Tracker) -> FoldsOutcome:
    """Train ``folds`` models in runs nested in one; what was interrupted continues, and finished folds are not repeated."""
    assert cfg.folds is not None
    num_folds = cfg.folds
    _refuse(cfg)
    job.check(cfg)
    cfg = cfg.model_copy(update={"threads": make_compute(cfg.device, cfg.threads, cfg.performance).threads})
    beginning = open_beginning(cfg, tracker)
    prepared = preparation.open_or_prepare(cfg.data, cfg.tracking, tracker, transforms=cfg.transforms)
    first = preparation.folded(prepared, cfg.data.model_copy(update={"folds": num_folds}))
    store = workspace(cfg.tracking) / cfg.checkpoint.store
    key = job.key(cfg, "folds", first, beginning)  # the first fold stands for all: its digest knows number and seed
    with checkpoint.open_attempt(store, key, resume=cfg.resume == "auto") as attempt:
        name = f"{num_folds} folds: {cfg.model.name} on {prepared.manifest.name}"
        with tracker.begin("train", name, continue_id=attempt.run_id) as tracked:
            attempt.adopt(tracked.run_id)
            tracked.log_config(cfg)
            tracked.log_dataset(prepared, ("train", "val"))
            tracked.set_tags({"folds": num_folds})
            nested = tracker.within(tracked)
            results = [_fold(_of_fold(cfg, num_folds, fold), prepared, nested, attempt) for fold in range(num_folds)]
            failpoints.reach("folds.before_conclude")
            outcome = _conclude(cfg, prepared, results, tracked, attempt)
        attempt.end("FINISHED")
    return outcome


def _refuse(cfg: TrainConfig) -> None:
    """Refuse what has no effect, or makes no sense, where every fold is trained."""
    if cfg.overfit_batches is not None:
        raise UserError("overfit_batches does not go with folds: it validates on training images")
    if cfg.promote.auto == "always":
        raise UserError("promote.auto=always has no effect with folds: their models are not registered; train without folds")


def _of_fold(cfg: TrainConfig, num_folds: int, fold: int) -> TrainConfig:
    data = cfg.data.model_copy(update={"folds": num_folds, "fold": fold})
    return cfg.model_copy(update={"folds": None, "data": data})


def _fold(cfg: TrainConfig, prepared: Prepared, tracker: Tracker, attempt: Attempt) -> FoldResult:
    """Return what one fold reached: found from before, or trained now and kept."""
    fold = cfg.data.fold
    assert fold is not None
    path = attempt.folder / f"fold-{fold}.npz"
    found = _read(path, fold, prepared)
    if found is not None:
        say(f"fold {fold} of {cfg.data.folds}, counted from 0: done before, val_accuracy {found.scores.accuracy:.4f}")
        if tracker.status(found.run_id) in ("RUNNING", "KILLED"):  # killed between what it kept and its end
            with tracker.opened(found.run_id) as run:
                run.end("FINISHED")
        return found
    say(f"fold {fold} of {cfg.data.folds}, counted from 0")

    def keep(trained: Trained) -> None:
        if trained.prepared.folder != prepared.folder:
            raise UserError(f"the data {cfg.data.label!r} changed while the folds were trained; start again to train all anew")
        failpoints.reach("folds.before_keep")
        _write(path, trained)

    trained = experiment.learn(cfg, tracker, kind="fold", name=f"fold {fold}", keep=keep)
    failpoints.reach("folds.between")
    return FoldResult(fold, trained.run_id, trained.best_epoch, trained.curves, trained.indices, trained.val)


# ---- what is kept of a finished fold ---------------------------------------------------------------------------------


def _write(path: Path, trained: Trained) -> None:
    """Keep a finished fold in one file, which is there whole or not at all."""
    facts = json.dumps({"run_id": trained.run_id, "best_epoch": trained.best_epoch, "curves": trained.curves})
    stream = io.BytesIO()
    np.savez(stream, indices=trained.indices, logits=trained.val.logits, labels=trained.val.labels, facts=np.array(facts))
    durable.write(path, stream.getvalue())


def _read(path: Path, fold: int, prepared: Prepared) -> FoldResult | None:
    """Return a finished fold, None where there is none or the file is damaged."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            facts = json.loads(str(kept["facts"]))
            kind = MultiLabelScores if prepared.manifest.multi_label else Scores
            scores = kind(kept["logits"], kept["labels"])
            best, curves = int(facts["best_epoch"]), dict(facts["curves"])
            return FoldResult(fold, str(facts["run_id"]), best, curves, kept["indices"], scores)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        say(f"warning: {path} is damaged; the fold is trained again")
        return None


# ---- what all folds say ----------------------------------------------------------------------------------------------


def _conclude(
    cfg: TrainConfig, prepared: Prepared, results: Sequence[FoldResult], tracked: Run, attempt: Attempt
) -> FoldsOutcome:
    """Log the spread over the folds, and what their models say about images they never saw."""
    judged = _together(results)
    folder = attempt.folder / "report"
    report = evaluation.report(judged.scores, prepared.manifest.classes)
    write_tables(report, folder / "tables", _SPLIT)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    if report.confusion is not None:
        plots.confusion(report.confusion, report.classes, folder / "plots" / f"{_SPLIT}_confusion.png")
    gallery.write_predictions(judged, prepared.manifest, cfg.data.label_separator, folder / "tables" / f"{_SPLIT}.csv")
    best_epochs = [result.best_epoch for result in results]
    plots.fold_curves([result.curves for result in results], best_epochs, folder / "plots" / "folds.png")
    num_suspects = None if prepared.manifest.multi_label else gallery.write_suspects(judged, prepared, folder)
    (folder / "train.yaml").write_text(to_yaml(cfg.model_copy(update={"folds": None})), encoding="utf-8")
    outcome = FoldsOutcome(
        tracked.run_id, tracked.url, cfg.model.name, prepared, tuple(results), _spread(results), report, num_suspects, folder
    )
    _log(tracked, outcome)
    return outcome


def _log(tracked: Run, outcome: FoldsOutcome) -> None:
    for result in outcome.results:
        tracked.log_metrics({f"fold_{name}": value for name, value in _reached(result).items()}, step=result.fold)
    tracked.log_metrics({**outcome.spread, **assessment.prefixed(outcome.report.metrics, _SPLIT)})
    if outcome.num_suspects is not None:
        tracked.log_metrics({"num_suspects": outcome.num_suspects})
    tracked.log_folder(outcome.folder)
    tracked.describe("\n\n".join(line.strip() for line in lines(outcome)))


def _reached(result: FoldResult) -> dict[str, float]:
    return {"val_accuracy": result.scores.accuracy, "val_loss": result.scores.loss, "best_epoch": float(result.best_epoch)}


def _spread(results: Sequence[FoldResult]) -> dict[str, float]:
    """Return mean and standard deviation over the folds (divided by their number less one) of what each reached."""
    reached = [_reached(result) for result in results]
    columns = {name: [values[name] for values in reached] for name in reached[0]}
    means = {f"{name}_mean": float(np.mean(values)) for name, values in columns.items()}
    return means | {f"{name}_std": float(np.std(values, ddof=1)) for name, values in columns.items()}


def _together(results: Sequence[FoldResult]) -> OutOfFold:
    """Return all folds as one, in the order of the manifest."""
    indices = np.concatenate([result.indices for result in results])
    assert len(np.unique(indices)) == len(indices), "an image was validated by two folds"
    order = np.argsort(indices)
    fold_of = np.repeat([result.fold for result in results], [len(result.indices) for result in results])
    logits = np.concatenate([result.scores.logits for result in results])[order]
    labels = np.concatenate([result.scores.labels for result in results])[order]
    return OutOfFold(indices[order], fold_of[order], type(results[0].scores)(logits, labels))


def lines(outcome: FoldsOutcome) -> list[str]:
    """Return what a person wants to know at the end of all folds, and what to look at next."""
    spread, count = outcome.spread, len(outcome.results)
    judged = sum(len(result.indices) for result in outcome.results)
    return [
        f"train: {count} folds of {outcome.model} on {outcome.prepared.manifest.name}: "
        f"val_accuracy {spread['val_accuracy_mean']:.4f} ± {spread['val_accuracy_std']:.4f}, "
        f"val_loss {spread['val_loss_mean']:.4f} ± {spread['val_loss_std']:.4f} "
        f"(mean and standard deviation over the folds, n - 1 in the denominator)",
        f"  out of fold: accuracy {outcome.report.metrics['accuracy']:.4f} on {judged:,} images, each judged by the model that "
        "never saw it; the test split was not looked at, no model was logged",
        f"  run:   {outcome.url}",
        _line_of_suspects(outcome, judged),
    ]


def _line_of_suspects(outcome: FoldsOutcome, judged: int) -> str:
    if outcome.num_suspects is None:
        return "  suspect labels: not ranked, which needs one label per image (data.multi_label=false)"
    page = outcome.folder / "suspects.html"
    return f"  suspect labels: {outcome.num_suspects:,} of {judged:,} look wrong; look through {page}, the most suspect first"


def next_command(outcome: FoldsOutcome) -> str:
    """Return the command that trains the same on all training images as one model, tested and registered."""
    return f"mlflow run . -e train --env-manager local -P params={outcome.folder / 'train.yaml'}"
