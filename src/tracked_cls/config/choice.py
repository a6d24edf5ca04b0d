"""Sections that pick something by name, whose options belong to some of the names only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pydantic import model_validator

from tracked_cls.config.tree import Section, unset_to_none
from tracked_cls.errors import UserError, lookup

Own = dict[str, dict[str, Any]]


class Choice(Section):
    """A choice whose options belong to some of its names only: one set beside another name is an error.

    `own` maps each name to its options with their defaults.
    """

    choice: ClassVar[bool] = True
    own: ClassVar[Own] = {}
    title: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _resolve_own(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = {key: value for key, value in unset_to_none(cls, values).items() if value is not None}
        name = str(given.get("name", cls.model_fields["name"].default))
        own = lookup(name, cls.own, cls.title)
        for key in given:
            takers = [choice for choice, options in cls.own.items() if key in options]
            if takers and name not in takers:
                raise UserError(f"{cls.title}.{key} has no effect with {cls.title}={name}; it belongs to {', '.join(takers)}")
        return {**own, **cls.implied(given), **given}

    @classmethod
    def implied(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Return the values of options that follow from the ones `given`."""
        return {}

    def without_effect(self) -> set[str]:
        """Options that belong to other names only."""
        return {key for options in self.own.values() for key in options} - set(self.own[self.name])  # type: ignore[attr-defined]


def require_numbers(key: str, values: Iterable[Any]) -> None:
    """Raise `UserError` for what is no finite number of 0 or more: pydantic would name a key that no user knows."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise UserError(f"{key} must be numbers of 0 or more, got {value!r}")


def names_by_default(own: Own, key: str) -> str:
    """Return the defaults of an option with the names that have them: ``0.9 (adam, adamw), 0.95 (muon)``."""
    names: dict[Any, list[str]] = {}
    for name, options in own.items():
        if options.get(key) is not None:
            names.setdefault(options[key], []).append(name)
    return ", ".join(f"{_plain(value)} ({', '.join(takers)})" for value, takers in names.items())


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, (bool, list)) else f"{value:g}"
