"""Norms of sums over heads in compiled loops (``sums.c``), where there is a compiler and enough to do.

:mod:`captum_norm.functional.gram` and :mod:`captum_norm.functional.norms` say what is computed, and do it in torch
elsewhere.  There each of the 78 products for a pair of tokens at 12 heads is a pass through memory of its own.

Axes: b batch, h head, q query, k key, e head_dim, p pair of heads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from captum_norm.functional.compiled import call, library

# As a part of ||f_h||^2, what is left of it beside the earlier heads is rounding below this.
SMALLEST_PIVOT = 1e-16

# Less than nothing by this part of it is more than rounding: heads that all but cancel span the others, and R is lost.
NO_ROUNDING = -1e-9
TINY = torch.finfo(torch.float64).tiny

# From so many numbers of R on the compiled way is taken; with fewer, torch is done before a compiler would be.
_COMPILED_FROM = 1 << 13

# Fewer queries than this are not worth a thread of their own.
_FOR_A_THREAD = 64


def compiled_for(products: Tensor) -> bool:
    """Whether what belongs to these M, (pair, ...), is for compiled loops.

    It depends on sizes alone, and not on how many queries are asked for at a time: the same question has the same
    answer, bit for bit.
    """
    return products.device.type == "cpu" and products.numel() >= _COMPILED_FROM and is_compiled()


def heads_of(pairs: Tensor) -> int:
    """How many heads have so many pairs, head * (head + 1) / 2."""
    return int((2 * len(pairs)) ** 0.5)


def sums_of_products(first: Tensor, second: Tensor, out: Tensor) -> None:
    """out (head, key) = (first * second).sum(1) of (head, head_dim, key), all float64 and dense."""
    call("sums", "sums_of_products", out, first, second, *first.shape)


def triangular_factors(products: Tensor) -> Tensor:
    """R by columns, (pair, batch, key) in float32, of M by rows, likewise in float64; NaN where it is lost."""
    products = products.contiguous()
    factor, heads = products.new_empty(products.shape, dtype=torch.float32), heads_of(products)
    call("sums", "triangular_factors", factor, products, heads, products[0].numel(), SMALLEST_PIVOT, NO_ROUNDING, TINY)
    return factor


def norms_of_sums(
    norms: Tensor, weights: Tensor, gate: Tensor | None, parts: tuple[Tensor, Tensor, Tensor], cancels: float
) -> None:
    """Writes ||R a|| into norms (batch, query, key), float32, and where heads cancel sqrt(a^T M a).

    Args:
        norms: its keys are dense.
        weights: (batch, head, query, key).
        gate: (batch, head, query, 1), or None.
        parts: M by rows, (pair, batch, key) in float64; R by columns, likewise in float32; the lengths of the heads'
            vectors, (head, batch, key).
        cancels: below this part of sum_h |a_h| ||f_h|| heads cancel.
    """
    weights, gate = weights.float(), None if gate is None else gate.float()
    tensors = [norms, weights if weights.stride(-1) == 1 else weights.contiguous(), gate]
    threads, query = torch.get_num_threads(), norms.shape[1]
    step = max(_FOR_A_THREAD, -(-query // threads))
    if threads == 1 or query <= step:
        _norms_of_sums(tensors, parts, cancels, slice(None))
        return
    with ThreadPoolExecutor(threads) as pool:
        some = [slice(start, start + step) for start in range(0, query, step)]
        list(pool.map(lambda rows: _norms_of_sums(tensors, parts, cancels, rows), some))


def _norms_of_sums(
    tensors: list[Tensor | None], parts: tuple[Tensor, Tensor, Tensor], cancels: float, rows: slice
) -> None:
    norms, weights, gate = (tensor if tensor is None else tensor[..., rows, :] for tensor in tensors)
    if norms is None or weights is None or not norms.numel():
        return
    products, factor, lengths = (part if part.stride(-1) == 1 else part.contiguous() for part in parts)
    of_gate = (0, 0, 0) if gate is None else gate.stride()[:3]
    strides = (
        *norms.stride()[:2], *weights.stride()[:3], *of_gate,
        *factor.stride()[:2], *lengths.stride()[:2], *products.stride()[:2],
    )  # fmt: skip
    sizes = (norms.shape[0], weights.shape[1], *norms.shape[1:])
    call("sums", "norms_of_sums", norms, weights, gate, factor, lengths, products, strides, *sizes, cancels)


@cache
def is_compiled() -> bool:
    """Whether there are compiled loops, and they give what torch gives."""
    known = library("sums")
    return known is not None and hasattr(known, "norms_of_sums") and _agree()


def _agree() -> bool:
    """Whether the loops give what torch gives on numbers that are drawn; some heads cancel, and one spans another."""
    draw = torch.Generator().manual_seed(0)
    batch, head, query, key, width = 2, 5, 11, 37, 6
    f = torch.randn(head, width, batch, key, generator=draw, dtype=torch.float64)
    f[1], f[3] = 1e-3 * f[1] - f[0], f[2]
    weights = torch.rand(batch, head, query, key, generator=draw)
    weights[:, 1, 4] = weights[:, 0, 4]
    products = torch.empty(head * (head + 1) // 2, batch, key, dtype=torch.float64)
    one, other = torch.triu_indices(head, head)
    sums_of_products(f[one].flatten(2), f[other].flatten(2), products)
    lengths = f.norm(dim=1)
    norms = torch.empty(batch, query, key)
    factor = triangular_factors(products)
    norms_of_sums(norms, weights, None, (products, factor, lengths.float()), 0.1)
    expected = torch.einsum("bhqk,hebk->bqke", weights.double(), f).norm(dim=-1)
    exact = torch.allclose(products, (f[one] * f[other]).sum(1))
    return exact and torch.allclose(norms.double(), expected, rtol=1e-5, atol=1e-6)
