"""What the Markdown pages of the project hold: headings, links, and the commands that they tell people to type."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(path for folder in ("docs", "benchmarks", "deploy") for path in (ROOT / folder).rglob("*.md"))]
)
IDS = tuple(f"{number:032x}" for number in range(9))  # stand for <id> where a command is only read
_MARK = re.compile(r"<!-- not run: (?P<why>.+?) -->")
_FENCE = re.compile(r"^```(?P<language>\w*)\s*$")
_PROGRAMS = ("mlflow ", "python ", "python3 ", "torchrun ", "pip ", "curl ", "docker ")


@dataclass(frozen=True)
class Command:
    """A line that a page tells people to type, without its remark. `why_not`: why no test runs it, where the page says so."""

    page: str
    line: str
    why_not: str = ""

    def words(self, run_ids: Sequence[str] = IDS) -> list[str]:
        """Return the words a shell would make of it, ids of runs in place of ``<id>``."""
        return shlex.split(with_ids(self.line, run_ids), comments=True)

    def of_ours(self, run_ids: Sequence[str] = IDS) -> tuple[str, list[str]] | None:
        """Return (verb, words of ``python -m pipelines.<verb>``); None for a command of another program."""
        words = self.words(run_ids)
        if words[:3] == ["mlflow", "run", "."]:
            return of_mlflow_run(words[3:])
        if words[:2] == ["python", "-m"] and words[2].startswith("pipelines."):
            return words[2].removeprefix("pipelines."), words[3:]
        return None


def with_ids(text: str, run_ids: Sequence[str] = IDS) -> str:
    """Return a text with ids of runs in place of each ``<id>``, one after the other."""
    ids = iter(run_ids)
    return re.sub(r"<(id|run)[^>]*>", lambda _: next(ids), text)


def of_mlflow_run(words: list[str]) -> tuple[str, list[str]]:
    """Return (verb, ``--key value`` words) of what stands behind ``mlflow run .``."""
    rest, verb, options = list(words), "main", list[str]()
    while rest:
        word, value = rest.pop(0), rest.pop(0)
        if word == "-e":
            verb = value
        elif word == "-P":
            key, _, text = value.partition("=")
            options += [f"--{key}", text]
        elif word != "--experiment-name" and (word, value) != ("--env-manager", "local"):
            raise AssertionError(f"mlflow run: {word} {value}")
    return verb, options


def name(page: Path) -> str:
    """Return the path of a page from the root."""
    return page.relative_to(ROOT).as_posix()


def commands(page: Path) -> list[Command]:
    """Return the commands of a page: lines of its blocks of shell, and of others those that begin as a program's call."""
    found = []
    for language, lines, why_not in _blocks(page.read_text(encoding="utf-8")):
        for line in _joined(lines):
            is_typed = language == "sh" if language else line.startswith(_PROGRAMS)
            if is_typed and line.strip() and not line.startswith("#"):
                found.append(Command(name(page), re.split(r"\s{2,}", line)[0] if language != "sh" else line, why_not))
    return found


def _blocks(text: str) -> Iterator[tuple[str, list[str], str]]:
    """Yield (language, lines, why it is not run) of each block of code; one that is indented has no language."""
    lines, why_not = iter(text.splitlines()), ""
    indented: list[str] = []
    for line in lines:
        if indented and not line.startswith("    "):
            yield "", indented, why_not
            indented, why_not = [], ""
        if mark := _MARK.fullmatch(line):
            why_not = mark["why"]
        elif fence := _FENCE.match(line):
            block = []
            while (inside := next(lines)) != "```":
                block.append(inside)
            yield fence["language"], block, why_not
            why_not = ""
        elif line.startswith("    ") and line.strip():
            indented.append(line[4:])
    if indented:
        yield "", indented, why_not


def _joined(lines: list[str]) -> list[str]:
    """Return the lines with those that a backslash continues made one."""
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()


def fragments(page: Path) -> list[str]:
    """Return the pieces of commands within sentences and tables: what stands in backquotes and holds an option."""
    text = _without_blocks(page.read_text(encoding="utf-8"))
    found = [code for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text) if re.search(r"(^|\s)'?-P ", code)]
    return [code.replace(r"\|", "|") for code in found if "x=y" not in code and "key=value" not in code]


def prose(page: Path) -> str:
    """Return the text of a page without code."""
    return re.sub(r"`[^`\n]*`", "", _without_blocks(page.read_text(encoding="utf-8")))


def _without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[str]:
    """Return the targets of the links and pictures of a page."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: Path) -> set[str]:
    """Return what a link may name behind ``#``, as GitHub makes it of the headings."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.+)$", _without_blocks(page.read_text(encoding="utf-8")), flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found
