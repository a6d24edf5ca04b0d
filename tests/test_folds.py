"""K folds in one run: interrupted and continued, every image judged by a model that never saw it, labels put in doubt."""

import csv
import json
import os
import signal
import statistics

import numpy as np
import pytest
from PIL import Image

from tests.conftest import do, fast
from tests.learning_data import make_prepared, noise
from tracked_cls import experiment, folds, gallery, preparation, signals
from tracked_cls.config import TrainConfig, load
from tracked_cls.data.splits import k_folds
from tracked_cls.errors import Interrupted, UserError
from tracked_cls.evaluation import MultiLabelScores, Scores
from tracked_cls.gallery import OutOfFold, Suspect
from tracked_cls.tracking import Run


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- two folds of the digits, killed in the second one and started again ---------------------------------------------


@pytest.fixture(scope="module")
def started(store):
    """(name, run id) of every fold that was started: those before the kill, and those after it."""
    return [], []


@pytest.fixture(scope="module")
def outcome(store, started):
    """Two folds of two epochs; SIGTERM comes at the end of the second fold's first epoch, and the same is started again."""
    words = [*fast(folds=2, epochs=2, data__image_size=8, threads=1), *store]
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        log, train, epochs = Run.log_metrics, experiment.learn, []

        def log_until_killed(run, metrics, step=0):
            log(run, metrics, step)
            epochs.extend([(run.run_id, step)] if "val_loss" in metrics else [])
            if len(epochs) == 3:
                epochs.append(None)
                os.kill(os.getpid(), signal.SIGTERM)

        def train_and_note(cfg, tracker, *, kind, name, keep):
            started[0 if epochs.count(None) == 0 else 1].append(name)
            return train(cfg, tracker, kind=kind, name=name, keep=keep)

        patch.setattr(Run, "log_metrics", log_until_killed)
        patch.setattr(experiment, "learn", train_and_note)
        signals.install()
        try:
            with pytest.raises(Interrupted):
                do(folds.run, TrainConfig, words)
            return do(folds.run, TrainConfig, words)
        finally:
            signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def manifest(outcome):
    return outcome.prepared.manifest


@pytest.fixture(scope="module")
def predictions(outcome):
    return read(outcome.folder / "tables" / "out_of_fold.csv")


@pytest.fixture(scope="module")
def mlflow_client(store, outcome):
    from mlflow import MlflowClient

    return MlflowClient(store[1])


@pytest.fixture(scope="module")
def children(mlflow_client, outcome):
    found = mlflow_client.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{outcome.run_id}'")
    return sorted(found, key=lambda run: run.info.run_name)


def test_a_finished_fold_is_not_repeated_and_one_under_way_goes_on_in_its_run(outcome, started, children):
    assert started == (["fold 0", "fold 1"], ["fold 1"])
    assert [run.info.run_id for run in children] == [result.run_id for result in outcome.results]


def test_folds_are_finished_runs_below_one_run(mlflow_client, outcome, children):
    parent = mlflow_client.get_run(outcome.run_id)
    assert parent.info.run_name == "2 folds: small_cnn on digits"
    assert (parent.data.tags["kind"], parent.data.tags["folds"]) == ("train", "2")
    assert [run.data.tags["kind"] for run in children] == ["fold", "fold"]
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    assert [run.data.params["data.fold"] for run in children] == ["0", "1"]
    assert len({run.data.tags["data.digest"] for run in children}) == 2


def test_the_parent_has_mean_and_standard_deviation_of_the_best_epochs(mlflow_client, outcome, children):
    metrics = mlflow_client.get_run(outcome.run_id).data.metrics
    for name in ("val_accuracy", "val_loss"):
        histories = [mlflow_client.get_metric_history(run.info.run_id, name) for run in children]
        best = [
            {metric.step: metric.value for metric in history}[result.best_epoch]
            for history, result in zip(histories, outcome.results, strict=True)
        ]
        assert metrics[f"{name}_mean"] == pytest.approx(statistics.mean(best), abs=1e-6)
        assert metrics[f"{name}_std"] == pytest.approx(statistics.stdev(best), abs=1e-6)
        by_fold = {metric.step: metric.value for metric in mlflow_client.get_metric_history(outcome.run_id, f"fold_{name}")}
        assert by_fold == pytest.approx(dict(enumerate(best)), abs=1e-6)


def test_every_image_outside_the_test_split_is_judged_by_the_model_that_never_saw_it(manifest, predictions):
    pool = np.flatnonzero(np.asarray(manifest.splits) != 2)
    assert [row["id"] for row in predictions] == [manifest.ids[index] for index in pool]
    for fold in range(2):
        validated = {manifest.ids[index] for index in k_folds(manifest, 2, fold, seed=0).indices("val")}
        assert {row["id"] for row in predictions if row["fold"] == str(fold)} == validated


def test_the_table_says_what_the_models_said(manifest, predictions, outcome):
    row = {row["id"]: row for row in predictions}
    for result in outcome.results:
        exponents = np.exp(result.scores.logits.astype(float))
        probabilities = exponents / exponents.sum(axis=1, keepdims=True)
        for index, label, given in zip(result.indices[:20], result.scores.labels[:20], probabilities[:20], strict=True):
            found = row[manifest.ids[index]]
            assert found["path"] == manifest.paths[index]
            assert (found["label"], found["predicted"]) == (manifest.classes[label], manifest.classes[given.argmax()])
            assert float(found["probability"]) == pytest.approx(given[label], abs=1e-5)
            assert float(found["margin"]) == pytest.approx(given[label] - np.delete(given, label).max(), abs=1e-5)
    assert {entry["label"] for entry in predictions} == set(manifest.classes)


def test_the_report_counts_all_images_together(outcome, predictions, mlflow_client):
    right = sum(row["label"] == row["predicted"] for row in predictions)
    assert outcome.report.metrics["accuracy"] == pytest.approx(right / len(predictions))
    assert outcome.report.confusion.sum() == len(predictions)
    assert mlflow_client.get_run(outcome.run_id).data.metrics["out_of_fold_accuracy"] == outcome.report.metrics["accuracy"]


def test_the_run_holds_pictures_tables_and_the_page(mlflow_client, outcome):
    found = {item.path for folder in ("", "plots", "tables") for item in mlflow_client.list_artifacts(outcome.run_id, folder)}
    assert found >= {
        "suspects.html",
        "train.yaml",
        "config.yaml",
        "plots/folds.png",
        "plots/suspects.png",
        "plots/out_of_fold_confusion.png",
        "tables/out_of_fold.csv",
        "tables/out_of_fold_per_class.csv",
        "tables/suspects.csv",
    }


def test_folds_look_at_no_test_image_and_log_no_model(mlflow_client, outcome, children):
    for run in [mlflow_client.get_run(outcome.run_id), *children]:
        assert not [name for name in run.data.metrics if "test" in name]
        assert not run.outputs.model_outputs
        assert {item.dataset.name for item in run.inputs.dataset_inputs} == {"digits-train", "digits-val"}


def test_the_list_of_suspects_begins_with_the_most_suspect(outcome, predictions):
    suspects = read(outcome.folder / "tables" / "suspects.csv")
    scores = [float(row["score"]) for row in suspects]
    assert scores == sorted(scores)
    assert len(suspects) == max(round(0.05 * len(predictions)), outcome.num_suspects)
    assert sum(row["looks_wrong"] == "true" for row in suspects) <= outcome.num_suspects
    by_id = {row["id"]: row for row in predictions}
    assert all(row["label"] == by_id[row["id"]]["label"] != row["rival"] for row in suspects)
    page = (outcome.folder / "suspects.html").read_text(encoding="utf-8")
    assert page.index(suspects[0]["path"]) < page.index(suspects[1]["path"])
    assert page.count("data:image/png;base64,") == len(suspects)


def test_the_end_says_what_came_out_and_what_to_do_next(outcome):
    text = "\n".join(folds.lines(outcome))
    assert f"val_accuracy {outcome.spread['val_accuracy_mean']:.4f} ± {outcome.spread['val_accuracy_std']:.4f}" in text
    assert f"look through {outcome.folder / 'suspects.html'}" in text
    params = folds.next_command(outcome).rpartition("params=")[2]
    again = load(TrainConfig, ["--params", params])
    assert (again.folds, again.model.name, again.epochs) == (None, "small_cnn", 2)


# ---- what is kept, what is refused -----------------------------------------------------------------------------------


def test_a_finished_fold_is_read_as_it_was_written(tmp_path):
    prepared = noise([0, 1, 0, 1])
    scores = Scores(np.array([[1.5, -2], [0.25, 3]], np.float32), np.array([0, 1]))
    trained = experiment.Trained("abc", 5, 0.5, {"val_loss": [0.5]}, 3, "d1", scores, np.array([1, 2]), prepared)
    folds._write(tmp_path / "fold-1.npz", trained)
    found = folds._read(tmp_path / "fold-1.npz", 1, prepared)
    assert (found.fold, found.run_id, found.best_epoch, found.indices.tolist()) == (1, "abc", 3, [1, 2])
    assert found.scores.logits.tolist() == scores.logits.tolist()
    assert found.scores.labels.tolist() == [0, 1]
    assert not isinstance(found.scores, MultiLabelScores)


@pytest.mark.parametrize("damage", [b"", b"PK", None], ids=["empty", "cut short", "one byte changed"])
def test_a_damaged_fold_is_trained_again(tmp_path, damage, capsys):
    prepared, path = noise([0, 1, 0, 1]), tmp_path / "fold-0.npz"
    scores = Scores(np.zeros((2, 2), np.float32), np.array([0, 1]))
    folds._write(path, experiment.Trained("abc", 5, 0.5, {"val_loss": [0.5]}, 3, "d1", scores, np.array([1, 2]), prepared))
    content = bytearray(path.read_bytes())
    content[content.index(b"a\0\0\0b\0\0\0c")] ^= 1  # text is UTF-32 in there
    path.write_bytes(bytes(content) if damage is None else damage)
    assert folds._read(path, 0, prepared) is None
    assert f"{path} is damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overfit_batches": 1}, "overfit_batches does not go with folds"),
        ({"promote__auto": "always"}, "promote.auto=always has no effect with folds"),
        ({"model": "small_cn"}, "did you mean 'small_cnn'"),
        ({"transforms__train": "[RandomAfine]"}, "did you mean 'RandomAffine'"),
        ({"data__source": "digits", "data__test_fraction": 0.85, "folds": 50}, "too few for data.folds=50"),
    ],
    ids=["overfit_batches", "promote", "model", "transforms", "images"],
)
def test_what_cannot_be_done_is_said_before_a_run_is_opened(store, outcome, mlflow_client, options, message):
    def trainings():
        return mlflow_client.search_runs(["0"], "tags.kind = 'train'")

    before = len(trainings())
    with pytest.raises(UserError, match=message):
        do(folds.run, TrainConfig, [*fast(**{"folds": 2, "data__image_size": 8, **options}), *store])
    assert len(trainings()) == before


def test_spread_divides_by_one_less_than_the_folds():
    scores = [Scores(np.array([[1, 0], [first, 0]], np.float32), np.array([0, 0])) for first in (1, -1, -1)]
    results = [folds.FoldResult(fold, "", 1, {}, np.arange(2), one) for fold, one in enumerate(scores)]
    spread = folds._spread(results)
    assert spread["val_accuracy_mean"] == pytest.approx(2 / 3)
    assert spread["val_accuracy_std"] == pytest.approx(statistics.stdev([1, 0.5, 0.5]))
    assert spread["best_epoch_std"] == 0


# ---- several labels per image ----------------------------------------------------------------------------------------


def test_images_with_several_labels_get_predictions_but_no_suspects(tmp_path, store, monkeypatch):
    rows = []
    for index in range(30):
        name, labels = f"{index}.png", "|".join([["a"], ["b"], ["a", "b"]][index % 3])
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / name)
        rows.append(f"{name},{labels}")
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows))

    def sure_of_b(cfg, tracker, *, kind, name, keep):
        prepared = preparation.open_or_prepare(cfg.data, cfg.tracking, tracker)
        indices = prepared.manifest.indices("val")
        scores = MultiLabelScores(np.tile(np.float32([-1, 1]), (len(indices), 1)), np.array(prepared.manifest.labels[indices]))
        with tracker.begin(kind, name) as tracked:
            tracked.log_metrics({"val_loss": 1.0, "val_accuracy": 0.5}, step=1)
        curves = {"val_loss": [1.0], "val_accuracy": [0.5]}
        trained = experiment.Trained(tracked.run_id, 1, 0.5, curves, 1, "d", scores, indices, prepared)
        keep(trained)
        return trained

    monkeypatch.setattr(experiment, "learn", sure_of_b)
    words = ["--data.source", "csv", "--data.table", str(tmp_path / "list.csv"), "--data.multi_label", "true", "--loss", "bce"]
    plain = ["--model", "small_cnn", "--epochs", "1", "--folds", "2", "--data.image_size", "8", "--data.workers", "1"]
    outcome = do(folds.run, TrainConfig, [*words, *plain, *store])
    assert outcome.num_suspects is None
    assert "suspect labels: not ranked, which needs one label per image" in folds.lines(outcome)[-1]
    predictions = read(outcome.folder / "tables" / "out_of_fold.csv")
    assert {row["label"] for row in predictions} == {"a", "b", "a|b"}
    assert {row["predicted"] for row in predictions} == {"b"}
    assert "probability" not in predictions[0]
    assert not (outcome.folder / "suspects.html").exists()


# ---- tables and the page ---------------------------------------------------------------------------------------------


def test_the_most_suspect_label_is_the_one_that_was_changed(tmp_path):
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    prepared = make_prepared(random.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8), labels, ["train"] * 60)
    logits = random.normal(0, 0.3, (60, 3)) + 4 * np.eye(3)[labels]
    given = labels.copy()
    given[7] = 0  # it is a 1
    judged = OutOfFold(np.arange(60), np.arange(60) % 2, Scores(logits.astype(np.float32), given))
    for name in ("plots", "tables"):
        (tmp_path / name).mkdir()
    assert gallery.write_suspects(judged, prepared, tmp_path) == 1
    first = read(tmp_path / "tables" / "suspects.csv")[0]
    assert (first["path"], first["label"], first["rival"], first["fold"]) == ("00007", "class-0", "class-1", "1")
    assert first["looks_wrong"] == "true"
    with Image.open(tmp_path / "plots" / "suspects.png") as picture:
        assert picture.width > 600


def suspect(**changes):
    values = {
        "rank": 1, "path": "a.png", "sample_id": "f00", "label": "cat", "rival": "dog", "label_probability": 0.1,
        "rival_probability": 0.9, "score": -2.0, "is_error": True, "fold": 0, "index": 0,
    }  # fmt: skip
    return Suspect(**{**values, **changes})


@pytest.mark.parametrize("field", ["path", "label", "rival", "sample_id"])
def test_names_are_escaped_in_the_page(field):
    strange = "\"><script>alert('1')</script>"
    picture = np.zeros((8, 8, 1), np.uint8)
    page = gallery.render([suspect(**{field: strange})], [picture], name=strange, num_images=9, num_errors=1)
    assert "<script" not in page
    assert "&#34;&gt;&lt;s" in page


def test_control_characters_of_a_file_name_are_written_out():
    page = gallery.render(
        [suspect(path="a\n\u202egnp.png")], [np.zeros((8, 8, 1), np.uint8)], name="x", num_images=9, num_errors=1
    )
    assert r"<code>a\n\u202egnp.png</code>" in page


def test_the_page_stays_below_three_megabytes_and_says_how_many_it_shows():
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (96, 96, 3), dtype=np.uint8)] * 130
    page = gallery.render([suspect(rank=rank) for rank in range(130)], pictures, name="x", num_images=9000, num_errors=1)
    assert len(page.encode()) < 3_000_000
    shown = page.count("<img")
    assert 0 < shown < 130
    assert f"the {shown} most suspect are shown" in " ".join(page.split())


def test_a_dollar_in_a_class_name_is_no_formula(tmp_path):
    from tracked_cls.plots.suspects import suspect_grid

    suspect_grid([np.zeros((8, 8, 3), np.uint8)], ["$\\frac{1, or $x_"], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 0


def test_metrics_of_all_folds_are_written_as_json(outcome):
    stored = json.loads((outcome.folder / "tables" / "out_of_fold_metrics.json").read_text())
    assert {name: found["value"] for name, found in stored.items()} == {
        name: found.value for name, found in outcome.report.estimates.items()
    }
    assert stored["accuracy"]["low"] < stored["accuracy"]["value"] < stored["accuracy"]["high"]
