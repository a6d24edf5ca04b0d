"""The Python blocks of docs/python.md do what they say."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.conftest import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)


def test_a_model_is_called_as_the_page_says(trained, store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store[1])
    found = load_digits()
    for name, index in (("digit", 7), ("a", 0), ("b", 1)):
        Image.fromarray((found.images[index] * 255 / 16).round().astype(np.uint8)).save(f"{name}.png")

    exec(f"import tracked_cls\n{BLOCKS[1]}", {})

    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("7 0.")
    assert said[2] == "['0', '1']"


@pytest.mark.slow
def test_the_pipeline_runs_as_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")

    exec(BLOCKS[0], {})

    assert "promoted" in capsys.readouterr().out
