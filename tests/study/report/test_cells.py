"""Cells are means, intervals and corrected tests."""

import math

import numpy as np
import pytest

from captum_norm.study.report.cells import Statistics, cells_of
from captum_norm.study.report.resampling import Pivot, moments, resampled_means, step_down
from captum_norm.study.report.statistics import bootstrap_interval, holm, paired_bootstrap_test, paired_permutation_test
from captum_norm.study.report.tables import ALPHA

RANDOM = np.random.default_rng(0)
BASE = RANDOM.normal(size=60)


def test_cells_are_means_intervals_and_corrected_tests(results):
    values = results.values("comprehensiveness")
    others = [name for name in results.methods if name not in ("Saliency", "oracle")]
    for choice, test in (("bootstrap", paired_bootstrap_test), ("permutation", paired_permutation_test)):
        table = results.table("Saliency", test=choice, resamples=200, permutations=200)
        tests = [test(values[name], values["Saliency"], resamples=200) for name in others]
        for name, single, corrected in zip(others, tests, holm([test.p for test in tests]), strict=True):
            cell, interval = table.cells[name]["comprehensiveness"], bootstrap_interval(values[name], resamples=200)
            assert (cell.mean, cell.low, cell.high, cell.n) == pytest.approx(
                (interval.mean, interval.low, interval.high, interval.n)
            )
            assert (cell.p, cell.p_holm) == pytest.approx((single.p, corrected))
            assert cell.difference == pytest.approx(np.mean(values[name] - values["Saliency"]))
            if choice == "bootstrap":
                assert (cell.difference_low, cell.difference_high) == pytest.approx((single.low, single.high))
            assert table.differs(name, "comprehensiveness") == (corrected < ALPHA)
        assert math.isnan(table.cells["Saliency"]["comprehensiveness"].p)
        assert math.isnan(table.cells["oracle"]["auprc"].p)


def cells(values, reference="reference", **how):
    return cells_of({"metric": values}, reference, Statistics(**{"resamples": 999, **how}))["metric"]


def test_a_clear_difference_is_marked_and_none_is_not():
    found = cells({"reference": BASE, "same": BASE.copy(), "better": BASE + 1 + 0.1 * RANDOM.normal(size=60)})
    assert found["better"].p_holm < 0.01
    assert found["better"].effect > 5
    assert found["same"].p_holm == 1.0


def test_methods_are_compared_over_the_examples_that_all_of_them_have():
    """A method that fails where all others do badly must not look better for it."""
    weak = BASE.copy()
    weak[BASE < 0] = np.nan
    values = {"reference": BASE, "weak": weak, "absent": np.full(60, np.nan)}
    complete, available = cells(values), cells(values, cases="available")
    assert complete["weak"].n == complete["reference"].n == (BASE >= 0).sum()
    assert complete["weak"].mean == complete["reference"].mean
    assert (available["weak"].n, available["reference"].n) == ((BASE >= 0).sum(), 60)
    assert available["weak"].mean > available["reference"].mean
    assert (complete["absent"].n, available["absent"].n) == (0, 0)
    assert math.isnan(complete["absent"].p)


def test_what_the_oracle_lacks_is_no_example_less():
    evidence = np.where(np.arange(60) < 20, 1.0, np.nan)
    found = cells({"reference": BASE, "oracle": evidence})
    assert (found["reference"].n, found["oracle"].n) == (60, 20)


def test_a_missing_value_does_not_change_the_draws_of_the_others():
    other = BASE + RANDOM.normal(size=60)
    holes = np.where(np.arange(60) == 3, np.nan, RANDOM.normal(size=60))
    whole = cells({"reference": BASE, "other": other, "third": RANDOM.normal(size=60)}, cases="available")
    lacking = cells({"reference": BASE, "other": other, "third": holes}, cases="available")
    for name in ("reference", "other"):
        before, after = (vars(of[name]) | {"p_holm": 0} for of in (whole, lacking))  # the third's p is another
        assert before == pytest.approx(after, nan_ok=True)


def test_the_interval_of_a_difference_is_narrow_where_methods_rise_and_fall_together():
    found = cells({"reference": BASE, "close": BASE + 0.05 + 0.02 * RANDOM.normal(size=60)})["close"]
    assert found.high - found.low > 10 * (found.difference_high - found.difference_low)
    assert found.difference_low < 0.05 < found.difference_high


@pytest.mark.parametrize("n", [30, 60])
def test_tests_are_corrected_over_a_metric_or_over_the_whole_table(n):
    """Of few examples a table asks besides that a difference stands out from the largest of all resampled ones."""
    even, skewed = np.linspace(-1, 1, n), RANDOM.exponential(size=(2, n)) ** 2
    columns = np.stack([even + 3 * even.std() / np.sqrt(n), *(skewed - skewed.mean(axis=1, keepdims=True))])
    values = {f"metric {place}": {"reference": np.zeros(n), "a": of} for place, of in enumerate(columns)}
    single = cells_of(values, "reference", Statistics(resamples=999))
    whole = cells_of(values, "reference", Statistics(resamples=999, correction="table"))
    p_values = [single[metric]["a"].p for metric in values]
    assert [single[metric]["a"].p_holm for metric in values] == p_values
    rows = [of["a"][None] for of in values.values()]
    together = step_down([Pivot.of(row, *resampled_means(moments(row), 999, seed=0)) for row in rows])
    assert (together > holm(p_values)).any()
    expected = np.maximum(holm(p_values), together) if n < 50 else holm(p_values)
    assert [whole[metric]["a"].p_holm for metric in values] == pytest.approx(expected)


@pytest.mark.slow
def test_of_few_examples_a_table_finds_no_more_than_it_promises_though_they_are_skewed():
    """Holm alone, of p so small that 20 skewed examples cannot tell them, found something in one table of eight."""
    random, by_holm, found = np.random.default_rng(0), [], []
    for _ in range(60):
        values = {f"metric {number}": {"reference": np.zeros(20)} for number in range(8)}
        for of in values.values():
            of |= {f"method {number}": random.exponential(size=20) - 1 for number in range(11)}
        table = cells_of(values, "reference", Statistics(correction="table", resamples=4999))
        cells = [cell for row in table.values() for name, cell in row.items() if name != "reference"]
        by_holm.append(min(holm([cell.p for cell in cells])) < ALPHA)
        found.append(min(cell.p_holm for cell in cells) < ALPHA)
    assert np.mean(found) <= 0.05 < np.mean(by_holm)


def test_the_step_down_is_its_definition():
    columns = RANDOM.normal(size=(5, 30)) + np.array([[0.6], [0.4], [0.0], [-0.7], [0.1]])
    pivots = [Pivot.of(row[None], *resampled_means(moments(row[None]), 499, seed=1)) for row in columns]
    distance = np.abs(columns.mean(axis=1) / columns.std(axis=1, ddof=1) * np.sqrt(30))
    resampled = []
    for drawn in np.random.default_rng(1).integers(0, 30, (499, 30)):
        sample = columns[:, drawn]
        spread = sample.std(axis=1, ddof=1) / np.sqrt(30)
        resampled.append(np.abs(sample.mean(axis=1) - columns.mean(axis=1)) / spread)
    expected, left, largest = np.zeros(5), list(range(5)), 0.0
    while left:  # the furthest of those that are left, against the largest of those that are left
        place = max(left, key=lambda place: distance[place])
        beyond = [max(of[left]) >= distance[place] for of in resampled]
        largest = expected[place] = max(largest, (1 + sum(beyond)) / 500)
        left.remove(place)
    assert step_down(pivots) == pytest.approx(expected)
    assert np.isnan(step_down([Pivot.of(np.ones((1, 9)), *resampled_means(moments(np.ones((1, 9))), 9, 0))])).all()


def test_methods_that_lack_examples_flip_the_signs_of_their_own():
    holes = np.where(np.arange(60) < 50, np.nan, BASE + RANDOM.normal(size=60))
    values = {"reference": BASE, "a": BASE + RANDOM.normal(size=60), "b": holes}
    found = cells(values, cases="available", test="permutation")
    assert found["b"].p == paired_permutation_test(holes, BASE).p
    assert found["b"].n == 10


def test_repetitions_of_a_metric_are_drawn_too():
    several = np.stack([BASE + 0.3, BASE - 0.3, BASE])
    one = cells({"reference": BASE[None] * 0, "other": several.mean(axis=0)[None]})["other"]
    three = cells({"reference": several * 0, "other": several})["other"]
    assert three.mean == pytest.approx(one.mean)
    assert three.high - three.low > one.high - one.low
    assert three.difference_high - three.difference_low > one.difference_high - one.difference_low


def test_level_methods_are_found_level_and_choices_are_checked():
    near = BASE + 0.01 * RANDOM.normal(size=60)
    found = cells({"reference": BASE, "near": near, "far": BASE + 1 + 0.1 * near}, margin=0.05)
    assert found["near"].p_equivalent < ALPHA < found["far"].p_equivalent
    assert math.isnan(cells({"reference": BASE, "near": near}, margin={"other": 1.0})["near"].p_equivalent)
    choices = ({"cases": "all"}, {"test": "t"}, {"correction": "none"}, {"confidence": 95}, {"confidence": math.nan})
    numbers = ({"resamples": 0}, {"permutations": 0}, {"seed": -1}, {"margin": 0.0}, {"margin": math.nan})
    for wrong in (*choices, *numbers, {"margin": math.inf}):
        with pytest.raises(ValueError, match=f"table: {next(iter(wrong))} should be"):
            Statistics(**wrong)
    with pytest.raises(ValueError, match="table: margin of auprc should be above 0 and finite, got nan"):
        Statistics(margin={"log_odds": 0.1, "auprc": math.nan})
    with pytest.raises(TypeError, match=r"table: resamples should be a whole number, got 99\.0"):
        Statistics(resamples=99.0)
