"""Grad-CAM against a computation by hand, and that looking leaves a network as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learning_data import one_thread  # noqa: F401 - applies by being here
from torch import nn
from torch.nn import functional

from tracked_cls import attribution
from tracked_cls.attribution import heatmaps
from tracked_cls.config import ModelConfig
from tracked_cls.models import PooledFrames, Shape, make_model

TARGETS = np.array([2, 0, 1], np.int64)


class Tiny(nn.Module):
    """A convolution, its mean over places, and a linear layer."""

    def __init__(self, stride=1):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, stride=stride, padding=1), nn.ReLU(inplace=True))
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        return self.head(self.body(images).mean(dim=(2, 3)))


class Tokens(nn.Module):
    """Patches as a row of tokens, as transformers have them."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(1, 8, 2, stride=2), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, images):
        return self.head(self.norm(self.patches(images).flatten(2).transpose(1, 2)).mean(dim=1))


class Watchful(Tiny):
    """Batch norm, dropout, a part held in evaluation, and frozen weights."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*self.body, nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.body[0].requires_grad_(False)
        self.train()
        self.body[2].eval()


def images(count=3, size=8, channels=1):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def by_hand(network, some, targets):
    """Return relu(sum of alpha_k A_k), enlarged, over its maximum; alpha is the weight, since the head reads a mean."""
    with torch.no_grad():
        answers = network.body(some)
        alphas = network.head.weight[torch.from_numpy(targets)] / answers[0, 0].numel()
        maps = torch.einsum("bk,bkhw->bhw", alphas, answers).relu()
        maps = functional.interpolate(maps[:, None], some.shape[-2:], mode="bilinear")[:, 0]
        return (maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)).numpy()


@pytest.mark.parametrize("stride", [1, 2])
def test_heat_is_that_computed_by_hand(stride):
    network = Tiny(stride).eval()
    found = heatmaps(network, images(), TARGETS)
    np.testing.assert_allclose(found, by_hand(network, images(), TARGETS), atol=1e-6)
    assert found.dtype == np.float32
    assert found.shape == (3, 8, 8)
    assert found.min() == 0
    assert found.max() == 1


def test_many_images_are_seen_as_few_are():
    network, many = Tiny().eval(), images(40)
    targets = np.arange(40) % 3
    together = heatmaps(network, many, targets)
    alone = [heatmaps(network, many[row : row + 1], targets[row : row + 1])[0] for row in (0, 15, 16, 39)]
    np.testing.assert_allclose(together[[0, 15, 16, 39]], alone, atol=1e-6)


def test_an_image_in_which_nothing_speaks_for_the_class_is_cold():
    network = Tiny().eval()
    nn.init.constant_(network.head.weight, -1.0)
    np.testing.assert_array_equal(heatmaps(network, images(), TARGETS), np.zeros((3, 8, 8)))


def test_of_a_clip_the_middle_frame_is_seen():
    network = Tiny().eval()
    clips = torch.stack([images(3), images(3) * 2 - 1, -images(3)], dim=1)
    found = heatmaps(PooledFrames(network), clips, TARGETS)
    np.testing.assert_allclose(found, by_hand(network, clips[:, 1], TARGETS), atol=1e-6)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (Tokens(), None),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), None),
        (nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), None),
        (nn.Sequential(nn.Conv2d(1, 3, 4, stride=4), nn.Flatten(), nn.Linear(12, 3)), (3, 8, 8)),
        (nn.Sequential(nn.Conv2d(1, 4, 8), nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(196, 3)), None),
    ],
    ids=["tokens", "no maps", "maps of one cell", "only small maps", "one cell, stretched"],
)
def test_networks_without_maps_have_no_heat(network, expected):
    found = heatmaps(network, images(), TARGETS)
    assert (None if found is None else found.shape) == expected


class Mixed(nn.Module):
    """Tokens in between: the maps before them are patches, those after them are small."""

    def forward(self, images):
        return self.late(self.norm(self.early(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).flatten(1)

    def __init__(self):
        super().__init__()
        self.early, self.norm, self.late = nn.Conv2d(1, 4, 1), nn.LayerNorm(4), nn.Conv2d(4, 3, 4, stride=4)


@pytest.mark.parametrize(
    ("network", "path"),
    [
        (nn.Sequential(Tiny().body, nn.Conv2d(4, 4, 2, stride=4), nn.Flatten(), nn.Linear(16, 3)), "0"),
        (nn.Sequential(Tiny().body, nn.Conv2d(4, 4, 2, stride=2), nn.Flatten(), nn.Linear(64, 3)), "1"),
        (nn.Sequential(Tiny().body, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 8), nn.Flatten()), "1"),
        (Mixed(), "late"),
    ],
    ids=["2 x 2 cells are too few", "4 x 4 are enough", "one cell is none", "before tokens are only patches"],
)
def test_the_last_layer_that_shows_places_is_looked_at(network, path):
    assert attribution._last_maps(network, images(1)) is network.get_submodule(path)


def test_a_network_without_gradients_has_no_heat():
    class Rounded(Tiny):
        def forward(self, some):
            return self.head(self.body(some).mean(dim=(2, 3)).detach())

    assert heatmaps(Rounded(), images(), TARGETS) is None


def test_looking_leaves_the_network_as_it_was():
    network = Watchful()
    modes = [module.training for module in network.modules()]
    frozen = [parameter.requires_grad for parameter in network.parameters()]
    before, random = {key: value.clone() for key, value in network.state_dict().items()}, torch.get_rng_state()
    with torch.no_grad():
        assert heatmaps(network, images(), TARGETS).max() == 1
        assert not torch.is_grad_enabled()
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == frozen == [False, False, *[True] * 4]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    torch.testing.assert_close(network.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("name", ["small_cnn", "mobilenetv3"])
def test_convolutional_networks_of_ours_have_heat(name):
    torch.manual_seed(0)
    network = make_model(ModelConfig(name=name), Shape(3, 1, 32))
    found = heatmaps(network, images(size=32), TARGETS)
    assert found.shape == (3, 32, 32)
    assert np.isfinite(found).all()
