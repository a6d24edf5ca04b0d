"""The pages agree with the code and with each other: links, options, commands, and the page of all options."""

from __future__ import annotations

import re
import shlex
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
