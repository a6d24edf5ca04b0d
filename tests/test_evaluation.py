"""Scores and running sums, against scikit-learn and values made by hand."""

from __future__ import annotations

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


@pytest.mark.parametrize("present", [range(8), [0, 2, 5]], ids=["all classes", "some classes absent"])
def test_report_is_scikit_learns(present):
    some = scores(labels=RNG.choice(list(present), 200))
    found = report(some, CLASSES)
    every = np.arange(8)
    precision, recall, f1, support = reference.precision_recall_fscore_support(
        some.labels, some.predictions, labels=every, zero_division=0
    )
    assert [row["class"] for row in found.per_class] == list(CLASSES)
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1), ("support", support)):
        assert [row[name] for row in found.per_class] == expected.tolist()
    by_hand = np.zeros((8, 8), int)
    for true, predicted in zip(some.labels, some.predictions, strict=True):
        by_hand[true, predicted] += 1
    np.testing.assert_array_equal(found.confusion, by_hand)
    assert found.metrics == pytest.approx(
        {
            "accuracy": np.trace(by_hand) / 200,
            "top5_accuracy": some.top_accuracy(5),
            "loss": some.loss,
            "precision_macro": precision.mean(),
            "recall_macro": recall.mean(),
            "f1_macro": f1.mean(),
        }
    )


def test_a_report_worked_out_by_hand():
    # true a a a b, said a a b b; nobody is c
    logits = np.eye(3, dtype=np.float32)[[0, 0, 1, 1]]
    found = report(Scores(logits, np.array([0, 0, 0, 1])), ("a", "b", "c"))
    assert found.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert found.per_class == [
        {"class": "a", "precision": 1.0, "recall": pytest.approx(2 / 3), "f1": pytest.approx(0.8), "support": 3},
        {"class": "b", "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1},
        {"class": "c", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
    ]
    assert found.metrics["accuracy"] == 0.75
    assert found.metrics["recall_macro"] == pytest.approx((2 / 3 + 1 + 0) / 3)


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
    found = report(some, CLASSES[:5])
    said = (some.logits > 0).astype(int)
    precision, recall, f1, support = reference.precision_recall_fscore_support(some.labels, said, zero_division=0)
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1), ("support", support)):
        assert [row[name] for row in found.per_class] == expected.tolist()
    sure = 1 / (1 + np.exp(-some.logits.astype(np.float64)))
    by_class = [reference.log_loss(some.labels[:, k], sure[:, k], labels=[0, 1]) for k in range(5)]
    assert found.confusion is None
    assert found.metrics == pytest.approx(
        {
            "accuracy": reference.accuracy_score(some.labels, said),
            "label_accuracy": 1 - reference.hamming_loss(some.labels, said),
            "loss": np.mean(by_class),
            "precision_macro": precision.mean(),
            "recall_macro": recall.mean(),
            "f1_macro": f1.mean(),
        }
    )


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
