"""From a params file and the command line to one checked tree: YAML < ``--key value``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic.fields import FieldInfo

from tracked_cls.config import help as help_text
from tracked_cls.config.choice import Choice
from tracked_cls.config.sections import TrackingConfig
from tracked_cls.config.sentences import build, near_key, option_value
from tracked_cls.config.tree import Section, options, section_of, to_yaml, unset_to_none
from tracked_cls.config.verbs import VERBS, TrainConfig, Verb
from tracked_cls.config.workspace import workspace
from tracked_cls.errors import UserError

V = TypeVar("V", bound=Verb)
Tree = dict[str, Any]
ConfigOf = Callable[[str, TrackingConfig], str]  # (run id, where runs are kept) -> text of that run's config.yaml


def load(cls: type[V], argv: Sequence[str], default_params: str | None = None, config_of: ConfigOf | None = None) -> V:
    """Return the resolved tree of a verb from its arguments.

    ``--params FILE`` names the YAML file; every other ``--key value`` overrides it; ``--help`` and ``--print-config``
    print and exit. ``--from_run ID`` puts the text that `config_of` returns, the run's config.yaml, in the file's place.
    Raises `UserError` with one line per mistake: key, value, rule and near match.
    """
    if "--help" in argv or "-h" in argv:
        _print_and_exit(help_text.render(cls))
    print_config = "--print-config" in argv
    given = _read_arguments(cls, [word for word in argv if word != "--print-config"])
    default = default_params or cls.params
    file = given.pop("params", default)
    run_id = _run_to_repeat(cls, given)
    values = _converted(cls, given)
    if run_id is None:
        below = {} if file == default and _does_without(cls, file) else _tree_of_file(cls, file)
    elif file != default:
        raise UserError(f"from_run takes the place of the params file: give either from_run or params={file}")
    else:
        below = _tree_of_run(cls, run_id, config_of, _tracking(values))
    config = build(cls, _merge(cls, below, _nest(values)))
    if print_config:
        _print_and_exit(to_yaml(config))
    return config


def override(cfg: V, values: Mapping[str, Any]) -> V:
    """Return the tree with typed values, by canonical key, laid over it as the command line lays over a params file.

    A choice named anew takes its own defaults. Raises `UserError` with one line per mistake.
    """
    cls = type(cfg)
    known = set(_keys(cls))
    for key in values:
        if key not in known:
            raise UserError(f"unknown option {key!r}{near_key(key, known)}")
    return build(cls, _merge(cls, _as_written(cfg), _nest(values)))


def resolve(cls: type[V], values: Mapping[str, Any], params: str | None = None) -> V:
    """Return the tree of a verb from typed values by key, dotted or nested, over those of a params file (None: the defaults).

    Raises `UserError` with one line per mistake.
    """
    given = {_canonical(cls, key, "option "): value for key, value in _flat(cls, values)}
    below = {} if params is None else _tree_of_file(cls, params)
    return build(cls, _merge(cls, below, _nest(given)))


def _flat(cls: type[Section], values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys with their values; mappings that stand for sections are gone through."""
    for key, value in values.items():
        field = cls.model_fields.get(key)
        section = None if field is None else section_of(field)
        if section is not None and isinstance(value, Mapping):
            yield from _flat(section, value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", os.fspath(value) if isinstance(value, os.PathLike) else value


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


def _canonical(cls: type[Verb], key: str, kind: str = "option --") -> str:
    """Return the one dotted name of a key as typed: ``model.name`` is ``model``, ``input`` is ``predict.input``."""
    known = _keys(cls)
    candidates = [key, key.removesuffix(".name"), f"{cls.bare}.{key}"]
    for candidate in candidates:
        if candidate in known or candidate == "params":
            return candidate
    raise UserError(f"unknown {kind}{key}{near_key(key, {*known, 'params'})}")


def _converted(cls: type[Verb], given: Mapping[str, str]) -> dict[str, Any]:
    """Return what was typed, each text converted as far as its field's type needs."""
    fields = _keys(cls)
    return {key: _convert(key, text, fields[key]) for key, text in given.items()}


def _nest(values: Mapping[str, Any]) -> Tree:
    """Return the nested tree of dotted keys."""
    tree: Tree = {}
    for key, value in values.items():
        _put(tree, key.split("."), value)
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
    found = [path for path in _places_of(name) if path.is_file()]
    if not found:
        places = ", ".join(sorted({str(path.absolute().parent) for path in _places_of(name)}))
        raise UserError(f"params file {name!r} does not exist (looked in {places})")
    return found[0]


def _does_without(cls: type[Verb], name: str) -> bool:
    """Whether a verb needs no params file, and there is none."""
    return cls.own_options_suffice and not any(path.is_file() for path in _places_of(name))


def _places_of(name: str) -> list[Path]:
    return [Path(name), workspace(TrackingConfig()) / name]


def _tree_of_file(cls: type[Verb], name: str) -> Tree:
    path = _find_params(name)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: {_first_line(error)}") from None
    tree = _read_yaml(text, str(path))
    if "from_run" in tree and unset_to_none(TrainConfig, tree)["from_run"] is not None:
        raise UserError(f"{path}: from_run belongs on the command line, where it takes the place of a file: take it out here")
    return _known_to(cls, tree, str(path))


def _read_yaml(text: str, where: str) -> Tree:
    try:
        tree = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {_first_line(error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{where}: expected a mapping of options, got {type(tree).__name__}")
    nested: Tree = {}
    for key, value in tree.items():
        _put(nested, str(key).split("."), value)
    return nested


def _first_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}" if mark else ""
    return f"{getattr(error, 'problem', None) or str(error).splitlines()[0]}{where}"


def _known_to(cls: type[Verb], tree: Tree, where: str) -> Tree:
    """Return the part of a file that this verb takes; a key that no verb takes is an error."""
    return _select(cls, [verb for verb in VERBS if verb is not cls], tree, prefix="", where=where)


def _select(cls: type[Section], others: Sequence[type[Section]], tree: Tree, *, prefix: str, where: str) -> Tree:
    taken: Tree = {}
    for key, value in tree.items():
        field = cls.model_fields.get(key)
        rivals = [other.model_fields[key] for other in others if key in other.model_fields]
        if field is None and not rivals:
            known = {prefix + name for every in (cls, *others) for name in every.model_fields}
            raise UserError(f"{where}: unknown key {prefix + key!r}{near_key(prefix + key, known)}")
        if field is None:
            continue
        section = section_of(field)
        if section is not None and isinstance(value, dict):
            rival_sections = [sub for rival in rivals if (sub := section_of(rival))]
            taken[key] = _select(section, rival_sections, value, prefix=f"{prefix}{key}.", where=where)
        else:
            taken[key] = value
    return taken


# ---- the configuration of a run --------------------------------------------------------------------------------------


def _run_to_repeat(cls: type[Verb], given: Mapping[str, str]) -> str | None:
    """Return the bare id of the run that ``--from_run`` names."""
    run_id = str(option_value(cls, "from_run", given.get("from_run"))) if "from_run" in given else "none"
    return None if run_id == "none" else run_id.removeprefix("runs:/")


def _tree_of_run(cls: type[Verb], run_id: str, config_of: ConfigOf | None, tracking: TrackingConfig) -> Tree:
    """Return what a run was set to, less what belongs to that one run."""
    if config_of is None:
        raise UserError(f"from_run is not taken by {cls.verb}")
    where = f"config.yaml of run {run_id}"
    tree = _known_to(cls, _read_yaml(config_of(run_id, tracking), where), where)
    return {key: value for key, value in tree.items() if key not in ("tracking", "from_run", "resume")}


def _tracking(values: Mapping[str, Any]) -> TrackingConfig:
    """Return where a run is looked for: what the command line says about it."""
    own = {key.removeprefix("tracking."): value for key, value in values.items() if key.startswith("tracking.")}
    return build(TrackingConfig, own)


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


def _as_written(section: Section) -> Tree:
    """Return the tree that a params file would hold, without the defaults of a choice, which go with its other options."""
    tree: Tree = {name: _as_written(value) if isinstance(value, Section) else value for name, value in section}
    if not isinstance(section, Choice):
        return tree
    own = section.own[str(tree["name"])]
    chosen = {key: value for key, value in tree.items() if value is not None and not (key in own and value == own[key])}
    implied = section.implied(chosen)
    return {key: value for key, value in chosen.items() if not (key in implied and value == implied[key])}


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
