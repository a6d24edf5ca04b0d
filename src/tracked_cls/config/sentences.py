"""A tree that was checked, or one line per mistake: key, rule, value and near match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from tracked_cls.config import help as help_text
from tracked_cls.config.tree import Section, extra, options, section_of, unset_to_none
from tracked_cls.errors import UserError, did_you_mean, lookup

S = TypeVar("S", bound=Section)
_NAME = "[key]"  # what pydantic calls the name of an entry


def build(cls: type[S], tree: dict[str, Any]) -> S:
    """Return the checked tree; raises `UserError` with one line per mistake."""
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        fields = dict(options(cls))
        lines = [_sentence(item, fields) for item in _by_option(error, tree, fields)]
        raise UserError("\n".join(lines)) from None


def _by_option(error: ValidationError, tree: dict[str, Any], fields: Mapping[str, FieldInfo]) -> list[dict[str, Any]]:
    """Return one error per option: pydantic tells what each type that it could be, and each part of it, has against it."""
    items: dict[tuple[int | str, ...], dict[str, Any]] = {}
    for item in error.errors():
        loc = item["loc"]
        owners = [loc[:size] for size in range(len(loc) - 1, 1, -1) if ".".join(map(str, loc[:size])) in fields]
        if item["type"] in ("value_error", "extra_forbidden") or not owners:
            items[loc] = dict(item)
        elif loc[-1] == _NAME:  # says more than that a mapping is no text
            items[owners[0]] = {**item, "loc": (*owners[0], _NAME)}
        else:
            items.setdefault(owners[0], {**item, "loc": owners[0], "input": _at(tree, owners[0], item["input"])})
    return list(items.values())


def _at(tree: dict[str, Any], path: Sequence[int | str], otherwise: Any) -> Any:
    """Return what stands at a path of the tree."""
    value: Any = tree
    for part in path:
        if not isinstance(value, dict) or part not in value:
            return otherwise
        value = value[part]
    return value


def _sentence(item: dict[str, Any], fields: Mapping[str, FieldInfo]) -> str:
    """Say one pydantic error as key, rule and value."""
    key = ".".join(str(part) for part in item["loc"] if part != _NAME)
    if _NAME in item["loc"]:
        return (
            f"{key}: the name {item['input']!r} must be text: put it in quotes, YAML reads no, off, yes and on as true or false"
        )
    if item["type"] == "value_error":  # one of our own: it names key, rule and value itself
        return str(item["ctx"]["error"])
    field = fields.get(key) or fields.get(key.removesuffix(".name"))
    if item["type"] == "extra_forbidden" or field is None:
        leaf = key.rpartition(".")[2]
        return f"unknown key {key!r}{near_key(leaf, set(fields))}"
    rule = help_text.rule_of(field)
    unit = extra(field, "unit")
    near = did_you_mean(str(item["input"]), help_text.names_of(field)) if help_text.names_of(field) else ""
    return f"{key} must be {rule}{f' ({unit})' if unit else ''}, got {item['input']!r}{near}"


def option_value(cls: type[Section], key: str, value: Any) -> Any:
    """Return a value of one option as `flatten` gives it: read by the option's type, and its own word in place of None.

    Raises `UserError` with the option's rule. Lists and mappings stay as they are: only a whole tree can check them.
    """
    field = dict(options(cls))[key]
    owner, leaf = _owner(cls, key)
    plain = unset_to_none(owner, {leaf: value})[leaf]
    word = extra(field, "unset")
    if plain is None and word:
        return word
    if "list" in str(field.annotation) or "dict" in str(field.annotation):
        return plain
    names = help_text.names_of(field) if extra(field, "choices") else []
    if names:
        lookup(str(plain), dict.fromkeys(names), key)
    rule: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    adapter: TypeAdapter[Any] = TypeAdapter(rule, config=Section.model_config)
    try:
        return adapter.validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(_sentence({"loc": (key,), "type": first["type"], "input": value}, {key: field})) from None


def _owner(cls: type[Section], key: str) -> tuple[type[Section], str]:
    """Return (the section that holds a canonical key, the name of its field)."""
    for part in key.split("."):
        section = section_of(cls.model_fields[part])
        if section is None:
            return cls, part
        cls = section
    return cls, "name"


def near_key(key: str, known: set[str]) -> str:
    """Return the near match of a key, preferring a dotted key whose last part is exactly what was typed."""
    same_leaf = sorted(name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2])
    if same_leaf:
        return f"; did you mean {' or '.join(map(repr, same_leaf[:3]))}?"
    return did_you_mean(key, known) or "; --help lists all options"
