"""The main job on the embedded digits: what a run leaves in MLflow, and what can be done with it afterwards."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import yaml
from mlflow.artifacts import download_artifacts
from mlflow.models import Model
from PIL import Image

from tests.conftest import PARAMS, do, fast
from tracked_cls import assessment, experiment, pipeline, prediction, preparation, registry
from tracked_cls.config import EvaluateConfig, MainConfig, PredictConfig, PrepareConfig, TrainConfig, flatten, load
from tracked_cls.errors import UserError
from tracked_cls.serving.classifier import Classifier

BY_EPOCH = ["train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "epoch_seconds", "images_per_second"]


@pytest.fixture
def run_of(client, trained):
    return client.get_run(trained.run_id)


@pytest.mark.parametrize("key", BY_EPOCH)
def test_each_epoch_has_one_value_at_its_step(client, trained, key):
    assert sorted(metric.step for metric in client.get_metric_history(trained.run_id, key)) == [1, 2, 3]


def test_the_run_is_finished_and_says_what_it_is(run_of):
    assert run_of.info.status == "FINISHED"
    assert run_of.info.run_name == "small_cnn on digits"
    assert run_of.data.tags["kind"] == "train"
    assert {"data.digest", "content.digest", "host", "pid", "promotion.verdict"} <= set(run_of.data.tags)


def test_params_are_the_flat_configuration(run_of, store):
    expected = flatten(load(TrainConfig, [*fast(tracking__pictures="true"), *store]))
    assert set(run_of.data.params) == set(expected)
    assert run_of.data.params["model"] == "small_cnn"
    assert run_of.data.params["optimizer.lr"] == "0.004"


def test_the_typed_truth_reproduces_the_configuration(client, run_of, trained, tmp_path, store):
    path = client.download_artifacts(trained.run_id, "config.yaml", str(tmp_path))
    recorded = load(TrainConfig, ["--params", path])
    found = {"training__precision": recorded.training.precision}  # of the machine: the one word that is not typed
    assert recorded == load(TrainConfig, [*fast(tracking__pictures="true", **found), *store])


def test_results_are_logged_once(run_of, trained):
    metrics = run_of.data.metrics
    assert metrics["test_accuracy"] == trained.test.metrics["accuracy"]
    assert metrics["val_accuracy_best"] == trained.val_accuracy
    assert metrics["best_epoch"] == trained.best_epoch
    assert metrics["parity_max_difference"] < 1e-4


def test_a_short_training_learns(trained):
    assert trained.test.metrics["accuracy"] > 0.9


def test_pictures_and_tables_lie_in_the_run(client, trained, tmp_path):
    names = {item.path for folder in ("plots", "tables") for item in client.list_artifacts(trained.run_id, folder)}
    own = {name for name in names if not name.startswith(("plots/test_", "tables/test_pictures"))}
    assert own == {
        "plots/augmented.png",
        "plots/curves.png",
        "plots/feature_maps.png",
        "plots/filters.png",
        "plots/network.png",
        "tables/network.csv",
        "tables/test_confusion.csv",
        "tables/test_per_class.csv",
        "tables/test_predictions.parquet",
        "tables/test_reliability.csv",
        "tables/test_metrics.json",
    }
    with Image.open(client.download_artifacts(trained.run_id, "plots/curves.png", str(tmp_path))) as picture:
        assert picture.width > 600
    environment = json.loads(Path(client.download_artifacts(trained.run_id, "environment.json", str(tmp_path))).read_text())
    assert environment["packages"]["torch"] != "not installed"


def test_the_data_set_is_an_input_of_the_run(run_of, trained):
    inputs = run_of.inputs.dataset_inputs
    assert {item.tags[0].value for item in inputs} == {"training", "validation", "test"}
    assert {item.dataset.name for item in inputs} == {"digits-train", "digits-val", "digits-test"}
    assert {item.dataset.digest for item in inputs} == {trained.prepared.manifest.digest}


def test_the_logged_model_says_what_it_takes_and_gives_and_has_an_example(trained, client):
    folder = Path(download_artifacts(client.get_logged_model(trained.model_uri.rpartition("/")[2]).artifact_location))
    model = Model.load(folder)
    assert model.signature.inputs.input_names() == ["image"]
    assert {"label", "probability", "probabilities"} <= set(model.signature.outputs.input_names())
    assert {option.name for option in model.signature.params.params} == {"top_k", "threshold"}
    example = json.loads((folder / model.saved_input_example_info["artifact_path"]).read_text())
    assert example["columns"] == ["image"]


def test_preparation_has_a_run_of_its_own(client, trained):
    of_these = f"tags.kind = 'prepare' and tags.`data.digest` = '{trained.prepared.manifest.digest}'"
    found = client.search_runs(["0"], of_these)[-1]
    assert found.info.run_id != trained.run_id
    assert found.data.metrics["num_images"] == 1797
    assert {item.path for item in client.list_artifacts(found.info.run_id)} == {"config.yaml", "report.html", "report.json"}


def test_the_first_version_is_champion_and_leads_back_to_run_and_data(client, trained):
    version = client.get_model_version_by_alias("digits-classifier", "champion")
    assert version.run_id == trained.run_id
    assert version.tags["run.id"] == trained.run_id
    assert version.tags["data.digest"] == trained.prepared.manifest.digest
    assert float(version.tags["test_accuracy"]) == trained.test.metrics["accuracy"]
    assert version.tags["promotion.verdict"] == "promoted"


def test_preparing_unchanged_data_does_nothing_and_says_so(trained, store):
    again = do(preparation.run, PrepareConfig, [*PARAMS, *store])
    assert not again.is_new
    assert again.prepared.folder == trained.prepared.folder
    assert "unchanged and sound, nothing to do" in preparation.lines(again)[0]


@pytest.mark.parametrize("address", ["runs:/{run}", "models:/digits-classifier/1", "models:/digits-classifier@champion", None])
def test_evaluate_gives_the_numbers_of_training_for_every_address(trained, client, store, address):
    words = ["--model", address.format(run=trained.run_id)] if address else []
    words += ["--tracking.pictures", "false", "--threads", "2"]
    evaluation = do(assessment.run, EvaluateConfig, [*PARAMS, *store, *words])
    assert evaluation.report.metrics == pytest.approx(trained.test.metrics, abs=1e-6)
    run = client.get_run(evaluation.run_id)
    assert run.data.tags["kind"] == "evaluate"
    assert run.data.tags["model"].startswith("models:/")
    assert run.data.tags["data.digest"] == trained.prepared.manifest.digest


def test_an_evaluation_draws_what_there_is_to_see_and_says_it_in_words(trained, client, store, tmp_path):
    evaluation = do(assessment.run, EvaluateConfig, [*PARAMS, *store, "--threads", "2"])
    words = json.loads(
        Path(client.download_artifacts(evaluation.run_id, "tables/test_pictures.json", str(tmp_path))).read_text()
    )
    drawn = {item.path for item in client.list_artifacts(evaluation.run_id, "plots")}
    assert drawn == {f"plots/{name}" for name in words}
    wanted = ("confusion", "reliability", "roc", "per_class", "mistakes", "unsure", "right", "embedding")
    assert drawn >= {f"plots/test_{name}.png" for name in wanted}
    assert all(len(text) > 20 for text in words.values())


def test_evaluate_prepares_the_data_at_the_size_of_the_model(trained, store):
    words = [*PARAMS, *store, "--threads", "2", "--data.image_size", "24", "--tracking.pictures", "false"]
    evaluation = do(assessment.run, EvaluateConfig, words)
    assert evaluation.report.metrics == pytest.approx(trained.test.metrics, abs=1e-6)


def test_evaluate_scores_a_model_on_images_of_another_set(client, trained, store, tmp_path):
    manifest = trained.prepared.manifest
    for index in manifest.indices("test")[:200]:
        path = tmp_path / "in" / manifest.classes[manifest.labels[index]] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(trained.prepared.pixels[index][:, :, 0]).save(path)
    place = ["--data.source", "folder", "--data.root", str(tmp_path / "in"), "--data.store", str(tmp_path / "data")]
    words = ["--model", "models:/digits-classifier/1", "--threads", "2", "--tracking.pictures", "false"]
    evaluation = do(assessment.run, EvaluateConfig, [*PARAMS, *store, *place, *words])
    assert 30 <= sum(row["support"] for row in evaluation.report.per_class) <= 50, "a fifth of the 200"
    assert evaluation.report.metrics["accuracy"] > 0.8
    tags = client.get_run(evaluation.run_id).data.tags
    assert (tags["model"], tags["data.digest"] == manifest.digest) == ("models:/digits-classifier/1", False)


def test_main_is_one_run_with_its_steps_nested_in_it(store, client):
    whole = do(pipeline.run, MainConfig, [*fast(epochs=1, limit=60, seed=21), *store])
    (parent,) = client.search_runs(["0"], f"tags.kind = 'pipeline' and tags.`train.run` = '{whole.outcome.run_id}'")
    steps = client.search_runs(["0"], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert sorted(run.data.tags["kind"] for run in steps) == ["evaluate", "predict", "train"]
    assert {run.info.status for run in [parent, *steps]} == {"FINISHED"}
    assert parent.data.metrics["test_accuracy"] == whole.evaluation.report.metrics["accuracy"]


@pytest.fixture
def pictures(trained, tmp_path):
    """Test digits as PNG files, two of the same name in different folders, and a file that is none."""
    manifest = trained.prepared.manifest
    labels = {}
    for place, index in enumerate(manifest.indices("test")[:6]):
        path = tmp_path / "in" / f"folder{place % 2}" / f"{place // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(trained.prepared.pixels[index][:, :, 0]).save(path)
        labels[path.relative_to(tmp_path / "in").as_posix()] = manifest.classes[manifest.labels[index]]
    (tmp_path / "in" / "notes.png").write_text("not a picture")
    return tmp_path / "in", labels


def test_predict_labels_every_image_and_lists_the_bad_ones(client, store, pictures, tmp_path):
    folder, labels = pictures
    output = tmp_path / "out.csv"
    words = [*PARAMS, *store, "--input", str(folder), "--output", str(output)]
    predictions = do(prediction.run, PredictConfig, words)
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image_id"] for row in rows] == sorted(labels)
    assert all(0 <= float(row["probability"]) <= 1 for row in rows)
    right = sum(labels[row["image_id"]] == row["label"] for row in rows)
    assert right >= 5, "a model of 95% and more gets six digits nearly all right"
    assert [(item.image_id, item.code) for item in predictions.rejected] == [("notes.png", "E_NOT_IMAGE")]
    with output.with_suffix(".rejected.csv").open() as file:
        assert [row["image_id"] for row in csv.DictReader(file)] == ["notes.png"]
    run = client.get_run(predictions.run_id)
    assert run.data.tags["model"] == "models:/digits-classifier/1"
    assert run.data.metrics["num_images"] == 6
    assert [item.path for item in client.list_artifacts(predictions.run_id, "tables")] == [
        "tables/label_counts.csv",
        "tables/out.csv",
        "tables/out.csv.meta.json",
        "tables/out.rejected.csv",
    ]
    assert run.info.run_name == "predict in"


def test_probabilities_are_calibrated_by_the_temperature_that_validation_gave(client, trained, store, tmp_path):
    bundle, _ = registry.resolve(client, trained.model_uri)
    classifier = Classifier.load(bundle.onnx, bundle.meta)
    assert classifier.temperature == client.get_run(trained.run_id).data.metrics["temperature"] != 1
    images = trained.prepared.sized(trained.prepared.manifest.indices("test")[:5])
    logits = classifier.logits_of(images) / classifier.temperature
    np.testing.assert_allclose(classifier.probabilities_of(images), scipy.special.softmax(logits, axis=1), rtol=1e-4)
    assert trained.test.temperature == classifier.temperature


def test_several_labels_are_as_sure_as_the_least_certain_one(trained, client):
    bundle, _ = registry.resolve(client, trained.model_uri)
    meta = json.loads(bundle.meta.read_text())
    one, many = (Classifier((), None, None, {**meta, "multi_label": several}) for several in (False, True))
    assert one.confidence(np.array([0.7, 0.2, 0.1])) == pytest.approx(0.7)
    assert many.confidence(np.array([0.99, 0.6, 0.1])) == pytest.approx(0.2)


def test_predict_does_not_replace_a_file_unless_told(store, pictures, tmp_path):
    folder, _ = pictures
    output = tmp_path / "out.csv"
    output.write_text("precious")
    words = [*PARAMS, *store, "--input", str(folder), "--output", str(output)]
    with pytest.raises(UserError, match="exists; set predict.overwrite=true"):
        do(prediction.run, PredictConfig, words)
    assert output.read_text() == "precious"
    do(prediction.run, PredictConfig, [*words, "--overwrite", "true"])
    assert output.read_text().startswith("image_id,label,probability,unsure,sha256\n")


@pytest.mark.parametrize("below", [0.0, 0.7, 0.999])
def test_answers_below_a_probability_are_marked_as_unsure(client, store, pictures, tmp_path, below):
    output = tmp_path / "out.csv"
    words = [*PARAMS, *store, "--input", str(pictures[0]), "--output", str(output), "--unsure_below", str(below)]
    found = do(prediction.run, PredictConfig, words)
    with output.open() as file:
        rows = list(csv.DictReader(file))
    expected = [str(float(row["probability"]) < below).lower() for row in rows]
    assert [row["unsure"] for row in rows] == expected
    assert found.num_unsure == client.get_run(found.run_id).data.metrics["num_unsure"] == expected.count("true")
    assert any("unsure" in line for line in prediction.lines(found)) == (found.num_unsure > 0)


@pytest.mark.parametrize("output", ["file.txt/out.csv", "folder"])
def test_an_output_that_cannot_be_written_is_one_line(store, pictures, tmp_path, output):
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "folder").mkdir()
    words = [*PARAMS, *store, "--input", str(pictures[0]), "--output", str(tmp_path / output)]
    with pytest.raises(UserError, match="^predict.output: "):
        do(prediction.run, PredictConfig, words)


def test_predict_takes_a_single_file(store, pictures, tmp_path):
    folder, _ = pictures
    words = [*PARAMS, *store, "--input", str(folder / "folder0" / "0.png"), "--output", str(tmp_path / "one.csv")]
    assert do(prediction.run, PredictConfig, words).count_by_label.total() == 1


def test_predict_of_nothing_readable_is_an_error_and_writes_nothing(store, tmp_path, trained):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_text("no")
    words = [*PARAMS, *store, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out.csv")]
    with pytest.raises(UserError, match="the only image of .* cannot be read"):
        do(prediction.run, PredictConfig, words)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_same_training_again_is_a_new_run_with_the_same_weights(trained, store, client):
    again = do(experiment.run, TrainConfig, [*fast(), *store])
    assert again.run_id != trained.run_id
    assert again.test.metrics == trained.test.metrics
    assert again.promotion.version.number == trained.promotion.version.number, "one version per weights digest"


def test_another_model_is_not_registered_while_there_is_a_champion(store, trained):
    other = do(experiment.run, TrainConfig, [*fast(seed=5, epochs=1), *store])
    assert other.promotion.verdict == "not registered"
    assert "promote.auto=first" in other.promotion.reason


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"limit": 50, "promote__auto": "always"}, "limit=50: the model of a smoke run is not registered"),
        ({"seed": 6, "promote__auto": "never"}, "promote.auto=never"),
    ],
    ids=["smoke run", "never"],
)
def test_a_model_that_is_not_to_be_registered_is_not(store, trained, client, options, reason):
    before = len(client.search_model_versions("name='digits-classifier'"))
    outcome = do(experiment.run, TrainConfig, [*fast(epochs=1, **options), *store])
    assert (outcome.promotion.version, outcome.promotion.reason) == (None, reason)
    assert len(client.search_model_versions("name='digits-classifier'")) == before


def test_a_model_of_other_classes_is_refused_before_anything_is_prepared(store, trained, tmp_path):
    for name in ("cat", "dog"):
        for index in range(4):
            (tmp_path / "in" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (9, 9), index).save(tmp_path / "in" / name / f"{index}.png")
    words = ["--data.source", "folder", "--data.root", str(tmp_path / "in"), "--data.store", str(tmp_path / "data")]
    with pytest.raises(UserError, match="unknown to the model: cat, dog"):
        do(assessment.run, EvaluateConfig, [*PARAMS, *store, *words, "--model", f"runs:/{trained.run_id}"])
    assert not (tmp_path / "data").exists()


def test_the_recorded_configuration_is_readable_yaml(client, trained, tmp_path):
    path = client.download_artifacts(trained.run_id, "config.yaml", str(tmp_path))
    tree = yaml.safe_load(Path(path).read_text())
    assert tree["model"]["name"] == "small_cnn"
    assert tree["optimizer"]["lr"] == 0.004
