"""Samplers that a stop does not disturb, and pruners with the arguments the options promise."""

import warnings

import optuna
import pytest
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import TrialState

from tests.postgres_server import postgres, postgres_server  # noqa: F401
from tracked_cls.config import TuneConfig
from tracked_cls.config.tuning import PrunerConfig, SamplerConfig
from tracked_cls.errors import UserError
from tracked_cls.processes import Process
from tracked_cls.tuning.claims import hand_back
from tracked_cls.tuning.sampling import make_pruner, make_sampler
from tracked_cls.tuning.storage import open_storage

TRIALS = 9


class Stop(BaseException):
    """A worker is interrupted."""


@pytest.fixture
def address(request):
    """The storage of a study: None is the journal."""
    return request.getfixturevalue("postgres") if request.param == "postgres" else None


@pytest.fixture
def storage(address, tmp_path):
    """An open storage."""
    tracking = {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    return open_storage(TuneConfig.model_validate({"tune": {"storage": address}, "tracking": tracking}), "s")


def _open(storage, name, cfg, seed):
    """Return a study as a new process sees it: its sampler knows nothing yet."""
    return optuna.create_study(storage=storage, study_name=name, sampler=make_sampler(cfg, seed), load_if_exists=True)


def _values(trial):
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adamw"])
    lr = trial.suggest_float(f"lr@{optimizer}", 1e-5, 1, log=True)
    momentum = trial.suggest_float("momentum", 0, 1) if optimizer == "sgd" else 0.5
    return (lr - 0.01) ** 2 + momentum, trial.suggest_int("batch", 1, 9)


def _run_all(storage, name, cfg, stops=(), amid=(), seed=3):
    """Return the values of all trials; the worker is interrupted in some, and another takes over."""
    study = _open(storage, name, cfg, seed)
    pending, torn = set(stops), set(amid)

    def objective(trial):
        trial.set_user_attr("owner", str(Process.me()))
        if trial.number in torn:
            torn.remove(trial.number)
            trial.suggest_categorical("optimizer", ["sgd", "adamw"])
            raise Stop
        first, second = _values(trial)
        if trial.number in pending:
            pending.remove(trial.number)
            raise Stop
        return first + second

    while len(study.get_trials(states=(TrialState.COMPLETE,))) < TRIALS:
        try:
            study.optimize(objective, n_trials=1)
        except Stop:
            hand_back(study, storage, study.get_trials(states=(TrialState.RUNNING,))[0].number)
            study = _open(storage, name, cfg, seed)
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize(
    ("address", "name", "amid"),
    [
        ("journal", "tpe", [2, 6]),
        ("postgres", "tpe", [2, 6]),
        ("journal", "random", [2, 6]),
        ("journal", "gp", [2]),  # it takes values it drew itself, before a kill amid its draws, for another worker's
    ],
    indirect=["address"],
)
def test_a_study_that_was_stopped_draws_the_same_values_as_one_that_was_not(storage, name, amid):
    cfg = SamplerConfig(name=name) if name == "random" else SamplerConfig(name=name, startup_trials=4)
    plain = _run_all(storage, "plain", cfg)
    stopped = _run_all(storage, "stopped", cfg, stops=[1, 5, 8], amid=amid)
    assert stopped == plain
    assert len({tuple(sorted(params.items())) for params in plain}) == TRIALS, "no trial repeats another"


@pytest.mark.parametrize("address", ["journal"], indirect=True)
def test_seeds_make_different_studies(storage):
    cfg = SamplerConfig(name="random")
    assert _run_all(storage, "a", cfg, seed=1) != _run_all(storage, "b", cfg, seed=2)


def test_workers_that_start_together_draw_different_first_trials():
    studies = optuna.create_study(sampler=make_sampler(SamplerConfig(), 3))
    first, second = (studies.ask() for _ in range(2))
    assert first.suggest_float("x", 0, 1) != second.suggest_float("x", 0, 1)


def test_values_of_one_trial_are_drawn_apart():
    trial = optuna.create_study(sampler=make_sampler(SamplerConfig(), 3)).ask()
    assert trial.suggest_float("x", 0, 1) != trial.suggest_float("y", 0, 1)


def test_a_sampler_learns_after_its_first_trials():
    study = optuna.create_study(sampler=make_sampler(SamplerConfig(startup_trials=5), 3))
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 100) - 70) ** 2, n_trials=20)
    late = [abs(trial.params["x"] - 70) for trial in study.trials[10:]]
    assert sum(late) / len(late) < 15, "33 at random"


def test_nothing_is_said_about_optunas_own_plans(recwarn):
    warnings.simplefilter("always")
    for name in ("tpe", "random", "gp"):
        make_sampler(SamplerConfig(name=name), 3)
    for name in ("successive_halving", "hyperband", "median", "none"):
        make_pruner(PrunerConfig(name=name), epochs=27, warmup_epochs=0)
    assert not recwarn.list


# ---- pruners ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "epochs", "warmup", "first"),
    [
        ({}, 27, 0, 3),
        ({}, 5, 0, 1),
        ({}, 27, 5, 6),
        ({}, 27, 0.5, 3),
        ({}, 27, 4.2, 6),
        ({"min_epochs": 2}, 27, 5, 2),
        ({"name": "hyperband"}, 27, 0, 3),
        ({"name": "hyperband", "min_epochs": 5}, 27, 0, 5),
        ({"name": "median"}, 27, 0, 6),
        ({"name": "median"}, 27, 7.5, 9),
        ({"name": "median"}, 3, 0, 1),
        ({"name": "median", "min_epochs": 4}, 27, 0, 4),
    ],
)
def test_no_trial_ends_before_the_first_epoch_of_the_pruner(options, epochs, warmup, first):
    """By what a study does, not by its fields: a hopeless trial after many good ones."""
    pruner = make_pruner(PrunerConfig(**options), epochs=epochs, warmup_epochs=warmup)
    study = optuna.create_study(study_name="s", direction="maximize", pruner=pruner)
    for _ in range(30):
        good = study.ask()
        for epoch in range(1, epochs + 1):
            good.report(0.9, epoch)
            good.should_prune()
        study.tell(good, 0.9)
    assert min(_end(study, epochs) for _ in range(20)) == first  # hyperband starts its brackets at several epochs


def _end(study, epochs):
    trial = study.ask()
    for epoch in range(1, epochs + 1):
        trial.report(0.1, epoch)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return epoch
    study.tell(trial, 0.1)
    return epochs + 1


@pytest.mark.parametrize(
    ("options", "kind", "fields"),
    [
        ({}, SuccessiveHalvingPruner, {"_min_resource": 3, "_reduction_factor": 3}),
        ({"reduction_factor": 4}, SuccessiveHalvingPruner, {"_reduction_factor": 4}),
        ({"name": "hyperband", "reduction_factor": 2}, HyperbandPruner, {"_max_resource": 27, "_reduction_factor": 2}),
        ({"name": "median"}, MedianPruner, {"_n_startup_trials": 5}),
        ({"name": "median", "startup_trials": 8}, MedianPruner, {"_n_startup_trials": 8}),
        ({"name": "none"}, NopPruner, {}),
    ],
)
def test_a_pruner_gets_its_options(options, kind, fields):
    pruner = make_pruner(PrunerConfig(**options), epochs=27, warmup_epochs=0)
    assert type(pruner) is kind
    assert {key: getattr(pruner, key) for key in fields} == fields


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (3, 3), (3, 2)])
def test_trials_too_short_to_be_pruned_are_not(epochs, warmup):
    assert isinstance(make_pruner(PrunerConfig(), epochs=epochs, warmup_epochs=warmup), NopPruner)


@pytest.mark.parametrize("name", ["successive_halving", "hyperband", "median"])
def test_a_pruner_that_could_never_prune_is_refused(name):
    with pytest.raises(UserError, match="tune.pruner.min_epochs must be below epochs=5, got 5: no trial would ever end early"):
        make_pruner(PrunerConfig(name=name, min_epochs=5), epochs=5, warmup_epochs=0)
