"""Norms of sums in compiled loops are the definition's and torch's, or are not taken."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_norm.functional import compiled, gram, norms, sums

needs_compiler = pytest.mark.skipif(compiled._compiler() is None, reason="there is no compiler, or none is wanted")


def drawn(batch, head, query, key, width, model, form, gated):
    """Weights, values, W_O and gate of one call, float32."""
    values, W_O = torch.randn(batch, head, key, width), torch.randn(head, width, model)
    weights = torch.randn(batch, head, query, key).softmax(-1)
    if form == "cancelling heads":
        half = head // 2
        values[:, half : 2 * half] = values[:, :half]
        W_O[half : 2 * half] = 1e-4 * W_O[half : 2 * half] - W_O[:half]
        weights[:, half : 2 * half] = weights[:, :half]
    elif form == "zeros":
        weights[:, :, ::2], values[:, :, 1::3] = 0, 0
    return weights, values, W_O, torch.randn(batch, head, query, 1) if gated else None


def by_vectors(weights, values, W_O, gate):
    """The definition, in float64: all vectors at once."""
    f = torch.einsum("bhke,hed->bhkd", values.double(), W_O.double())
    weights = weights.double() if gate is None else weights.double() * gate
    return torch.einsum("bhqk,bhkd->bqkd", weights, f).norm(dim=-1)


@needs_compiler
@settings(max_examples=40)
@given(
    sizes=st.tuples(*[st.integers(1, most) for most in (3, 13, 19, 300, 9)], st.sampled_from([5, 40])),
    form=st.sampled_from(["plain", "cancelling heads", "zeros"]),
    gated=st.booleans(), threads=st.sampled_from([1, 3]), seed=st.integers(0, 99),
)  # fmt: skip
def test_compiled_norms_of_sums_are_the_definition_to_a_millionth(sizes, form, gated, threads, seed):
    torch.manual_seed(seed)
    weights, values, W_O, gate = drawn(*sizes, form, gated)
    expected = by_vectors(weights, values, W_O, gate)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sums, "_COMPILED_FROM", 1)
        patched.setattr(sums, "_FOR_A_THREAD", 2)
        patched.setattr(torch, "get_num_threads", lambda: threads)
        found = torch.empty_like(expected, dtype=torch.float32)
        norms.fill_summed_norms_by_products(found, weights, values, W_O, gate)
    floor = 1e-9 * norms.head_norms(weights, values, W_O, gate).sum(1)
    assert ((found - expected).abs() <= 1e-6 * expected + floor).all()


@needs_compiler
def test_blocks_of_queries_that_lie_anywhere_have_the_bits_of_all_queries(monkeypatch):
    monkeypatch.setattr(sums, "_COMPILED_FROM", 1)
    weights, values, W_O, gate = drawn(2, 4, 30, 70, 5, 16, "plain", True)
    whole = norms.summed_norms(weights, values, W_O, gate)
    rows = slice(7, 20)
    elsewhere = weights.mT.contiguous().mT  # keys are not the dense axis
    found = norms.summed_norms(elsewhere[:, :, rows], values, W_O, gate[:, :, rows])
    assert torch.equal(found, whole[:, rows])


@needs_compiler
@pytest.mark.parametrize("compiled_from", [1, 1 << 40])
def test_both_ways_prepare_of_keys_what_they_are_by_definition(monkeypatch, compiled_from):
    monkeypatch.setattr(sums, "_COMPILED_FROM", compiled_from)
    _, values, W_O, _ = drawn(2, 5, 1, 70, 6, 20, "cancelling heads", False)
    W_O[4] = W_O[3]  # a head that another spans
    values[:, 4] = values[:, 3]
    f = torch.einsum("bhke,hed->bkhd", values.double(), W_O.double())
    products = gram.head_products(W_O, 140)(values)
    R = torch.zeros(2, 70, 5, 5)
    for h, column in enumerate(gram.by_columns(gram.triangular_factor(products))):
        R[..., : h + 1, h] = column.permute(1, 2, 0)
    for h, row in enumerate(gram.by_rows(products)):
        torch.testing.assert_close(row.permute(1, 2, 0), (f[:, :, h, None] * f[:, :, h:]).sum(-1))
    torch.testing.assert_close(R.double().mT @ R.double(), f @ f.mT, rtol=1e-5, atol=1e-5)
    assert (R[..., 4, 4] < 1e-6 * f[:, :, 4].norm(dim=-1)).all()  # what is left of that head is rounding


@pytest.mark.parametrize("compiled_from", [pytest.param(1, marks=needs_compiler), 1 << 40])
def test_more_heads_than_dimensions_that_all_but_cancel_have_the_norms_of_the_definition(monkeypatch, compiled_from):
    monkeypatch.setattr(sums, "_COMPILED_FROM", compiled_from)
    for seed in range(5):
        torch.manual_seed(seed)
        weights, values, W_O, gate = drawn(1, 7, 1, 5, 1, 5, "cancelling heads", False)
        expected = by_vectors(weights, values, W_O, gate)
        found = torch.empty_like(expected, dtype=torch.float32)
        norms.fill_summed_norms_by_products(found, weights, values, W_O, gate)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_loops_that_disagree_with_torch_are_not_taken(monkeypatch):
    monkeypatch.setattr(sums, "_agree", lambda: False)
    sums.is_compiled.cache_clear()
    try:
        assert not sums.compiled_for(torch.empty(1 << 20))
    finally:
        sums.is_compiled.cache_clear()
