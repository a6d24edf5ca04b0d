"""The page of a study says what its table of trials says."""

import pytest
import yaml

from tests.report_data import Page, facts, put_pictures
from tests.study_data import make_study, realistic
from tracked_cls.report import study as report
from tracked_cls.tuning import table


@pytest.fixture(scope="module")
def study():
    return realistic(60)


@pytest.fixture
def folder(tmp_path, study):
    table.write(study, tmp_path / "trials.csv")
    put_pictures(tmp_path, "history.png", "importances.png")
    return tmp_path


def test_the_best_trials_are_ranked_as_the_study_ranks_them(folder, study):
    found = Page(report.page(facts(folder, "study", params={"tune.metric": "val_accuracy"})))
    rows = found.tables["Ranked by value"]
    ranked = table.ranked(study)
    assert rows[0][:3] == ["rank", "trial", "val_accuracy"]
    assert [row[:3] for row in rows[1:]] == [
        [str(place), str(trial.number), f"{trial.values[0]:.4f}"] for place, trial in enumerate(ranked[:20], 1)
    ]
    column = rows[0].index("optimizer")
    assert [row[column] for row in rows[1:]] == [str(trial.params["optimizer"]) for trial in ranked[:20]]
    assert f"The best 20 of {len(ranked)} complete trials; all are in trials.csv." in found.text
    assert f"Trial {ranked[0].number} is the best, with val_accuracy {ranked[0].values[0]:.4f}" in found.text


def test_the_top_counts_trials_by_what_became_of_them(folder, study):
    states = [table.state_name(trial) for trial in table.shown(study)]
    text = Page(report.page(facts(folder, "study"))).text
    assert f"{len(states)} trials (" in text
    for state in set(states):
        assert f"{states.count(state)} {state}" in text


def test_the_winner_its_finals_and_how_to_train_it_again(folder):
    (folder / "finals.csv").write_text("trial,seed,value,run_id\n7,11,0.98765,r1\n7,12,0.97,r2\n")
    tags = {"best.run": "ab" * 16, "best.optimizer.lr/sgd": "0.1", "optuna.study": "digits", "promotion.verdict": "kept"}
    metrics = {
        "test_accuracy": 0.991,
        "val_accuracy_mean": 0.98,
        "val_accuracy_std": 0.004,
        "best_value": 0.99,
        "best_trial": 7,
    }
    found = Page(report.page(facts(folder, "study", tags=tags, metrics=metrics, params={"tune.metric": "val_accuracy"})))
    assert found.tables["Finals, best first"] == [["trial", "seed", "value"], ["7", "11", "0.9877"], ["7", "12", "0.9700"]]
    assert found.facts["optimizer.lr/sgd"] == "0.1"
    assert "The winner of the finals labels 99.10 % of the test images right." in found.text
    assert f"-e train -P from_run={'ab' * 16}" in found.text
    assert "-e tune -P study=digits" in found.text
    assert len(found.images) == 2


def test_what_was_searched_is_that_of_the_configuration(folder):
    space = {
        "optimizer.lr@sgd": {"low": 0.001, "high": 1.0, "log": True, "when": {"optimizer": ["sgd"]}},
        "batch_size": {"choices": [32, 64]},
        "optimizer": ["sgd", "adamw"],
        "transforms.train": {"choices": {"none": [], "usual": ["RandAugment"]}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({"tune": {"space": space}}))
    found = Page(report.page(facts(folder, "study")))
    assert dict(found.tables["Options and their ranges"][1:]) == {
        "optimizer.lr@sgd": '0.001 to 1.0, log, when {"optimizer": ["sgd"]}',
        "batch_size": "32, 64",
        "optimizer": "sgd, adamw",
        "transforms.train": "none, usual",
    }


@pytest.mark.parametrize(
    "config",
    ["tune: 3", "tune: {space: [1]}", "{", "", "!!python/object/apply:os.getcwd []"],
    ids=["no", "list", "bad", "", "code"],
)
def test_a_configuration_without_a_space_shows_none(folder, config):
    (folder / "config.yaml").write_text(config)
    assert "Options and their ranges" not in Page(report.page(facts(folder, "study"))).tables


def test_failures_are_told_with_their_reason(folder, study):
    rows = Page(report.page(facts(folder, "study"))).tables["What went wrong"][1:]
    failed = [trial for trial in table.shown(study) if table.state_name(trial) in ("failed", "killed")]
    assert [row[:2] for row in rows] == [[str(trial.number), table.state_name(trial)] for trial in failed[:20]]


def test_a_study_that_has_just_begun_has_a_page(tmp_path):
    table.write(make_study(), tmp_path / "trials.csv")
    found = Page(report.page(facts(tmp_path, "study", status="RUNNING")))
    assert "No trial has ended yet." in found.text
    assert "running" in found.text


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "trials.csv").write_text("a,b\n1,2\n")
    found = Page(report.page(facts(tmp_path, "study")))
    assert "trials.csv: column 'trial' is missing" in found.text
