"""Cells are means, intervals and corrected tests."""

import math

import numpy as np
import pytest

from captum_norm.study.report.cells import cells_of
from captum_norm.study.report.statistics import bootstrap_interval, holm, paired_permutation_test
from captum_norm.study.report.tables import ALPHA


def test_cells_are_means_intervals_and_corrected_tests(results):
    table = results.table("Saliency", resamples=200, permutations=99)
    values = results.values("comprehensiveness")
    others = [name for name in results.methods if name not in ("Saliency", "oracle")]
    p = [paired_permutation_test(values[name], values["Saliency"], resamples=99).p for name in others]
    for name, one, corrected in zip(others, p, holm(p), strict=True):
        cell, interval = table.cells[name]["comprehensiveness"], bootstrap_interval(values[name], resamples=200)
        assert (cell.mean, cell.low, cell.high, cell.n) == (interval.mean, interval.low, interval.high, interval.n)
        assert (cell.p, cell.p_holm) == (one, corrected)
        assert cell.difference == pytest.approx(np.nanmean(values[name] - values["Saliency"]))
        assert table.differs(name, "comprehensiveness") == (corrected < ALPHA)
    assert math.isnan(table.cells["Saliency"]["comprehensiveness"].p)
    assert math.isnan(table.cells["oracle"]["auprc"].p)


def test_a_clear_difference_is_marked_and_none_is_not():
    chance = np.random.default_rng(0)
    base = chance.normal(size=60)
    values = {"reference": base, "same": base.copy(), "better": base + 1 + 0.1 * chance.normal(size=60)}
    cells = cells_of(values, "reference", permutations=999)
    assert cells["better"].p_holm < 0.01
    assert cells["better"].effect > 5
    assert cells["same"].p_holm == 1.0
