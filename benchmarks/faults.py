"""Does a command that is killed with SIGKILL, again and again, end as if nobody had killed it? Every stage, counted.

Half of the kills come at a random time, half at a named place (`tracked_cls.failpoints`). What a stage leaves is compared with
what an undisturbed command left: checkpoints part by part, metric histories, tables and pictures, prepared bytes, predictions.

    python -m benchmarks.faults --kills 200 --out FILE     half an hour on two quiet cores
    python -m benchmarks.faults --summary FILE             only the table of what is in the file

A command is forked from a process that has imported everything, but for the stage "train, processes". Each chain of kills is a
line of the file as soon as it has ended; a start with the same file goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tests.faults import remains  # noqa: E402 - the checkout, no installed copy
from tests.faults.harness import STEPS, Command, Kill, ask, moments, run, until_done  # noqa: E402
from tests.faults.jobs import MODEL, Site, make_images  # noqa: E402
from tracked_cls.failpoints import POINTS  # noqa: E402

Record = dict[str, Any]

_PICTURES = 300
_KILLS_PER_CHAIN = 8
_HURRY = 0.5  # what is continued takes less time than what is begun, so times come from this part of the whole
_SAMPLED = ("--transforms.speed", "sample", "--loader.workers", "2")
_LOOP = [name for name in POINTS if name.startswith(("checkpoint.", "train.after_metrics", "train.before_save"))]
_LATE = [f"{name}:1" for name in POINTS if name.startswith(("train.after_loop", "train.before_test", "run.", "release."))]


@dataclass(frozen=True)
class Stage:
    """What is killed: `share` of all kills; `command` makes a job by name; `left` says what must come out the same."""

    name: str
    share: float
    points: Sequence[str]
    command: Callable[[Site, str], Command]
    left: Callable[[Site, str], Any]
    after_kill: Callable[[Site, str], Any] = lambda site, name: None
    forked: bool = True
    counts_steps: bool = False
    whole: dict[str, Any] = field(default_factory=dict)


def _finished(site: Site, name: str, kind: str) -> list[Record]:
    """Return what the runs that came to their end hold, once where they hold the same; those of killed starts are KILLED.

    Killed after its run had ended, a command does its work a second time.
    """
    runs: list[Record] = ask(remains.of_run, site.uri, name, kind)
    assert {found["status"] for found in runs} <= {"FINISHED", "KILLED"}, [found["status"] for found in runs]
    ended = [found for found in runs if found["status"] == "FINISHED"]
    return [found for place, found in enumerate(ended) if found not in ended[:place]]


def _histories(site: Site, name: str, kind: str) -> list[Any]:
    return [found["history"] for found in _finished(site, name, kind)]


def _searched(site: Site, name: str) -> Any:
    """Return trials and finals of a search, and how its own run ended; its tables and pictures show times."""
    left = site.left(name, "trial", "train", "study")
    left["study"] = [found["status"] for found in left["study"]]
    return json.loads(json.dumps(left).replace(name, "study"))


def _registered(site: Site, name: str) -> Any:
    """Return whether a training has one finished run, one version, and the champion is sound."""
    (only,) = ask(remains.of_run, site.uri, name, "train")
    versions = ask(remains.versions, site.uri, MODEL)
    is_sound = ask(remains.champion, site.uri, MODEL) is not None
    return [only["status"], versions.count(only["tags"]["weights.digest"]), is_sound]


def _train_on_own_seed(site: Site, name: str) -> Command:
    return site.train(name, "--seed", name.rpartition("-")[2], "--promote.auto", "always", epochs=1)


def _prefixed(*prefixes: str) -> list[str]:
    return [f"{name}:1" for name in POINTS if name.startswith(prefixes)]


STAGES = [
    Stage(
        "train", 0.30, [*_LOOP, "delivery.before_mark", *_LATE[:4]], lambda site, name: site.train(name),
        lambda site, name: site.left(name, "train"), counts_steps=True,
    ),
    Stage(
        "prepare", 0.15, ["prepare.mid_intake:200", *_prefixed("prepare.")], lambda site, name: site.prepare(name),
        lambda site, name: [site.prepared(name), _finished(site, name, "prepare")],
        lambda site, name: ask(remains.partial_sets, site.data(name)),
    ),
    Stage(
        "predict", 0.12, ["predict.mid_rows:9", *_prefixed("predict.", "run.")], lambda site, name: site.predict(name),
        lambda site, name: [site.predictions(name).read_text(), _histories(site, name, "predict")],
    ),
    Stage(
        "evaluate", 0.08, _prefixed("evaluate.", "run."), lambda site, name: site.evaluate(name),
        lambda site, name: _finished(site, name, "evaluate"),
    ),
    Stage(
        "register", 0.08, _LATE, _train_on_own_seed, _registered,
        lambda site, name: ask(remains.champion, site.uri, MODEL),
    ),
    Stage(
        "train, 2 loading processes", 0.09, _LOOP, lambda site, name: site.train(name, *_SAMPLED),
        lambda site, name: site.left(name, "train"), counts_steps=True,
    ),
    Stage(
        "folds", 0.08, [*_LOOP, *_prefixed("folds.")], lambda site, name: site.train(name, "--folds", "2", epochs=2),
        lambda site, name: site.left(name, "train", "fold"),
    ),
    Stage("tune", 0.05, [*_LOOP, *_prefixed("tune.")], lambda site, name: site.tune(name), _searched),
    Stage(
        "tune, 2 workers", 0.03, _prefixed("tune.before_release", "tune.before_conclude"),
        lambda site, name: site.tune(name, "--tune.workers", "2"), _searched,
    ),
    Stage(
        "train, processes", 0.02, [*_LOOP], lambda site, name: site.train(name),
        lambda site, name: site.left(name, "train"), forked=False,
    ),
]  # fmt: skip


def main() -> None:
    """Do what the arguments say."""
    args = _arguments()
    if not args.summary:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        with TemporaryDirectory() as scratch:
            site = Site(Path(scratch))
            make_images(site.images, _PICTURES)
            run(site.train("champion"))
            for stage in STAGES if not args.stages else [stage for stage in STAGES if stage.name in args.stages]:
                _fill(site, stage, round(stage.share * args.kills), args)
    show(_read(args.summary or args.out))


def _fill(site: Site, stage: Stage, kills: int, args: argparse.Namespace) -> None:
    """Kill a stage, chain by chain, as often as it is still to be killed."""
    while (missing := kills - sum(record["kills"] for record in _of(stage, args))) > 0:
        number = args.seed + len(_of(stage, args))
        record = _chain(site, stage, number, min(missing, _KILLS_PER_CHAIN))
        with args.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print({key: value for key, value in record.items() if key != "killed_at"}, flush=True)


def _of(stage: Stage, args: argparse.Namespace) -> list[Record]:
    return [record for record in _read(args.out) if record["stage"] == stage.name]


def _chain(site: Site, stage: Stage, number: int, kills: int) -> Record:
    """Kill one job until it is done, and compare."""
    if not stage.whole:
        stage.whole.update(_undisturbed(site, stage))
    name = f"{stage.name.replace(', ', '-').replace(' ', '-')}-{1000 + number}"
    job, before = stage.command(site, name), _steps(site)
    plan: list[Kill] = moments(number, kills, _HURRY * stage.whole["seconds"], stage.points)
    found: Record = {"stage": stage.name, "number": number, "identical": False, "trouble": None}
    try:
        story = until_done(job, plan, forked=stage.forked, after_kill=lambda kill: stage.after_kill(site, name))
        found |= {
            "kills": story.kills,
            "starts": story.starts,
            "seconds": round(story.seconds, 1),
            "killed_at": story.killed_at,
        }
        found["identical"] = stage.left(site, name) == stage.whole["left"]
    except AssertionError as trouble:
        found |= {"kills": kills, "starts": kills, "seconds": 0.0, "killed_at": [], "trouble": str(trouble)[-2000:]}
    again = _steps(site) - before - stage.whole["steps"]
    return found | {"steps_again": again if stage.counts_steps else None}


def _undisturbed(site: Site, stage: Stage) -> Record:
    name, before = f"{stage.name.replace(', ', '-').replace(' ', '-')}-999", _steps(site)
    started = time.perf_counter()
    run(stage.command(site, name))
    seconds = time.perf_counter() - started
    return {"left": stage.left(site, name), "seconds": seconds, "steps": _steps(site) - before}


def _steps(site: Site) -> int:
    path = site.home / STEPS
    return path.stat().st_size if path.exists() else 0


# ---- what came out ---------------------------------------------------------------------------------------------------


def _read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def show(records: Sequence[Record]) -> None:
    """Print a row for every stage."""
    print("\n| stage | kills | at a time / at a place | starts | identical / jobs | steps taken again per kill | seconds |")
    print("|---|---|---|---|---|---|---|")
    stages = dict.fromkeys(record["stage"] for record in records)
    for stage in stages:
        print(_row(stage, [record for record in records if record["stage"] == stage]))
    print(_row("all", records))
    for record in records:
        if not record["identical"]:
            print(f"\nDIFFERENT: {record['stage']} {record['number']}, killed at {record['killed_at']}: {record['trouble']}")


def _row(stage: str, records: Sequence[Record]) -> str:
    kills, starts = (sum(record[key] for record in records) for key in ("kills", "starts"))
    at_place = sum(kill[0].isalpha() for record in records for kill in record["killed_at"])
    again = [record["steps_again"] for record in records if record["steps_again"] is not None]
    killed = sum(record["kills"] for record in records if record["steps_again"] is not None)
    identical, seconds = sum(record["identical"] for record in records), sum(record["seconds"] for record in records)
    steps = f"{sum(again) / killed:.2f}" if killed and stage != "all" else ""
    cells = (stage, kills, f"{kills - at_place} / {at_place}", starts, f"{identical} / {len(records)}", steps, round(seconds))
    return f"| {' | '.join(map(str, cells))} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many, all stages together (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the kills (0)")
    parser.add_argument("--out", type=Path, default=Path("faults.jsonl"), help="file of results, continued (faults.jsonl)")
    parser.add_argument("--stages", nargs="+", choices=[stage.name for stage in STAGES], help="only these (all)")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="print the table of a file, and do nothing else")
    return parser.parse_args()


if __name__ == "__main__":
    main()
