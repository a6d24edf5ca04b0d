"""Pictures of a study: which of them there are, and that no study is too odd to draw."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image
from study_data import START, make_study, make_trial, realistic

from tracked_cls.plots import options
from tracked_cls.plots import study as drawn
from tracked_cls.plots.study import Parameter
from tracked_cls.tuning import pictures

SINGLE = {"history", "timeline", "intermediate_values", "slice", "parallel_coordinate"}
TWO = ("maximize", "minimize")
LR = {"optimizer.lr@sgd": 0.1}


def names(study, folder, **options):
    return {path.stem for path in pictures.write(study, folder, **{"metric": "val_accuracy", **options})}


def captured(study, monkeypatch, tmp_path, module, name, **options):
    """Return the Search that one picture is drawn from."""
    got = []
    for place in (drawn, options):
        for other in ("history", "timeline", "intermediate_values", "slices", "parallel_coordinate"):
            if hasattr(place, other):
                monkeypatch.setattr(place, other, lambda search, path: None)
    monkeypatch.setattr(module, name, lambda search, path: got.append(search))
    pictures.write(study, tmp_path, **{"metric": "val_accuracy", **options})
    return got[0]


def add_many(count, value=0.5, **kinds):
    return make_study([make_trial(value, params={"optimizer.lr@sgd": 0.001 * (n + 1)}) for n in range(count)], **kinds)


# ---- which pictures there are ----------------------------------------------------------------------------------------


def test_a_study_is_drawn_in_small_files_that_are_pictures(tmp_path):
    study = realistic(60)
    paths = pictures.write(study, tmp_path / "plots", metric="val_accuracy")
    assert {path.stem for path in paths} == SINGLE | {"importances"}
    assert set((tmp_path / "plots").iterdir()) == set(paths)
    for path in paths:
        assert path.stat().st_size < 300_000
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width > 600
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20


@pytest.mark.parametrize(("count", "there"), [(19, False), (20, True)])
def test_importances_are_drawn_from_20_complete_trials_on(tmp_path, count, there):
    study = make_study([make_trial(0.01 * number) for number in range(count)])
    study.add_trials([make_trial(0.1, state=TrialState.PRUNED), make_trial(state=TrialState.FAIL, error="x")])
    assert ("importances" in names(study, tmp_path)) == there
    assert (tmp_path / "importances.png").exists() == there


def test_two_objectives_have_a_pareto_front_and_no_intermediate_values(tmp_path):
    study = make_study([make_trial(0.01 * n, second=float(n + 1)) for n in range(20)], directions=TWO)
    there = names(study, tmp_path, minimize="parameters")
    assert there == SINGLE - {"intermediate_values"} | {"pareto_front", "importances"}


_ONE_CHOICE = create_trial(
    value=0.5, params={"model": "$x$ 漢_{"}, distributions={"model": CategoricalDistribution(("$x$ 漢_{",))}
)


@pytest.mark.parametrize(
    ("study", "expected"),
    [
        (make_study(), set()),
        (make_study([make_trial(0.5)]), {"history", "timeline", "intermediate_values"}),
        (make_study([make_trial(state=TrialState.FAIL, error="x")] * 3), {"timeline"}),
        (make_study([make_trial(state=TrialState.FAIL, void=True)]), set()),
        (make_study([make_trial(state=TrialState.WAITING)]), set()),
        (make_study([make_trial(state=TrialState.RUNNING)]), {"timeline"}),
        (make_study([make_trial(0.5, state=TrialState.PRUNED)] * 2), {"history", "timeline", "intermediate_values"}),
        (add_many(3), SINGLE),
        (add_many(25), SINGLE),
        (add_many(3, value=0.0), SINGLE),
        (make_study([make_trial(0.5, params={}), make_trial(0.6, params={})]), SINGLE - {"slice", "parallel_coordinate"}),
        (make_study([make_trial(0.5, params={"model": "resnet18"}), make_trial(0.6), make_trial(0.7)]), SINGLE),
        (make_study([_ONE_CHOICE, _ONE_CHOICE]), SINGLE - {"intermediate_values"}),
        (make_study([make_trial(0.5), make_trial(1e9), make_trial(float("inf"))], directions=["minimize"]), SINGLE),
    ],
    ids=[
        "none", "one", "failed", "void", "waiting", "running", "pruned", "equal", "equal and many", "all zero", "no options",
        "an option used once", "one choice of odd letters", "diverged",
    ],
)  # fmt: skip
def test_odd_studies_are_drawn_as_far_as_they_go(tmp_path, study, expected):
    assert names(study, tmp_path) == expected


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_young_study_of_two_objectives_is_drawn(tmp_path, count):
    trials = [make_trial(0.5, second=2.0)] * count + [make_trial(state=TrialState.FAIL, error="x")]
    assert ("pareto_front" in names(make_study(trials, directions=TWO), tmp_path, minimize="flops")) == (count > 0)


def test_trials_that_are_all_over_a_limit_are_drawn(tmp_path):
    study = make_study()
    for value in (0.5, 0.6, 0.7):
        trial = make_trial(value)
        trial.set_constraint("parameters", 1.0)
        study.add_trial(trial)
    assert names(study, tmp_path) == SINGLE


def test_a_range_of_one_value_is_drawn(tmp_path):
    space = {"a": FloatDistribution(0.5, 0.5), "b": FloatDistribution(1e-3, 1e-3, log=True)}
    trials = [create_trial(value=value, params={"a": 0.5, "b": 1e-3}, distributions=space) for value in (0.1, 0.2)]
    assert names(make_study(trials), tmp_path) == SINGLE - {"intermediate_values"}


def test_of_very_many_options_those_are_drawn_that_most_trials_used(tmp_path, monkeypatch):
    space = {f"transforms.augmentation.option{n}": FloatDistribution(0, 1) for n in range(60)}
    some = list(space)[30:]
    trials = [create_trial(value=v, params=dict.fromkeys(space, v), distributions=space) for v in (0.1, 0.5)]
    trials.append(create_trial(value=0.9, params=dict.fromkeys(some, 0.9), distributions={name: space[name] for name in some}))
    search = captured(make_study(trials), monkeypatch, tmp_path, options, "slices")
    monkeypatch.undo()
    assert [parameter.name for parameter in options._most_used(search, 24)] == some[:24]
    options.parallel_coordinate(search, tmp_path / "parallel.png")
    with Image.open(tmp_path / "parallel.png") as picture:
        assert 1500 < picture.width < 2500


@pytest.mark.slow
def test_a_hundred_trials_take_less_than_ten_seconds(tmp_path):
    study, begin = realistic(100), time.process_time()
    pictures.write(study, tmp_path, metric="val_accuracy")
    assert time.process_time() - begin < 10


def test_nothing_of_matplotlib_is_left_changed(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    pictures.write(add_many(3), tmp_path, metric="val_accuracy")
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


# ---- what is in them -------------------------------------------------------------------------------------------------


def test_the_best_is_the_first_in_rank_and_named_options_are_renamed(tmp_path, monkeypatch):
    study = make_study([make_trial(0.9, data__digest="old"), make_trial(0.5, data__digest="new"), make_trial(0.4)])
    given = {"names": {"optimizer.lr@sgd": "rate", "val_accuracy": "accuracy"}, "data_digest": "new"}
    search = captured(study, monkeypatch, tmp_path, drawn, "history", **given)
    assert search.best == {1}
    assert [parameter.label for parameter in search.parameters] == ["rate"]
    assert [(objective.name, objective.maximize) for objective in search.objectives] == [("accuracy", True)]


def test_choices_are_places_and_ranges_are_as_wide_as_any_trial_had_them(tmp_path, monkeypatch):
    flag = CategoricalDistribution((None, True, False))
    ranges = [FloatDistribution(0.01, 0.1, log=True), FloatDistribution(0.001, 0.05, log=True)]
    trials = [
        create_trial(value=0.5, params={"flag": None, "lr": 0.02}, distributions={"flag": flag, "lr": ranges[0]}),
        create_trial(value=0.6, params={"flag": False, "lr": 0.03}, distributions={"flag": flag, "lr": ranges[1]}),
    ]
    search = captured(make_study(trials), monkeypatch, tmp_path, options, "slices")
    assert search.parameters == [
        Parameter("flag", "flag", choices=("null", "true", "false")),
        Parameter("lr", "lr", 0.001, 0.1, log=True),
    ]
    assert [mark.params for mark in search.marks] == [{"flag": 0.0, "lr": 0.02}, {"flag": 2.0, "lr": 0.03}]


def test_one_option_with_a_range_for_each_choice_stays_together(tmp_path, monkeypatch):
    orders = (["optimizer.lr@sgd", "batch_size"], ["optimizer.lr@adamw", "batch_size"])
    values = {"optimizer.lr@sgd": 0.1, "optimizer.lr@adamw": 0.01, "batch_size": 32}
    trials = [make_trial(0.5, params={name: values[name] for name in order}) for order in orders]
    search = captured(make_study(trials), monkeypatch, tmp_path, options, "slices")
    assert [parameter.name for parameter in search.parameters] == ["optimizer.lr@sgd", "optimizer.lr@adamw", "batch_size"]


def test_times_count_from_the_first_trial_and_a_running_one_lasts_until_now(tmp_path, monkeypatch):
    done, running = make_trial(0.5), make_trial(state=TrialState.RUNNING)
    done.datetime_start, done.datetime_complete = START, START + timedelta(seconds=30)
    running.datetime_start, running.datetime_complete = START + timedelta(seconds=10), None
    search = captured(make_study([done, running]), monkeypatch, tmp_path, drawn, "timeline")
    assert [mark.span for mark in search.marks] == [(0.0, 30.0), (10.0, 30.0)]


def test_a_pruned_trial_without_a_value_has_its_last_report(tmp_path, monkeypatch):
    pruned = create_trial(state=TrialState.PRUNED, intermediate_values={2: 0.4, 1: 0.3})
    search = captured(make_study([pruned]), monkeypatch, tmp_path, drawn, "history")
    assert search.marks[0].values == (0.4,)


@pytest.mark.parametrize(
    ("values", "maximize", "limits"),
    [
        ([0.1, 0.9, 0.92, 0.94], True, (0.79, 0.94)),
        ([0.8, 0.9, 0.92], True, (0.82, 0.92)),
        ([0.1, 0.2, 0.3, 1e6], False, (0.1, 0.85)),
        ([0.1, 0.12, 0.11], False, (0.1, 0.12)),
        ([0.5, 0.5, 0.5], True, (0.5, 0.5)),
        ([float("nan"), float("inf")], False, (0.0, 1.0)),
    ],
)
def test_one_trial_that_went_astray_does_not_press_the_others_together(values, maximize, limits):
    assert drawn._robust(values, maximize=maximize) == pytest.approx(limits)


def test_a_night_between_two_sessions_is_cut_short():
    breaks = drawn._breaks([(0, 100), (50, 200), (205, 300), (50_300, 50_400)])
    assert breaks == [(50_300, pytest.approx(50_000 - 0.03 * 395))]
    assert drawn._shortened(299, breaks) == 299
    assert drawn._shortened(50_400, breaks) == pytest.approx(400 + 0.03 * 395)
    assert drawn._breaks([(0, 0), (5, 5)]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.95321, "0.9532"),
        (1e-5, "1e-5"),
        (1e-4, "1e-4"),
        (0.001, "0.001"),
        (11_173_962, "11.2M"),
        (1e6, "1M"),
        (0, "0"),
        (-2, "-2"),
    ],
)
def test_numbers_are_written_short(value, text):
    assert drawn._short(value) == text


# ---- importances -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_what_decides_is_the_most_important(direction):
    draws, study = np.random.default_rng(0), make_study(directions=[direction])
    space = {"lr": FloatDistribution(0, 1), "noise": FloatDistribution(0, 1), "kind": CategoricalDistribution(("a", "b"))}
    for _ in range(80):
        params = {"lr": float(draws.random()), "noise": float(draws.random()), "kind": "ab"[draws.integers(2)]}
        study.add_trial(create_trial(value=(params["lr"] - 0.3) ** 2, params=params, distributions=space))
    shares = pictures.importances(study)
    assert next(iter(shares)) == "lr"
    assert sum(shares.values()) == pytest.approx(1)
    assert all(type(share) is float for share in shares.values())


@pytest.mark.parametrize(
    "trials",
    [[], [make_trial(0.5)], [make_trial(0.5)] * 30, [make_trial(0.5, params={}), make_trial(0.6, params={})]],
    ids=["no trial", "one", "equal values", "no options"],
)
def test_there_are_no_importances_of_nothing(trials):
    assert pictures.importances(make_study(trials)) == {}


def test_options_under_a_condition_have_importances_too(recwarn):
    study = realistic(60)
    assert "scheduler.gamma" in pictures.importances(study)
    assert "optimizer.lr@sgd" in pictures.importances(realistic(30, directions=TWO))
    assert not [warning for warning in recwarn if "Importance" in str(warning.message)]


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
