"""Evaluation as a use case: what is scored, written, counted and said."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
from conftest import PARAMS, do
from learning_data import digits, make_feed, noise, one_thread, shape_of  # noqa: F401 - one_thread applies by being here

from tracked_cls import assessment, registry, tables, tracking
from tracked_cls.config import EvaluateConfig, ModelConfig, TrackingConfig
from tracked_cls.data.loaders import open_split
from tracked_cls.errors import UserError
from tracked_cls.evaluation import MultiLabelScores, Scores, report
from tracked_cls.models import make_model
from tracked_cls.serving.classifier import temperature_of


@pytest.fixture(scope="module")
def val():
    """The validation split of a few digits."""
    return open_split(make_feed(digits()), "val")


@pytest.fixture(scope="module")
def judged(val):
    """What an untrained network says about it."""
    network = make_model(ModelConfig(name="small_cnn"), shape_of(val.prepared))
    return assessment.score_split(network, val, 8, temperature=2.0, slices=["label"])


@pytest.fixture(scope="module")
def written(judged, val, tmp_path_factory):
    """The folder of a report."""
    folder = tmp_path_factory.mktemp("report")
    tables.write_tables(judged, folder / "tables", "val", val)
    return folder


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- a split ---------------------------------------------------------------------------------------------------------


def test_a_split_is_scored_with_its_temperature_and_slices(judged, val):
    labels = val.prepared.manifest.labels[val.indices]
    np.testing.assert_array_equal(judged.scores.labels, labels)
    assert judged.temperature == 2
    assert [one.value for one in judged.slices] == [f"class-{label}" for label in np.unique(labels)]
    assert sum(one.count for one in judged.slices) == len(val)


def test_a_column_without_slices_is_refused_before_the_work(val):
    with pytest.raises(UserError, match=r"evaluate\.slices: group"):
        assessment.score_split(None, val, 8, slices=["group"])


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "2", None, True])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(UserError, match=r"temperature must be a number above 0"):
        temperature_of({"temperature": temperature})


def test_a_model_without_a_temperature_has_one():
    assert temperature_of({}) == 1
    assert temperature_of({"temperature": 1.5}) == 1.5


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_every_number_is_written_with_its_interval(judged, written):
    stored = json.loads((written / "tables" / "val_metrics.json").read_text())
    assert set(stored) == set(judged.estimates)
    for name, found in judged.estimates.items():
        assert stored[name] == {"value": found.value, "low": found.low, "high": found.high}


def test_what_is_not_defined_is_null_in_json(tmp_path):
    found = report(Scores(np.array([[1, 0], [2, 0]], np.float32), np.array([0, 0])), ("a", "b"))
    tables.write_tables(found, tmp_path / "tables", "val")
    text = (tmp_path / "tables" / "val_metrics.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["roc_auc_macro"] == {"value": None, "low": None, "high": None}
    assert not (tmp_path / "tables" / "val_predictions.parquet").exists()
    assert not (tmp_path / "tables" / "val_slices.csv").exists()


def test_tables_hold_the_classes_the_bins_and_the_slices(judged, written):
    tables_of = written / "tables"
    classes = rows_of(tables_of / "val_per_class.csv")
    assert [row["class"] for row in classes] == list(judged.classes)
    assert [float(row["f1_low"]) for row in classes] == [row["f1_low"] for row in judged.per_class]
    bins = rows_of(tables_of / "val_reliability.csv")
    assert [int(row["count_calibrated"]) for row in bins] == judged.reliability_calibrated.counts.tolist()
    assert (float(bins[0]["low"]), float(bins[-1]["high"])) == (0, 1)
    np.testing.assert_array_equal([float(row["accuracy"]) for row in bins], judged.reliability.accuracy)
    for suffix, found in (("", judged.reliability), ("_calibrated", judged.reliability_calibrated)):
        np.testing.assert_array_equal([float(row[f"confidence{suffix}"]) for row in bins], found.confidence)
    slices = rows_of(tables_of / "val_slices.csv")
    assert [(row["value"], float(row["accuracy_high"])) for row in slices] == [
        (one.value, one.accuracy.high) for one in judged.slices
    ]
    confusion = list(csv.reader((tables_of / "val_confusion.csv").open()))
    assert [[int(count) for count in row[1:]] for row in confusion[1:]] == judged.confusion.tolist()


def test_predictions_hold_a_row_for_each_image(judged, val, written):
    table = pyarrow.parquet.read_table(written / "tables" / "val_predictions.parquet")
    manifest, scores = val.prepared.manifest, judged.scores
    assert table.column_names == ["id", "path", "label", "predicted", "probability", "right"] + [
        f"logit:{name}" for name in judged.classes
    ]
    assert table["id"].to_pylist() == [manifest.ids[index] for index in val.indices]
    assert table["path"].to_pylist() == [manifest.paths[index] for index in val.indices]
    assert table["label"].to_pylist() == [judged.classes[label] for label in scores.labels]
    assert table["predicted"].to_pylist() == [judged.classes[label] for label in scores.predictions]
    assert table["right"].to_pylist() == scores.right.tolist()
    np.testing.assert_allclose(table["probability"].to_numpy(), scores.probabilities.max(axis=1))
    for label, name in enumerate(judged.classes):
        assert table.schema.field(f"logit:{name}").type == pyarrow.float32()
        np.testing.assert_array_equal(table[f"logit:{name}"].to_numpy(), scores.logits[:, label])


def test_several_labels_are_joined(tmp_path):
    split = open_split(make_feed(noise([0, 1, 2])), "train")
    marks = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.uint8)
    manifest = replace(split.prepared.manifest, labels=marks)
    split = replace(split, feed=replace(split.feed, prepared=replace(split.prepared, manifest=manifest)))
    found = report(MultiLabelScores(np.where(marks[::-1], 1, -1).astype(np.float32), marks), manifest.classes)
    tables.write_predictions(found, split, tmp_path / "x.parquet", separator=";")
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    assert table["label"].to_pylist() == ["class-0;class-2", "", "class-1"]
    assert table["predicted"].to_pylist() == ["class-1", "", "class-0;class-2"]
    assert not {"right", "probability"} & set(table.column_names)


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_what_is_said_names_the_interval_the_weakest_and_what_is_left_out():
    logits = np.eye(4, dtype=np.float32)[[0] * 90 + [1] * 10 + [1] * 40 + [2] * 60] * 9
    labels = np.array([0] * 100 + [1] * 40 + [2] * 60)
    found = report(
        Scores(logits, labels), ("a", "b", "c", "d"), columns={"group": ["x"] * 81 + ["w"] * 10 + ["y"] * 18 + ["z"] * 91}
    )
    said = "\n".join(
        assessment.lines(assessment.Evaluation("run", "http://there", "http://there/page", "models:/m/1", "test", found, 3))
    )
    accuracy = found.estimates["accuracy"]
    assert f"accuracy 0.9500 (95 %: {accuracy.low:.4f} to {accuracy.high:.4f})" in said
    assert "200 images; the test images were looked at 3 times with this model" in said
    assert "note: no image of d" in said
    assert said.index("b: precision 0.800") < said.index("a: precision 1.000") < said.index("c: precision 1.000")
    assert "d: precision" not in said
    assert "group y: accuracy 0.500" in said
    assert "group w" not in said  # 9 of 10: lower, but by no more than chance


def test_every_look_at_the_test_images_is_counted_in_the_run_that_trained(trained, client, store):
    before = int(client.get_run(trained.run_id).data.tags.get(registry.TEST_READS, 1))
    words = [*PARAMS, *store, "--threads", "1", "--tracking.pictures", "false", "--model"]
    read = do(assessment.run, EvaluateConfig, [*words, "models:/digits-classifier/1"])
    unread = do(assessment.run, EvaluateConfig, [*words, f"runs:/{trained.run_id}", "--split", "val"])
    assert (read.reads, unread.reads) == (before + 1, None)
    assert client.get_run(trained.run_id).data.tags[registry.TEST_READS] == str(before + 1)
    artifacts = {item.path for item in client.list_artifacts(unread.run_id, "tables")}
    assert artifacts >= {f"tables/val_{name}" for name in ("metrics.json", "per_class.csv", "predictions.parquet")}
    assert not client.list_artifacts(unread.run_id, "plots")
    metrics = client.get_run(unread.run_id).data.metrics
    assert metrics["val_images_per_second"] > 0
    assert metrics["latency_ms"] > 0
    assert {"val_accuracy_low", "val_ece_calibrated", "val_brier", "val_roc_auc_macro"} <= set(metrics)


def test_a_run_that_was_deleted_is_not_counted(store, trained, client):
    run = client.create_run("0")
    client.delete_run(run.info.run_id)
    with tracking.open_tracker(TrackingConfig(uri=store[1])) as tracker:
        assert registry.count_read(tracker.client, run.info.run_id) is None
