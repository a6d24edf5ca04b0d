"""Do the recipes of `params/` give what their headers promise? Runs each whose data are here, and prints both side by side.

    python -m benchmarks.recipes                                          those that need no data of yours: about ten minutes
    python -m benchmarks.recipes --data mnist=FOLDER --data csv=LIST.csv  and those for which you name a folder, or a table
    python -m benchmarks.recipes --only train,distill

All of them go into one new tracking store, `train` first, whose champion `distill` asks for.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measuring import ROOT, LeftOut
from tracked_cls.console import say
from tracked_cls.errors import UserError, lookup

PARAMS = ROOT / "params"
FIRST = ("train",)  # whose champion others ask for
_PART = re.compile(r"#   (run|takes|expect):\s+(.*)")
_MORE = re.compile(r"#\s{6,}(\S.*)")
_LONGEST_SECONDS = 4 * 3600.0


@dataclass(frozen=True)
class Recipe:
    """A params file with what its header says: what it is, the command, how long that takes, and what comes out.

    Of a part with several lines the first is the part itself, and the others are its `remarks`.
    """

    path: Path
    what: str
    command: str
    takes: str
    expect: str
    remarks: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Return the recipe of a params file; raises `UserError` where its header lacks a part."""
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        parts: dict[str, list[str]] = {}
        current: list[str] = []
        for line in lines:
            if part := _PART.fullmatch(line):
                current = parts.setdefault(part[1], [part[2]])
            elif more := _MORE.fullmatch(line):
                current.append(more[1])
            else:
                break
        missing = [name for name in ("run", "takes", "expect") if name not in parts]
        if missing or not first.startswith("# "):
            raise UserError(f"{path.name}: its header does not say: {', '.join(missing) or 'what it is'}")
        remarks = {name: lines[1:] for name, lines in parts.items()}
        return cls(path, first[2:], parts["run"][0], parts["takes"][0], parts["expect"][0], remarks)

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def verb(self) -> str:
        """The command that takes it."""
        return self.command.partition(" -e ")[2].split()[0]

    @property
    def needs_data(self) -> bool:
        """Whether its command names a folder or a table of the user."""
        return "FOLDER" in self.command

    def words(self, data: Mapping[str, Path]) -> list[str]:
        """Return the words of its command; raises `LeftOut` where its data were not given."""
        own = data.get(self.name)
        if self.needs_data and own is None:
            raise LeftOut(f"give its data: --data {self.name}=FOLDER")
        key = "--data.table" if own is not None and own.is_file() else "--data.root"
        return ["--params", str(self.path), *([] if own is None else [key, str(own.absolute())])]


def recipes() -> list[Recipe]:
    """Return all recipes, those first whose results others need."""
    return sorted(map(Recipe.read, PARAMS.glob("*.yaml")), key=lambda recipe: (recipe.name not in FIRST, recipe.name))


def main(argv: Sequence[str]) -> int:
    """Run what is asked for; return the exit code: 1 where a recipe failed, 2 for a mistake of the user."""
    words = _arguments(argv)
    try:
        chosen, data = choose(recipes(), words.only), data_of(words.data)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    with TemporaryDirectory() as home:
        failed = [recipe.name for recipe in chosen if not _tell(recipe, data, Path(home))]
    say(f"failed: {', '.join(failed)}" if failed else "all that ran ended well; whether the results agree is yours to judge")
    return int(bool(failed))


def choose(known: Sequence[Recipe], only: str | None) -> list[Recipe]:
    """Return the recipes named in a list with commas, in their own order; raises `UserError` for a name that is none."""
    by_name = {recipe.name: recipe for recipe in known}
    wanted = by_name if only is None else {lookup(name.strip(), by_name, "recipe").name for name in only.split(",")}
    return [recipe for recipe in known if recipe.name in wanted]


def data_of(given: Sequence[str]) -> dict[str, Path]:
    """Return recipe -> its folder or table, out of ``name=path``; raises `UserError` for what is not there."""
    names = {recipe.name: recipe for recipe in recipes()}
    found = {}
    for word in given:
        name, _, path = word.partition("=")
        if not path or not Path(path).exists():
            raise UserError(f"--data {word}: use NAME=PATH, with a path that exists")
        found[lookup(name, names, "recipe").name] = Path(path)
    return found


def _tell(recipe: Recipe, data: Mapping[str, Path], home: Path) -> bool:
    """Run a recipe and say what came out beside what its header says; return whether it ended well, or was left out."""
    say(f"\n{recipe.name}: {recipe.what}")
    try:
        words = recipe.words(data)
    except LeftOut as reason:
        say(f"  left out: {reason}")
        return True
    started = time.perf_counter()
    done = _run(recipe.verb, words, home)
    say(f"  takes:  {recipe.takes}\n  took:   {time.perf_counter() - started:.0f} s")
    for line in [recipe.expect, *recipe.remarks["expect"]]:
        say(f"  expect: {line}")
    for line in _results(done) if done.returncode == 0 else done.stderr.strip().splitlines()[-3:]:
        say(f"  got:    {line}")
    return done.returncode == 0


def _run(verb: str, words: Sequence[str], home: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder of its own, as a user does."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    command = [sys.executable, "-m", f"pipelines.{verb}", *words]
    return subprocess.run(
        command,
        cwd=home,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=_LONGEST_SECONDS,
    )


def _results(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines in which a command says what it has reached."""
    return [line for line in done.stdout.splitlines() if re.match(r"(train|tune|folds): |  (best|winner|out of fold)", line)]


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME,NAME", help="these recipes alone")
    parser.add_argument("--data", metavar="NAME=PATH", action="append", default=[], help="the folder or table of a recipe")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
