"""By how much do vectors t_ij = sum_h w_hij f_h(x_j) overshoot y_i, sum_d max(0, s_d t_d - |y_d|), s the signs of y?

Two ways to the same numbers: all products in torch, or only those coordinates where |t_d| may be above |y_d|, which are
few, compiled (``overshoot.c``) where there is a compiler.

Axes: h head, q query (i), k key (j), d model.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from captum_norm.functional.compiled import call, library
from captum_norm.functional.norms import slices

KEYS = 64
"""How many keys are taken at a time, at most."""

# Numbers in a block of vectors: a core's second cache holds them.
_VECTORS = 1 << 18

# From so many products on the compiled way is the quicker one, and a second to compile it soon comes back.
_COMPILED_FROM = 1 << 27

_LANES, _BUCKETS = 4, 64  # those of overshoot.c


class Overshoots(Protocol):
    """The overshoots of some queries, for some keys at a time.

    Attributes:
        sizes: of each query the largest sum_h |w_h| ||f_h||_1 so far, (query,).
    """

    sizes: Tensor

    @staticmethod
    def prepared(f: Tensor) -> Sequence[Tensor]:
        """What is needed of some keys for any query; f is (head, key, model), dense."""

    def take_off(self, towards: Tensor, weights: Tensor, keys: Sequence[Tensor]) -> None:
        """towards (query, key) -= 2 overshoot; weights is (head, query, key), keys what was prepared of them."""


def overshoots(y: Tensor, factors: Tensor, keys: int, heads: int) -> Overshoots:
    """The quicker way to the overshoots of queries.

    Args:
        y: (query, model), float32.
        factors: by which weights are multiplied, (head or 1, query).
        keys, heads: how many.
    """
    large = y.device.type == "cpu" and y.numel() * keys * heads >= _COMPILED_FROM
    return CompiledOvershoots(y, factors) if large and is_compiled() else OvershootsOfProducts(y, factors)


class OvershootsOfProducts:
    """In torch, by t of every query and key."""

    def __init__(self, y: Tensor, factors: Tensor) -> None:
        self.sizes = y.new_zeros(len(y))
        self._factors = factors
        self._signs, self._below = torch.where(y < 0, -1.0, 1.0).to(y), -y.abs()

    @staticmethod
    def prepared(f: Tensor) -> Sequence[Tensor]:
        """f and the sums of its sizes, both with the key first."""
        return f.transpose(0, 1), f.abs().sum(-1).T

    def take_off(self, towards: Tensor, weights: Tensor, keys: Sequence[Tensor]) -> None:
        """As every way does."""
        f, lengths = keys
        w = (weights * self._factors[..., None]).permute(2, 1, 0).contiguous()
        sums = (w.abs() @ lengths[..., None])[..., 0]
        torch.maximum(self.sizes, sums.amax(0), out=self.sizes)
        for q in slices(len(self._below), 64):
            seen = sums[:, q].any(1).nonzero()[:, 0]  # not behind a causal mask, outside a window, padding
            if len(seen):
                k = slice(int(seen[0]), int(seen[-1]) + 1)
                self._take_off(towards[q, k], w[k, q], f[k], q)

    def _take_off(self, towards: Tensor, w: Tensor, f: Tensor, q: slice) -> None:
        below, signs = self._below[q], self._signs[q]
        step = max(1, _VECTORS // max(1, below.numel()))
        over = f.new_empty(step, *below.shape)
        for k in slices(len(f), step):
            part = over[: len(f[k])]
            torch.bmm(w[k], f[k], out=part)
            torch.addcmul(below, part, signs, out=part)
            towards[:, k].sub_(part.clamp_min_(0).sum(-1).T, alpha=2)


class CompiledOvershoots:
    """By t of those coordinates alone that may be overshot; several threads share the queries as torch's would."""

    def __init__(self, y: Tensor, factors: Tensor) -> None:
        query, model = y.shape
        self.sizes = y.new_zeros(query)
        self._y, self._factors = y.contiguous(), factors.contiguous()
        self._which = torch.empty(query, model, dtype=torch.int32)
        self._small, self._cap = torch.empty(query, model), torch.empty(query)
        self._first = torch.empty(query, _BUCKETS + 1, dtype=torch.int32)
        _call("prepare_queries", self._y, self._which, self._small, self._first, self._cap, query, model)

    @staticmethod
    def prepared(f: Tensor) -> Sequence[Tensor]:
        """f as (key, model, lane), heads last and filled up with zeros; the largest |f| of any head, (key, model); and
        of each head the largest |f| and the sum of all, (head, key)."""
        head, key, model = f.shape
        lanes = -(-head // _LANES) * _LANES
        found = f.new_empty(key, model, lanes), f.new_empty(key, model), f.new_empty(head, key), f.new_empty(head, key)
        _call("prepare_keys", f.contiguous(), *found, head, key, model, lanes)
        return found

    def take_off(self, towards: Tensor, weights: Tensor, keys: Sequence[Tensor]) -> None:
        """As every way does."""
        weights = weights if weights.stride(-1) == 1 else weights.contiguous()
        threads = torch.get_num_threads()
        if threads == 1:
            self._take_off(slice(0, len(self._y)), towards, weights, keys)
            return
        some = list(slices(len(self._y), max(16, len(self._y) // (4 * threads))))
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda q: self._take_off(q, towards, weights, keys), some))

    def _take_off(self, q: slice, towards: Tensor, weights: Tensor, keys: Sequence[Tensor]) -> None:
        factors = self._factors[:, q]
        of_queries = self._y[q], self._which[q], self._small[q], self._first[q], self._cap[q]
        head, query, key = weights[:, q].shape
        _call(
            "take_off_overshoots", towards[q], self.sizes[q], weights[:, q], factors, *keys, *of_queries,
            head, query, key, self._y.shape[1], keys[0].shape[2],
            *weights.stride()[:2], factors.stride(0) if len(factors) > 1 else 0, towards.stride(0),
        )  # fmt: skip


@cache
def is_compiled() -> bool:
    """Whether there is a compiled way, and it gives what torch gives."""
    known = library("overshoot")
    return known is not None and hasattr(known, "take_off_overshoots") and _agree()


def _agree() -> bool:
    """Whether both ways give the same on numbers that are drawn, among them ties and zeros."""
    draw = torch.Generator().manual_seed(0)
    head, query, key, model = 5, 7, 37, 70
    y, f = torch.randn(query, model, generator=draw), torch.randn(head, key, model, generator=draw)
    weights, factors = torch.rand(head, query, key, generator=draw), torch.randn(head, query, generator=draw)
    weights[:, :, 3], y[2], y[3, ::3] = 0, 0, 0
    found = []
    for way in (OvershootsOfProducts(y, factors), CompiledOvershoots(y, factors)):
        towards = torch.zeros(query, key)
        way.take_off(towards, weights, way.prepared(f))
        found.append((towards, way.sizes))
    return all(torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5) for ours, theirs in zip(*found, strict=True))


def _call(name: str, *arguments: Tensor | int) -> None:
    call("overshoot", name, *arguments)
