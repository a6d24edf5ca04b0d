"""The search space: what it refuses before anything runs, what a trial suggests, and what that means to a training."""

import json
import math
from random import Random

import optuna
import pytest
import yaml
from optuna.trial import FixedTrial

from tracked_cls.config import TrainConfig, override
from tracked_cls.errors import UserError
from tracked_cls.tuning import space as space_module
from tracked_cls.tuning.parameters import Choices, Range
from tracked_cls.tuning.space import Space

optuna.logging.set_verbosity(optuna.logging.WARNING)

CONDITIONAL = """
model: [small_cnn, mobilenetv3]
optimizer: [sgd, adamw]
optimizer.lr@sgd: {low: 1e-3, high: 1, log: true}
optimizer.lr@adamw: {low: 1e-4, high: 1e-2, log: true}
optimizer.momentum@sgd: {low: 0.5, high: 0.95, step: 0.05}
optimizer.nesterov@slow: {choices: [true, false], when: {optimizer: [sgd], model: [small_cnn]}}
scheduler: [onecycle, step]
scheduler.step_epochs@step: {low: 2, high: 6, step: 2}
batch_size: [32, 64]
training.ema: [off, 0.99]
transforms.train: {choices: {nothing: [], flip: [RandomHorizontalFlip]}}
"""


def _raw(text):
    return yaml.safe_load(text) or {}


def _space(text=CONDITIONAL):
    return Space.read(_raw(text))


# ---- what is refused -------------------------------------------------------------------------------------------------

REFUSED_ENTRIES = {
    "empty": ("{}", "tune.space is empty: name options with [choices] or {low, high}, as params/tune.yaml does"),
    "unknown option": ("optimizer.lrr: [1]", "optimizer.lrr: unknown option 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
    "unknown option by its leaf": ("lr: [1]", "lr: unknown option 'lr'; did you mean 'optimizer.lr'?"),
    "section": ("training: [1]", "training: unknown option 'training'"),
    "data": ("data.image_size: [16, 32]", "data.image_size is not searched: trials are compared on the same data"),
    "seed": ("seed: [1, 2]", "seed is not searched: all trials share it"),
    "epochs": ("epochs: {low: 1, high: 9}", "epochs is not searched: trials are compared epoch by epoch"),
    "steps": ("training.max_steps: [5, 10]", "training.max_steps is not searched: trials are compared epoch by epoch"),
    "unknown key": ("optimizer.lr: {low: 0.1, hi: 1}", "optimizer.lr: unknown key 'hi'; did you mean 'high'?"),
    "nested options": ("optimizer: {lr: [1]}", "unknown key 'lr': an option has a line of its own, optimizer.lr: ..."),
    "plain value": ("optimizer: sgd", "optimizer: must be [choices] or {low, high}, got 'sgd'"),
    "choices and low": ("optimizer.lr: {choices: [1], low: 0}", "choices and low do not go together"),
    "no high": ("optimizer.lr: {low: 0.1}", "high missing: give choices, or low and high"),
    "only when": ("model: [small_cnn]\nloss.smoothing: {when: {model: small_cnn}}", "low and high missing"),
    "low above high": ("optimizer.lr: {low: 1, high: 0.1}", "low must be below high, got 1 and 0.1"),
    "low is high": ("optimizer.lr: {low: 1, high: 1.0}", "low and high are both 1, so there is nothing to search"),
    "log from 0": ("optimizer.weight_decay: {low: 0, high: 1, log: true}", "log needs low above 0, got 0"),
    "log and step": ("optimizer.lr: {low: 0.1, high: 1, log: true, step: 0.1}", "log and step=0.1 do not go together"),
    "log is no boolean": ("optimizer.lr: {low: 0.1, high: 1, log: 10}", "log must be true or false, got 10"),
    "step does not fit": (
        "loss.smoothing: {low: 0, high: 0.2, step: 0.15}",
        "does not lead from 0 to 0.2; the last value on it is 0.15",
    ),
    "step of 0": ("loss.smoothing: {low: 0, high: 0.2, step: 0}", "step must be a number above 0, got 0"),
    "step is text": ("loss.smoothing: {low: 0, high: 0.2, step: big}", "step must be a number above 0, got 'big'"),
    "broken step": ("scheduler.step_epochs: {low: 1, high: 4, step: 1.5}", "step must be a whole number above 0, got 1.5"),
    "broken bound": ("scheduler.step_epochs: {low: 1.5, high: 4}", "scheduler.step_epochs must be a whole number >= 1"),
    "bound is text": (
        "optimizer.lr: {low: little, high: 1}",
        "optimizer.lr must be a number > 0 and <= 100, or auto, got 'little'",
    ),
    "bound is a boolean": ("optimizer.lr: {low: true, high: 9}", "optimizer.lr must be a number > 0"),
    "bound is auto": ("optimizer.lr: {low: auto, high: 9}", "low must be a number, got 'auto'"),
    "bound is refused": (
        "optimizer.lr: {low: 0, high: 1}",
        "optimizer.lr: optimizer.lr must be a number > 0 and <= 100, or auto, got 0",
    ),
    "bound is infinite": (
        "optimizer.lr: {low: 1, high: .inf}",
        "optimizer.lr must be a number > 0 and <= 100, or auto, got inf",
    ),
    "range of names": ("optimizer: {low: 1, high: 2}", "takes no range, as it is no number: give choices"),
    "range of booleans": ("training.compile: {low: 0, high: 1}", "takes no range, as it is no number"),
    "no choices": ("optimizer: []", "optimizer: choices are empty: give one or more"),
    "choices are text": ("optimizer: {choices: sgd}", "choices must be a list, or {name: value}, got 'sgd'"),
    "a choice twice": ("batch_size: [32, 64, '32']", "batch_size: choices hold 32 twice"),
    "off twice": ("training.ema: [off, none]", "choices hold off twice"),
    "a preset twice": ("transforms.train: {choices: {a: [], b: []}}", "choices hold [] twice"),
    "lists without names": ("transforms.train: [[], [RandAugment]]", "gives each a name: {choices: {name: value, ...}}"),
    "a preset named off": ("transforms.train: {choices: {off: []}}", "the name False must be text: put it in quotes"),
    "refused number": ("loss.smoothing: [0.1, 1.5]", "loss.smoothing must be a number >= 0 and < 1, got 1.5"),
    "refused name": ("optimizer: [sgdd]", "unknown optimizer 'sgdd'; did you mean 'sgd'?"),
    "refused word": ("loss.reduction: [mean, summ]", "must be one of mean, sum, got 'summ'; did you mean 'sum'?"),
    "refused null": ("loss.smoothing: [null, 0.1]", "loss.smoothing must be a number >= 0 and < 1, got None"),
    "when is text": ("model: [a]\nloss.smoothing: {choices: [0], when: model}", "when must be {entry: [choices]}, got 'model'"),
    "when is empty": ("loss.smoothing: {choices: [0], when: {}}", "when must be {entry: [choices]}, got {}"),
    "when names nothing": (
        "model: [a]\nloss.smoothing: {choices: [0], when: {modl: [a]}}",
        "unknown entry in when 'modl'; did you mean 'model'?",
    ),
    "parent after child": (
        "loss.smoothing: {choices: [0], when: {model: [a]}}\nmodel: [a]",
        "loss.smoothing: when names model, which comes later: a parent must stand before its child",
    ),
    "its own parent": ("model: {choices: [a], when: {model: [a]}}", "a parent must stand before its child"),
    "when value unknown": (
        "optimizer: [sgd, adamw]\nloss.smoothing: {choices: [0], when: {optimizer: [adam]}}",
        "when needs optimizer=adam, which is not among its choices; did you mean 'adamw'?",
    ),
    "when without values": (
        "model: [a]\nloss.smoothing: {choices: [0], when: {model: []}}",
        "when lists no value of model: give one or more of one of a",
    ),
    "a range as parent": (
        "loss.smoothing: {low: 0, high: 0.1}\nmodel: {choices: [a], when: {loss.smoothing: [0]}}",
        "which is a range: only choices can be a parent",
    ),
    "suffix of nothing": (
        "optimizer.lr@sgd: [1]\noptimizer: [sgd]",
        "@sgd is a choice of no entry above it in its section: say when",
    ),
    "suffix of another section": (
        "scheduler: [step]\noptimizer.lr@step: [1]",
        "@step is a choice of no entry above it in its section",
    ),
    "suffix of two": (
        "model: [a, b]\noptimizer@x: {choices: [sgd], when: {model: a}}\n"
        "optimizer@y: {choices: [sgd], when: {model: b}}\noptimizer.lr@sgd: [1]",
        "@sgd is a choice of optimizer@x and optimizer@y: say when",
    ),
    "never active": (
        "model: [a, b]\noptimizer: {choices: [sgd], when: {model: a}}\n"
        "loss.smoothing: {choices: [0], when: {optimizer: sgd, model: b}}",
        "it can never be active: its parents need different values of model",
    ),
    "two at once": (
        "optimizer: [sgd, adamw]\noptimizer.lr: [1]\noptimizer.lr@sgd: [2]",
        "optimizer.lr@sgd: optimizer.lr can be active beside it: say `when` so that only one of them is",
    ),
    "two that overlap": (
        "optimizer: [sgd, adam, lion]\noptimizer.lr@sgd: [1]\noptimizer.lr@x: {choices: [2], when: {optimizer: [lion, sgd]}}",
        "optimizer.lr@sgd can be active beside it",
    ),
    "the same option by two names": ("model: [a]\nmodel.name: [b]", "model can be active beside it"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED_ENTRIES.values(), ids=REFUSED_ENTRIES)
def test_an_entry_that_cannot_be_is_one_line_with_the_rule(text, message):
    with pytest.raises(UserError) as caught:
        _space(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("tune.space")
    assert "\n" not in str(caught.value)


FIXED = (
    *("data.root", "tracking.uri", "checkpoint.keep", "promote.auto", "seed", "epochs", "folds", "device", "threads", "limit"),
    *("resume", "from_run", "performance", "fast_dev_run", "overfit_batches", "training.max_steps", "training.profile"),
    *("training.on_nan", "training.eval_batch_size", "loader.workers"),
)


@pytest.mark.parametrize("path", FIXED)
def test_what_makes_trials_incomparable_or_changes_nothing_is_not_searched(path):
    with pytest.raises(UserError, match=f"^tune.space: {path}: {path} is not searched: \\w+"):
        Space.read({path: [1, 2]})


REFUSED_CONFIGURATIONS = {
    "option of another choice": (
        "scheduler: [step, cosine]\nscheduler.gamma: {low: 0.1, high: 0.5}",
        "tune.space: scheduler.gamma has no effect with scheduler=cosine; it belongs to",
        "; give scheduler.gamma a `when` (tried scheduler=cosine, scheduler.gamma=0.1)",
    ),
    "option of another choice, on one of two parents": (
        "model: [small_cnn, mobilenetv3]\noptimizer: [sgd, adam]\n"
        "optimizer.momentum: {choices: [0.5], when: {model: [mobilenetv3]}}",
        "optimizer.momentum has no effect with optimizer=adam",
        "tried model=mobilenetv3, optimizer=adam, optimizer.momentum=0.5",
    ),
    "option without its switch": (
        "training.min_delta: {low: 0, high: 0.1}",
        "training.min_delta=0.1 has no effect without training.patience",
        "tried training.min_delta=0.1",
    ),
    "two options against each other": (
        "training.clip_norm: [off, 1.0]\ntraining.clip_value: [off, 0.1]",
        "training.clip_norm and training.clip_value do not go together",
        "tried training.clip_norm=1, training.clip_value=0.1",
    ),
    "high end": (
        "scheduler.warmup_epochs: {low: 1, high: 20}",
        "scheduler.warmup_epochs must be below epochs (12), got 20",
        "tried scheduler.warmup_epochs=20",
    ),
    "preset": (
        "transforms.train: {choices: {none: [], bad: [RandomAfine]}}",
        "unknown transform 'RandomAfine'; did you mean 'RandomAffine'?",
        "tried transforms.train=bad",
    ),
}


@pytest.mark.parametrize(("text", "message", "tried"), REFUSED_CONFIGURATIONS.values(), ids=REFUSED_CONFIGURATIONS)
def test_a_space_with_an_impossible_configuration_names_the_rule_and_the_assignment(text, message, tried):
    with pytest.raises(UserError) as caught:
        _space(text).check(TrainConfig())
    assert message in str(caught.value)
    assert tried in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- what is checked -------------------------------------------------------------------------------------------------


def test_the_check_meets_every_choice_and_both_ends_beside_each_value_of_the_parents():
    configs = _space().check(TrainConfig())
    seen = {(cfg.model.name, cfg.optimizer.name, cfg.optimizer.lr, cfg.optimizer.momentum) for cfg in configs}
    momenta = {momentum for model, name, lr, momentum in seen if name == "sgd"}
    rates = {(name, lr) for _, name, lr, _ in seen}
    nesterov = {cfg.optimizer.nesterov for cfg in configs if (cfg.model.name, cfg.optimizer.name) == ("small_cnn", "sgd")}
    assert {0.5, 0.95} <= momenta
    assert {("sgd", 1e-3), ("sgd", 1.0), ("adamw", 1e-4), ("adamw", 1e-2)} <= rates
    assert nesterov == {True, False}
    assert {cfg.training.ema for cfg in configs} == {None, 0.99}
    assert len({cfg.model_dump_json() for cfg in configs}) == len(configs) > 40, "distinct, draws included"


def test_the_number_of_checked_configurations_is_bounded(monkeypatch):
    monkeypatch.setattr(space_module, "_MAX_EXTREMES", 5)
    assert len(_space().check(TrainConfig())) <= 5 + 50


def test_the_check_draws_the_same_configurations_each_time():
    assert _space().check(TrainConfig()) == _space().check(TrainConfig())


@pytest.mark.parametrize("domain", [
    Range(1, 7, step=3), Range(2, 64, log=True), Range(1, 3), Range(0.1, 0.7, step=0.3), Range(1e-4, 1e-1, log=True),
    Range(-1.0, 1.0), Choices(("a", 1, False)),
], ids=str)  # fmt: skip
def test_a_draw_is_a_value_of_the_domain_and_reaches_all_of_it(domain):
    random = Random(1)
    draws = [domain.draw(random) for _ in range(300)]
    assert all(domain.holds(value) for value in draws)
    assert not isinstance(domain, Range) or not domain.is_whole or all(isinstance(value, int) for value in draws)
    if isinstance(domain, Choices) or domain.step:
        assert set(draws) >= set(domain.extremes)


# ---- what a trial suggests -------------------------------------------------------------------------------------------


def test_children_are_suggested_beside_their_parents_choice_only():
    values = {"model": "mobilenetv3", "optimizer": "adamw", "optimizer.lr@adamw": 0.002, "scheduler": "step",
              "scheduler.step_epochs@step": 4, "batch_size": 32, "training.ema": 0.99, "transforms.train": "flip"}  # fmt: skip
    others = {"optimizer.lr@sgd": 0.5, "optimizer.momentum@sgd": 0.9, "optimizer.nesterov@slow": True}
    assert _space().suggest(FixedTrial({**values, **others})) == values


def test_a_grandchild_needs_all_that_its_parents_need():
    space = _space("""
    model: [small_cnn, mobilenetv3]
    optimizer: {choices: [sgd, adamw], when: {model: [mobilenetv3]}}
    optimizer.lr@sgd: {low: 0.1, high: 1}
    """)
    assert space.suggest(FixedTrial({"model": "small_cnn", "optimizer": "sgd", "optimizer.lr@sgd": 0.5})) == {
        "model": "small_cnn"
    }
    assert space.to_dict()["optimizer.lr@sgd"]["when"] == {"model": ["mobilenetv3"], "optimizer": ["sgd"]}


def test_a_study_gives_one_name_one_distribution_and_only_configurations_that_can_be():
    space, study = _space(), optuna.create_study(sampler=optuna.samplers.TPESampler(seed=3, n_startup_trials=5))

    def objective(trial):
        assignment = space.suggest(trial)
        assert trial.params == assignment
        return space.config(TrainConfig(), assignment).batch_size

    study.optimize(objective, n_trials=25)
    by_name = {}
    for trial in study.trials:
        for name, distribution in trial.distributions.items():
            assert by_name.setdefault(name, distribution) == distribution
    assert set(by_name) == set(space.names)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer.lr: {low: 1e-4, high: '1', log: true}", optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)),
        ("loss.smoothing: {low: 0, high: 0.2, step: 0.1}", optuna.distributions.FloatDistribution(0.0, 0.2, step=0.1)),
        ("batch_size: {low: 16, high: 128, log: true}", optuna.distributions.IntDistribution(16, 128, log=True)),
        ("batch_size: {low: 32, high: 128, step: 32}", optuna.distributions.IntDistribution(32, 128, step=32)),
        ("batch_size: [32, '64', auto]", optuna.distributions.CategoricalDistribution((32, 64, "auto"))),
        ("optimizer.lr: [1e-3, 1]", optuna.distributions.CategoricalDistribution((1e-3, 1.0))),
        ("training.ema: {choices: [off, 0.9]}", optuna.distributions.CategoricalDistribution(("off", 0.9))),
        ("optimizer.nesterov: [on, off]", optuna.distributions.CategoricalDistribution((True, False))),
        ("loss.class_weights: [null, balanced]", optuna.distributions.CategoricalDistribution(("none", "balanced"))),
        ("transforms.train: {choices: {a: [], b: [RandAugment]}}", optuna.distributions.CategoricalDistribution(("a", "b"))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_entry_becomes_a_distribution_by_the_type_of_its_option(text, expected):
    trial = optuna.create_study().ask()
    (name,) = _space(text).suggest(trial)
    found = trial.distributions[name]
    assert found == expected
    if isinstance(expected, optuna.distributions.CategoricalDistribution):
        assert [type(value) for value in found.choices] == [type(value) for value in expected.choices]


def test_an_assignment_is_laid_over_as_options_with_presets_resolved():
    assignment = {"optimizer": "sgd", "optimizer.lr@sgd": 0.5, "training.ema": "off", "transforms.train": "flip"}
    assert _space().overrides(assignment) == {
        "optimizer": "sgd", "optimizer.lr": 0.5, "training.ema": "off", "transforms.train": ["RandomHorizontalFlip"],
    }  # fmt: skip
    base = override(TrainConfig(), {"optimizer.weight_decay": 0.3, "training.ema": 0.5, "epochs": 7})
    cfg = _space().config(base, assignment)
    assert (cfg.optimizer.name, cfg.optimizer.lr, cfg.optimizer.weight_decay) == ("sgd", 0.5, 5e-4), "sgd's own default"
    assert (cfg.training.ema, cfg.transforms.train, cfg.epochs) == (None, [{"RandomHorizontalFlip": {}}], 7)


def test_an_assignment_of_another_space_is_refused():
    with pytest.raises(
        UserError, match="unknown parameter of tune.space 'optimizer.lr@adam'; did you mean 'optimizer.lr@adamw'"
    ):
        _space().overrides({"optimizer.lr@adam": 0.1})


# ---- the first trial -------------------------------------------------------------------------------------------------


def _base(**values):
    return override(TrainConfig(), {"optimizer.lr": 0.004, **{key.replace("__", "."): value for key, value in values.items()}})


def test_the_implied_baseline_is_the_configuration_itself():
    base = _base(transforms__train=["RandomHorizontalFlip"], training__ema=0.99)
    found = _space().baseline(base, {})
    assert found == {"model": "mobilenetv3", "optimizer": "adamw", "optimizer.lr@adamw": 0.004, "scheduler": "onecycle",
                     "batch_size": 64, "training.ema": 0.99, "transforms.train": "flip"}  # fmt: skip
    assert _space().config(base, found) == base


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"batch_size": 32}, {"batch_size": 32}),
        ({"model.name": "small_cnn"}, {"model": "small_cnn"}),
        ({"optimizer.lr": "1e-3"}, {"optimizer.lr@adamw": 1e-3}),
        ({"optimizer.lr@adamw": 0.001}, {"optimizer.lr@adamw": 0.001}),
        ({"optimizer": "sgd"}, {"optimizer": "sgd", "optimizer.lr@sgd": 0.05, "optimizer.momentum@sgd": 0.9}),
        ({"optimizer": "sgd", "optimizer.lr": 0.5}, {"optimizer": "sgd", "optimizer.lr@sgd": 0.5}),
        ({"transforms.train": "flip"}, {"transforms.train": "flip"}),
        ({"transforms.train": [{"RandomHorizontalFlip": None}]}, {"transforms.train": "flip"}),
        ({"training.ema": 0.99}, {"training.ema": 0.99}),
    ],
    ids=str,
)
def test_what_is_given_is_laid_over_the_baseline(given, expected):
    found = _space().baseline(_base(), given)
    assert {name: found[name] for name in expected} == expected
    assert ("optimizer.lr@sgd" in found) == (found["optimizer"] == "sgd")


@pytest.mark.parametrize(
    ("base", "given", "message"),
    [
        (
            {"model": "resnet18"},
            {},
            "model is resnet18, which the space does not offer (one of small_cnn, mobilenetv3): widen it, "
            "set tune.baseline to {model: ...}, or tune.baseline to off",
        ),
        ({"optimizer__lr": 0.5}, {}, "optimizer.lr@adamw is 0.5, which the space does not offer (0.0001 to 0.01): widen it"),
        ({"optimizer": "lion"}, {}, "optimizer is lion, which the space does not offer"),
        (
            {"transforms__train": ["RandAugment"]},
            {},
            'transforms.train is [{"RandAugment": {}}], which the space does not offer (one of nothing, flip)',
        ),
        (
            {},
            {"optimizer": "sgd", "optimizer.momentum": 0.93},
            "optimizer.momentum@sgd is 0.93, which the space does not offer (0.5 to 0.95 in steps of 0.05)",
        ),
        ({}, {"batch_size": 48}, "batch_size is 48, which the space does not offer (one of 32, 64)"),
        ({}, {"batch_size": "many"}, "batch_size must be a whole number >= 2 and <= 65536, or auto (images), got 'many'"),
        ({}, {"optimizer": "sgdd"}, "unknown optimizer 'sgdd'; did you mean 'sgd'?"),
        ({}, {"transforms.train": "flop"}, "transforms.train must be a list, got 'flop'"),
        ({}, {"optimizer.lr@sgd": 0.5}, "optimizer.lr@sgd has no effect beside model=mobilenetv3, optimizer=adamw"),
        ({}, {"optimizer.momentum": 0.9}, "optimizer.momentum has no effect with optimizer=adamw"),
        (
            {},
            {"scheduler": "step", "scheduler.step_epochs@step": 4, "scheduler.step_epochs": 2},
            "scheduler.step_epochs is given twice",
        ),
        ({}, {"optimizer.rl": 0.5}, "'optimizer.rl' is not in tune.space; did you mean 'optimizer.lr'?"),
        ({}, {"loss.smoothing": 0.5}, "'loss.smoothing' is not in tune.space"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_a_baseline_outside_the_space_says_what_to_do(base, given, message):
    with pytest.raises(UserError) as caught:
        _space().baseline(_base(**base), given)
    assert str(caught.value).startswith("tune.baseline: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_baseline_can_be_enqueued_and_comes_back_as_it_is():
    space, study = _space(), optuna.create_study()
    base = _base()
    first = space.baseline(base, {"optimizer": "sgd", "optimizer.momentum": 0.85})
    study.enqueue_trial(first)
    study.enqueue_trial(first, skip_if_exists=True)
    assert len(study.trials) == 1
    assert space.suggest(study.ask()) == first


@pytest.mark.parametrize(
    ("domain", "value", "holds"),
    [
        (Range(1, 7, step=3), 4, True),
        (Range(1, 7, step=3), 5, False),
        (Range(0.0, 0.3, step=0.1), 0.1 + 0.2, False),
        (Range(0.0, 0.9, step=0.1), 0.1 + 0.2, True),
        (Range(0.0, 1.0), 1, True),
        (Range(0.0, 1.0), True, False),
        (Range(0.0, 1.0), "auto", False),
        (Range(0.0, 1.0), math.nan, False),
        (Choices(("a", 1)), "a", True),
        (Choices(("a", 1)), "b", False),
    ],
    ids=str,
)
def test_a_domain_knows_its_values(domain, value, holds):
    assert domain.holds(value) is holds


# ---- its canonical form ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("optimizer.lr: {low: 1e-3, high: 1}", "optimizer.lr: {low: 0.001, high: 1.0, log: false, step: null}"),
        ("optimizer: [sgd, adam]", "optimizer.name: {choices: [sgd, adam]}"),
        ("training.ema: [off, 0.9]", "training.ema: [null, '0.9']"),
        (
            "optimizer: [sgd]\noptimizer.lr@sgd: [1]",
            "optimizer: [sgd]\noptimizer.lr@sgd: {choices: [1.0], when: {optimizer: sgd}}",
        ),
        (
            "model: [a, b]\nbatch_size: {choices: [8], when: {model: [b, a]}}",
            "model: [a, b]\nbatch_size: {choices: [8], when: {model: [a, b]}}",
        ),
    ],
)
def test_spaces_that_are_the_same_have_one_form(one, other):
    assert json.dumps(_space(one).to_dict()) == json.dumps(_space(other).to_dict())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("batch_size: [32, 64]", "batch_size: [32, 64, 128]"),
        ("batch_size: [32, 64]", "batch_size: [64, 32]"),
        ("batch_size: {low: 32, high: 64}", "batch_size: {low: 32, high: 64, step: 8}"),
        ("optimizer.lr: {low: 0.1, high: 1}", "optimizer.lr: {low: 0.1, high: 1, log: true}"),
        ("transforms.train: {choices: {a: []}}", "transforms.train: {choices: {a: [RandAugment]}}"),
        ("model: [a, b]\nbatch_size@a: [8]", "model: [a, b]\nbatch_size@a: {choices: [8], when: {model: b}}"),
    ],
)
def test_spaces_that_differ_have_another_form(one, other):
    assert _space(one).to_dict() != _space(other).to_dict()


def test_the_names_stand_in_their_order():
    assert _space("optimizer.name: [sgd]\noptimizer.lr@sgd: [1]\nbatch_size: [8]").names == (
        "optimizer",
        "optimizer.lr@sgd",
        "batch_size",
    )
