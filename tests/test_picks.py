"""Which images are shown, against a plain computation."""

from __future__ import annotations

import numpy as np
import pytest

from tracked_cls import picks
from tracked_cls.picks import Pick
from tracked_cls.scores import MultiLabelScores, Scores

RNG = np.random.default_rng(0)


def single(num=60, num_classes=5):
    return Scores(RNG.normal(scale=2, size=(num, num_classes)).astype(np.float32), RNG.integers(0, num_classes, num))


def several(num=60, num_classes=4):
    logits = RNG.normal(scale=2, size=(num, num_classes)).astype(np.float32)
    noise = RNG.normal(scale=1, size=logits.shape)
    return MultiLabelScores(logits, (logits + noise > 0).astype(np.uint8))


def of_logits(*rows, labels):
    return Scores(np.log(np.array(rows)).astype(np.float32), np.array(labels, np.int64))


def plain(scores):
    """Return (row, predicted, its probability, margin over the next, right) of each image."""
    for row, (logits, label) in enumerate(zip(scores.logits.astype(float), scores.labels, strict=True)):
        shares = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-shares)
        yield row, order[0], shares[order[0]], shares[order[0]] - shares[order[1]], order[0] == label


def rows(found):
    return [pick.row for pick in found]


def test_mistakes_are_the_most_confident_wrong_ones():
    scores = single()
    wrong = sorted((item for item in plain(scores) if not item[4]), key=lambda item: -item[2])
    found = picks.mistakes(scores, 7)
    assert [(pick.row, pick.target) for pick in found] == [(row, said) for row, said, *_ in wrong[:7]]
    assert [pick.probability for pick in found] == pytest.approx([share for _, _, share, *_ in wrong[:7]])


def test_unsure_are_those_of_the_least_margin():
    scores = single()
    assert rows(picks.unsure(scores, 7)) == [item[0] for item in sorted(plain(scores), key=lambda item: item[3])[:7]]


@pytest.mark.parametrize(("most", "each"), [(12, 2), (5, 1), (9, 1)])
def test_right_ones_are_equally_many_of_each_class_the_surest(most, each):
    scores = single(300)
    found = picks.right(scores, most)
    expected = []
    for label in range(5):
        own = [item for item in plain(scores) if item[4] and item[1] == label]
        expected += [item[0] for item in sorted(own, key=lambda item: -item[2])[:each]]
    assert rows(found) == expected


def test_of_many_classes_right_ones_are_spread_over_all():
    scores = Scores(np.eye(1000, dtype=np.float32) * 9, np.arange(1000))
    found = picks.right(scores, 12)
    assert len(found) == 12
    assert rows(found)[0] == 0
    assert rows(found)[-1] == 999


def test_equal_ones_come_in_the_order_of_the_images():
    scores = of_logits(*[[0.7, 0.3]] * 4, labels=[1, 1, 0, 0])
    assert rows(picks.mistakes(scores, 5)) == [0, 1]
    assert rows(picks.unsure(scores, 3)) == [0, 1, 2]
    assert rows(picks.right(scores, 2)) == [2, 3]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (of_logits([0.9, 0.1], labels=[0]), (0, 1, 1)),
        (of_logits([0.9, 0.1], labels=[1]), (1, 1, 0)),
        (of_logits([1.0], [1.0], labels=[0, 0]), (0, 0, 2)),
        (of_logits([0.6, 0.3, 0.1], [0.6, 0.3, 0.1], labels=[0, 0]), (0, 2, 2)),
    ],
    ids=["one image, right", "one image, wrong", "one class", "classes absent"],
)
def test_where_there_is_nothing_to_show_nothing_is_picked(scores, expected):
    assert tuple(len(pick(scores, 12)) for pick in (picks.mistakes, picks.unsure, picks.right)) == expected


# ---- several labels --------------------------------------------------------------------------------------------------


def test_with_several_labels_mistakes_are_those_furthest_from_the_truth():
    scores = several()
    shares = 1 / (1 + np.exp(-scores.logits.astype(float)))
    errors = np.abs(shares - scores.labels)
    worst = [row for row in np.argsort(-errors.max(axis=1)) if errors[row].max() > 0.5][:6]
    assert picks.mistakes(scores, 6) == [
        Pick(row, errors[row].argmax(), pytest.approx(shares[row, errors[row].argmax()])) for row in worst
    ]


def test_with_several_labels_unsure_are_those_nearest_one_half():
    scores = several()
    distances = np.abs(1 / (1 + np.exp(-scores.logits.astype(float))) - 0.5)
    found = picks.unsure(scores, 6)
    assert rows(found) == np.argsort(distances.min(axis=1))[:6].tolist()
    assert [pick.target for pick in found] == distances[rows(found)].argmin(axis=1).tolist()


def test_with_several_labels_right_ones_have_all_labels_right_and_one_at_least():
    scores = MultiLabelScores(
        np.array([[5, -5], [3, -3], [-9, -9], [4, 4], [-5, 5], [2, -9], [-2, 2], [-4, 4]], np.float32),
        np.array([[1, 0], [1, 0], [0, 0], [1, 1], [1, 1], [1, 0], [0, 1], [0, 1]], np.uint8),
    )
    assert [(pick.row, pick.target) for pick in picks.right(scores, 4)] == [(0, 0), (3, 0), (7, 1), (6, 1)]
