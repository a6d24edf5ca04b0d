"""Optimizers and schedules, against the formulas they are named after."""

from __future__ import annotations

import math

import pytest
import torch
from learning_data import one_thread  # noqa: F401 - applies by being here
from torch import nn

from tracked_cls.config import OptimizerConfig, SchedulerConfig
from tracked_cls.errors import UserError
from tracked_cls.optim import Schedule, make_optimizer

PEAK = 0.5
PER_EPOCH = 4
EPOCHS = 6
TOTAL = PER_EPOCH * EPOCHS


def make_schedule(name, epochs=EPOCHS, per_epoch=PER_EPOCH, lr=PEAK, **options):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=lr)
    return Schedule(SchedulerConfig(name=name, **options), optimizer, epochs=epochs, steps_per_epoch=per_epoch)


def rates(schedule, epochs=EPOCHS, per_epoch=PER_EPOCH, losses=None):
    """Return the learning rate of every step, and the one that would come next."""
    found = []
    for epoch in range(1, epochs + 1):
        for _ in range(per_epoch):
            found.append(schedule.lr)
            schedule.optimizer.step()
            schedule.after_step()
        schedule.after_epoch(epoch, losses[epoch - 1] if losses else 1.0)
    return [*found, schedule.lr]


# ---- schedules: lr at `step`, of `total` steps, in closed form ---------------------------------------------------------


def constant(step, total):
    return PEAK


def cosine(step, total):
    return PEAK * (1 + math.cos(math.pi * step / total)) / 2


def cosine_to_a_tenth(step, total):
    return PEAK * (0.1 + 0.9 * (1 + math.cos(math.pi * step / total)) / 2)


def drops_every_two_epochs(step, total):
    return PEAK * 0.3 ** (step // (2 * PER_EPOCH))


def one_cycle(share):
    """Cosine from peak/25 to the peak over a share of the run, then to peak/25e4 (Smith and Topin; torch's defaults)."""

    def rate(step, total):
        top = share * (total + 1) - 1
        if step <= top:
            low, high, progress = PEAK / 25, PEAK, step / top
        else:
            low, high, progress = PEAK, PEAK / 25 / 1e4, (step - top) / (total - top)
        return high + (low - high) * (1 + math.cos(math.pi * progress)) / 2

    return rate


BODIES = [
    pytest.param("constant", {}, constant, id="constant"),
    pytest.param("cosine", {}, cosine, id="cosine"),
    pytest.param("cosine", {"final_ratio": 0.1}, cosine_to_a_tenth, id="cosine to a tenth"),
    pytest.param("step", {"step_epochs": 2, "gamma": 0.3}, drops_every_two_epochs, id="step"),
    pytest.param("plateau", {"patience": 100}, constant, id="plateau that never comes"),
]


@pytest.mark.parametrize(("name", "options", "formula"), BODIES)
def test_the_rate_by_step_is_the_formula(name, options, formula):
    expected = [formula(step, TOTAL) for step in range(TOTAL + 1)]
    assert rates(make_schedule(name, **options)) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("share", [0.3, 0.1, 0.9])
def test_onecycle_is_the_formula(share):
    expected = [one_cycle(share)(step, TOTAL) for step in range(TOTAL + 1)]
    assert rates(make_schedule("onecycle", warmup_fraction=share)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("warmup", [0.25, 1, 1.5, 3], ids=lambda epochs: f"warm-up {epochs}")
@pytest.mark.parametrize(("name", "options", "formula"), BODIES)
def test_warmup_rises_linearly_in_front_of_every_schedule(name, options, formula, warmup):
    rise = round(warmup * PER_EPOCH)
    expected = [PEAK * (0.01 + 0.99 * step / rise) for step in range(rise)]
    expected += [formula(step, TOTAL - rise) for step in range(TOTAL - rise + 1)]
    assert rates(make_schedule(name, warmup_epochs=warmup, **options)) == pytest.approx(expected, rel=1e-6, abs=1e-12)


PLATEAUS = [
    # patience, warm-up, val_loss by epoch, number of drops before each epoch's end has passed
    pytest.param(1, 0, [3, 2, 2, 2, 1, 1], [0, 0, 0, 1, 1, 1], id="after patience"),
    pytest.param(0, 0, [3, 3, 2, 2, 2, 1], [0, 1, 1, 2, 3, 3], id="at once"),
    pytest.param(2, 0, [3, 3, 3, 3, 3, 3], [0, 0, 0, 1, 1, 1], id="counts anew after a drop"),
    pytest.param(0, 3, [1, 9, 9, 9, 9, 8], [0, 0, 0, 0, 1, 1], id="not during warm-up"),
    pytest.param(0, 1.5, [1, 9, 9, 9, 9, 8], [0, 0, 1, 2, 3, 3], id="after a warm-up inside an epoch"),
]


@pytest.mark.parametrize(("patience", "warmup", "losses", "drops"), PLATEAUS)
def test_plateau_drops_after_patience(patience, warmup, losses, drops):
    schedule = make_schedule("plateau", patience=patience, gamma=0.5, warmup_epochs=warmup)
    after_each_epoch = rates(schedule, losses=losses)[PER_EPOCH::PER_EPOCH]
    rise = warmup * PER_EPOCH
    expected = [
        PEAK * 0.5**count if (epoch + 1) * PER_EPOCH >= rise else PEAK * (0.01 + 0.99 * (epoch + 1) * PER_EPOCH / rise)
        for epoch, count in enumerate(drops)
    ]
    assert after_each_epoch == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "options", "epochs", "per_epoch"),
    [
        ("onecycle", {}, 1, 1),
        ("onecycle", {"warmup_fraction": 0.5}, 1, 1),
        ("onecycle", {"warmup_fraction": 0.1}, 9, 1),
        ("onecycle", {"warmup_fraction": 0.25}, 1, 3),
        ("cosine", {"warmup_epochs": 0.99}, 1, 10),
        ("cosine", {}, 1, 1),
        ("step", {"warmup_epochs": 0.99}, 1, 10),
        ("plateau", {"warmup_epochs": 0.99}, 1, 1),
    ],
    ids=str,
)
def test_runs_of_very_few_steps_have_positive_rates(name, options, epochs, per_epoch):
    found = rates(make_schedule(name, epochs, per_epoch, **options), epochs, per_epoch)[:-1]
    assert all(0 < rate <= PEAK for rate in found)


@pytest.mark.parametrize(
    ("name", "warmup"),
    [("onecycle", 0), *((name, warmup) for name in ("constant", "cosine", "step", "plateau") for warmup in (0, 2))],
)
def test_a_schedule_continues_exactly_from_its_state(name, warmup):
    options = {"warmup_epochs": warmup} if warmup else {}
    options |= {"patience": 0} if name == "plateau" else {}
    whole = rates(make_schedule(name, **options))
    for stop in (1, 3):
        first, second = make_schedule(name, **options), make_schedule(name, **options)
        rates(first, epochs=stop)
        second.optimizer.load_state_dict(first.optimizer.state_dict())
        second.load_state_dict(first.state_dict())
        rest = []
        for epoch in range(stop + 1, EPOCHS + 1):
            for _ in range(PER_EPOCH):
                rest.append(second.lr)
                second.optimizer.step()
                second.after_step()
            second.after_epoch(epoch, 1.0)
        assert rest == whole[stop * PER_EPOCH : -1]


# ---- optimizers ------------------------------------------------------------------------------------------------------

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
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert {key: group[key] for key in expected} == expected
        assert bool(group["fused"]) is fused
    assert optimizer.param_groups[0]["weight_decay"] == weight_decay


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_norms_and_biases_get_no_weight_decay(name):
    model = network()
    names = {parameter: name for name, parameter in model.named_parameters()}
    decay = {}
    for group in make_optimizer(OptimizerConfig(name=name, weight_decay=0.1), model, fused=True).param_groups:
        decay |= {names[parameter]: group["weight_decay"] for parameter in group["params"]}
    assert decay == {"0.weight": 0.1, "4.weight": 0.1, "0.bias": 0, "1.weight": 0, "1.bias": 0, "4.bias": 0}


def test_frozen_parameters_are_left_out():
    model = network()
    model[0].weight.requires_grad_(False)
    groups = make_optimizer(OptimizerConfig(), model, fused=True).param_groups
    assert [len(group["params"]) for group in groups] == [1, 4]


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


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerConfig(name="adamW"), "unknown optimizer 'adamW'; did you mean 'adamw'"),
        (lambda: SchedulerConfig(name="cosin"), "unknown scheduler 'cosin'; did you mean 'cosine'"),
    ],
    ids=["optimizer", "scheduler"],
)
def test_an_unknown_name_gets_its_near_match(make, message):
    with pytest.raises((UserError, ValueError), match=message):
        make()
