"""The page of a study: what was searched, what came of it, and how to train the winner again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from tracked_cls.config.tree import show
from tracked_cls.report import origin
from tracked_cls.report.artifacts import Row, RunFacts, read_pictures, read_rows, read_text, tried
from tracked_cls.report.numbers import percent, short
from tracked_cls.report.page import NO_VALUE, Section, Table, Tile, captioned, render

_MOST_TRIALS = 20
_KNOWN = (  # columns of trials.csv that are no options
    *("trial", "state", "rank", "value", "val_accuracy", "val_accuracy_upper", "val_loss", "epochs", "best_epoch", "seconds"),
    *("restarts", "run_id", "reason", "parameters", "flops", "latency_ms"),
)
_RESULTS = ("val_loss", "epochs", "seconds", "parameters", "latency_ms")
_TAGS = {
    "optuna.study": "Optuna study",
    "data.name": "Data",
    "data.digest": "Data digest",
    "weights.digest": "Winner's weights digest",
    "git.commit": "Code, commit",
    "git.dirty": "Code, changed since",
    "host": "Machine",
}
_PICTURES = {
    "history.png": ("Trial by trial", "Value of each trial by its number, and the best so far"),
    "intermediate_values.png": ("While they trained", "Value of the best epoch so far by epoch, a line for each trial"),
    "importances.png": ("What matters", "Share of each option in deciding whether a trial is among the best, as bars"),
    "slice.png": ("Option by option", "Value of each trial over each option that was searched"),
    "parallel_coordinate.png": ("All options at once", "Each trial a line across all options; darker lines are better trials"),
    "pareto_front.png": ("Two objectives", "Both objectives of each trial; on the front none is beaten in both"),
    "timeline.png": ("When they ran", "A bar from start to end of each trial, by state"),
}


def page(facts: RunFacts) -> str:
    """Return the page of a run of ``tune`` from plain facts and its artifacts: trials.csv, finals.csv, config.yaml, plots/."""
    troubles: list[str] = []
    trials = tried(lambda: _rows(facts, "trials.csv", ["trial", "state", "rank", "value"]), list[Row], troubles)
    finals = tried(lambda: _rows(facts, "finals.csv", ["trial", "seed", "value"]), list[Row], troubles)
    sections = [
        _winner(facts, finals),
        _ranked(facts, trials),
        Section("Pictures", pictures=captioned(read_pictures(facts.folder / "plots", list(_PICTURES)), _PICTURES)),
        tried(lambda: _space(facts), Section, troubles),
        _troubles(trials),
        _origin(facts),
        _again(facts),
    ]
    return render(
        facts.name,
        kind="study",
        lead=origin.lead(facts, "study"),
        summary=[*_summary(facts, trials), *troubles],
        tiles=_tiles(facts, trials),
        sections=sections,
        footer=f"Run {facts.run_id}. All trials are in its trials.csv, each as a run of its own below it.",
    )


def _rows(facts: RunFacts, name: str, columns: list[str]) -> list[Row]:
    path = facts.folder / name
    return read_rows(path, columns) if path.is_file() else []


# ---- the top ---------------------------------------------------------------------------------------------------------


def _summary(facts: RunFacts, trials: list[Row]) -> list[str]:
    states = Counter(row["state"] for row in trials)
    counts = ", ".join(f"{count:,} {state}" for state, count in states.most_common())
    text = [f"{len(trials):,} trials ({counts})." if trials else "No trial has ended yet."]
    best = next((row for row in trials if row["rank"] == "1"), None)
    if best is not None:
        value = f"{_metric(facts)} {short(best['value'])}"
        text.append(f"Trial {best['trial']} is the best, with {value}; the best of many owes some of that to luck.")
    if "test_accuracy" in facts.metrics:
        text.append(f"The winner of the finals labels {percent(facts.metrics['test_accuracy'])} of the test images right.")
    return [*text, *origin.registry_sentences(facts), *facts.notes]


def _metric(facts: RunFacts) -> str:
    return facts.params.get("tune.metric", "value")


def _tiles(facts: RunFacts, trials: list[Row]) -> list[Tile]:
    metric, metrics = _metric(facts), facts.metrics
    tiles = []
    if "test_accuracy" in metrics:
        tiles.append(Tile("test accuracy of the winner", percent(metrics["test_accuracy"])))
    if f"{metric}_mean" in metrics:
        of_one = facts.params.get("tune.finalist_seeds") == "1"
        spread = "" if f"{metric}_std" not in metrics else f"± {metrics[f'{metric}_std']:.4f} over fresh seeds"
        spread = "on one fresh seed" if of_one else spread
        tiles.append(Tile(f"{metric} of the winner", short(metrics[f"{metric}_mean"]), spread))
    if "best_value" in metrics:
        tiles.append(Tile("best trial", short(metrics["best_value"]), f"trial {metrics.get('best_trial', float('nan')):.0f}"))
    return [*tiles, Tile("trials", f"{len(trials):,}")] if trials else tiles


# ---- the sections ----------------------------------------------------------------------------------------------------


def _winner(facts: RunFacts, finals: list[Row]) -> Section:
    options = [
        (name.removeprefix("best."), value)
        for name, value in facts.tags.items()
        if name.startswith("best.") and name != "best.run"
    ]
    run = [("Run", facts.tags["best.run"])] if "best.run" in facts.tags else []
    shown = [name for name in ("trial", "seed", "value", "val_loss", "best_epoch") if finals and name in finals[0]]
    rows = [[short(row[name]) for name in shown] for row in finals]
    note = "The finalists were trained anew, on seeds that no trial had; the mean over seeds decides."
    return Section(
        "The winner", facts=[*run, *sorted(options)], tables=[Table("Finals, best first", shown, rows, note)] if rows else []
    )


def _ranked(facts: RunFacts, trials: list[Row]) -> Section:
    """Return the best trials with what they were set to; an option that a trial had no use for is a dash."""
    complete = sorted((row for row in trials if row["rank"].isdecimal()), key=lambda row: int(row["rank"]))
    shown = complete[:_MOST_TRIALS]
    if not shown:
        return Section("Best trials")
    results = [name for name in _RESULTS if any(row.get(name) for row in shown)]
    options = [name for name in shown[0] if name not in _KNOWN and any(row[name] for row in shown)]
    names = ("value", *results, *options)
    rows = [[row["rank"], row["trial"], *(short(row[name]) or NO_VALUE for name in names)] for row in shown]
    less = len(shown) < len(complete)
    note = f"The best {len(shown)} of {len(complete):,} complete trials; all are in trials.csv." if less else ""
    header = ["rank", "trial", _metric(facts), *results, *options]
    return Section("Best trials", tables=[Table("Ranked by value", header, rows, note)])


def _space(facts: RunFacts) -> Section:
    """Return what was searched, as ``config.yaml`` has it."""
    path = facts.folder / "config.yaml"
    space = _searched(path) if path.is_file() else {}
    rows = [[name, _words(rule)] for name, rule in space.items()]
    keys = (
        "tune.sampler",
        "tune.pruner",
        "tune.trials",
        "tune.finalists",
        "tune.finalist_seeds",
        "tune.minimize",
        "epochs",
        "seed",
    )
    known = [(key, facts.params[key]) for key in keys if key in facts.params]
    return Section(
        "What was searched", facts=known, tables=[Table("Options and their ranges", ["option", "range"], rows)] if rows else []
    )


def _searched(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(read_text(path))
        space = tree["tune"]["space"]
    except (yaml.YAMLError, KeyError, TypeError, RecursionError):
        return {}
    return {str(name): rule for name, rule in space.items()} if isinstance(space, dict) else {}


def _words(rule: object) -> str:
    """Return the range of an option in words: ``0.001 to 1, log``; a list of choices as it is."""
    if isinstance(rule, list):
        return ", ".join(show(choice) for choice in rule)
    if not isinstance(rule, dict):
        return show(rule)
    rest = {key: value for key, value in rule.items() if key not in ("low", "high", "log", "choices")}
    parts = [f"{rule['low']} to {rule['high']}"] if "low" in rule and "high" in rule else []
    parts += [_words(list(rule["choices"]))] if isinstance(rule.get("choices"), list | dict) else []
    parts += ["log"] if rule.get("log") else []
    return ", ".join([*parts, *(f"{key} {show(value)}" for key, value in rest.items())])


def _troubles(trials: list[Row]) -> Section:
    failed = [row for row in trials if row["state"] in ("failed", "killed")]
    rows = [[row["trial"], row["state"], row.get("reason") or NO_VALUE] for row in failed[:_MOST_TRIALS]]
    note = f"The first {len(rows)} of {len(failed):,}." if len(failed) > len(rows) else ""
    return Section(
        "Trials that failed", tables=[Table("What went wrong", ["trial", "state", "reason"], rows, note)] if rows else []
    )


def _origin(facts: RunFacts) -> Section:
    known = [(text, facts.tags[tag]) for tag, text in _TAGS.items() if tag in facts.tags]
    return Section("Where it comes from", facts=[("Run", facts.run_id), *known])


def _again(facts: RunFacts) -> Section:
    study = facts.tags.get("optuna.study", "NAME")
    commands = [("More trials in this study", f"{origin.RUN} -e tune -P study={study} -P extend=true -P trials=MORE")]
    if "best.run" in facts.tags:
        winner = facts.tags["best.run"]
        commands.insert(0, ("Train the winner again", f"{origin.RUN} -e train -P from_run={winner}"))
        labels = f"{origin.RUN} -e predict -P input=FOLDER_OF_IMAGES -P model=runs:/{winner}"
        commands.append(("Label images with the winner", labels))
    return Section("What next", commands=commands)
