"""Measure what the project claims of its speed, row by row, each against its baseline; and write benchmarks/RESULTS.md.

    python -m benchmarks --mnist FOLDER --peers PYTHON       everything: about four hours on two quiet cores
    python -m benchmarks --list                              the rows, with their goals and how long they take
    python -m benchmarks --only input,prepare --rounds 3 --mnist FOLDER
    python -m benchmarks --render                            write RESULTS.md anew out of results.json

FOLDER holds train/ and test/, each with a folder of PNGs per class; PYTHON is what `python -m benchmarks.peers make` made. A
row whose data are not given is left out. What is measured replaces what results.json knew of the row; the rest stays.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from benchmarks.measuring import Found, LeftOut, Machine, Row, Terms, figure, machine  # noqa: E402
from tracked_cls.console import say  # noqa: E402 - of this checkout
from tracked_cls.errors import UserError, lookup  # noqa: E402

RESULTS, PAGE = ROOT / "benchmarks" / "results.json", ROOT / "benchmarks" / "RESULTS.md"
MODULES = (  # in the order of the page
    *("training", "peers.rows", "feeding", "overhead", "startup", "accuracy"),
    *("preparing", "memory", "trials", "photos", "together", "scale"),
)
Results = dict[str, dict[str, Any]]


def main(argv: Sequence[str]) -> int:
    """Measure the rows that are asked for; return the exit code: 1 where one of them failed, 2 for a mistake of the user."""
    words = _arguments(argv)
    try:
        chosen = choose(rows(), words.only)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if words.list:
        for line in catalogue(chosen):
            say(line)
        return 0
    failed = False if words.render else _measure(chosen, words)
    PAGE.write_text(page(rows(), read()), encoding="utf-8")
    say(f"wrote {PAGE.relative_to(ROOT)}")
    return int(failed)


def rows() -> list[Row]:
    """Return every row there is."""
    return [row for module in MODULES for row in importlib.import_module(f"benchmarks.{module}").ROWS]


def choose(known: Sequence[Row], only: str | None) -> list[Row]:
    """Return the rows named in a list with commas, in their own order; raises `UserError` for a name that is none."""
    if only is None:
        return list(known)
    by_name = {row.name: row for row in known}
    wanted = {lookup(name.strip(), by_name, "row").name for name in only.split(",")}
    return [row for row in known if row.name in wanted]


def catalogue(chosen: Sequence[Row]) -> list[str]:
    """Say of each row what it is, its goal, and how long it takes."""
    width = max(len(row.name) for row in chosen)
    return [f"{row.name:{width}}  {row.minutes:3.0f} min  {row.goal or 'no goal'}: {row.what}" for row in chosen]


# ---- measuring -------------------------------------------------------------------------------------------------------


def _measure(chosen: Sequence[Row], words: argparse.Namespace) -> bool:
    """Measure rows, noting each at once; return whether one failed."""
    failures = []
    for row in chosen:
        on = machine()
        say(f"{row.name}: {row.what}; about {row.minutes:.0f} min with 5 rounds, load {on.load:.1f}")
        try:
            with TemporaryDirectory(prefix="benchmark-", dir=words.scratch) as scratch:
                found = row.measure(Terms(words.mnist, words.cifar, words.rounds, Path(scratch), words.peers, words.threads))
        except LeftOut as reason:
            say(f"  left out: {reason}")
        except (RuntimeError, OSError) as error:
            failures.append(row.name)
            say(f"  FAILED: {error}")
        else:
            say("  " + " | ".join(_cells(row, found)[3:]))
            _note(row.name, found, on, words)
    if failures:
        say(f"failed: {', '.join(failures)}")
    return bool(failures)


def _note(name: str, found: Found, on: Machine, words: argparse.Namespace) -> None:
    """Put what was found of a row in the place of what was known of it."""
    own = asdict(on)
    load = own.pop("load")
    known = read() | {
        name: {
            **asdict(found),
            "date": datetime.now(UTC).date().isoformat(),
            "rounds": words.rounds,
            "threads": words.threads,
            "load": round(load, 1),
            "machine": own,
        }
    }
    RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read() -> Results:
    """Return what is known of each row."""
    return dict(json.loads(RESULTS.read_text(encoding="utf-8"))) if RESULTS.exists() else {}


# ---- the page --------------------------------------------------------------------------------------------------------


def page(known: Sequence[Row], results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return RESULTS.md: a table of all rows, and what stands behind each of them."""
    measured = [row for row in known if row.name in results]
    lines = [
        "# What was measured",
        "",
        "Written by `python -m benchmarks` from `results.json`; how to measure and how to read it: `docs/performance.md`.",
        "Medians, with the least and the greatest of the rounds. A ratio is ours / baseline; both sides ran in turns.",
        "",
        *_machines([results[row.name] for row in measured]),
        "",
        "| row | what | baseline | goal | measured | met |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(_cells(row, _found(results.get(row.name))))} |" for row in known),
        *(line for row in measured for line in _behind(row, results[row.name])),
    ]
    return "\n".join(lines) + "\n"


def _found(result: Mapping[str, Any] | None) -> Found | None:
    return None if result is None else Found(**{name: result[name] for name in Found.__dataclass_fields__})


def _cells(row: Row, found: Found | None) -> list[str]:
    """Return what the table says of a row."""
    words = [f"`{row.name}`", row.what, row.baseline, "to be known" if row.goal is None else str(row.goal)]
    if found is None:
        return [*words, "not measured", ""]
    low, high = (figure(value, found.unit) for value in (found.low, found.high))
    verdict = "" if row.goal is None else "yes" if row.goal.met(found) else "**no**"
    return [*words, f"{figure(found.value, found.unit)} ({low} to {high})", verdict]


def _machines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say on which machines the figures were taken, each once."""
    said = {str(Machine(**result["machine"], load=0)): None for result in results}
    return [f"Machine: {line}." for line in said]


def _behind(row: Row, result: Mapping[str, Any]) -> list[str]:
    """Say what stands behind a row: the absolute figures, when they were taken, and why the goal is missed."""
    found = _found(result)
    assert found is not None
    fell_short = row.goal is not None and not row.goal.met(found)
    return [
        "",
        f"### {row.name}",
        "",
        f"{result['date']}, {result['rounds']} rounds, {result['threads']} threads, load at the start {result['load']}.",
        "",
        *(f"- {side}: {words}" for side, words in found.details.items()),
        *([f"- **misses its goal**: {found.fails}"] if found.fails else []),
        *(["", f"Why it falls short: {row.note or 'not looked into.'}"] if fell_short else []),
    ]


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME,...", help="these rows alone")
    parser.add_argument("--rounds", type=_positive, default=5, help="rounds of each row (5)")
    parser.add_argument("--threads", type=_positive, default=2, help="CPU threads of a side (2)")
    parser.add_argument("--mnist", type=_folder, metavar="FOLDER", help="MNIST as PNGs: train/ and test/, a folder per class")
    parser.add_argument("--cifar", type=_folder, metavar="FOLDER", help="CIFAR-10 as pictures, likewise")
    parser.add_argument("--peers", type=_file, metavar="PYTHON", help="the Python of the peers' environment")
    parser.add_argument("--scratch", type=_folder, metavar="FOLDER", help="where to work (the system's temporary folder)")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--render", action="store_true", help="measure nothing; write RESULTS.md from results.json")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no folder")
    return Path(text).resolve()


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(
            f"{text!r} is no file; `python -m benchmarks.peers make FOLDER` makes FOLDER/bin/python"
        )
    return Path(text).absolute()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
