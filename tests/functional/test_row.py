"""One query's norms, computed the short way, are the same as in the whole map."""

import pytest
import torch
from safetensors.torch import load_file

from captum_norm.functional import gram, summed_norms
from captum_norm.functional.row import fill_summed_norms_of_row
from tests.functional.make_cancelling_heads import FILE, KINDS, RATIOS

BATCH, HEADS, QUERIES, KEYS, HEAD_DIM, MODEL = 2, 3, 4, 6, 5, 16


def draw(dtype=torch.float32):
    weights = torch.randn(BATCH, HEADS, QUERIES, KEYS).softmax(-1).to(dtype)
    values, W_O = torch.randn(BATCH, HEADS, KEYS, HEAD_DIM).to(dtype), torch.randn(HEADS, HEAD_DIM, MODEL).to(dtype)
    return weights, values, W_O


def definition(weights, values, W_O, gate=None):
    weights = weights.double() if gate is None else weights.double() * gate.double()
    return torch.einsum("bhqk,bhke,hed->bqkd", weights, values.double(), W_O.double()).norm(dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_alone_is_that_row_of_the_map(dtype):
    weights, values, W_O = draw(dtype)
    row = summed_norms(weights[:, :, 2:3], values, W_O)
    assert row.dtype == torch.float32
    torch.testing.assert_close(row.double(), definition(weights[:, :, 2:3], values, W_O), rtol=1e-6, atol=0)
    torch.testing.assert_close(row, summed_norms(weights, values, W_O)[:, 2:3], rtol=2e-6, atol=0)


@pytest.mark.parametrize("gated", [False, True])
def test_two_rows_are_each_the_row_alone_and_keys_behind_both_are_not_read(gated):
    weights, values, W_O = draw()
    gate = torch.rand(BATCH, HEADS, 2, 1) if gated else None
    weights = weights[:, :, :2].clone()
    weights[:, :, 0, 1:], weights[:, :, 1, 4:] = 0, 0
    rows = summed_norms(weights, values, W_O, gate)
    torch.testing.assert_close(rows.double(), definition(weights, values, W_O, gate), rtol=1e-6, atol=0)
    for q in range(2):
        own = None if gate is None else gate[:, :, q : q + 1]
        assert torch.equal(rows[:, q : q + 1], summed_norms(weights[:, :, q : q + 1], values, W_O, own))


def test_a_gate_on_heads_scales_the_row():
    weights, values, W_O = draw()
    gate = torch.rand(BATCH, HEADS, 1, 1)
    row = summed_norms(weights[:, :, :1], values, W_O, gate)
    torch.testing.assert_close(row.double(), definition(weights[:, :, :1], values, W_O, gate), rtol=1e-6, atol=0)


@pytest.mark.parametrize("model", [1, 3, 4, 16])
def test_a_row_of_a_model_much_narrower_than_its_heads_keeps_its_digits(model):
    weights, values = (3 * torch.randn(16, 3, 1, 64)).softmax(-1), torch.randn(16, 3, 64, 512)
    W_O, row = torch.randn(3, 512, model), torch.empty(16, 1, 64)
    fill_summed_norms_of_row(row, weights, values, W_O, None, [(0, W_O.flatten(0, 1))])
    torch.testing.assert_close(row.double(), definition(weights, values, W_O), rtol=1e-6, atol=0)


def test_heads_as_many_as_the_model_is_wide_are_summed_in_float64():
    weights, values, W_O = torch.rand(4, 5, 3, 40), torch.randn(4, 5, 40, 6), torch.randn(5, 6, 5)
    for rows in (slice(None), slice(0, 1)):
        found = summed_norms(weights[:, :, rows], values, W_O)
        assert torch.equal(found, summed_norms(weights[:, :, rows].double(), values.double(), W_O.double()).float())


@pytest.mark.parametrize("left", [1e-1, 1e-3, 1e-5, 0.0])
def test_heads_that_cancel_keep_their_digits(left):
    weights, values, W_O = draw()
    weights[:, 1], values[:, 1], W_O[1] = weights[:, 0], values[:, 0], W_O[0] * (left - 1)
    weights[:, 2] = 0
    row = summed_norms(weights[:, :, :1], values, W_O)
    torch.testing.assert_close(row.double(), definition(weights[:, :, :1], values, W_O), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", [f"{kind}/{ratio}" for kind in KINDS for ratio in RATIOS])
def test_the_committed_cancelling_heads_hold_row_by_row(name):
    tensors = load_file(FILE)
    weights, values, W_O = (tensors[f"{name}/{part}"] for part in ("weights", "values", "W_O"))
    expected = definition(weights[:, :, :1], values, W_O)
    error = (summed_norms(weights[:, :, :1], values, W_O).double() - expected).abs() / expected
    assert error.max() <= 2e-6


def test_zero_weights_give_zero():
    weights, values, W_O = draw()
    assert (summed_norms(torch.zeros_like(weights[:, :, :1]), values, W_O) == 0).all()


def test_a_row_by_the_triangular_factor_is_the_row():
    weights, values = torch.randn(2, 3, 1, 80).softmax(-1), torch.randn(2, 3, 80, 5)
    W_O = torch.randn(3, 5, 16)
    weights[:, 1, :, 40:], values[:, 1, 40:], weights[:, 2, :, 40:] = weights[:, 0, :, 40:], values[:, 0, 40:], 0
    W_O[1] = W_O[0] * (1e-4 - 1)  # the last keys' heads cancel
    row = summed_norms(weights, values, W_O)
    torch.testing.assert_close(row.double(), definition(weights, values, W_O), rtol=1e-6, atol=0)
    assert torch.equal(summed_norms(weights, values, W_O), row)
    (kept,) = (made for _, made in gram._kept[W_O.untyped_storage()].values())
    assert sum(columns.numel() for _, columns in kept) < 0.75 * W_O.numel()
