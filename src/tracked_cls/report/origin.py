"""Where a run comes from, for its page: options, data, weights, code, environment, and how to go on from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tracked_cls.config import TrainConfig, flatten, override
from tracked_cls.config.tree import show
from tracked_cls.errors import UserError
from tracked_cls.report.artifacts import RunFacts, read_mapping, scored_split
from tracked_cls.report.numbers import duration
from tracked_cls.report.page import Section, Table

RUN = "mlflow run . --env-manager local"
_LINEAGE = {
    "data.name": "Data",
    "data.digest": "Data digest",
    "content.digest": "Content digest",
    "prepare.run": "Prepared by run",
    "replays": "Repeats run",
    "mlflow.parentRunId": "Belongs to run",
    "model": "Model",
    "model.address": "Model, as asked for",
    "weights": "Weights kept",
    "weights.digest": "Weights digest",
    "test.reads": "Test images looked at, times",
    "git.commit": "Code, commit",
    "git.dirty": "Code, changed since",
    "host": "Machine",
}
_NO_WEIGHTS = ("", "none", "auto", "off")


def lead(facts: RunFacts, *words: str) -> str:
    """Return the line below a page's title: some words, the data's digest, how long it took, and how it ended if not well."""
    digest = f"data digest {facts.tags['data.digest']}" if "data.digest" in facts.tags else ""
    took = "" if facts.seconds is None else duration(facts.seconds)
    state = "" if facts.status == "FINISHED" else facts.status.lower()
    return " · ".join(part for part in (*words, digest, took, state) if part)


def registry_sentences(facts: RunFacts) -> list[str]:
    """Return what the registry made of a run's model, where it was asked."""
    if "promotion.verdict" not in facts.tags:
        return []
    reason = facts.tags.get("promotion.reason", "")
    return [f"Registry: {facts.tags['promotion.verdict']}{f', {reason}' if reason else ''}."]


def options(facts: RunFacts) -> Section:
    """Return what was set: first what differs from the defaults, then all of it, on a click."""
    if not facts.params:
        return Section("Options")
    every = Table(f"All {len(facts.params)} options", ["option", "value"], sorted(facts.params.items()), folded=True)
    if facts.kind not in ("train", "trial", "fold"):
        return Section("Options", tables=[every])
    defaults = _defaults(facts.params)
    differing = {key: value for key, value in facts.params.items() if key in defaults and not _same(value, defaults[key])}
    if not differing:
        return Section("Options", text=["All options are at their defaults."], tables=[every])
    rows = [[key, value, show(defaults[key])] for key, value in differing.items()]
    return Section("Options", tables=[Table("What differs from the defaults", ["option", "value", "default"], rows), every])


def _defaults(params: Mapping[str, str]) -> Mapping[str, object]:
    """Return the defaults of ``train``, those of the chosen model, optimizer and so on among them."""
    plain = flatten(TrainConfig())
    choices: dict[str, object] = {key: params[key] for key in ("model", "loss", "optimizer", "scheduler") if key in params}
    try:
        return {**flatten(override(TrainConfig(), choices)), **{key: plain[key] for key in choices}}
    except UserError:  # a choice that this version does not know
        return plain


def _same(value: str, default: object) -> bool:
    """Whether a param's text means the default: ``1e-3`` is 0.001."""
    try:
        return float(value) == float(show(default))
    except ValueError:
        return value == show(default)


def lineage(facts: RunFacts) -> Section:
    """Return which data, weights and code the run comes from."""
    known = [(words, facts.tags[tag]) for tag, words in _LINEAGE.items() if facts.tags.get(tag)]
    start = facts.params.get("model.weights", "")
    begun = [("Began from weights", start)] if start not in _NO_WEIGHTS else []
    return Section("Where it comes from", facts=[("Run", facts.run_id), *known, *begun])


def environment(facts: RunFacts) -> Section:
    """Return the versions that numbers depend on."""
    path = facts.folder / "environment.json"
    content = read_mapping(path) if path.is_file() else {}
    packages = content.pop("packages", {})
    versions = list(packages.items()) if isinstance(packages, dict) else []
    return Section("Environment", facts=[(str(name), str(value)) for name, value in [*content.items(), *versions]])


def next_steps(facts: RunFacts) -> Section:
    """Return the commands that repeat the run, compare it, and use its model."""
    commands = [
        (
            "Compare it with another run: is the difference more than chance?",
            f"{RUN} -e report -P runs=OTHER_RUN,{facts.run_id}",
        )
    ]
    if facts.kind == "evaluate":
        model, split = facts.tags.get("model", "models:/NAME/VERSION"), scored_split(facts) or "test"
        commands.insert(0, ("Score this model again", f"{RUN} -e evaluate -P model={model} -P split={split}"))
    else:
        again = f"{RUN} -e train -P from_run={facts.run_id}"
        commands.insert(0, ("The same training again, from this run's own configuration", again))
    if facts.kind == "train":
        labels = f"{RUN} -e predict -P input=FOLDER_OF_IMAGES -P model=runs:/{facts.run_id}"
        commands.append(("Label images with its model", labels))
    return Section("What next", commands=commands)


PARTS: Sequence[Callable[[RunFacts], Section]] = (options, lineage, environment, next_steps)
