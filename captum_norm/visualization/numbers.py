"""Numbers that can be drawn: finite, of the right shape, copied off the device; anything else is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.float64]


def drawable(caller: str, name: str, scores: Tensor | Sequence[Any], axes: str) -> Numbers:
    """A float64 copy of scores.

    Args:
        caller: the public function to name in an error.
        name: what the scores are called there.
        scores: a tensor on any device, of any floating or integer type, or nested sequences of numbers.
        axes: the axes it should have, for example ``"query key"``.

    Raises:
        ValueError: for another number of axes, an axis without entries, NaN or infinity.
    """
    tensor = torch.as_tensor(scores).detach().to("cpu", torch.float64)
    names = axes.split()
    expected = f"({', '.join(names)})"
    if tensor.ndim != len(names):
        raise ValueError(f"{caller}: {name} should be {expected}, got shape {tuple(tensor.shape)}.")
    if tensor.numel() == 0:
        raise ValueError(f"{caller}: {name}, {expected} = {tuple(tensor.shape)}, is empty: there is nothing to draw.")
    if not torch.isfinite(tensor).all():
        place = [int(i) for i in (~torch.isfinite(tensor)).nonzero()[0]]
        raise ValueError(f"{caller}: {name} holds {float(tensor[tuple(place)])} at {expected} = {tuple(place)}.")
    return np.array(tensor.numpy())  # a copy: the caller's tensor may change, the figure should not


def check_count(caller: str, name: str, labels: Sequence[str], axis: str, size: int) -> None:
    """One label for each entry of an axis."""
    if len(labels) != size:
        raise ValueError(f"{caller}: {axis} is {size} in the scores but {name} holds {len(labels)}.")
