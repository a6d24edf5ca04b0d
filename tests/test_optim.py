"""Optimizers, against the formulas and classes they are named after."""

from __future__ import annotations

import inspect
import io
import os
import subprocess
import sys

import pytest
import torch
from learning_data import one_thread  # noqa: F401 - applies by being here
from torch import nn

from tests.conftest import ROOT
from tracked_cls.config import OptimizerConfig
from tracked_cls.errors import UserError
from tracked_cls.optim import check, load_state, make_optimizer
from tracked_cls.optim.eager import eager
from tracked_cls.optim.groups import layers_of
from tracked_cls.optim.optimizers import _TIMM, _TORCH

NAMES = list(OptimizerConfig.own)

OPTIONS = [
    pytest.param({"name": "sgd"}, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}, 5e-4, id="sgd"),
    pytest.param(
        {"name": "sgd", "lr": 0.3, "momentum": 0.5, "nesterov": False, "weight_decay": 0.01},
        torch.optim.SGD,
        {"lr": 0.3, "momentum": 0.5, "nesterov": False},
        0.01,
        id="sgd set",
    ),
    pytest.param({"name": "adam"}, torch.optim.Adam, {"lr": 1e-3, "betas": (0.9, 0.999)}, 0.0, id="adam"),
    pytest.param(
        {"name": "adam", "lr": 0.1, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.02},
        torch.optim.Adam,
        {"lr": 0.1, "betas": (0.8, 0.95)},
        0.02,
        id="adam set",
    ),
    pytest.param({"name": "adamw"}, torch.optim.AdamW, {"lr": 2e-3, "betas": (0.9, 0.999)}, 0.05, id="adamw"),
    pytest.param(
        {"name": "adamw", "lr": 0.1, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.02},
        torch.optim.AdamW,
        {"lr": 0.1, "betas": (0.8, 0.95)},
        0.02,
        id="adamw set",
    ),
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("options", "kind", "expected", "weight_decay"), OPTIONS)
def test_options_reach_the_optimizer(options, kind, expected, weight_decay, fused):
    optimizer = make_optimizer(OptimizerConfig(**options), network(), fused=fused)
    assert isinstance(optimizer, kind)
    assert type(optimizer).__name__ == kind.__name__
    for group in optimizer.param_groups:
        assert {key: group[key] for key in expected} == expected
        assert bool(group["fused"]) is fused
    assert optimizer.param_groups[0]["weight_decay"] == weight_decay


@pytest.mark.parametrize("name", NAMES)
def test_norms_and_biases_get_no_weight_decay(name):
    model = network()
    names, decay = {parameter: name for name, parameter in model.named_parameters()}, {}
    for group in make_optimizer(OptimizerConfig(name=name, weight_decay=0.1), model, fused=True).param_groups:
        decay |= {names[parameter]: group["weight_decay"] for parameter in group["params"]}
    assert decay == {"0.weight": 0.1, "4.weight": 0.1, "0.bias": 0, "1.weight": 0, "1.bias": 0, "4.bias": 0}


def held_by(optimizer, model):
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if parameter in held}


def test_what_is_frozen_for_good_is_left_out_and_what_thaws_later_is_not():
    model = network()
    model[0].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    optimizer = make_optimizer(OptimizerConfig(), model, fused=True, frozen={"0.weight"})
    assert held_by(optimizer, model) == {"0.bias", "1.weight", "1.bias", "4.weight", "4.bias"}


def train(name, fused, steps=20):
    model = network().to(memory_format=torch.channels_last)
    optimizer = make_optimizer(OptimizerConfig(name=name, lr=0.02, weight_decay=0.1), model, fused=fused)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        images = torch.randn(8, 1, 4, 4, generator=generator)
        loss = nn.functional.cross_entropy(model(images), torch.arange(8) % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adagrad"])
def test_fused_and_plain_optimizers_agree(name):
    fused, plain = train(name, fused=True), train(name, fused=False)
    start = torch.cat([parameter.detach().flatten() for parameter in network().parameters()])
    assert (fused - start).abs().max() > 0.01
    # the bias in front of a BatchNorm has a gradient of rounding errors alone, which adam blows up to full steps
    keep = torch.ones(len(fused), dtype=torch.bool)
    keep[36:40] = False
    torch.testing.assert_close(fused[keep], plain[keep], atol=1e-6 if name == "sgd" else 1e-5, rtol=0)


def test_one_step_of_sgd_by_hand():
    model = nn.Linear(1, 1)
    model.weight.data.fill_(2.0)
    model.bias.data.fill_(1.0)
    optimizer = make_optimizer(
        OptimizerConfig(name="sgd", lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.2), model, fused=False
    )
    (3 * model(torch.ones(1, 1))).sum().backward()
    optimizer.step()
    # gradient 3 + 0.2 * 2 = 3.4 and 3; nesterov's first step is (1 + 0.5) times that
    assert model.weight.item() == pytest.approx(2 - 0.1 * 1.5 * 3.4)
    assert model.bias.item() == pytest.approx(1 - 0.1 * 1.5 * 3)


# ---- every optimizer by name -------------------------------------------------------------------------------------------


def test_every_name_is_built_and_every_optimizer_has_its_options():
    assert set(NAMES) == {*_TORCH, *_TIMM}
    assert all({"lr", "weight_decay"} <= set(options) for options in OptimizerConfig.own.values())


def wide(groups=8):
    """A network with everything muon treats in a way of its own: matrices, filters, depthwise filters, vectors."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 2, groups=groups), nn.Flatten(), nn.Linear(8, 6)
    ).to(memory_format=torch.channels_last)


def step(model, optimizer, number):
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(12, 1, 4, 4, generator=generator)
    loss = nn.functional.cross_entropy(model(images), images.flatten(1)[:, :6].argmax(dim=1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_lowers_the_loss_at_its_own_rate(name):
    model = wide()
    optimizer = make_optimizer(OptimizerConfig(name=name), model, fused=True)
    losses = [step(model, optimizer, number=0) for _ in range(40)]
    assert losses[-1] < losses[0] - 0.02
    assert all(later < losses[0] * 1.5 for later in losses)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_goes_on_from_its_file_bit_for_bit(name, fused):
    whole, model, resumed = wide(), wide(), wide()
    straight, first = (make_optimizer(OptimizerConfig(name=name), each, fused=fused) for each in (whole, model))
    for number in range(8):
        step(whole, straight, number)
    for number in range(5):
        step(model, first, number)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state["model"])
    second = make_optimizer(OptimizerConfig(name=name), resumed, fused=fused)
    load_state(second, state["optimizer"])
    for number in range(5, 8):
        step(resumed, second, number)
    assert torch.equal(flat(resumed), flat(whole))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adagrad"])
def test_fused_optimizers_go_on_from_a_state_of_another_memory_layout(name):
    """Saved from plain memory and loaded beside channels_last weights, the strides differ: raw memory would be mixed up."""
    model, resumed = wide(groups=1), wide(groups=1)
    first, second = (make_optimizer(OptimizerConfig(name=name), each, fused=True) for each in (model, resumed))
    for number in range(3):
        step(model, first, number)
    state = first.state_dict()
    state["state"] = {
        index: {key: value.clone(memory_format=torch.contiguous_format) for key, value in values.items()}
        for index, values in state["state"].items()
    }
    resumed.load_state_dict(model.state_dict())
    load_state(second, state)
    for each, optimizer in ((model, first), (resumed, second)):
        step(each, optimizer, number=3)
    assert torch.equal(flat(model), flat(resumed))


@pytest.mark.parametrize("name", NAMES)
def test_what_has_no_gradient_stays_bit_for_bit_and_moves_once_it_has(name):
    model = wide()
    model[0].weight.requires_grad_(False)
    optimizer = make_optimizer(OptimizerConfig(name=name, weight_decay=0.1), model, fused=True)
    before = model[0].weight.detach().clone()
    for number in range(3):
        step(model, optimizer, number)
    assert torch.equal(model[0].weight, before)
    model[0].weight.requires_grad_(True)
    for number in range(3, 5):  # adopt only looks at a first gradient
        step(model, optimizer, number)
    assert not torch.equal(model[0].weight, before)
    assert (model[0].weight - before).abs().max() < 1.5


CHANGED = {"lr": 0.013, "weight_decay": 0.07, "momentum": 0.6, "nesterov": False, "beta1": 0.7, "beta2": 0.8, "eps": 1e-2}
EVERY_OPTION = [(name, key) for name, options in OptimizerConfig.own.items() for key in options]


@pytest.mark.parametrize(("name", "key"), EVERY_OPTION, ids=lambda value: str(value))
def test_every_option_changes_the_step(name, key):
    base = {"momentum": 0.9, "nesterov": True} if key == "nesterov" else {}
    results = []
    for options in (base, {**base, key: CHANGED[key]}):
        model = wide()
        optimizer = make_optimizer(OptimizerConfig(name=name, **options), model, fused=False)
        for number in range(8):
            step(model, optimizer, number)
        results.append(flat(model))
    assert results[0].isfinite().all()
    assert not torch.equal(*results)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("sgd", {"dampening": 0.0}),
        ("adamw", {"amsgrad": True}),
        ("rmsprop", {"alpha": 0.9, "centered": True}),
        ("ranger", {"k": 3, "slow": 0.3}),
        ("adan", {"betas": [0.9, 0.9, 0.9]}),
        ("lamb", {"max_grad_norm": None}),
        ("muon", {"ns_steps": 3, "conv_mode": "batched"}),
    ],
    ids=str,
)
def test_other_arguments_reach_the_constructor(name, args):
    cfg = OptimizerConfig(name=name, args=args)
    check(cfg)
    group = make_optimizer(cfg, wide(), fused=True).param_groups[0]
    assert {key: group[key] for key in args} == args


@pytest.mark.parametrize("name", NAMES)
def test_arguments_that_are_named_as_taken_are(name):
    with pytest.raises(UserError) as caught:
        check(OptimizerConfig(name=name, args={"nonsense": 1}))
    listed = str(caught.value).rpartition("it takes ")[2].split(", ")
    kind = type(make_optimizer(OptimizerConfig(name=name), wide(), fused=False))
    assert listed == ["none"] or set(listed) <= set(inspect.signature(kind).parameters)
    assert not {"params", "lr", "maximize", "fused"} & set(listed)


MISTAKES = [
    (lambda: OptimizerConfig(name="adamW"), "unknown optimizer 'adamW'; did you mean 'adamw'"),
    (lambda: OptimizerConfig(name="lio"), "unknown optimizer 'lio'; did you mean 'lion'"),
    (lambda: OptimizerConfig(name="lion", eps=1e-3), "optimizer.eps has no effect with optimizer=lion; it belongs to adam, "),
    (lambda: OptimizerConfig(name="sgd", momentum=0), "optimizer.nesterov=true needs optimizer.momentum above 0"),
    (lambda: OptimizerConfig(lr_ratios={"0.*": 0}), "must be above 0 and at most 10000, got 0; to keep parameters as they are"),
    (lambda: OptimizerConfig(lr_ratios={"0.*": "x"}), "optimizer.lr_ratios must be numbers of 0 or more, got 'x'"),
    (
        lambda: check(OptimizerConfig(args={"amsgrd": True})),
        "adamw takes no 'amsgrd'; did you mean 'amsgrad'?; it takes amsgrad",
    ),
    (lambda: check(OptimizerConfig(args={"lr": 1})), "optimizer.args: set lr as optimizer.lr"),
    (lambda: check(OptimizerConfig(args={"betas": [0, 0]})), "set betas as optimizer.beta1 and optimizer.beta2"),
    (lambda: check(OptimizerConfig(args={"fused": True})), "adamw takes no 'fused'"),
    (lambda: check(OptimizerConfig(name="ranger", args={"k": 0})), "optimizer=ranger cannot be built with optimizer.args="),
    (lambda: check(OptimizerConfig(name="adan", args={"betas": 3})), "optimizer=adan cannot be built"),
    (
        lambda: make_optimizer(OptimizerConfig(lr_ratios={"1.wei": 2}), network(), fused=False),
        "optimizer.lr_ratios: no parameter matches '1.wei'; did you mean '1.weight'?",
    ),
    (
        lambda: make_optimizer(OptimizerConfig(lr_ratios={"0.*": 2}), network(), fused=False, frozen={"0.weight", "0.bias"}),
        "optimizer.lr_ratios: all that '0.*' matches is frozen",
    ),
    (
        lambda: make_optimizer(OptimizerConfig(layer_decay=0.5), nn.Linear(2, 2), fused=False),
        "optimizer.layer_decay has no effect on a network of one layer",
    ),
]


@pytest.mark.parametrize(("make", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_named(make, message):
    with pytest.raises((UserError, ValueError)) as caught:
        make()
    assert message in str(caught.value)


WRONG_TYPES = [
    ({"name": "adamw"}, {"amsgrad": "hello"}),
    ({"name": "sgd", "nesterov": False}, {"dampening": "x"}),
    ({"name": "asgd"}, {"t0": "x"}),
    ({"name": "muon"}, {"ns_steps": "x"}),
    ({"name": "lamb"}, {"max_grad_norm": "x"}),
    ({"name": "lars"}, {"trust_coeff": "x"}),
    ({"name": "mars"}, {"gamma": "x"}),
    ({"name": "adopt"}, {"clip_exp": "x"}),
    ({"name": "adan"}, {"betas": [0.9, 0.9]}),
]


@pytest.mark.parametrize(("options", "args"), WRONG_TYPES, ids=str)
def test_arguments_that_would_fail_in_a_step_are_refused_before(options, args):
    with pytest.raises(UserError) as caught:
        check(OptimizerConfig(**options, args=args))
    assert str(caught.value).startswith(f"optimizer={options['name']} cannot be built with optimizer.args={args}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_passes_its_check(name):
    check(OptimizerConfig(name=name))


# ---- ranger ------------------------------------------------------------------------------------------------------------


def test_ranger_goes_half_way_back_every_k_steps():
    plain, ahead = wide(), wide()
    radam = make_optimizer(OptimizerConfig(name="radam", lr=0.01), plain, fused=False)
    ranger = make_optimizer(OptimizerConfig(name="ranger", lr=0.01, args={"k": 3}), ahead, fused=False)
    start = flat(plain)
    for number in range(2):
        step(plain, radam, number)
        step(ahead, ranger, number)
        assert torch.equal(flat(plain), flat(ahead))
    step(plain, radam, number=2)
    step(ahead, ranger, number=2)
    torch.testing.assert_close(flat(ahead), (start + flat(plain)) / 2)


def test_ranger_is_the_lookahead_of_timm_from_the_second_round_on():
    """timm's first round only notes where it stands; begun there, both are the same."""
    from timm.optim import Lookahead

    ours, theirs = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    for each in (ours, theirs):
        each.weight.data.fill_(1.0)
    ranger = make_optimizer(OptimizerConfig(name="ranger", lr=0.1, args={"k": 2}), ours, fused=False)
    lookahead = Lookahead(torch.optim.RAdam(theirs.parameters(), lr=0.1), alpha=0.5, k=2)
    lookahead._base_optimizer.state[theirs.weight]["lookahead_slow_buff"] = theirs.weight.detach().clone()
    lookahead._base_optimizer.state[theirs.weight] |= {
        "step": torch.tensor(0.0), "exp_avg": torch.zeros(1, 1), "exp_avg_sq": torch.zeros(1, 1)
    }  # fmt: skip
    for number in range(20):
        for each, optimizer in ((ours, ranger), (theirs, lookahead)):
            optimizer.zero_grad()
            (each(torch.tensor([[number + 1.0]])) ** 2).sum().backward()
            optimizer.step()
        assert ours.weight.item() == pytest.approx(theirs.weight.item(), rel=1e-6)


# ---- rates by layer and by name ----------------------------------------------------------------------------------------


def rates_by_name(cfg, model, **options):
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = make_optimizer(cfg, model, fused=False, **options).param_groups
    return {names[parameter]: group["lr"] for group in groups for parameter in group["params"]}


def test_layer_decay_lowers_the_rate_of_each_layer_below_the_head():
    found = rates_by_name(OptimizerConfig(lr=0.8, layer_decay=0.5), wide())
    by_layer = {"0": 0.2, "1": 0.2, "3": 0.4, "5": 0.8}
    assert found == {f"{layer}.{kind}": rate for layer, rate in by_layer.items() for kind in ("weight", "bias")}


def test_freezing_layers_does_not_move_the_rates_of_the_others():
    free = rates_by_name(OptimizerConfig(lr=0.8, layer_decay=0.5), wide())
    assert rates_by_name(OptimizerConfig(lr=0.8, layer_decay=0.5), wide(), frozen={"5.weight", "5.bias"}) == {
        name: rate for name, rate in free.items() if not name.startswith("5")
    }


def test_the_first_pattern_that_matches_sets_the_ratio_on_top_of_layer_decay():
    cfg = OptimizerConfig(lr=0.8, layer_decay=0.5, lr_ratios={"5.bias": 3, "5.*": 10, "?.weight": 2})
    found = rates_by_name(cfg, wide())
    assert (found["5.bias"], found["5.weight"]) == pytest.approx((2.4, 8))
    assert (found["0.weight"], found["0.bias"], found["3.weight"]) == pytest.approx((0.4, 0.2, 0.8))


LAYERS = [
    ("resnet18", {"conv1.weight": 0, "bn1.bias": 0, "layer1.1.bn2.weight": 1, "layer4.0.conv1.weight": 4, "fc.weight": 5}),
    (
        "mobilenet_v3_small",
        {"features.0.0.weight": 0, "features.12.1.bias": 12, "classifier.0.weight": 13, "classifier.3.bias": 14},
    ),
    ("vgg11", {"features.0.weight": 0, "features.3.bias": 1, "classifier.0.weight": 8, "classifier.6.weight": 10}),
]


@pytest.mark.parametrize(("name", "expected"), LAYERS, ids=[name for name, _ in LAYERS])
def test_layers_are_the_numbered_parts_of_a_network(name, expected):
    from torchvision import models

    with torch.device("meta"):
        depths = layers_of(models.get_model(name))
    assert {parameter: depths[parameter] for parameter in expected} == expected
    assert max(depths.values()) == list(expected.values())[-1]


def test_what_a_network_of_timm_exempts_gets_no_weight_decay():
    class Exempting(nn.Linear):
        def no_weight_decay(self):
            return {"weight"}

    model = nn.Sequential(Exempting(2, 2), nn.Linear(2, 2))
    groups = make_optimizer(OptimizerConfig(weight_decay=0.1), model, fused=False).param_groups
    decayed = {parameter for group in groups if group["weight_decay"] for parameter in group["params"]}
    assert decayed == {model[1].weight}


# ---- PyTorch's compiler ----------------------------------------------------------------------------------------------

ALL_STEP = """
import sys
import torch
from tracked_cls.optim.optimizers import _TORCH, _maker

for name in _TORCH:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = _maker(name)[0]([weight], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert "torch._dynamo" not in sys.modules, name
"""


def test_no_optimizer_of_torchs_imports_its_compiler():
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", ALL_STEP], capture_output=True, text=True, env=environment)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", sorted(set(_TORCH.values()), key=lambda kind: kind.__name__))
def test_without_the_compiler_steps_are_the_same_to_the_bit(kind):
    def trained(make):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
        optimizer, images = make(network.parameters(), lr=0.01), torch.randn(7, 6)
        for _ in range(8):
            optimizer.zero_grad()
            network(images).square().sum().backward()
            optimizer.step()
        return [parameter.detach().clone() for parameter in network.parameters()]

    own, torchs = trained(eager(kind)), trained(kind)

    assert all(torch.equal(one, other) for one, other in zip(own, torchs, strict=True))
    assert eager(kind).__name__ == kind.__name__


def test_steps_without_the_compiler_leave_no_graph_behind():
    weight = nn.Parameter(torch.ones(3))
    optimizer = eager(torch.optim.SGD)([weight], lr=0.5)
    weight.sum().backward()

    optimizer.step()

    assert weight.is_leaf
    assert weight.tolist() == [0.5, 0.5, 0.5]
