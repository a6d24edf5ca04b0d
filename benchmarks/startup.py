"""How long until the first step? `python -m pipelines.train` against a process that only imports and opens a run.

Ours: the direct command on data that are prepared, small_cnn, until the optimizer has taken its first step: imports, the
configuration, the run with all that is logged at its beginning, the network, the first batch. Theirs: `import torch, mlflow`
and `mlflow.start_run()` in the same store. The clock runs from before the process is there until what it says from inside.

    python -m benchmarks --only start --mnist FOLDER
"""

from __future__ import annotations

import sys
import time

from benchmarks import preparing
from benchmarks.measuring import Found, Goal, Row, Terms, alternating, child

_SAY = "print(json.dumps({'at': time.time(), 'cpu': time.process_time()}), flush=True)"

# the command itself, which a hook on one module ends after the first step: nothing is imported earlier than by the command
_OURS = f"""
import importlib.machinery, json, os, runpy, sys, time

class Watch:
    def find_spec(self, name, path, target=None):
        if name != "tracked_cls.step":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            take = module.Stepper.step
            def step(self, batch):
                take(self, batch)
                {_SAY}
                os._exit(0)
            module.Stepper.step = step
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Watch())
runpy.run_module("pipelines.train", run_name="__main__", alter_sys=True)
"""

_THEIRS = f"""
import json, sys, time
import torch, mlflow

mlflow.set_tracking_uri(sys.argv[1])
run = mlflow.start_run()
{_SAY}
mlflow.end_run()
"""


def seconds_of(*command: str) -> tuple[float, float]:
    """Return the seconds from the start of a process to what it says, by the clock and of its computing."""
    started = time.time()
    found = child([sys.executable, "-c"], *command)
    return found["at"] - started, found["cpu"]


def measure(terms: Terms) -> Found:
    """Return ours / theirs by the clock, with the CPU seconds among the details."""
    options = preparing.once(terms)
    store = options[options.index("--tracking.uri") + 1]
    train = ("--model", "small_cnn", "--threads", "2", "--resume", "never", *options)
    seconds_of(_OURS, *train), seconds_of(_THEIRS, store)  # once for the page cache, and for the bytecode of both
    cpu: dict[str, list[float]] = {"ours": [], "theirs": []}

    def timed(side: str, *command: str) -> float:
        wall, computing = seconds_of(*command)
        cpu[side].append(computing)
        return wall

    found = alternating(
        lambda: timed("ours", _OURS, *train),
        lambda: timed("theirs", _THEIRS, store),
        terms.rounds,
        names=("to the first step", "imports and a run"),
    )
    for side, values in cpu.items():
        found.details[f"{side}, CPU"] = f"{min(values):.2f} to {max(values):.2f} s"
    return found


ROWS = [
    Row(
        name="start",
        what="command to first training step (small_cnn, data prepared), direct command",
        baseline="a process that imports torch and mlflow and starts a run in an existing store",
        goal=Goal(1.15, at_least=False),
        measure=measure,
        minutes=3,
        note="Of what the baseline does not do, half a second goes to looking at size and time of 70,000 files, which tells "
        "whether the data have changed, and half a second to our own modules. What would help: a process of its own that "
        "looks at the files meanwhile; or to import MLflow while the first steps are computed, but then a mistyped "
        "tracking address would be told only after them.",
    )
]
