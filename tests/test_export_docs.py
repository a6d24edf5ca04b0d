"""What docs/export.md tells others to type works, on files that know nothing of this project."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from conftest import ROOT
from export_data import packed, shape
from PIL import Image

from tracked_cls.export import agreement, formats
from tracked_cls.serving.classifier import Classifier


def snippets():
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small network, exported where the documentation has it, beside the picture it speaks of; return (folder, its label)."""
    return place(tmp_path_factory.mktemp("docs"), "small_cnn", ["onnx", "pt2"])


def place(home, model, wanted):
    bundle, network, meta = packed(home / "bundle", shape(image_size=32), model)
    folder = home / "exports" / "digits-classifier-1"
    folder.mkdir(parents=True)
    formats.write(bundle, agreement.at_rest(network), meta, wanted, folder)
    classifier = Classifier.load(bundle.onnx, bundle.meta)
    draws = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 1), np.uint8)
    answers = classifier.probabilities_of(draws)
    chosen = int(np.argmin(answers.max(axis=1)))
    Image.fromarray(draws[chosen, :, :, 0]).save(home / "digit.png")
    return home, classifier.label(answers[chosen])


def said(snippet, monkeypatch, capsys, home):
    monkeypatch.chdir(home)
    assert "tracked_cls" not in snippet
    exec(compile(snippet, "docs/export.md", "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out.strip()


def test_the_documentation_shows_every_format():
    onnx, pt2, safetensors = snippets()
    assert "onnxruntime.InferenceSession" in onnx
    assert "torch.export.load" in pt2
    assert "load_file" in safetensors


@pytest.mark.parametrize("index", [0, 1], ids=["onnx", "pt2"])
def test_the_documented_lines_read_the_file(index, small, monkeypatch, capsys):
    home, label = small
    assert said(snippets()[index], monkeypatch, capsys, home) == label


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mobilenetv3_small", "resnet18"])
def test_the_documented_lines_build_a_network_of_torchvision(model, tmp_path, monkeypatch, capsys):
    home, label = place(tmp_path, model, ["safetensors"])
    config = json.loads((home / "exports" / "digits-classifier-1" / "config.json").read_text())
    assert config["library"] == "torchvision"
    assert config["first_convolution"]["arguments"]["in_channels"] == 1
    assert said(snippets()[2], monkeypatch, capsys, home) == label
