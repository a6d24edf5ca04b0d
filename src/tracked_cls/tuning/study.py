"""A study: what is searched by which rules on which data, where it is kept, and how far it has come."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tracked_cls import durable, job, preparation
from tracked_cls.config import TrainConfig, TuneConfig, workspace
from tracked_cls.config.tree import show
from tracked_cls.data.cache import Prepared
from tracked_cls.errors import UserError
from tracked_cls.provenance import num_cores
from tracked_cls.tracking import Tracker
from tracked_cls.tuning.claims import counted, errors_in_a_row, open_slots, take_over, trial_id
from tracked_cls.tuning.parameters import Choices, Range
from tracked_cls.tuning.sampling import make_pruner, make_sampler
from tracked_cls.tuning.space import Space, corners
from tracked_cls.tuning.storage import open_storage
from tracked_cls.tuning.table import ranked

optuna.logging.set_verbosity(optuna.logging.ERROR)  # a line per trial is ours to say

TRIALS = "trials"  # folder of checkpoints in that of a study
Direction = Literal["minimize", "maximize"]

_FINGERPRINT, _RUN = "fingerprint", "mlflow_run_id"
_STOPPED, _FAILED = "stopped", "failed"
_ROUND, _FIRST = "round", "first_of_round"  # of an extended study: how often, and its first trial since
_PATIENCE_SECONDS = 10.0
_RULES = ("trials", "metric", "minimize", "max_parameters", "max_flops", "max_latency_ms")


@dataclass(frozen=True, eq=False)
class Search:
    """A study and all that its trials need; `folder` holds the local state, `cfg` has plain threads."""

    cfg: TuneConfig
    space: Space
    study: Study
    storage: BaseStorage
    prepared: Prepared
    folder: Path

    @property
    def name(self) -> str:
        """The name of the study."""
        return str(self.study.study_name)

    @property
    def direction(self) -> Direction:
        """Which way the metric is better: ``maximize`` or ``minimize``."""
        return direction(self.cfg)

    @property
    def run_id(self) -> str | None:
        """The MLflow run of the study."""
        found = self.study.user_attrs.get(_RUN)
        return None if found is None else str(found)

    def adopt(self, run_id: str) -> None:
        """Remember the MLflow run of the study."""
        self.study.set_user_attr(_RUN, run_id)

    @property
    def stopped(self) -> str | None:
        """Why no further trial is started, None while there is no reason."""
        found = self.study.user_attrs.get(_STOPPED)
        return str(found) if found else None

    @property
    def failed(self) -> bool:
        """Whether errors stopped the study: it ends without a winner, and the same command tries again."""
        return bool(self.study.user_attrs.get(_FAILED))

    def stop(self, reason: str, *, failed: bool) -> None:
        """Let no worker start a further trial."""
        self.study.set_user_attr(_FAILED, failed)
        self.study.set_user_attr(_STOPPED, reason)

    def go_on_after_errors(self) -> None:
        """Take back a stop for errors, whose cause may be mended."""
        if self.failed:
            _clear_stop(self.study)

    @property
    def outcome(self) -> dict[str, Any] | None:
        """What the search found, None before its end."""
        kept = self.study.user_attrs.get(self._outcome_key)
        return None if kept is None else dict(kept)

    def conclude(self, outcome: dict[str, Any]) -> None:
        """Keep what the search found, for this number of trials."""
        self.study.set_user_attr(self._outcome_key, outcome)

    @property
    def round(self) -> int:
        """How often the study was extended: each time it comes to an end of its own."""
        return int(self.study.user_attrs.get(_ROUND, 0))

    @property
    def _outcome_key(self) -> str:
        return f"outcome {self.round} {self.cfg.tune.finalists}x{self.cfg.tune.finalist_seeds}"

    @property
    def best(self) -> FrozenTrial | None:
        """The best trial on these data so far."""
        found = ranked(self.study, self.prepared.manifest.digest)
        return found[0] if found else None

    @property
    def num_trials(self) -> int:
        """How many trials there are, in whatever state."""
        return len(self.study.get_trials(deepcopy=False))

    @property
    def open_slots(self) -> int:
        """How many trials may still be started."""
        return 0 if self.stopped else open_slots(self.study, self.cfg.tune.trials)

    def stop_if_due(self, first_number: int, seconds: float) -> None:
        """Stop where errors (from trial `first_number` on), stagnation or the `seconds` since the start say so."""
        tune = self.cfg.tune
        if self.stopped:
            return
        if errors_in_a_row(self.study, first_number) >= tune.max_errors:
            self.stop(f"{tune.max_errors} trials in a row failed (tune.max_errors)", failed=True)
        elif tune.stagnation is not None and _without_better(self) >= tune.stagnation:
            self.stop(f"no better value in {tune.stagnation} trials (tune.stagnation)", failed=False)
        elif tune.timeout_minutes is not None and seconds > 60 * tune.timeout_minutes and self.best is not None:
            self.stop(f"tune.timeout_minutes={tune.timeout_minutes:g} are over", failed=False)


def direction(cfg: TuneConfig) -> Direction:
    """Return which way the metric of a search is better."""
    return "maximize" if cfg.tune.metric == "val_accuracy" else "minimize"


def folder_of(cfg: TuneConfig) -> Path:
    """Return where the local state of a study is kept."""
    return workspace(cfg.tracking) / cfg.checkpoint.store / "studies" / name_of(cfg)


def name_of(cfg: TuneConfig) -> str:
    """Return the name of the study that a configuration means."""
    return cfg.tune.study or cfg.data.label


def open_search(cfg: TuneConfig, tracker: Tracker) -> Search:
    """Check everything, prepare what is missing, and open or make the study.

    Raises `UserError` before any training: for a space or a baseline that cannot be, a storage that cannot be reached, and a
    study that was begun with something else.
    """
    extremes = corners(cfg)
    _check(extremes)
    space, pruner = Space.read(cfg.tune.space), _pruner(cfg, extremes)
    storage = open_storage(cfg, name_of(cfg))
    prepared = preparation.open_or_prepare(cfg.data, cfg.tracking, tracker, transforms=cfg.transforms)
    with durable.locked(folder_of(cfg) / "open.lock"):
        study = _open_study(cfg, space, pruner, storage, prepared)
    threads = int(study.user_attrs["threads"])
    if cfg.threads not in (None, threads):
        raise UserError(f"threads={cfg.threads}: the trials of study {study.study_name!r} run with {threads}; leave it out")
    cfg = cfg.model_copy(update={"threads": threads})
    return Search(cfg, space, study, storage, prepared, folder_of(cfg))


def _check(extremes: Sequence[TrainConfig]) -> None:
    """Check each corner of the space for what only torch knows."""
    seen: set[str] = set()
    for corner in extremes:
        optimizer = corner.optimizer.name, corner.optimizer.args
        names = f"{corner.model} {optimizer} {corner.transforms}"  # numbers were checked with their ranges
        if names not in seen:
            seen.add(names)
            job.check(corner)


def _pruner(cfg: TuneConfig, extremes: Sequence[TrainConfig]) -> BasePruner:
    """Return the pruner, which waits for the longest warm-up of the space."""
    warmup = max(corner.scheduler.warmup_epochs or 0.0 for corner in extremes)
    return make_pruner(cfg.tune.pruner, epochs=cfg.epochs, warmup_epochs=warmup)


def _open_study(cfg: TuneConfig, space: Space, pruner: BasePruner, storage: BaseStorage, prepared: Prepared) -> Study:
    name, wanted = name_of(cfg), _fingerprint(cfg, space, prepared)
    sampler = make_sampler(cfg.tune.sampler, cfg.seed)
    directions: list[Direction] = [direction(cfg)] if cfg.tune.minimize is None else [direction(cfg), "minimize"]
    try:
        study = optuna.create_study(storage=storage, study_name=name, sampler=sampler, pruner=pruner, directions=directions)
        for left in filter(Path.is_dir, folder_of(cfg).iterdir()):  # by a study of this name that was deleted
            shutil.rmtree(left)
    except DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
        if not _is_unwritten(study):
            _require_same(cfg, study, space, storage, wanted)
            return study
    study.set_user_attr("threads", cfg.threads or max(1, num_cores() // cfg.tune.workers))
    study.set_user_attr(_FINGERPRINT, wanted)
    return study


def _is_unwritten(study: Study) -> bool:
    """Whether whoever made the study was killed before it wrote what it is about; another machine gets some seconds to."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while not (written := study.user_attrs.get(_FINGERPRINT) or study.get_trials(deepcopy=False)) and time.monotonic() < until:
        time.sleep(0.5)
    return not written


# ---- what makes two searches the same --------------------------------------------------------------------------------


def _fingerprint(cfg: TuneConfig, space: Space, prepared: Prepared) -> dict[str, Any]:
    """Return all that must not change while a study goes on, by the names that users know."""
    recipe = {key: value for key, value in _flat(job.recipe(cfg.train)).items() if key != "threads"}
    rules = {f"tune.{key}": getattr(cfg.tune, key) for key in _RULES}
    rules |= _flat({"tune": {"sampler": cfg.tune.sampler.model_dump(), "pruner": cfg.tune.pruner.model_dump()}})
    wanted = {**recipe, **rules, "tune.space": space.to_dict(), "the data's digest": prepared.manifest.digest}
    plain: dict[str, Any] = json.loads(json.dumps(wanted))
    return plain


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _require_same(cfg: TuneConfig, study: Study, space: Space, storage: BaseStorage, wanted: dict[str, Any]) -> None:
    """Refuse a study that was begun with other rules, unless it is to be extended, which then counts for it."""
    begun = study.user_attrs.get(_FINGERPRINT)
    if begun is None:
        raise UserError(f"study {study.study_name!r} in tune.storage was not made by tune; give another name (tune.study)")
    changed = [key for key in {**begun, **wanted} if begun.get(key) != wanted.get(key)]
    if not changed:
        return
    if not cfg.tune.extend:
        raise UserError(
            f"study {study.study_name!r} was begun with {_difference(changed, begun, wanted)}; tune.extend=true goes on with "
            "the change, another tune.study begins anew"
        )
    done = len(counted(study))
    if done >= cfg.tune.trials:
        raise UserError(f"tune.extend: study {study.study_name!r} has {done} trials; tune.trials must be above that")
    _require_same_kinds(study, space)
    fixed = [key for key in ("tune.metric", "tune.minimize") if key in changed]
    if fixed:
        raise UserError(f"tune.extend: {fixed[0]} cannot change later on: it tells which trial is better; another tune.study "
                        "begins anew")  # fmt: skip
    _drop_unfinished(study, storage, cfg)
    study.set_user_attr(_FIRST, len(study.get_trials(deepcopy=False)))
    study.set_user_attr(_ROUND, int(study.user_attrs.get(_ROUND, 0)) + 1)
    _clear_stop(study)
    study.set_user_attr(_FINGERPRINT, wanted)  # last: killed in between, the next start does it all again


def _drop_unfinished(study: Study, storage: BaseStorage, cfg: TuneConfig) -> None:
    """End trials that were begun before an extension and not finished: gone on with, they would mix two configurations."""
    take_over(study, storage, lock=folder_of(cfg) / TRIALS / "owners.lock", max_restarts=cfg.tune.max_restarts)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        if "owner" in trial.user_attrs:
            storage.set_trial_state_values(trial_id(study, storage, trial.number), TrialState.FAIL)


def _clear_stop(study: Study) -> None:
    study.set_user_attr(_STOPPED, "")
    study.set_user_attr(_FAILED, False)


def _difference(changed: list[str], begun: dict[str, Any], wanted: dict[str, Any]) -> str:
    shown = [f"{key}={_short(begun.get(key))} instead of {_short(wanted.get(key))}" for key in changed[:3]]
    return ", ".join(shown) + (f" and {len(changed) - 3} more changes" if len(changed) > 3 else "")


def _short(value: Any) -> str:
    text = "none" if value is None else show(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _require_same_kinds(study: Study, space: Space) -> None:
    """Refuse other choices for a name that trials have used: Optuna keeps them for good, and only ranges may move."""
    domains = {parameter.name: parameter.domain for parameter in space.parameters}
    for trial in study.get_trials(deepcopy=False):
        for name, used in trial.distributions.items():
            if name in domains and not _is_kind_of(used, domains[name]):
                raise UserError(
                    f"tune.extend: trials of study {study.study_name!r} have tried {name} as {used}, and choices cannot change "
                    "later on; another tune.study begins anew"
                )


def _is_kind_of(used: BaseDistribution, domain: Choices | Range) -> bool:
    if isinstance(domain, Choices):
        return isinstance(used, CategoricalDistribution) and tuple(used.choices) == domain.values
    if not isinstance(used, IntDistribution if domain.is_whole else FloatDistribution):
        return False
    return used.log == domain.log


# ---- how far it has come ---------------------------------------------------------------------------------------------


def _without_better(search: Search) -> int:
    """Return how many trials have ended since the first that reached the best value, and since the study was extended."""
    best = search.best  # before the trials are looked through: others end meanwhile
    if best is None:
        return 0
    ended = [trial for trial in counted(search.study) if trial.state.is_finished() and trial.datetime_complete]
    ended.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    reached = next(place for place, trial in enumerate(ended) if _is_complete(trial) and trial.values == best.values)
    first = int(search.study.user_attrs.get(_FIRST, 0))
    return sum(trial.number >= first for trial in ended[reached + 1 :])


def _is_complete(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.COMPLETE
