"""Shares of rows: their definition written out, and the figures of the authors' code from the tensors it saw."""

import numpy as np
import pytest
import torch
from torch.linalg import vector_norm

from captum_norm.functional import FrozenNorm, route_shares
from captum_norm.functional.routes import feed_forward_share
from tests.functional.test_span import Traced, drawn


def prox(part, state):
    return (vector_norm(state, 1, -1) - vector_norm(state - part, 1, -1)).clamp_min(0)


@pytest.mark.parametrize("gate", [None, 1, 6])
@pytest.mark.parametrize("normed", [False, True])
def test_shares_are_their_definition_and_add_up_to_one(gate, normed):
    """Every part of every row, head and key as a vector, behind a norm on each side of the residual."""
    weights, values, W_O = drawn(2, 3, 4, 5).softmax(-1), drawn(2, 3, 5, 6), drawn(3, 6, 8)
    gates = None if gate is None else drawn(2, 3, 4, gate)
    mixed = weights[..., None] * values[:, :, None] * (1 if gates is None else gates[:, :, :, None])
    parts, residual, b_O = torch.einsum("bhqke,hed->bhqkd", mixed, W_O), drawn(2, 4, 8), drawn(8)
    inner = norm = None
    total = parts.sum((1, 3)) + b_O
    if normed:
        inner = FrozenNorm(total, drawn(8), None, 1e-5, centred=False)
        parts = inner.fold(parts) / inner.deviation[:, None, :, None, None]
        total = inner.output()
    total = total + residual
    own = residual
    if normed:
        norm = FrozenNorm(total, drawn(8), drawn(8))
        parts = norm.fold(parts) / norm.deviation[:, None, :, None, None]
        total, own = norm.output(), norm(residual)
    found = route_shares(
        weights, values, W_O, residual, total, gate=gates, inner=[inner] if inner else [], norm=[norm] if norm else []
    )
    of_parts = prox(parts, total[:, None, :, None])
    others = [prox(own, total), prox(total - own - parts.sum((1, 3)), total)]
    whole = of_parts.sum((1, 3)) + sum(others)
    torch.testing.assert_close(found.attention, of_parts / whole[:, None, :, None], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.residual, others[0] / whole, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.attention.sum((1, 3)) + found.residual + found.bias, torch.ones(2, 4).double())


def test_a_row_of_nothing_has_no_shares_and_a_part_that_is_all_has_everything():
    states = torch.zeros(2, 1, 1, 2)
    nothing = route_shares(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 2, 2), torch.eye(2)[None], *states)
    assert not nothing.attention.any()
    assert not nothing.bias.any()
    assert feed_forward_share(torch.zeros(2), torch.ones(2)) == 1
    assert feed_forward_share(torch.zeros(2), torch.zeros(2)) == 0


def as_published(part, state):
    """The authors' proximity: 1e-6 on each coordinate of the difference, and 1e-5 at least."""
    return (vector_norm(state, 1, -1) - vector_norm(part - state + 1e-6, 1, -1)).clamp_min(1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_shares_are_those_of_the_authors_code_but_for_its_floor(oracles, kind):
    """Theirs from vectors with its floor and 1e-6; ours without, which gives masked keys nothing."""
    file = np.load(oracles / f"routes_{kind}.npz")
    traced = Traced(np.load(oracles / f"flashtrace_{kind}.npz"), 0)
    for layer in traced.layers:
        weights, values, W_O = traced.attention(layer)
        x, y, f = (traced[name][layer] for name in ("x_before", "x_mid", "ffn_out"))
        parts = torch.einsum("hqk,hke,hed->hqkd", weights[0], values[0], W_O)
        theirs, of_residual = as_published(parts, y[None, :, None]), as_published(x, y)
        whole = theirs.sum((0, 2)) + of_residual
        published = torch.from_numpy(file["attention"][layer])
        torch.testing.assert_close(theirs / whole[None, :, None], published, rtol=0, atol=1e-10)
        found = route_shares(weights, values, W_O, x[None], y[None])
        exact = prox(parts, y[None, :, None])
        torch.testing.assert_close(found.attention[0], exact / (exact.sum((0, 2)) + prox(x, y))[None, :, None])
        near = (1e-5 * theirs[:, 0].numel() + 1e-6 * y.shape[1]) / float(whole.min())
        torch.testing.assert_close(found.attention[0], published, rtol=0, atol=near)
        torch.testing.assert_close(found.residual[0], torch.from_numpy(file["residual"][layer]), rtol=0, atol=near)
        future = torch.ones_like(weights[0]).triu(1) == 1
        assert not found.attention[0][future].any()
        assert bool((published[future] > 0).all())
        ffn = torch.from_numpy(file["ffn"][layer])
        torch.testing.assert_close(feed_forward_share(y, y + f), ffn, rtol=0, atol=near)
