"""Intervals, tests and effect sizes: scipy's numbers, the definitions where scipy has none, and missing examples."""

import math
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from captum_norm.study.report.statistics import (
    Interval,
    bootstrap_interval,
    effect_size,
    equivalence_test,
    holm,
    needed_examples,
    paired_bootstrap_test,
    paired_permutation_test,
    smallest_p,
)

NAN = math.nan
RANDOM = np.random.default_rng(0)
A, B = RANDOM.normal(0.3, 1, 40), RANDOM.normal(0, 1, 40)
VALUES = st.lists(st.integers(-3, 3), min_size=2, max_size=12)


def test_the_bca_interval_is_scipys_bca_bootstrap():
    found = bootstrap_interval(A, seed=3, resamples=500, kind="bca")
    expected = stats.bootstrap((A,), np.mean, n_resamples=500, method="BCa", rng=np.random.default_rng(3))
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=1e-12)
    assert found.mean == pytest.approx(A.mean())
    assert found.n == 40


def test_the_interval_is_paired_and_does_not_depend_on_how_much_memory_is_used():
    difference = bootstrap_interval(A, against=B)
    assert difference == bootstrap_interval(A - B)
    assert bootstrap_interval(np.r_[A, NAN], against=np.r_[B, 1.0]) == difference
    assert difference.low < difference.mean < difference.high


def test_intervals_hold_the_true_mean_about_as_often_as_they_say():
    random = np.random.default_rng(1)
    samples = random.exponential(size=(200, 60))
    held = [i.low <= 1 <= i.high for i in (bootstrap_interval(x, 0.9, 300, seed=k) for k, x in enumerate(samples))]
    assert 0.84 <= np.mean(held) <= 0.96


@given(VALUES)
def test_an_interval_is_never_nan_where_there_are_two_examples(values):
    found = bootstrap_interval(values, resamples=200)
    assert found.low <= found.mean <= found.high
    within = bootstrap_interval(values, resamples=200, kind="bca")
    assert min(values) <= within.low <= within.mean <= within.high <= max(values)


def test_missing_examples_are_left_out_and_counted():
    assert bootstrap_interval([NAN, *A, NAN]) == bootstrap_interval(A)
    nothing = bootstrap_interval([NAN, NAN])
    assert (nothing.n, math.isnan(nothing.mean), math.isnan(nothing.low)) == (0, True, True)
    one = bootstrap_interval([2.0, NAN])
    assert (one.n, one.mean, math.isnan(one.high)) == (1, 2.0, True)
    assert bootstrap_interval([1.0, 1.0]) == Interval(1.0, 1.0, 1.0, 2)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=8))
def test_the_test_tries_every_sign_where_there_are_few(pairs):
    a, b = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    d = a - b
    means = [abs(np.dot(signs, d)) for signs in product((-1, 1), repeat=len(d))]
    expected = np.mean([m >= abs(d.sum()) - 1e-9 for m in means])
    assert paired_permutation_test(a, b).p == pytest.approx(expected)


def test_many_examples_are_sampled_with_the_seed():
    one, again = (paired_permutation_test(A, B, seed=1, resamples=999) for _ in range(2))
    assert one == again
    exact = stats.ttest_rel(A, B).pvalue
    assert one.p == pytest.approx(exact, abs=0.04)
    assert one.p >= 1 / 1000
    far = paired_permutation_test(A + 50, B, resamples=999)
    assert far.p == pytest.approx(2 / 1000)
    assert far.difference == pytest.approx((A - B).mean() + 50)


def test_the_test_pairs_what_both_have():
    found = paired_permutation_test([1.0, NAN, 3.0, 9.0], [0.0, 5.0, 1.0, NAN])
    assert (found.n, found.difference) == (2, 1.5)
    nothing = paired_permutation_test([NAN], [1.0])
    assert (nothing.n, math.isnan(nothing.p)) == (0, True)
    assert paired_permutation_test([1.0, 2.0], [1.0, 2.0]).p == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_its_definition(p_values):
    """Step down: the k-th smallest is compared with alpha / (m - k + 1); the first that is too large stops."""
    found = holm(p_values)
    m = len(p_values)
    order = np.argsort(p_values, kind="stable")
    for alpha in (0.001, 0.01, 0.05, 0.2, 0.5, 0.9):
        rejected = np.zeros(m, dtype=bool)
        for place, test in enumerate(order):
            if p_values[test] * (m - place) > alpha:
                break
            rejected[test] = True
        assert ((found <= alpha) == rejected).all()
    assert all(found[i] <= found[j] for i, j in pairwise(order))


def test_tests_that_could_not_be_made_do_not_count():
    assert holm([0.01, NAN, 0.03]) == pytest.approx([0.02, NAN, 0.03], nan_ok=True)
    assert len(holm([])) == 0


def test_cohens_d_is_the_paired_t_over_the_root_of_n():
    found = effect_size(A, B)
    assert found.kind == "paired Cohen's d"
    assert found.value == pytest.approx(stats.ttest_rel(A, B).statistic / math.sqrt(40))
    assert effect_size([1.0, 2.0], [1.0, 2.0]).value == 0.0
    assert math.isnan(effect_size([2.0, 3.0], [1.0, 2.0]).value)
    assert math.isnan(effect_size([2.0], [1.0]).value)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=10))
def test_cliffs_delta_counts_pairs(pairs):
    a, b = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    expected = np.mean([np.sign(x - y) for x in a for y in b])
    found = effect_size(a, b, "cliff")
    assert found.kind == "Cliff's delta"
    assert found.value == pytest.approx(expected)


def test_an_effect_within_rounding_of_no_spread_is_not_a_number():
    """0.1 + 0.2 - 0.3 is rounding, and dividing by it gave effects of 1e15."""
    a = np.array([0.1 + 0.2, 0.7, 0.6, 0.1 + 0.7])
    b = np.array([0.3, 0.7, 0.6, 0.8])
    assert not np.array_equal(a, b)
    assert effect_size(a, b).value == 0.0
    assert math.isnan(effect_size(a + 0.1, b).value)
    assert paired_permutation_test(a, b).p == paired_bootstrap_test(a, b).p == 1.0


def test_the_bootstrap_test_and_its_interval_agree():
    for seed in range(20):
        random = np.random.default_rng(seed)
        a, b = random.normal(0.4, 1, 30), random.normal(0, 1, 30)
        test = paired_bootstrap_test(a, b, resamples=999)
        assert (test.p <= 0.05) == (not test.low <= 0 <= test.high)
        assert test.difference == pytest.approx((a - b).mean())
        assert paired_bootstrap_test(b, a, resamples=999).p == pytest.approx(test.p)


def test_the_bootstrap_test_is_its_definition():
    differences = A - B
    distances, n = [], len(A)
    for sample in differences[np.random.default_rng(5).integers(0, n, (999, n))]:
        distances.append((sample.mean() - differences.mean()) / (sample.std(ddof=1) / math.sqrt(n)))
    distance = differences.mean() / (differences.std(ddof=1) / math.sqrt(n))
    beyond = [np.sum(np.array(distances) >= distance), np.sum(np.array(distances) <= distance)]
    by_tail, by_size = 2 * (1 + min(beyond)), 1 + np.sum(np.abs(distances) >= abs(distance))
    assert paired_bootstrap_test(A, B, seed=5, resamples=999).p == pytest.approx(max(by_tail, by_size) / 1000)


def false_alarms(test, draw, n: int, times: int = 300, methods: int = 11) -> float:
    """How often Holm's correction over several tests of no difference finds one."""
    random = np.random.default_rng(n)
    found = [min(holm([test(draw(random, n), np.zeros(n)).p for _ in range(methods)])) < 0.05 for _ in range(times)]
    return float(np.mean(found))


DRAWS = {
    "skewed": lambda random, n: random.exponential(size=n) - 1,
    "sparse": lambda random, n: (random.random(n) < 0.2) * random.exponential(size=n) - 0.2,
    "heavy-tailed": lambda random, n: random.standard_t(3, size=n),
}


@pytest.mark.parametrize("shape", DRAWS)
def test_few_differences_of_any_shape_do_not_raise_more_alarms_than_promised(shape):
    """Centred and lopsided, or mostly 0, as differences of metrics are."""
    found = false_alarms(lambda a, b: paired_bootstrap_test(a, b, resamples=999), DRAWS[shape], n=20, times=150)
    assert found <= 0.08  # what 150 tables tell of 0.05 at most
    if shape == "sparse":
        assert false_alarms(lambda a, b: paired_permutation_test(a, b, resamples=999), DRAWS[shape], 20, times=20) > 0.2


def test_two_methods_are_level_where_the_margin_holds_the_interval():
    random = np.random.default_rng(0)
    a = random.normal(size=80)
    b = a + random.normal(0, 0.1, 80)
    near, narrow = equivalence_test(a, b, margin=0.1), equivalence_test(a, b, margin=0.005)
    assert near.p < 0.05 < narrow.p
    assert -0.1 < near.low < near.high < 0.1
    assert equivalence_test(a, b + 1, margin=0.5).p > 0.5
    assert math.isnan(equivalence_test(a, a + 1, margin=0.5).p)
    assert equivalence_test(a, a, margin=0.5).p < 0.05
    with pytest.raises(ValueError, match="margin should be above 0"):
        equivalence_test(a, b, margin=0)


def test_the_needed_examples_find_the_difference_as_often_as_asked():
    random = np.random.default_rng(0)
    differences = random.normal(0, 1, 2000)
    n = needed_examples(differences / differences.std(ddof=1), np.zeros(2000), difference=0.5, test="t")
    assert n == 34  # G*Power: a paired t-test, d = 0.5, power 0.8
    found = [stats.ttest_1samp(random.normal(0.5, 1, n), 0).pvalue < 0.05 for _ in range(1000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)
    assert needed_examples(differences, np.zeros(2000), 0.5, tests=11, test="t") > 1.5 * n
    with pytest.raises(ValueError, match="tests should be at least 1"):
        needed_examples(differences, np.zeros(2000), 0.5, tests=0)


def test_a_planted_difference_is_found_at_the_n_that_is_named_and_a_planted_null_is_level():
    """On skewed differences, by the test that tables use; a pilot names n for a difference of a third of its spread."""
    random = np.random.default_rng(1)
    pilot = random.exponential(size=200) - 1
    n = needed_examples(pilot, np.zeros(200), difference=0.33)
    zeros = np.zeros(n)
    planted = [random.exponential(size=n) - 1 for _ in range(60)]
    found = [paired_bootstrap_test(of + 0.33, zeros, resamples=499).p < 0.05 for of in planted]
    assert np.mean(found) > 0.72  # 0.8 is promised, of which 60 tables tell 0.1
    level = [equivalence_test(of, zeros, margin=0.6, resamples=499).p < 0.05 for of in planted]
    alarms = [paired_bootstrap_test(of, zeros, resamples=499).p < 0.05 for of in planted]
    assert np.mean(level) > 0.9
    assert np.mean(alarms) < 0.15


def test_too_few_examples_cannot_tell_anything():
    assert smallest_p("permutation", 3, 9999) == paired_permutation_test([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]).p == 0.25
    assert smallest_p("bootstrap", 3, 9999) == pytest.approx(2 / 9)
    assert paired_bootstrap_test([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]).p > 0.1
    assert smallest_p("bootstrap", 1, 9999) == 1.0
    assert paired_bootstrap_test([1.0], [0.0]).p == 1.0


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="value 1 is infinite"):
        bootstrap_interval([1.0, math.inf])
    with pytest.raises(ValueError, match=r"values should be \(example,\), got shape \(1, 2\)"):
        bootstrap_interval([[1.0, 2.0]])
    with pytest.raises(ValueError, match="a has 1 examples but b has 2"):
        paired_permutation_test([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="confidence should be between 0 and 1, got 95"):
        bootstrap_interval([1.0, 2.0], confidence=95)
    with pytest.raises(ValueError, match="resamples should be at least 1"):
        bootstrap_interval([1.0, 2.0], resamples=0)
    with pytest.raises(ValueError, match="kind should be 'studentised' or 'bca'"):
        bootstrap_interval([1.0, 2.0], kind="percentile")
    with pytest.raises(ValueError, match="each from 0 to 1 or NaN"):
        holm([1.5])
    with pytest.raises(ValueError, match="kind should be 'cohen' or 'cliff'"):
        effect_size([1.0], [1.0], "hedges")


def test_a_missing_package_is_named_with_the_way_out():
    from captum_norm.optional_packages import required

    with pytest.raises(ImportError, match=r'a study needs no_such_package.*pip install "captum-norm\[study\]"'):
        required("no_such_package.part", "a study")


@pytest.mark.parametrize("test", ["bootstrap", "t"])
@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf, 0.0])
def test_no_number_of_examples_finds_a_difference_that_is_none(test, value):
    with pytest.raises(ValueError, match=f"difference should be finite and other than 0, got {value}"):
        needed_examples(A, B, value, test=test)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda: needed_examples(A, B, 0.1, NAN), "power should be between 0 and 1, got nan"),
        (lambda: needed_examples(A, B, 0.1, alpha=NAN), "alpha should be between 0 and 1, got nan"),
        (lambda: needed_examples(A, B, 0.1, tests=0), "tests should be at least 1, got 0"),
        (lambda: bootstrap_interval(A, NAN), "confidence should be between 0 and 1, got nan"),
        (lambda: bootstrap_interval(A, seed=-1), "bootstrap_interval: seed should be at least 0, got -1"),
        (lambda: paired_bootstrap_test(A, B, confidence=NAN), "confidence should be between 0 and 1, got nan"),
        (lambda: paired_bootstrap_test(A, B, -1), "paired_bootstrap_test: seed should be at least 0"),
        (lambda: paired_permutation_test(A, B, resamples=0), "resamples should be at least 1, got 0"),
        (lambda: equivalence_test(A, B, NAN), "margin should be above 0 and finite, got nan"),
        (lambda: equivalence_test(A, B, math.inf), "margin should be above 0 and finite, got inf"),
        (lambda: equivalence_test(A, B, 0.1, resamples=0), "resamples should be at least 1, got 0"),
        (lambda: smallest_p("bootstrap", -1, 99), "smallest_p: n should be at least 0, got -1"),
        (lambda: smallest_p("bootstrap", 1, 0), "smallest_p: resamples should be at least 1, got 0"),
        (lambda: smallest_p("sign", 9, 99), "test should be 'bootstrap' or 'permutation', got 'sign'"),
    ],
)
def test_a_number_that_asks_for_nothing_is_refused(run, says):
    with pytest.raises(ValueError, match=says):
        run()


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda: needed_examples(A, B, 0.1, tests=NAN, test="t"), "tests should be a whole number, got nan"),
        (lambda: bootstrap_interval(A, resamples=100.0), "resamples should be a whole number, got 100.0"),
        (lambda: paired_permutation_test(A, B, resamples=NAN), "resamples should be a whole number, got nan"),
        (lambda: smallest_p("permutation", NAN, 99), "n should be a whole number, got nan"),
        (lambda: needed_examples(A, B, 0.1, tests=True), "tests should be a whole number, got True"),
        (lambda: bootstrap_interval(A, resamples="99"), "resamples should be a whole number, got '99'"),
    ],
)
def test_a_count_is_a_whole_number(run, says):
    with pytest.raises(TypeError, match=says):
        run()
    assert bootstrap_interval(A, resamples=np.int64(99)) == bootstrap_interval(A, resamples=99)
