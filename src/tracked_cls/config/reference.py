"""The page of all options, docs/reference.md: what `PYTHONPATH=src python -m tracked_cls.config.reference` prints."""

from __future__ import annotations

import re

from tracked_cls.config.help import rows
from tracked_cls.config.tree import Section, section_of
from tracked_cls.config.verbs import VERBS

_Row = tuple[str, str, str, str]  # key, default, rule, meaning
_HEAD = """# Every option

Made from the code by `PYTHONPATH=src python -m tracked_cls.config.reference > docs/reference.md`; a test tells when the two
differ. An option has one name everywhere: `--optimizer.lr 0.1` on the command line, `-P optimizer.lr=0.1` behind `mlflow run`,
`optimizer: {lr: 0.1}` in a file of `params/`, `optimizer.lr` among the params of the run. Of the section that bears a command's
name (`predict.input`) that command also takes the bare key (`input`). Every command takes `--params FILE`, `--print-config` and
`--help`, too.

| command | what it does | reads, unless told |
|---|---|---|
"""
_COLUMNS = "| option | default | must be | meaning | taken by |\n|---|---|---|---|---|"


def page() -> str:
    """Return the page as Markdown: the commands, then a table of options for each section."""
    verbs = [f"| `{verb.verb}` | {_plain(verb.summary)} | `{verb.params}` |" for verb in VERBS]
    takers = _takers()
    sections = list(dict.fromkeys(_section(row[0]) for row in takers))
    parts = [_HEAD + "\n".join(verbs)]
    for section in sections:
        table = [_line(row, verbs) for row, verbs in takers.items() if _section(row[0]) == section]
        parts.append("\n".join([f"## {section}", "", _about(section), "", _COLUMNS, *table]))
    return "\n\n".join(parts) + "\n"


def _takers() -> dict[_Row, list[str]]:
    """Return the commands that take each option; one whose default or meaning differs between commands stands twice."""
    takers: dict[_Row, list[str]] = {}
    for verb in VERBS:
        for row in rows(verb):
            takers.setdefault(row, []).append(verb.verb)
    return dict(sorted(takers.items(), key=lambda item: "." in item[0][0] or item[0][0] in _sections()))


def _sections() -> dict[str, type[Section]]:
    """Return the sections by name, as the first command that has one knows it."""
    found: dict[str, type[Section]] = {}
    for verb in VERBS:
        for name, field in verb.model_fields.items():
            section = section_of(field)
            if section is not None:
                found.setdefault(name, section)
    return found


def _section(key: str) -> str:
    name = key.partition(".")[0]
    return name if name in _sections() else "without a section"


def _about(section: str) -> str:
    found = _sections().get(section)
    return _plain((found.__doc__ or "").strip().splitlines()[0]) if found else "What concerns a command as a whole."


def _line(row: _Row, verbs: list[str]) -> str:
    key, default, rule, meaning = row
    taken_by = "all" if len(verbs) == len(VERBS) else ", ".join(verbs)
    shown = default.replace("|", r"\|")
    return f"| `{key}` | `{shown}` | {_plain(rule)} | {_plain(meaning)} | {taken_by} |"


def _plain(text: str) -> str:
    """Return text that Markdown shows letter by letter, in one line of a table."""
    return re.sub(r"([\\|<*$\[\]])", r"\\\1", text.replace("``", "`"))


if __name__ == "__main__":
    print(page(), end="")
