"""How is a low-rank update learnt?  As a parametrization: the model computes with W + U D while U and D are trained.

:mod:`captum_norm.models.low_rank` has the formula, its source, and how what was learnt is written into the weights.
"""

import torch
from torch import Tensor, nn


class LowRankUpdate(nn.Module):
    """W -> W + U D, for ``torch.nn.utils.parametrize``; U starts at zero, so that W is unchanged at first.

    Args:
        weight: the matrix to be updated, (out, in).
        rank: the number of columns of U and of rows of D.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        self.up = nn.Parameter(torch.zeros(out_features, rank))
        self.down = nn.Parameter(torch.randn(rank, in_features) / in_features**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """The updated matrix, (out, in)."""
        return weight + self.up @ self.down
