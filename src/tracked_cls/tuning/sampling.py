"""Where the next trial looks, and which trials end early."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tracked_cls.config.tuning import PrunerConfig, SamplerConfig
from tracked_cls.errors import UserError, lookup

Make = Callable[[int], BaseSampler]  # seed -> sampler


class SeededByTrial(BaseSampler):
    """A sampler whose draws depend on (seed, number of the trial, name of the value) and the trials before.

    The state of a random generator is in no storage: with one seed for the whole study, a process that goes on with it, or a
    second worker, would repeat the first trials.
    """

    def __init__(self, make: Make, seed: int) -> None:
        self._make = make
        self._seed = seed
        self._inner = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Begin the trial's own sequence."""
        self._inner = self._make(self._derive(trial.number))
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return what is drawn together."""
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Draw values together."""
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one value, whichever of its trial's others were drawn before a kill."""
        inner = self._make(self._derive(trial.number, param_name))
        return inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Let the sampler note what it keeps in the storage."""
        self._inner.after_trial(study, trial, state, values)

    def _derive(self, *words: object) -> int:
        text = ":".join(map(str, (self._seed, *words)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def make_sampler(cfg: SamplerConfig, seed: int) -> BaseSampler:
    """Return the sampler of a study; a study that is stopped and continued draws the same values as one that is not."""
    return SeededByTrial(lookup(cfg.name, _SAMPLERS, "tune.sampler")(cfg), seed)


def make_pruner(cfg: PrunerConfig, *, epochs: int, warmup_epochs: float) -> BasePruner:
    """Return the pruner of trials that report after each of `epochs` epochs, counted from 1.

    Raises `UserError` where ``min_epochs`` leaves nothing to prune. What is worked out instead of given never does: trials too
    short to be pruned are not pruned.
    """
    if cfg.min_epochs is not None and cfg.min_epochs >= epochs:
        raise UserError(
            f"tune.pruner.min_epochs must be below epochs={epochs}, got {cfg.min_epochs}: no trial would ever end early; "
            "lower it, or set tune.pruner=none"
        )
    make = lookup(cfg.name, _PRUNERS, "tune.pruner")
    first = cfg.min_epochs or _first_epoch(epochs, warmup_epochs, share=4 if cfg.name == "median" else 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return make(cfg, first, epochs) if first < epochs else NopPruner()


def _first_epoch(epochs: int, warmup_epochs: float, share: int) -> int:
    """Return the epoch before which no trial ends: values of the warm-up say little."""
    return max(1, epochs // share, math.ceil(warmup_epochs) + 1 if warmup_epochs > 0 else 1)


def _tpe(cfg: SamplerConfig) -> Make:
    assert cfg.startup_trials is not None
    startup = cfg.startup_trials
    return lambda seed: TPESampler(n_startup_trials=startup, seed=seed)


def _random(cfg: SamplerConfig) -> Make:
    return lambda seed: RandomSampler(seed=seed)


def _gp(cfg: SamplerConfig) -> Make:
    assert cfg.startup_trials is not None
    startup = cfg.startup_trials
    return lambda seed: GPSampler(n_startup_trials=startup, seed=seed, warn_independent_sampling=False)  # once per `when`


def _successive_halving(cfg: PrunerConfig, first: int, epochs: int) -> BasePruner:
    assert cfg.reduction_factor is not None
    return SuccessiveHalvingPruner(min_resource=first, reduction_factor=cfg.reduction_factor)


def _hyperband(cfg: PrunerConfig, first: int, epochs: int) -> BasePruner:
    assert cfg.reduction_factor is not None
    return HyperbandPruner(min_resource=first, max_resource=epochs, reduction_factor=cfg.reduction_factor)


def _median(cfg: PrunerConfig, first: int, epochs: int) -> BasePruner:
    assert cfg.startup_trials is not None
    return MedianPruner(n_startup_trials=cfg.startup_trials, n_warmup_steps=first)


def _none(cfg: PrunerConfig, first: int, epochs: int) -> BasePruner:
    return NopPruner()


_SAMPLERS: Mapping[str, Callable[[SamplerConfig], Make]] = {"tpe": _tpe, "random": _random, "gp": _gp}
_PRUNERS: Mapping[str, Callable[[PrunerConfig, int, int], BasePruner]] = {
    "successive_halving": _successive_halving,
    "hyperband": _hyperband,
    "median": _median,
    "none": _none,
}
