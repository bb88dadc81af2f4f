"""The conventions of what is held fixed, and what every rule says of its operation."""

from __future__ import annotations

import pytest
from torch import nn

from captum_norm import FrozenModel


def test_unknown_conventions_are_refused(x):
    with pytest.raises(ValueError, match="activation should be one of 'ZO', 'LA', 'ReLU', got 'GeLU'"):
        FrozenModel(nn.Identity(), x, activation="GeLU")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="product should be one of 'half', 'gate', got 'both'"):
        FrozenModel(nn.Identity(), x, product="both")  # type: ignore[arg-type]
