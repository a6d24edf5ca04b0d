"""The pieces a configuration is made of: sections, options, and their flat and YAML forms."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

_NO_VALUE = {"none", "null", "~"}
_LONGEST, _BLANK = 10_000, ord(" ")


class Section(BaseModel):
    """A frozen group of options; unknown keys are refused.

    `choice`: the section picks something by ``name``, so that ``optimizer: sgd`` means ``optimizer.name: sgd`` and
    ``name`` is logged under the section's own key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)
    choice: ClassVar[bool] = False

    @field_validator("*")
    @classmethod
    def _plain_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse text that no name, path or address can be."""
        if isinstance(value, str) and (len(value) > _LONGEST or any(ord(letter) < _BLANK for letter in value)):
            got = f"{len(value)} characters" if len(value) > _LONGEST else repr(value[:100])
            raise ValueError(f"{info.field_name} must have at most {_LONGEST} characters and no control character, got {got}")
        return value

    def without_effect(self) -> set[str]:
        """Names of options that the chosen ``name`` does not take; they are neither shown nor logged."""
        return set()

    @model_validator(mode="before")
    @classmethod
    def _unset_words(cls, values: Any) -> Any:
        """Turn the word that means "not set" (``auto``, ``off``, ``none``) into None, option by option."""
        return unset_to_none(cls, values) if isinstance(values, Mapping) else values


def unset_to_none(cls: type[Section], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with None in place of each option's word for "not set".

    YAML reads ``off`` as false; and a boolean that stands where none belongs becomes text, so that it is no number.
    """
    plain = {key: _without_yaml_booleans(cls.model_fields.get(key), value) for key, value in values.items()}
    return {key: None if _means_unset(cls.model_fields.get(key), value) else value for key, value in plain.items()}


def option(
    default: Any, meaning: str, *, unit: str | None = None, unset: str | None = None, choices: Any = None, **rule: Any
) -> Any:
    """Declare one option: its default, one line of meaning, a unit, a range (pydantic's gt, ge, lt, le, pattern).

    `unset` is the word a user writes and reads for None: ``auto``, ``off``, ``none``. `choices` shows, in ``--help``,
    the names that a layer above accepts.
    """
    extra = {"unit": unit, "unset": unset, "choices": choices}
    return Field(default, description=meaning, json_schema_extra={k: v for k, v in extra.items() if v is not None}, **rule)


def extra(field: FieldInfo, key: str) -> Any:
    """Return what `option` stored under `key` for a field (``unit``, ``unset`` or ``choices``), else None."""
    return field.json_schema_extra.get(key) if isinstance(field.json_schema_extra, dict) else None


def section_of(field: FieldInfo) -> type[Section] | None:
    """Return the section class of a field, or None for a plain option."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def options(cls: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield (canonical dotted key, field) for every option of a tree, in the order of declaration."""
    for name, field in cls.model_fields.items():
        sub = section_of(field)
        if sub is not None:
            yield from options(sub, f"{prefix}{name}.")
        elif name == "name" and cls.choice:
            yield prefix.removesuffix("."), field
        else:
            yield f"{prefix}{name}", field


def flatten(config: Section) -> dict[str, Any]:
    """Return canonical dotted key -> value, with the words for "not set" (``auto``, ``off``) in place of None."""
    flat: dict[str, Any] = {}
    for key, field in options(type(config)):
        owner, value = _get(config, key)
        if key.rpartition(".")[2] not in owner.without_effect():
            flat[key] = extra(field, "unset") or "none" if value is None else value
    return flat


def show(value: Any) -> str:
    """Return a value the way a user would type it: JSON for lists and mappings, plain text for the rest."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, default=str) if isinstance(value, (list, tuple, dict)) else str(value)


def to_yaml(config: Section) -> str:
    """Return the resolved tree as YAML that `load` reads back to an equal tree."""
    tree: dict[str, Any] = {}
    for key, value in flatten(config).items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            if not isinstance(node.get(parent), dict):  # a choice was written as its bare name: make it a mapping
                node[parent] = {"name": node[parent]} if parent in node else {}
            node = node[parent]
        node[leaf] = json.loads(json.dumps(value))
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)


def _without_yaml_booleans(field: FieldInfo | None, value: Any) -> Any:
    if not isinstance(value, bool) or field is None or "bool" in str(field.annotation):
        return value
    return "off" if value is False and extra(field, "unset") == "off" else str(value).lower()


def _means_unset(field: FieldInfo | None, value: Any) -> bool:
    if field is None or field.is_required() or not isinstance(value, str):
        return False
    word = extra(field, "unset")
    return word is not None and value.lower() in {word, *_NO_VALUE}


def _get(config: Section, key: str) -> tuple[Section, Any]:
    """Return (the section that holds a canonical key, its value)."""
    owner, value = config, config
    for part in key.split("."):
        owner, value = value, getattr(value, part)
    return (value, value.name) if isinstance(value, Section) else (owner, value)  # type: ignore[attr-defined]
