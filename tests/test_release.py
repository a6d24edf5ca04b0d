"""What is given away: one version, all files of the package, and the same checks everywhere."""

from __future__ import annotations

import re
import tomllib

import yaml

import tracked_cls
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CI = (ROOT / ".ci" / "run").read_text()


def test_the_version_stands_in_one_place_and_the_changelog_begins_with_it():
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "tracked_cls.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", tracked_cls.__version__)
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert latest[1] == tracked_cls.__version__


def test_every_file_of_the_package_goes_into_the_wheel():
    source = ROOT / "src" / "tracked_cls"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["tracked_cls"]
    packed = {path for pattern in patterns for path in source.glob(pattern)}
    there = {path for path in source.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert there == packed
    assert source / "py.typed" in packed
    folders = {path.parent for path in source.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_workflow_runs_what_is_run_here():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    (python,) = [step["with"]["python-version"] for step in job["steps"] if "python-version" in step.get("with", {})]
    assert f"python={python}" in yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]


def test_the_hooks_before_a_commit_are_checks_that_ci_makes_by_tools_that_are_there():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    commands = [hook["entry"].removesuffix(" --force-exclude") for hook in repository["hooks"]]
    assert commands == ["ruff check", "ruff format", "mypy"]
    assert all(f".venv/bin/{command}" in CI for command in commands)
