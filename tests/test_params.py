"""Every file in params/ is an experiment that runs: it parses, and its header says what it is."""

import pytest
import yaml

from tests.conftest import ROOT
from tracked_cls.config import TrainConfig, TuneConfig, flatten, load, to_yaml
from tracked_cls.tuning.space import Space

FILES = sorted((ROOT / "params").glob("*.yaml"))


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
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    words = [f"run:    mlflow run . -e {_verb(path).verb}", "takes:  ", "expect: "]
    assert all(any(line.startswith(f"#   {word}") for line in header) for word in words)
    assert not any(word in "".join(header) for word in ("TAKES", "EXPECT", "TODO"))


def test_the_search_is_around_the_default_experiment_and_begins_with_it():
    tune = load(TuneConfig, ["--params", str(ROOT / "params" / "tune.yaml")])
    train = load(TrainConfig, ["--params", str(ROOT / "params" / "train.yaml")])
    space = Space.read(tune.tune.space)
    assert {**flatten(tune.train), "promote.auto": "first"} == flatten(train)
    assert space.config(train, space.baseline(train, tune.tune.baseline)) == train
    assert len(space.check(train)) > 50
