"""Networks by name, fitted to classes, channels and image size."""

from __future__ import annotations

import pytest
import torch
import torchvision
from learning_data import one_thread  # noqa: F401 - applies by being here
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tracked_cls import weights
from tracked_cls.config import ModelConfig
from tracked_cls.errors import UserError
from tracked_cls.models import Shape, SmallCnn, check_name, count_parameters, make_model


def build(name, size=32, channels=3, num_classes=4, **options):
    torch.manual_seed(0)
    return make_model(ModelConfig(name=name, **options), Shape(num_classes, channels, size))


def first_convolution(model):
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


def dropouts(model):
    return [module.p for module in model.modules() if isinstance(module, nn.Dropout)]


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["small_cnn", "mobilenetv3", "mobilenetv3_small", "resnet18"])
def test_logits_have_one_column_per_class(name, channels, size):
    model = build(name, size, channels, num_classes=7)
    assert model.train()(torch.randn(3, channels, size, size)).shape == (3, 7)


@pytest.mark.parametrize(
    ("familiar", "name"),
    [
        ("mobilenetv3", "mobilenet_v3_large"),
        ("mobilenetv3_small", "mobilenet_v3_small"),
        ("mobilenetv2", "mobilenet_v2"),
    ],
)
def test_familiar_names_are_torchvisions_networks(familiar, name):
    own = torchvision.models.get_model(name, weights=None, num_classes=4)
    assert count_parameters(build(familiar)) == count_parameters(own)


STEMS = [
    # name, size, model.stem, stride, has its pooling
    ("resnet18", 32, "auto", 1, False),
    ("resnet18", 47, "auto", 1, False),
    ("resnet18", 48, "auto", 2, True),
    ("resnet18", 32, "standard", 2, True),
    ("resnet18", 64, "small", 1, False),
    ("mobilenetv3_small", 16, "auto", 1, False),
    ("mobilenetv3_small", 23, "auto", 1, False),
    ("mobilenetv3_small", 24, "auto", 2, False),
    ("mobilenetv3", 28, "auto", 2, False),
    ("mobilenetv3_small", 16, "standard", 2, False),
    ("mobilenetv3_small", 32, "small", 1, False),
]


@pytest.mark.parametrize(("name", "size", "stem", "stride", "has_pool"), STEMS, ids=[f"{n}-{s}-{t}" for n, s, t, *_ in STEMS])
def test_the_stem_is_small_where_the_image_is(name, size, stem, stride, has_pool):
    model = build(name, size, stem=stem)
    assert first_convolution(model).stride == (stride, stride)
    assert any(isinstance(module, nn.MaxPool2d) for module in model.modules()) is has_pool


def test_a_small_stem_keeps_the_resolution():
    sizes = []
    model = build("resnet18", 32)
    model.layer1.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[2:])))
    model(torch.zeros(2, 3, 32, 32))
    assert sizes == [(32, 32)]


@pytest.mark.parametrize(
    ("name", "size"), [("small_cnn", 32), ("vit_b_32", 32), ("alexnet", 64), ("swin_t", 32)], ids=lambda value: str(value)
)
def test_a_small_stem_that_cannot_be_had_is_the_users_mistake(name, size):
    with pytest.raises(UserError, match=f"model.stem=small has no effect with model={name}"):
        build(name, size, stem="small")


@pytest.mark.parametrize("name", ["small_cnn", "mobilenetv3_small", "resnet18"])
def test_every_batchnorm_gets_the_momentum(name):
    norms = [module for module in build(name, bn_momentum=0.25).modules() if isinstance(module, _BatchNorm)]
    assert norms
    assert {norm.momentum for norm in norms} == {0.25}


@pytest.mark.parametrize(
    ("name", "size"), [("small_cnn", 32), ("mobilenetv3_small", 32), ("resnet18", 32), ("squeezenet1_1", 64), ("alexnet", 64)]
)
def test_dropout_is_set_before_the_head(name, size):
    found = dropouts(build(name, size, dropout=0.35))
    assert found
    assert set(found) == {0.35}


@pytest.mark.parametrize(("name", "expected"), [("small_cnn", [0.0]), ("mobilenetv3_small", [0.2]), ("resnet18", [])])
def test_dropout_auto_is_the_architectures_own(name, expected):
    assert dropouts(build(name)) == expected


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnt18", "resnet18"), ("mobilenet-v3", "mobilenetv3"), ("smallcnn", "small_cnn"), ("ViT_B_16", "vit_b_16")],
)
def test_an_unknown_name_gets_its_near_match(name, near):
    message = f"unknown model {name!r}; did you mean {near!r}"
    with pytest.raises(UserError, match=message):
        check_name(name)
    with pytest.raises(UserError, match=message):
        build(name)


@pytest.mark.parametrize("name", ["small_cnn", "mobilenetv3", "resnet18", "mobilenet_v3_large"])
def test_a_known_name_passes(name):
    check_name(name)


@pytest.mark.parametrize(("name", "size"), [("alexnet", 28), ("vit_b_16", 30), ("maxvit_t", 30)])
def test_a_size_the_network_cannot_take_is_one_clear_line(name, size):
    with pytest.raises(UserError) as caught:
        build(name, size)
    assert f"model {name} cannot" in str(caught.value)
    assert f"{size}x{size}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["small_cnn", "mobilenetv3_small"])
def test_the_seed_decides_the_weights(name):
    torch.manual_seed(1)
    other = weights.digest(make_model(ModelConfig(name=name), Shape(4, 3, 32)))
    assert weights.digest(build(name)) == weights.digest(build(name)) != other


@pytest.mark.parametrize(("channels", "num_classes"), [(1, 10), (3, 4)])
def test_small_cnn_has_the_parameters_counted_by_hand(channels, num_classes):
    pairs = [(channels, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64)]
    convolutions = sum(9 * before * after for before, after in pairs)
    norms = 2 * (16 + 16 + 32 + 32 + 64 + 64)
    assert count_parameters(SmallCnn(Shape(num_classes, channels, 32))) == convolutions + norms + 64 * num_classes + num_classes


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_torchvision_classifier_builds_and_answers(name):
    size = 224 if name.startswith("maxvit") else 80 if name == "inception_v3" else 70 if name == "vit_h_14" else 64
    model = build(name, size, channels=1, num_classes=5, dropout=0.1)
    with torch.inference_mode():
        logits = model(torch.zeros(2, 1, size, size))
    assert logits.shape == (2, 5)
