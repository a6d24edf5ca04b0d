"""Wrong labels are found: in cases with a known answer, and in real digits whose labels were changed on purpose."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from tracked_cls.suspects import find_suspects, margins, thresholds

# thresholds: class 0 (0.9 + 0.8 + 0.1) / 3 = 0.6, class 1 (0.7 + 0.7 + 0.1) / 3 = 0.5, class 2 0.3
PROBABILITIES = np.array(
    [
        [0.90, 0.05, 0.05],
        [0.80, 0.10, 0.10],
        [0.10, 0.80, 0.10],  # labelled 0, surely a 1
        [0.20, 0.70, 0.10],
        [0.25, 0.70, 0.05],
        [0.55, 0.10, 0.35],  # labelled 1, though no 0 to be sure of, and a 2 to the standards of 2
        [0.45, 0.25, 0.30],  # labelled 2, which is as likely as a 2 ever is
    ]
)
LABELS = np.array([0, 0, 0, 1, 1, 1, 2])


def test_thresholds_are_the_mean_probability_of_each_label():
    assert thresholds(PROBABILITIES, LABELS) == pytest.approx([0.6, 0.5, 0.3])


def test_a_class_without_images_has_a_threshold_that_only_certainty_reaches():
    assert thresholds(np.array([[0.5, 0.5]]), np.array([0])) == pytest.approx([0.5, 1.0])


def test_scores_are_log_ratios_relative_to_the_thresholds():
    found = find_suspects(PROBABILITIES, LABELS)
    expected = [(0.1 / 0.6) / (0.8 / 0.5), (0.1 / 0.5) / (0.35 / 0.3), (0.3 / 0.3) / (0.45 / 0.6)]
    assert found.scores[[2, 5, 6]] == pytest.approx(np.log(expected))
    assert found.rivals[[2, 5, 6]].tolist() == [1, 2, 0]


def test_the_most_suspect_come_first():
    assert find_suspects(PROBABILITIES, LABELS).order.tolist()[:3] == [2, 5, 6]


def test_errors_are_what_reaches_the_threshold_of_another_class_first():
    assert np.flatnonzero(find_suspects(PROBABILITIES, LABELS).are_errors).tolist() == [2, 5]


def test_what_reaches_no_threshold_is_no_error():
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0], [0.4, 0.6]])
    labels = np.array([0, 1, 0])
    assert thresholds(probabilities, labels) == pytest.approx([0.7, 1.0])
    assert not find_suspects(probabilities, labels).are_errors.any()


def test_equal_scores_go_by_the_probability_of_the_label_then_by_position():
    probabilities = np.array([[0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [0.3, 0.3, 0.4], [0.3, 0.3, 0.4]] * 2)[:, :2]
    labels = np.array([0, 1, 0, 1] * 2)
    assert find_suspects(probabilities, labels).order.tolist() == [2, 3, 6, 7, 0, 1, 4, 5]


def test_margins_are_between_the_label_and_the_best_other_class():
    assert margins(PROBABILITIES, LABELS)[[0, 2, 5]] == pytest.approx([0.85, -0.7, -0.45])


def test_probabilities_of_exactly_zero_are_ranked_too():
    found = find_suspects(np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), np.array([0, 0, 1]))
    assert np.isfinite(found.scores).all()
    assert found.order[0] == 0


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_changed_labels_of_real_digits_are_among_the_most_suspect(share):
    data = load_digits()
    random = np.random.default_rng(0)
    changed = random.permutation(len(data.target))[: int(share * len(data.target))]
    labels = data.target.astype(np.int64)
    labels[changed] = (labels[changed] + random.integers(1, 10, len(changed))) % 10
    model = KNeighborsClassifier(10)
    probabilities = cross_val_predict(model, data.data, labels, cv=3, method="predict_proba")
    found = find_suspects(probabilities, labels)
    most = set(found.order[: int((share + 0.01) * len(labels))].tolist())
    assert len(most & set(changed.tolist())) >= 0.9 * len(changed)
    assert np.isin(np.flatnonzero(found.are_errors), changed).mean() > 0.6
