"""A whole search, on small images: what it leaves in MLflow and Optuna, and what comes of it when it is begun again."""

import csv
import gc
import json
import shutil
import sqlite3
import weakref
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import yaml
from mlflow import MlflowClient
from optuna.trial import TrialState

from tests.conftest import PARAMS, do
from tests.postgres_server import PASSWORD, postgres, postgres_server  # noqa: F401
from tracked_cls import experiment, pipeline
from tracked_cls.config import TrainConfig, TuneConfig, load
from tracked_cls.errors import Interrupted, StopRun, UserError
from tracked_cls.state import TrainState
from tracked_cls.tracking import config_of_run, open_tracker
from tracked_cls.tuning import campaign, finals, storage, trials, workers
from tracked_cls.tuning.study import open_search
from tracked_cls.tuning.table import ranked

SPACE = {
    "optimizer": ["sgd", "adamw"],
    "optimizer.lr@sgd": {"low": 0.01, "high": 0.3, "log": True},
    "optimizer.lr@adamw": {"low": 0.0005, "high": 0.02, "log": True},
    "scheduler": ["onecycle", "cosine", "constant"],
    "loss.smoothing": {"low": 0.0, "high": 0.2},
}


def words(home, **options):
    """Return the words of a small search on the digits, in a store of its own folder."""
    given = {
        "model": "small_cnn", "data.image_size": 8, "epochs": 3, "threads": 1, "transforms.train": [], "tune.trials": 5,
        "tune.finalists": 2, "tune.finalist_seeds": 3, "tune.space": SPACE, "tracking.uri": f"sqlite:///{home / 'mlflow.db'}",
        "tracking.pictures": False, "checkpoint.max_cost": 1,
        **{key.replace("__", "."): value for key, value in options.items()},
    }  # fmt: skip
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}
    return [*PARAMS, *(word for key, text in texts.items() for word in (f"--{key}", text))]


def tune(home, **options):
    return do(campaign.run, TuneConfig, words(home, **options))


def study_of(home, **options):
    cfg = load(TuneConfig, words(home, **options))
    name = cfg.tune.study or "digits"
    return optuna.load_study(study_name=name, storage=storage.open_storage(cfg, name))


def told(study):
    """Return what must be the same in two studies that took the same way."""
    return [
        (t.number, t.state.name, t.params, t.values, t.intermediate_values, t.user_attrs.get("weights.digest"))
        for t in study.get_trials(deepcopy=False)
    ]


QUICK = {"epochs": 1, "tune__finalists": 1, "tune__finalist_seeds": 1, "tune__baseline": "off", "tune__pruner": "none"}


@pytest.fixture
def ready(home, trained, tmp_path):
    """A folder with a tracking store: a copy of the session's, for making one takes seconds.

    Made by sqlite: whoever opens and closes its file otherwise takes all locks from the process that has it open.
    """
    with closing(sqlite3.connect(home / "mlflow.db")) as source, closing(sqlite3.connect(tmp_path / "mlflow.db")) as copy:
        source.backup(copy)
    return tmp_path


def compete(home, **options):
    """Run a search to the end of its finals, without a release, which takes seconds; return it and the ranking."""
    cfg = load(TuneConfig, words(home, **options))
    with open_tracker(cfg.tracking) as tracker:
        search = open_search(cfg, tracker)
        with tracker.begin("study", "compete") as run:
            search.adopt(run.run_id)
            workers.work(search, tracker.within(run), 0)
        return search, finals.judge(search, finals.open_finals(search))


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search that was left alone from beginning to end."""
    home = tmp_path_factory.mktemp("searched")
    found = tune(home, tracking__pictures=True)
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    return SimpleNamespace(home=home, found=found, client=client, study=study_of(home))


def children(searched, kind):
    parent = searched.found.run_id
    return searched.client.search_runs(["0"], f"tags.kind = '{kind}' and tags.mlflow.parentRunId = '{parent}'")


# ---- what a search leaves --------------------------------------------------------------------------------------------


def test_each_trial_is_a_run_nested_in_the_study_and_both_name_each_other(searched):
    runs = {run.info.run_id: run for run in children(searched, "trial")}

    assert len(searched.study.get_trials(deepcopy=False)) == len(runs) == 5
    for trial in searched.study.get_trials(deepcopy=False):
        tags = runs[trial.user_attrs["mlflow_run_id"]].data.tags
        assert (tags["optuna.study"], int(tags["optuna.trial_number"])) == ("digits", trial.number)
        assert tags["optuna.state"] == trial.state.name


def test_a_trial_ends_as_what_became_of_it(searched):
    ends = {(run.data.tags["optuna.state"], run.info.status) for run in children(searched, "trial")}

    assert ends == {("COMPLETE", "FINISHED"), ("PRUNED", "KILLED")}


def test_a_pruned_trial_says_after_which_epoch(searched):
    pruned = [run for run in children(searched, "trial") if run.data.tags["optuna.state"] == "PRUNED"]

    for run in pruned:
        epochs = len(searched.client.get_metric_history(run.info.run_id, "val_accuracy"))
        assert int(run.data.tags["pruned_at_epoch"]) == epochs < 3
        assert f"after epoch {epochs} of 3" in run.data.tags["stopped"]


def test_trials_have_the_curves_and_data_of_a_training_but_no_test_and_no_model(searched):
    for run in children(searched, "trial"):
        assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "val_accuracy_best"} <= set(run.data.metrics)
        assert not [name for name in run.data.metrics if name.startswith("test")]
        assert not run.outputs.model_outputs
        assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"digits-train", "digits-val"}


def test_all_trials_train_on_one_seed_and_finals_on_fresh_ones(searched):
    seeds = {run.data.params["seed"] for run in children(searched, "trial")}
    fresh = [run.data.params["seed"] for run in children(searched, "train")]

    assert seeds == {"0"}
    assert sorted(set(fresh)) == ["1", "2", "3"]


def test_the_first_trial_is_the_configuration_outside_of_the_search(searched):
    first = searched.study.get_trials(deepcopy=False)[0]

    assert first.user_attrs["source"] == "baseline"
    assert first.params == {
        "optimizer": "adamw", "optimizer.lr@adamw": 0.004, "scheduler": "onecycle", "loss.smoothing": 0.05
    }  # fmt: skip


def test_the_best_mean_over_fresh_seeds_wins_with_its_median_training(searched):
    with _artifact(searched, "finals.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    means = {}
    for row in rows:
        means.setdefault(int(row["trial"]), []).append(float(row["value"]))

    best = max(means, key=lambda trial: sum(means[trial]) / len(means[trial]))
    winners = [row for row in rows if int(row["trial"]) == searched.found.winner_trial]
    median = sorted(float(row["value"]) for row in winners)[1]
    assert sum(means[searched.found.winner_trial]) == pytest.approx(sum(means[best]))
    chosen = next(row for row in rows if row["run_id"] == searched.found.winner_run_id)
    assert float(chosen["value"]) == median
    assert chosen["weights_digest"] == searched.found.weights_digest


def test_only_the_winner_reads_the_test_split_and_holds_a_model(searched):
    tested = [run for run in children(searched, "train") if "test_accuracy" in run.data.metrics]

    assert [run.info.run_id for run in tested] == [searched.found.winner_run_id]
    assert [run.info.run_id for run in children(searched, "train") if run.outputs.model_outputs] == [
        searched.found.winner_run_id
    ]


def test_the_registered_weights_are_those_that_were_measured(searched):
    version = searched.client.get_model_version_by_alias("digits-classifier", "challenger")

    assert version.run_id == searched.found.winner_run_id
    assert version.tags["weights.digest"] == searched.found.weights_digest
    assert searched.client.get_model_version_by_alias("digits-classifier", "champion").version == version.version


def test_the_run_of_the_study_shows_it_all(searched):
    run = searched.client.get_run(searched.found.run_id)
    names = {entry.path for entry in searched.client.list_artifacts(run.info.run_id)}
    plots = {entry.path for entry in searched.client.list_artifacts(run.info.run_id, "plots")}

    assert run.info.status == "FINISHED"
    assert run.data.tags["kind"] == "study"
    assert {"config.yaml", "trials.csv", "finals.csv", "best_params.yaml", "best.yaml"} <= names
    assert {"plots/history.png", "plots/intermediate_values.png", "plots/timeline.png", "plots/slice.png"} <= plots
    assert "plots/importances.png" not in plots  # of five trials they would be noise
    assert run.data.metrics["best_value"] == ranked(searched.study)[0].values[0]
    assert run.data.tags["best.optimizer"] == searched.found.options["optimizer"]
    assert "optuna-dashboard" in run.data.tags["mlflow.note.content"]


def test_the_table_of_trials_has_a_row_for_each(searched):
    with _artifact(searched, "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    assert [int(row["trial"]) for row in rows] == list(range(5))
    assert {row["run_id"] for row in rows} == {run.info.run_id for run in children(searched, "trial")}


def test_only_weights_of_the_best_trials_and_of_the_winner_stay(searched, tmp_path):
    kept = sorted(path.name for path in (searched.home / "runs/studies/digits/trials").iterdir() if path.is_dir())
    best = sorted(f"{trial.number:04d}" for trial in ranked(searched.study)[:3])
    finals = [path for path in (searched.home / "runs/studies/digits").glob("digits.finals-0-2x3/*") if path.is_dir()]

    assert kept == best
    assert len(finals) == 1


def test_the_winners_file_trains_what_won(searched):
    path = _artifact(searched, "best.yaml")
    cfg = load(TrainConfig, ["--params", str(path)])

    assert cfg.optimizer.name == searched.found.options["optimizer"]
    assert yaml.safe_load(_artifact(searched, "best_params.yaml").read_text()) == searched.found.options


def _artifact(searched, name):
    return Path(searched.client.download_artifacts(searched.found.run_id, name))


def test_a_replay_of_a_trial_gives_the_same_weights(searched):
    trial = ranked(searched.study)[0]
    given = ["--from_run", trial.user_attrs["mlflow_run_id"], "--promote.auto", "never"]
    uri = ["--tracking.uri", f"sqlite:///{searched.home / 'mlflow.db'}"]
    cfg = load(TrainConfig, [*given, *uri], config_of=config_of_run)
    with open_tracker(cfg.tracking) as tracker:
        ended = pipeline.train(cfg, tracker)
    assert any("the same weights" in line and trial.user_attrs["weights.digest"][:16] in line for line in ended.lines)


# ---- begun again -----------------------------------------------------------------------------------------------------


def test_the_same_command_again_repeats_the_answer_and_runs_nothing(searched):
    before = len(searched.client.search_runs(["0"]))

    again = tune(searched.home)

    assert again == searched.found
    assert len(searched.client.search_runs(["0"])) == before


@pytest.fixture
def stop_at(monkeypatch):
    """Return a function that lets a search be interrupted when so many epochs have ended."""

    def arm(epochs):
        learn, ended = experiment.learn, []

        def watched(cfg, tracker, *, on_epoch=lambda state: None, **given):
            def and_count(state):
                on_epoch(state)
                ended.append(state.epoch)
                if len(ended) == epochs:
                    raise Interrupted(15)

            return learn(cfg, tracker, on_epoch=and_count, **given)

        monkeypatch.setattr(experiment, "learn", watched)
        return lambda: monkeypatch.setattr(experiment, "learn", learn)

    return arm


def test_stopped_three_times_a_search_comes_to_the_same(searched, tmp_path, stop_at):
    for epochs in (2, 4, 5):
        disarm = stop_at(epochs)
        with pytest.raises(Interrupted):
            tune(tmp_path)
        disarm()
    found = tune(tmp_path)

    assert told(study_of(tmp_path)) == told(searched.study)
    assert (found.winner_trial, found.weights_digest) == (searched.found.winner_trial, searched.found.weights_digest)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs(["0"], "tags.kind != 'prepare'")
    assert len(runs) == 1 + 5 + 6
    assert {run.info.status for run in runs} == {"FINISHED", "KILLED"}
    study = next(run for run in runs if run.data.tags["kind"] == "study")
    assert study.info.status == "FINISHED"


def test_an_answer_whose_run_is_in_another_store_is_not_repeated(searched, ready):
    shutil.copytree(searched.home / "runs", ready / "runs")

    with pytest.raises(UserError, match="its run [0-9a-f]{32} is not in this tracking store"):
        tune(ready)


def test_a_study_in_postgres_goes_on_after_a_stop_and_shows_no_password(ready, request, stop_at):
    address = request.getfixturevalue("postgres")
    options = {"tune__storage": address, "epochs": 2, "tune__trials": 3, "tune__finalists": 1, "tune__finalist_seeds": 1}
    disarm = stop_at(3)
    with pytest.raises(Interrupted):
        tune(ready, **options)
    disarm()

    found = tune(ready, **options)

    assert sum(found.states.values()) == 3
    client = MlflowClient(f"sqlite:///{ready / 'mlflow.db'}")
    nested = client.search_runs(["0"], f"tags.mlflow.parentRunId = '{found.run_id}'")
    # the data once more, at the size of the champion that the winner is compared with
    assert Counter(run.data.tags["kind"] for run in nested) == {"trial": 3, "train": 1, "prepare": 1}
    study = client.get_run(found.run_id)
    config = Path(client.download_artifacts(found.run_id, "config.yaml")).read_text()
    assert PASSWORD not in f"{study.data.params} {study.data.tags} {config} {found}"
    assert "postgresql+psycopg://" in config


def test_more_trials_need_to_be_asked_for(searched):
    with pytest.raises(UserError, match=r"'digits' was begun with tune.trials=5 instead of 6; tune.extend=true"):
        tune(searched.home, tune__trials=6)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tune__space": {"optimizer": ["sgd", "adamw"]}}, "tune.space="),
        ({"data__split_seed": 5}, "the data's digest="),
        ({"epochs": 4}, "epochs=3 instead of 4"),
        ({"tune__sampler": "random"}, "tune.sampler.name=tpe instead of random"),
    ],
    ids=["space", "data", "recipe", "sampler"],
)
def test_a_study_begun_with_something_else_is_refused(searched, options, named):
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        tune(searched.home, **options)


def test_an_extended_study_takes_more_trials_and_holds_its_finals_anew(ready):
    options = {"tune__finalists": 1, "tune__finalist_seeds": 1, "epochs": 1, "tune__pruner": "none"}
    first = tune(ready, tune__trials=2, **options)

    found = tune(ready, tune__trials=4, tune__extend=True, **options)

    assert found.run_id == first.run_id
    assert found.states == {"complete": 4}
    client = MlflowClient(f"sqlite:///{ready / 'mlflow.db'}")
    assert len(client.get_metric_history(found.run_id, "best_value")) == 2
    with pytest.raises(UserError, match=r"has 4 trials; tune.trials must be above that"):
        tune(ready, tune__trials=4, tune__extend=True, **{**options, "epochs": 2})


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"tune__metric": "val_loss"}, "tune.metric cannot change"),
        ({"tune__minimize": "parameters"}, "tune.minimize cannot change"),
        ({"tune__space": {**SPACE, "optimizer": ["sgd", "adamw", "lion"]}}, "choices cannot change"),
        ({"tune__space": {**SPACE, "loss.smoothing": {"low": 0.001, "high": 0.2, "log": True}}}, "have tried loss.smoothing"),
    ],
    ids=["metric", "second objective", "choices", "log"],
)
def test_an_extension_cannot_change_what_optuna_keeps_for_good(searched, options, rule):
    before = told(searched.study)

    with pytest.raises(UserError, match=rule):
        tune(searched.home, **options, tune__trials=9, tune__extend=True, tune__baseline={"loss.smoothing": 0.05})
    assert told(searched.study) == before


def test_a_study_that_stopped_early_goes_on_when_it_is_extended(ready):
    space = {"loss.smoothing": {"low": 0.0, "high": 1e-9}}
    search, _ = compete(ready, **QUICK, tune__space=space, tune__trials=9, tune__stagnation=1)
    assert len(search.study.get_trials(deepcopy=False)) == 2

    wider = {"loss.smoothing": {"low": 0.0, "high": 1e-8}}
    search, _ = compete(ready, **QUICK, tune__space=wider, tune__trials=9, tune__stagnation=2, tune__extend=True)

    assert len(search.study.get_trials(deepcopy=False)) == 4
    assert search.round == 1


def test_a_trial_that_is_to_be_pruned_stays_so_though_it_is_stopped(ready, monkeypatch):
    prune, asked = optuna.Trial.should_prune, []

    def always(trial):
        asked.append(trial.number)
        return trial.number == 1 or prune(trial)

    def interrupted(*_args):
        raise Interrupted(15)

    monkeypatch.setattr(optuna.Trial, "should_prune", always)
    with monkeypatch.context() as patch:  # between the decision and its end
        patch.setattr(trials.TrialObjective, "_tag", interrupted)
        with pytest.raises(Interrupted):
            compete(ready, tune__trials=2, tune__baseline="off", tune__finalists=1, tune__finalist_seeds=1)
    first = len(asked)
    search, _ = compete(ready, tune__trials=2, tune__baseline="off", tune__finalists=1, tune__finalist_seeds=1)

    pruned = search.study.get_trials(deepcopy=False)[1]
    assert pruned.state == TrialState.PRUNED
    assert len(pruned.intermediate_values) == 1
    assert asked[first:].count(1) == 1 if asked[:first].count(1) == 0 else asked[first:].count(1) == 0


# ---- the finals ------------------------------------------------------------------------------------------------------


def finalists(search, values):
    """Judge made-up finals: trial -> values on its seeds, None for one that failed."""
    queue = finals.open_finals(search)
    for trial, reached in values.items():
        for seed, value in enumerate(reached, 1):
            attrs = {"trial": trial, "seed": seed, "val_accuracy_upper": value}
            state = TrialState.FAIL if value is None else TrialState.COMPLETE
            queue.study.add_trial(optuna.trial.create_trial(state=state, value=value, user_attrs=attrs))
    return finals.judge(search, queue)


@pytest.mark.parametrize(
    ("values", "order"),
    [
        ({0: (0.9, 0.9, 0.9), 1: (0.8, 0.9, 1.0)}, [0, 1]),
        ({0: (0.8, 0.9, 0.8), 1: (0.8, 0.9, 1.0)}, [1, 0]),
        ({0: (0.9, 0.9, 0.9), 1: (1.0, None, 1.0)}, [0, 1]),
    ],
    ids=["equal means", "the better mean", "a seed that failed"],
)
def test_the_best_mean_wins_and_a_seed_that_failed_is_no_advantage(ready, values, order):
    search, _ = compete(ready, **QUICK, tune__trials=2, tune__study="judged")
    search = replace(search, cfg=search.cfg.model_copy(update={"seed": 0}))
    search.study.set_user_attr("round", 7)

    assert [finalist.trial.number for finalist in finalists(search, values)] == order


def test_finals_that_all_failed_are_tried_again(ready, monkeypatch):
    def broken(cfg, *given, _learn=experiment.learn, **named):
        if named["kind"] == "train":
            raise OSError("the disk is full")
        return _learn(cfg, *given, **named)

    options = {**QUICK, "tune__trials": 1}
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "learn", broken)
        with pytest.raises(StopRun, match="every one of the finals failed .OSError: the disk is full.; the same command"):
            tune(ready, **options)

    found = tune(ready, **options)

    assert found.winner_trial == 0


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_bad_trial_fails_alone(ready, monkeypatch):
    def sometimes_broken(cfg, *given, _learn=experiment.learn, **named):
        if cfg.optimizer.name == "sgd":
            raise MemoryError("no memory for sgd")
        return _learn(cfg, *given, **named)

    monkeypatch.setattr(experiment, "learn", sometimes_broken)
    search, _ = compete(ready, **QUICK, tune__space={"optimizer": ["adamw", "sgd"]}, tune__trials=4)

    tried = search.study.get_trials(deepcopy=False)
    assert {trial.params["optimizer"]: trial.state for trial in tried} == {
        "adamw": TrialState.COMPLETE, "sgd": TrialState.FAIL
    }  # fmt: skip
    assert {t.user_attrs.get("error") for t in tried} == {None, "MemoryError: no memory for sgd"}


def test_a_trial_leaves_no_network_in_memory(ready, monkeypatch):
    made, left = [], []

    def create(*given, _create=TrainState.create, **named):
        gc.collect()  # what only a circle of references holds would go sooner or later
        left.append(sum(network() is not None for network in made))
        state = _create(*given, **named)
        made.append(weakref.ref(state.model))
        return state

    monkeypatch.setattr(TrainState, "create", create)
    compete(ready, **QUICK, tune__space={"optimizer": ["adamw", "sgd"]}, tune__trials=3)
    assert left == [0] * 4, "three trials and a final"


def test_errors_in_a_row_stop_the_study_with_the_reason(tmp_path, monkeypatch):
    def broken(*_args, **_given):
        raise RuntimeError("no more memory")

    monkeypatch.setattr(experiment, "learn", broken)
    with pytest.raises(StopRun, match="3 trials in a row failed"):
        tune(tmp_path)

    study = study_of(tmp_path)
    assert [trial.state for trial in study.get_trials(deepcopy=False)] == [TrialState.FAIL] * 3
    assert study.get_trials(deepcopy=False)[0].user_attrs["error"] == "RuntimeError: no more memory"
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs(["0"], "tags.kind = 'trial'")
    assert [run.info.status for run in runs] == ["FAILED"] * 3
    assert "no more memory" in runs[0].data.tags["error"]


# ---- limits, two objectives, early ends ------------------------------------------------------------------------------

SIZES = {"model": ["small_cnn"], "model.args": {"choices": {"narrow": {"width": 4}, "wide": {"width": 32}}}}


def sizes(study):
    return {t.params["model.args"]: t.user_attrs["parameters"] for t in study.get_trials(deepcopy=False)}


def test_a_network_beyond_a_limit_is_not_trained_and_never_wins(ready):
    search, ranking = compete(ready, **QUICK, tune__space=SIZES, tune__trials=6, tune__max_parameters=50_000)

    big = [t for t in search.study.get_trials(deepcopy=False) if t.params["model.args"] == "wide"]
    assert big
    assert all(t.state == TrialState.PRUNED and not t.intermediate_values for t in big)
    assert f"tune.max_parameters={50_000:,}" in big[0].user_attrs["reason"]
    assert [finalist.trial.params["model.args"] for finalist in ranking] == ["narrow"]


@pytest.mark.parametrize(("within", "winner"), [(0.9, "narrow"), (0.0, "wide")], ids=["near counts as equal", "best only"])
def test_of_two_objectives_the_cheapest_near_the_best_wins(ready, within, winner):
    options = {**QUICK, "tune__finalists": 2, "tune__minimize": "parameters", "tune__within": within}
    del options["tune__pruner"]
    search, ranking = compete(ready, **options, tune__space=SIZES, tune__trials=6, tune__study=f"two-{within}")

    assert sizes(search.study)["narrow"] < sizes(search.study)["wide"]
    assert all(len(t.values) == 2 for t in search.study.get_trials(deepcopy=False))
    assert ranking[0].trial.params["model.args"] == winner


def test_a_search_that_finds_nothing_better_stops(ready):
    space = {"loss.smoothing": {"low": 0.0, "high": 1e-9}}
    search, _ = compete(ready, **QUICK, tune__space=space, tune__trials=9, tune__stagnation=3)

    assert len(search.study.get_trials(deepcopy=False)) == 4
    assert search.stopped == "no better value in 3 trials (tune.stagnation)"


def test_no_trial_starts_after_the_time_is_over(ready):
    search, _ = compete(ready, **QUICK, tune__trials=9, tune__timeout_minutes=1e-6)

    assert len(search.study.get_trials(deepcopy=False)) == 1
    assert "tune.timeout_minutes" in search.stopped
