"""A trained network in other formats answers alike."""

from __future__ import annotations

import copy

import numpy as np
import onnxruntime
import pytest
import torch

from tracked_cls.config import ModelConfig
from tracked_cls.conversion import ONNX_INPUT, ONNX_OUTPUT, to_onnx
from tracked_cls.models import Shape, make_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = make_model(ModelConfig(name="small_cnn", dropout=0.5), Shape(10, 1, 16))
    model.train()
    with torch.no_grad():
        model(torch.randn(64, 1, 16, 16) * 3 + 1)  # BatchNorm statistics that are not the initial 0 and 1
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    to_onnx(model, Shape(10, 1, 16), path)
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
