"""Scores, reports and running sums, against scikit-learn and values made by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from learning_data import one_thread  # noqa: F401 - applies by being here
from sklearn import metrics as reference
from torch import nn
from torch.nn import functional

from tracked_cls import evaluation, weights
from tracked_cls.config import ModelConfig
from tracked_cls.data.loaders import Batch
from tracked_cls.errors import UserError
from tracked_cls.evaluation import MultiLabelScores, Scores, refresh_batchnorm, report, score
from tracked_cls.metrics import Sums, hits
from tracked_cls.models import Shape, make_model
from tracked_cls.statistics.intervals import share

RNG = np.random.default_rng(0)
CLASSES = tuple("abcdefgh")


def scores(num=200, num_classes=8, labels=None):
    logits = RNG.normal(scale=2, size=(num, num_classes)).astype(np.float32)
    return Scores(logits, RNG.integers(0, num_classes, num) if labels is None else np.asarray(labels, np.int64))


def probabilities(some):
    shifted = np.exp(some.logits.astype(np.float64) - some.logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def batches(sizes=(5, 5, 3), channels=1):
    torch.manual_seed(0)
    return [Batch(torch.randn(size, channels, 8, 8), torch.arange(size) % 3) for size in sizes]


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_loss_and_accuracies_are_scikit_learns():
    some = scores()
    every = np.arange(8)
    assert some.loss == pytest.approx(reference.log_loss(some.labels, probabilities(some), labels=every), rel=1e-9)
    assert some.accuracy == reference.accuracy_score(some.labels, some.predictions)
    for k in (1, 2, 5, 7):
        assert some.top_accuracy(k) == reference.top_k_accuracy_score(some.labels, some.logits, k=k, labels=every)


@pytest.mark.parametrize("k", [3, 5])
def test_top_accuracy_of_all_classes_is_one(k):
    assert scores(num_classes=3).top_accuracy(k) == 1


def test_loss_of_a_very_wrong_model_is_finite():
    some = Scores(np.array([[1000.0, 0.0]], np.float32), np.array([1]))
    assert some.loss == pytest.approx(1000)


def calibration_error(confidence, right):
    """Return the expected calibration error in 15 bins by a plain loop."""
    edges, total = np.linspace(0, 1, 16), 0.0
    for low, high in pairwise(edges):
        members = (confidence > low) & (confidence <= high)
        if members.any():
            total += members.mean() * abs(right[members].mean() - confidence[members].mean())
    return total


def expected_metrics(some, present, temperature):
    """Return what scikit-learn says of scores; means are over the classes that are present."""
    found = {
        "accuracy": reference.accuracy_score(some.labels, some.predictions),
        "top5_accuracy": reference.top_k_accuracy_score(some.labels, some.logits, k=5, labels=range(8)),
    }
    for average in ("macro", "micro", "weighted"):
        labels = None if average == "micro" else present
        parts = reference.precision_recall_fscore_support(
            some.labels, some.predictions, labels=labels, average=average, zero_division=0
        )
        found |= {f"{name}_{average}": part for name, part in zip(("precision", "recall", "f1"), parts[:3], strict=True)}
    sure, every = probabilities(some), {label: some.labels == label for label in present}
    found["roc_auc_macro"] = np.mean([reference.roc_auc_score(every[label], sure[:, label]) for label in present])
    found["pr_auc_macro"] = np.mean([reference.average_precision_score(every[label], sure[:, label]) for label in present])
    for suffix, scale in (("", 1), ("_calibrated", temperature)):
        sure = probabilities(Scores((some.logits / scale).astype(np.float32), some.labels))
        found[f"loss{suffix}"] = reference.log_loss(some.labels, sure, labels=range(8))
        found[f"ece{suffix}"] = calibration_error(sure.max(axis=1), some.predictions == some.labels)
        found[f"brier{suffix}"] = reference.brier_score_loss(some.labels, sure, labels=list(range(8)))
    return found


@pytest.mark.parametrize("present", [range(8), [0, 2, 5]], ids=["all classes", "some classes absent"])
def test_report_is_scikit_learns(present):
    some = scores(labels=RNG.choice(list(present), 200))
    found = report(some, CLASSES, temperature=1.7)
    by_hand = np.zeros((8, 8), int)
    for true, predicted in zip(some.labels, some.predictions, strict=True):
        by_hand[true, predicted] += 1
    np.testing.assert_array_equal(found.confusion, by_hand)
    assert {name: one.value for name, one in found.estimates.items()} == pytest.approx(expected_metrics(some, present, 1.7))
    assert all(one.low <= one.value <= one.high for one in found.estimates.values())
    assert found.temperature == 1.7


@pytest.mark.parametrize("present", [range(8), [0, 2, 5]], ids=["all classes", "some classes absent"])
def test_rows_of_classes_are_scikit_learns(present):
    some = scores(labels=RNG.choice(list(present), 200))
    found = report(some, CLASSES)
    precision, recall, f1, support = reference.precision_recall_fscore_support(
        some.labels, some.predictions, labels=np.arange(8), zero_division=0
    )
    assert [row["class"] for row in found.per_class] == list(CLASSES)
    assert [row["support"] for row in found.per_class] == support.tolist()
    for label, row in enumerate(found.per_class):
        names = ("precision", "recall", "f1", "roc_auc", "average_precision")
        if label not in present:
            assert np.isnan([row[name] for name in names] + [row[f"{name}_low"] for name in names]).all()
            continue
        has_class, sure = some.labels == label, probabilities(some)[:, label]
        areas = reference.roc_auc_score(has_class, sure), reference.average_precision_score(has_class, sure)
        expected = (precision[label], recall[label], f1[label], *areas)
        assert [row[name] for name in names] == pytest.approx(expected)
        assert all(row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] for name in names)


def test_a_report_worked_out_by_hand():
    # true a a a b, said a a b b; nobody is c
    logits = np.eye(3, dtype=np.float32)[[0, 0, 1, 1]]
    found = report(Scores(logits, np.array([0, 0, 0, 1])), ("a", "b", "c"))
    assert found.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    rows = [[row[name] for name in ("class", "precision", "recall", "f1", "support")] for row in found.per_class]
    assert rows[0] == ["a", 1.0, pytest.approx(2 / 3), pytest.approx(0.8), 3]
    assert rows[1] == ["b", 0.5, 1.0, pytest.approx(2 / 3), 1]
    assert (rows[2][0], rows[2][4]) == ("c", 0)
    assert np.isnan(rows[2][1:4]).all()
    assert found.metrics["accuracy"] == 0.75
    assert found.metrics["recall_macro"] == pytest.approx((2 / 3 + 1) / 2)
    assert found.notes == ("no image of c: left out of means over classes",)


def test_metrics_are_the_numbers_that_are_defined_and_the_bounds_of_the_accuracy():
    found = report(Scores(np.array([[1, 0], [2, 0]], np.float32), np.array([0, 0])), ("a", "b"))
    assert np.isnan(found.estimates["roc_auc_macro"].value)
    assert "roc_auc_macro" not in found.metrics
    assert (found.metrics["accuracy_low"], found.metrics["accuracy_high"]) == (found.estimates["accuracy"].low, 1)
    assert all(np.isfinite(value) for value in found.metrics.values())


@pytest.mark.parametrize("kind", [Scores, MultiLabelScores])
def test_a_report_is_the_same_whenever_it_is_made(kind):
    some = scores() if kind is Scores else several(num_classes=8)
    first, again = report(some, CLASSES, 2.0), report(kind(some.logits.copy(), some.labels.copy()), CLASSES, 2.0)
    assert first.estimates == again.estimates
    assert first.per_class == again.per_class


def test_one_image_is_enough_for_a_report():
    found = report(Scores(np.array([[0.5, 0.2, 0.1]], np.float32), np.array([1])), ("a", "b", "c"))
    assert (found.metrics["accuracy"], found.metrics["top5_accuracy"], found.metrics["recall_macro"]) == (0, 1, 0)
    assert found.estimates["accuracy"] == share(0, 1)
    assert all(np.isnan(found.estimates[name].low) for name in ("recall_macro", "loss", "ece", "brier", "roc_auc_macro"))


def test_no_images_are_refused():
    with pytest.raises(UserError, match="no images to evaluate"):
        report(Scores(np.zeros((0, 8), np.float32), np.zeros(0, np.int64)), CLASSES)


def test_slices_count_the_images_of_each_value():
    logits = np.eye(2, dtype=np.float32)[[0, 0, 1, 1, 0]]
    found = report(Scores(logits, np.array([0, 1, 1, 1, 0])), ("a", "b"), columns={"group": ["g10", "g2", "g2", "g10", "g2"]})
    assert [(one.column, one.value, one.count) for one in found.slices] == [("group", "g2", 3), ("group", "g10", 2)]
    assert [one.accuracy for one in found.slices] == [share(2, 3), share(2, 2)]


def test_a_temperature_softens_confidence_and_leaves_predictions_alone():
    some = scores()
    cool = some.tempered(3.0)
    np.testing.assert_array_equal(cool.predictions, some.predictions)
    np.testing.assert_allclose(cool.probabilities, probabilities(Scores(some.logits / 3, some.labels)), rtol=1e-5)
    found = report(some, CLASSES, 3.0)
    assert found.reliability_calibrated.ece == found.estimates["ece_calibrated"].value
    assert found.reliability.ece == found.estimates["ece"].value


def test_intervals_of_means_over_classes_hold_the_truth_as_often_as_they_say():
    rng, chances = np.random.default_rng(0), np.array([0.9, 0.7, 0.5])
    held = []
    for _ in range(60):
        labels = rng.integers(0, 3, 300)
        wrong = rng.random(300) > chances[labels]
        some = Scores(np.eye(3, dtype=np.float32)[(labels + wrong) % 3], labels)
        found = report(some, ("a", "b", "c")).estimates["recall_macro"]
        held.append(found.low <= chances.mean() <= found.high)
    assert 0.87 <= np.mean(held) <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    some = scores(num=10)
    some.logits[3, 2] = some.logits[3, 5] = some.logits[7, 0] = bad
    with pytest.raises(UserError, match="no finite numbers for 2 of 10 images"):
        report(some, CLASSES)


# ---- running sums ----------------------------------------------------------------------------------------------------


def test_sums_are_means_over_samples_with_uneven_batches():
    logits, labels = torch.randn(13, 4), torch.randint(0, 4, (13,))
    sums = Sums.zero(torch.device("cpu"))
    for chosen in torch.arange(13).split([6, 6, 1]):
        sums.add(
            functional.cross_entropy(logits[chosen], labels[chosen]), hits(logits[chosen], labels[chosen], multi_label=False)
        )
    assert sums.mean_loss == pytest.approx(float(functional.cross_entropy(logits.double(), labels)), rel=1e-6)
    assert sums.accuracy == float((logits.argmax(1) == labels).double().mean())
    assert sums.count == 13


def test_sums_continue_exactly_from_their_state():
    sums, fresh = Sums.zero(torch.device("cpu")), Sums.zero(torch.device("cpu"))
    sums.add(torch.tensor(1 / 3), torch.tensor([True, True, False]))
    fresh.load_state_dict(sums.state_dict())
    assert (fresh.mean_loss, fresh.accuracy, fresh.count) == (sums.mean_loss, sums.accuracy, 3)


def test_no_samples_have_no_loss():
    assert Sums.zero(torch.device("cpu")).mean_loss == 0


# ---- the loop --------------------------------------------------------------------------------------------------------


def network(**options):
    torch.manual_seed(0)
    return make_model(ModelConfig(name="small_cnn", **options), Shape(3, 1, 8))


@pytest.mark.parametrize("was_training", [True, False])
def test_scoring_restores_the_mode_and_leaves_the_weights_alone(was_training):
    model = network(dropout=0.5).train(was_training)
    before = weights.digest(model)
    first, again = score(model, batches()), score(model, batches())
    assert model.training is was_training
    assert weights.digest(model) == before
    np.testing.assert_array_equal(first.logits, again.logits)  # dropout is off
    assert first.logits.shape == (13, 3)
    np.testing.assert_array_equal(first.labels, [0, 1, 2, 0, 1, 0, 1, 2, 0, 1, 0, 1, 2])


def test_scoring_restores_the_mode_after_an_error():
    model = network().train()
    with pytest.raises(RuntimeError):
        score(model, [Batch(torch.zeros(1, 2, 8, 8), torch.zeros(1))])
    assert model.training


def test_scores_hardly_depend_on_the_batch_size():
    model = network()
    images, labels = torch.randn(20, 1, 8, 8), torch.zeros(20, dtype=torch.int64)
    one, many = (score(model, map(Batch, images.split(size), labels.split(size))) for size in (20, 7))
    np.testing.assert_allclose(one.logits, many.logits, atol=1e-5)


def test_refreshed_batchnorm_statistics_are_the_plain_mean_over_batches():
    norm = nn.BatchNorm2d(2, momentum=0.3)
    norm.running_mean.fill_(99)  # what came before does not count
    norm.num_batches_tracked.fill_(7)
    data = [batch.images for batch in batches((6, 5, 5), channels=2)]
    refresh_batchnorm(nn.Sequential(norm), [Batch(images, torch.zeros(0)) for images in data])
    by_channel = [images.double().transpose(0, 1).flatten(1) for images in data]
    mean = sum(values.mean(1) for values in by_channel) / 3
    variance = sum(values.var(1) for values in by_channel) / 3
    torch.testing.assert_close(norm.running_mean.double(), mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(norm.running_var.double(), variance, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("was_training", [True, False])
def test_refreshing_restores_momentum_and_modes_and_leaves_the_weights_alone(was_training):
    model = network(bn_momentum=0.07, dropout=0.5).train(was_training)
    model.features[0].train(not was_training)
    modes = [module.training for module in model.modules()]
    parameters = {name: value.clone() for name, value in model.named_parameters()}
    refresh_batchnorm(model, batches())
    assert [module.training for module in model.modules()] == modes
    assert {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {0.07}
    assert all(torch.equal(value, parameters[name]) for name, value in model.named_parameters())


def test_refreshing_runs_without_dropout():
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(1))
    results = []
    for seed in (1, 2):
        data = batches()
        torch.manual_seed(seed)
        refresh_batchnorm(model, data)
        results.append(model[1].running_mean.clone())
    assert torch.equal(*results)


def test_a_network_without_batchnorm_needs_no_refresh():
    def no_images():
        raise AssertionError("nothing is computed")
        yield

    evaluation.refresh_batchnorm(nn.Linear(2, 2), no_images())


# ---- several labels, several views, frames ---------------------------------------------------------------------------


def several(num=300, num_classes=5):
    logits = RNG.normal(scale=2, size=(num, num_classes)).astype(np.float32)
    return MultiLabelScores(logits, (RNG.random((num, num_classes)) < 0.3).astype(np.uint8))


def test_a_report_of_several_labels_is_scikit_learns():
    some = several()
    found = report(some, CLASSES[:5], temperature=2.0)
    said = (some.logits > 0).astype(int)
    expected = {
        "accuracy": reference.accuracy_score(some.labels, said),
        "label_accuracy": 1 - reference.hamming_loss(some.labels, said),
    }
    for average in ("macro", "micro", "weighted"):
        parts = reference.precision_recall_fscore_support(some.labels, said, average=average, zero_division=0)
        expected |= {f"{name}_{average}": part for name, part in zip(("precision", "recall", "f1"), parts[:3], strict=True)}
    for suffix, scale in (("", 1), ("_calibrated", 2)):
        sure = 1 / (1 + np.exp(-some.logits.astype(np.float64) / scale))
        columns = list(zip(some.labels.T, sure.T, strict=True))
        expected[f"loss{suffix}"] = np.mean([reference.log_loss(*column, labels=[0, 1]) for column in columns])
        expected[f"brier{suffix}"] = np.mean([reference.brier_score_loss(*column) for column in columns])
        expected[f"ece{suffix}"] = calibration_error(sure.ravel(), some.labels.ravel())
    expected["roc_auc_macro"] = reference.roc_auc_score(some.labels, sure, average="macro")
    expected["mean_average_precision"] = reference.average_precision_score(some.labels, sure, average="macro")
    assert {name: one.value for name, one in found.estimates.items()} == pytest.approx(expected)
    assert all(one.low <= one.value <= one.high for one in found.estimates.values())
    assert found.confusion is None


def test_rows_of_several_labels_are_scikit_learns():
    some = several()
    precision, recall, f1, support = reference.precision_recall_fscore_support(some.labels, some.logits > 0, zero_division=0)
    found = report(some, CLASSES[:5])
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1), ("support", support)):
        assert [row[name] for row in found.per_class] == pytest.approx(expected)
    by_class = reference.average_precision_score(some.labels, some.probabilities, average=None)
    assert [row["average_precision"] for row in found.per_class] == pytest.approx(by_class)


def test_scoring_tells_several_labels_from_one_by_their_shape():
    model = network()
    images = torch.randn(4, 1, 8, 8)
    assert type(score(model, [Batch(images, torch.tensor([0, 1, 2, 0]))])) is Scores
    assert type(score(model, [Batch(images, torch.eye(4, 3, dtype=torch.uint8))])) is MultiLabelScores


def test_several_views_count_as_the_mean_of_their_logits():
    model = network()
    images = torch.randn(6, 1, 8, 8)
    alone = score(model, [Batch(images, torch.zeros(6, dtype=torch.int64))]).logits
    together = score(model, [Batch(images, torch.zeros(2, dtype=torch.int64), views=3)]).logits
    np.testing.assert_allclose(together, alone.reshape(2, 3, 3).mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("targets", "multi_label", "right"),
    [
        ([0, 1, 0], False, [True, True, False]),
        ([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]], False, [True, True, False]),
        ([[1, 0], [0, 1], [1, 1]], True, [True, True, False]),
    ],
    ids=["labels", "mixed shares", "several labels"],
)
def test_hits_follow_the_kind_of_the_targets(targets, multi_label, right):
    logits = torch.tensor([[2.0, -1.0], [-1.0, 2.0], [-3.0, 1.0]])
    assert hits(logits, torch.tensor(targets), multi_label=multi_label).tolist() == right


def test_a_network_of_clips_averages_the_logits_of_its_frames():
    torch.manual_seed(0)
    model = make_model(ModelConfig(name="small_cnn"), Shape(3, 1, 8, frames=4)).eval()
    clips = torch.randn(2, 4, 1, 8, 8)
    with torch.no_grad():
        by_hand = torch.stack([model.network(clips[:, frame]) for frame in range(4)]).mean(dim=0)
        torch.testing.assert_close(model(clips), by_hand)
