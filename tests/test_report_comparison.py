"""Runs side by side: differences are tested on the same images only, and the tests are those of scipy."""

import numpy as np
import pytest
from scipy.stats import binomtest

from tests.report_data import Page, facts, put_metrics, put_parquet, put_predictions
from tracked_cls.report import comparison
from tracked_cls.report.pairs import compare

N = 1000


def right(*wrong):
    """N answers, wrong in ranges of places."""
    answers = np.ones(N, bool)
    for begin, end in wrong:
        answers[begin:end] = False
    return answers


def run_of(tmp_path, name, answers=None, **known):
    folder = tmp_path / name
    found = facts(folder, name=name, **known)
    if answers is not None:
        put_predictions(folder, answers)
    return found


def page(tmp_path, runs):
    return Page(comparison.page(runs, tmp_path / "plots"))


def test_a_pair_is_tested_on_the_images_that_one_has_right_and_the_other_wrong(tmp_path):
    runs = [run_of(tmp_path, "first", right((0, 60))), run_of(tmp_path, "second", right((50, 70)))]
    (pair,) = compare(runs).pairs
    assert (pair.count, pair.gained, pair.lost, pair.split) == (N, 50, 10, "test")
    assert pair.difference.value == pytest.approx(0.04)
    assert pair.p == pytest.approx(binomtest(10, 60).pvalue)
    error = np.sqrt((60 - 40**2 / N) / N**2)  # of a difference of paired shares
    assert pair.difference.low == pytest.approx(0.04 - 1.96 * error, abs=0.002)
    assert pair.difference.high == pytest.approx(0.04 + 1.96 * error, abs=0.002)


def test_p_values_are_corrected_for_the_number_of_pairs(tmp_path):
    answers = [right((0, 100)), right((0, 70)), right((5, 100)), right((3, 113))]
    pairs = compare([run_of(tmp_path, str(place), one) for place, one in enumerate(answers)]).pairs
    plain = [binomtest(0, 30).pvalue, binomtest(0, 5).pvalue, binomtest(3, 16).pvalue]
    assert [pair.p for pair in pairs] == pytest.approx(plain)
    assert [pair.p_corrected for pair in pairs] == pytest.approx([3 * plain[0], plain[1], 2 * plain[2]])
    assert [pair.verdict for pair in pairs] == ["better", "no difference shown", "worse"]


def test_the_order_of_images_in_the_files_does_not_matter(tmp_path):
    order = np.random.default_rng(0).permutation(N)
    ids, labels = ([text % place for place in order.tolist()] for text in ("image%05d", "%d"))
    answers = right((50, 70))
    runs = [run_of(tmp_path, name) for name in ("first", "second")]
    put_predictions(runs[0].folder, right((0, 60)), labels=[str(place) for place in range(N)])
    put_predictions(runs[1].folder, answers[order], ids=ids, labels=labels)
    (pair,) = compare(runs).pairs
    assert (pair.gained, pair.lost) == (50, 10)


def _other_ids(folder):
    put_predictions(folder, right(), ids=[f"image{place + 10:05d}" for place in range(N)])


def _other_labels(folder):
    put_predictions(folder, right(), labels=["9" if place < 7 else str(place % 10) for place in range(N)])


def _damaged(folder):
    put_predictions(folder, right())
    path = folder / "tables" / "test_predictions.parquet"
    path.write_bytes(path.read_bytes()[:-100])


COLUMNS = {"id": ["a", "b"], "label": ["x", "y"], "predicted": ["x", "x"]}


@pytest.mark.parametrize(
    ("put", "reason"),
    [
        (lambda folder: None, "B has no predictions"),
        (_other_ids, "they were scored on other images (1,000 and 1,000, 990 of them shared)"),
        (lambda folder: put_predictions(folder, right()[:900]), "other images (1,000 and 900, 900 of them shared)"),
        (_other_labels, "they were scored on the same images, 7 of which have another label"),
        (lambda folder: put_predictions(folder, right(), split="val"), "A was scored on test, B on val"),
        (_damaged, "B: test_predictions.parquet: not a Parquet file that can be read"),
        (lambda folder: put_parquet(folder, COLUMNS | {"label": [1, 2]}), "column 'label' must hold text, got int64"),
        (lambda folder: put_parquet(folder, {"id": ["a"], "label": ["x"]}), "column 'predicted' is missing"),
        (lambda folder: put_parquet(folder, COLUMNS | {"id": ["a", "a"]}), "the ids are not unique"),
        (lambda folder: put_parquet(folder, COLUMNS | {"label": ["x", None]}), "id, label and predicted must not be empty"),
        (lambda folder: put_predictions(folder, [], ids=[], labels=[]), "column 'id' must hold text, got null"),
    ],
    ids=["none", "ids", "fewer", "labels", "split", "damaged", "type", "column", "twice", "empty", "nothing"],
)  # fmt: skip
def test_runs_that_cannot_be_compared_are_not_and_the_page_says_why(tmp_path, put, reason):
    runs = [run_of(tmp_path, "first", right((0, 9))), run_of(tmp_path, "second")]
    put(runs[1].folder)
    found = page(tmp_path, runs)
    assert reason in found.text
    assert "So no test was made." in found.text
    assert "Each run against A" not in found.tables


def test_what_cannot_be_compared_does_not_keep_others_from_it(tmp_path):
    runs = [run_of(tmp_path, "a", right((0, 9))), run_of(tmp_path, "b"), run_of(tmp_path, "c", right((0, 8)))]
    found = compare(runs)
    assert [pair.run for pair in found.pairs] == [2]
    assert len(found.refused) == 1


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        (right((50, 70)), "B is better than A on the same 1,000 test images: +4.00 percentage points of accuracy (95 %"),
        (right((0, 130)), "B is worse than A on the same 1,000 test images: -7.00 percentage points"),
        (right((3, 62)), "B and A cannot be told apart on the same 1,000 test images: +0.10 percentage points"),
        (right((0, 60)), "B and A are right and wrong about exactly the same of the same 1,000 test images."),
    ],
    ids=["better", "worse", "unclear", "equal"],
)  # fmt: skip
def test_the_summary_says_which_is_better_as_far_as_can_be_told(tmp_path, answers, sentence):
    runs = [run_of(tmp_path, "first", right((0, 60))), run_of(tmp_path, "second", answers)]
    assert sentence in page(tmp_path, runs).text


def test_numbers_stand_side_by_side_with_their_intervals(tmp_path):
    runs = [run_of(tmp_path, "first"), run_of(tmp_path, "second", kind="evaluate")]
    put_metrics(runs[0].folder, {"accuracy": {"value": 0.9, "low": 0.85, "high": 0.94}, "loss": 0.5})
    put_metrics(runs[1].folder, {"accuracy": 0.8}, split="val")
    found = page(tmp_path, runs)
    rows = found.tables["With 95 % intervals, where they are known"]
    assert rows == [
        ["number", "A, test", "B, val"],
        ["accuracy", "0.9000 (0.8500 to 0.9400)", "0.8000"],
        ["loss, nats", "0.5000", "\u2013"],
    ]
    top = found.tables["What is compared"][1:]
    assert [row[5:7] for row in top] == [["90.00 % test", "85.00 to 94.00"], ["80.00 % val", "\u2013"]]


def test_only_options_that_differ_are_shown(tmp_path):
    params = {"seed": "0", "epochs": "3", "tracking.uri": "a"}
    runs = [
        run_of(tmp_path, "a", params=params),
        run_of(tmp_path, "b", params={**params, "epochs": "<5>", "tracking.uri": "b", "optimizer.momentum": "0.9"}),
        run_of(tmp_path, "c", kind="evaluate", params={"evaluate.split": "test"}),
    ]
    rows = page(tmp_path, runs).tables["2 of 4 options"]
    assert rows == [
        ["option", "A", "B", "C"],
        ["epochs", "3", "<5>", "\u2013"],
        ["optimizer.momentum", "\u2013", "0.9", "\u2013"],
    ]


def test_equal_weights_and_other_data_are_told(tmp_path):
    tags = [{"weights.digest": "w1", "data.digest": "d1"}, {"weights.digest": "w1", "data.digest": "d2"}, {}]
    text = page(tmp_path, [run_of(tmp_path, str(place), tags=own) for place, own in enumerate(tags)]).text
    assert "A and B have the same weights." in text
    assert "The runs used different data, or different splits of them: their data digests differ." in text


def test_curves_are_overlaid_and_left_beside_the_page(tmp_path):
    history = {"val_loss": {1: 0.5, 2: 0.4}, "val_accuracy": {1: 0.8, 2: 0.9}}
    names = ["first", "$_second"]
    found = page(tmp_path, [run_of(tmp_path, name, right((0, 5 + len(name))), history=history) for name in names])
    assert len(found.images) == 2
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"curves.png", "differences.png"}


def test_many_runs_are_summed_up(tmp_path):
    runs = [run_of(tmp_path, f"run {place}", right((0, 60 - 10 * place))) for place in range(6)]
    assert "Of 5 runs compared with A: 5 better, 0 worse, 0 with no difference shown." in page(tmp_path, runs).text
