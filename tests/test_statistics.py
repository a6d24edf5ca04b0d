"""Intervals, calibration and rankings, against scikit-learn, slow plain forms, and what is known to be true."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse, special, stats
from sklearn import metrics as reference

from tracked_cls.statistics import calibration, intervals, ranking
from tracked_cls.statistics.counts import Counts, mean_of_known

NAN = float("nan")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def covered(low, high, truth):
    """Return the share of intervals that hold the truth."""
    return float(np.mean((low <= truth) & (truth <= high)))


# ---- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (1, 1), (3, 7), (0, 50), (49, 50), (9_950, 10_000)])
def test_wilsons_interval_is_scipys(hits, total):
    found, expected = intervals.share(hits, total), stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((hits / total, expected.low, expected.high), abs=1e-12)


def test_a_share_of_nothing_is_not_a_number():
    found = intervals.share(0, 0)
    assert np.isnan([found.value, found.low, found.high]).all()


def test_a_perfect_share_is_its_own_upper_bound_and_leaves_room_below():
    found = intervals.share(20, 20)
    assert (found.value, found.high) == (1, 1)
    assert 0.8 < found.low < 0.9


def test_rounding_puts_no_bound_beyond_the_share_or_the_possible():
    totals = np.arange(1, 500)
    low, high = intervals.wilson(np.zeros(499), totals)
    assert (low == 0).all()
    low, high = intervals.wilson(totals, totals)
    assert (high == 1).all()


def test_shares_of_a_table_are_those_of_its_cells():
    hits, totals = np.array([[0, 1], [2, 3]]), np.array([[0, 4], [2, 9]])
    low, high = intervals.wilson(hits, totals)
    for cell in ((0, 1), (1, 0), (1, 1)):
        one = intervals.share(hits[cell], totals[cell])
        assert (low[cell], high[cell]) == (one.low, one.high)
    assert np.isnan([low[0, 0], high[0, 0]]).all()


def test_wilsons_interval_holds_the_truth_as_often_as_it_says():
    hits, truths = np.arange(51), np.linspace(0.02, 0.98, 97)
    low, high = intervals.wilson(hits, np.full(51, 50))
    shares = [stats.binom.pmf(hits, 50, truth)[(low <= truth) & (truth <= high)].sum() for truth in truths]
    assert np.mean(shares) == pytest.approx(0.95, abs=0.01)
    assert min(shares) > 0.88


def test_an_interval_on_the_logit_scale_stays_inside():
    low, high = intervals.around([0.9, 0.999, 0.0, 1.0, NAN], [0.02, 0.01, 0.0, 0.0, 0.1])
    width = 1.959963984540054 * 0.02 / (0.9 * 0.1)
    assert (low[0], high[0]) == pytest.approx((special.expit(np.log(9) - width), special.expit(np.log(9) + width)))
    assert 0 < low[1] < 0.999 < high[1] < 1
    assert np.isnan([low[2:], high[2:]]).all()


# ---- resampling ------------------------------------------------------------------------------------------------------


def test_percentiles_are_numpys_without_what_is_unknown(rng):
    samples = rng.normal(size=(101, 4, 3))
    samples[rng.random(samples.shape) < 0.2] = np.nan
    low, high = intervals.percentiles(samples)
    np.testing.assert_allclose(low, np.nanquantile(samples, 0.025, axis=0))
    np.testing.assert_allclose(high, np.nanquantile(samples, 0.975, axis=0))


def test_percentiles_of_nothing_known_are_unknown():
    assert np.isnan(intervals.percentiles(np.full((5, 2), np.nan))).all()


@pytest.mark.parametrize("at_once", [4_000_000, 350], ids=["in one piece", "in pieces"])
def test_every_resample_draws_as_many_images_as_there_are(rng, monkeypatch, at_once):
    monkeypatch.setattr(intervals, "_WEIGHTS_AT_ONCE", at_once)
    values = rng.normal(size=100)
    sums = intervals.resampled_sums(sparse.csr_array(np.stack([np.ones(100), values], axis=1)), num=2000)
    assert (sums[:, 0] == 100).all()
    assert sums[:, 1].mean() == pytest.approx(values.sum(), abs=4 * values.std() * 10 / np.sqrt(2000))
    assert sums[:, 1].std() == pytest.approx(values.std() * 10, rel=0.06)
    assert len(np.unique(sums[:, 1])) == 2000


def test_resamples_follow_from_the_seed(rng):
    columns = sparse.csr_array(rng.normal(size=(50, 2)))
    first, again, other = (intervals.resampled_sums(columns, num=20, seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert not (first == other).any()


def test_what_is_the_same_in_every_resample_has_no_interval():
    found = intervals.bootstrapped(1.0, np.ones(100))
    assert found.value == 1
    assert np.isnan([found.low, found.high]).all()


def test_bootstrapped_intervals_hold_the_truth_as_often_as_they_say(rng):
    bounds = []
    for _ in range(300):
        values = rng.exponential(size=(200, 1))
        samples = intervals.resampled_sums(sparse.csr_array(values), num=300)[:, 0] / 200
        found = intervals.bootstrapped(values.mean(), samples)
        bounds.append((found.low, found.high))
    assert 0.9 <= covered(*np.transpose(bounds), truth=1) <= 0.99


# ---- precision, recall, F1 -------------------------------------------------------------------------------------------


def test_counts_worked_out_by_hand():
    # class a: 2 of 3 found, 2 of 4 said rightly; b: never said; c: nobody has it
    counts = Counts(np.array([2.0, 0, 0]), np.array([4.0, 0, 1]), np.array([3.0, 2, 0]))
    np.testing.assert_allclose(counts.precision, [1 / 2, 0, NAN])
    np.testing.assert_allclose(counts.recall, [2 / 3, 0, NAN])
    np.testing.assert_allclose(counts.f1, [4 / 7, 0, NAN])
    averages = counts.averages()
    assert averages["recall_macro"] == pytest.approx(1 / 3)
    assert averages["f1_weighted"] == pytest.approx(4 / 7 * 3 / 5)
    assert averages["precision_micro"] == pytest.approx(2 / 5)


def test_counts_of_resamples_are_those_of_each(rng):
    hits = rng.integers(0, 4, (6, 3)).astype(float)
    predicted, support = hits + rng.integers(0, 3, (6, 3)), hits + rng.integers(0, 3, (6, 3))
    together = Counts(hits, predicted, support).averages()
    for row in range(6):
        alone = Counts(hits[row], predicted[row], support[row]).averages()
        for name, value in alone.items():
            assert together[name][row] == pytest.approx(float(value), nan_ok=True)


def test_bounds_are_those_of_the_shares_behind():
    counts = Counts(np.array([8.0, 0]), np.array([9.0, 1]), np.array([10.0, 0]))
    bounds = counts.bounds()
    share = intervals.share(8, 11)  # of all images that are the class or are taken for it
    assert (bounds["precision"][0][0], bounds["precision"][1][0]) == (intervals.share(8, 9).low, intervals.share(8, 9).high)
    assert (bounds["recall"][0][0], bounds["recall"][1][0]) == (intervals.share(8, 10).low, intervals.share(8, 10).high)
    assert bounds["f1"][0][0] == pytest.approx(2 * share.low / (1 + share.low))
    assert bounds["f1"][1][0] == pytest.approx(2 * share.high / (1 + share.high))
    assert all(np.isnan([low[1], high[1]]).all() for low, high in bounds.values())


def test_bounds_of_f1_hold_the_truth_as_often_as_they_say(rng):
    # an image is a hit, a miss or a false alarm of the class, or has nothing to do with it
    hit, miss, alarm, _ = rng.multinomial(200, [0.24, 0.03, 0.05, 0.68], size=2000).T.astype(float)
    low, high = Counts(hit, hit + alarm, hit + miss).bounds()["f1"]
    assert covered(low, high, 2 * 0.24 / (2 * 0.24 + 0.03 + 0.05)) == pytest.approx(0.95, abs=0.02)


def test_the_mean_of_what_is_known():
    np.testing.assert_allclose(mean_of_known(np.array([[1, NAN, 3], [NAN] * 3])), [2, NAN])


# ---- calibration -----------------------------------------------------------------------------------------------------


def test_reliability_is_that_of_a_plain_loop(rng):
    confidence = np.concatenate([rng.random(400), [0.0, 1.0, 1 / 15, 14 / 15]])
    right = rng.random(404) < confidence**2
    found = calibration.reliability(confidence, right)
    ece = 0.0
    for index, (low, high) in enumerate(pairwise(found.edges)):
        members = (confidence > low) & (confidence <= high) | ((confidence == 0) & (low == 0))
        assert found.counts[index] == members.sum()
        assert found.confidence[index] == pytest.approx(confidence[members].mean())
        assert found.accuracy[index] == pytest.approx(right[members].mean())
        ece += members.mean() * abs(right[members].mean() - confidence[members].mean())
    assert len(found.counts) == 15
    assert found.ece == pytest.approx(ece)


def test_reliability_of_an_empty_bin_is_unknown():
    found = calibration.reliability(np.array([0.95, 0.97]), np.array([True, False]))
    assert found.counts.tolist() == [0] * 14 + [2]
    assert np.isnan(found.accuracy[:14]).all()
    assert found.accuracy[14] == 0.5
    assert found.ece == pytest.approx(0.46)


def calibration_error(confidence, right, num=200):
    """Return the calibration error of one set of statements, one per image."""
    bins = calibration.bins_of(confidence)
    gaps = sparse.coo_array((right - confidence, (np.arange(len(bins)), bins)), shape=(len(bins), 15))
    variances = np.bincount(bins, weights=confidence * (1 - confidence), minlength=15)
    found = calibration.reliability(confidence, right)
    return calibration.calibration_error(found, intervals.resampled_sums(gaps, num=num), variances)


def test_a_calibrated_model_is_not_called_otherwise(rng):
    found = []
    for _ in range(200):
        confidence = rng.uniform(0.4, 1, 500)
        found.append(calibration_error(confidence, rng.random(500) < confidence))
    assert np.mean([one.low == 0 for one in found]) >= 0.95
    assert all(one.low <= one.value <= one.high for one in found)


def test_the_error_of_an_overconfident_model_is_held_as_often_as_is_said(rng):
    found = []
    for _ in range(200):
        confidence = rng.uniform(0.6, 1, 1500)
        found.append(calibration_error(confidence, rng.random(1500) < confidence - 0.1))
    assert 0.9 <= covered(np.array([one.low for one in found]), np.array([one.high for one in found]), 0.1) <= 0.99


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_labels_were_drawn_with_is_found(rng, temperature):
    logits = rng.normal(scale=2, size=(20_000, 5)).astype(np.float32)
    shares = special.softmax(logits.astype(np.float64) / temperature, axis=1)
    labels = (rng.random((20_000, 1)) > shares.cumsum(axis=1)).sum(axis=1)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.04)


@pytest.mark.parametrize("temperature", [0.4, 2.5])
def test_the_temperature_of_several_labels_is_found(rng, temperature):
    logits = rng.normal(scale=2, size=(10_000, 4)).astype(np.float32)
    marks = (rng.random(logits.shape) < special.expit(logits / temperature)).astype(np.uint8)
    assert calibration.fit_temperature(logits, marks) == pytest.approx(temperature, rel=0.04)


def test_the_temperature_of_two_classes_has_a_closed_form():
    # 8 of 10 right, each with a lead of 6: calibrated where sigmoid(6 / T) is 0.8
    logits = np.tile(np.array([[6, 0]], np.float32), (100_000, 1))
    labels = np.array(10_000 * ([0] * 8 + [1] * 2))
    assert calibration.fit_temperature(logits, labels) == pytest.approx(6 / np.log(4), rel=1e-4)


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
def test_images_that_are_all_right_cool_the_temperature_the_more_the_more_there_are(several):
    found = []
    for count in (1, 100, 10_000):
        labels = np.arange(count) % 2
        logits = np.where(labels[:, None] == [0, 1], 1.0, -1.0).astype(np.float32)
        found.append(calibration.fit_temperature(logits, np.eye(2, dtype=np.uint8)[labels] if several else labels))
    assert 1 > found[0] > found[1] > found[2] > 0.01


def test_the_temperature_of_one_image_has_a_closed_form():
    # derivative of log(1 + exp(-lead / T)) + log(T)^2 / 2 by log T: lead / T * sigmoid(-lead / T) + log T
    found = calibration.fit_temperature(np.array([[2, 0]], np.float32), np.array([0]))
    assert 2 / found * special.expit(-2 / found) + np.log(found) == pytest.approx(0, abs=1e-4)


def test_large_logits_do_not_disturb_the_temperature():
    logits = np.array([[3000, 0], [0, 3000], [3000, 0]], np.float32)
    assert calibration.fit_temperature(logits, np.array([0, 1, 1])) == pytest.approx(100, rel=0.01)  # the bound


def test_averages_of_no_images_are_not_defined():
    nothing = Counts(np.zeros(3), np.ones(3), np.zeros(3)).averages()
    assert all(np.isnan(nothing[f"{name}_{kind}"]) for name in ("precision", "recall", "f1") for kind in ("macro", "weighted"))


# ---- rankings --------------------------------------------------------------------------------------------------------


def scored(rng, num=120, num_classes=4, ties=False):
    """Return scores [N,K], with many equal ones if asked for, of images that have each class or not."""
    marks = rng.random((num, num_classes)) < [0.5, 0.2, 0.1, 0.03][:num_classes]
    scores = rng.normal(size=marks.shape) + marks
    return (np.round(scores) if ties else scores), marks


@pytest.mark.parametrize("at_once", [4_000_000, 250], ids=["in one piece", "in pieces"])
@pytest.mark.parametrize("ties", [False, True])
def test_areas_are_scikit_learns(rng, monkeypatch, ties, at_once):
    monkeypatch.setattr(ranking, "_SCORES_AT_ONCE", at_once)
    scores, marks = scored(rng, ties=ties)
    auc, precision = ranking.rank(scores, marks)
    columns = list(zip(marks.T, scores.T, strict=True))
    np.testing.assert_allclose(auc.values, [reference.roc_auc_score(*column) for column in columns])
    np.testing.assert_allclose(precision.values, [reference.average_precision_score(*column) for column in columns])
    assert auc.macro.value == pytest.approx(reference.roc_auc_score(marks, scores, average="macro"))
    assert precision.macro.value == pytest.approx(reference.average_precision_score(marks, scores, average="macro"))


@pytest.mark.parametrize("ties", [False, True])
def test_intervals_of_areas_are_delongs(rng, ties):
    scores, marks = scored(rng, ties=ties)
    auc, _ = ranking.rank(scores, marks)
    parts = []
    for column, has_class in zip(scores.T, marks.T, strict=True):
        wins = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in column[~has_class]] for a in column[has_class]])
        of_positives, of_negatives = wins.mean(axis=1), wins.mean(axis=0)  # DeLong et al., equations 4 and 5
        variance = of_positives.var(ddof=1) / len(of_positives) + of_negatives.var(ddof=1) / len(of_negatives)
        parts.append(intervals.around(wins.mean(), np.sqrt(variance)))
    np.testing.assert_allclose(auc.low, [float(low) for low, _ in parts])
    np.testing.assert_allclose(auc.high, [float(high) for _, high in parts])


def standard_error(value, bound):
    """Return the standard error that a bound on the logit scale was made of."""
    return abs(special.logit(bound) - special.logit(value)) / intervals.Z * value * (1 - value)


@pytest.mark.parametrize("ties", [False, True])
def test_errors_of_average_precision_are_its_derivative(rng, ties):
    scores, marks = scored(rng, num=60, num_classes=3, ties=ties)
    _, precision = ranking.rank(scores, marks)
    step, parts = 1e-5, []
    for index in range(60):
        weights = np.ones(60)
        weights[index] += step
        changed = reference.average_precision_score(marks, scores, average=None, sample_weight=weights)
        parts.append((changed - precision.values) / step)
    errors = np.sqrt(np.square(parts).sum(axis=0))
    np.testing.assert_allclose(standard_error(precision.values, precision.low), errors, rtol=1e-3)
    macro = np.sqrt(np.square(np.mean(parts, axis=1)).sum())
    assert standard_error(precision.macro.value, precision.macro.low) == pytest.approx(macro, rel=1e-3)


def test_errors_of_means_over_classes_are_those_of_a_bootstrap(rng):
    scores, marks = scored(rng, num=800)
    scores += rng.normal(size=(800, 1))  # what speaks for one class speaks for all: the errors are not independent
    found = ranking.rank(scores, marks)
    drawn = [rng.integers(800, size=800) for _ in range(300)]
    resampled = [ranking.rank(scores[rows], marks[rows]) for rows in drawn]
    for kind in (0, 1):
        macro = found[kind].macro
        expected = np.std([one[kind].macro.value for one in resampled])
        assert standard_error(macro.value, macro.low) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("kind", [0, 1], ids=["roc", "precision"])
def test_intervals_of_rankings_hold_the_truth_as_often_as_they_say(rng, kind):
    def study(num, columns):
        marks = rng.random((num, columns)) < 0.3
        return ranking.rank(rng.normal(size=marks.shape) + 1.5 * marks, marks)[kind]

    found, truth = study(300, 400), study(200_000, 1).values[0]
    assert covered(found.low, found.high, truth) == pytest.approx(0.95, abs=0.025)


def test_the_error_of_a_mean_of_the_same_twice_is_that_of_one(rng):
    scores, marks = scored(rng, num_classes=1)
    alone, _ = ranking.rank(scores, marks)
    twice, _ = ranking.rank(np.hstack([scores, -scores]), np.hstack([marks, ~marks]))
    assert (twice.macro.value, twice.macro.low) == pytest.approx((alone.values[0], alone.low[0]))


def test_classes_that_no_image_has_are_unknown_and_left_out(rng):
    scores, marks = scored(rng, num_classes=3)
    marks[:, 1], marks[:, 2] = False, True
    auc, precision = ranking.rank(scores, marks)
    assert np.isnan([auc.values[1:], auc.low[1:], auc.high[1:]]).all()
    assert (auc.macro.value, auc.macro.low) == pytest.approx((auc.values[0], auc.low[0]))
    assert np.isnan([precision.values[1], precision.low[1], precision.high[1]]).all()
    assert precision.values[2] == 1
    assert precision.macro.value == pytest.approx((precision.values[0] + 1) / 2)


def test_rankings_of_nothing_known_are_unknown():
    auc, precision = ranking.rank(np.array([[0.3, 0.7]]), np.array([[False, False]]))
    assert np.isnan([auc.macro.value, auc.macro.low, precision.macro.value, precision.macro.high]).all()


def test_one_image_of_a_class_is_ranked(rng):
    scores, marks = rng.normal(size=(9, 1)), np.zeros((9, 1), bool)
    marks[4] = True
    auc, _ = ranking.rank(scores, marks)
    assert auc.values[0] == (scores < scores[4]).sum() / 8


def test_a_perfect_ranking_is_one_and_no_error_of_it_is_known():
    for found in ranking.rank(np.arange(6.0)[:, None], np.arange(6)[:, None] > 2):
        assert (found.values[0], found.macro.value) == (1, 1)
        assert np.isnan([found.low[0], found.macro.high]).all()
