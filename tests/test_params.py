"""Every file in params/ is an experiment that runs: it parses, and its header says what it is."""

import re
import struct
from itertools import product

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import mobilenet_v3_large

from benchmarks.measuring import LeftOut
from benchmarks.recipes import Recipe, data_of
from tests.conftest import ROOT, do
from tracked_cls import pipeline
from tracked_cls.config import TrainConfig, TuneConfig, flatten, load, to_yaml
from tracked_cls.errors import UserError
from tracked_cls.tuning import campaign
from tracked_cls.tuning.space import Space

FILES = sorted((ROOT / "params").glob("*.yaml"))
TRAININGS = [path for path in FILES if path.stem != "tune"]
LARGE = [path for path in TRAININGS if re.search(r"^model: .*(mobilenet|resnet)", path.read_text(), re.MULTILINE)]


def _verb(path):
    return TuneConfig if "tune" in yaml.safe_load(path.read_text()) else TrainConfig


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_params_file_is_a_whole_configuration(path, tmp_path):
    needs_root = ["--data.root", str(tmp_path)] if "data.root=FOLDER" in path.read_text() else []
    cfg = load(_verb(path), ["--params", str(path), *needs_root])
    (tmp_path / "again.yaml").write_text(to_yaml(cfg))
    assert load(_verb(path), ["--params", str(tmp_path / "again.yaml")]) == cfg


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_header_says_command_duration_and_result(path):
    recipe = Recipe.read(path)
    assert recipe.command.startswith(f"mlflow run . -e {_verb(path).verb} --env-manager local")
    assert all([recipe.what, recipe.takes, recipe.expect])
    assert f"-P params=params/{path.name}" in recipe.command or path.name == f"{recipe.verb}.yaml"


def test_a_header_without_a_part_is_told(tmp_path):
    (tmp_path / "a.yaml").write_text("# Something.\n#   run:    mlflow run .\n#   takes:  a minute\nepochs: 1\n")
    with pytest.raises(UserError, match=r"a\.yaml: its header does not say: expect"):
        Recipe.read(tmp_path / "a.yaml")


def test_a_recipe_without_its_data_is_left_out_and_says_what_to_give(tmp_path):
    recipe = Recipe.read(ROOT / "params" / "csv.yaml")
    with pytest.raises(LeftOut, match="--data csv=FOLDER"):
        recipe.words({})
    (tmp_path / "list.csv").touch()
    assert recipe.words(data_of([f"csv={tmp_path / 'list.csv'}"]))[2:] == ["--data.table", str(tmp_path / "list.csv")]
    assert recipe.words(data_of([f"csv={tmp_path}"]))[2:] == ["--data.root", str(tmp_path)]


@pytest.mark.parametrize(
    ("word", "said"), [("cvs=.", "did you mean 'csv'"), ("csv=nowhere", "a path that exists"), ("csv", "NAME=PATH")]
)
def test_data_that_are_not_there_are_told(word, said):
    with pytest.raises(UserError, match=said):
        data_of([word])


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.stem)
def test_one_batch_goes_through_all_of_it(path, pictures, store, trained, capsys):
    """On pictures made here, by a small network in place of one that takes long to export."""
    network = ["--model", "small_cnn"] if path in LARGE else []
    _train(path, pictures, [*network, *store])
    assert "epoch 1/1" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_one_batch_goes_through_all_of_it_with_its_own_network(path, pictures, store, trained, capsys):
    """What would come from the network comes from here as well."""
    weights = ["--model.weights", str(pictures / "weights.safetensors")] if path.stem == "finetune" else []
    _train(path, pictures, [*weights, *store])
    assert "epoch 1/1" in capsys.readouterr().out


def _train(path, pictures, words):
    base = ["--params", str(path), "--fast_dev_run", "true", "--tracking.pictures", "false", "--threads", "1"]
    ended = do(pipeline.train, TrainConfig, [*base, *_own(path, pictures), *words])
    assert ended.lines[0].startswith("train: ")


@pytest.mark.slow
def test_the_search_of_its_file_goes_through(store, trained, tmp_path):
    """Without fast_dev_run, which means nothing to a search: two trials of an epoch."""
    words = [
        "--epochs",
        "1",
        "--limit",
        "60",
        "--threads",
        "1",
        "--tracking.pictures",
        "false",
        "--trials",
        "2",
        "--finalists",
        "1",
    ]
    own = ["--finalist_seeds", "1", "--study", "of params", "--checkpoint.store", str(tmp_path)]
    found = do(campaign.run, TuneConfig, ["--params", str(ROOT / "params" / "tune.yaml"), *words, *own, *store])
    assert sum(found.states.values()) == 2


def _own(path, pictures):
    """Return what a file needs of its user, and what makes a large one small."""
    cfg = yaml.safe_load(path.read_text())["data"]
    words = {
        "folder": ["--data.root", str(pictures / "folder")],
        "csv": ["--data.table", str(pictures / "list.csv"), "--data.root", str(pictures / "folder")],
        "idx": ["--data.root", str(pictures / "idx")],
        "torchvision": ["--data.source", "folder", "--data.root", str(pictures / "folder"), "--data.name", "cifar10"],
        "digits": [],
    }[cfg["source"]]
    small = ["--data.image_size", "64", "--batch_size", "8"] if cfg.get("image_size") == 224 else []
    return [*words, *small, "--data.store", str(pictures / "data")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with pictures in each form that a file of params/ asks for, and weights as they are published."""
    home = tmp_path_factory.mktemp("pictures")
    draws = np.random.default_rng(0)
    lines = ["path,label,split"]
    for split, name, index in product(("train", "test"), ("cat", "dog", "owl"), range(12)):
        place = home / "folder" / split / name / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (40, 40, 3), np.uint8)).save(place)
        lines.append(f"{split}/{name}/{index}.png,{name},{split}")
    (home / "list.csv").write_text("\n".join(lines) + "\n")
    (home / "idx").mkdir()
    for prefix in ("train", "t10k"):
        (home / "idx" / f"{prefix}-images-idx3-ubyte").write_bytes(_idx(draws.integers(0, 256, (120, 28, 28), np.uint8)))
        (home / "idx" / f"{prefix}-labels-idx1-ubyte").write_bytes(_idx(np.arange(120, dtype=np.uint8) % 10))
    save_file(mobilenet_v3_large(num_classes=1000).state_dict(), home / "weights.safetensors")
    return home


def _idx(values):
    """Return an array of bytes as MNIST's files hold it."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def test_the_search_is_around_the_default_experiment_and_begins_with_it():
    tune = load(TuneConfig, ["--params", str(ROOT / "params" / "tune.yaml")])
    train = load(TrainConfig, ["--params", str(ROOT / "params" / "train.yaml")])
    space = Space.read(tune.tune.space)
    assert {**flatten(tune.train), "promote.auto": "first"} == flatten(train)
    assert space.config(train, space.baseline(train, tune.tune.baseline)) == train
    assert len(space.check(train)) > 50
