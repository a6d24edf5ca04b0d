"""A trained network in other formats answers alike."""

from __future__ import annotations

import copy
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tracked_cls.config import ModelConfig
from tracked_cls.conversion import ONNX_INPUT, ONNX_OUTPUT, PT2_META, metadata_of, to_onnx, to_pt2
from tracked_cls.models import Shape, make_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = make_model(ModelConfig(name="small_cnn", dropout=0.5), Shape(10, 1, 16))
    model.train()
    with torch.no_grad():
        model(torch.randn(64, 1, 16, 16) * 3 + 1)  # BatchNorm statistics that are not the initial 0 and 1
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    to_onnx(model, Shape(10, 1, 16), path, {"classes": '["a", "\u00e9"]'})
    return model, path


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_onnx_agrees_with_torch(exported, batch):
    model, path = exported
    images = np.random.default_rng(batch).normal(size=(batch, 1, 16, 16)).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run([ONNX_OUTPUT], {ONNX_INPUT: images})
    with torch.inference_mode():
        expected = copy.deepcopy(model).eval()(torch.from_numpy(images)).numpy()
    assert logits.shape == (batch, 10)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)


def test_export_is_one_file_and_leaves_the_network_in_its_mode(exported):
    model, path = exported
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    assert model.training


def test_what_is_said_of_a_network_stands_in_its_onnx_file(exported):
    model = onnx.load(exported[1])
    onnx.checker.check_model(model)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about == {"classes": '["a", "\u00e9"]', "opset": str(model.opset_import[0].version), "producer": "tracked_cls"}


def test_what_the_exporter_notes_of_the_source_does_not_stay(exported):
    model = onnx.load(exported[1])
    assert [node.name for node in model.graph.node if node.metadata_props] == []
    assert b"small_cnn.py" not in exported[1].read_bytes()


def test_a_description_becomes_texts():
    meta = {"classes": ["a"], "temperature": 0.5, "weights_digest": "0a", "format": 1, "run_id": None}
    assert metadata_of(meta) == {"classes": '["a"]', "temperature": "0.5", "weights_digest": "0a"}


def test_a_pt2_file_equals_the_network_in_its_memory_format(exported, tmp_path):
    model = copy.deepcopy(exported[0]).to(memory_format=torch.channels_last)
    to_pt2(model, Shape(10, 1, 16), tmp_path / "model.pt2", {"classes": ["a", "\u00e9"]})
    assert model.training, "it is left in its mode"
    said = {PT2_META: ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=said).module()
    assert json.loads(said[PT2_META]) == {"classes": ["a", "\u00e9"]}
    assert any(p.is_contiguous(memory_format=torch.channels_last) and p.dim() == 4 for p in program.parameters())
    for batch in (1, 3):
        images = torch.randn(batch, 1, 16, 16)
        with torch.no_grad():
            np.testing.assert_array_equal(program(images), model.eval()(images))
        model.train()
