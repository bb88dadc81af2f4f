"""Norms: 1/sigma is a constant, centring and gamma are linear, beta is a bias."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from captum_norm import FrozenModel
from captum_norm.linear import NotFrozenError
from tests.linear.perceptron import contributions

NORMS = {
    "layer": nn.LayerNorm(4),
    "layer without": nn.LayerNorm(4, elementwise_affine=False),
    "rms": nn.RMSNorm(4),
    "group": nn.GroupNorm(3, 3),
    "length": lambda x: F.normalize(x, dim=-1),
    "by hand": lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt(),
    "rms by hand": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_norms_are_linear_once_their_divisor_is_fixed(norm, x):
    if isinstance(norm, nn.Module):
        norm = copy.deepcopy(norm).double()
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
    model = nn.Sequential(nn.Linear(4, 4), norm).double() if isinstance(norm, nn.Module) else norm
    found = FrozenModel(model, x).check()
    assert found.worst < 1e-12
    assert contributions(model, x).error < 1e-14


def test_a_norm_in_training_is_refused(x):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(3)).double()
    with pytest.raises(NotFrozenError, match=r"'batch_norm'.*model\.eval\(\)"):
        contributions(model, x)
    assert FrozenModel(model.eval(), x).check().worst < 1e-14
