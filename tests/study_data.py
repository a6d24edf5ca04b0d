"""Made-up studies: a conditional space, a third of the trials pruned, some failed, and a few of every other fate."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

START = datetime(2026, 3, 1, 12, 0, 0)
_RATES = {"sgd": (1e-3, 1.0), "adamw": (1e-5, 1e-1), "nadam": (1e-5, 1e-1), "ranger": (1e-4, 1e-1)}
_SPACE = {
    "model": CategoricalDistribution(("small_cnn", "resnet18", "mobilenet_v3_small")),
    "optimizer": CategoricalDistribution(tuple(_RATES)),
    **{f"optimizer.lr@{name}": FloatDistribution(low, high, log=True) for name, (low, high) in _RATES.items()},
    "optimizer.momentum": FloatDistribution(0.0, 0.99),
    "optimizer.nesterov": CategoricalDistribution((True, False)),
    "optimizer.weight_decay": FloatDistribution(1e-6, 1e-1, log=True),
    "scheduler": CategoricalDistribution(("none", "cosine", "step", "one_cycle")),
    "scheduler.gamma": FloatDistribution(0.05, 0.9),
    "scheduler.warmup_epochs": IntDistribution(0, 5),
    "batch_size": CategoricalDistribution((32, 64, 128, 256)),
    "loss.label_smoothing": FloatDistribution(0.0, 0.2, step=0.05),
}
_ONLY_WITH = {
    "optimizer.momentum": ("optimizer", "sgd"),
    "optimizer.nesterov": ("optimizer", "sgd"),
    "scheduler.gamma": ("scheduler", "step"),
    "scheduler.warmup_epochs": ("scheduler", "cosine"),
}


def make_study(trials=(), *, directions=("maximize",)):
    study = optuna.create_study(directions=list(directions))
    study.add_trials(trials)
    return study


def make_trial(value=None, *, state=TrialState.COMPLETE, second=None, params=None, **attrs):
    """A trial of one parameter; attributes are given with `__` for the dot."""
    params = {"optimizer.lr@sgd": 0.1} if params is None else params
    values = None if value is None else [value] if second is None else [value, second]
    return create_trial(
        state=state,
        values=values,
        params=params,
        distributions={name: _SPACE[name] for name in params},
        user_attrs={key.replace("__", "."): given for key, given in attrs.items()},
        intermediate_values={} if value is None else {1: value},
    )


def realistic(num_trials, *, epochs=9, seed=0, directions=("maximize",)):
    """A study as `tune` leaves it: with two directions, the second objective is the number of parameters."""
    draws = np.random.default_rng(seed)
    study = make_study(directions=directions)
    for number in range(num_trials):
        study.add_trial(_fate(number, draws, epochs, two=len(directions) > 1, loss=directions[0] == "minimize"))
    return study


def _fate(number, draws, epochs, *, two, loss):
    params = _draw(draws)
    final = _accuracy(params, draws)
    curve = np.maximum.accumulate(final * (1 - 0.6 * np.exp(-np.arange(1, epochs + 1) / 2)) + draws.normal(0, 0.004, epochs))
    fate = draws.random()
    state = TrialState.COMPLETE
    if number and fate < 0.05:
        state, curve = TrialState.FAIL, curve[:2]
    elif number > 2 and not two and final < 0.93 and fate < 0.75:
        state, curve = TrialState.PRUNED, curve[: int(draws.choice([1, 3, 6]))]
    values = [float(-np.log(value)) if loss else float(value) for value in curve]
    begin = START + timedelta(seconds=41 * (number // 2) + 3 * (number % 2))
    parameters = {"small_cnn": 93_322, "resnet18": 11_173_962, "mobilenet_v3_small": 1_528_106}[params["model"]]
    attrs = {
        "mlflow_run_id": f"{number:032x}", "data.digest": "d1", "epochs": len(values), "best_epoch": len(values),
        "val_accuracy": float(curve[-1]), "val_loss": float(-np.log(curve[-1])), "seconds": 4.0 * len(values),
        "restarts": int(fate > 0.97), "parameters": parameters,
    }  # fmt: skip
    if state == TrialState.PRUNED:
        attrs["reason"] = f"not among the best third after epoch {len(values)}"
    if state == TrialState.FAIL:
        attrs = {"error": "val_loss is not finite after epoch 2", "data.digest": "d1", "restarts": 0}
    final_values = [values[-1], float(parameters)] if two else [values[-1]]
    trial = create_trial(
        state=state,
        values=final_values if state != TrialState.FAIL else None,
        params=params,
        distributions={name: _SPACE[name] for name in params},
        user_attrs=attrs,
        intermediate_values={} if two else dict(enumerate(values, 1)),
    )
    trial.datetime_start, trial.datetime_complete = begin, begin + timedelta(seconds=4.0 * len(values))
    return trial


def _draw(draws):
    params = {}
    for name, distribution in _SPACE.items():
        parent, choice = _ONLY_WITH.get(name, ("optimizer", name.partition("@")[2]) if "@" in name else (None, None))
        if parent is None or params[parent] == choice:
            params[name] = _value(distribution, draws)
    return params


def _value(distribution, draws):
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[draws.integers(len(distribution.choices))]
    if isinstance(distribution, IntDistribution):
        return int(draws.integers(distribution.low, distribution.high + 1))
    if distribution.log:
        return float(np.exp(draws.uniform(np.log(distribution.low), np.log(distribution.high))))
    if distribution.step:
        return float(round(draws.integers(round(distribution.high / distribution.step) + 1) * distribution.step, 10))
    return float(draws.uniform(distribution.low, distribution.high))


def _accuracy(params, draws):
    rate = params[f"optimizer.lr@{params['optimizer']}"]
    wanted = {"sgd": -1.0, "adamw": -2.7, "nadam": -2.7, "ranger": -2.3}[params["optimizer"]]
    model = {"small_cnn": 0.0, "resnet18": 0.012, "mobilenet_v3_small": -0.01}[params["model"]]
    scheduler = 0.01 if params["scheduler"] != "none" else 0.0
    return float(
        np.clip(0.965 + model + scheduler - 0.05 * (np.log10(rate) - wanted) ** 2 + draws.normal(0, 0.004), 0.1, 0.995)
    )
