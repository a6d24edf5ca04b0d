"""What a look at a network says, and that looking changes nothing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from learning_data import one_thread  # noqa: F401 - applies by being here
from PIL import Image
from torch import nn

from tracked_cls import anatomy, plots
from tracked_cls.config import ModelConfig
from tracked_cls.models import Shape, make_model


def build(name, shape, **options):
    torch.manual_seed(0)
    return make_model(ModelConfig(name=name, **options), shape)


def look(name, size=32, channels=3, frames=None):
    shape = Shape(4, channels, size, frames)
    return anatomy.describe(build(name, shape), shape, repeats=1)


def test_layers_are_listed_in_the_order_of_their_calls():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.unused, self.body = nn.Linear(6, 4), nn.ReLU(), nn.Sequential(nn.Flatten(), nn.Linear(48, 6))

        def forward(self, images):
            return self.head(self.body(images))

    seen = anatomy.describe(Backwards(), Shape(4, 3, 4), repeats=1)
    assert seen.table() == [
        ["path", "type", "output_shape", "parameters"],
        ["body", "Sequential", "6", 48 * 6 + 6],
        ["body.0", "Flatten", "48", 0],
        ["body.1", "Linear", "6", 48 * 6 + 6],
        ["head", "Linear", "4", 6 * 4 + 4],
    ]
    assert seen.num_parameters == 48 * 6 + 6 + 28


def test_output_shapes_are_those_of_one_image():
    by_path = {item.path: item for item in look("small_cnn", 28, 1).layers}
    assert by_path["features.6"].output_shape == (16, 14, 14)
    assert by_path["head.1"].output_shape == (4,)
    assert by_path["features.6"].type == "MaxPool2d"
    assert by_path["features.6"].depth == 1


def test_flops_are_those_counted_by_hand():
    """A multiply-add is two; norms and activations do not count."""
    convolutions = [(1, 16, 28), (16, 16, 28), (16, 32, 14), (32, 32, 14), (32, 64, 7), (64, 64, 7)]
    expected = sum(2 * 9 * before * after * side**2 for before, after, side in convolutions) + 2 * 64 * 4
    assert look("small_cnn", 28, 1).flops == expected


def test_attention_counts():
    """The fast path of torch's own attention would hide its operations and its layers."""
    tokens, width, depth = 5, 768, 12
    projections = 2 * tokens * width * width * (3 + 1 + 4 + 4)
    expected = depth * (projections + 2 * 2 * tokens**2 * width) + 2 * 4 * width * 3 * 32**2 + 2 * width * 4
    seen = look("vit_b_32", 64)
    assert seen.flops == expected
    assert any(item.path.endswith("self_attention") for item in seen.layers)


def test_frames_of_a_clip_all_count():
    assert look("small_cnn", 16, 1, frames=3).flops == 3 * look("small_cnn", 16, 1).flops


def test_frozen_weights_do_not_count_as_trainable():
    shape = Shape(4, 1, 16)
    model = build("small_cnn", shape)
    model.features.requires_grad_(False)
    seen = anatomy.describe(model, shape, repeats=1)
    assert seen.num_trainable == 64 * 4 + 4
    assert seen.metrics == {"num_parameters": seen.num_parameters, "flops": seen.flops, "latency_ms": seen.latency_ms}


def test_latency_is_the_median_after_warm_up(monkeypatch):
    durations = [9, 9, 9, 0.001, 0.002, 0.004]  # three of warm-up
    ticks = iter([tick for index, length in enumerate(durations) for tick in (100.0 * index, 100.0 * index + length)])
    monkeypatch.setattr(anatomy.time, "perf_counter", lambda: next(ticks))
    shape = Shape(4, 1, 16)
    assert anatomy.describe(build("small_cnn", shape), shape, repeats=3).latency_ms == pytest.approx(2.0)


def test_at_least_twenty_passes_are_timed():
    assert anatomy._REPEATS >= 20


class Watchful(nn.Module):
    """Draws random numbers in every pass, and keeps one part in evaluation."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.held = nn.BatchNorm2d(4).eval()
        self.head = nn.Linear(4, 4)

    def forward(self, images):
        assert not self.body.training
        return self.head(self.held(self.body(images) + torch.rand(1)).mean(dim=(2, 3)))


@pytest.mark.parametrize("how", ["describe", "feature_maps"])
def test_looking_changes_nothing(how):
    torch.manual_seed(0)
    model = Watchful()
    model.body.train()
    modes = [module.training for module in model.modules()]
    before, state = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    if how == "describe":
        anatomy.describe(model, Shape(4, 1, 8), repeats=1)
    else:
        anatomy.feature_maps(model, torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


# ---- filters and maps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels", "shape"),
    [("small_cnn", 1, (16, 3, 3, 1)), ("small_cnn", 3, (16, 3, 3, 3)), ("small_cnn", 4, (16, 3, 3, 1))],
)
def test_filters_are_pictures(name, channels, shape):
    pictures = anatomy.first_filters(build(name, Shape(4, channels, 16)))
    assert pictures.shape == shape
    assert pictures.dtype == np.uint8
    assert (pictures.min(axis=(1, 2, 3)) == 0).all()
    assert (pictures.max(axis=(1, 2, 3)) == 255).all()


def test_filters_keep_their_signs_and_their_places():
    convolution = nn.Conv2d(1, 1, 2, bias=False)
    convolution.weight.data = torch.tensor([[[[-1.0, 0.0], [1.0, 3.0]]]])
    assert anatomy.first_filters(convolution)[0, :, :, 0].tolist() == [[0, 64], [128, 255]]


def test_a_network_without_convolutions_has_no_filters():
    assert len(anatomy.first_filters(nn.Linear(2, 2))) == 0


def test_maps_are_what_the_layers_answer():
    shape = Shape(4, 1, 16)
    model = build("small_cnn", shape)
    image = torch.rand(1, 1, 16, 16)
    maps = anatomy.feature_maps(model, image, ["features.1", "features.6"])
    assert list(maps) == ["features.1", "features.6"]
    expected = model.features[1](model.features[0](image))
    np.testing.assert_allclose(maps["features.1"], expected.detach().numpy(), atol=1e-6)
    assert (maps["features.1"] < 0).any(), "before the activation, which works in place"


MAPS = [("small_cnn", 16, 1), ("resnet18", 32, 3), ("timm/test_vit", 64, 3), ("swin_t", 64, 3), ("mobilenetv3_small", 32, 1)]


@pytest.mark.parametrize(("name", "size", "channels"), MAPS, ids=[name for name, *_ in MAPS])
def test_a_handful_of_layers_is_chosen_that_differ(name, size, channels):
    maps = anatomy.feature_maps(build(name, Shape(4, channels, size)), torch.rand(1, channels, size, size))
    assert 3 <= len(maps) <= 5
    for answer in maps.values():
        assert answer.shape[0] == 1
        assert answer.shape[2] == answer.shape[3] > 1
    answers = list(maps.values())
    assert not any(np.array_equal(first, second) for first, second in pairwise(answers))


def test_tokens_are_laid_out_as_the_patches_lie():
    tokens = torch.arange(1 + 9).reshape(1, 10, 1)  # a class token before them
    assert anatomy._as_maps(tokens)[0, 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_channels_that_come_last_are_told_by_the_square():
    last = torch.rand(1, 4, 4, 7)
    assert torch.equal(anatomy._as_maps(last), last.permute(0, 3, 1, 2))


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size", "channels"), MAPS[:3], ids=[name for name, *_ in MAPS[:3]])
def test_a_network_can_be_drawn(tmp_path, name, size, channels):
    shape = Shape(4, channels, size)
    model = build(name, shape)
    image = np.random.default_rng(0).integers(0, 256, (size, size, channels), dtype=np.uint8)
    batch = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
    plots.network(anatomy.describe(model, shape, repeats=1), tmp_path / "network.png")
    plots.filters(anatomy.first_filters(model), tmp_path / "filters.png")
    plots.feature_maps(image, anatomy.feature_maps(model, batch), tmp_path / "feature_maps.png")
    for picture in ("network", "filters", "feature_maps"):
        pixels = np.asarray(Image.open(tmp_path / f"{picture}.png").convert("L"))
        assert pixels.std() > 10


def test_equal_neighbours_share_a_box():
    from tracked_cls.plots.networks import _boxes

    boxes = _boxes(look("timm/vit_tiny_patch16_224", 32))
    (blocks,) = [box for box in boxes if box.name == "blocks"]
    assert [(box.name, box.type) for box in blocks.inside] == [("0 to 11", "12 x Block")]


def test_what_merely_wraps_a_network_is_no_level():
    from tracked_cls.plots.networks import _boxes

    assert [box.name for box in _boxes(look("small_cnn", 16, 1, frames=2))] == ["features", "head"]
