"""The paired statistics against scipy, statistics by hand and enumeration; the verdicts of the gate; how often it errs."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from benchmarks import gate as simulation
from benchmarks.gate import Setting
from tracked_cls import gate
from tracked_cls.config import GateSection
from tracked_cls.gate import Side
from tracked_cls.statistics import paired

CLASSES = ("cat", "dog", "owl")
COUNTS = [(0, 0), (0, 1), (5, 0), (3, 9), (9, 3), (10, 10), (61, 14), (0, 40), (350, 250)]


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gained", "lost"), COUNTS)
def test_mcnemar_is_the_exact_binomial_test_of_what_differs(gained, lost):
    count = gained + lost
    two_sided = binomtest(gained, count).pvalue if count else 1.0
    worse = sum(math.comb(count, k) for k in range(lost, count + 1)) / 2**count

    assert paired.mcnemar(np.array(gained), np.array(lost)) == pytest.approx(two_sided)
    assert paired.worsening(np.array(gained), np.array(lost)) == pytest.approx(worse)


def test_many_pairs_of_counts_are_tested_at_once():
    gained, lost = np.array(COUNTS).T
    singly = [float(paired.mcnemar(np.array(g), np.array(w))) for g, w in COUNTS]
    assert paired.mcnemar(gained, lost).tolist() == pytest.approx(singly)


def _holm_by_hand(values):
    """The procedure as its paper tells it: the smallest against m, the next against m - 1, never going down."""
    found, highest = {}, 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        found[index] = highest
    return [found[index] for index in range(len(values))]


@pytest.mark.parametrize(
    "values",
    [[0.01, 0.04, 0.03], [0.5], [0.02, 0.02, 0.02, 0.9], [0.001, 0.5, 0.2, 0.04, 0.04]],
    ids=["unsorted", "one", "equal", "more"],
)
def test_correction_is_holms(values):
    everything = np.ones(len(values), bool)
    assert paired.corrected(np.array(values), everything).tolist() == pytest.approx(_holm_by_hand(values))
    two_rows = paired.corrected(np.array([values, values[::-1]]), np.array([everything] * 2))
    assert two_rows[1].tolist() == pytest.approx(_holm_by_hand(values)[::-1])


def test_what_was_not_tested_is_1_whatever_it_holds():
    assert paired.corrected(np.array([0.01, 0.001]), np.array([True, False])).tolist() == [0.01, 1]


def test_classes_in_which_nothing_differs_are_no_tests():
    gained, lost = np.array([0, 1, 0, 0, 4]), np.array([0, 9, 0, 0, 3])
    alone = paired.class_worsening(gained[[1, 4]], lost[[1, 4]])
    among_others = paired.class_worsening(gained, lost)
    assert among_others[[1, 4]].tolist() == alone.tolist()
    assert among_others[[0, 2, 3]].tolist() == [1, 1, 1]


def test_the_interval_is_that_of_resampled_images():
    outcomes = np.repeat([1, -1, 0], [61, 14, 925])
    draws = np.random.default_rng(7).choice(outcomes, (4000, 1000)).mean(axis=1)
    found = paired.difference(61, 14, 1000)
    assert found.value == pytest.approx(0.047)
    assert [found.low, found.high] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.0015)
    assert paired.difference(61, 14, 1000) == found


def test_the_interval_of_models_that_do_not_differ_is_nothing():
    found = paired.difference(0, 0, 50)
    assert (found.value, found.low, found.high) == (0, 0, 0)


# ---- verdicts --------------------------------------------------------------------------------------------------------


def sides(gained, lost, both=300, **of_challenger):
    """Return challenger and champion on 3 classes, by how many images of each one of them alone has right."""
    labels = np.concatenate([np.repeat(label, g + w + both) for label, (g, w) in enumerate(zip(gained, lost, strict=True))])
    rights = [
        np.concatenate([[*[first] * g, *[not first] * w, *[True] * both] for g, w in zip(gained, lost, strict=True)])
        for first in (True, False)
    ]
    predictions = [np.where(right, labels, (labels + 1) % 3) for right in rights]
    plain = {"labels": labels, "size_bytes": 1000, "ece": 0.02, "latency_ms": 2.0}
    challenger = Side(address="models:/x/2", predictions=predictions[0], **{**plain, **of_challenger})
    return challenger, Side(address="models:/x/1", predictions=predictions[1], **plain)


BETTER, LEVEL, ONE_WORSE = ((20, 20, 21), (5, 5, 4)), ((9, 8, 8), (6, 5, 5)), ((40, 40, 1), (5, 5, 12))
VERDICTS = {
    "better": (BETTER, {}, {}, "promoted", "significantly better: accuracy 0.9856 against 0.9374 of models:/x/1"),
    "worse": (BETTER[::-1], {}, {}, "kept", "significantly worse: accuracy 0.9374 against 0.9856 of models:/x/1"),
    "level": (LEVEL, {}, {}, "undecided", "no significant difference: "),
    "alike": (((0, 0, 0), (0, 0, 0)), {}, {}, "undecided", "no significant difference: "),
    "alpha": (LEVEL, {"alpha": 0.25}, {}, "promoted", "better"),
    "a class worse": (ONE_WORSE, {}, {}, "kept", "worse at class 'owl' (right alone 1 to 12, corrected p = 0.0051)"),
    "guard off": (ONE_WORSE, {"class_alpha": None}, {}, "promoted", "better"),
    "guard's level": (ONE_WORSE, {"class_alpha": 0.005}, {}, "promoted", "better"),
    "level but a class worse": (((12, 4, 1), (2, 4, 12)), {}, {}, "kept", "worse at class 'owl'"),
    "gain too small": (BETTER, {"min_gain": 0.05}, {}, "kept", "better by less than promote.min_gain=0.05: "),
    "gain enough": (BETTER, {"min_gain": 0.04}, {}, "promoted", "better"),
    "too large": (BETTER, {"max_size_ratio": 2}, {"size_bytes": 2001}, "kept", "larger than promote.max_size_ratio=2 "),
    "not too large": (BETTER, {"max_size_ratio": 2}, {"size_bytes": 2000}, "promoted", "better"),
    "too slow": (BETTER, {"max_latency_ratio": 1.5}, {"latency_ms": 3.1}, "kept", "3.10 ms for one image against 2.00 ms"),
    "not too slow": (BETTER, {"max_latency_ratio": 1.5}, {"latency_ms": 3.0}, "promoted", "better"),
    "too sure": (BETTER, {"max_ece_increase": 0.01}, {"ece": 0.04}, "kept", "calibration error 0.0400 against 0.0200"),
    "not too sure": (BETTER, {"max_ece_increase": 0.03}, {"ece": 0.04}, "promoted", "better"),
    "no limits": (BETTER, {}, {"ece": 0.9, "size_bytes": 10**9, "latency_ms": 99.0}, "promoted", "better"),
}


@pytest.mark.parametrize(("counts", "rules", "of_challenger", "verdict", "reason"), VERDICTS.values(), ids=VERDICTS)
def test_the_verdict_follows_the_rules(counts, rules, of_challenger, verdict, reason):
    found = gate.judge(*sides(*counts, **of_challenger), GateSection(**rules), CLASSES)
    assert found.verdict == verdict
    assert reason in found.reason
    assert "\n" not in found.reason


def test_the_evidence_holds_every_number_of_the_reason():
    found = gate.judge(*sides(*ONE_WORSE), GateSection(), CLASSES).evidence
    assert (found["images"], found["gained"], found["lost"]) == (1003, 81, 22)
    assert found["p_value"] == pytest.approx(binomtest(22, 103).pvalue)
    assert found["difference"]["value"] == pytest.approx(59 / 1003)
    assert [row["class"] for row in found["classes"] if row["p_value_worse"] < 0.05] == ["owl"]
    assert [(row["gained"], row["lost"]) for row in found["classes"]] == [(40, 5), (40, 5), (1, 12)]
    assert found["challenger"]["accuracy"] - found["champion"]["accuracy"] == pytest.approx(59 / 1003)


def test_with_several_labels_right_is_the_exact_set_and_classes_are_guarded_each():
    labels = np.zeros((400, 3), np.uint8)
    labels[:, 0] = 1
    champion, challenger = labels.copy(), labels.copy()
    champion[:60] = 0  # misses the first class on 60 images
    challenger[60:75, 2] = 1  # sees the third on 15 where it is not
    plain = {"labels": labels, "size_bytes": 1, "ece": 0.0}
    two = (Side(address="b", predictions=challenger, **plain), Side(address="a", predictions=champion, **plain))

    found = gate.judge(*two, GateSection(), CLASSES)

    assert (found.verdict, found.evidence["gained"], found.evidence["lost"]) == ("kept", 60, 15)
    assert [(row["gained"], row["lost"]) for row in found.evidence["classes"]] == [(60, 0), (0, 0), (0, 15)]
    assert "worse at class 'owl'" in found.reason
    assert gate.judge(*two, GateSection(class_alpha=None), CLASSES).verdict == "promoted"


def test_a_class_that_no_image_has_neither_stops_nor_breaks_the_gate():
    challenger, champion = sides((20, 20, 0), (5, 5, 0), both=200)
    has_class = challenger.labels != 2
    two = [Side(side.address, side.labels[has_class], side.predictions[has_class], 1, 0.0) for side in (challenger, champion)]
    found = gate.judge(*two, GateSection(), CLASSES)
    assert found.verdict == "promoted"
    assert found.evidence["classes"][2] == {"class": "owl", "gained": 0, "lost": 0, "p_value_worse": 1.0}


# ---- how often it errs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discordant", [0.02, 0.06])
@pytest.mark.parametrize("images", [1_000, 10_000])
def test_of_equally_good_models_at_most_one_in_twenty_is_promoted(images, discordant):
    drawn = simulation.draw(Setting(images, 10, discordant, 0.0), 500, seed=1)
    shares = {rule: found.mean() for rule, found in simulation.promoted(*drawn).items()}
    assert shares["gate"] <= 0.05
    assert shares["higher number wins"] > 0.4, "what the gate is there for"


@pytest.mark.parametrize("discordant", [0.02, 0.06])
def test_of_improvements_by_one_point_nine_in_ten_are_promoted_with_the_guard_on(discordant):
    drawn = simulation.draw(Setting(10_000, 10, discordant, 0.01), 500, seed=1)
    assert simulation.promoted(*drawn)["gate"].mean() >= 0.9


def test_a_simulated_pair_is_judged_as_the_gate_judges_it():
    gained, lost = simulation.draw(Setting(3_000, 3, 0.06, 0.02), 20, seed=3)
    by_simulation = simulation.promoted(gained, lost)["gate"]
    verdicts = [gate.judge(*sides(g, w, both=900), GateSection(), CLASSES).verdict for g, w in zip(gained, lost, strict=True)]
    assert [verdict == "promoted" for verdict in verdicts] == by_simulation.tolist()
    assert 0 < by_simulation.sum() <= 20
