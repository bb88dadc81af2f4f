"""Resampled means are the means of the resamples, whatever is missing and however they are cut."""

import numpy as np
import pytest
from scipy import stats

from captum_norm.study.report import resampling
from captum_norm.study.report.resampling import Pivot, bca_limits, moments, repetition_weights, resampled_means

RANDOM = np.random.default_rng(0)
COLUMNS = RANDOM.normal(size=(15, 3))


def by_hand(columns, resamples: int, seed: int):
    drawn = np.random.default_rng(seed).integers(0, len(columns), (resamples, len(columns)))
    return np.nanmean(columns[drawn], axis=1), (~np.isnan(columns[drawn])).sum(axis=1)


def test_means_are_those_of_the_drawn_examples_that_have_a_value():
    holes = COLUMNS.copy()
    holes[2, 0] = holes[5, 1] = np.nan
    for columns in (COLUMNS, holes):
        means, counts = resampled_means(columns, 50, seed=1)
        expected, expected_counts = by_hand(columns, 50, seed=1)
        assert means == pytest.approx(expected)
        assert np.array_equal(counts, expected_counts)


def test_what_one_column_lacks_changes_nothing_for_the_others():
    holes = COLUMNS.copy()
    holes[2, 0] = np.nan
    (whole, _), (lacking, _) = resampled_means(COLUMNS, 50, seed=1), resampled_means(holes, 50, seed=1)
    assert whole[:, 1:] == pytest.approx(lacking[:, 1:])
    assert not np.allclose(whole[:, 0], lacking[:, 0])


def test_memory_does_not_change_the_draws(monkeypatch):
    whole, _ = resampled_means(COLUMNS, 50, seed=1)
    monkeypatch.setattr(resampling, "_COUNTS_AT_ONCE", 40)
    assert resampled_means(COLUMNS, 50, seed=1)[0] == pytest.approx(whole)


def test_repetitions_that_differ_widen_the_interval():
    """Two shuffles that say the opposite: the examples alone would be sure of either."""
    examples = 0.05 * RANDOM.normal(size=40)
    one, several = np.stack([examples + 0.2]), np.stack([examples + 0.2, examples - 0.1, examples + 0.3, examples])
    widths = []
    for differences in (one, several):
        weights = repetition_weights(len(differences), 999, seed=0)
        pivot = Pivot.of(differences, *resampled_means(moments(differences), 999, seed=0), weights)
        low, high = pivot.limits(0.95)
        widths.append(high - low)
    assert widths[1] > 4 * widths[0]


def test_limits_are_those_of_scipys_bca_bootstrap():
    values = RANDOM.exponential(size=30)
    means, _ = resampled_means(values[:, None], 400, seed=2)
    expected = stats.bootstrap((values,), np.mean, n_resamples=400, method="BCa", rng=np.random.default_rng(2))
    assert bca_limits(means[:, 0], values, 0.95) == pytest.approx(tuple(expected.confidence_interval))
    assert bca_limits(means[:, 0], np.full(30, 0.1), 0.95) == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize("repetitions", [1, 3])
def test_the_pivot_is_its_definition(repetitions):
    differences = RANDOM.normal(size=(repetitions, 25)) + RANDOM.normal(size=(repetitions, 1))
    weights = repetition_weights(repetitions, 200, seed=4)
    pivot = Pivot.of(differences, *resampled_means(moments(differences), 200, seed=4), weights)
    drawn = np.random.default_rng(4).integers(0, 25, (200, 25))
    distances = []
    for examples, shares in zip(drawn, weights, strict=True):
        of_repetitions = differences[:, examples].mean(axis=1) - differences.mean()
        deviation = (of_repetitions * shares).sum()
        squared = differences[:, examples].mean(axis=0).var(ddof=1) / 25
        if repetitions > 1:
            squared += ((of_repetitions - deviation) ** 2 * shares).sum() / (repetitions - 1)
        distances.append(deviation / np.sqrt(squared))
    assert pivot.distances == pytest.approx(np.array(distances))
    squared = differences.mean(axis=0).var(ddof=1) / 25
    if repetitions > 1:
        squared += differences.mean(axis=1).var(ddof=1) / repetitions
    assert pivot.error == pytest.approx(np.sqrt(squared))


def test_an_interval_reaches_further_where_values_do():
    """Tails are taken by themselves, and where too many resamples say nothing there is no end."""
    skewed = RANDOM.exponential(size=30)
    low, high = (Pivot.of(skewed[None], *resampled_means(moments(skewed[None]), 999, 0))).limits(0.95)
    assert high - skewed.mean() > 1.2 * (skewed.mean() - low)
    lone = np.eye(1, 20)
    pivot = Pivot.of(lone, *resampled_means(moments(lone), 999, 0))
    assert pivot.without_spread > 300
    assert pivot.limits(0.95) == (-np.inf, np.inf)
    assert pivot.p() > 0.5


def test_a_rare_large_value_counts_on_the_side_on_which_resamples_lie_without_it():
    """They lie below the mean: hardly one as far above it, and many as far on either side."""
    values = np.append(1 + 0.1 * np.random.default_rng(0).normal(size=(1, 19)), [[4.0]], axis=1)
    pivot = Pivot.of(values, *resampled_means(moments(values), 999, 0))
    distance = pivot.mean / pivot.error
    above, far = ((of >= distance).sum() + pivot.without_spread + 1 for of in (pivot.distances, abs(pivot.distances)))
    assert 2 * above < far
    assert pivot.p() == pytest.approx(far / 1000)
