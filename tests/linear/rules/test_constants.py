"""What is held fixed as a whole: gates, scales, routing."""

from __future__ import annotations

import pytest
import torch

from captum_norm import FrozenModel
from tests.linear.perceptron import Perceptron


def test_what_is_frozen_as_a_whole_shows_as_a_leak(x):
    found = FrozenModel(Perceptron(torch.sigmoid, bias=False), x).check()
    assert found.replay < 1e-14
    assert found.sum < 1e-14
    assert found.leak == pytest.approx(1)
