"""Areas under insertion and deletion are those of Petsiu et al."""

import pytest

from captum_norm.study.metrics import DeletionArea, InsertionArea
from tests.study.metrics.bag import ROWS, BagOfTokens, Example, forward, probability, random_scored


@pytest.mark.parametrize("steps", [3, 20])
def test_areas_are_trapezoids_under_the_curve(steps):
    model, scored = BagOfTokens(), random_scored()
    falling = DeletionArea(steps=steps)(forward(model), scored)
    rising = InsertionArea(steps=steps)(forward(model), scored)
    for row in ROWS:
        e = Example(scored, row)
        n = len(e.order)
        counts = list(range(n + 1)) if steps >= n else [round(i * n / steps) for i in range(steps + 1)]
        down = [probability(model, e.without(e.order[:k]), e.target) for k in counts]
        up = [probability(model, e.without(e.order[k:]), e.target) for k in counts]
        for found, curve in ((falling, down), (rising, up)):
            area = sum((counts[i + 1] - counts[i]) / n * (curve[i] + curve[i + 1]) / 2 for i in range(len(counts) - 1))
            assert float(found[row]) == pytest.approx(area)
