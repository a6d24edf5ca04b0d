"""The trials of a study as a table, and their order from the best one on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tracked_cls.assessment import write_csv

_RESULTS = ("val_accuracy", "val_accuracy_upper", "val_loss", "epochs", "best_epoch", "seconds", "restarts")
_COSTS = ("parameters", "flops", "latency_ms")
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def write(study: Study, path: Path, data_digest: str | None = None) -> None:
    """Write `rows` to a CSV file."""
    write_csv(path, *rows(study, data_digest))


def rows(study: Study, data_digest: str | None = None) -> tuple[list[str], list[list[object]]]:
    """Return a header and one row for each trial, by number: what became of it, and one column for each searched option.

    A cell without a value is None: an option that the trial had no use for, the rank of a trial that did not complete or breaks
    a limit (or, where a digest is given, is of other data). An option that is null reads "null", as in YAML.
    """
    trials = shown(study)
    costs = [name for name in _COSTS if any(name in trial.user_attrs for trial in trials)]
    options = option_names(trials)
    rank = {trial.number: place for place, trial in enumerate(ranked(study, data_digest), 1)}
    header = ["trial", "state", "rank", "value", *_RESULTS, "run_id", "reason", *costs, *options]
    return header, [_row(trial, rank.get(trial.number), costs, options) for trial in trials]


def ranked(study: Study, data_digest: str | None = None) -> list[FrozenTrial]:
    """Return the complete trials within all limits, best first; where a digest is given, those of these data.

    The best is the one of the best value, by the first objective where there are two; of equal ones (small validation sets
    have many) that with the higher mean accuracy over the better half of its epochs, then that of the lower number.
    """
    sign = -1.0 if study.directions[0] == StudyDirection.MAXIMIZE else 1.0

    def place(trial: FrozenTrial) -> tuple[float, float, int]:
        return sign * trial.values[0], -upper_accuracy(trial), trial.number

    complete = [trial for trial in shown(study) if trial.state == TrialState.COMPLETE and is_feasible(trial)]
    return sorted((trial for trial in complete if data_digest in (None, trial.user_attrs.get("data.digest"))), key=place)


def shown(study: Study) -> list[FrozenTrial]:
    """Return all trials by number, without the void ones: those were never trained."""
    trials = study.get_trials(deepcopy=False)
    return sorted((trial for trial in trials if not trial.user_attrs.get("void")), key=lambda trial: trial.number)


def state_name(trial: FrozenTrial) -> str:
    """Return complete, pruned, running, waiting, failed (by itself) or killed (it was lost with its machine)."""
    return _STATES.get(trial.state) or ("failed" if "error" in trial.user_attrs else "killed")


def is_feasible(trial: FrozenTrial) -> bool:
    """Return whether a trial keeps all limits, as Optuna counts it: no constraint is above zero."""
    return all(value <= 0 for value in trial.constraints.values())


def option_names(trials: Iterable[FrozenTrial]) -> list[str]:
    """Return the names of all searched options, in order of first appearance."""
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


def _row(trial: FrozenTrial, rank: int | None, costs: list[str], options: list[str]) -> list[object]:
    known = trial.user_attrs
    return [
        trial.number,
        state_name(trial),
        rank,
        trial.values[0] if trial.values else None,
        *(known.get(name) for name in _RESULTS),
        known.get("mlflow_run_id"),
        _line(known.get("reason") or known.get("error")),
        *(known.get(name) for name in costs),
        *(plain(trial.params[name]) if name in trial.params else None for name in options),
    ]


def plain(value: object) -> object:
    """Return the value of an option as YAML writes it: what has no value reads "null", a truth "true" or "false"."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else value


def _line(text: str | None) -> str | None:
    """Return a text in one line that can be written: messages have line breaks, and file names may have odd bytes."""
    return None if text is None else " ".join(text.split()).encode("utf-8", "backslashreplace").decode()


def upper_accuracy(trial: FrozenTrial) -> float:
    """Return the mean val_accuracy of the better half of a training's epochs, below all others where it is not known.

    It tells equal best epochs apart. val_loss does not: it prefers a network without label smoothing, however good.
    """
    upper = trial.user_attrs.get("val_accuracy_upper")
    return -math.inf if upper is None or math.isnan(upper) else float(upper)
