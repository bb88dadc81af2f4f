"""Ranks hold over other examples, or say how far they do not; variants move what they move."""

import math

import numpy as np
import pytest

from captum_norm.study import Variant
from captum_norm.study.metrics import METRICS, variations
from captum_norm.study.report.stability import critical_groups, order_changes, rank_intervals
from tests.study import tiny

RANDOM = np.random.default_rng(0)


def test_a_rank_interval_is_as_wide_as_the_examples_leave_it_open():
    base = RANDOM.normal(size=60)
    values = {"best": base + 1, "a": base, "b": base + 0.3 * RANDOM.normal(size=60), "worst": base - 1}
    ranks = rank_intervals(values, resamples=999)
    assert (ranks["best"].low, ranks["best"].high) == (1, 1)
    assert (ranks["worst"].low, ranks["worst"].high) == (4, 4)
    assert (ranks["a"].low, ranks["a"].high) == (ranks["b"].low, ranks["b"].high) == (2, 3)
    assert ranks["best"].first == 1.0
    assert rank_intervals(values, higher_is_better=False, resamples=99)["worst"].rank == 1
    assert rank_intervals({"a": np.array([np.nan]), "b": np.array([1.0])}) == {}


def test_equal_methods_share_their_ranks_whatever_is_rounded():
    values = {"a": np.array([0.3, 0.7, 0.6]), "b": np.array([0.1 + 0.2, 0.7, 0.6])}
    ranks = rank_intervals(values, resamples=99)
    assert {(of.low, of.high, of.first) for of in ranks.values()} == {(1.5, 1.5, 0.5)}


def test_order_changes_count_pairs():
    means = {"x": {"a": 3, "b": 2, "c": 1}, "y": {"a": 3, "b": 1, "c": 2}, "z": {"a": 1, "b": 3, "c": 3}}
    changes = order_changes(means)
    assert changes.shares[0, 1] == pytest.approx(1 / 2)
    assert changes.shares[1, 2] == pytest.approx((1 + 0.5) / 2)
    assert np.array_equal(changes.shares, changes.shares.T, equal_nan=True)
    assert changes.largest == pytest.approx(0.75)
    assert changes.ranks.tolist() == [[1, 2, 3], [1, 3, 2], [3, 1.5, 1.5]]
    lower = order_changes(means, {"x": True, "y": True, "z": False})
    assert lower.shares[0, 1] == 0
    missing = order_changes({"x": {"a": math.nan, "b": 1, "c": 2}, "y": {"a": 1, "b": 1, "c": 2}})
    assert missing.methods == ("b", "c")
    assert math.isnan(order_changes({}).largest)
    with pytest.raises(ValueError, match="'two' has other methods than 'one'"):
        order_changes({"one": {"a": 1}, "two": {"b": 1}})


def test_a_variant_that_is_a_random_order_is_seen_among_many_methods():
    """Kendall's W of two rankings in which one of 11 methods moves is never below 0.905: it saw nothing."""
    names = [f"method {number}" for number in range(11)]
    listed = dict(zip(names, range(11), strict=True))
    changes = order_changes({"listed": listed, "random": {**listed, "method 10": 0.5}})
    assert changes.ranks[:, 10].tolist() == [1, 10]
    assert changes.shares[10].tolist()[:10] == [0.0, *[1.0] * 9]


def test_variants_say_how_far_they_move_and_which_pairs_turn(tmp_path):
    methods = ["AttentionNorm", "Saliency", "InputXGradient", "FeatureAblation"]
    methods.append(Variant("FeatureAblation", special="keep"))
    metrics = variations(METRICS["comprehensiveness"], removal=["delete", "pad"])
    results = tiny.run(tmp_path, methods, metrics)
    [move] = results.moves("comprehensiveness")
    assert (move.base, move.variant) == ("FeatureAblation", "FeatureAblation(special=keep)")
    values = results.values("comprehensiveness")
    assert move.difference == pytest.approx(np.mean(values[move.variant] - values[move.base]))
    assert move.low <= move.difference <= move.high
    universes = results.universes("comprehensiveness")
    assert len(universes) == 4
    names = {"AttentionNorm", "Saliency", "InputXGradient", "FeatureAblation", "random"}
    assert all(set(means) == names for means in universes.values())
    assert results.order_changes("comprehensiveness").shares.shape == (5, 5)
    assert set(results.ranks("comprehensiveness")) == set(results.methods) - {"oracle"}


def test_groups_hold_neighbours_of_whom_no_two_differ():
    random = np.random.default_rng(0)
    best = random.normal(size=60)
    values = {"low": best - 1 + 0.1 * random.normal(size=60), "best": best}
    values |= {"level": best + 0.3 * random.normal(size=60) - 0.03}
    found = critical_groups(values)
    assert [set(group) for group in found] == [{"best", "level"}, {"low"}]
    assert critical_groups(values, higher_is_better=False)[0] == ("low",)
    next_to_it = {"best": best, "next": best - 0.02 * random.random(60)}
    assert critical_groups(next_to_it) == [("best",), ("next",)]  # by a hair, but always
    assert critical_groups({"a": best[:1], "b": best[:1]}) == []


@pytest.mark.parametrize("n", [20, 60])
def test_two_that_differ_by_the_same_amount_on_every_example_are_of_two_groups(n):
    one, zero = np.ones(n), np.zeros(n)
    assert critical_groups({"right": one, "wrong": zero}) == [("right",), ("wrong",)]
    assert critical_groups({"right": one, "wrong": zero}, higher_is_better=False) == [("wrong",), ("right",)]
    a = np.random.default_rng(1).random(n)
    values = {"a": a, "lower": a - 0.5, "as low": a - 0.5}
    assert critical_groups(values) == [("a",), ("lower", "as low")]  # these differ by the same amount, 0
    hair = np.random.default_rng(0).normal(size=n) * 1e-6
    assert critical_groups(values | {"lower": a - 0.5 + hair})[0] == ("a",)


def test_of_too_few_examples_the_same_difference_tells_nothing():
    assert critical_groups({"right": np.ones(3), "wrong": np.zeros(3)}) == [("right", "wrong")]


@pytest.mark.parametrize(("n", "apart"), [(30, False), (60, True)])
def test_of_few_examples_groups_stand_apart_by_the_largest_of_all_resampled_differences(n, apart):
    """Beside methods whose differences are skewed, a difference that Holm's correction of 30 examples tells is not."""
    even, skewed = np.linspace(-1, 1, n), np.random.default_rng(0).exponential(size=(2, n)) ** 2
    far = 3.5 * even.std() / np.sqrt(n)
    values = {"a": np.zeros(n), "b": even + far}
    values |= {name: far / 2 + of - of.mean() for name, of in zip("cd", skewed, strict=True)}
    assert any({"a", "b"} <= set(group) for group in critical_groups(values)) != apart


@pytest.mark.parametrize("of", [rank_intervals, critical_groups])
def test_of_no_methods_there_are_no_ranks(of):
    assert not of({})


@pytest.mark.parametrize("of", [rank_intervals, critical_groups])
@pytest.mark.parametrize(
    ("values", "how", "says"),
    [
        ({"a": [1.0, np.inf], "b": [1.0, 2.0]}, {}, "a: value 1 is infinite"),
        ({"a": [1.0, 2.0], "b": [1.0]}, {}, "a has 2 examples but b has 1"),
        ({"a": [1.0, 2.0]}, {"resamples": 0}, "resamples should be at least 1, got 0"),
        ({"a": [1.0, 2.0]}, {"seed": -1}, "seed should be at least 0, got -1"),
    ],
)
def test_values_and_draws_that_have_no_ranks_are_refused(of, values, how, says):
    with pytest.raises(ValueError, match=f"{of.__name__}: {says}"):
        of({name: np.array(row) for name, row in values.items()}, **how)


def test_levels_and_means_that_are_no_numbers_are_refused():
    values = {"a": np.array([1.0, 2.0]), "b": np.array([2.0, 1.0])}
    with pytest.raises(ValueError, match="confidence should be between 0 and 1, got nan"):
        rank_intervals(values, confidence=np.nan)
    with pytest.raises(ValueError, match="alpha should be between 0 and 1, got nan"):
        critical_groups(values, alpha=np.nan)
    with pytest.raises(ValueError, match="order_changes: the mean of b in 'mask' is infinite"):
        order_changes({"delete": {"a": 1, "b": 2}, "mask": {"a": 1, "b": np.inf}})
