"""Options of the search for better options."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from tracked_cls.config.choice import Choice, Own
from tracked_cls.config.sections import PromoteSection
from tracked_cls.config.tree import Section, option
from tracked_cls.errors import UserError

_SAMPLERS: Own = {"tpe": {"startup_trials": 10}, "random": {}, "gp": {"startup_trials": 10}}
_PRUNERS: Own = {
    "successive_halving": {"min_epochs": None, "reduction_factor": 3},
    "hyperband": {"min_epochs": None, "reduction_factor": 3},
    "median": {"min_epochs": None, "startup_trials": 5},
    "none": {},
}


class SamplerConfig(Choice):
    """Which values a trial tries."""

    title: ClassVar[str] = "tune.sampler"
    own: ClassVar[Own] = _SAMPLERS
    name: str = option(
        "tpe",
        "where the next trial looks: tpe learns from the trials before it; gp too, but not about options under a `when`",
        choices=list(_SAMPLERS),
    )
    startup_trials: int | None = option(
        None, "tpe, gp: trials drawn at random first; auto: 10", unit="trials", unset="auto", ge=1, le=10_000
    )


class PrunerConfig(Choice):
    """Which trials end early."""

    title: ClassVar[str] = "tune.pruner"
    own: ClassVar[Own] = _PRUNERS
    name: str = option(
        "successive_halving",
        "which trials end early: successive_halving goes on with the best third at 1, 3, 9, ... times min_epochs; hyperband "
        "mixes several starts of it, for 50 trials or more; median: below the median of the trials before",
        choices=list(_PRUNERS),
    )
    min_epochs: int | None = option(
        None,
        "no trial ends earlier; auto: a ninth of epochs (median: a quarter), and one more than the longest "
        "scheduler.warmup_epochs of the space",
        unit="epochs",
        unset="auto",
        ge=1,
    )
    reduction_factor: int | None = option(
        None, "successive_halving, hyperband: one of so many goes on; auto: 3", unset="auto", ge=2, le=100
    )
    startup_trials: int | None = option(
        None, "median: trials that are not pruned; auto: 5", unit="trials", unset="auto", ge=1, le=10_000
    )


class TuneSection(Section):
    """The search: its space, its budget, and how the winner is found."""

    trials: int = option(24, "trials in all, over all workers, machines and restarts", unit="trials", ge=1, le=100_000)
    workers: int = option(1, "processes on this machine that train trials", unit="processes", ge=1, le=256)
    study: str | None = option(
        None, "name of the study, which the same command continues; auto: the name of the data", unset="auto",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$",
    )  # fmt: skip
    storage: str | None = option(
        None,
        "where trials are kept: postgresql+psycopg://user@host/database for several machines, sqlite:///file, journal:///file; "
        "auto: Optuna's journal in a file beside the checkpoints",
        unset="auto",
    )
    extend: bool = option(False, "take more trials in a study whose trials, space, recipe or data are no longer the same")
    metric: Literal["val_accuracy", "val_loss"] = option(
        "val_accuracy", "what the search improves: the metric of the epoch whose weights are kept"
    )
    space: dict[str, Any] = option(
        {}, "option: {low, high, log, step} or [choices], with when: {option: [choices]} for what goes with some choices only"
    )
    baseline: dict[str, Any] | None = option(
        {},
        "options of the first trial that are to differ from those outside of tune; off: no such trial",
        unset="off",
    )
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    finalists: int = option(2, "best trials that are trained again, on fresh seeds", unit="trials", ge=1, le=100)
    finalist_seeds: int = option(2, "seeds that each of them is trained on", unit="seeds", ge=1, le=100)
    keep: int = option(3, "trials whose weights stay on disk: the best ones; 0: none", unit="trials", ge=0, le=100_000)
    minimize: Literal["parameters", "flops", "latency_ms"] | None = option(
        None, "a second objective, to be low; nothing is pruned then, and finalists come from the Pareto front", unset="off"
    )
    within: float = option(
        0.005, "with minimize: configurations whose metric is so near to the best count as equal, and the cheapest wins",
        ge=0, lt=1,
    )  # fmt: skip
    max_parameters: int | None = option(None, "a trial of a larger network is not trained", unset="off", ge=1)
    max_flops: float | None = option(
        None, "a trial whose network takes more for one image is not trained", unit="FLOPs", unset="off", gt=0
    )
    max_latency_ms: float | None = option(
        None, "a trial whose network is slower on one image is not trained; measured, so it needs a quiet machine",
        unit="ms", unset="off", gt=0,
    )  # fmt: skip
    stagnation: int | None = option(
        None, "stop after so many trials in a row without a better value; off: never (30 or more is wise)",
        unit="trials", unset="off", ge=1,
    )  # fmt: skip
    timeout_minutes: float | None = option(
        None, "start no trial after so long, once one is complete, and go on to the finalists", unit="min", unset="off", gt=0
    )
    max_errors: int = option(3, "failures in a row that stop the study", unit="trials", ge=1, le=10_000)
    max_restarts: int = option(
        2, "how often a trial is continued after its process was killed; once more, and it counts as failed", ge=0, le=100
    )
    lost_host: str | None = option(
        None, "name of a machine that is gone for good: its unfinished trials are taken over", unset="none"
    )

    @model_validator(mode="after")
    def _second_objective_goes_alone(self) -> TuneSection:
        if self.minimize is None and self.within != type(self).model_fields["within"].default:
            raise UserError(f"tune.within={self.within:g} has no effect without tune.minimize")
        if self.minimize is not None and self.stagnation is not None:
            raise UserError("tune.stagnation does not go with tune.minimize: of two objectives there is no best value")
        if self.minimize is not None and self.sampler.name == "gp":
            raise UserError("tune.sampler=gp does not go with tune.minimize: it takes minutes for a trial; use tpe")
        if self.minimize is not None and self.pruner != PrunerConfig():
            raise UserError("tune.pruner has no effect with tune.minimize: trials of two objectives are never pruned")
        return self


class TunePromoteSection(PromoteSection):
    """Registration of the winner."""

    auto: Literal["first", "always", "never"] = option(
        "always",
        "always: the winner is registered as challenger, and becomes champion if it is better; first: only while there is no "
        "champion; never",
    )
