"""What does input j contribute to output i of a block by way of its feed-forward part?

With the vectors of ``block``, u_ij with the residual and t_ij behind its norm, and F_i the feed-forward part's share of
each (``feed_forward``), at what that part really read,

    ||F_ij||   ff_norms      ||F_ij + t_ij||   ff_res_norms      ||N_2(F_ij + t_ij)||   ff_res_ln_norms.

The part reads t_ij in post-LN blocks, its own norm of u_ij in pre-LN ones; biases on the way belong to no input, and
the integrals begin at them.  For a query the part is linear in the vectors, with its own slopes.

Source: Kobayashi et al. (2024), "Analyzing Feed-Forward Blocks in Transformers through the Lens of Attention Maps",
https://arxiv.org/abs/2302.00456: AtbFf, AtbFfRes and AtbFfResLn, beside Atb, the block without them.

Axes: b batch, h head, q query (i), k key (j), e head_dim, d model, m hidden.  The slopes and the vectors are computed
in float64, the products with the part's matrices in the precision of the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.linalg import vector_norm

from captum_norm.functional.axes import check_finite, result_dtype
from captum_norm.functional.block import Block
from captum_norm.functional.feed_forward import Slopes, activated
from captum_norm.functional.normalization import FrozenNorm, at_rows
from captum_norm.functional.norms import is_elementwise, slices
from captum_norm.functional.precision import full_precision

ACTIVATIONS = (("gelu", 1.0), ("gelu_new", 1.0), ("silu", 1.0), ("relu", 1.0), ("bloom_gelu", 1.0), ("silu", 1.702))
"""Activations with what stands beside x inside them and is taken off again: the last is the "quick" GELU."""

# Hidden entries in a block of vectors.
_HIDDEN = 1 << 22


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward part, at what it read.

    Attributes:
        W_1, b_1, W_2, activation, W_gate, b_gate: as in ``feed_forward_parts``.
        b_2: the second bias, (model,), or None.
        scale: c in act(c x) / c.
        before: what stands between the block's sum and W_1; None: nothing.
        after: what stands between W_2 and the stream, likewise.
        state: the block's sum, attention and residual with all biases, (batch, query, model).
    """

    W_1: Tensor
    b_1: Tensor | None
    W_2: Tensor
    b_2: Tensor | None
    activation: str
    scale: float
    W_gate: Tensor | None
    b_gate: Tensor | None
    before: FrozenNorm | None
    after: FrozenNorm | None
    state: Tensor

    def at(self, rows: slice | Tensor) -> FeedForward:
        """The part at some queries alone; rows a slice, or (batch, row) long."""
        rows = rows if isinstance(rows, slice) else rows.to(self.state.device)
        return replace(
            self, before=self.before and self.before.at(rows), after=self.after and self.after.at(rows),
            state=at_rows(self.state, rows),
        )  # fmt: skip

    def read(self) -> Tensor:
        """What the part read, (batch, query, model); in float64."""
        return _whole(self.before, self.state)

    def output(self) -> Tensor:
        """What it gave out with all biases, (batch, query, model), in the precision of the model, float32 at least."""
        dtype = result_dtype(self.state)
        x = self.read().to(dtype)
        hidden = _linear(x, self.W_1, self.b_1)
        if self.W_gate is None:
            hidden = self._activated(hidden)
        else:
            hidden *= self._activated(_linear(x, self.W_gate, self.b_gate))
        return _whole(self.after, _linear(hidden, self.W_2, self.b_2)).to(dtype)

    def _activated(self, x: Tensor) -> Tensor:
        return activated(self.activation, x * self.scale) / self.scale

    def slopes(self, total: Tensor) -> Slopes:
        """What the hidden entries of each part are multiplied with where they add up to total, (..., model).

        What the part read beside them is no part's, and is in the biases.
        """
        rest, c = self.read() - total, self.scale
        b_1 = rest @ self.W_1.double().mT
        b_1 = b_1 if self.b_1 is None else b_1 + self.b_1
        if self.W_gate is None:
            return Slopes.of(total, self.W_1.double() * c, b_1 * c, self.activation)
        b_gate = rest @ self.W_gate.double().mT
        b_gate = b_gate if self.b_gate is None else b_gate + self.b_gate
        found = Slopes.of(total, self.W_1, b_1, self.activation, self.W_gate.double() * c, b_gate * c)
        return Slopes(found.up / c, found.gate)


@torch.no_grad()
def feed_forward_quantities(block: Block, part: FeedForward, quantities: tuple[str, ...]) -> dict[str, Tensor]:
    """``ff_norms``, ``ff_res_norms``, ``ff_res_ln_norms`` of one block, (batch, query, key) each.

    Args:
        block: the block, with its norms.
        part: its feed-forward part.
        quantities: which.  Behind norms that the block lacks is behind those that it has.

    Returns:
        By name; with ``residual_key="column"`` there is one more key, the residual.
    """
    found = {name: _empty(block) for name in quantities}
    for b, q, k, F, t in feed_forward_vectors(block, part):
        for name, result in found.items():
            vectors = F if name == "ff_norms" else F + t
            if name == "ff_res_ln_norms":
                vectors = _through(block.second_norm, vectors, b, q)
            result[b, q, k] = vector_norm(vectors, dim=-1).to(result.dtype)
    return {name: check_finite(block.caller, result, **block.inputs) for name, result in found.items()}


@torch.no_grad()
def feed_forward_alti(block: Block, part: FeedForward, p: int = 1) -> Tensor:
    """How much nearer each vector behind the feed-forward part brings what stands there, ``block.output``; no shares.

    (batch, query, key), at least 0.
    """
    assert block.output is not None
    y, found = block.output.double(), _empty(block)
    for b, q, k, F, t in feed_forward_vectors(block, part):
        vectors, whole = _through(block.second_norm, F + t, b, q), y[b, q][:, None]
        nearer = vector_norm(whole, ord=p, dim=-1) - vector_norm(whole - vectors, ord=p, dim=-1)
        found[b, q, k] = nearer.clamp_min_(0).to(found.dtype)
    return check_finite(block.caller, found, **block.inputs)


Vectors = tuple[int, slice, slice, Tensor, Tensor]


def feed_forward_vectors(block: Block, part: FeedForward) -> Iterator[Vectors]:
    """F_ij and t_ij, some queries at a time: example, queries, keys, and (query, key, model) each; elsewhere 0."""
    W_1, W_2 = part.W_1.to(block.dtype).mT, part.W_2.to(block.dtype).mT
    W_gate = None if part.W_gate is None else part.W_gate.to(block.dtype).mT
    with full_precision(block.weights.device):
        for b, q, k, u in _block_vectors(block, W_1.shape[1]):
            t, y = _through(block.norm, u, b, q), _through(part.before, u, b, q)
            slopes = _of_rows(part, b, q).slopes(y.sum(1)[None])
            y = y.to(block.dtype)
            hidden = (y @ W_1).mul_(slopes.up[0, :, None].to(block.dtype))
            if W_gate is not None and slopes.gate is not None:
                hidden += (y @ W_gate).mul_(slopes.gate[0, :, None].to(block.dtype))
            yield b, q, k, _through(part.after, (hidden @ W_2).double(), b, q), t


def _block_vectors(block: Block, width: int) -> Iterator[tuple[int, slice, slice, Tensor]]:
    """u_ij in float64, (query, key, model), of the keys that some of the queries see."""
    batch, _, query, key = block.weights.shape
    for b in range(batch):
        W_O = block.W_O.double() if block.inner is None else block.inner.fold(block.W_O)
        f = None if is_elementwise(block.gate) else torch.einsum("hke,hed->hkd", block.values[b].double(), W_O)
        for q in slices(query, _HIDDEN // max(1, key * width)):
            weights = block.weights[b, :, q].double()
            k = _seen(block, weights, b, q)
            keys = slice(k.start, min(k.stop, key))
            u = _mixed(block, weights[..., keys], f, W_O, b, q, keys)
            if block.inner is not None and block.inner.deviation is not None:
                u = u / block.inner.deviation[b, q][:, None, None]
            yield b, q, k, _with_residual(block, u, b, q, k)


def _mixed(block: Block, weights: Tensor, f: Tensor | None, W_O: Tensor, b: int, q: slice, keys: slice) -> Tensor:
    """sum_h alpha_ij f_h(x_j), (query, key, model)."""
    gate = None if block.gate is None else block.gate[b, :, q].double()
    if f is None and gate is not None:
        mixed = torch.einsum("hqk,hke,hqe->qkhe", weights, block.values[b, :, keys].double(), gate)
        return mixed.flatten(2) @ W_O.flatten(0, 1)
    assert f is not None
    return torch.einsum("hqk,hkd->qkd", weights if gate is None else weights * gate, f[:, keys])


def _with_residual(block: Block, u: Tensor, b: int, q: slice, k: slice) -> Tensor:
    residual = torch.zeros_like(u[:, 0]) if block.residual is None else block.residual[b, q].double()
    if block.own_keys is None:
        return torch.cat([u, residual[:, None]], dim=1)
    own = block.own_keys[b, q] - k.start
    u[torch.arange(len(u), device=u.device), own] += residual
    return u


def _seen(block: Block, weights: Tensor, b: int, q: slice) -> slice:
    """The keys that some of the queries see or are; all of them and the residual where that is one more."""
    key = weights.shape[-1]
    if block.own_keys is None:
        return slice(0, key + 1)
    some = (weights != 0).any(0).any(0)
    some[block.own_keys[b, q]] = True
    seen = some.nonzero()[:, 0]
    return slice(int(seen[0]), int(seen[-1]) + 1)


def _linear(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, W.to(x), None if b is None else b.to(x))


def _of_rows(part: FeedForward, b: int, q: slice) -> FeedForward:
    """The part at some queries of an example."""
    rows = torch.arange(q.start, min(q.stop, part.state.shape[1]), device=part.state.device)
    one: Callable[[FrozenNorm | None], FrozenNorm | None] = lambda norm: norm and replace(  # noqa: E731
        norm, state=None if norm.state is None else norm.state[b : b + 1],
        factor=None if norm.factor is None else norm.factor[b : b + 1],
    )  # fmt: skip
    return replace(part, before=one(part.before), after=one(part.after), state=part.state[b : b + 1]).at(rows[None])


def _through(norm: FrozenNorm | None, vectors: Tensor, b: int, q: slice) -> Tensor:
    """Vectors (query, key, model) of an example behind a norm."""
    if norm is None:
        return vectors
    vectors = norm.fold(vectors)
    return vectors if norm.deviation is None else vectors / norm.deviation[b, q][:, None, None]


def _whole(norm: FrozenNorm | None, state: Tensor) -> Tensor:
    """A state (batch, query, model) behind a norm, its bias included; in float64."""
    if norm is None:
        return state.double()
    out = norm(state)
    return out if norm.bias is None else out + norm.bias


def _empty(block: Block) -> Tensor:
    batch, _, query, key = block.weights.shape
    return block.weights.new_zeros(batch, query, key + (block.own_keys is None), dtype=block.dtype)
