"""Was the attention call read exactly?  One random direction tells.

For a random r in model space, the weighted values must reproduce what the projection wrote (Freivalds' check),

    sum_h weights_h (values_h (W_O_h r))  =  (y - b_O - rest) . r ,

which costs O(query * key) per head and covers weights, values, layout and W_O at once.  It does not see a permutation
of the keys in weights and values together; :mod:`captum_norm.capture.places` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of the size of the attention part, per dtype the model computes in.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


_SMALL = 1 << 18  # numbers, 1 MiB in float32: stays in a core's cache


def tolerance_for(dtype: torch.dtype, values: int) -> float:
    """Largest relative error that rounding explains, for sums over ``values`` numbers of this dtype.

    >>> tolerance_for(torch.float32, 512)
    1e-05
    """
    # Rounding errors of a sum grow with the root of its length; the table is met with room to spare up to 4096 terms.
    return TOLERANCES.get(dtype, 1e-5) * max(1.0, (values / 4096) ** 0.5)


class Probe:
    """Random directions in model space, from a generator of its own: the user's random state is never touched."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator(device="cpu").manual_seed(seed)

    def direction(self, size: int, like: Tensor) -> Tensor:
        """(model,) of normal numbers in at least float32, on the device of ``like``."""
        drawn = torch.randn(size, generator=self._generator, dtype=torch.float64, device="cpu")
        return drawn.to(device=like.device, dtype=at_least_float32(like.dtype))


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def predicted(weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None, r: Tensor) -> Tensor:
    """sum_h (weights_h values_h [* gate_h]) W_O_h r, (batch, query), without ever forming the output."""
    weights, values = weights.to(r.dtype), values.to(r.dtype)
    # One matrix-vector product: as a batch over heads it would copy W_O, which is a view of the model's parameter.
    read = (W_O.to(r.dtype).flatten(0, 1) @ r).view(W_O.shape[:2])  # (head, head_dim)
    if gate is not None and gate.shape[-1] > 1:
        return torch.einsum("bhqe,bhqe,he->bq", weights @ values, gate.to(r.dtype), read)
    along_r = torch.einsum("bhke,he->bhk", values, read)
    total = weights.new_zeros(weights.shape[0], weights.shape[2])
    # A product and a sum, for as many heads as stay small: torch's batched matrix-vector product is fifteen times
    # slower at 512 keys on a CPU.
    some = max(1, _SMALL * weights.shape[1] // max(1, weights.numel()))
    for start in range(0, weights.shape[1], some):
        heads = slice(start, start + some)
        part = (weights[:, heads] * along_r[:, heads, None]).sum(-1)
        total += (part if gate is None else part * gate[:, heads, :, 0].to(r.dtype)).sum(1)
    return total


def relative_error(expected: Tensor, actual: Tensor, size: Tensor) -> float:
    """max |expected - actual| / max(size): how far off, as a part of the attention part's own size."""
    return float((expected - actual).abs().max() / size.max().clamp_min(torch.finfo(size.dtype).tiny))
