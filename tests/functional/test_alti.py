"""ALTI's contributions are the definition, vector by vector, and shares of each row."""

import warnings
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from captum_norm.functional import FrozenNorm, alti
from tests.functional.definition import block_vectors, slow_alti
from tests.functional.test_block import DTYPES, FORMS, GATES, INNER, KEYS, draw, run_block, sizes
from tests.functional.test_norms import LargestTensor


def draw_alti(*args, near: float = 1.0, **kwargs) -> tuple[dict, Tensor]:
    """The arguments of alti, with an output that is the sum of the vectors and something of a bias; and the vectors."""
    block, own = draw(*args, **kwargs)
    block.pop("second_norm")
    options = {name: block[name] for name in ("gate", "inner") if name in block}
    attention = [block[name] for name in ("weights", "values", "W_O", "residual", "norm")]
    vectors = block_vectors(*attention, own_keys=own, **options)
    output = vectors.sum(dim=2)
    block["output"] = (near * output + 0.1 * torch.randn_like(output)).to(block["weights"].dtype)
    return block, vectors


def quietly(**block) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random rows may well be empty
        return alti(**block)


@given(
    sizes=sizes,
    dtype=st.sampled_from(DTYPES),
    gate=st.sampled_from(GATES),
    form=st.sampled_from(FORMS),
    inner=st.sampled_from(INNER),
    keys=st.sampled_from(KEYS),
    p=st.sampled_from([1, 2]),
)
def test_contributions_are_the_definition_at_any_shape_dtype_gate_and_norm(sizes, dtype, gate, form, inner, keys, p):
    block, vectors = draw_alti(sizes, dtype, gate, form, inner, keys)
    exact = dtype == torch.float64
    length = torch.linalg.vector_norm(block["output"].double(), ord=p, dim=-1)
    nearer = length[..., None] - torch.linalg.vector_norm(vectors - block["output"].double()[:, :, None], ord=p, dim=-1)
    settled = nearer.clamp(min=0).sum(-1) > (1e-9 if exact else 1e-2) * length  # shares of next to nothing are noise
    for published in (False, True):
        if published:  # the same norm without its eps
            block["norm"] = FrozenNorm(block["norm"].state, block["norm"].weight, None, 0.0, block["norm"].centred)
            options = {name: block[name] for name in ("gate", "inner") if name in block}
            own = None if keys == "column" else block.get("residual_key", torch.arange(sizes[2]))
            own = None if own is None else own.expand(len(vectors), -1)
            vectors = block_vectors(
                *[block[name] for name in ("weights", "values", "W_O", "residual", "norm")], own_keys=own, **options
            )
            nearer = length[..., None] - torch.linalg.vector_norm(
                vectors - block["output"].double()[:, :, None] + 1e-6, ord=p, dim=-1
            )
            settled = nearer.clamp(min=0).sum(-1) > (1e-9 if exact else 1e-2) * length
            if not (vectors.isfinite().all() and vectors.abs().amax() < 1e3):
                return
        found = quietly(**block, p=p, as_published=published)
        assert found.dtype == (torch.float64 if exact else torch.float32)
        expected = slow_alti(vectors, block["output"], p, eps=1e-6 if published else 0.0)
        tolerance = {"rtol": 1e-9, "atol": 1e-9} if exact else {"rtol": 1e-4, "atol": 2e-5}
        torch.testing.assert_close(found[settled].double(), expected[settled], **tolerance)


def test_a_post_ln_block_needs_no_output_its_norm_knows_it():
    post = torch.nn.LayerNorm(12, dtype=torch.float64)
    torch.nn.init.normal_(post.bias)
    block, output, _ = run_block(post)
    torch.testing.assert_close(quietly(**block), quietly(**block, output=output))


def test_rows_add_up_to_one():
    for norm in (torch.nn.LayerNorm(12, dtype=torch.float64), None):
        block, output, _ = run_block(norm)
        for p in (1, 2):
            shares = alti(**block, output=output, p=p)
            assert (shares >= 0).all()
            torch.testing.assert_close(shares.sum(-1), torch.ones(2, 5, dtype=torch.float64))


def test_as_published_the_norm_divides_without_its_eps():
    block, _ = draw_alti((1, 2, 3, 0, 4, 6))
    without = {**block, "norm": replace(block["norm"], eps=0.0)}
    published = quietly(**block, as_published=True)
    torch.testing.assert_close(published, quietly(**without, as_published=True))
    assert not torch.allclose(published, quietly(**block))


def test_by_hand_what_reaches_past_the_output_counts_less():
    """y = (4, 0): t = (1, 0) leaves 3 of 4, t = (6, 0) leaves 2, t = (0, 1) takes it further away."""
    weights, values = torch.ones(1, 1, 1, 3), torch.tensor([[[[1.0, 0.0], [6.0, 0.0], [0.0, 1.0]]]])
    block = {"W_O": torch.eye(2)[None], "residual": torch.zeros(1, 1, 2), "output": torch.tensor([[[4.0, 0.0]]])}
    for p in (1, 2):
        found = alti(weights, values, **block, p=p, residual_key="column")
        torch.testing.assert_close(found, torch.tensor([[[1 / 3, 2 / 3, 0.0, 0.0]]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("p", [1, 2])
def test_a_row_that_nothing_brings_nearer_is_zeros_with_a_warning(dtype, p):
    block, _ = draw_alti((2, 2, 3, 0, 4, 6), dtype=dtype)
    block["output"][1, 2] = 0
    with pytest.warns(
        UserWarning, match=r"at 1 of 6 queries, first at \(batch, query\) = \(1, 2\).* are zero"
    ) as caught:
        found = alti(**block, p=p)
    assert caught[0].filename == __file__
    assert found.isfinite().all()
    assert not found[1, 2].any()
    torch.testing.assert_close(found[0].sum(-1), torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("unseen", [0, 64])
@pytest.mark.parametrize("p", [1, 2])
def test_float32_contributions_are_those_of_float64_over_many_keys(p, unseen):
    block, _ = draw_alti((1, 4, 100, 0, 8, 32), dtype=torch.float32)
    block["weights"][..., :unseen] = -torch.inf  # padding on the left, which no query looks at
    block["weights"] = (block["weights"] * 2).softmax(-1)
    block["output"] = None
    doubled = {name: part.double() if isinstance(part, Tensor) else part for name, part in block.items()}
    torch.testing.assert_close(alti(**block, p=p).double(), alti(**doubled, p=p), rtol=2e-5, atol=1e-7)


@pytest.mark.wide(3)
@pytest.mark.parametrize("gate", ["none", "one per head"])
@pytest.mark.parametrize("left", [1.0, 0.1, 1e-3, 1e-5])
def test_float32_is_right_to_a_millionth_of_the_row_however_much_the_heads_cancel(left, gate):
    block, _ = draw_alti((1, 4, 70, 0, 8, 32), dtype=torch.float32, gate=gate)
    block["weights"] = block["weights"].softmax(-1).tril()
    block["norm"] = None
    if left < 1:  # every second head takes back what the first gave, but for this part
        for name, axis in (("weights", 1), ("W_O", 0), ("gate", 1)):
            if name in block:
                block[name] = block[name].unflatten(axis, (2, 2)).select(axis + 1, 0).repeat_interleave(2, axis)
        block["values"][:, 1::2] = left * block["values"][:, 1::2] - block["values"][:, 0::2]
        block["residual"] *= left
    attention = [block[name] for name in ("weights", "values", "W_O", "residual")]
    vectors = block_vectors(*attention, own_keys=torch.arange(70)[None], gate=block.get("gate"))
    block["output"] = vectors.sum(dim=2).float()
    expected = slow_alti(vectors, block["output"], 1)
    assert ((quietly(**block) - expected).abs().amax(-1) < 1e-6 * expected.amax(-1)).all()


@pytest.mark.wide(5)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("p", [1, 2])
def test_sizes_that_are_worked_on_in_blocks_give_the_same(monkeypatch, gate, p):
    block, _ = draw_alti((2, 2, 70, 5, 3, 6), gate=gate, keys="last keys")
    in_one = quietly(**block, p=p)
    monkeypatch.setattr(import_module("captum_norm.functional.nearer"), "_VECTORS", 100)
    torch.testing.assert_close(quietly(**block, p=p), in_one)


@pytest.mark.wide(5)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_no_tensor_grows_with_queries_times_keys_times_model(gate, p, dtype):
    block, _ = draw_alti((1, 2, 128, 0, 8, 64), dtype=dtype, gate=gate)
    with LargestTensor() as largest:
        quietly(**block, p=p)
    assert largest.elements <= 128 * 128 * 64 / 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("p", [1, 2])
def test_a_batch_is_its_examples_one_by_one(dtype, p):
    block, _ = draw_alti((3, 2, 4, 0, 5, 8), dtype=dtype)
    together = quietly(**block, p=p)
    norm = block["norm"]
    for b in range(3):
        alone = {name: block[name][b : b + 1] for name in ("weights", "values", "residual", "output")}
        alone["norm"] = FrozenNorm(norm.state[b : b + 1], norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(quietly(**alone, W_O=block["W_O"], p=p)[0], together[b], rtol=1e-5, atol=1e-6)


def test_nothing_changes_under_autocast_and_inputs_are_left_as_they_were():
    block, _ = draw_alti((1, 2, 5, 0, 4, 6), dtype=torch.float32)
    before = {name: part.clone() for name, part in block.items() if isinstance(part, Tensor)}
    for p in (1, 2):
        expected = quietly(**block, p=p)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(quietly(**block, p=p), expected)
    for name, tensor in before.items():
        torch.testing.assert_close(block[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"p": 3}, "p should be 1 or 2, got 3"),
        ({"norm": None, "output": None}, "without a norm behind the residual, pass output="),
        ({"output": torch.ones(1, 4, 6)}, "query is 3 in weights but 4 in output"),
        ({"output": torch.full((1, 3, 6), torch.nan)}, "output is not finite at 18 of 18 places"),
        ({"values": torch.full((1, 2, 3, 4), torch.inf)}, "values is not finite"),
        ({"residual": torch.ones(1, 3, 7)}, "model is 6 in W_O but 7 in residual"),
    ],
)
def test_bad_input_is_refused_by_name(changed, message):
    block, _ = draw_alti((1, 2, 3, 0, 4, 6), dtype=torch.float32)
    with pytest.raises(ValueError, match=f"alti: {message}"):
        alti(**block | changed)


def test_rounding_of_vectors_that_point_away_is_no_contribution():
    """An own vector of rounding's size, beside one that takes the output further away: nothing brings it nearer."""
    torch.manual_seed(0)
    y = torch.randn(1, 4, 300, dtype=torch.float64)
    block = {"weights": torch.eye(4).expand(1, 1, 4, 4).double(), "values": -y[:, None],
             "W_O": torch.eye(300)[None].double(), "output": y}  # fmt: skip
    with pytest.warns(UserWarning, match="no input brings the output nearer at 4 of 4"):
        assert not alti(**block, residual=1e-15 * y, residual_key="column").any()
