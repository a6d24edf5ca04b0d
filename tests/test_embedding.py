"""What comes before the last layer, and how it is laid out in a plane."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learning_data import one_thread  # noqa: F401 - applies by being here
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from tracked_cls.data.loaders import Batch
from tracked_cls.embedding import features, project
from tracked_cls.models import PooledFrames

IMAGES = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def batches(images=IMAGES, views=1, labels=5):
    half = labels // 2
    return [
        Batch(images[: half * views], torch.zeros(half), views=views),
        Batch(images[half * views :], torch.zeros(labels - half), views=views),
    ]


def before_last(kind):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5))
    heads = {
        "linear": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
        "convolution": nn.Sequential(nn.Conv2d(6, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "tokens": nn.Sequential(nn.Flatten(2), Transposed(), nn.Linear(6, 3), MeanOfTokens()),
    }
    return body, nn.Sequential(body, heads[kind])


class Transposed(nn.Module):
    def forward(self, tokens):
        return tokens.transpose(1, 2)


class MeanOfTokens(nn.Module):
    def forward(self, tokens):
        return tokens.mean(dim=1)


@pytest.mark.parametrize("kind", ["linear", "convolution", "tokens"])
def test_features_are_the_mean_over_places_of_what_the_last_layer_reads(kind):
    body, network = before_last(kind)
    network.train()
    found = features(network, batches())
    assert network.training
    with torch.no_grad():
        expected = body.eval()(IMAGES).mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_features_of_clips_and_of_views_are_means():
    _, network = before_last("linear")
    plain = features(network, batches())
    pairs = torch.stack([IMAGES, IMAGES.flip(0)], dim=1)
    expected = (plain + plain[::-1]) / 2
    np.testing.assert_allclose(features(PooledFrames(network), batches(pairs)), expected, atol=1e-6)
    np.testing.assert_allclose(features(network, batches(pairs.flatten(0, 1), views=2)), expected, atol=1e-6)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Linear(32, 3), nn.Linear(3, 3)

    def forward(self, images):
        return self.body(images.flatten(1))


@pytest.mark.parametrize("network", [nn.Flatten(), Unused()], ids=["no such layer", "never called"])
def test_networks_without_a_last_layer_have_no_features(network):
    assert features(network, batches()) is None


# ---- the plane -------------------------------------------------------------------------------------------------------


def test_what_is_alike_lies_together_and_the_same_points_give_the_same_plane():
    digits = load_digits()
    points, labels = digits.data[:300].astype(np.float32), digits.target[:300]
    plane = project(points)
    assert plane.shape == (300, 2)
    neighbours = KNeighborsClassifier(5).fit(plane[:200], labels[:200])
    assert neighbours.score(plane[200:], labels[200:]) > 0.85
    np.testing.assert_array_equal(project(points), plane)


@pytest.mark.parametrize(
    ("points", "there"),
    [
        (np.random.default_rng(0).normal(size=(9, 5)), False),
        (np.random.default_rng(0).normal(size=(10, 5)), True),
        (np.random.default_rng(0).normal(size=(12, 2)), True),
        (np.random.default_rng(0).normal(size=(12, 1)), False),
        (np.ones((50, 5)), False),
    ],
    ids=["too few", "just enough", "a plane already", "a line", "all alike"],
)
def test_points_without_a_shape_have_no_plane(points, there):
    plane = project(points.astype(np.float32))
    assert (plane is not None) == there
    if there:
        assert np.isfinite(plane).all()
