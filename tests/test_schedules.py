"""Learning-rate schedules, against closed forms and torch's own."""

from __future__ import annotations

import io
import math

import pytest
import torch
from learning_data import one_thread  # noqa: F401 - applies by being here
from torch import nn
from torch.optim import lr_scheduler as torchs

from tracked_cls.config import SchedulerConfig
from tracked_cls.errors import UserError
from tracked_cls.optim import Schedule, schedule_warnings
from tracked_cls.optim.schedules import _FORMULAS

PEAK = 0.5
PER_EPOCH = 4
EPOCHS = 6
TOTAL = PER_EPOCH * EPOCHS


def make_schedule(name, epochs=EPOCHS, per_epoch=PER_EPOCH, lr=PEAK, **options):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=lr)
    cfg = SchedulerConfig(name=name, **options)
    return Schedule(cfg, optimizer, total_steps=epochs * per_epoch, steps_per_epoch=per_epoch)


def rates(schedule, epochs=EPOCHS, per_epoch=PER_EPOCH, losses=None):
    """Return the learning rate of every step, and the one that would come next."""
    found = []
    for epoch in range(1, epochs + 1):
        for _ in range(per_epoch):
            found.append(schedule.optimizer.param_groups[0]["lr"])
            assert found[-1] == pytest.approx(schedule.lr, rel=1e-15)
            schedule.optimizer.step()
            schedule.after_step()
        schedule.after_epoch(epoch, losses[epoch - 1] if losses else 1.0)
    return [*found, schedule.lr]


# ---- lr at `step` after warm-up, of `total` steps, in closed form ------------------------------------------------------


def constant(step, total):
    return PEAK


def cosine(step, total):
    return PEAK * (1 + math.cos(math.pi * step / total)) / 2


def cosine_to_a_tenth(step, total):
    return PEAK * (0.1 + 0.9 * (1 + math.cos(math.pi * step / total)) / 2)


def linear(step, total):
    return PEAK * (total - step) / total


def linear_to_a_fifth(step, total):
    return PEAK * (0.2 + 0.8 * (total - step) / total)


def parabola(step, total):
    return PEAK * ((total - step) / total) ** 2


def root_to_a_tenth(step, total):
    return PEAK * (0.1 + 0.9 * math.sqrt((total - step) / total))


def falls_by_a_fifth_each_epoch(step, total):
    return PEAK * 0.8 ** (step / PER_EPOCH)


def drops_every_two_epochs(step, total):
    return PEAK * 0.3 ** (step // (2 * PER_EPOCH))


def drops_at_3_and_4_and_a_half(step, total):
    """Milestones count from the start of the run, so that a warm-up does not move them."""
    of_the_run = step + TOTAL - total
    return PEAK * (1 if of_the_run < 12 else 0.2 if of_the_run < 18 else 0.04)


def restarts_every_two_epochs(step, total):
    return PEAK * (1 + math.cos(math.pi * (step % 8) / 8)) / 2


def restarts_of_double_length_above_a_tenth(step, total):
    """Cycles of 4, 8 and 16 steps."""
    begin, length = next((begin, length) for begin, length in [(0, 4), (4, 8), (12, 16)] if step < begin + length)
    return PEAK * (0.1 + 0.9 * (1 + math.cos(math.pi * (step - begin) / length)) / 2)


def triangles_of_two_epochs(step, total):
    """Up for 4 steps from a tenth, down for 4."""
    place = step % 8
    return PEAK * (0.1 + 0.9 * (place if place <= 4 else 8 - place) / 4)


def triangles_of_falling_height(step, total):
    """Cycles of one epoch, 4 steps, from a quarter; each half as high as the one before."""
    return PEAK * (0.25 + 0.75 * 0.5 ** (step // 4) * (0, 0.5, 1, 0.5)[step % 4])


BODIES = [
    pytest.param("constant", {}, constant, id="constant"),
    pytest.param("cosine", {}, cosine, id="cosine"),
    pytest.param("cosine", {"final_ratio": 0.1}, cosine_to_a_tenth, id="cosine to a tenth"),
    pytest.param("linear", {}, linear, id="linear"),
    pytest.param("linear", {"final_ratio": 0.2}, linear_to_a_fifth, id="linear to a fifth"),
    pytest.param("polynomial", {}, parabola, id="polynomial"),
    pytest.param("polynomial", {"power": 0.5, "final_ratio": 0.1}, root_to_a_tenth, id="root to a tenth"),
    pytest.param("exponential", {"gamma": 0.8}, falls_by_a_fifth_each_epoch, id="exponential"),
    pytest.param("step", {"step_epochs": 2, "gamma": 0.3}, drops_every_two_epochs, id="step"),
    pytest.param("multistep", {"milestones": [3.1, 4.5], "gamma": 0.2}, drops_at_3_and_4_and_a_half, id="multistep"),
    pytest.param("warm_restarts", {"cycle_epochs": 2}, restarts_every_two_epochs, id="warm restarts"),
    pytest.param(
        "warm_restarts",
        {"cycle_epochs": 1, "cycle_factor": 2, "final_ratio": 0.1},
        restarts_of_double_length_above_a_tenth,
        id="longer and longer",
    ),
    pytest.param("cyclic", {"cycle_epochs": 2}, triangles_of_two_epochs, id="cyclic"),
    pytest.param(
        "cyclic", {"cycle_epochs": 1, "gamma": 0.5, "start_ratio": 0.25}, triangles_of_falling_height, id="lower and lower"
    ),
    pytest.param("plateau", {"patience": 100}, constant, id="plateau that never comes"),
]


@pytest.mark.parametrize(("name", "options", "formula"), BODIES)
def test_the_rate_by_step_is_the_formula(name, options, formula):
    expected = [formula(step, TOTAL) for step in range(TOTAL + 1)]
    assert rates(make_schedule(name, **options))[:-1] == pytest.approx(expected[:-1], rel=1e-12)


@pytest.mark.parametrize("warmup", [0.25, 1, 1.5, 3], ids=lambda epochs: f"warm-up {epochs}")
@pytest.mark.parametrize(("name", "options", "formula"), BODIES)
def test_warmup_rises_linearly_in_front_of_every_schedule(name, options, formula, warmup):
    rise = round(warmup * PER_EPOCH)
    expected = [PEAK * (0.01 + 0.99 * step / rise) for step in range(rise)]
    expected += [formula(step, TOTAL - rise) for step in range(TOTAL - rise)]
    assert rates(make_schedule(name, warmup_epochs=warmup, **options))[:-1] == pytest.approx(expected, rel=1e-12)


def one_cycle(top, start=1 / 25, final=1 / 25 / 1e4):
    """Cosine from a share of the peak to the peak, reached at step `top`, and down to another share."""

    def rate(step, total):
        low, high, progress = (start, 1, step / top) if step <= top else (1, final, (step - top) / (total - top))
        return PEAK * (high + (low - high) * (1 + math.cos(math.pi * progress)) / 2)

    return rate


ONE_CYCLES = [
    pytest.param({}, one_cycle(0.3 * (TOTAL + 1) - 1), id="as it is"),
    pytest.param({"warmup_fraction": 0.9}, one_cycle(0.9 * (TOTAL + 1) - 1), id="late peak"),
    pytest.param({"warmup_epochs": 2}, one_cycle(8), id="rise in epochs"),
    pytest.param({"warmup_epochs": 1.5}, one_cycle(6), id="rise within an epoch"),
    pytest.param({"start_ratio": 0.2, "final_ratio": 0.1}, one_cycle(0.3 * (TOTAL + 1) - 1, 0.2, 0.1), id="ends"),
]


@pytest.mark.parametrize(("options", "formula"), ONE_CYCLES)
def test_onecycle_is_the_formula(options, formula):
    expected = [formula(step, TOTAL) for step in range(TOTAL + 1)]
    assert rates(make_schedule("onecycle", **options)) == pytest.approx(expected, rel=1e-9)


def of_torch(make, steps=TOTAL):
    """Return the rates that a scheduler of torch's gives."""
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=PEAK)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


TORCHS = [
    ("constant", {}, lambda o: torchs.ConstantLR(o, factor=1)),
    ("cosine", {"final_ratio": 0.1}, lambda o: torchs.CosineAnnealingLR(o, TOTAL, eta_min=0.1 * PEAK)),
    ("linear", {"final_ratio": 0.2}, lambda o: torchs.LinearLR(o, 1, 0.2, TOTAL)),
    ("polynomial", {"power": 2.5}, lambda o: torchs.PolynomialLR(o, TOTAL, 2.5)),
    ("exponential", {"gamma": 0.9}, lambda o: torchs.ExponentialLR(o, 0.9 ** (1 / PER_EPOCH))),
    ("step", {"step_epochs": 2, "gamma": 0.3}, lambda o: torchs.StepLR(o, 2 * PER_EPOCH, 0.3)),
    ("multistep", {"milestones": [2, 5], "gamma": 0.3}, lambda o: torchs.MultiStepLR(o, [8, 20], 0.3)),
    (
        "warm_restarts",
        {"cycle_epochs": 1, "cycle_factor": 3, "final_ratio": 0.2},
        lambda o: torchs.CosineAnnealingWarmRestarts(o, PER_EPOCH, 3, eta_min=0.2 * PEAK),
    ),
    ("cyclic", {"cycle_epochs": 2}, lambda o: torchs.CyclicLR(o, 0.1 * PEAK, PEAK, PER_EPOCH, cycle_momentum=False)),
    ("onecycle", {}, lambda o: torchs.OneCycleLR(o, PEAK, TOTAL + 1, cycle_momentum=False)),
]


@pytest.mark.parametrize(("name", "options", "make"), TORCHS, ids=[name for name, _, _ in TORCHS])
@pytest.mark.filterwarnings("ignore")
def test_rates_are_those_of_torch(name, options, make):
    assert rates(make_schedule(name, **options))[:-1] == pytest.approx(of_torch(make), rel=1e-9)


def test_every_schedule_is_offered_and_compared():
    names = set(SchedulerConfig.own)
    assert set(_FORMULAS) == names
    assert {name for name, _, _ in TORCHS} | {"plateau"} == names


# ---- plateau -----------------------------------------------------------------------------------------------------------

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


def test_plateau_stops_at_the_lowest_rate():
    schedule = make_schedule("plateau", patience=0, gamma=0.5, final_ratio=0.2)
    assert rates(schedule, losses=[1] * EPOCHS)[PER_EPOCH::PER_EPOCH] == pytest.approx([0.5, 0.25, 0.125, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_plateau_is_that_of_torch(patience):
    generator = torch.Generator().manual_seed(patience)
    losses = (torch.rand(40, generator=generator).round(decimals=1) + torch.linspace(2, 1, 40)).tolist()
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=PEAK)
    theirs, expected = torchs.ReduceLROnPlateau(optimizer, factor=0.7, patience=patience, eps=0), []
    for loss in losses:
        theirs.step(loss)
        expected.append(optimizer.param_groups[0]["lr"])
    ours = make_schedule("plateau", epochs=40, per_epoch=1, patience=patience, gamma=0.7)
    assert len(set(expected)) > 3
    assert rates(ours, epochs=40, per_epoch=1, losses=losses)[1:] == pytest.approx(expected)


# ---- the edges ---------------------------------------------------------------------------------------------------------

FEW_STEPS = [
    ("onecycle", {}, 1, 1),
    ("onecycle", {"warmup_fraction": 0.5}, 1, 1),
    ("onecycle", {"warmup_fraction": 0.1}, 9, 1),
    ("onecycle", {"warmup_fraction": 0.25}, 1, 3),
    ("onecycle", {"warmup_epochs": 0}, 1, 1),
    ("onecycle", {"warmup_epochs": 0.99}, 1, 1),
    ("onecycle", {"warmup_epochs": 1}, 1, 4),
    ("cosine", {"warmup_epochs": 0.99}, 1, 10),
    ("step", {"warmup_epochs": 0.99}, 1, 10),
    ("multistep", {"milestones": [0.5], "warmup_epochs": 0.4}, 1, 2),
    ("plateau", {"warmup_epochs": 0.99}, 1, 1),
    *((name, {"milestones": [3]} if name == "multistep" else {}, 1, 1) for name in SchedulerConfig.own),
]


@pytest.mark.parametrize(("name", "options", "epochs", "per_epoch"), FEW_STEPS, ids=str)
def test_runs_of_very_few_steps_have_positive_rates(name, options, epochs, per_epoch):
    found = rates(make_schedule(name, epochs, per_epoch, **options), epochs, per_epoch)[:-1]
    assert all(0 < rate <= PEAK for rate in found)


@pytest.mark.parametrize("name", SchedulerConfig.own)
def test_a_run_cut_short_by_its_steps_ends_where_the_schedule_does(name):
    options = {"milestones": [1]} if name == "multistep" else {}
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=PEAK)
    schedule = Schedule(SchedulerConfig(name=name, **options), optimizer, total_steps=6, steps_per_epoch=4)
    for _ in range(8):
        schedule.after_step()
    if name in ("cosine", "linear", "polynomial", "onecycle"):
        assert schedule.lr <= 4e-6 * PEAK


def run_on(schedule, first_epoch):
    rest = []
    for epoch in range(first_epoch, EPOCHS + 1):
        for _ in range(PER_EPOCH):
            rest.append(schedule.lr)
            schedule.optimizer.step()
            schedule.after_step()
        schedule.after_epoch(epoch, 1.0)
    return rest


@pytest.mark.parametrize("warmup", [None, 2], ids=["", "warm-up"])
@pytest.mark.parametrize("name", SchedulerConfig.own)
def test_a_schedule_continues_exactly_from_its_file(name, warmup):
    options = ({"warmup_epochs": warmup} if warmup else {}) | ({"patience": 0} if name == "plateau" else {})
    options |= {"milestones": [3, 4]} if name == "multistep" else {}
    whole = rates(make_schedule(name, **options))
    for stop in (1, 3):
        first, second = make_schedule(name, **options), make_schedule(name, **options)
        rates(first, epochs=stop)
        file = io.BytesIO()
        torch.save({"optimizer": first.optimizer.state_dict(), "schedule": first.state_dict()}, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        second.optimizer.load_state_dict(state["optimizer"])
        second.load_state_dict(state["schedule"])
        assert run_on(second, stop + 1) == whole[stop * PER_EPOCH : -1]


def test_every_group_keeps_its_share_of_the_rate():
    layer = nn.Linear(2, 2)
    groups = [{"params": [layer.weight], "lr": 0.1 * PEAK}, {"params": [layer.bias], "lr": PEAK}]
    schedule = Schedule(SchedulerConfig(name="cosine"), torch.optim.SGD(groups, lr=PEAK), total_steps=4, steps_per_epoch=2)
    schedule.after_step()
    assert [group["lr"] for group in schedule.optimizer.param_groups] == pytest.approx([0.1 * cosine(1, 4), cosine(1, 4)])
    assert schedule.lr == pytest.approx(cosine(1, 4)), "the rate without any ratio"


def test_the_scale_multiplies_every_rate_of_a_step_and_outlives_a_resume():
    schedule, fresh = make_schedule("cosine"), make_schedule("cosine")
    schedule.scale = 0.25
    schedule.after_step()
    fresh.load_state_dict(schedule.state_dict())
    for each in (schedule, fresh):
        with each.scaled():
            assert each.optimizer.param_groups[0]["lr"] == pytest.approx(0.25 * cosine(1, TOTAL)) == each.lr
        assert each.optimizer.param_groups[0]["lr"] == pytest.approx(cosine(1, TOTAL))


def test_a_step_that_fails_leaves_the_rates_as_scheduled():
    schedule = make_schedule("cosine")
    schedule.scale = 0.25
    with pytest.raises(ZeroDivisionError), schedule.scaled():
        1 / 0  # noqa: B018
    assert schedule.optimizer.param_groups[0]["lr"] == PEAK


# ---- what a user is told -----------------------------------------------------------------------------------------------

WARNINGS = [
    ({"name": "step", "step_epochs": 10}, 10, "scheduler.step_epochs=10: lr never drops, for the run has 10 epochs"),
    ({"name": "step", "step_epochs": 4, "warmup_epochs": 3}, 7, "the run has 7 epochs, 3 of them warm-up"),
    ({"name": "multistep", "milestones": [3, 6, 9]}, 6, "scheduler.milestones: lr never drops at [6, 9]"),
    ({"name": "plateau", "patience": 9}, 10, "scheduler.patience=9: lr never drops"),
    ({"name": "warm_restarts", "cycle_epochs": 7}, 6, "scheduler.cycle_epochs=7: lr never gets through a cycle"),
    ({"name": "cyclic", "cycle_epochs": 2, "warmup_epochs": 5}, 6, "lr never gets through a cycle"),
    ({"name": "cosine", "warmup_epochs": 2}, 1.5, "scheduler.warmup_epochs=2 is no shorter than the run"),
    ({"name": "onecycle", "warmup_epochs": 2}, 2, "scheduler.warmup_epochs=2 is no shorter than the run"),
]


@pytest.mark.parametrize(("options", "epochs", "message"), WARNINGS, ids=[str(row[0]) for row in WARNINGS])
def test_a_schedule_longer_than_the_run_says_so(options, epochs, message):
    (line,) = schedule_warnings(SchedulerConfig(**options), epochs)
    assert message in line


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        *(({"name": name}, 12) for name in SchedulerConfig.own if name != "multistep"),
        ({"name": "multistep", "milestones": [3, 11]}, 12),
        ({"name": "step", "step_epochs": 3, "warmup_epochs": 3}, 7),
        ({"name": "cyclic", "cycle_epochs": 2, "warmup_epochs": 4}, 6),
    ],
    ids=str,
)
def test_a_schedule_that_fits_has_nothing_to_say(options, epochs):
    assert schedule_warnings(SchedulerConfig(**options), epochs) == []


MISTAKES = [
    ({"name": "cosin"}, "unknown scheduler 'cosin'; did you mean 'cosine'"),
    ({"name": "cosine", "power": 2}, "scheduler.power has no effect with scheduler=cosine; it belongs to polynomial"),
    ({"name": "onecycle", "warmup_epochs": 2, "warmup_fraction": 0.2}, "both set the rise of onecycle; set one to auto"),
    ({"warmup_epochs": 2, "warmup_fraction": 0.2}, "both set the rise of onecycle; set one to auto"),
    ({"name": "multistep"}, "needs scheduler.milestones, the epochs after which lr drops"),
    ({"name": "multistep", "milestones": [3, 2]}, "scheduler.milestones must rise"),
    ({"name": "multistep", "milestones": [0]}, "above 0 and after the warm-up"),
    ({"name": "multistep", "milestones": [2], "warmup_epochs": 3}, "after the warm-up"),
    ({"name": "multistep", "milestones": ["two"]}, "scheduler.milestones must be numbers of 0 or more, got 'two'"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=[str(row[0]) for row in MISTAKES])
def test_a_mistake_is_named(options, message):
    with pytest.raises((UserError, ValueError)) as caught:
        SchedulerConfig(**options)
    assert message in str(caught.value)


CHANGES = [
    (name, option, value)
    for name, options in {
        "constant": {"warmup_epochs": 1},
        "cosine": {"warmup_epochs": 1, "final_ratio": 0.3},
        "linear": {"warmup_epochs": 1, "final_ratio": 0.3},
        "polynomial": {"warmup_epochs": 1, "final_ratio": 0.3, "power": 3},
        "exponential": {"warmup_epochs": 1, "gamma": 0.5},
        "step": {"warmup_epochs": 1, "step_epochs": 2, "gamma": 0.5},
        "multistep": {"warmup_epochs": 1, "milestones": [2], "gamma": 0.5},
        "plateau": {"warmup_epochs": 1, "patience": 1, "gamma": 0.5, "final_ratio": 0.5},
        "warm_restarts": {"warmup_epochs": 1, "cycle_epochs": 3, "cycle_factor": 2, "final_ratio": 0.3},
        "cyclic": {"warmup_epochs": 1, "cycle_epochs": 3, "gamma": 0.5, "start_ratio": 0.3},
        "onecycle": {"warmup_epochs": 1, "warmup_fraction": 0.5, "start_ratio": 0.3, "final_ratio": 0.3},
    }.items()
    for option, value in options.items()
]
SHORT = {"multistep": {"milestones": [3]}, "step": {"step_epochs": 1}, "plateau": {"patience": 0}}
SHORT |= {name: {"cycle_epochs": 2} for name in ("warm_restarts", "cyclic")}


@pytest.mark.parametrize(("name", "option", "value"), CHANGES, ids=str)
def test_every_option_changes_the_rates(name, option, value):
    plain = SHORT.get(name, {})
    assert rates(make_schedule(name, **plain)) != rates(make_schedule(name, **{**plain, option: value}))


def test_the_options_that_change_something_are_all_there_are():
    assert {name: set(options) for name, options in SchedulerConfig.own.items()} == {
        name: {option for other, option, _ in CHANGES if other == name} for name in SchedulerConfig.own
    }
