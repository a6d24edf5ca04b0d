"""What a benchmark is made of: a row with its goal, what the user gave, sides that change turns, and the machine.

A row compares two sides. Both run in turns, in the order A B B A A B ..., so that a mood of the machine meets both alike; of
each round the ratio counts, and of the rounds the median, with the least and the greatest beside it. `alternating` does that
for any two callables, and `child` runs a side in a process of its own, which has imported nothing before.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tracked_cls.console import say  # noqa: E402 - the checkout this file lies in, not an installed copy
from tracked_cls.provenance import num_cores  # noqa: E402

LIBRARIES = ("torch", "torchvision", "mlflow", "optuna")
_LINES = 12  # of a child that failed, which are shown
_BUSY = 0.25  # work of others, in cores, from which on figures are not to be trusted


class LeftOut(Exception):  # noqa: N818 - nothing went wrong
    """A row cannot be measured here; the message is the reason, and what would help."""


@dataclass(frozen=True)
class Found:
    """What was measured: median, least and greatest over the rounds of the figure that has a goal, mostly a ratio.

    `details` are the absolute figures of both sides in words, by side. `fails` says why a goal is missed whatever the figure:
    seconds that were short because the accuracy was not reached.
    """

    value: float
    low: float
    high: float
    unit: str = "x"
    details: dict[str, str] = field(default_factory=dict)
    fails: str = ""

    @classmethod
    def of(cls, values: Sequence[float], unit: str = "x", *, fails: str = "", **details: str) -> Found:
        """Return the median and the range of one value per round."""
        return cls(median(values), min(values), max(values), unit, details, fails)


@dataclass(frozen=True)
class Goal:
    """The number that a figure is held against: at least it, or at most."""

    value: float
    at_least: bool
    unit: str = "x"

    def met(self, found: Found) -> bool:
        """Whether the median reaches the goal."""
        assert found.unit == self.unit, (found.unit, self.unit)
        return not found.fails and (found.value >= self.value if self.at_least else found.value <= self.value)

    def __str__(self) -> str:
        return f"at {'least' if self.at_least else 'most'} {figure(self.value, self.unit)}"


@dataclass(frozen=True)
class Terms:
    """What the user gave: folders of MNIST and CIFAR pictures (train/, test/, a folder per class), and the Python of the peers.

    `scratch` is an empty folder that is deleted in the end; `threads` are those that a side computes with.
    """

    mnist: Path | None
    cifar: Path | None
    rounds: int
    scratch: Path
    peers: Path | None
    threads: int = 2

    def needed(self, name: str) -> Path:
        """Return the option of that name; raises `LeftOut` where the user did not give it."""
        given = getattr(self, name)
        if given is None:
            raise LeftOut(f"needs --{name}")
        return Path(given)


@dataclass(frozen=True)
class Row:
    """One claim: what is measured, what it is held against, and how; it takes about so many minutes with 5 rounds.

    A row without a goal is there to be known. `note` says why the goal is missed and what would help.
    """

    name: str
    what: str
    baseline: str
    goal: Goal | None
    measure: Callable[[Terms], Found]
    minutes: float
    note: str = ""


# ---- taking turns ----------------------------------------------------------------------------------------------------


def alternating(
    ours: Callable[[], float],
    theirs: Callable[[], float],
    rounds: int,
    unit: str = "s",
    names: Sequence[str] = ("ours", "theirs"),
) -> Found:
    """Return ours / theirs of what both return (seconds or rates, told by `unit`), the order turned round after each round."""
    sides: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for side in ((0, 1), (1, 0))[number % 2]:
            sides[side].append((ours, theirs)[side]())
        mine, other = (values[-1] for values in sides)
        say(
            f"  round {number + 1}: {names[0]} {figure(mine, unit)}, {names[1]} {figure(other, unit)}, ratio {mine / other:.3f}"
        )
    details = {name: spread(values, unit) for name, values in zip(names, sides, strict=True)}
    return Found.of([mine / other for mine, other in zip(*sides, strict=True)], **details)


def spread(values: Sequence[float], unit: str) -> str:
    """Say a median and its range."""
    low, high = (figure(end(values), unit) for end in (min, max))
    return f"{figure(median(values), unit)} ({low} to {high})"


def figure(value: float, unit: str) -> str:
    """Say a number with its unit, with as many digits as mean something; a ratio ("x") stands alone."""
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 or unit != "x" else 3
    text = f"{value:,.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text if unit == "x" else f"{text} {unit}"


# ---- processes of their own ------------------------------------------------------------------------------------------


def child(
    command: str | Sequence[str],
    *words: str,
    threads: int = 2,
    seconds: float = 900,
    environment: Mapping[str, str] | None = None,
    folder: Path = ROOT,
) -> dict[str, Any]:
    """Run a module of this checkout, or a whole command, in a fresh process; return the JSON object of its last such line.

    `threads` pins those of OpenMP and BLAS. Raises `RuntimeError` with its last lines where it fails, or says no JSON.
    """
    argv = [sys.executable, "-m", command, *words] if isinstance(command, str) else [*command, *words]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=seconds, cwd=folder, env=_environment(threads, environment or {})
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{_short(argv)} took more than the {seconds:.0f} s it is given") from None
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not answers:
        problem = f"ended with {done.returncode}" if done.returncode else "printed no line of JSON"
        raise RuntimeError("\n".join([f"{_short(argv)} {problem}; its last lines:", *_last(done.stdout), *_last(done.stderr)]))
    found: dict[str, Any] = json.loads(answers[-1])
    return found


def _environment(threads: int, more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child: nothing of a tracked run that may be around, and the threads."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    pinned = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
    return {**inherited, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), **pinned, **more}


def _short(argv: Sequence[str]) -> str:
    line = " ".join([Path(argv[0]).name, *argv[1:]])
    return line if len(line) <= 200 else f"{line[:200]} ..."


def _last(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()[-_LINES:]]


# ---- the machine -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What the figures were taken on; `load` is the average of the last minute when they were begun."""

    cpu: str
    cores: int
    memory_gb: float
    versions: dict[str, str]
    load: float

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.cpu}, {self.cores} cores, {self.memory_gb:.0f} GB; {versions}"


def machine() -> Machine:
    """Look at this machine; say so where other work runs on it."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    versions = {"Python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}}
    found = Machine(_cpu(), num_cores(), memory / 2**30, versions, os.getloadavg()[0])
    if found.load > _BUSY * found.cores:
        say(f"warning: the load is {found.load:.1f}: other work runs on this machine, and the figures are noisy")
    return found


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
