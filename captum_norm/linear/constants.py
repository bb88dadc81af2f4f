"""Operations on nothing live: run as the model asked, and kept out of autograd's graph, which is ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from captum_norm.operations.operation import Operation, swapped
from captum_norm.operations.sharded import is_distributed


def on_constants(op: Operation, known: bool) -> Any:
    """Run an operation on nothing live.

    Autograd must not keep what nobody asks for, so parameters go in detached.  But a parameter that comes out again is
    the model's own, and what writes to one, or has no rule (``known``), runs as the model asked: wrappers that load and
    unload weights do so in the middle of a forward.
    """
    parameters = {id(tensor): tensor for tensor in op.tensors if tensor.requires_grad}
    if parameters and (op.writes or not known or is_distributed()):  # a view of a sharded weight must show as one
        with torch.no_grad():
            return op.func(*op.args, **op.kwargs)
    if op.writes:  # into what may be a view that was made without gradients
        with torch.no_grad():
            return op.func(*op.args, **op.kwargs)
    held = {key: tensor.detach() for key, tensor in parameters.items()}

    def swap(tensor: Tensor) -> Tensor:
        return held.get(id(tensor), tensor)

    kwargs = {name: swapped(value, swap) for name, value in op.kwargs.items()}
    with torch.enable_grad():  # a view that is made without gradients cannot be written to with them
        out = op.func(*(swapped(value, swap) for value in op.args), **kwargs)
    return next((parameters[key] for key, tensor in held.items() if tensor is out), out)


@contextmanager
def own_graph() -> Iterator[None]:
    """Autograd's graph is ours: what the model saves for its own backward pass, as in a checkpoint, is not asked."""
    with torch.enable_grad():
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
            yield
            return
        with torch.autograd.graph.saved_tensors_hooks(_kept, _kept):
            yield


def _kept(tensor: Tensor) -> Tensor:
    return tensor
