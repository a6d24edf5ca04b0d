"""The trials of a study as a table, and which of them is the best."""

from __future__ import annotations

import csv

import pytest
from optuna.trial import TrialState
from study_data import make_study, make_trial, realistic

from tracked_cls.tuning import table

FAIL, PRUNED, RUNNING, WAITING = TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING


def over_a_limit(value):
    trial = make_trial(value)
    trial.set_constraint("parameters", 5.0)
    return trial


def at_a_limit(value):
    trial = make_trial(value)
    trial.set_constraint("parameters", 0.0)
    return trial


def numbers(study, **options):
    return [trial.number for trial in table.ranked(study, **options)]


def column(study, name):
    header, rows = table.rows(study)
    return [row[header.index(name)] for row in rows]


# ---- the order -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "order"), [("maximize", [1, 2, 0]), ("minimize", [0, 2, 1])])
def test_the_best_comes_first_in_either_direction(direction, order):
    assert numbers(make_study([make_trial(0.1), make_trial(0.9), make_trial(0.5)], directions=[direction])) == order


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_of_equal_values_the_higher_upper_accuracy_is_better_then_the_lower_number(direction):
    uppers = (float("nan"), 0.4, None, 0.4, 0.3)
    trials = [make_trial(0.9, **({} if value is None else {"val_accuracy_upper": value})) for value in uppers]
    assert numbers(make_study(trials, directions=[direction])) == [1, 3, 4, 0, 2]


@pytest.mark.parametrize(
    "other",
    [make_trial(0.99, state=PRUNED), make_trial(state=FAIL, error="x"), make_trial(state=RUNNING), over_a_limit(0.99)],
    ids=["pruned", "failed", "running", "over a limit"],
)
def test_only_complete_trials_within_the_limits_have_a_rank(other):
    assert numbers(make_study([other, make_trial(0.5), at_a_limit(0.6)])) == [2, 1]


def test_trials_of_other_data_are_left_out_where_the_data_are_named():
    study = make_study([make_trial(0.9, data__digest="old"), make_trial(0.5, data__digest="new"), make_trial(0.6)])
    assert numbers(study, data_digest="new") == [1]
    assert numbers(study) == [0, 2, 1]
    header, rows = table.rows(study, "new")
    assert [row[header.index("rank")] for row in rows] == [None, 1, None]


def test_of_two_objectives_the_first_decides():
    study = make_study([make_trial(0.5, second=1.0), make_trial(0.9, second=9.0)], directions=["maximize", "minimize"])
    assert numbers(study) == [1, 0]


# ---- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trial", "word"),
    [
        (make_trial(0.5), "complete"),
        (make_trial(0.5, state=PRUNED), "pruned"),
        (make_trial(state=FAIL, error="out of memory"), "failed"),
        (make_trial(state=FAIL), "killed"),
        (make_trial(state=RUNNING), "running"),
        (make_trial(state=WAITING), "waiting"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_states_are_words(trial, word):
    assert column(make_study([trial]), "state") == [word]


def test_a_void_trial_is_no_row():
    study = make_study([make_trial(0.5), make_trial(state=FAIL, void=True), make_trial(0.6)])
    assert column(study, "trial") == [0, 2]


def test_an_option_that_a_trial_had_no_use_for_is_empty():
    sgd = make_trial(0.5, params={"optimizer": "sgd", "optimizer.lr@sgd": 0.1, "optimizer.nesterov": True})
    adamw = make_trial(0.6, params={"model": "resnet18", "optimizer": "adamw", "optimizer.lr@adamw": 0.001})
    header, rows = table.rows(make_study([sgd, adamw]))
    assert header[-5:] == ["optimizer", "optimizer.lr@sgd", "optimizer.nesterov", "model", "optimizer.lr@adamw"]
    assert [row[-5:] for row in rows] == [["sgd", 0.1, "true", None, None], ["adamw", None, None, "resnet18", 0.001]]


@pytest.mark.parametrize(("value", "written"), [(None, "null"), (True, "true"), (0, 0), (0.5, 0.5), ("none", "none")])
def test_values_read_as_in_yaml(value, written):
    assert table.plain(value) == written
    assert type(table.plain(value)) is type(written)


def test_costs_are_columns_where_any_trial_has_them():
    assert "parameters" not in table.rows(make_study([make_trial(0.5)]))[0]
    assert column(make_study([make_trial(0.5), make_trial(0.6, parameters=93_322)]), "parameters") == [None, 93_322]


def test_results_ranks_and_reasons_are_in_their_columns():
    known = {
        "val_accuracy": 0.5,
        "val_accuracy_upper": 0.25,
        "val_loss": 1.5,
        "epochs": 9,
        "best_epoch": 7,
        "seconds": 3.5,
        "restarts": 1,
    }
    study = make_study([
        make_trial(0.5, mlflow_run_id="abc", **known),
        make_trial(state=FAIL, error="line one\n  line two \udcff"),
        make_trial(0.4, state=PRUNED, reason="slow"),
        make_trial(0.7),
    ])  # fmt: skip
    assert column(study, "rank") == [2, None, None, 1]
    assert column(study, "value") == [0.5, None, 0.4, 0.7]
    assert column(study, "run_id") == ["abc", None, None, None]
    assert column(study, "reason") == [None, "line one line two \\udcff", "slow", None]
    assert {name: column(study, name)[0] for name in known} == known


def test_a_table_is_written_and_the_same_each_time(tmp_path):
    study = realistic(30)
    table.write(study, tmp_path / "tables" / "trials.csv")
    table.write(study, tmp_path / "again.csv")
    text = (tmp_path / "tables" / "trials.csv").read_text(encoding="utf-8")
    assert text == (tmp_path / "again.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert [int(row["trial"]) for row in rows] == list(range(30))
    assert {row["state"] for row in rows} == {"complete", "pruned", "failed"}


def test_a_study_without_trials_is_a_header():
    header, rows = table.rows(make_study())
    assert header[:4] == ["trial", "state", "rank", "value"]
    assert rows == []
