"""Which weights a training ends with, and the temperature that calibrates them: both by validation alone."""

from __future__ import annotations

from dataclasses import dataclass

from tracked_cls import checkpoint, evaluation, training
from tracked_cls.averaging import mean_of
from tracked_cls.job import Job
from tracked_cls.state import TrainState
from tracked_cls.statistics.calibration import fit_temperature


@dataclass(frozen=True)
class Kept:
    """Which weights a training ends with ("epoch 12", "the average of epochs 9, 11, 12"), and their validation."""

    weights: str
    val_accuracy: float


def choose(job: Job, state: TrainState) -> Kept:
    """Load the best epoch's weights, or the average of several epochs' where that validates no worse."""
    cfg, of_best = job.cfg, Kept(f"epoch {state.best_epoch}", state.best_score)
    checkpoint.load_best(state, job.attempt)
    if cfg.training.average_best is None:
        return of_best
    if len(state.ranking) == 1:
        job.say("training.average_best: there is one epoch only, and nothing to average")
        return of_best
    best = checkpoint.best_networks(state, job.attempt, cfg.training.average_best)
    state.network.load_state_dict(mean_of(list(best.values())))
    training.refresh_batchnorm(state.network, cfg, job.train, epoch=state.epoch)
    scores = evaluation.score(state.network, job.val.eval_batches(cfg.training.eval_batch_size))
    average = Kept(f"the average of epochs {', '.join(map(str, sorted(best)))}", scores.accuracy)
    is_kept = (scores.accuracy, -scores.loss) >= (state.best_score, -state.best_loss)
    job.tracked.log_metrics({"val_accuracy_averaged": scores.accuracy})
    kept = average if is_kept else of_best
    job.say(f"{average.weights} has val_accuracy {scores.accuracy:.4f}, {of_best.weights} {state.best_score:.4f}: "
            f"{kept.weights} is kept")  # fmt: skip
    if not is_kept:
        checkpoint.load_best(state, job.attempt)
    return kept


def calibrate(job: Job, state: TrainState) -> float:
    """Return what calibrates the kept weights, fitted on validation images alone."""
    val = evaluation.score(state.network, job.val.eval_batches(job.cfg.training.eval_batch_size))
    temperature = fit_temperature(val.logits, val.labels)
    job.tracked.log_metrics({"temperature": temperature})
    return temperature
