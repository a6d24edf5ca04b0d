"""Pictures of a study, from Optuna's trials: what can be drawn of it is drawn, the rest is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from optuna import Study
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tracked_cls.plots import options
from tracked_cls.plots import study as drawn
from tracked_cls.plots.study import Mark, Objective, Parameter, Search
from tracked_cls.tuning import table

FEWEST_FOR_IMPORTANCES = 20  # complete trials; of fewer, importances are noise
_FEWEST_TO_COMPARE = 2


def write(
    study: Study,
    folder: Path,
    *,
    metric: str,
    minimize: str | None = None,
    names: Mapping[str, str] | None = None,
    data_digest: str | None = None,
) -> list[Path]:
    """Draw a study into PNG files in `folder`, which is made, and return them; what there is nothing to show of is left out.

    `metric` is the first objective, `minimize` the second where there is one. `names` has other words for options and
    objectives to be shown by. Where a digest is given, the best trial is the best one on these data.
    """
    names = names or {}
    search = _search(study, [metric] if minimize is None else [metric, minimize], names, data_digest)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in _drawable(search):
        paths.append(folder / f"{name}.png")
        draw(search, paths[-1])
    num_complete = len(search.complete)
    shares = importances(study) if num_complete >= FEWEST_FOR_IMPORTANCES else {}
    if shares:
        paths.append(folder / "importances.png")
        shown = {names.get(name, name): share for name, share in shares.items()}
        options.importances(shown, num_complete, metric if minimize is None else "the Pareto front", paths[-1])
    return paths


def importances(study: Study) -> dict[str, float]:
    """Return how much each option decides whether a trial is among the best, largest first; they sum to 1.

    Options of complete trials only (PED-ANOVA, Optuna's default), conditional ones too. Empty where no two values differ.
    """
    complete = [trial for trial in table.shown(study) if trial.state == TrialState.COMPLETE]
    differ = len({tuple(trial.values) for trial in complete}) > 1
    if not differ or not table.option_names(complete):
        return {}
    shares = get_param_importances(study)
    return {name: float(share) for name, share in sorted(shares.items(), key=lambda item: (-item[1], item[0]))}


def _drawable(search: Search) -> Iterator[tuple[str, Callable[[Search, Path], None]]]:
    """Yield the name and the function of each picture that has something to show."""
    if any(mark.values for mark in search.marks):
        yield "history", drawn.history
    if any(mark.span for mark in search.marks):
        yield "timeline", drawn.timeline
    if len(search.objectives) > 1 and search.complete:
        yield "pareto_front", drawn.pareto_front
    if len(search.objectives) == 1 and any(mark.reports for mark in search.marks):
        yield "intermediate_values", drawn.intermediate_values
    if len(search.complete) >= _FEWEST_TO_COMPARE and any(mark.params for mark in search.complete):
        yield "slice", options.slices
        yield "parallel_coordinate", options.parallel_coordinate


# ---- plain data out of trials ----------------------------------------------------------------------------------------


def _search(study: Study, objectives: Sequence[str], names: Mapping[str, str], data_digest: str | None) -> Search:
    best = table.ranked(study, data_digest)[:1] if len(objectives) == 1 else study.best_trials
    trials = table.shown(study)  # after the best: other workers' trials go on ending meanwhile
    parameters = [_parameter(name, names.get(name, name), trials) for name in _kin(table.option_names(trials))]
    times = [time for trial in trials for time in (trial.datetime_start, trial.datetime_complete) if time]
    return Search(
        marks=[_mark(trial, parameters, times) for trial in trials],
        objectives=[
            Objective(names.get(name, name), direction == StudyDirection.MAXIMIZE)
            for name, direction in zip(objectives, study.directions, strict=True)
        ],
        parameters=parameters,
        best=frozenset(trial.number for trial in best),
    )


def _kin(names: Sequence[str]) -> list[str]:
    """Bring the names of one option, as optimizer.lr@sgd and optimizer.lr@adamw, together."""
    paths = [name.partition("@")[0] for name in names]
    return sorted(names, key=lambda name: paths.index(name.partition("@")[0]))


def _parameter(name: str, label: str, trials: Sequence[FrozenTrial]) -> Parameter:
    """Return an option with all that any trial could choose from: a range may have been widened since the study began."""
    known = [trial.distributions[name] for trial in trials if name in trial.distributions]
    choices = dict.fromkeys(
        str(table.plain(choice)) for item in known if isinstance(item, CategoricalDistribution) for choice in item.choices
    )
    if choices:
        return Parameter(name, label, choices=tuple(choices))
    ranges = [item for item in known if isinstance(item, FloatDistribution | IntDistribution)]
    low, high = min(item.low for item in ranges), max(item.high for item in ranges)
    whole = all(isinstance(item, IntDistribution) for item in ranges)
    return Parameter(name, label, low, high, log=low > 0 and any(item.log for item in ranges), whole=whole)


def _mark(trial: FrozenTrial, parameters: Sequence[Parameter], times: Sequence[datetime]) -> Mark:
    return Mark(
        number=trial.number,
        state=table.state_name(trial),
        values=_values(trial),
        feasible=table.is_feasible(trial),
        params={item.name: _number(item, trial.params[item.name]) for item in parameters if item.name in trial.params},
        reports=dict(trial.intermediate_values),
        span=_span(trial, times),
    )


def _values(trial: FrozenTrial) -> tuple[float, ...]:
    """Return a trial's values; those of a pruned one are its last report, if it has none of its own."""
    if trial.state == TrialState.PRUNED and not trial.values and trial.intermediate_values:
        return (trial.intermediate_values[max(trial.intermediate_values)],)
    return tuple(trial.values or ())


def _number(parameter: Parameter, value: object) -> float:
    return float(parameter.choices.index(str(table.plain(value)))) if parameter.choices else float(value)  # type: ignore[arg-type]


def _span(trial: FrozenTrial, times: Sequence[datetime]) -> tuple[float, float] | None:
    """Return from when to when a trial ran; one that still does, until the last that is known of any."""
    if trial.datetime_start is None or trial.state == TrialState.WAITING:
        return None
    begin, end = min(times), trial.datetime_complete or max(times)
    return (trial.datetime_start - begin).total_seconds(), (end - begin).total_seconds()
