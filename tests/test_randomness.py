"""Random numbers that depend on what they are for and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tracked_cls import randomness

KEYS = np.random.default_rng(0).integers(0, 2**64, 4000, dtype=np.uint64)


def draw(seed=0, epoch=0, keys=KEYS, stream=0, draws=5):
    return randomness.uniforms(seed, epoch, keys, stream=stream, draws=draws)


@pytest.mark.parametrize("keys", [KEYS, np.arange(4000, dtype=np.uint64)], ids=["hashed keys", "consecutive keys"])
@pytest.mark.parametrize("column", range(5))
def test_each_draw_is_uniform_over_samples(keys, column):
    assert stats.kstest(draw(keys=keys)[:, column], "uniform").pvalue > 0.001


@pytest.mark.parametrize("key", [0, 1, 2**63, 2**64 - 1])
def test_the_draws_of_one_sample_are_uniform(key):
    assert stats.kstest(draw(keys=np.array([key], np.uint64), draws=4000)[0], "uniform").pvalue > 0.001


def test_one_sample_over_epochs_is_uniform():
    values = [draw(epoch=epoch, keys=KEYS[:1], draws=1)[0, 0] for epoch in range(2000)]
    assert stats.kstest(values, "uniform").pvalue > 0.001


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"stream": 1}, {"seed": 2**31 - 1, "epoch": 99_999}], ids=str)
def test_seeds_epochs_and_streams_are_uncorrelated(other):
    here, there = draw().ravel(), draw(**other).ravel()
    assert abs(stats.pearsonr(here, there).statistic) < 4 / np.sqrt(here.size)
    assert not np.isin(here, there).any()


def test_draws_of_a_sample_are_uncorrelated_with_each_other():
    correlation = np.corrcoef(draw(draws=8), rowvar=False)
    assert np.abs(correlation - np.eye(8)).max() < 4.5 / np.sqrt(len(KEYS))


def test_values_lie_in_the_half_open_unit_interval():
    values = draw(draws=100)
    assert values.dtype == np.float64
    assert values.min() >= 0
    assert values.max() < 1


@pytest.mark.parametrize(
    "chosen", [slice(0, 1), slice(5, 9), slice(None, None, -1), [7, 3, 3]], ids=["first", "some", "reversed", "repeated"]
)
def test_a_sample_draws_the_same_in_any_batch(chosen):
    np.testing.assert_array_equal(draw(keys=KEYS[chosen]), draw()[chosen])


def test_more_draws_leave_the_first_ones_alone():
    np.testing.assert_array_equal(draw(draws=9)[:, :5], draw(draws=5))


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_permutation_visits_every_position_once(size):
    np.testing.assert_array_equal(np.sort(randomness.permutation(3, 4, size)), np.arange(size))


def test_permutation_depends_on_seed_and_epoch_only():
    np.random.seed(1)
    first = randomness.permutation(3, 4, 100)
    np.random.seed(2)
    np.testing.assert_array_equal(first, randomness.permutation(3, 4, 100))
    for other in ((3, 5), (4, 4), (4, 3)):
        assert not np.array_equal(first, randomness.permutation(*other, 100))


def test_permutation_puts_every_sample_everywhere():
    places = np.array([randomness.permutation(0, epoch, 10) for epoch in range(2000)])
    counts = np.stack([np.bincount(places[:, column], minlength=10) for column in range(10)])
    assert (stats.chisquare(counts, axis=1).pvalue > 0.001).all()


# ---- orders too long to be held --------------------------------------------------------------------------------------


@pytest.fixture
def worked_out(monkeypatch):
    """Have every order worked out in small blocks, as those of millions are."""
    monkeypatch.setattr(randomness, "_WHOLE", 0)
    monkeypatch.setattr(randomness, "_BLOCK", 64)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000, 4096, 4097])
def test_an_order_that_is_worked_out_visits_every_position_once(worked_out, size):
    order = randomness.Permutation(3, 4, size)

    np.testing.assert_array_equal(np.sort(order.between(0, size)), np.arange(size))


def test_any_part_of_it_is_the_same_part(worked_out):
    order = randomness.Permutation(3, 4, 1000)
    whole = order.between(0, 1000)

    for start, stop in ((0, 1), (63, 65), (100, 500), (990, 1000), (5, 6)):
        np.testing.assert_array_equal(order.between(start, stop), whole[start:stop])


@pytest.mark.parametrize("other", [(4, 4), (3, 5)])
def test_each_seed_and_epoch_has_its_own(worked_out, other):
    first, second = randomness.Permutation(3, 4, 1000).between(0, 1000), randomness.Permutation(*other, 1000).between(0, 1000)

    assert (first == second).mean() < 0.01


def test_each_position_comes_anywhere(worked_out):
    places = np.array([randomness.Permutation(0, epoch, 10).between(0, 10) for epoch in range(2000)])
    counts = np.array([np.bincount(column, minlength=10) for column in places.T])

    assert stats.chisquare(counts.ravel()).pvalue > 0.001


def test_neighbours_are_not_visited_one_after_the_other(worked_out):
    order = randomness.Permutation(0, 0, 100_000).between(0, 100_000)

    assert abs(stats.spearmanr(order[:-1], order[1:]).statistic) < 0.02
    assert (np.abs(np.diff(order)) == 1).mean() < 0.001


def test_a_short_one_is_the_order_it_always_was():
    np.testing.assert_array_equal(randomness.Permutation(3, 4, 100).between(10, 90), randomness.permutation(3, 4, 100)[10:90])
