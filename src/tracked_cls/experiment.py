"""One tracked training run, told from top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch

from tracked_cls import (
    assessment,
    checkpoint,
    distributed,
    evaluation,
    exhibits,
    failpoints,
    keeping,
    lockstep,
    plots,
    registry,
    release,
    signals,
    tables,
)
from tracked_cls.config import TrainConfig
from tracked_cls.console import progress, say
from tracked_cls.data.cache import Prepared
from tracked_cls.data.loaders import Split, open_split
from tracked_cls.distributed import ALONE, Ranks
from tracked_cls.errors import StopRun, UserError
from tracked_cls.evaluation import EvalReport, Scores
from tracked_cls.job import Given, Job, begun
from tracked_cls.keeping import Kept
from tracked_cls.losses import Teacher
from tracked_cls.profiling import profiler
from tracked_cls.promotion import Promotion
from tracked_cls.report import own
from tracked_cls.report.publication import PAGE
from tracked_cls.saving import Saver
from tracked_cls.state import Plan, TrainState
from tracked_cls.step import Diverged
from tracked_cls.tracking import Tracker
from tracked_cls.training import EpochResult, Progress
from tracked_cls.weights import digest

_CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")
_ON_VERSION = (  # the numbers that a registered version carries; all of them are in its run
    *("test_accuracy", "test_accuracy_low", "test_accuracy_high", "test_loss"),
    *("test_f1_macro", "test_mean_average_precision", "test_ece_calibrated"),
)


@dataclass(frozen=True)
class Outcome:
    """What a training run reached, and where it is kept."""

    run_id: str
    url: str
    page_url: str
    model_uri: str
    best_epoch: int
    weights: str
    weights_digest: str
    val_accuracy: float
    test: EvalReport
    promotion: Promotion
    prepared: Prepared


@dataclass(frozen=True)
class Trained:
    """What a fold or a trial reached: `val` are the scores of the kept weights on the samples at `indices` [N].

    `upper_accuracy` is the mean val_accuracy of the better half of the `epochs`, `curves` are val_loss and val_accuracy of all.
    """

    run_id: str
    epochs: int
    upper_accuracy: float
    curves: dict[str, list[float]]
    best_epoch: int
    weights_digest: str
    val: Scores
    indices: npt.NDArray[np.int64]
    prepared: Prepared


OnEpoch = Callable[[TrainState], None]


def _go_on(state: TrainState) -> None:
    """Watch an epoch end, and do nothing."""


def run(
    cfg: TrainConfig, tracker: Tracker, given: Given | None = None, name: str | None = None, ranks: Ranks = ALONE
) -> Outcome:
    """Train, test, log and register one model; an interrupted run of the same data and configuration is continued.

    Of several processes this is the first one's part; the others `lockstep.follow`.
    """
    with begun(cfg, tracker, "train", name, given, ranks) as job:
        state, kept = _learn(job, _go_on)
        if given is not None and given.expected not in (None, digest(state.network)):
            raise UserError(
                f"trained again, other weights come out ({digest(state.network)[:12]} instead of {given.expected[:12]}), which "
                f"nobody measured: not registered; go on where {given.store} was kept"
            )
        outcome = _conclude(job, state, kept, tracker)
    if given is None:
        checkpoint.conclude(state, job.attempt, job.cfg.checkpoint)  # after the end: until then a restart needs them
    return outcome


def _forget(trained: Trained) -> None:
    """Keep nothing."""


def learn(
    cfg: TrainConfig,
    tracker: Tracker,
    *,
    kind: str,
    name: str,
    given: Given | None = None,
    on_epoch: OnEpoch = _go_on,
    keep: Callable[[Trained], None] = _forget,
) -> Trained:
    """Train and validate in a run of its own; the test split is not looked at, and no model is logged.

    `on_epoch` is called after every epoch; it ends the run by raising `StopRun`. `keep` is called before the run ends: killed
    at any moment, what was reached is either kept, or reached again in the same run.
    """
    with begun(cfg, tracker, kind, name, given) as job:
        state, _ = _learn(job, on_epoch)
        scores = evaluation.score(state.network, job.val.eval_batches(job.cfg.training.eval_batch_size))
        trained = _trained(job, state, scores)
        keep(trained)
    if given is None:
        checkpoint.conclude(state, job.attempt, job.cfg.checkpoint)
    return replace(trained, run_id=job.tracked.run_id)  # begun while MLflow was away, it had none


def _trained(job: Job, state: TrainState, scores: Scores) -> Trained:
    return Trained(
        run_id=job.tracked.run_id,
        epochs=len(state.ranking),
        upper_accuracy=state.upper_score,
        curves=state.curves,
        best_epoch=state.best_epoch,
        weights_digest=digest(state.network),
        val=scores,
        indices=job.val.indices,
        prepared=job.feed.prepared,
    )


def _learn(job: Job, on_epoch: OnEpoch) -> tuple[TrainState, Kept]:
    """Train to the end; return the state with the weights that are kept, and which these are."""
    cfg, tracked, attempt = job.cfg, job.tracked, job.attempt
    state = lockstep.begin(job)
    transfer = job.beginning.give(state.model)
    teacher = job.beginning.open_teacher(job.feed)
    resumed = checkpoint.restore(state, attempt)
    lockstep.hand_over(state, job.ranks)
    tracked.log_config(cfg.model_copy(update={"from_run": None}))
    if cfg.from_run is not None:
        tracked.set_tags({"replays": cfg.from_run})
    tracked.log_dataset(job.feed.prepared, ("train", "val"))
    tracked.log_environment()
    exhibits.introduce(job, state, transfer, resumed=resumed)
    with signals.deferred() as interrupted:
        try:
            with job.ranks.watched():
                lockstep.share(state, job.ranks)
                _loop(job, state, teacher, interrupted, on_epoch)
        except StopRun as stop:
            attempt.end(stop.status)
            _log_reached(job, Kept(f"epoch {state.best_epoch}", state.best_score), state)
            raise
    if job.ranks.are_several:
        distributed.leave()
        torch.set_num_threads(cfg.threads or 1)  # all of them: the others have ended
    failpoints.reach("train.after_loop")
    kept = keeping.choose(job, state)
    _log_reached(job, kept, state)
    tracked.set_tags({"weights": kept.weights, "weights.digest": digest(state.network)})
    return state, kept


def _log_reached(job: Job, kept: Kept, state: TrainState) -> None:
    """Log the best validation of a run, where an epoch was validated."""
    if state.ranking:
        best = {"val_accuracy_best": kept.val_accuracy, "val_loss_best": state.best_loss, "best_epoch": state.best_epoch}
        job.tracked.log_metrics(best)


def _loop(job: Job, state: TrainState, teacher: Teacher | None, interrupted: Callable[[], bool], on_epoch: OnEpoch) -> None:
    """Train to the end, to an early stop, or to an interruption; everything worth keeping is on disk at each return."""
    cfg = job.cfg
    if cfg.training.on_nan == "rollback" and state.epoch == state.batch == 0:
        checkpoint.save(state, job.attempt, job.policy)
    while not lockstep.is_stale(cfg, state):
        try:
            _loop_until_stopped(job, state, teacher, interrupted, on_epoch)
            return
        except Diverged as trouble:
            if lockstep.gives_up(cfg, state):
                _log_culprits(job, trouble)
                raise
            _roll_back(job, state, trouble)
            lockstep.share(state, job.ranks)


def _loop_until_stopped(
    job: Job, state: TrainState, teacher: Teacher | None, interrupted: Callable[[], bool], on_epoch: OnEpoch
) -> None:
    cfg = job.cfg
    plan = Plan.of(cfg, len(job.train))
    total = plan.total_steps - state.epoch * plan.steps_per_epoch - state.batch
    saver = Saver(state, job.attempt, job.policy, before=partial(_before_save, job))
    with profiler(job.feed.compute, enabled=cfg.training.profile) as profiled:
        steps = lockstep.steps(job, state, teacher, interrupted)
        for step in progress(steps, total, "training", unit="batch", counts=lambda step: isinstance(step, Progress)):
            if isinstance(step, EpochResult):
                job.tracked.log_metrics(step.metrics, step=step.epoch)
                failpoints.reach("train.after_metrics")
                job.say(exhibits.epoch_line(plan.num_epochs, step, improved=state.best_epoch == step.epoch))
                _tell(on_epoch, state, saver)  # before it is saved: killed in between, the epoch is repeated and reported alike
                saver.after_epoch()
            else:
                profiled.after_step()
                saver.after_step()
    _settle(job, state, saver, interrupted=interrupted())
    if cfg.training.profile:
        exhibits.log_profile(job.tracked, profiled.result)


def _settle(job: Job, state: TrainState, saver: Saver, *, interrupted: bool) -> None:
    """Write what the next start, or the end of the run, goes on from."""
    if interrupted:
        saver.save()
        job.say(f"interrupted: saved after epoch {state.epoch}, batch {state.batch}; the same command continues from here")
        return
    saver.save_best()
    if lockstep.is_stale(job.cfg, state):
        job.say(f"stopped early: no better val_accuracy in {state.stale_epochs} epochs; the best is {state.best_score:.4f} of "
                f"epoch {state.best_epoch}")  # fmt: skip


def _tell(on_epoch: OnEpoch, state: TrainState, saver: Saver) -> None:
    """Report an epoch; where that ends the run, its best epochs are written before."""
    try:
        on_epoch(state)
    except StopRun:
        saver.save_best()
        raise


def _before_save(job: Job) -> None:
    """Make sure that a checkpoint never knows of an epoch that the journal has lost."""
    failpoints.reach("train.before_save")
    job.tracked.sync()


def _roll_back(job: Job, state: TrainState, trouble: Diverged) -> None:
    """Go back to the end of the newest epoch, whose weights were seen to be sound, with half of the rate from there on."""
    scale = state.schedule.scale / 2
    if not checkpoint.roll_back(state, job.attempt):
        raise trouble
    state.schedule.scale = scale
    say(f"{trouble.reason.partition(';')[0]}: back to epoch {state.epoch}, batch {state.batch}, "
        f"with {scale:g} of the scheduled learning rate")  # fmt: skip


def _log_culprits(job: Job, trouble: Diverged) -> None:
    """Log which samples were in the batch whose loss is not finite."""
    manifest = job.feed.prepared.manifest
    if trouble.sample_ids:
        path_of = dict(zip(manifest.ids, manifest.paths, strict=True))
        rows = [[sample_id, path_of[sample_id]] for sample_id in trouble.sample_ids]
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "diverged.csv"
            assessment.write_csv(path, ["id", "path"], rows)
            job.tracked.log_file(path, "tables")


def _conclude(job: Job, state: TrainState, kept: Kept, tracker: Tracker) -> Outcome:
    """Test the weights that are kept, and log and register the model."""
    cfg, tracked = job.cfg, job.tracked
    failpoints.reach("train.before_test")
    test = open_split(job.feed, "test", limit=cfg.limit)
    tracked.log_dataset(job.feed.prepared, ("test",))
    say(f"testing the weights of {kept.weights}, exporting and logging the model")
    temperature = keeping.calibrate(job, state)
    report = assessment.score_split(state.network, test, cfg.training.eval_batch_size, temperature)
    tested = assessment.prefixed(report.metrics, "test")
    _log_results(job, state, report, test)
    exhibits.show(job, state)
    reached = {"val_accuracy_best": kept.val_accuracy, **{name: tested[name] for name in _ON_VERSION if name in tested}}
    released = release.release(job, state, test, reached, tracker, temperature=temperature)
    outcome = Outcome(
        run_id=tracked.run_id,
        url=tracked.url,
        page_url=tracked.url_of(PAGE),
        model_uri=released.model_uri,
        best_epoch=state.best_epoch,
        weights=kept.weights,
        weights_digest=digest(state.network),
        val_accuracy=kept.val_accuracy,
        test=report,
        promotion=released.promotion,
        prepared=job.feed.prepared,
    )
    tracked.describe(_description(cfg, outcome))
    own.leave(tracker, tracked)
    failpoints.reach("release.before_end")
    return outcome


def _log_results(job: Job, state: TrainState, report: EvalReport, test: Split) -> None:
    """Log what the kept weights reached on the test split, with the curves, the tables and the pictures."""
    job.tracked.log_metrics(assessment.prefixed(report.metrics, "test"))
    job.tracked.set_tags({registry.TEST_READS: 1})
    with TemporaryDirectory() as scratch:
        tables.write_tables(report, Path(scratch) / "tables", "test", test, separator=job.cfg.data.label_separator)
        if job.cfg.tracking.pictures:
            from tracked_cls import showcase  # matplotlib: a second, after training

            showcase.write(state.network, test, report, Path(scratch))
            (Path(scratch) / "plots").mkdir(exist_ok=True)
            plots.curves(job.tracked.history(_CURVES), state.best_epoch, Path(scratch) / "plots" / "curves.png")
        job.tracked.log_folder(Path(scratch))


def _description(cfg: TrainConfig, outcome: Outcome) -> str:
    """Return the run's page in three sentences and a command."""
    metrics = outcome.test.metrics
    return (
        f"**{cfg.model.name}** on {outcome.prepared.manifest.name} (data digest `{outcome.prepared.manifest.digest}`): "
        f"test accuracy **{metrics['accuracy']:.4f}**, validation {outcome.val_accuracy:.4f}, with the weights of "
        f"{outcome.weights} ({cfg.epochs} epochs). Registry: {outcome.promotion.verdict}, {outcome.promotion.reason}.\n\n"
        f"To read: `report.html` under *Artifacts*. The same again: "
        f"`mlflow run . -e train --env-manager local -P from_run={outcome.run_id}`"
    )


def lines(outcome: Outcome) -> list[str]:
    """Return what a person wants to know at the end of a training."""
    version = outcome.promotion.version
    registered = f"{version.uri}, {outcome.promotion.verdict}: " if version else f"{outcome.promotion.verdict}: "
    metrics = outcome.test.metrics
    return [
        f"train: val_accuracy {outcome.val_accuracy:.4f} with the weights of {outcome.weights}; on the test split, with the "
        f"same: test_accuracy {metrics['accuracy']:.4f}, test_loss {metrics['loss']:.4f}",
        f"  run:   {outcome.url}",
        f"  page:  {outcome.page_url}",
        f"  model: {outcome.model_uri}",
        f"  registry: {registered}{outcome.promotion.reason}",
    ]
