"""The search space: checked whole before anything runs, suggested by a trial, laid over a training's options."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice, product
from typing import TYPE_CHECKING, Any

from tracked_cls.config import TrainConfig, TuneConfig, flatten, override
from tracked_cls.config.tree import show
from tracked_cls.errors import UserError, did_you_mean, lookup
from tracked_cls.tuning.entries import canonical_name, read_entries
from tracked_cls.tuning.parameters import Choices, Parameter

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Assignment = dict[str, Any]  # name of a parameter -> its value, for those that are active together
_MAX_EXTREMES = 1000  # half a millisecond each
_NUM_DRAWS = 50


@dataclass(frozen=True)
class Space:
    """Parameters in their order, parents before children."""

    parameters: tuple[Parameter, ...]

    @classmethod
    def read(cls, raw: Mapping[Any, Any]) -> Space:
        """Return the space that ``tune.space`` describes; raises `UserError` naming entry, rule, value and cure."""
        return cls(read_entries(raw))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, ``@suffix`` included."""
        return tuple(parameter.name for parameter in self.parameters)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; equal spaces have equal ones, also where numbers or conditions were written otherwise."""
        return {parameter.name: parameter.to_dict() for parameter in self.parameters}

    # ---- assignments ---------------------------------------------------------------------------------------------

    def suggest(self, trial: BaseTrial) -> Assignment:
        """Return the values that a trial of Optuna tries."""
        return self._assign(lambda parameter: parameter.domain.suggest(parameter.name, trial))

    def overrides(self, assignment: Mapping[str, Any]) -> dict[str, Any]:
        """Return option -> value: what an assignment means to a training, presets resolved."""
        by_name = {parameter.name: parameter for parameter in self.parameters}
        chosen = [(lookup(name, by_name, "parameter of tune.space"), value) for name, value in assignment.items()]
        return {parameter.path: parameter.domain.resolve(value) for parameter, value in chosen}

    def config(self, cfg: TrainConfig, assignment: Mapping[str, Any]) -> TrainConfig:
        """Return what a trial of this assignment trains."""
        return override(cfg, self.overrides(assignment))

    def _assign(self, pick: Callable[[Parameter], Any]) -> Assignment:
        """Return a value for every parameter that the values before it make active."""
        assignment: Assignment = {}
        for parameter in self.parameters:
            if parameter.is_active(assignment):
                assignment[parameter.name] = pick(parameter)
        return assignment

    # ---- before anything runs ------------------------------------------------------------------------------------

    def check(self, cfg: TrainConfig) -> list[TrainConfig]:
        """Return distinct configurations from the edges and the inside of the space; raises `UserError` where one cannot be.

        Every choice and both ends of every range are tried beside each value of its parents, the rest at its usual value;
        then some draws. What is not among them can still be refused: a space of many parameters has more corners.
        """
        draws = random.Random(0)
        drawn = (self._assign(lambda parameter: parameter.domain.draw(draws)) for _ in range(_NUM_DRAWS))
        tried = {_key(each): each for each in chain(islice(self._extremes(cfg), _MAX_EXTREMES), drawn)}
        configs = [self._checked(cfg, assignment) for assignment in tried.values()]
        return list({each.model_dump_json(): each for each in configs}.values())

    def _extremes(self, cfg: TrainConfig) -> Iterator[Assignment]:
        usual = {parameter.name: _usual(parameter, cfg) for parameter in self.parameters}
        for parameter in self.parameters:
            for parents in product(*parameter.when.values()):
                for value in parameter.domain.extremes:
                    fixed = {**usual, **dict(zip(parameter.when, parents, strict=True)), parameter.name: value}
                    yield self._assign(lambda each, fixed=fixed: fixed[each.name])  # type: ignore[misc]

    def _checked(self, cfg: TrainConfig, assignment: Assignment) -> TrainConfig:
        try:
            return self.config(cfg, assignment)
        except UserError as error:
            sentence = str(error).splitlines()[0]
            cure = f"; give {sentence.split()[0]} a `when`" if "has no effect" in sentence else ""
            raise UserError(f"tune.space: {sentence}{cure} (tried {_listing(assignment)})") from None

    # ---- the first trial -----------------------------------------------------------------------------------------

    def baseline(self, cfg: TrainConfig, given: Mapping[str, Any]) -> Assignment:
        """Return the assignment that is the configuration itself, with `given` (by name or by option) laid over it.

        Raises `UserError` for a value that the space does not offer, and for one given beside which it has no effect.
        """
        given = {canonical_name(str(key)): value for key, value in given.items()}
        try:
            base = override(cfg, self._given_options(given))
        except UserError as error:
            raise UserError(f"tune.baseline: {str(error).splitlines()[0]}") from None
        assignment = self._assign(lambda parameter: _own_value(parameter, base))
        active = [parameter for parameter in self.parameters if parameter.name in assignment]
        for key in given:
            if not any(key in (parameter.name, parameter.path) for parameter in active):
                raise UserError(f"tune.baseline: {key} has no effect beside {_listing(assignment)}; leave it out")
        for parameter in active:
            _require_inside(parameter, base, assignment[parameter.name])
        return assignment

    def _given_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return option -> value of what is given by name or by option, presets resolved."""
        found: dict[str, Any] = {}
        for key, value in given.items():
            meant = [parameter for parameter in self.parameters if key in (parameter.name, parameter.path)]
            if not meant:
                known = {known for each in self.parameters for known in (each.name, each.path)}
                raise UserError(
                    f"{key!r} is not in tune.space{did_you_mean(key, known)}; set what is not searched outside of tune"
                )
            if meant[0].path in found:
                raise UserError(f"{meant[0].path} is given twice")
            found[meant[0].path] = _resolved(meant, value)
        return found


def corners(cfg: TuneConfig) -> list[TrainConfig]:
    """Return what the search of a configuration may train at its extremes, after everything was checked that needs no data.

    Raises `UserError` for a space or a baseline that cannot be.
    """
    space = Space.read(cfg.tune.space)
    found = space.check(cfg.train)
    if cfg.tune.baseline is not None:
        space.baseline(cfg.train, cfg.tune.baseline)
    return found


def _resolved(meant: list[Parameter], value: Any) -> Any:
    """Return the value of a preset by its name, or any other value itself."""
    presets = [each.domain.presets for each in meant if isinstance(each.domain, Choices) and each.domain.presets]
    return next((table[value] for table in presets if isinstance(value, str) and value in table), value)


def _own_value(parameter: Parameter, cfg: TrainConfig) -> Any:
    """Return the value of a parameter that is the configuration's own, whether the space offers it or not.

    A preset is known by what the option reads it as, so that spelling does not matter.
    """
    own = flatten(cfg).get(parameter.path)
    if not isinstance(parameter.domain, Choices) or parameter.domain.presets is None:
        return own
    read = {name: override(cfg, {parameter.path: value}) for name, value in parameter.domain.presets.items()}
    return next((name for name, each in read.items() if flatten(each)[parameter.path] == own), None)


def _require_inside(parameter: Parameter, cfg: TrainConfig, value: Any) -> None:
    if value is None or not parameter.domain.holds(value):
        raise UserError(
            f"tune.baseline: {parameter.name} is {show(flatten(cfg).get(parameter.path))}, which the space does not offer "
            f"({parameter.domain}): widen it, set tune.baseline to {{{parameter.name}: ...}}, or tune.baseline to off"
        )


def _usual(parameter: Parameter, cfg: TrainConfig) -> Any:
    """Return the configuration's own value where the space offers it, else the first or lowest."""
    try:
        own = _own_value(parameter, cfg)
    except UserError:  # a preset that goes with another choice only
        own = None
    return own if own is not None and parameter.domain.holds(own) else parameter.domain.extremes[0]


def _key(assignment: Assignment) -> str:
    return repr(sorted(assignment.items()))


def _listing(assignment: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={show(value)}"
                     for name, value in assignment.items())  # fmt: skip
