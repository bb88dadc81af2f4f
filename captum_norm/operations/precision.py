"""How far rounding may take two numbers that should be one, by the format that a model computes in."""

from __future__ import annotations

from typing import Literal

import torch

Compared = Literal["record", "replay", "contributions", "split"]

_FORMATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_TOLERANCES: dict[Compared, tuple[float, ...]] = {
    # an attention call or its block against what the model computed, of the attention part's size
    "record": (1e-12, 1e-5, 2e-3, 2e-2),
    # a layer that runs twice, of its largest output
    "replay": (1e-9, 1e-4, 5e-3, 5e-2),
    # shares of a whole forward and backward pass against the output, of the sum of all absolute shares
    "contributions": (1e-4, 1e-4, 1e-2, 5e-2),
    # terms of a layer's backward pass against their sum, of the size of all terms
    "split": (1e-10, 1e-5, 5e-3, 5e-2),
}


def tolerance(compared: Compared, dtype: torch.dtype) -> float:
    """The largest relative difference that rounding explains; a format that is not in the table counts as float32.

    Args:
        compared: what is compared, a row of the table.
        dtype: what the model computes in.

    Example:
        >>> tolerance("record", torch.float32), tolerance("replay", torch.bfloat16)
        (1e-05, 0.05)
    """
    return _TOLERANCES[compared][_FORMATS.index(dtype if dtype in _FORMATS else torch.float32)]


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The format that checks are computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
