"""One parameter of a search: which option it sets, which values it may take, and beside which others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from tracked_cls.config.tree import show
from tracked_cls.errors import lookup

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Plain = bool | int | float | str  # what a storage of Optuna keeps as a choice


@dataclass(frozen=True)
class Choices:
    """Some values, in their order; with `presets`, names that stand for lists, mappings or any other values."""

    values: tuple[Plain, ...]
    presets: Mapping[str, Any] | None = None

    def suggest(self, name: str, trial: BaseTrial) -> Any:
        """Return what Optuna picks."""
        return trial.suggest_categorical(name, self.values)

    def draw(self, random: Random) -> Any:
        """Return one value, all equally likely."""
        return random.choice(self.values)

    @property
    def extremes(self) -> Sequence[Any]:
        """The values at which a configuration could turn out impossible: all of them."""
        return self.values

    def holds(self, value: Any) -> bool:
        """Whether `value` is one of the choices."""
        return value in self.values

    def resolve(self, value: Any) -> Any:
        """Return what the option is set to."""
        return value if self.presets is None else lookup(value, self.presets, "preset")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; equal choices have equal ones."""
        presets = {} if self.presets is None else {"presets": dict(self.presets)}
        return {"choices": list(self.values), **presets}

    def __str__(self) -> str:
        return f"one of {', '.join(map(show, self.values))}"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole numbers where both are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int)

    def suggest(self, name: str, trial: BaseTrial) -> Any:
        """Return what Optuna picks."""
        if self.is_whole:
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def draw(self, random: Random) -> Any:
        """Return a number of the range, evenly spread (its logarithm, with `log`)."""
        if self.log:
            value = math.exp(random.uniform(math.log(self.low), math.log(self.high)))
            return min(max(round(value) if self.is_whole else value, self.low), self.high)
        step = self.step or (1 if self.is_whole else None)
        if step is None:
            return random.uniform(self.low, self.high)
        return min(self.low + step * random.randint(0, round((self.high - self.low) / step)), self.high)

    @property
    def extremes(self) -> Sequence[Any]:
        """The values at which a configuration could turn out impossible: both ends."""
        return (self.low, self.high)

    def holds(self, value: Any) -> bool:
        """Whether `value` is a number of the range, and on its step."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-8

    def resolve(self, value: Any) -> Any:
        """Return what the option is set to: the number itself."""
        return value

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; equal ranges have equal ones."""
        return {"low": self.low, "high": self.high, "log": self.log, "step": self.step}

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}" + (f" in steps of {self.step:g}" if self.step else "")


@dataclass(frozen=True)
class Parameter:
    """An entry of the space. One name has one domain, always: Optuna refuses a name whose choices change.

    `path` is the option it sets: its name without ``@suffix``. `when` maps names of parameters before it to the values
    beside which it is active: what its entry says, with what those parameters themselves need.
    """

    name: str
    path: str
    domain: Choices | Range
    when: Mapping[str, tuple[Plain, ...]] = field(default_factory=dict)

    def is_active(self, assignment: Mapping[str, Any]) -> bool:
        """Whether it is searched beside the values assigned before it."""
        return all(parent in assignment and assignment[parent] in values for parent, values in self.when.items())

    def excludes(self, other: Parameter) -> bool:
        """Whether the two are never active together."""
        shared = self.when.keys() & other.when.keys()
        return any(not set(self.when[name]) & set(other.when[name]) for name in shared)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; equal parameters have equal ones."""
        return {**self.domain.to_dict(), "when": {name: list(values) for name, values in self.when.items()}}
