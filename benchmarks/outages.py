"""What does training lose while its tracking server is dead? Kills a real `mlflow server` under real commands, and counts.

Six stories, each the real command as a process on the digits, one epoch a second (it sleeps the rest), its server killed with
SIGKILL: compared with an undisturbed run, point by point. `stall` is the longest time that any call into a run took the
training's own thread while it trained, `gap` the longest time between two epochs beyond the second they take.

    python -m benchmarks.outages --seconds 60     half an hour on two cores; the last table is in docs/reliability.md
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tests.faults.tracking_server import Server, serving  # noqa: E402
from tracked_cls.console import say  # noqa: E402

NOTES, PACE_SECONDS = "TRACKED_CLS_OUTAGES", 1.0
EPOCHS, BEFORE = 150, 12
CLOCKS = ("_seconds", "images_per_second", "latency_ms")
_CALLS = ("log_metrics", "log_params", "set_tags", "log_file", "log_folder", "log_text", "drop_tags", "add", "history")
_NETWORK = ("--model", "small_cnn", "--model.args", "{width: 4, pairs: 2}", "--threads", "1", "--batch_size", "64")


# ---- in the process that is watched: every call is timed -------------------------------------------------------------


def _watch(path: str) -> None:
    """Note every call into a run from the thread that trains, and every epoch; an epoch takes a second at least."""
    from tracked_cls import training
    from tracked_cls.tracking import Run

    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    state = {"trains": False, "thread": 0}

    def note(**what: Any) -> None:
        os.write(file, (json.dumps({"pid": os.getpid(), "at": time.time(), **what}) + "\n").encode())

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def timing(run: Any, *args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            answer = call(run, *args, **options)
            seconds = time.perf_counter() - started
            if threading.get_ident() == state["thread"]:
                logged = {}
                if name == "log_metrics":
                    logged = {"run": run.run_id, "key": run.journal.key, "values": args[0], "step": options.get("step", 0)}
                note(call=name, seconds=seconds, trains=state["trains"], **logged)
            return answer

        return timing

    for name in _CALLS:
        setattr(Run, name, timed(name, getattr(Run, name)))
    fit = training.fit

    def paced(*args: Any, **options: Any) -> Iterator[Any]:
        state["trains"], ended = True, time.monotonic()
        for step in fit(*args, **options):
            if isinstance(step, training.EpochResult):
                took = time.monotonic() - ended
                time.sleep(max(0.0, PACE_SECONDS - took))
                ended = time.monotonic()
                note(epoch=step.epoch, took=took)
            yield step
        state["trains"] = False

    training.fit = paced
    state["thread"] = threading.get_ident()


if os.environ.get(NOTES):  # in the command, and in the workers that it spawns, which import this file as well
    _watch(os.environ[NOTES])


# ---- the stories -----------------------------------------------------------------------------------------------------


@dataclass
class Story:
    """A command in a folder of its own, with an experiment of its own."""

    name: str
    folder: Path
    server: Server
    verb: str = "train"
    epochs: int = EPOCHS
    codes: list[int] = field(default_factory=list)

    @property
    def notes(self) -> list[dict[str, Any]]:
        """What was noted, in order."""
        path = self.folder / "notes.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def num_epochs(self) -> int:
        """How many epochs were trained."""
        return sum("epoch" in note for note in self.notes)

    def start(self, verb: str | None = None) -> subprocess.Popen[bytes]:
        """Start the command."""
        self.folder.mkdir(parents=True, exist_ok=True)
        words = ["--tracking.uri", self.server.uri, "--tracking.experiment", self.name]
        words = words if verb == "sync" else [*words, *self._words()]
        params = ["--params", str(ROOT / "params" / f"{'tune' if self.verb == 'tune' else 'train'}.yaml")]
        line = [sys.executable, "-m", "benchmarks.outages", "--be", verb or self.verb, "--", *params, *words]
        own = {"PYTHONPATH": str(ROOT), NOTES: str(self.folder / "notes.jsonl"), "OMP_NUM_THREADS": "1"}
        with (self.folder / "said.log").open("ab") as log:
            return subprocess.Popen(
                line, cwd=self.folder, env={**os.environ, **own}, stdout=log, stderr=log, start_new_session=True
            )

    def _words(self) -> list[str]:
        own = ["--data.name", self.name, "--data.image_size", "8", "--epochs", str(self.epochs), "--promote.auto", "always"]
        if self.verb == "tune":
            space = "{optimizer.lr: {low: 0.001, high: 0.1, log: true}}"
            own = [*own[:-2], "--tune.space", space, "--tune.trials", "8", "--tune.workers", "2", "--tune.pruner.name", "none"]
            own += ["--tune.finalists", "1", "--tune.finalist_seeds", "1"]
        return [*_NETWORK, *own]

    def wait_for(self, epochs: int, process: subprocess.Popen[bytes]) -> None:
        """Wait until so many epochs were trained."""
        while self.num_epochs < epochs:
            assert process.poll() is None, f"{self.name} ended with {process.returncode}: {self.tail()}"
            time.sleep(0.2)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for a command."""
        self.codes.append(process.wait())

    def tail(self) -> str:
        """Return the end of what the command said."""
        return (self.folder / "said.log").read_text()[-3000:]


def undisturbed(story: Story, seconds: float) -> None:
    """Leave a command alone."""
    story.end(story.start())


def in_the_middle(story: Story, seconds: float) -> None:
    """Kill the server under a command, and start it again later."""
    process = story.start()
    story.wait_for(BEFORE, process)
    story.server.kill()
    time.sleep(seconds)
    story.server.start()
    story.end(process)


def at_the_start(story: Story, seconds: float) -> None:
    """Start a command without its server, and the server later."""
    story.server.kill()
    process = story.start()
    story.wait_for(1, process)
    time.sleep(seconds)
    story.server.start()
    story.end(process)


def until_after_the_end(story: Story, seconds: float) -> None:
    """Kill the server under a command, start it after the end, and deliver."""
    process = story.start()
    story.wait_for(BEFORE, process)
    story.server.kill()
    story.end(process)
    story.server.start()
    story.end(story.start("sync"))


def with_the_trainer(story: Story, seconds: float) -> None:
    """Kill the server, then the command; start the command again, and the server later."""
    process = story.start()
    story.wait_for(BEFORE, process)
    story.server.kill()
    story.wait_for(2 * BEFORE, process)
    os.killpg(process.pid, signal.SIGKILL)
    story.end(process)
    process = story.start()
    story.wait_for(2 * BEFORE + 1, process)
    time.sleep(seconds)
    story.server.start()
    story.end(process)


# ---- what is left ----------------------------------------------------------------------------------------------------


def account(story: Story, reference: Story | None) -> dict[str, Any]:
    """Return the figures of a story."""
    from mlflow import MlflowClient

    client = MlflowClient(story.server.uri)
    home = client.get_experiment_by_name(story.name)
    assert home is not None, story.tail()
    runs = client.search_runs([home.experiment_id], max_results=1000)
    stored = _points(client, runs)
    expected = _expected(story, {run.data.tags.get("journal.key"): run.info.run_id for run in runs})
    missing = [point for point in expected if point not in stored]
    trained = [run for run in runs if run.data.tags.get("kind") == ("trial" if story.verb == "tune" else "train")]
    return {
        "story": story.name,
        "exit codes": story.codes,
        "expected": len(expected),
        "stored": sum(len(found) for found in stored.values()),
        "lost": len(missing),
        "doubled": sum(len(found) > 1 for found in stored.values()),
        "other values": sum(point in stored and value not in stored[point] for point, value in expected.items()),
        "runs": dict(Counter(f"{run.data.tags.get('kind')} {run.info.status}" for run in runs)),
        "versions": len(client.search_model_versions(f"name='{story.name}-classifier'")),
        "models": [model.status for model in client.search_logged_models([home.experiment_id])],
        "differs": [] if reference is None else _differences(client, story, reference, trained)[:10],
        "journals left": sum(path.is_dir() for path in (story.folder / "runs" / "journal").glob("*")),
        **_times(story),
    }


def _points(client: Any, runs: list[Any]) -> dict[tuple[str, str, int], list[str]]:
    """Return (run, metric, step) -> the values that are stored."""
    found = defaultdict(list)
    for run in runs:
        for key in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, key):
                found[run.info.run_id, key, point.step].append(float(point.value).hex())
    return found


def _expected(story: Story, run_by_key: dict[str | None, str]) -> dict[tuple[str, str, int], str]:
    """Return the first value of every metric that a command has logged; only what its call has returned counts.

    A run that had no id yet is told by the key of its journal; one that is continued may have several journals.
    """
    logged = [note for note in story.notes if "values" in note]
    known = run_by_key | {note["key"]: note["run"] for note in logged if not note["run"].startswith("journal:")}
    first: dict[tuple[str, str, int], str] = {}
    for note in logged:
        for key, value in note["values"].items():
            first.setdefault((known.get(note["key"], note["key"]), key, note["step"]), float(value).hex())
    return first


def _differences(client: Any, story: Story, reference: Story, trained: list[Any]) -> list[str]:
    """Return what a run has that the undisturbed one has not, or the other way round."""
    home = client.get_experiment_by_name(reference.name)
    (theirs,) = client.search_runs([home.experiment_id], "tags.kind = 'train'")
    if len(trained) != 1:
        return [f"{len(trained)} runs"]
    ours, found = _holding(client, trained[0]), []
    for part, value in _holding(client, theirs).items():
        plain = {name.replace(story.name, reference.name) for name in ours[part]}
        found += [f"{part}: {name}" for name in sorted(plain ^ value)]
    return found


def _holding(client: Any, run: Any) -> dict[str, set[str]]:
    points = [point for key in run.data.metrics for point in client.get_metric_history(run.info.run_id, key)]
    return {
        "params": {f"{key}={value}" for key, value in run.data.params.items() if key != "tracking.experiment"},
        "tags": set(run.data.tags) - {"heartbeat", "reaped"},
        "inputs": {given.dataset.name for given in run.inputs.dataset_inputs},
        "artifacts": set(_paths(client, run.info.run_id)),
        "points": {f"{p.key} {p.step} {p.value.hex()}" for p in points if not p.key.endswith(CLOCKS)},
    }


def _paths(client: Any, run_id: str, folder: str | None = None) -> Iterator[str]:
    for item in client.list_artifacts(run_id, folder):
        if item.is_dir:
            yield from _paths(client, run_id, item.path)
        else:
            yield f"{item.path}{'' if item.file_size else ' (empty)'}"


def _times(story: Story) -> dict[str, Any]:
    """Return the longest call and the longest gap between epochs, in ms and s, and how many calls there were."""
    timed = sorted((note["seconds"], note["call"]) for note in story.notes if "call" in note and note["trains"])
    calls = [seconds for seconds, _ in timed]
    took = sorted(note["took"] for note in story.notes if "epoch" in note)
    return {
        "calls": len(calls),
        "stall_ms": round(1000 * calls[-1], 1),
        "stalled by": timed[-1][1],
        "over_50_ms": sum(seconds > 0.05 for seconds in calls),
        "p99_ms": round(1000 * calls[int(0.99 * len(calls))], 1),
        "gap_s": round(max(0.0, took[-1] - PACE_SECONDS), 2),
        "epoch_s": round(took[len(took) // 2], 2),
    }


STORIES: dict[str, Callable[[Story, float], None]] = {
    "undisturbed": undisturbed,
    "outage-middle": in_the_middle,
    "outage-start": at_the_start,
    "outage-after-end": until_after_the_end,
    "outage-trainer-killed": with_the_trainer,
    "outage-tune": in_the_middle,
}


def main() -> None:
    """Tell the stories, and print what was left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long a server is away")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each training, about a second each")
    parser.add_argument("--stories", nargs="+", choices=STORIES, default=list(STORIES))
    options = parser.parse_args()
    with TemporaryDirectory(prefix="outages-") as scratch, serving(Path(scratch) / "server") as server:
        reference: Story | None = None
        for name in options.stories:
            story = Story(name, Path(scratch) / name, server, epochs=options.epochs)
            if name == "outage-tune":
                story.verb, story.epochs = "tune", options.epochs // 4
            started = time.monotonic()
            STORIES[name](story, options.seconds)
            figures = account(story, reference if story.verb == "train" else None)
            say(json.dumps({**figures, "seconds": round(time.monotonic() - started), "load": round(os.getloadavg()[0], 1)}))
            if any(story.codes):
                say(story.tail())
            reference = reference or story


def _be(verb: str, words: list[str]) -> None:
    """Be a command."""
    from importlib import import_module

    from pipelines.command import command

    sys.argv = [verb, *words]
    command(import_module(f"pipelines.{verb}").main)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--be"]:
        _be(sys.argv[2], sys.argv[4:])
    main()
