"""What a search found, in words, tables and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from tracked_cls.assessment import write_csv
from tracked_cls.config import to_yaml
from tracked_cls.config.tree import show
from tracked_cls.experiment import Outcome
from tracked_cls.tracking import Run
from tracked_cls.tuning import finals, pictures, table
from tracked_cls.tuning.claims import counted
from tracked_cls.tuning.finals import Finalist
from tracked_cls.tuning.storage import dashboard_command
from tracked_cls.tuning.study import Search


@dataclass(frozen=True)
class Found:
    """The end of a search: plain values, kept in the study so that a later start of the same command repeats them.

    `states` counts trials by what became of them; `finalists` are lines, best first; `options` are the winner's.
    """

    study: str
    run_id: str
    url: str
    curves_url: str
    states: dict[str, int]
    metric: str
    best_trial: int
    best_value: float
    finalists: list[str]
    winner: str
    winner_run_id: str
    winner_trial: int
    options: dict[str, Any]
    mean: float
    std: float
    test_accuracy: float
    weights_digest: str
    model_uri: str
    version: str | None
    verdict: str
    reason: str
    dashboard: str
    stopped: str | None


def found(search: Search, run: Run, ranking: Sequence[Finalist], outcome: Outcome) -> Found:
    """Put together what a search found, once its winner is released."""
    first, best = ranking[0], search.best
    assert best is not None
    version = outcome.promotion.version
    return Found(
        study=search.name,
        run_id=run.run_id,
        url=run.url,
        curves_url=run.ranked_url(search.cfg.tune.metric),
        states=dict(Counter(table.state_name(trial) for trial in counted(search.study))),
        metric=search.cfg.tune.metric,
        best_trial=best.number,
        best_value=best.values[0],
        finalists=[_line(search, finalist) for finalist in ranking],
        winner=finals.title(first.median),
        winner_run_id=outcome.run_id,
        winner_trial=first.trial.number,
        options=dict(first.trial.params),
        mean=first.mean,
        std=first.std,
        test_accuracy=outcome.test.metrics["accuracy"],
        weights_digest=first.median.user_attrs["weights.digest"],
        model_uri=outcome.model_uri,
        version=version.uri if version else None,
        verdict=outcome.promotion.verdict,
        reason=outcome.promotion.reason,
        dashboard=dashboard_command(search.cfg, search.name),
        stopped=search.stopped,
    )


def _line(search: Search, finalist: Finalist) -> str:
    values = ", ".join(f"{training.values[0]:.4f}" for training in sorted(finalist.trainings, key=finals.seed_of))
    spread = f" ± {finalist.std:.4f}" if len(finalist.trainings) > 1 else ""
    return (
        f"trial {finalist.trial.number}: {search.cfg.tune.metric} {finalist.mean:.4f}{spread} on "
        f"{len(finalist.trainings)} fresh seeds ({values}); {finalist.trial.values[0]:.4f} as a trial"
    )


def headline(search: Search, run: Run) -> str:
    """Return what is searched, in two lines."""
    tune, there = search.cfg.tune, len(counted(search.study))
    ahead = f" ({there} there already)" if there > 1 else ""
    team = f"{tune.workers} processes" if tune.workers > 1 else "one process"
    return (
        f"study {search.name}: {tune.trials} trials{ahead} of up to {search.cfg.epochs} epochs over {len(search.space.names)} "
        f"options ({tune.sampler.name}, {tune.pruner.name}), {team} with {search.cfg.threads} threads; then {tune.finalists} "
        f"finalists on {tune.finalist_seeds} fresh seeds\n  run:   {run.url}"
    )


def lines(found: Found) -> list[str]:
    """Return what a person wants to know at the end of a search."""
    states = ", ".join(f"{count} {state}" for state, count in found.states.items())
    registered = f"{found.version}, {found.verdict}: " if found.version else f"{found.verdict}: "
    return [
        f"tune: study {found.study}: {sum(found.states.values())} trials ({states})"
        + (f"; stopped: {found.stopped}" if found.stopped else ""),
        f"  best trial: {found.best_trial}, {found.metric} {found.best_value:.4f} (the best of many owes some of it to luck)",
        *(f"  finals: {line}" for line in found.finalists),
        f"  winner: {found.winner}, the median of its seeds: test_accuracy {found.test_accuracy:.4f}",
        f"          {' '.join(f'{name}={show(value)}' for name, value in found.options.items())}",
        f"  run:   {found.url}",
        f"  model: {found.model_uri} (of run {found.winner_run_id})",
        f"  registry: {registered}{found.reason}",
        f"  trials, best first: {found.curves_url}",
        f"  or:    {found.dashboard}",
    ]


def log(search: Search, run: Run) -> None:
    """Log the table of trials and the pictures, as far as the search has come."""
    digest = search.prepared.manifest.digest
    with TemporaryDirectory() as scratch:
        table.write(search.study, Path(scratch) / "trials.csv", digest)
        tune = search.cfg.tune
        if search.cfg.tracking.pictures:
            folder = Path(scratch) / "plots"
            pictures.write(search.study, folder, metric=tune.metric, minimize=tune.minimize, data_digest=digest)
        run.log_folder(Path(scratch))


def log_end(search: Search, run: Run, ranking: Sequence[Finalist], found: Found) -> None:
    """Log what the finals decided: their table, the winner's options, and a file that trains it anew."""
    log(search, run)
    step = search.cfg.tune.trials  # a study that is extended ends once more
    best = {"best_value": found.best_value, f"{found.metric}_mean": found.mean, f"{found.metric}_std": found.std}
    run.log_metrics({**best, "best_trial": found.best_trial, "test_accuracy": found.test_accuracy}, step=step)
    options = {f"best.{name.replace('@', '/')}": show(value) for name, value in found.options.items()}
    run.drop_tags("best.")  # of an extended study: the former winner's
    run.set_tags({**options, "best.run": found.winner_run_id, "weights.digest": found.weights_digest,
                  "promotion.verdict": found.verdict, "promotion.reason": found.reason})  # fmt: skip
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        best_params = yaml.safe_dump(found.options, sort_keys=False, allow_unicode=True)
        (folder / "best_params.yaml").write_text(best_params, encoding="utf-8")
        (folder / "best.yaml").write_text(to_yaml(finals.configured(search, ranking[0].median)), encoding="utf-8")
        header = [
            "trial",
            "seed",
            "value",
            "val_accuracy",
            "val_accuracy_upper",
            "val_loss",
            "best_epoch",
            "weights_digest",
            "run_id",
        ]
        write_csv(folder / "finals.csv", header, [row for finalist in ranking for row in _rows(finalist)])
        run.log_folder(folder)
    run.describe("\n\n".join(line.strip() for line in lines(found)))


def _rows(finalist: Finalist) -> list[list[object]]:
    known = ("val_accuracy", "val_accuracy_upper", "val_loss", "best_epoch", "weights.digest", "mlflow_run_id")
    return [
        [finalist.trial.number, finals.seed_of(training), training.values[0], *(training.user_attrs[key] for key in known)]
        for training in sorted(finalist.trainings, key=finals.seed_of)
    ]
