"""The rows of the benchmark on input, start, prepare, memory, tuning and accuracy: what they ask for, and how they conclude."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import accuracy, feeding, memory, preparing, scale, startup, together, trials
from benchmarks.measuring import Found, LeftOut, Terms
from tracked_cls.compute import cpu
from tracked_cls.config import PrepareConfig, TrainConfig, TuneConfig, load
from tracked_cls.data.cache import open_partial
from tracked_cls.data.loaders import Feed, open_split

ROOT = Path(__file__).resolve().parents[1]
MODULES = (accuracy, feeding, memory, preparing, startup, trials)
ROWS = {row.name: row for module in MODULES for row in module.ROWS}


def _terms(folder, **given):
    return Terms(**{"mnist": folder, "cifar": None, "rounds": 2, "scratch": folder / "scratch", "peers": None, **given})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder laid out like MNIST: 40 grey pictures in train and 20 in test, of two classes."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 10)):
        for label in "01":
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(random.integers(0, 256, (28, 28), np.uint8)).save(folder / f"{number}.png")
    return root


def test_goals_are_those_that_were_promised():
    goals = {name: (row.goal.value, row.goal.at_least, row.goal.unit) for name, row in ROWS.items() if "modes" not in name}
    assert goals == {
        "input": (3, False, "us"),
        "input_augmented": (15, False, "us"),
        "start": (1.15, False, "x"),
        "prepare": (2, False, "x"),
        "memory": (1.05, False, "x"),
        "trials": (1.3, True, "x"),
        "mnist_8s": (8, False, "s"),
        "mnist_20s": (20, False, "s"),
        "mnist_90s": (90, False, "s"),
        "mobilenet": (150, False, "s"),
        "mobilenet_12000": (94, True, "%"),
    }


@pytest.mark.parametrize("name", [name for name in ROWS if name != "memory"])
def test_row_without_its_pictures_is_left_out_by_name(name, tmp_path):
    with pytest.raises(LeftOut, match=r"--mnist|params/"):
        ROWS[name].measure(_terms(tmp_path, mnist=None))


# the words that rows give to commands, which say no to an option there is not
@pytest.mark.parametrize(
    ("cls", "words"),
    [
        pytest.param(PrepareConfig, [], id="prepare"),
        pytest.param(TrainConfig, accuracy.SHORT, id="short training"),
        pytest.param(TrainConfig, [*accuracy.SHORT, *accuracy.AS_SHIPPED], id="BatchNorm as shipped"),
        *(pytest.param(TrainConfig, words, id=f"modes of {name}") for name, words in accuracy.MODES.items()),
        pytest.param(TrainConfig, trials.RECIPE, id="trainings one by one"),
        pytest.param(TrainConfig, [*together.RECIPE, "--nproc", "2"], id="several processes"),
        pytest.param(TuneConfig, [*trials.RECIPE, *trials.tune_words("study", 20)], id="tune"),
    ],
)
def test_options_of_a_row_are_options_of_its_command(cls, words, tmp_path):
    cfg = load(cls, [*words, *preparing.words(_terms(tmp_path))])
    assert cfg.data.source == "folder"
    assert cfg.data.root == str(tmp_path)


def test_both_sides_of_tuning_train_the_same(tmp_path):
    words = [*trials.RECIPE, *preparing.words(_terms(tmp_path))]
    searched = load(TuneConfig, [*words, *trials.tune_words("study", 20)])
    alone = load(TrainConfig, words)
    assert (searched.tune.trials, searched.tune.workers, searched.threads, searched.tune.pruner.name) == (20, 2, 1, "none")
    for key in ("model", "optimizer", "scheduler", "transforms", "data", "training", "epochs", "batch_size", "limit"):
        assert getattr(searched, key) == getattr(alone, key), key


def test_a_set_of_the_scale_rows_is_one_that_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "HELD_OUT", 20)
    monkeypatch.setattr(scale, "_ROWS", 100)
    scale.write_set(tmp_path / "set", 300)

    prepared = open_partial(tmp_path / "set")
    assert [prepared.manifest.num_of(split) for split in ("train", "val", "test")] == [300, 20, 20]
    assert (len(set(prepared.manifest.ids)), prepared.manifest.paths[339]) == (340, f"{339:016x}")
    batches = list(open_split(Feed(prepared, cpu()), "train").train_batches(batch_size=64, seed=0, epoch=0, start=0))
    assert [tuple(batch.images.shape) for batch in batches] == [(60, 1, 28, 28)] * 5
    assert all((batch.images == -1).all() for batch in batches)


# ---- how rows conclude -----------------------------------------------------------------------------------------------


def test_seconds_do_not_count_where_the_accuracy_is_missed():
    fast = [accuracy.Reached(5.0, 0.9895), accuracy.Reached(7.0, 0.9901)]
    found = accuracy.summary(fast, 99.0)
    assert (found.value, found.low, found.high) == (6, 5, 7)
    assert "98.980 %, not 99 %" in found.fails
    assert not ROWS["mnist_8s"].goal.met(found)
    assert ROWS["mnist_8s"].goal.met(accuracy.summary(fast, 98.9))
    assert found.details["test accuracy of each seed"].startswith("98.95, 99.01 %")


def test_interval_is_that_of_student():
    low, middle, high = accuracy.interval([1.0, 2.0, 3.0])
    assert middle == 2
    assert high - middle == middle - low == pytest.approx(4.302653 / math.sqrt(3))  # t of 2 degrees of freedom at 97.5 %


@pytest.mark.parametrize(
    ("low", "high", "is_met"), [(-0.1, 0.2, True), (0.0, 0.2, True), (0.01, 0.2, False), (-0.2, -0.01, False)]
)
def test_modes_agree_where_the_interval_holds_zero(low, high, is_met):
    assert ROWS["modes_resnet18"].goal.met(Found((low + high) / 2, low, high, "points")) == is_met


def test_clock_counts_a_call_inside_another_once(monkeypatch):
    now = iter([0.0, 1.0, 10.0])
    monkeypatch.setattr(preparing.time, "perf_counter", lambda: next(now))
    clock = preparing.Clock()
    inner = clock.counting(lambda: None)
    clock.counting(inner)()
    assert clock.seconds == 10


def test_peak_is_the_most_that_was_held():
    code = (
        "import numpy as np; from benchmarks.memory import Peak; peak = Peak(); peak.look(); before = peak.mib['RssAnon'];"
        "block = np.ones(1 << 23); peak.look(); del block; peak.look(); print(peak.mib['RssAnon'] - before)"
    )  # 64 MiB, each page of which is touched; in a process of its own, which nothing else gives memory back to
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    said = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert 60 < float(said.stdout) < 80


def test_noise_is_a_source_of_ten_times_the_images(tmp_path, monkeypatch):
    from tracked_cls.data.sources import scan

    monkeypatch.setattr(memory, "IMAGES", 300)
    monkeypatch.setattr(memory, "HELD_OUT", 20)
    memory.write_noise(tmp_path / "memory-10" / "idx", 10)
    cfg = load(PrepareConfig, memory.words(tmp_path, 10)).data
    source = scan(cfg, Path(cfg.root))
    assert len(source.samples) == 10 * 300 + 2 * 20
    assert len({source.array(sample).tobytes() for sample in source.samples}) == 10 * 300 + 2 * 20


# ---- the sides themselves, small -------------------------------------------------------------------------------------


def test_input_of_both_sides_is_measured(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(feeding, "BATCH", 4)
    folder = preparing.prepared_set(preparing.words(_terms(tmp_path, mnist=pictures)))["folder"]
    for kind in ("plain", "augmented"):
        assert feeding.ours(folder, kind)["us"] > 0
        assert feeding.theirs(str(pictures), kind)["us"] > 0


def test_prepare_of_both_sides_sees_every_file(pictures):
    ours, theirs = preparing.ours(str(pictures)), preparing.theirs(str(pictures))
    assert ours["images"] == theirs["images"] == 60
    assert theirs["pixels"] == 60 * 28 * 28
    assert ours["seconds"] > 0 < ours["report"]


@pytest.mark.slow
def test_start_is_seen_at_the_first_step_of_the_command(tmp_path):
    """The hook ends the command itself, after the first step and before the end of the first epoch."""
    words = ["--model", "small_cnn", "--threads", "1", "--data.name", "start", "--tracking.uri", f"sqlite:///{tmp_path}/m.db"]
    root = Path(startup.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", startup._OURS, *words], capture_output=True, text=True, cwd=root, env={"PYTHONPATH": str(root)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith('{"at": ')
    assert "epoch 1/" not in done.stdout


@pytest.mark.slow
def test_a_training_says_its_seconds_and_its_accuracy(pictures, tmp_path):
    words = [*preparing.words(_terms(tmp_path, mnist=pictures)), "--model", "small_cnn", "--epochs", "2", "--threads", "1"]
    found = accuracy.reached([*words, "--promote.auto", "never"], by_cpu=True)
    assert 0 < found.seconds < 60
    assert 0 <= found.accuracy <= 1
