"""A small model with a function in the middle, and what its frozen form says of one number of the output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from captum_norm import FrozenModel


def contributions(function: Any, x: Tensor, **conventions: Any) -> Any:
    """x (batch, position) or (batch, position, model); the first entry of the last position is explained."""
    frozen = FrozenModel(function, x, **conventions)
    return frozen.contributions(lambda y: y.flatten(1)[:, -1])


class Perceptron(nn.Module):
    """Two linear layers and a function between them."""

    def __init__(self, act: Any, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.act = nn.Linear(4, 6, bias), nn.Linear(6, 3, bias), act
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x)))
