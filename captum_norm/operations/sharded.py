"""Weights that are whole only while their module runs: sharded ones (FSDP) are given back behind it.

What is read is checked when its call has finished, and a backward pass comes later still; the memory of such a weight
is freed by then.  So whoever looks at an operation is shown a copy of it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from captum_norm.operations.operation import Operation, swapped

_COMPUTE = frozenset(
    "linear matmul rmatmul addmm baddbmm einsum tensordot mv conv1d conv2d conv3d layer_norm rms_norm group_norm "
    "batch_norm mul add sub div bilinear".split()
)


def is_distributed() -> bool:
    """Whether this process is one of a group, so that modules may be sharded or synchronised."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def what_is_split(modules: Iterable[torch.nn.Module]) -> str:
    """Which weight stays in parts on several devices while its module runs (DTensor), in words with the way out; ""."""
    if not is_distributed():
        return ""
    for module in modules:
        for name, child in module.named_modules():
            weights = [] if _is_gathered(module) or _is_gathered(child) else child.named_parameters(recurse=False)
            found = next((key for key, weight in weights if type(weight.data).__name__ == "DTensor"), None)
            if found is not None:
                return (
                    f"{name}.{found}".lstrip(".") + " is split over devices (torch's DTensor, tensor parallelism), so "
                    "that its products run out of sight; load the model whole, or sharded with fully_shard"
                )
    return ""


def _is_gathered(module: torch.nn.Module) -> bool:
    """Whether a module is sharded with ``fully_shard``, which puts its weights together while it runs."""
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)


def with_weights_held(op: Operation) -> Operation:
    """The operation with copies in place of the parameters, and views of parameters, that it computes with."""
    if op.name not in _COMPUTE or not any(map(_is_weight, op.tensors)):
        return op
    kwargs = {name: swapped(value, _held) for name, value in op.kwargs.items()}
    return Operation(op.name, op.func, tuple(swapped(value, _held) for value in op.args), kwargs, op.out)


def _is_weight(tensor: Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter)


def _held(tensor: Tensor) -> Tensor:
    return torch.nn.Parameter(tensor.detach().clone(), requires_grad=False) if _is_weight(tensor) else tensor
