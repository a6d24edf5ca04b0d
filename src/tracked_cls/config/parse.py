"""From a params file and the command line to one checked tree: YAML < ``--key value``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from tracked_cls.config import help as help_text
from tracked_cls.config.sections import TrackingConfig
from tracked_cls.config.tree import Section, extra, options, section_of, to_yaml
from tracked_cls.config.verbs import VERBS, Verb
from tracked_cls.config.workspace import workspace
from tracked_cls.errors import UserError, did_you_mean

V = TypeVar("V", bound=Verb)
Tree = dict[str, Any]
_NAME = "[key]"  # what pydantic calls the name of an entry


def load(cls: type[V], argv: Sequence[str], default_params: str = "params/train.yaml") -> V:
    """Return the resolved tree of a verb from its arguments.

    ``--params FILE`` names the YAML file; every other ``--key value`` overrides it; ``--help`` and ``--print-config``
    print and exit. Raises `UserError` with one line per mistake: key, value, rule and near match.
    """
    if "--help" in argv or "-h" in argv:
        _print_and_exit(help_text.render(cls))
    print_config = "--print-config" in argv
    given = _read_arguments(cls, [word for word in argv if word != "--print-config"])
    file = _find_params(given.pop("params", default_params))
    tree = _known_to(cls, _read_yaml(file), file)
    config = _build(cls, _merge(cls, tree, _nest(cls, given)))
    if print_config:
        _print_and_exit(to_yaml(config))
    return config


def _print_and_exit(text: str) -> NoReturn:
    print(text, end="" if text.endswith("\n") else "\n")
    sys.exit(0)


# ---- the command line ------------------------------------------------------------------------------------------------


def _read_arguments(cls: type[Verb], argv: Sequence[str]) -> dict[str, str]:
    """Return canonical dotted key -> text as typed. Accepts ``--key value``, ``--key=value`` and a bare boolean ``--key``."""
    fields = _keys(cls)
    given: dict[str, str] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"unexpected argument {word!r}; options look like --key value")
        key, has_value, value = word[2:].partition("=")
        key = _canonical(cls, key)
        if not has_value:
            is_switch = key in fields and fields[key].annotation is bool
            if words and not words[0].startswith("--"):
                value = words.pop(0)
            elif is_switch:
                value = "true"
            else:
                raise UserError(f"--{key} needs a value")
        if key in given and given[key] != value:
            raise UserError(f"--{key} was given twice: {given[key]!r} and {value!r}")
        given[key] = value
    return given


def _keys(cls: type[Verb]) -> dict[str, FieldInfo]:
    return dict(options(cls))


def _canonical(cls: type[Verb], key: str) -> str:
    """Return the one dotted name of a key as typed: ``model.name`` is ``model``, ``input`` is ``predict.input``."""
    known = _keys(cls)
    candidates = [key, key.removesuffix(".name"), f"{cls.bare}.{key}"]
    for candidate in candidates:
        if candidate in known or candidate == "params":
            return candidate
    raise UserError(f"unknown option --{key}{_near(key, {*known, 'params'})}")


def _near(key: str, known: set[str]) -> str:
    """Return the near match of a key, preferring a dotted key whose last part is exactly what was typed."""
    same_leaf = sorted(name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2])
    if same_leaf:
        return f"; did you mean {' or '.join(map(repr, same_leaf[:3]))}?"
    return did_you_mean(key, known) or "; --help lists all options"


def _nest(cls: type[Verb], given: Mapping[str, str]) -> Tree:
    """Return the nested tree of dotted keys, each text converted as far as its field's type needs."""
    fields = _keys(cls)
    tree: Tree = {}
    for key, text in given.items():
        _put(tree, key.split("."), _convert(key, text, fields[key]))
    return tree


def _put(tree: Tree, path: Sequence[str], value: Any) -> None:
    """Set a value in a nested tree; a choice that stands as its bare name becomes a mapping when it gets options."""
    *parents, leaf = path
    for parent in parents:
        if not isinstance(tree.get(parent, {}), dict):
            tree[parent] = {"name": tree[parent]}
        tree = tree.setdefault(parent, {})
    if isinstance(tree.get(leaf), dict) and not isinstance(value, dict):
        tree[leaf]["name"] = value
    else:
        tree[leaf] = value


def _convert(key: str, text: str, field: FieldInfo) -> Any:
    """Read lists, mappings and choices among numbers as YAML; leave the rest to pydantic, which knows the field's type.

    A bare word (``features.*``, which YAML takes, or ``*.bn1.*``, which it does not) is a list of one where texts belong.
    """
    if text in help_text.names_of(field) and text.isdecimal():
        return int(text)
    if "list" not in str(field.annotation) and "dict" not in str(field.annotation):
        return text
    is_texts = field.annotation == list[str]
    if is_texts and not text.lstrip().startswith(("[", "{", "'", '"')):
        return [text]
    try:
        value = yaml.safe_load(text)
        return [value] if is_texts and isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise UserError(f"{key}: {text!r} is not a YAML list or mapping ({_first_line(error)})") from None


# ---- the params file -------------------------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, which YAML would silently drop."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _find_params(name: str) -> Path:
    """Look for a params file in the working folder, then beside the tracking store."""
    tried = [Path(name), workspace(TrackingConfig()) / name]
    for path in tried:
        if path.is_file():
            return path
    raise UserError(
        f"params file {name!r} does not exist (looked in {', '.join(sorted({str(p.absolute().parent) for p in tried}))})"
    )


def _read_yaml(path: Path) -> Tree:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {_first_line(error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping of options, got {type(tree).__name__}")
    nested: Tree = {}
    for key, value in tree.items():
        _put(nested, str(key).split("."), value)
    return nested


def _first_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}" if mark else ""
    return f"{getattr(error, 'problem', None) or str(error).splitlines()[0]}{where}"


def _known_to(cls: type[Verb], tree: Tree, file: Path) -> Tree:
    """Return the part of a file that this verb takes; a key that no verb takes is an error."""
    return _select(cls, [verb for verb in VERBS if verb is not cls], tree, prefix="", file=file)


def _select(cls: type[Section], others: Sequence[type[Section]], tree: Tree, *, prefix: str, file: Path) -> Tree:
    taken: Tree = {}
    for key, value in tree.items():
        field = cls.model_fields.get(key)
        rivals = [other.model_fields[key] for other in others if key in other.model_fields]
        if field is None and not rivals:
            known = {prefix + name for every in (cls, *others) for name in every.model_fields}
            raise UserError(f"{file}: unknown key {prefix + key!r}{_near(prefix + key, known)}")
        if field is None:
            continue
        section = section_of(field)
        if section is not None and isinstance(value, dict):
            rival_sections = [sub for rival in rivals if (sub := section_of(rival))]
            taken[key] = _select(section, rival_sections, value, prefix=f"{prefix}{key}.", file=file)
        else:
            taken[key] = value
    return taken


# ---- together --------------------------------------------------------------------------------------------------------


def _merge(cls: type[Section], file: Tree, given: Tree) -> Tree:
    """Lay the command line over the file.

    A choice named anew on the command line takes that choice's own defaults: what the file says about the options of
    another optimizer, schedule or model is dropped.
    """
    merged = dict(file)
    for key, value in given.items():
        section = section_of(cls.model_fields[key])
        if section is None:
            merged[key] = value
            continue
        below, above = _as_mapping(section, key, file.get(key, {})), _as_mapping(section, key, value)
        merged[key] = above if _picks_another(section, below, above) else _merge(section, below, above)
    return {key: _as_mapping(section, key, value) if (section := section_of(cls.model_fields[key])) else value
            for key, value in merged.items()}  # fmt: skip


def _picks_another(section: type[Section], below: Tree, above: Tree) -> bool:
    return section.choice and "name" in above and above["name"] != below.get("name", section.model_fields["name"].default)


def _as_mapping(section: type[Section], key: str, value: Any) -> Tree:
    if isinstance(value, dict):
        return value
    if value is None:
        return {}
    if section.choice:
        return {"name": value}
    raise UserError(
        f"{key} is a section, got {value!r}; its options: {', '.join(f'{key}.{name}' for name in section.model_fields)}"
    )


def _build(cls: type[V], tree: Tree) -> V:
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        fields = _keys(cls)
        lines = [_sentence(item, fields) for item in _by_option(error, tree, fields)]
        raise UserError("\n".join(lines)) from None


def _by_option(error: ValidationError, tree: Tree, fields: Mapping[str, FieldInfo]) -> list[dict[str, Any]]:
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


def _at(tree: Tree, path: Sequence[int | str], otherwise: Any) -> Any:
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
        return f"unknown key {key!r}{_near(leaf, set(fields))}"
    rule = help_text.rule_of(field)
    unit = extra(field, "unit")
    near = did_you_mean(str(item["input"]), help_text.names_of(field)) if help_text.names_of(field) else ""
    return f"{key} must be {rule}{f' ({unit})' if unit else ''}, got {item['input']!r}{near}"
