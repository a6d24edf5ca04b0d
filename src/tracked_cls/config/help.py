"""``--help`` and the reference of parameters, made from the options themselves."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from tracked_cls.config.tree import extra, options, show
from tracked_cls.config.verbs import Verb

_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list", dict: "a mapping"}


def rule_of(field: FieldInfo) -> str:
    """Return what a value must be, in words: ``a number > 0 and <= 100, or auto``."""
    names = names_of(field)
    what = f"one of {', '.join(names)}" if names else _TYPES[base_type(field.annotation)]
    bounds = [
        f"{sign} {getattr(rule, name):g}" for rule in field.metadata for name, sign in _BOUNDS.items() if hasattr(rule, name)
    ]
    pattern = next((rule.pattern for rule in field.metadata if getattr(rule, "pattern", None)), None)
    text = " ".join([what, " and ".join(bounds)]).strip() + (f" of the form {pattern}" if pattern else "")
    unset = extra(field, "unset")
    return f"{text}, or {unset}" if unset else text


def names_of(field: FieldInfo) -> list[str]:
    """Return the values an option of fixed names accepts; empty for any other option."""
    if base_type(field.annotation) is str and extra(field, "choices"):
        return list(extra(field, "choices"))
    for part in _parts(field.annotation):
        if get_origin(part) is Literal:
            return [str(value) for value in get_args(part)]
    return []


def default_of(field: FieldInfo) -> str:
    """Return the default as a user would type it."""
    value = field.get_default(call_default_factory=True)
    return str(extra(field, "unset") or "none") if value is None else show(value)


def rows(cls: type[Verb]) -> list[tuple[str, str, str, str]]:
    """Return (key, default, rule, meaning) of every option of a verb."""
    return [(key, default_of(field), rule_of(field) + _in_unit(field), field.description or "") for key, field in options(cls)]


def render(cls: type[Verb]) -> str:
    """Return the text of ``--help``: every key with default, range and meaning."""
    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    bare = f"\nKeys of `{cls.bare}.` may be given without it: --{_first_bare(cls)} ...\n" if cls.bare else ""
    head = [
        cls.summary,
        "",
        f"  mlflow run . -e {cls.verb} --env-manager local -P key=value ...",
        f"  python -m pipelines.{cls.verb} --key value ...",
        bare,
        f"  --params FILE        YAML file with any of the options below (default: {cls.params})",
        "  --print-config       print the resolved options and exit",
        "  --help               print this and exit",
        "",
    ]
    return "\n".join([*head, *_listing(rows(cls), width)]) + "\n"


def _listing(table: Sequence[tuple[str, str, str, str]], width: int) -> list[str]:
    lines: list[str] = []
    for key, default, rule, meaning in table:
        lines.append(f"  --{key}  [{default}]")
        lines += textwrap.wrap(f"{meaning} ({rule})", width, initial_indent="      ", subsequent_indent="      ")
    return lines


def _first_bare(cls: type[Verb]) -> str:
    return next(key for key, _ in options(cls) if key.startswith(f"{cls.bare}.")).removeprefix(f"{cls.bare}.")


def _in_unit(field: FieldInfo) -> str:
    unit = extra(field, "unit")
    return f"; {unit}" if unit else ""


def _parts(annotation: Any) -> list[Any]:
    """Return the members of a union without None, or the annotation itself."""
    is_union = get_origin(annotation) is Union or type(annotation).__name__ == "UnionType"
    return [part for part in get_args(annotation) if part is not NoneType] if is_union else [annotation]


def base_type(annotation: Any) -> Any:
    """Return the plain type of an option: int, float, bool, str, list or dict; of a union the first."""
    part = _parts(annotation)[0]
    return type(get_args(part)[0]) if get_origin(part) is Literal else get_origin(part) or part
