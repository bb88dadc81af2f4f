"""The values of one key set to zero inside a running model, without knowing anything of the model.

Below torch functions every product shows its operands.  The values of an attention call are found among them by what
they hold, number by number, and those of one key are zero from there on: weights stay what they are, all that follows
is computed anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mul", "scaled_dot_product")
_CLOSE = 1e-9


def without_values(run: Callable[[], Tensor], values: Tensor, key: int) -> tuple[Tensor, int]:
    """The output of ``run`` with one key's values at zero, and the number of operands that held values.

    Args:
        run: runs a model in float64.
        values: (batch, head, key, head_dim), those of one attention call.
        key: which key.
    """
    erasing = _Erasing(values, key)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a whole layer in one operation has no operand to change
    try:
        with torch.no_grad(), erasing:
            output = run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return output, erasing.found


class _Erasing(TorchDispatchMode):
    def __init__(self, values: Tensor, key: int) -> None:
        super().__init__()
        self._all, self._one = (v.detach().flatten().sort().values for v in (values, values[:, :, key]))
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in func.name() for name in _PRODUCTS):
            args = tuple(self._erased(a) if isinstance(a, Tensor) else a for a in args)
        return func(*args, **(kwargs or {}))

    def _erased(self, operand: Tensor) -> Tensor:
        if operand.layout is not torch.strided or operand.dtype != torch.float64 or operand.numel() == 0:
            return operand
        if not _among(operand, self._all).all():
            return operand
        self.found += 1
        return operand.masked_fill(_among(operand, self._one), 0.0)


def _among(numbers: Tensor, known: Tensor) -> Tensor:
    """Which of the numbers are in the sorted ones, up to rounding."""
    index = torch.searchsorted(known, numbers.contiguous())
    below, above = known[(index - 1).clamp(min=0)], known[index.clamp(max=len(known) - 1)]
    nearest = torch.minimum((numbers - below).abs(), (numbers - above).abs())
    return nearest <= _CLOSE * (1 + numbers.abs())
