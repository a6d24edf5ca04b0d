"""MLproject, conda.yaml and the pins agree with the code."""

import hashlib
import importlib
import re
import tomllib

import yaml
from packaging.requirements import Requirement

from tests.conftest import ROOT
from tracked_cls.config.verbs import VERBS


def _project():
    return yaml.safe_load((ROOT / "MLproject").read_text())


def test_every_entry_point_runs_the_module_of_its_verb():
    entry_points = _project()["entry_points"]
    assert set(entry_points) == {verb.verb for verb in VERBS}
    for name, entry in entry_points.items():
        assert entry["command"] == f"python -m pipelines.{name} --params {{params}}"
        assert entry["parameters"] == {"params": {"type": "string", "default": "params/train.yaml"}}
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
