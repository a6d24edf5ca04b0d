"""The page of a training says what its files say, and every number on it is the one that others compute."""

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from tests.report_data import RUN_ID, Page, facts, put_metrics, put_pictures
from tracked_cls import evaluation, tables
from tracked_cls.report import training
from tracked_cls.report.page import NO_VALUE
from tracked_cls.scores import Scores

CLASSES = ("ant", "bee <b>", "cat")


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder with the tables of an evaluation of 300 images, and what it was made of."""
    folder, draws = tmp_path_factory.mktemp("scored"), np.random.default_rng(0)
    labels = draws.integers(0, 3, 300)
    logits = (np.eye(3)[labels] * 2 + draws.normal(size=(300, 3))).astype(np.float32)
    report = evaluation.report(Scores(logits, labels), CLASSES, 1.5, {"camera": [f"c{index % 4}" for index in range(300)]})
    tables.write_tables(report, folder / "tables", "test")
    return folder, logits, labels


@pytest.fixture
def found(scored):
    return Page(training.page(facts(scored[0], metrics={"temperature": 1.5})))


def softmax(logits):
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def test_every_number_of_the_whole_is_that_of_scikit_learn(scored, found):
    _, logits, labels = scored
    probabilities, predicted, marks = softmax(logits.astype(float)), logits.argmax(axis=1), np.eye(3)[labels]
    expected = {
        "accuracy": accuracy_score(labels, predicted),
        "label among the 5 likeliest": 1.0,
        "loss, nats": log_loss(labels, probabilities),
        "area under ROC, mean of classes": roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
        "average precision, mean of classes": average_precision_score(marks, probabilities, average="macro"),
        "Brier score": ((probabilities - marks) ** 2).sum(axis=1).mean(),
    }
    for name, score in (("precision", precision_score), ("recall", recall_score), ("F1", f1_score)):
        for average, words in (("macro", "mean of classes"), ("micro", "all images alike"), ("weighted", "classes by size")):
            expected[f"{name}, {words}"] = score(labels, predicted, average=average)
    shown = {row[0]: row[1] for row in found.tables["All numbers on the test images"][1:]}
    assert set(shown) - set(expected) == {"calibration error (ECE)"}
    assert {name: shown[name] for name in expected} == {name: f"{value:.4f}" for name, value in expected.items()}


def test_the_top_says_the_accuracy_with_its_interval(scored, found):
    _, logits, labels = scored
    accuracy = (logits.argmax(axis=1) == labels).mean()
    written = json.loads((scored[0] / "tables" / "test_metrics.json").read_text())["accuracy"]
    low, high = 100 * written["low"], 100 * written["high"]
    assert f"Of 300 test images, {100 * accuracy:.2f} % are labelled right." in found.text
    assert f"it is between {low:.2f} and {high:.2f} % (95 % confidence)" in found.text


def test_numbers_of_each_class_are_those_of_scikit_learn(scored, found):
    _, logits, labels = scored
    predicted, probabilities = logits.argmax(axis=1), softmax(logits.astype(float))
    rows = found.tables["Each class, with 95 % intervals"]
    assert rows[0] == ["class", "precision", "recall", "F1", "ROC AUC", "average precision", "images"]
    for label, row in enumerate(rows[1:]):
        expected = [score(labels == label, predicted == label) for score in (precision_score, recall_score, f1_score)]
        expected += [score(labels == label, probabilities[:, label]) for score in (roc_auc_score, average_precision_score)]
        assert row[0] == CLASSES[label]
        assert [cell.split()[0] for cell in row[1:6]] == [f"{value:.3f}" for value in expected]
        assert row[6] == str((labels == label).sum())


def test_what_is_most_often_mistaken_is_counted_from_the_predictions(scored, found):
    _, logits, labels = scored
    matrix = confusion_matrix(labels, logits.argmax(axis=1))
    pairs = sorted(((matrix[t, p], t, p) for t in range(3) for p in range(3) if t != p), key=lambda pair: (-pair[0], *pair[1:]))
    expected = [[CLASSES[t], CLASSES[p], str(n), f"{100 * n / matrix[t].sum():.1f} %"] for n, t, p in pairs]
    assert found.tables["Most often mistaken"][1:] == expected


def test_calibration_is_shown_before_and_after_the_temperature(scored, found):
    _, logits, labels = scored
    rows = {row[0]: row for row in found.tables["Before and after"][1:]}
    assert set(rows) == {"calibration error (ECE)", "Brier score", "loss, nats"}
    before, after = (log_loss(labels, softmax(logits.astype(float) / temperature)) for temperature in (1, 1.5))
    assert (rows["loss, nats"][1], rows["loss, nats"][3]) == (f"{before:.4f}", f"{after:.4f}")
    assert "The temperature is 1.500, fitted on the validation images alone: the model was too sure of itself." in found.text


def test_slices_are_those_of_the_table(scored, found):
    _, logits, labels = scored
    right = logits.argmax(axis=1) == labels
    rows = found.tables["Accuracy by slice"][1:]
    assert [row[:3] for row in rows] == [["camera", f"c{place}", "75"] for place in range(4)]
    assert [row[3].split()[0] for row in rows] == [f"{right[place::4].mean():.3f}" for place in range(4)]


def test_pictures_come_with_words_for_who_cannot_see_them(tmp_path):
    put_metrics(tmp_path, {"accuracy": 0.5})
    put_pictures(tmp_path, "curves.png", "test_mistakes.png", "test_roc.png", "strange.png")
    (tmp_path / "tables" / "test_pictures.json").write_text(json.dumps({"test_mistakes.png": "A cat, taken for a <dog>"}))
    found = Page(training.page(facts(tmp_path)))
    assert len(found.images) == 3
    assert "A cat, taken for a <dog>" in {image["alt"] for image in found.images}
    assert all(len(image["alt"]) > 20 for image in found.images)
    assert found.headings[1:4] == ["How it learned", "What it gets right", "Images to look at"]


def test_options_that_differ_from_the_defaults_come_first(tmp_path):
    params = {"model": "small_cnn", "optimizer": "sgd", "optimizer.lr": "0.1", "optimizer.momentum": "0.5", "epochs": "12"}
    found = Page(training.page(facts(tmp_path, params={**params, "seed": "0", "min": "<i>"})))
    changed = {row[0]: row[1:] for row in found.tables["What differs from the defaults"][1:]}
    assert changed["optimizer.momentum"] == ["0.5", "0.9"]
    assert {"model", "optimizer"} <= set(changed)
    assert "seed" not in changed
    assert "epochs" not in changed
    assert len(found.tables["All 7 options"]) == 8


@pytest.mark.parametrize("text", ["0.050", "5e-2"])
def test_a_default_in_other_letters_is_still_the_default(tmp_path, text):
    from tracked_cls.config import TrainConfig, flatten

    default = flatten(TrainConfig())
    assert default["optimizer.weight_decay"] == 0.05
    found = Page(training.page(facts(tmp_path, params={"optimizer.weight_decay": text})))
    assert "All options are at their defaults." in found.text


def test_where_it_comes_from_and_how_to_go_on(tmp_path):
    tags = {
        "data.digest": "d1",
        "weights.digest": "w1",
        "replays": "r1",
        "promotion.verdict": "kept",
        "promotion.reason": "no <better>",
    }
    (tmp_path / "environment.json").write_text(json.dumps({"python": "3.12", "packages": {"torch": "2.15"}}))
    found = Page(training.page(facts(tmp_path, tags=tags, params={"model.weights": "runs:/abc", "epochs": "12"})))
    assert found.facts["Data digest"] == "d1"
    assert found.facts["Weights digest"] == "w1"
    assert found.facts["Repeats run"] == "r1"
    assert found.facts["Began from weights"] == "runs:/abc"
    assert (found.facts["python"], found.facts["torch"]) == ("3.12", "2.15")
    assert "Registry: kept, no <better>." in found.text
    assert f"-e train -P from_run={RUN_ID}" in found.text


def test_a_trial_has_no_test_numbers_and_says_so(tmp_path):
    found = Page(
        training.page(facts(tmp_path, "trial", metrics={"val_accuracy_best": 0.975, "best_epoch": 3}, status="KILLED"))
    )
    assert (
        "At the best epoch 97.50 % of the validation images are labelled right; the test images were not looked at."
        in found.text
    )
    assert "killed" in found.text
    assert "predict" not in found.text


def test_many_classes_are_cut_to_the_weakest(tmp_path):
    put_metrics(tmp_path, {"accuracy": {"value": 0.9, "low": 0.8, "high": 0.95}})
    with (tmp_path / "tables" / "test_per_class.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "f1", "support"])
        writer.writerows([[f"class {index}", index / 1000 if index % 2 else "nan", 5] for index in range(1000)])
    found = Page(training.page(facts(tmp_path)))
    rows = found.tables["Each class"][1:]
    assert len(rows) == 60
    assert "The 60 classes of lowest F1 of 1,000; all are in tables/test_per_class.csv." in found.text
    assert [row[0] for row in rows[:2]] == ["class 1", "class 3"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tables/test_metrics.json", b"{", "test_metrics.json: not valid JSON"),
        ("tables/test_metrics.json", b"[1]", "test_metrics.json: expected a mapping of metrics, got list"),
        ("tables/test_metrics.json", b'{"accuracy": "high"}', "'accuracy' must be a number, or have value, low and high"),
        ("tables/test_metrics.json", b"[" * 100_000, "test_metrics.json: not valid JSON"),
        ("tables/test_per_class.csv", b"name,f1\na,1\n", "test_per_class.csv: column 'class' is missing"),
        ("tables/test_per_class.csv", b"\xff\xfe", "test_per_class.csv: not a text in UTF-8"),
        ("tables/test_confusion.csv", b"t,a,b\na,1,x\n", "counts must be whole numbers"),
        ("tables/test_slices.csv", b"column,value\n", "test_slices.csv: column 'count' is missing"),
        ("environment.json", b"3", "environment.json: expected a mapping, got int"),
    ],
)
def test_a_damaged_file_costs_its_part_of_the_page_and_is_named(tmp_path, name, content, words):
    put_metrics(tmp_path, {"accuracy": 0.5})
    (tmp_path / name).write_bytes(content)
    found = Page(training.page(facts(tmp_path)))
    assert words in found.text
    assert found.text.count(words) == 1
    assert "What next" in found.headings


@pytest.mark.parametrize("content", [b"", b"no picture", b"GIF89a" + bytes(100)], ids=["empty", "text", "gif"])
def test_what_is_no_png_is_not_shown(tmp_path, content):
    put_pictures(tmp_path, "network.png")
    (tmp_path / "plots" / "curves.png").write_bytes(content)
    assert len(Page(training.page(facts(tmp_path))).images) == 1


def test_a_number_that_is_not_defined_is_a_dash(tmp_path):
    put_metrics(tmp_path, {"accuracy": {"value": 0.5, "low": None, "high": None}, "roc_auc_macro": {"value": None}})
    rows = {row[0]: row[1:] for row in Page(training.page(facts(tmp_path))).tables["All numbers on the test images"][1:]}
    assert rows == {"accuracy": ["0.5000", NO_VALUE], "area under ROC, mean of classes": [NO_VALUE, NO_VALUE]}
