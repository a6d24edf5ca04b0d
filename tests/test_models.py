"""Networks by name, fitted to classes, channels and image size."""

from __future__ import annotations

import sys

import pytest
import timm
import torch
import torchvision
from learning_data import one_thread  # noqa: F401 - applies by being here
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tracked_cls import weights
from tracked_cls.config import ModelConfig
from tracked_cls.errors import UserError
from tracked_cls.models import PooledFrames, Shape, SmallCnn, check_name, count_parameters, heads_of, make_model, names


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
        ("mobilenetv3_large", "mobilenet_v3_large"),
        ("mobilenetv3_small", "mobilenet_v3_small"),
        ("mobilenetv2", "mobilenet_v2"),
        ("shufflenetv2", "shufflenet_v2_x1_0"),
        ("efficientnet-b0", "efficientnet_b0"),
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
    ("timm/resnet18", 47, "auto", 1, False),
    ("timm/resnet18", 48, "auto", 2, True),
    ("timm/tf_mobilenetv3_small_minimal_100", 23, "auto", 1, False),
    ("timm/tf_mobilenetv3_small_minimal_100", 24, "auto", 2, False),
    ("timm/test_vit", 16, "auto", 16, False),
    ("timm/mobileone_s0", 16, "auto", 2, False),
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
    ("name", "size"),
    [("small_cnn", 32), ("vit_b_32", 32), ("alexnet", 64), ("swin_t", 32), ("timm/test_vit", 32)],
    ids=lambda value: str(value),
)
def test_a_small_stem_that_cannot_be_had_is_the_users_mistake(name, size):
    with pytest.raises(UserError, match=f"model.stem=small has no effect with model={name}"):
        build(name, size, stem="small")


@pytest.mark.parametrize("name", ["small_cnn", "mobilenetv3_small", "resnet18", "timm/lcnet_035"])
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
    [
        ("resnt18", "resnet18"),
        ("mobilenet-v3", "mobilenetv3"),
        ("smallcnn", "small_cnn"),
        ("ViT_B_16", "vit_b_16"),
        ("sequental", "sequential"),
        ("timm/resnt18", "timm/resnet18"),
        ("xception41", "timm/xception41"),
    ],
)
def test_an_unknown_name_gets_its_near_match(name, near):
    message = f"unknown model {name!r}; did you mean {near!r}"
    with pytest.raises(UserError, match=message):
        check_name(name)
    with pytest.raises(UserError, match=message):
        build(name)


FAMILIAR = [
    *("mobilenetv2", "mobilenetv3", "mobilenetv3_large", "mobilenetv3_small", "shufflenetv2", "densenet", "vgg16", "resnet18"),
    *("efficientnet", "efficientnet_v2_s", "efficientnetv2", *(f"efficientnet_b{size}" for size in range(8))),
    *("resnext", "regnet", "convnext", "swin", "vit", "xception", "se_resnext50_32x4d", "adv-efficientnet"),
    *("small_cnn", "sequential", "mobilenet_v3_large", "timm/xception41", "timm/resnet18.a1_in1k"),
]


@pytest.mark.parametrize("name", FAMILIAR)
def test_a_name_that_people_type_passes(name):
    check_name(name)


def test_every_familiar_name_stands_for_a_network():
    for name in names.FAMILIAR.values():
        check_name(name)


def test_an_unknown_tag_gets_its_near_match():
    with pytest.raises(UserError, match="unknown weights 'a1_in2k' of model timm/resnet18; did you mean 'a1_in1k'"):
        check_name("timm/resnet18.a1_in2k")


SMALL = [("alexnet", 28, 63), ("vit_b_16", 30, 32), ("inception_v3", 50, 75), ("vgg11", 16, 32), ("timm/test_vit", 30, 32)]


@pytest.mark.parametrize(("name", "size", "next_size"), SMALL, ids=[name for name, *_ in SMALL])
def test_a_size_the_network_cannot_take_is_one_clear_line_with_the_next_that_it_can(name, size, next_size):
    with pytest.raises(UserError, match=f"the next data.image_size that works is {next_size}$") as caught:
        build(name, size)
    assert f"model {name} cannot" in str(caught.value)
    assert f"{size}x{size}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["small_cnn", "mobilenetv3_small", "timm/test_resnet"])
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


def test_small_cnn_is_as_wide_as_asked():
    assert first_convolution(build("small_cnn", args={"width": 24})).out_channels == 24


@pytest.mark.parametrize("pairs", [1, 2, 3, 4])
def test_small_cnn_is_as_deep_as_asked(pairs):
    layers = list(build("small_cnn", args={"pairs": pairs, "width": 4}).features)
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds.count("Conv2d") == 2 * pairs
    assert kinds.count("MaxPool2d") == pairs - 1  # between the pairs
    assert kinds[-1] == "ReLU"
    assert [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)][1::2] == [4, 8, 16, 16][:pairs]


# ---- timm ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "timm/test_efficientnet"])
def test_a_network_of_timm_is_fitted_to_channels_classes_and_size(name, channels):
    model = build(name, 48, channels, num_classes=7)
    assert first_convolution(model).in_channels == channels
    assert model.train()(torch.randn(3, channels, 48, 48)).shape == (3, 7)


def test_a_network_of_timm_with_a_fixed_grid_is_laid_out_for_the_size():
    with torch.device("meta"):
        model = make_model(ModelConfig(name="timm/deit_tiny_patch16_224"), Shape(4, 3, 48))
    assert model.pos_embed.shape[1] == 1 + 3 * 3


def test_a_stem_that_rearranges_pixels_keeps_its_channels():
    torch.manual_seed(0)
    with torch.device("meta"):
        assert first_convolution(make_model(ModelConfig(name="timm/tresnet_m"), Shape(4, 1, 64))).in_channels == 16


def test_pooling_inside_a_stem_that_halves_nothing_stays():
    with torch.device("meta"):
        model = make_model(ModelConfig(name="timm/hgnetv2_b0"), Shape(4, 3, 16))
    assert isinstance(model.stem.pool, nn.MaxPool2d)


def test_a_small_stem_keeps_the_kind_of_convolution_and_its_name():
    model = build("timm/tf_efficientnet_b0", 16)
    own = timm.create_model("tf_efficientnet_b0")
    assert type(model.conv_stem) is type(own.conv_stem) is not nn.Conv2d
    assert set(model.state_dict()) == set(own.state_dict())


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit"])
def test_dropout_of_timm_is_the_heads(name):
    model = build(name, dropout=0.35).train()
    seen = []
    head = model.get_submodule(heads_of(model)[-1])
    head.register_forward_pre_hook(lambda module, inputs: seen.append((inputs[0] == 0).float().mean().item()))
    model(torch.randn(64, 3, 32, 32))
    assert seen[0] == pytest.approx(0.35, abs=0.1)


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_arguments_reach_the_constructor():
    assert build("resnet18", args={"width_per_group": 64, "zero_init_residual": True}).layer1[0].bn2.weight.abs().sum() == 0
    assert first_convolution(build("timm/resnet18", args={"stem_width": 16, "stem_type": "deep"})).out_channels == 16


WRONG_ARGUMENTS = {
    "torchvision": ("resnet18", {"widht": 1}, "model resnet18 takes no argument 'widht'; it takes groups, norm_layer, "),
    "swallowed by the class": ("mobilenetv3_small", {"foo": 1}, "takes no argument 'foo'; it takes block, dropout, norm_layer"),
    "timm": ("timm/test_vit", {"foo": 1}, "model timm/test_vit takes no argument 'foo'; it takes .*depth"),
    "timm, near": ("timm/test_vit", {"drop_path_rat": 1}, "'drop_path_rat'; did you mean 'drop_path_rate'"),
    "timm, by its configuration": ("timm/repvgg_a0", {"foo": 1}, "takes no argument 'foo'; it takes .*width_factor"),
    "small_cnn": ("small_cnn", {"depth": 3}, "model small_cnn takes no argument 'depth'; it takes pairs, width"),
    "sequential": ("sequential", {"layer": []}, "model sequential takes no argument 'layer'; it takes layers"),
    "ours, torchvision": ("resnet18", {"num_classes": 3}, "model.args.num_classes has no effect .* it follows the data"),
    "ours, timm": ("timm/test_vit", {"img_size": 3}, "model.args.img_size has no effect .* it follows data.image_size"),
    "a wrong value": ("resnet18", {"groups": 2}, "model resnet18 cannot be built for 3x32x32 images: .*groups"),
    "small_cnn, width": ("small_cnn", {"width": "abc"}, "model.args.width must be a whole number >= 1, got 'abc'"),
    "small_cnn, pairs": ("small_cnn", {"pairs": 0}, "model.args.pairs must be a whole number >= 1, got 0"),
    "small_cnn, true": ("small_cnn", {"pairs": True}, "model.args.pairs must be a whole number >= 1, got True"),
}


@pytest.mark.parametrize(("name", "args", "message"), WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
def test_a_wrong_argument_is_one_line_that_names_those_there_are(name, args, message):
    with pytest.raises(UserError, match=message) as caught:
        build(name, args=args)
    assert "\n" not in str(caught.value)


# ---- a user's own ----------------------------------------------------------------------------------------------------

NETS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, in_channels, image_size, hidden=5, dropout=0.0):
        super().__init__()
        self.given = (num_classes, in_channels, image_size, hidden, dropout)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, hidden), nn.ReLU())
        self.norm, self.head = nn.BatchNorm1d(hidden), nn.Linear(hidden, num_classes)

    def forward(self, images):
        return self.head(self.norm(self.body(images)))

class Lazy(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.LazyLinear(num_classes))

class Fixed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

class Named(Net):
    def __init__(self, num_classes, in_chans, img_size):
        super().__init__(num_classes, in_chans, img_size)

class Broken(nn.Module):
    def __init__(self):
        1 / 0

def number(): return 3
def needs(depth): return Net(4, 3, depth)
made = Fixed()
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """The user's module in the working folder, forgotten afterwards."""
    (tmp_path / "my_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("my_nets", None)


def test_an_own_network_gets_what_it_takes_by_name(nets):
    model = build("my_nets:Net", 8, 2, num_classes=3, args={"hidden": 6}, dropout=0.25, bn_momentum=0.3)
    assert model.given == (3, 2, 8, 6, 0.25)
    assert model.norm.momentum == 0.3
    assert heads_of(model) == ["head"]


def test_an_own_network_may_use_the_names_of_timm(nets):
    assert build("my_nets:Named", 8, 2, num_classes=3).given == (3, 2, 8, 5, 0.0)


def test_lazy_layers_of_an_own_network_can_learn(nets):
    model = build("my_nets:Lazy", 8, dropout=0.5)
    assert dropouts(model) == [0.5], "it takes no dropout by name, so the head gets one"
    model.train()(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


OWN_MISTAKES = {
    "an unknown argument": (
        "Net",
        {"args": {"hiden": 3}},
        "model my_nets:Net takes no argument 'hiden'; it takes dropout, hidden",
    ),
    "a missing argument": ("needs", {}, "model my_nets:needs needs the argument 'depth'; set model.args.depth"),
    "an error inside": ("Broken", {}, "model my_nets:Broken cannot be built: ZeroDivisionError: division by zero"),
    "other channels": ("Fixed", {"channels": 1}, "model my_nets:Fixed cannot take 1x32x32 images: .*expected input"),
    "other classes": ("Fixed", {}, r"must give logits \[B,K\], \[2, 4\] for two 3x32x32 images; it gives \[2, 10\]"),
    "no network": ("number", {}, "model my_nets:number must give a torch.nn.Module, got int"),
    "one already made": ("made", {}, "model my_nets:made is no class or function"),
    "a stem": ("Net", {"stem": "small"}, "model.stem=small has no effect with model=my_nets:Net"),
    "no such name": ("Nett", {}, "there is no 'Nett' in .*; did you mean 'Net'"),
}


@pytest.mark.parametrize(("name", "options", "message"), OWN_MISTAKES.values(), ids=OWN_MISTAKES)
def test_what_is_wrong_with_an_own_network_is_one_line(nets, name, options, message):
    with pytest.raises(UserError, match=message) as caught:
        build(f"my_nets:{name}", **options)
    assert "\n" not in str(caught.value)


# ---- layers from the configuration -----------------------------------------------------------------------------------

LENET = [
    {"Conv2d": {"out_channels": 6, "kernel_size": 5, "padding": 2}},
    "BatchNorm2d",
    "Tanh",
    {"AvgPool2d": {"kernel_size": 2}},
    {"Conv2d": {"out_channels": 16, "kernel_size": 5}},
    {"GroupNorm": {"num_groups": 4}},
    "Tanh",
    {"MaxPool2d": {"kernel_size": 2}},
    "Flatten",
    {"Linear": {"out_features": 84}},
    "LayerNorm",
    {"Dropout": {"p": 0.1}},
    {"Linear": None},
]


def layers(*specs, **options):
    return build("sequential", args={"layers": list(specs)}, **options)


def test_layers_left_open_are_fitted_to_what_arrives():
    model = layers(*LENET, size=28, channels=1, num_classes=7)
    assert [tuple(model[index].weight.shape) for index in (0, 1, 4, 5, 9, 10, 12)] == [
        *((6, 1, 5, 5), (6,), (16, 6, 5, 5), (16,), (84, 400), (84,), (7, 84))
    ]
    assert heads_of(model) == ["12"]


def test_layers_that_were_given_everything_are_left_alone():
    model = layers("Flatten", {"Linear": {"in_features": 192, "out_features": 4, "bias": False}}, size=8)
    assert model[1].bias is None


LAYER_MISTAKES = {
    "no layers": ([], "model=sequential needs model.args.layers, a list of Name or"),
    "a near name": (["Flaten"], "unknown layer 1 of model sequential: 'Flaten'; did you mean 'Flatten'"),
    "two names": ([{"ReLU": None, "Tanh": None}], r"layer 1: must be Name or \{Name: \{argument: value\}\}, got"),
    "an unknown argument": (
        ["ReLU", {"Dropout": {"rate": 0.5}}],
        r"layer 2 \(Dropout\) takes no argument 'rate'; it takes inplace, p",
    ),
    "a missing argument": ([{"Conv2d": {"kernel_size": 3}}], r"layer 1 \(Conv2d\) cannot be built: .*out_channels"),
    "an inner Linear": (
        ["Flatten", "Linear", "ReLU", "Linear"],
        r"layer 2 \(Linear\) needs out_features: only the last Linear may leave out out_features",
    ),
    "a wrong value": (["ReLU", {"Dropout": {"p": 2}}], r"layer 2 \(Dropout\) cannot be built: dropout probability"),
    "what arrives": (
        [{"MaxPool2d": {"kernel_size": 2}}, "Flatten", {"Conv2d": {"out_channels": 3, "kernel_size": 3}}],
        r"layer 3 \(Conv2d\) cannot take what arrives there, \[768\]",
    ),
    "too small": (
        [{"MaxPool2d": {"kernel_size": 64}}],
        r"layer 1 \(MaxPool2d\) cannot take what arrives there, \[3, 32, 32\]",
    ),
    "no logits": (["ReLU"], r"layer 1 \(ReLU\) gives \[3, 32, 32\] for each image, not 4 logits; end the layers with Flatten"),
    "a softmax": (["Flatten", "Linear", "Softmax"], r"layer 3 \(Softmax\): leave it out: the losses take logits"),
}


@pytest.mark.parametrize(("specs", "message"), LAYER_MISTAKES.values(), ids=LAYER_MISTAKES)
def test_a_wrong_layer_is_named_by_its_number(specs, message):
    with pytest.raises(UserError, match=message) as caught:
        layers(*specs)
    assert "\n" not in str(caught.value)


def test_dropout_beside_layers_is_the_users_mistake():
    with pytest.raises(UserError, match="model.dropout has no effect with model=sequential"):
        layers("Flatten", "Linear", dropout=0.5)


# ---- heads -----------------------------------------------------------------------------------------------------------

HEADS = [
    ("small_cnn", {}, "head.1"),
    ("resnet18", {}, "fc"),
    ("resnet18", {"dropout": 0.1}, "fc.1"),
    ("mobilenetv3_small", {}, "classifier.3"),
    ("squeezenet1_1", {}, "classifier.1"),
    ("vit_b_32", {}, "heads.head"),
    ("timm/test_resnet", {}, "fc"),
    ("timm/test_vit", {"dropout": 0.1}, "head"),
    ("timm/test_convnext", {}, "head.fc"),
    ("timm/test_efficientnet", {"dropout": 0.1}, "classifier"),
]


@pytest.mark.parametrize(("name", "options", "path"), HEADS, ids=[f"{name}-{len(options)}" for name, options, _ in HEADS])
def test_the_head_is_the_layer_that_gives_the_logits(name, options, path):
    model = build(name, 64 if name == "squeezenet1_1" else 32, num_classes=7, **options)
    assert heads_of(model) == [path]
    head = model.get_submodule(path)
    assert (head.out_features if isinstance(head, nn.Linear) else head.out_channels) == 7


def test_the_head_of_a_network_of_clips_is_that_of_its_images():
    model = make_model(ModelConfig(name="small_cnn"), Shape(4, 1, 16, frames=3))
    assert isinstance(model, PooledFrames)
    assert heads_of(model) == ["network.head.1"]


def test_a_distilled_network_has_two_heads():
    with torch.device("meta"):
        model = make_model(ModelConfig(name="timm/deit_tiny_distilled_patch16_224"), Shape(4, 3, 32))
    assert heads_of(model) == ["head", "head_dist"]


def test_a_network_without_layers_has_no_head():
    with pytest.raises(UserError, match="the network ReLU has no Linear and no Conv2d layer that could be its head"):
        heads_of(nn.ReLU())
