"""Every file in params/ is an experiment that runs: it parses, and its header says what it is."""

import pytest

from tests.conftest import ROOT
from tracked_cls.config import TrainConfig, load, to_yaml

FILES = sorted((ROOT / "params").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_params_file_is_a_whole_configuration(path, tmp_path):
    needs_root = ["--data.root", str(tmp_path)] if "data.root=FOLDER" in path.read_text() else []
    cfg = load(TrainConfig, ["--params", str(path), *needs_root])
    (tmp_path / "again.yaml").write_text(to_yaml(cfg))
    assert load(TrainConfig, ["--params", str(tmp_path / "again.yaml")]) == cfg


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_header_says_command_duration_and_result(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    words = ["run:    mlflow run . -e train", "takes:  ", "expect: "]
    assert all(any(line.startswith(f"#   {word}") for line in header) for word in words)
    assert not any(word in "".join(header) for word in ("TAKES", "EXPECT", "TODO"))
