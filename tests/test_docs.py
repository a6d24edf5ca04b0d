"""The pages agree with the code and with each other: links, options, commands, and the page of all options."""

from __future__ import annotations

import ast
import re
import shlex
from collections import Counter
from functools import cache
from itertools import product

import pytest

from tests.pages import PAGES, ROOT, anchors, commands, fragments, links, name, of_mlflow_run, with_ids
from tracked_cls.config import load
from tracked_cls.config.help import rows
from tracked_cls.config.reference import page as reference
from tracked_cls.config.verbs import VERBS
from tracked_cls.errors import UserError

VERB_BY_NAME = {verb.verb: verb for verb in VERBS}
CONTEXTS = (  # what an option may need beside it to have an effect
    {},
    {"--params": "params/image_folder.yaml", "--data.root": "flowers"},
    {"--params": "params/csv.yaml"},
)
FEATURES, NUM_FEATURES = ROOT / "docs" / "features.md", 143
_NAMED_TEST = re.compile(r"`(?P<file>[\w/]+)::(?P<name>\w+)`(?P<slow> \*slow\*)?")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in links(page):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_page_is_found_from_the_first_one():
    first, todo = ROOT / "README.md", [ROOT / "README.md"]
    seen = {first}
    while todo:
        page = todo.pop()
        near = {(page.parent / target.partition("#")[0]).resolve() for target in links(page) if "://" not in target}
        new = {path for path in near if path.suffix == ".md"} - seen
        seen |= new
        todo += new
    assert [name(page) for page in PAGES if page.parent == ROOT / "docs" and page not in seen] == []


def test_the_page_of_all_options_is_what_the_code_says():
    """Made anew by ``PYTHONPATH=src python -m tracked_cls.config.reference > docs/reference.md``."""
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == reference()


def test_the_page_of_commands_has_all_of_them():
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+)$", text, flags=re.MULTILINE) == [
        *("main", "prepare", "train", "tune", "evaluate", "promote", "predict", "serve", "export", "report", "sync")
    ]
    assert set(re.findall(r"^## (\w+)$", text, flags=re.MULTILINE)) == set(VERB_BY_NAME)
    known = {key for verb in VERBS for key in dict.fromkeys(_keys(verb))}
    named = [key for cell in re.findall(r"^\| (`.+?) \|", text, flags=re.MULTILINE) for key in re.findall(r"`([^`]+)`", cell)]
    assert len(named) > 60
    assert [key for key in named if key not in known and not any(one.startswith(f"{key}.") for one in known)] == []


def _keys(verb):
    from tracked_cls.config.tree import options

    return [key for key, _ in options(verb)]


def test_the_page_of_reports_names_parts_that_reports_have():
    sources = [*(ROOT / "src" / "tracked_cls" / "report").glob("*.py"), *(ROOT / "src/tracked_cls/plots").glob("*.py")]
    code = "\n".join(path.read_text() for path in [*sources, ROOT / "src/tracked_cls/templates/data_report.html"]).lower()
    rows = [line for line in (ROOT / "docs" / "reports.md").read_text().splitlines() if line.startswith("| **")]
    named = [part for row in rows for part in re.findall(r"\*\*(.+?)\*\*", row.split("|")[1])]
    assert len(named) > 30
    assert [part for part in named if part.lower() not in code and part.lower().partition(" accuracy")[0] not in code] == []


def test_every_feature_has_one_row_or_is_said_not_to_be_there():
    there, not_there = (Counter(number for row in rows for number in _features(row[0])) for rows in _feature_tables())
    assert sorted(set(range(1, NUM_FEATURES + 1)) - set(there) - set(not_there)) == []
    assert sorted({*there, *not_there} - set(range(1, NUM_FEATURES + 1))) == []
    assert [number for number, times in there.items() if times > 1] == []


def test_the_rows_of_features_are_whole():
    there, not_there = _feature_tables()
    assert [row for row in there if len(row) != 4 or not all(row[1:])] == []
    assert [row for row in not_there if len(row) != 3 or not all(row)] == []


def test_every_feature_names_tests_that_there_are_or_none():
    wrong = []
    for numbers, *_, cell in _feature_tables()[0]:
        named = list(_NAMED_TEST.finditer(cell))
        if (_NAMED_TEST.sub("", cell).strip(", ") or "untested") != "untested" or not (named or cell == "untested"):
            wrong.append(f"{numbers}: {cell} is no list of tests")
        for one in named:
            slow = _slow_by_test(one["file"]).get(f"test_{one['name']}")
            if slow is None or slow != bool(one["slow"]):
                wrong.append(f"{numbers}: {one[0]}: {'there is no such test' if slow is None else f'slow: {slow}'}")
    assert wrong == []


def _feature_tables():
    """Return the rows of both tables of features, each a list of cells: what is there, and what is not."""
    parts = FEATURES.read_text(encoding="utf-8").split("\n## Not there\n")
    lines = ([line for line in part.splitlines() if line.startswith("|")][2:] for part in parts)
    there, not_there = ([[cell.strip() for cell in line.strip("|").split("|")] for line in rows] for rows in lines)
    return there, not_there


def _features(cell):
    """Return the numbers that a cell names: ``F9, F30-F32`` is 9, 30, 31 and 32."""
    ends = re.findall(r"F(\d+)(?:-F(\d+))?", cell)
    return [number for first, last in ends for number in range(int(first), int(last or first) + 1)]


@cache
def _slow_by_test(file):
    """Return the tests of a file below ``tests/``, each with whether it is marked slow in all its cases; none of no file."""
    path = ROOT / "tests" / f"{file}.py"
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
    inside = [*body, *(node for outer in body if isinstance(outer, ast.ClassDef) for node in outer.body)]
    marks = [ast.unparse(node) for node in body if isinstance(node, ast.Assign)]
    all_slow = any(mark.startswith("pytestmark") and "pytest.mark.slow" in mark for mark in marks)
    tests = [node for node in inside if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {
        node.name: all_slow or any(ast.unparse(mark) == "pytest.mark.slow" for mark in node.decorator_list) for node in tests
    }


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_commands_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        ours = command.of_ours()
        if ours is not None:
            verb, words = ours
            load(VERB_BY_NAME[verb], words, config_of=_nothing_set)


@pytest.mark.parametrize("page", [page for page in PAGES if fragments(page)], ids=name)
def test_options_within_sentences_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    wrong = {code: errors for code in fragments(page) if (errors := _mistakes(code))}
    assert wrong == {}


def _nothing_set(run_id, tracking):
    return ""


def _mistakes(code):
    """Return why no command takes the options, in any context; nothing where one does."""
    words = shlex.split(with_ids(code))
    first = words.index("-P")
    verbs = [VERB_BY_NAME[word] for word in words[:first] if word in VERB_BY_NAME] or VERBS
    _, options = of_mlflow_run([word for word in words[first:] if word not in ("...", "-e", "train")])
    pairs = [
        pair for pair in zip(options[::2], options[1::2], strict=True) if pair[0] != "--params" or (ROOT / pair[1]).is_file()
    ]
    errors = []
    for cls, context in product(verbs, CONTEXTS):
        beside = {**context, **({"--predict.input": "x"} if cls.verb == "predict" and "--input" not in dict(pairs) else {})}
        try:
            load(
                cls,
                _words(cls, {**{key: value for key, value in beside.items() if key not in dict(pairs)}, **dict(pairs)}),
                config_of=_nothing_set,
            )
        except UserError as error:
            errors.append(f"{cls.verb}: {error}")
        else:
            return []
    return errors


def _words(cls, value_by_flag):
    """Return the words of a command; an option that stands for itself, without a value, has its default."""
    default_by_flag = {f"--{key}": default for key, default, _, _ in rows(cls)}
    plain = {
        flag: default_by_flag[flag] if value in ("", "...") and default_by_flag.get(flag, "none") != "none" else value
        for flag, value in value_by_flag.items()
    }
    return [word for pair in plain.items() for word in pair]
