"""What is frozen stays bit for bit, with any optimizer; everything else learns, and after the thaw all of it does."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from learning_data import one_thread  # noqa: F401 - applies by being here
from torch import nn

from tracked_cls import evaluation, freezing
from tracked_cls.config import FreezeConfig, ModelConfig
from tracked_cls.data.loaders import Batch
from tracked_cls.errors import UserError
from tracked_cls.models import Shape, make_model

IMAGES = Shape(3, 1, 8)
CLIPS = Shape(3, 1, 8, frames=2)
OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.1, weight_decay=0.1),
    "adamw-fused": lambda weights: torch.optim.AdamW(weights, lr=0.1, weight_decay=0.1, fused=True),
    "rmsprop-foreach": lambda weights: torch.optim.RMSprop(weights, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=True),
}


def network(shape=IMAGES):
    torch.manual_seed(0)
    return make_model(ModelConfig(name="small_cnn"), shape)


def names_of(model):
    return [name for name, _ in model.named_parameters()]


def chosen(model, **options):
    return freezing.chosen(FreezeConfig(**options), model)


def held(model):
    return {name for name, module in model.named_modules() if freezing.is_held(module)}


def train(model, optimizer, steps=3):
    """Take some steps on noise, as the training loop does."""
    generator = torch.Generator().manual_seed(0)
    model.train()
    freezing.hold_batchnorm(model)
    for _ in range(steps):
        logits = model(torch.randn(6, 1, 8, 8, generator=generator) + 1)
        loss = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1, 2]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def changed(model, before):
    """Return the names of what is no longer bit for bit the same."""
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def tensors_of(model, layers):
    return {name for name in model.state_dict() if name.startswith(tuple(f"{layer}." for layer in layers))}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),
        ({"patterns": ["features.0.*"]}, ["features.0.weight"]),
        ({"patterns": ["features.?.bias"]}, ["features.1.bias", "features.4.bias", "features.8.bias"]),
        ({"patterns": ["head.*.bias", "features.0.weight"]}, ["head.1.bias", "features.0.weight"]),
        ({"first": 2}, ["features.0.weight", "features.1.weight"]),
        ({"layers": ["features.1"]}, ["features.1.weight", "features.1.bias"]),
        ({"layers": ["head"], "first": 1}, ["head.1.weight", "head.1.bias", "features.0.weight"]),
    ],
    ids=["nothing", "pattern", "one-letter", "two-patterns", "first", "layer", "together"],
)
def test_options_choose_parameters_by_name(options, expected):
    assert chosen(network(), **options) == set(expected)


def test_a_layer_is_not_another_whose_name_begins_alike():
    model = network()
    assert chosen(model, layers=["features.1"]) == {"features.1.weight", "features.1.bias"}
    assert "features.10.weight" in names_of(model)


def test_all_but_head_leaves_the_last_layer():
    model = network()
    assert chosen(model, all_but_head=True) == set(names_of(model)) - {"head.1.weight", "head.1.bias"}


@pytest.mark.parametrize("options", [{"layers": ["features.0"]}, {"patterns": ["features.0.*"]}], ids=["layer", "pattern"])
def test_layers_of_a_network_for_clips_have_the_names_they_have_for_images(options):
    model = network(CLIPS)
    assert chosen(model, **options) == {"network.features.0.weight"}
    freezing.freeze(model, chosen(model, **options))


def test_all_but_head_of_a_network_for_clips_leaves_its_last_layer():
    model = network(CLIPS)
    assert set(names_of(model)) - chosen(model, all_but_head=True) == {"network.head.1.weight", "network.head.1.bias"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patterns": ["feature.*"]}, r"'feature\.\*' matches no parameter; did you mean 'features\.\*'"),
        ({"patterns": ["head"]}, r"'head' matches no parameter; did you mean 'head\.\*'.*outermost parts are features, head"),
        ({"patterns": ["features.0.*", "zz"]}, "'zz' matches no parameter"),
        ({"layers": ["heads"]}, "there is no layer 'heads' with parameters; did you mean 'head'"),
        ({"layers": ["features.2"]}, "there is no layer 'features.2' with parameters"),
        ({"layers": ["features.0.weight"]}, "there is no layer 'features.0.weight'"),
        ({"patterns": ["*"]}, "all 20 parameters: nothing would learn"),
        ({"first": 20}, "all 20 parameters"),
        ({"all_but_head": True, "layers": ["head"]}, "all 20 parameters"),
    ],
    ids=["near", "no-star", "one-of-two", "layer", "empty-layer", "no-layer", "all", "all-first", "all-together"],
)
def test_a_freeze_that_chooses_nothing_or_everything_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        chosen(network(), **options)


def test_a_network_that_is_its_head_has_no_body_to_freeze():
    with pytest.raises(UserError, match="all_but_head has no effect"):
        chosen(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), all_but_head=True)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_frozen_tensors_and_statistics_stay_bit_for_bit_and_the_others_learn(make):
    model = network()
    freezing.freeze(model, chosen(model, layers=["features.0", "features.1", "features.3"]))
    before = copy.deepcopy(model.state_dict())
    train(model, make(model.parameters()))
    frozen = tensors_of(model, ["features.0", "features.1", "features.3"])
    assert {"features.1.running_mean", "features.1.num_batches_tracked"} < frozen
    assert changed(model, before) == set(model.state_dict()) - frozen


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_was_frozen_at_first_learns_after_the_thaw(make):
    model = network()
    names = chosen(model, all_but_head=True)
    freezing.freeze(model, names)
    optimizer = make(model.parameters())
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer)
    assert changed(model, before) == {"head.1.weight", "head.1.bias"}
    freezing.thaw(model, names)
    train(model, optimizer)
    assert changed(model, before) == set(model.state_dict())


def test_freezing_drops_a_gradient_that_is_there_already():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    model(torch.ones(2, 1, 8, 8)).sum().backward()
    freezing.freeze(model, ["features.0.weight"])
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert "features.0.weight" not in changed(model, before)


def test_batchnorm_that_learns_is_not_held():
    model = network()
    freezing.freeze(model, chosen(model, patterns=["features.0.*", "features.1.weight"]))
    model.train()
    freezing.hold_batchnorm(model)
    assert held(model) == set()
    assert all(module.training for module in model.modules())


def test_dropout_of_frozen_parts_goes_on():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(72, 3))
    freezing.freeze(model, chosen(model, all_but_head=True))
    model.train()
    freezing.hold_batchnorm(model)
    assert [module.training for module in model] == [True, False, True, True, True]


def test_batchnorm_without_parameters_goes_with_what_is_around_it():
    def block():
        return nn.Sequential(nn.Conv2d(1, 1, 3), nn.Sequential(nn.BatchNorm2d(1, affine=False)))

    model = nn.Sequential(block(), block(), nn.Flatten(), nn.Linear(16, 3))
    freezing.freeze(model, chosen(model, layers=["0"]))
    assert held(model) == {"0.1.0"}
    freezing.thaw(model, ["0.0.weight"])
    assert held(model) == set()


def test_a_network_that_nobody_froze_holds_nothing():
    model = network()
    model.requires_grad_(False)
    model.train()
    freezing.hold_batchnorm(model)
    assert held(model) == set()
    assert model.features[1].training


def test_the_copy_that_averages_weights_holds_what_the_network_holds():
    model = network()
    freezing.freeze(model, chosen(model, first=3))
    average = torch.optim.swa_utils.AveragedModel(model)
    assert held(average.module) == held(model) == {"features.1"}
    freezing.thaw(average.module, chosen(model, first=3))
    assert held(average.module) == set()


def test_statistics_that_are_taken_anew_leave_held_batchnorm_alone():
    model = network()
    freezing.freeze(model, chosen(model, first=3))
    before = copy.deepcopy(model.state_dict())
    evaluation.refresh_batchnorm(model, [Batch(torch.randn(6, 1, 8, 8) + 1, torch.zeros(6, dtype=torch.long))])
    assert {name for name in model.state_dict() if "running" in name} - changed(model, before) == {
        "features.1.running_mean",
        "features.1.running_var",
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"all_but_head": True}, r"18 of 20 parameters \(99\.\d% of the weights\); learning: head\.1\.weight, head\.1\.bias$"),
        ({"first": 3}, r"3 of 20 parameters \(0\.2% of the weights\); learning: features\.3\.weight, .* and 13 more$"),
    ],
    ids=["head", "most"],
)
def test_the_summary_says_how_much_is_frozen_and_what_learns(options, expected):
    model = network()
    assert re.match(expected, freezing.summary(model, chosen(model, **options)))
