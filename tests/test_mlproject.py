"""MLproject, conda.yaml and the pins agree with the code."""

import hashlib
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from mlflow import MlflowClient
from packaging.requirements import Requirement

from tests.conftest import PARAMS, ROOT, do
from tracked_cls import experiment
from tracked_cls.config import TrainConfig
from tracked_cls.config.verbs import VERBS


def _project():
    return yaml.safe_load((ROOT / "MLproject").read_text())


def test_every_entry_point_runs_the_module_of_its_verb_on_the_file_that_the_verb_reads_by_default():
    entry_points = _project()["entry_points"]
    file_by_verb = {verb.verb: verb.params for verb in VERBS}
    assert set(entry_points) == set(file_by_verb)
    for name, entry in entry_points.items():
        assert entry["command"] == f"python -m pipelines.{name} --params {{params}}"
        assert entry["parameters"] == {"params": {"type": "string", "default": file_by_verb[name]}}
        assert callable(importlib.import_module(f"pipelines.{name}").main)


def test_changed_pins_make_a_new_environment():
    """MLflow names a conda environment by conda.yaml's text alone."""
    digest = hashlib.sha256((ROOT / "requirements.txt").read_bytes()).hexdigest()[:16]
    assert f"# requirements.txt: sha256 {digest}\n" in (ROOT / "conda.yaml").read_text()


def test_the_project_itself_is_no_requirement():
    """MLflow reuses environments by the text of their requirements, and would import another checkout's code."""
    dependencies = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    assert dependencies[-1] == {"pip": ["-r requirements.txt"]}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9_-]+==[\w.]+", line), line


def test_every_pin_is_in_its_range_and_every_range_has_a_pin():
    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = {requirement.name: requirement for requirement in map(Requirement, project["dependencies"])}
    assert set(pins) == set(ranges)
    assert [name for name, version in pins.items() if not ranges[name].specifier.contains(version)] == []


def test_the_packaged_model_requires_pinned_packages_only():
    from tracked_cls.serving.packaging import _REQUIREMENTS

    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines())
    assert set(_REQUIREMENTS) <= set(pins)


def test_mlflow_run_trains_in_the_run_it_opened_and_leaves_everything_with_the_caller(tmp_path, home, store, trained):
    """From another folder than the project's, with the caller's tracking store."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {
        "MLFLOW_TRACKING_URI": store[1],
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    options = {"model": "small_cnn", "epochs": 1, "limit": 60, "optimizer.lr": "1e-3", "seed": 11}
    words = [word for key, value in options.items() for word in ("-P", f"{key}={value}")]
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", "train", "--env-manager", "local", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "small_cnn (72,666 parameters) on digits: 60 train, 60 val images of 32x32" in done.stdout

    client = MlflowClient(store[1])
    run_id = re.search(r"in run with ID '(\w+)'", done.stderr).group(1)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "small_cnn on digits", "MLflow's made-up name gives way"
    assert run.data.params["optimizer.lr"] == "1e-3", "as typed: mlflow run logs it first"
    assert run.data.params["optimizer.weight_decay"] == "0.05"
    assert [metric.step for metric in client.get_metric_history(run_id, "val_accuracy")] == [1]
    assert list(tmp_path.iterdir()) == []
    assert any(path.name.startswith("train-") for path in (home / "runs").iterdir())

    same = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    plain = do(experiment.run, TrainConfig, [*PARAMS, *same, *store, "--tracking.pictures", "false"])
    assert client.get_run(plain.run_id).data.tags["weights.digest"] == run.data.tags["weights.digest"]


def test_mlflow_run_ends_failed_with_one_line_for_a_mistake(tmp_path, store, trained):
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store[1]}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", "train", "--env-manager", "local", "-P", "lr=0.1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "error: unknown option --lr; did you mean 'optimizer.lr'?" in done.stderr
    run_id = re.search(r"in run with ID '(\w+)'", done.stderr).group(1)
    assert MlflowClient(store[1]).get_run(run_id).info.status == "FAILED"
