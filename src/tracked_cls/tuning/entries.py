"""From what a user writes under ``tune.space`` to parameters, each rule checked: no configuration is built here."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from tracked_cls.config import TrainConfig, near_key, option_value
from tracked_cls.config.help import base_type
from tracked_cls.config.tree import options, show
from tracked_cls.errors import UserError, did_you_mean, lookup
from tracked_cls.tuning.parameters import Choices, Parameter, Plain, Range

_FIELDS = dict(options(TrainConfig))
_RANGE_KEYS = ("low", "high", "log", "step")
_KEYS = ("choices", *_RANGE_KEYS, "when")
_DATA = "trials are compared on the same data"
_MACHINE = "it does not change what is learned"
_LENGTH = "trials are compared epoch by epoch"
_FIXED = {
    "data": _DATA,
    "limit": _DATA,
    "folds": _DATA,
    "seed": "all trials share it; a search for a lucky seed finds nothing that lasts",
    "epochs": _LENGTH,
    "training.max_steps": _LENGTH,
    "fast_dev_run": "it makes no model",
    "overfit_batches": "it makes no model",
    **dict.fromkeys(("tracking", "checkpoint", "promote", "device", "threads", "performance", "resume"), _MACHINE),
    **dict.fromkeys(("loader.workers", "loader.prefetch", "loader.pin_memory"), _MACHINE),
    **dict.fromkeys(("training.profile", "training.on_nan", "training.eval_batch_size"), _MACHINE),
    "from_run": "it names another configuration",
}


def read_entries(raw: Mapping[Any, Any]) -> tuple[Parameter, ...]:
    """Return the parameters of a space in their order; raises `UserError` naming entry, rule, value and cure."""
    if not raw:
        raise UserError("tune.space is empty: name options with [choices] or {low, high}, as params/tune.yaml does")
    names = {canonical_name(str(key)) for key in raw}
    taken: dict[str, Parameter] = {}
    for key, entry in raw.items():
        try:
            parameter = _read_entry(canonical_name(str(key)), entry, taken, names)
        except UserError as error:
            raise UserError(f"tune.space: {key}: {error}") from None
        taken[parameter.name] = parameter
    return tuple(taken.values())


def canonical_name(key: str) -> str:
    """Return the name of a parameter with its option's one name in it: ``model@a`` for ``model.name@a``."""
    path, at, suffix = key.partition("@")
    return f"{path if path in _FIELDS else path.removesuffix('.name')}{at}{suffix}"


def _read_entry(name: str, entry: Any, taken: Mapping[str, Parameter], names: set[str]) -> Parameter:
    path = name.partition("@")[0]
    _check_path(path)
    entry = {"choices": entry} if isinstance(entry, list) else entry
    _check_keys(path, entry)
    domain = _choices(path, entry["choices"]) if "choices" in entry else _range(path, entry)
    own = _when(entry["when"], taken, names) if "when" in entry else _implied(name, taken)
    parameter = Parameter(name, path, domain, _closed(own, taken))
    for other in taken.values():
        if other.path == path and not other.excludes(parameter):
            raise UserError(f"{other.name} can be active beside it: say `when` so that only one of them is")
    return parameter


def _check_path(path: str) -> None:
    if path not in _FIELDS:
        raise UserError(f"unknown option {path!r}{near_key(path, set(_FIELDS))}")
    why = _FIXED.get(path) or _FIXED.get(path.partition(".")[0])
    if why:
        raise UserError(f"{path} is not searched: {why}")


def _check_keys(path: str, entry: Any) -> None:
    if not isinstance(entry, Mapping):
        raise UserError(f"must be [choices] or {{low, high}}, got {entry!r}")
    for key in map(str, entry):
        if f"{path}.{key}" in _FIELDS:
            raise UserError(f"unknown key {key!r}: an option has a line of its own, {path}.{key}: ...")
        if key not in _KEYS:
            raise UserError(f"unknown key {key!r}{did_you_mean(key, _KEYS)}")
    numeric = [key for key in _RANGE_KEYS if key in entry]
    if "choices" in entry and numeric:
        raise UserError(f"choices and {numeric[0]} do not go together: give choices, or low and high")
    missing = [key for key in ("low", "high") if key not in entry]
    if "choices" not in entry and missing:
        raise UserError(f"{' and '.join(missing)} missing: give choices, or low and high")


# ---- choices ---------------------------------------------------------------------------------------------------------


def _choices(path: str, given: Any) -> Choices:
    if not isinstance(given, (list, Mapping)):
        raise UserError(f"choices must be a list, or {{name: value}}, got {given!r}")
    if not given:
        raise UserError("choices are empty: give one or more")
    domain = _presets(path, given) if isinstance(given, Mapping) else Choices(tuple(_plain(path, value) for value in given))
    resolved = [domain.resolve(value) for value in domain.values]
    twice = next((value for index, value in enumerate(resolved) if value in resolved[:index]), None)
    if twice is not None:
        raise UserError(f"choices hold {show(twice)} twice")
    return domain


def _presets(path: str, given: Mapping[Any, Any]) -> Choices:
    for name in given:
        if not isinstance(name, str):
            raise UserError(
                f"the name {name!r} must be text: put it in quotes, YAML reads no, off, yes and on as true or false"
            )
    return Choices(tuple(given), {name: option_value(TrainConfig, path, value) for name, value in given.items()})


def _plain(path: str, value: Any) -> Plain:
    """Return a choice as its option reads it."""
    if isinstance(value, (list, Mapping)):
        raise UserError("a choice among lists or mappings gives each a name: {choices: {name: value, ...}}")
    read: Plain = option_value(TrainConfig, path, value)
    return read


# ---- ranges ----------------------------------------------------------------------------------------------------------


def _range(path: str, entry: Mapping[str, Any]) -> Range:
    kind = base_type(_FIELDS[path].annotation)
    if kind not in (int, float):
        raise UserError("takes no range, as it is no number: give choices")
    low, high = (_bound(path, key, entry[key]) for key in ("low", "high"))
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"log must be true or false, got {log!r}")
    step = _step(kind, entry["step"]) if entry.get("step") is not None else None
    _check_range(low, high, log, step)
    return Range(low, high, log, step)


def _bound(path: str, key: str, value: Any) -> float:
    read = option_value(TrainConfig, path, value)
    if not isinstance(read, (int, float)):
        raise UserError(f"{key} must be a number, got {value!r}")
    return read


def _step(kind: type, value: Any) -> float:
    try:
        step = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        step = float("nan")
    if not 0 < step < float("inf") or (kind is int and step != int(step)):
        raise UserError(f"step must be a {'whole ' if kind is int else ''}number above 0, got {value!r}")
    return int(step) if kind is int else step


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    if low == high:
        raise UserError(f"low and high are both {low:g}, so there is nothing to search: set the option itself, outside of tune")
    if low > high:
        raise UserError(f"low must be below high, got {low:g} and {high:g}")
    if log and low <= 0:
        raise UserError(f"log needs low above 0, got {low:g}")
    if log and step is not None:
        raise UserError(f"log and step={step:g} do not go together; choose one")
    left = (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)) if step is not None else Decimal(0)
    if left:
        nearest = Decimal(str(high)) - left
        raise UserError(
            f"step={step:g} does not lead from {low:g} to {high:g}; the last value on it is {nearest.normalize():f}"
        )


# ---- when ------------------------------------------------------------------------------------------------------------


def _when(given: Any, taken: Mapping[str, Parameter], names: set[str]) -> dict[str, tuple[Plain, ...]]:
    if not isinstance(given, Mapping) or not given:
        raise UserError(f"when must be {{entry: [choices]}}, got {given!r}")
    found: dict[str, tuple[Plain, ...]] = {}
    for key, values in given.items():
        name = canonical_name(str(key))
        if name not in taken and name in names:
            raise UserError(f"when names {name}, which comes later: a parent must stand before its child")
        parent = lookup(name, taken, "entry in when")
        found[name] = _parent_values(parent, values if isinstance(values, list) else [values])
    return found


def _parent_values(parent: Parameter, given: list[Any]) -> tuple[Plain, ...]:
    """Return the values of a parent that a `when` lists, in the parent's order."""
    if not isinstance(parent.domain, Choices):
        raise UserError(f"when names {parent.name}, which is a range: only choices can be a parent")
    if not given:
        raise UserError(f"when lists no value of {parent.name}: give one or more of {parent.domain}")
    read = [value if parent.domain.presets is not None else _plain(parent.path, value) for value in given]
    for value in read:
        if value not in parent.domain.values:
            near = did_you_mean(show(value), map(show, parent.domain.values))
            raise UserError(f"when needs {parent.name}={show(value)}, which is not among its choices{near}")
    return tuple(value for value in parent.domain.values if value in read)


def _implied(name: str, taken: Mapping[str, Parameter]) -> dict[str, tuple[Plain, ...]]:
    """Return what a suffix stands for: the choice of that name, of an entry before it in the same section."""
    path, has_suffix, suffix = name.partition("@")
    if not has_suffix:
        return {}
    section = path.rpartition(".")[0]
    parents = [
        (other.name, value)
        for other in taken.values()
        if section in (other.path, other.path.rpartition(".")[0]) and isinstance(other.domain, Choices)
        for value in other.domain.values
        if show(value) == suffix
    ]
    if len(parents) != 1:
        which = " and ".join(parent for parent, _ in parents) or "no entry above it in its section"
        raise UserError(f"@{suffix} is a choice of {which}: say when: {{entry: [choices]}}")
    return {parents[0][0]: (parents[0][1],)}


def _closed(own: Mapping[str, tuple[Plain, ...]], taken: Mapping[str, Parameter]) -> dict[str, tuple[Plain, ...]]:
    """Return the conditions of a parameter with those that its parents need, in the order of the space."""
    needed = [own, *(taken[name].when for name in own)]
    closed: dict[str, tuple[Plain, ...]] = {}
    for name in taken:
        lists = [conditions[name] for conditions in needed if name in conditions]
        if lists:
            closed[name] = tuple(value for value in lists[0] if all(value in other for other in lists))
            if not closed[name]:
                raise UserError(f"it can never be active: its parents need different values of {name}")
    return closed
