"""Operations that add, put side by side, move or keep entries: whatever is constant in them is a bias."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from captum_norm import FrozenModel


def scattered(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, 1:] = x[:, :-1]
    return out.index_add_(1, torch.tensor([0, 2]), x[:, :2]) + 1


def into_memory_that_held_anything(x: Tensor) -> Tensor:
    out = torch.full_like(x, torch.nan)  # as memory that was never written may
    out[:] = x
    return out


MOVES = {
    "writing into memory that held NaN": into_memory_that_held_anything,
    "writing into a buffer": scattered,
    "cat and chunk": lambda x: torch.cat(torch.cat([x, torch.ones_like(x)], -1).chunk(2, -1), 1)[:, ::2].flip(1),
    "where": lambda x: torch.where(torch.tensor([True, False, True, True]), x, torch.tensor(2.0).double()),
    "masked": lambda x: x.masked_fill(torch.tensor([True, False, True, False]), 5.0),
    "einsum with itself": lambda x: torch.einsum("bqd,bkd->bqk", x, x) @ x,
    "added in place": lambda x: x.clone().add_(x, alpha=2).sub_(3),
    "convolution": nn.Conv1d(3, 3, 3, padding=1).double(),
    "mean": lambda x: x.mean(1, keepdim=True).expand_as(x) - 7 + 1 / x.detach(),
}


@pytest.mark.parametrize("function", MOVES.values(), ids=MOVES)
def test_moves_sums_and_products(function, x):
    frozen = FrozenModel(function, x)
    found = frozen.check()
    assert max(found.replay, found.sum, found.affinity) < 1e-13
    for entry in range(4):
        assert frozen.contributions((0, entry)).error < 1e-14
