"""Does `tune` find better options than plain Optuna or random search in as many epochs? And what does a trial cost?

Every method gets the same budget of epochs (of `tune`, the re-trainings of its finalists included), the same space and the
same training code; what it chose is then trained on fresh seeds, the same for all, and tested. A study has a seed of its own.

    ours      `tune` with its defaults; options may follow: "ours pruner=median finalists=2"
    optuna    create_study(direction="maximize", sampler=TPESampler(seed)) with its default MedianPruner(); best_trial
    random    RandomSampler, no pruner; best_trial
    default   the recipe of params/train.yaml, with the network of this benchmark, as it is

    python -m benchmarks.tuning --out FILE              digits: half an hour for ten studies, on one core
    python -m benchmarks.tuning --out FILE --data mnist --mnist FOLDER --fresh-seeds 3
                                                        two hours; FOLDER holds train/ and test/, unpacked
    python -m benchmarks.tuning --summary FILE          only the table of what is in the file
    python -m benchmarks.tuning --overhead              a trial's time over the same training alone: six minutes

Each result is a line of the file as soon as it is there; a start with the same file goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
import torch
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import Trial
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tracked_cls import evaluation, experiment, preparation, tracking, training  # noqa: E402 - the checkout, no installed copy
from tracked_cls.compute import make_compute  # noqa: E402
from tracked_cls.config import TrainConfig, TuneConfig, load, override  # noqa: E402
from tracked_cls.console import say  # noqa: E402
from tracked_cls.data.cache import Prepared  # noqa: E402
from tracked_cls.data.loaders import Feed, open_split  # noqa: E402
from tracked_cls.evaluation import Scores  # noqa: E402
from tracked_cls.experiment import Trained  # noqa: E402
from tracked_cls.job import shape_of  # noqa: E402
from tracked_cls.state import TrainState  # noqa: E402
from tracked_cls.step import Diverged  # noqa: E402
from tracked_cls.tracking import Tracker  # noqa: E402
from tracked_cls.training import EpochResult  # noqa: E402
from tracked_cls.tuning import finals, trials  # noqa: E402
from tracked_cls.tuning.space import Space  # noqa: E402
from tracked_cls.tuning.study import Search, open_search  # noqa: E402

Record = dict[str, Any]
OnEpoch = Callable[[EpochResult], None]

_MNIST_IMAGES = 6000
_SEEDS_PER_STUDY = 1000  # a study's own, its finals' after it, and from the half on the fresh ones
_EFFORT = ("trials", "complete", "pruned", "fail", "epochs", "seconds")
_MANY = 100_000  # trials: epochs are what is counted
_SPACE: dict[str, Any] = {
    "batch_size": [32, 64, 128, 256],
    "optimizer": ["sgd", "adamw", "rmsprop"],
    "optimizer.lr@sgd": {"low": 0.001, "high": 1.0, "log": True},
    "optimizer.lr@adamw": {"low": 0.0001, "high": 0.1, "log": True},
    "optimizer.lr@rmsprop": {"low": 0.00003, "high": 0.03, "log": True},
    "optimizer.weight_decay@sgd": {"low": 0.000001, "high": 0.01, "log": True},
    "optimizer.weight_decay@adamw": {"low": 0.0001, "high": 0.5, "log": True},
    "optimizer.momentum@sgd": {"low": 0.1, "high": 0.99},
    "scheduler": ["onecycle", "cosine", "step", "constant"],
    "scheduler.warmup_fraction@onecycle": {"low": 0.05, "high": 0.5},
    "scheduler.warmup_epochs@cosine": {"low": 0, "high": 3, "step": 1},
    "scheduler.step_epochs@step": {"low": 1, "high": 5},
    "scheduler.gamma@step": {"low": 0.05, "high": 0.9, "log": True},
    "loss.smoothing": {"low": 0.0, "high": 0.3},
    "transforms.train": {
        "choices": {
            "none": [],
            "light": [{"RandomAffine": {"degrees": 5, "translate": [0.04, 0.04]}}],
            "usual": [{"RandomAffine": {"degrees": 10, "translate": [0.08, 0.08], "scale": [0.9, 1.1]}}],
            "strong": [{"RandomAffine": {"degrees": 30, "translate": [0.2, 0.2], "scale": [0.7, 1.4]}}],
        }
    },
}


# ten seconds or more of training, the same in every trial
_LONG_TRIAL: dict[str, Any] = {
    "epochs": 40,
    "batch_size": 32,
    "model.args": {"width": 16, "pairs": 3},
    "tune.space": {"loss.smoothing": [0.05]},
    "tune.pruner": "none",
}


@dataclass(frozen=True, eq=False)
class Bench:
    """What all methods share: the recipe with its space, the data, the budget and a store that is thrown away."""

    data: str
    cfg: TuneConfig
    prepared: Prepared
    tracker: Tracker
    budget: int
    fresh_seeds: int

    @property
    def terms(self) -> Record:
        """What must be the same for two results to be compared."""
        return {"epochs": self.cfg.epochs, "budget": self.budget, "fresh_seeds": self.fresh_seeds, "model": self.cfg.model.args,
                "image_size": self.cfg.data.image_size}  # fmt: skip

    @property
    def space(self) -> Space:
        """The space that all search in."""
        return Space.read(self.cfg.tune.space)

    def recipe(self, study: int) -> TrainConfig:
        """Return the untuned recipe on the seed of a study."""
        return self.cfg.train.model_copy(update={"seed": _SEEDS_PER_STUDY * study})


@dataclass(frozen=True)
class Choice:
    """What a method chose, the validation value it chose it by, and how it got there."""

    cfg: TrainConfig
    value: float | None
    about: Record


def main() -> None:
    """Do what the arguments say."""
    args = _arguments()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(args.threads)
    if args.summary:
        show(_read(args.summary))
    elif args.overhead:
        measure_overhead(args)
    else:
        compare(args)


# ---- one training ----------------------------------------------------------------------------------------------------


def train(prepared: Prepared, cfg: TrainConfig, split: str = "val", on_epoch: OnEpoch = lambda result: None) -> Scores:
    """Train with the package's loop, without MLflow or files, and score the weights of the best epoch on a split."""
    compute = make_compute("cpu", cfg.threads)
    with closing(Feed.create(prepared, compute, cfg.transforms, cfg.loader)) as feed:
        images, val = open_split(feed, "train"), open_split(feed, "val")
        state = TrainState.create(cfg, shape_of(prepared), train_images=len(images), compute=compute)
        best: dict[str, torch.Tensor] = {}
        for step in training.fit(state, cfg, train=images, val=val):
            if isinstance(step, EpochResult):
                if state.record_score(step.val_accuracy, step.val_loss, min_delta=0.0):
                    best = deepcopy(state.network.state_dict())
                on_epoch(step)
        state.network.load_state_dict(best)
        return evaluation.score(state.network, open_split(feed, split).eval_batches(cfg.training.eval_batch_size))


def test(bench: Bench, cfg: TrainConfig, study: int) -> list[float]:
    """Return the test accuracy of a configuration on each of the fresh seeds of a study; 0 where it diverged."""
    first = _SEEDS_PER_STUDY * study + _SEEDS_PER_STUDY // 2
    accuracies = []
    for seed in range(first, first + bench.fresh_seeds):
        try:
            accuracies.append(train(bench.prepared, cfg.model_copy(update={"seed": seed}), "test").accuracy)
        except Diverged:
            accuracies.append(0.0)
    return accuracies


# ---- the methods -----------------------------------------------------------------------------------------------------


def choose(bench: Bench, method: str, study: int) -> Choice:
    """Return what a method chooses in a study."""
    name, *options = method.split()
    if name == "ours":
        return _ours(bench, study, options)
    if options:
        raise SystemExit(f"only ours takes options, got {method!r}")
    if name == "default":
        return Choice(bench.recipe(study), None, {"epochs": 0})
    seed = bench.recipe(study).seed
    if name == "optuna":
        return _plain(bench, study, TPESampler(seed=seed), None)
    if name == "random":
        return _plain(bench, study, RandomSampler(seed=seed), NopPruner())
    raise SystemExit(f"unknown method {name!r}: ours, optuna, random or default")


def _plain(bench: Bench, study: int, sampler: BaseSampler, pruner: BasePruner | None) -> Choice:
    """Search as Optuna's first example does; no pruner means Optuna's default."""
    recipe, space = bench.recipe(study), bench.space
    found = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)

    def objective(trial: Trial) -> float:
        def judge(result: EpochResult) -> None:
            trial.report(result.val_accuracy, result.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        return train(bench.prepared, space.config(recipe, space.suggest(trial)), on_epoch=judge).accuracy

    while _epochs(found) + recipe.epochs <= bench.budget:
        found.optimize(objective, n_trials=1, catch=(Diverged,))
    best = found.best_trial
    about = {**_counts(found), "chosen": best.params, "curves": _curves(found)}
    return Choice(space.config(recipe, best.params), best.value, about)


def _ours(bench: Bench, study: int, options: Sequence[str]) -> Choice:
    """Search as `tune` does, until what is left of the budget is for the finals."""
    search, tracked = _open(bench.cfg, bench.tracker, study, options)
    queue = trials.queue_of(search)
    with _quiet(), bench.tracker.begin("study", search.name, continue_id=tracked) as run:
        nested = bench.tracker.within(run)
        objective = trials.TrialObjective(search, queue, nested, lambda: False, first_number=0)
        search.study.enqueue_trial(search.space.baseline(search.cfg.train, {}), user_attrs={"source": "baseline"})
        queue.work_off(objective, may_start=lambda: _cost_of_next(search) <= bench.budget, between=objective.between)
        last = finals.open_finals(search)
        last.work_off(finals.FinalObjective(search, last, nested, objective.check))
        ranking = finals.judge(search, last)
    winner = ranking[0]
    about = _counts(search.study)
    about["epochs"] += sum(training.user_attrs.get("epochs", 0) for training in last.study.get_trials(deepcopy=False))
    finalists = [[each.trial.number, each.trial.values[0], each.mean] for each in ranking]
    about |= {"chosen": winner.trial.params, "finalists": finalists, "curves": _curves(search.study)}
    return Choice(search.space.config(search.cfg.train, winner.trial.params), winner.mean, about)


def _cost_of_next(search: Search) -> int:
    """Return the epochs there will be in the end if one more trial is started, and completes."""
    tune, epochs = search.cfg.tune, search.cfg.epochs
    complete = sum(trial.state.name == "COMPLETE" for trial in search.study.get_trials(deepcopy=False))
    return _epochs(search.study) + epochs + min(tune.finalists, complete + 1) * tune.finalist_seeds * epochs


def _open(cfg: TuneConfig, tracker: Tracker, study: int, options: Sequence[str]) -> tuple[Search, str]:
    """Return a new study and its run."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"study {study} {' '.join(options)}").strip("-")
    own = {"tune.study": name, "tune.trials": _MANY, "seed": _SEEDS_PER_STUDY * study}
    given = dict(option.split("=", 1) for option in options)
    with _quiet():
        search = open_search(override(cfg, {**own, **{f"tune.{key}": _typed(text) for key, text in given.items()}}), tracker)
        with tracker.begin("study", f"tune {name}") as run:
            run_id = run.run_id
    search.adopt(run_id)
    return search, run_id


def _quiet() -> redirect_stdout[io.StringIO]:
    return redirect_stdout(io.StringIO())


def _typed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _epochs(study: Study) -> int:
    """Return the epochs that the trials of a study have trained."""
    return sum(trial.last_step or 0 for trial in study.get_trials(deepcopy=False))


def _counts(study: Study) -> Record:
    states = Counter(trial.state.name.lower() for trial in study.get_trials(deepcopy=False))
    return {"trials": sum(states.values()), **states, "epochs": _epochs(study)}


def _curves(study: Study) -> list[list[float]]:
    """Return what each trial reported, epoch by epoch."""
    reported = [sorted(trial.intermediate_values.items()) for trial in study.get_trials(deepcopy=False)]
    return [[round(value, 4) for _, value in curve] for curve in reported]


# ---- the comparison --------------------------------------------------------------------------------------------------


def compare(args: argparse.Namespace) -> None:
    """Run what is missing in the file, study by study, and print the table."""
    with TemporaryDirectory() as scratch:
        for data in args.data:
            reason = _missing(data, args)
            if reason:
                say(f"{data} is skipped: {reason}")
                continue
            with _bench(data, args, Path(scratch)) as bench:
                for study in range(args.first_study, args.first_study + args.studies):
                    for method in args.methods:
                        _run(bench, method, study, args.out)
    show(_read(args.out))


def _run(bench: Bench, method: str, study: int, out: Path) -> None:
    """Add a method's result in a study to the file, unless it is there."""
    key = {"data": bench.data, "terms": bench.terms, "method": method, "study": study}
    if any(all(record[name] == value for name, value in key.items()) for record in _read(out)):
        return
    started = time.perf_counter()
    choice = choose(bench, method, study)
    seconds = time.perf_counter() - started
    tested = test(bench, choice.cfg, study)
    record = {**key, **choice.about, "val": choice.value, "test": tested, "seconds": round(seconds, 1)}
    with out.open("a") as file:
        file.write(json.dumps(record) + "\n")
    name = f"{bench.data}, study {study}, {method}"
    say(f"{name}: test accuracy {100 * mean(tested):.2f} %, {record['epochs']} epochs, {seconds:.0f} s")


@contextmanager
def _bench(data: str, args: argparse.Namespace, scratch: Path) -> Iterator[Bench]:
    """Hold the data and the tracker of a comparison open."""
    sizes = {"digits": (8, 8), "mnist": (14, 4)}
    image_size, width = sizes[data]
    options: dict[str, Any] = {
        "params": ROOT / "params/train.yaml",
        "epochs": args.epochs,
        "threads": args.threads,
        "model": "small_cnn",
        "model.args": f"{{width: {width}, pairs: 3}}",
        "data.image_size": image_size,
        "data.workers": 1,
        "tracking.uri": f"sqlite:///{scratch}/{data}/mlflow.db",
        **(_mnist(args.mnist, scratch / "mnist.csv") if data == "mnist" else {}),
    }
    cfg = load(TuneConfig, [part for key, value in options.items() for part in (f"--{key}", str(value))])
    cfg = override(cfg, {"tune.space": _SPACE})
    with tracking.open_tracker(cfg.tracking) as tracker:
        with _quiet():
            prepared = preparation.open_or_prepare(cfg.data, cfg.tracking, tracker)
        yield Bench(data, cfg, prepared, tracker, args.trainings * args.epochs, args.fresh_seeds)


def _missing(data: str, args: argparse.Namespace) -> str | None:
    """Return why a data set cannot be read."""
    if data == "mnist" and args.mnist is None:
        return "--mnist names no folder"
    if data == "mnist" and not all((args.mnist / split).is_dir() for split in ("train", "test")):
        return f"{args.mnist} holds no train/ and test/"
    return None


def _mnist(folder: Path, table: Path) -> dict[str, Any]:
    """Write a table of as many training images of each class, evenly spread, and all test images."""
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for split, count in (("train", _MNIST_IMAGES), ("test", None)):
            classes = sorted(path for path in (folder / split).iterdir() if path.is_dir())
            for label in classes:
                images = sorted(label.iterdir())
                chosen = images if count is None else _spread(images, count // len(classes))
                rows.writerows([path.relative_to(folder), label.name, split] for path in chosen)
    return {"data.source": "csv", "data.table": table, "data.root": folder, "data.name": "mnist"}


def _spread(paths: list[Path], count: int) -> list[Path]:
    return [paths[place] for place in np.linspace(0, len(paths) - 1, count).round().astype(int)]


# ---- what came out ---------------------------------------------------------------------------------------------------


def _read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def show(records: Sequence[Record]) -> None:
    """Print, for each data set and budget, what each method reached and how much less or more than ours."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(f"{record['data']}, {json.dumps(record['terms'])}", []).append(record)
    for title, group in groups.items():
        say(f"\n{title}")
        _show_group(group)


def _show_group(records: Sequence[Record]) -> None:
    by_method: dict[str, dict[int, Record]] = {}
    for record in records:
        by_method.setdefault(record["method"], {})[record["study"]] = record
    widest = max(map(len, by_method))
    for method, studies in by_method.items():
        tested = [100 * mean(record["test"]) for record in studies.values()]
        effort = _effort(list(studies.values()))
        say(f"  {method:{widest}s}  test accuracy {_interval(tested)}  worst {min(tested):.2f}  {effort}")
    ours = by_method.get("ours", {})
    for method, studies in by_method.items():
        shared = sorted(set(ours) & set(studies))
        if studies is not ours and shared:
            gains = [100 * (mean(ours[study]["test"]) - mean(studies[study]["test"])) for study in shared]
            say(f"  ours - {method:{widest}s}  {_interval(gains, signed=True)} points, worst {min(gains):+.2f}")


def _effort(records: Sequence[Record]) -> str:
    """Return means over studies: trials by fate, epochs and seconds."""
    shown = [f"{mean(record.get(key, 0) for record in records):.1f} {key}" for key in _EFFORT]
    return ", ".join(shown)


def _interval(values: Sequence[float], *, signed: bool = False) -> str:
    """Return mean and 95 % interval (Student's t) of independent values."""
    shown = f"{mean(values):+.2f}" if signed else f"{mean(values):.2f}"
    if len(values) < 2:
        return f"{shown} (n=1)"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return f"{shown} +- {half:.2f} (n={len(values)})"


# ---- what a trial costs ----------------------------------------------------------------------------------------------


def measure_overhead(args: argparse.Namespace) -> None:
    """Train the same thing alone, as `train` does before its test, and as a trial of a study, in turns."""
    with TemporaryDirectory() as scratch, _bench("digits", args, Path(scratch)) as bench:
        cfg = override(bench.cfg, _LONG_TRIAL)
        search, run_id = _open(cfg, bench.tracker, 0, ())
        with _quiet():
            nested = bench.tracker.within_id(run_id)
        pairs = [(_alone(search, nested), _as_trial(search, nested)) for _ in range(args.repeats + 1)][1:]  # the first warms up
    for clock, name in enumerate(("wall time", "CPU time")):
        alone, trial = ([times[clock] for times in column] for column in zip(*pairs, strict=True))
        ratio = median(after / before for before, after in zip(alone, trial, strict=True))
        times = f"alone {median(alone):.2f} s, as a trial {median(trial):.2f} s"
        say(f"{name}: {times}; ratio {ratio:.4f} (medians of {len(pairs)})")
    around = [(total - inside, inside) for _, (total, _, inside) in pairs]
    share = 100 * median(outer / inner for outer, inner in around)
    say(f"a trial's wall time around its training: {median(outer for outer, _ in around):.3f} s, {share:.2f} % (medians)")


def _alone(search: Search, tracker: Tracker) -> tuple[float, float, float]:
    """Train in a run like that of a trial, which has no pictures."""
    cfg = search.space.config(search.cfg.train, {"loss.smoothing": 0.05})
    return _timed(lambda: experiment.learn(cfg, tracker, kind="trial", name="alone"))


def _as_trial(search: Search, tracker: Tracker) -> tuple[float, float, float]:
    queue, before = trials.queue_of(search), len(search.study.get_trials(deepcopy=False))
    objective = trials.TrialObjective(search, queue, tracker, lambda: False, first_number=0)

    def may_start() -> bool:
        return len(search.study.get_trials(deepcopy=False)) == before

    return _timed(lambda: queue.work_off(objective, may_start=may_start, between=objective.between))


def _timed(work: Callable[[], object]) -> tuple[float, float, float]:
    """Return the wall time and the CPU time of some work in seconds, and the wall time of the training in it."""
    learn, inside = experiment.learn, []

    def clocked(*args: Any, **options: Any) -> Trained:
        started = time.perf_counter()
        trained = learn(*args, **options)
        inside.append(time.perf_counter() - started)
        return trained

    with _quiet(), patch.object(experiment, "learn", clocked):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - wall, time.process_time() - cpu, sum(inside)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tuning.jsonl"), help="file of results, continued (tuning.jsonl)")
    parser.add_argument(
        "--data", nargs="+", choices=("digits", "mnist"), default=["digits"], help="what is searched on (digits)"
    )
    parser.add_argument("--mnist", type=Path, help="folder with train/ and test/, each with a folder per digit")
    parser.add_argument(
        "--methods", nargs="+", default=["default", "ours", "optuna", "random"], help="which methods (all four)"
    )
    parser.add_argument("--studies", type=int, default=10, help="studies of each method (10)")
    parser.add_argument("--first-study", type=int, default=0, help="number of the first (0)")
    parser.add_argument("--epochs", type=int, default=9, help="epochs of a full training (9)")
    parser.add_argument("--trainings", type=int, default=20, help="budget, in full trainings (20)")
    parser.add_argument("--fresh-seeds", type=int, default=10, help="seeds that a chosen configuration is tested on (10)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--repeats", type=int, default=9, help="with --overhead: trainings of each kind (9)")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="print the table of a file, and do nothing else")
    parser.add_argument(
        "--overhead", action="store_true", help="measure what a trial costs beside its training, and nothing else"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
