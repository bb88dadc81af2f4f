"""Tensors that are not one number for each entry, and what stands for them.

A quantised weight is no plain tensor (torchao, optimum-quanto), or its product is an operation of its own (torch's
dynamic int8, bitsandbytes' 4 bits).  Either way the product is linear in what enters, but for rounding; so applied to
an identity it says what its matrix is, however it is packed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor as is_batched
from torch.nn import Parameter
from torch.nn.attention.bias import CausalBias, CausalVariant

from captum_norm.operations.callers import running_modules
from captum_norm.operations.operation import Operation

QUANTISED_MAPS = ("linear_dynamic", "linear_dynamic_fp16", "gemm_4bit", "gemv_4bit")
"""Operations x (..., in), packed weight -> (..., out), with the bias in it if there is one."""

ROUNDINGS = ("int8_vectorwise_quant", "int8_double_quant")
"""Operations that make 8-bit integers of what is multiplied; bitsandbytes' products of these are ``INT8_PRODUCTS``."""

INT8_PRODUCTS = ("int8_scaled_mm", "int8_mixed_scaled_mm")

_PLAIN = (Tensor, Parameter)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is one number for each entry, in torch's own layout."""
    return type(tensor) in _PLAIN and not tensor.is_nested


def format_name(tensor: Tensor) -> str:
    """What a tensor's format is called: ``"torchao's Int8Tensor"``, ``"a nested tensor"``.

    Example:
        >>> format_name(torch.nn.Parameter(torch.ones(2)))
        'torch.float32'
    """
    if tensor.is_nested:
        return "a nested tensor"
    kind = type(tensor)
    return str(tensor.dtype) if kind in _PLAIN else f"{kind.__module__.split('.')[0]}'s {kind.__name__}"


def as_applied(linear: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix and the bias of a map that is linear but for rounding: what it makes of an identity, and of zeros.

    Args:
        linear: the map, (row, in) -> (row, out).
        x: what it was given, (..., in): its format and device count.

    Returns:
        W (in, out) and b (out,).
    """
    with torch._C._EnableTorchFunction():  # these formats answer through torch functions
        bias = linear(x.new_zeros(1, x.shape[-1]))
        whole = linear(torch.eye(x.shape[-1], dtype=x.dtype, device=x.device))
    return whole - bias, bias[0]


def holds_numbers(tensor: Tensor) -> bool:
    """Whether it holds numbers, complex ones included, and no ids, masks or routes."""
    return tensor.is_floating_point() or tensor.is_complex()


def same_storage(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors share memory; a format of its own shares it with nothing."""
    return is_plain(other) and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def what_is_strange(op: Operation) -> str:
    """Which operand or result of an operation has a format that cannot be followed, and the way out; "" if none."""
    taken = (*op.tensors, *op.outputs)
    strange, callers = next((tensor for tensor in taken if not is_plain(tensor)), None), running_modules()
    where = f" in {type(callers[-1].module).__name__}" if callers else ""
    if any(map(is_batched, taken)):
        return f"operation {op.name!r}{where} runs under torch.vmap, out of sight; write the axis out"
    if strange is None:
        return ""
    way = "padded to one length (torch.nested.to_padded_tensor)" if strange.is_nested else "dequantised, or whole"
    return (
        f"operation {op.name!r}{where} works on {format_name(strange)}, which cannot be followed; run the model on "
        f"plain tensors, {way}"
    )


def without_own_formats(op: Operation) -> Operation:
    """An operation that runs also where torch functions are off, which such formats answer through."""
    if all(map(is_plain, op.tensors)):
        return op

    def func(*args: Any, **kwargs: Any) -> Any:
        with torch._C._EnableTorchFunction():
            return op.func(*args, **kwargs)

    func.__name__ = op.name
    return Operation(op.name, func, op.args, op.kwargs, op.out)


def with_plain_mask(op: Operation) -> Operation:
    """Attention with its mask in numbers: torch's own causal biases hold none."""
    mask = op.argument(3, "attn_mask")
    if not isinstance(mask, CausalBias):
        return op
    query, key = (op.argument(i, name) for i, name in enumerate(("query", "key")))
    offset = key.shape[-2] - query.shape[-2] if mask.variant == CausalVariant.LOWER_RIGHT else 0
    plain = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril(offset)
    args = tuple(plain if value is mask else value for value in op.args)
    kwargs = {name: plain if value is mask else value for name, value in op.kwargs.items()}
    return Operation(op.name, op.func, args, kwargs, op.out)
