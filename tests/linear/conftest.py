import pytest
import torch
from torch import Tensor


@pytest.fixture
def x() -> Tensor:
    """(batch, position, model)"""
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).double()
