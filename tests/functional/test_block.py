"""Block norms and mixing ratios are the definition, vector by vector, and the vectors add up to what the block gave."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.linalg import vector_norm

from captum_norm.functional import (
    FrozenNorm,
    block_quantities,
    globenc_norms,
    gram,
    mixing_attn,
    mixing_res,
    mixing_res_ln,
    mixing_res_weights,
    mixing_weights,
    res_ln_norms,
    res_norms,
    summed_norms,
)
from tests.functional.definition import block_vectors, contributions, slow_mixing
from tests.functional.test_norms import DTYPES, GATES, LargestTensor
from tests.functional.test_norms import draw as draw_attention

NORMS = ["res_norms", "res_ln_norms", "globenc_norms"]
MIXING = ["mixing_attn", "mixing_res", "mixing_res_ln", "mixing_weights", "mixing_res_weights"]
FORMS = ("layer norm", "rms norm", "plain")
INNER = ("none", "layer norm", "rms norm", "fixed scale")
KEYS = ("diagonal", "last keys", "per example", "column")


def draw_norm(form: str, batch: int, query: int, model: int, dtype: torch.dtype) -> FrozenNorm:
    state, weight = torch.randn(batch, query, model).to(dtype), torch.randn(model).to(dtype)
    if form == "fixed scale":
        return FrozenNorm(weight=weight, centred=False)
    return FrozenNorm(state, None if form == "plain" else weight, torch.randn(model).to(dtype), 0.1, form != "rms norm")


def draw(
    sizes: tuple[int, ...], dtype=torch.float64, gate: str = "none", form: str = "layer norm", inner: str = "none",
    keys: str = "diagonal",
) -> tuple[dict, Tensor | None]:  # fmt: skip
    """The arguments of block_quantities, and each query's own key."""
    batch, head, query, more, head_dim, model = sizes
    key = query if keys == "diagonal" else query + more
    block = draw_attention(batch, head, query, key, head_dim, model, gate, dtype)
    block["residual"] = torch.randn(batch, query, model).to(dtype)
    block["norm"], block["second_norm"] = (draw_norm(form, batch, query, model, dtype) for _ in range(2))
    if inner != "none":
        block["inner"] = draw_norm(inner, batch, query, model, dtype)
    own = torch.arange(query).expand(batch, -1) + more
    if keys == "last keys":
        block["residual_key"] = torch.arange(query) + more
    elif keys == "per example":
        block["residual_key"] = own = torch.randint(key, (batch, query))
    elif keys == "column":
        block["residual_key"], own = "column", None
    return block, own - more if keys == "diagonal" else own


def by_definition(block: dict, own: Tensor | None) -> dict[str, Tensor]:
    attention = {name: block[name] for name in ("weights", "values", "W_O")}
    options = {"gate": block.get("gate"), "inner": block.get("inner"), "own_keys": own}
    norms = [block["norm"], block["second_norm"]]
    at_depth = [block_vectors(**attention, residual=block["residual"], **options)] + [
        block_vectors(*attention.values(), block["residual"], *norms[:depth], **options) for depth in (1, 2)
    ]
    found = {name: vector_norm(vectors, dim=-1) for name, vectors in zip(NORMS, at_depth, strict=True)}
    alone = contributions(**attention, gate=block.get("gate")).sum(dim=1)
    own_key = torch.full(alone.shape[:2], alone.shape[2]) if own is None else own
    if own is None:
        alone = torch.cat([alone, torch.zeros_like(alone[:, :, :1])], dim=2)
        diagonal = torch.zeros(alone.shape[:2], dtype=torch.float64)
    else:
        diagonal = block["weights"].double().gather(3, own[:, None, :, None].expand(-1, len(block["W_O"]), -1, -1))
        diagonal = diagonal[..., 0].mean(dim=1)
    for name, vectors in zip(MIXING, [alone, *at_depth[:2]], strict=False):
        found[name] = slow_mixing(vectors, own_key)
    return found | {"mixing_weights": 1 - diagonal, "mixing_res_weights": (1 - diagonal) / 2}


def tolerance(dtype: torch.dtype, name: str = "") -> dict[str, float]:
    """Ratios mix the other positions' values in float32, as the model does."""
    if dtype == torch.float64:
        return {"rtol": 1e-11, "atol": 1e-11}
    return {"rtol": 2e-6, "atol": 2e-6 if name.startswith("mixing") else 1e-7}


sizes = st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 5)] * 2, st.integers(1, 4), st.integers(2, 9))


@given(
    sizes=sizes,
    dtype=st.sampled_from(DTYPES),
    gate=st.sampled_from(GATES),
    form=st.sampled_from(FORMS),
    inner=st.sampled_from(INNER),
    keys=st.sampled_from(KEYS),
)
def test_all_quantities_are_the_definition_at_any_shape_dtype_gate_and_norm(sizes, dtype, gate, form, inner, keys):
    block, own = draw(sizes, dtype, gate, form, inner, keys)
    expected = by_definition(block, own)
    for _ in range(3):  # the second call with one W_O keeps part of the work for the third
        found = block_quantities([*NORMS, *MIXING], **block)
        assert list(found) == [*NORMS, *MIXING]
        for name, result in found.items():
            assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            torch.testing.assert_close(
                result.double(), expected[name], **tolerance(dtype, name), msg=lambda m, n=name: n + m
            )


def test_each_function_gives_its_quantity():
    block, _ = draw((2, 3, 4, 0, 5, 8), gate="one per head", inner="rms norm")
    expected = block_quantities([*NORMS, *MIXING], **block)
    attention = {name: block[name] for name in ("weights", "values", "W_O")}
    options = {"gate": block["gate"], "inner": block["inner"]}
    residual, norm, second = block["residual"], block["norm"], block["second_norm"]
    found = {
        "res_norms": res_norms(**attention, residual=residual, **options),
        "res_ln_norms": res_ln_norms(**attention, residual=residual, norm=norm, **options),
        "globenc_norms": globenc_norms(**attention, residual=residual, norm=norm, second_norm=second, **options),
        "mixing_attn": mixing_attn(**attention, gate=block["gate"]),
        "mixing_res": mixing_res(**attention, residual=residual, **options),
        "mixing_res_ln": mixing_res_ln(**attention, residual=residual, norm=norm, **options),
        "mixing_weights": mixing_weights(block["weights"]),
        "mixing_res_weights": mixing_res_weights(block["weights"]),
    }
    for name, result in found.items():
        torch.testing.assert_close(result, expected[name])


def run_block(post: nn.LayerNorm | None) -> tuple[dict, Tensor, Tensor]:
    """torch's own attention with residual and LayerNorm: the block's arguments, its output and the bias b_O."""
    mha = nn.MultiheadAttention(embed_dim=12, num_heads=3, batch_first=True).double().eval()
    nn.init.normal_(mha.in_proj_bias)
    nn.init.normal_(mha.out_proj.bias)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    seen = x if post is not None else nn.LayerNorm(12, dtype=torch.float64)(x)
    output, weights = mha(seen, seen, seen, average_attn_weights=False)
    values = (seen @ mha.in_proj_weight[24:].T + mha.in_proj_bias[24:]).unflatten(-1, (3, 4)).transpose(1, 2)
    block = {"weights": weights, "values": values, "W_O": mha.out_proj.weight.T.unflatten(0, (3, 4)), "residual": x}
    block = {name: tensor.detach() for name, tensor in block.items()}
    state = (output + x).detach()
    if post is None:
        return block, state, mha.out_proj.bias.detach()
    block["norm"] = FrozenNorm(state, post.weight.detach(), post.bias.detach(), post.eps)
    return block, post(state).detach(), mha.out_proj.bias.detach()


def test_vectors_of_a_post_ln_block_add_up_to_its_output_less_the_biases():
    post = nn.LayerNorm(12, eps=0.01, dtype=torch.float64)
    nn.init.normal_(post.weight)
    nn.init.normal_(post.bias)
    block, output, b_O = run_block(post)
    torch.testing.assert_close(block["norm"].output(), output)
    own = torch.arange(5).expand(2, -1)
    vectors = block_vectors(*block.values(), own_keys=own)
    bias_share = block["norm"](b_O.expand_as(output))
    torch.testing.assert_close(vectors.sum(dim=2) + bias_share + post.bias, output)
    torch.testing.assert_close(res_ln_norms(**block), vector_norm(vectors, dim=-1))


def test_vectors_of_a_pre_ln_block_add_up_to_its_output_less_b_o():
    block, output, b_O = run_block(None)
    vectors = block_vectors(*block.values(), own_keys=torch.arange(5).expand(2, -1))
    torch.testing.assert_close(vectors.sum(dim=2) + b_O, output)
    torch.testing.assert_close(res_norms(**block), vector_norm(vectors, dim=-1))


def test_a_norm_is_torchs_own():
    state = torch.randn(2, 3, 8, dtype=torch.float64)
    for module, centred in ((nn.LayerNorm(8, eps=0.3), True), (nn.RMSNorm(8, eps=0.3), False)):
        module.double()
        nn.init.normal_(module.weight)
        norm = FrozenNorm(state, module.weight.detach(), getattr(module, "bias", None), eps=0.3, centred=centred)
        torch.testing.assert_close(norm.output(), module(state))
        parts = torch.randn(2, 3, 8, dtype=torch.float64)
        torch.testing.assert_close(norm(parts) + norm(state - parts), norm(state))


def test_by_hand_a_residual_that_undoes_attention_leaves_only_the_others():
    weights, values = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]]]), torch.tensor([[[[6.0, 8.0], [0.0, 2.0]]]])
    residual = torch.tensor([[[-3.0, -4.0], [3.0, 0.0]]])
    block = {"weights": weights, "values": values, "W_O": torch.eye(2)[None], "residual": residual}
    found = block_quantities(["res_norms", "mixing_attn", "mixing_res", "mixing_weights"], **block)
    assert found["res_norms"].tolist() == [[[0.0, 1.0], [10.0, 3.0]]]
    assert found["mixing_res"].tolist() == [[1.0, pytest.approx(10 / 13)]]
    assert found["mixing_attn"].tolist() == [[pytest.approx(1 / 6), 1.0]]
    assert found["mixing_weights"].tolist() == [[0.5, 1.0]]


def test_a_ratio_is_of_the_norm_of_the_sum_and_not_of_the_sum_of_norms():
    """Two other positions hand over opposite vectors: nothing arrives."""
    weights, values = torch.full((1, 1, 3, 3), 1.0), torch.tensor([[[[5.0], [2.0], [-2.0]]]])
    found = mixing_res(weights, values, torch.ones(1, 1, 1), residual=torch.ones(1, 3, 1))
    assert found[0, 0] == 0


def test_where_nothing_arrives_at_all_the_ratio_is_zero():
    zeros = torch.zeros(1, 2, 3, 3)
    assert not mixing_attn(zeros, torch.randn(1, 2, 3, 4), torch.randn(2, 4, 5)).any()


def test_what_a_query_is_divided_by_cancels_in_ratios_and_b_o_plays_no_part():
    block, _ = draw((2, 3, 4, 0, 5, 8))
    expected = mixing_res_ln(**{name: block[name] for name in ("weights", "values", "W_O", "residual", "norm")})
    block["norm"] = FrozenNorm(9 * block["norm"].state, block["norm"].weight)
    found = mixing_res_ln(**{name: block[name] for name in ("weights", "values", "W_O", "residual", "norm")})
    torch.testing.assert_close(found, expected)


def test_norms_without_a_residual_are_summed_norms():
    block, _ = draw((2, 3, 4, 0, 5, 8))
    attention = {name: block[name] for name in ("weights", "values", "W_O")}
    torch.testing.assert_close(
        res_norms(**attention, residual=torch.zeros_like(block["residual"])), summed_norms(**attention)
    )


def test_rotating_the_output_space_changes_nothing_before_and_behind_an_rms_norm_without_gamma():
    block, _ = draw((2, 3, 4, 0, 5, 8))
    block["norm"] = FrozenNorm(block["norm"].state, eps=0.1, centred=False)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    rotated = {**block, "W_O": block["W_O"] @ rotation, "residual": block["residual"] @ rotation}
    for name in ("res_norms", "res_ln_norms", "mixing_res_ln"):
        torch.testing.assert_close(block_quantities([name], **rotated), block_quantities([name], **block))


def test_shifting_a_residual_by_a_constant_changes_nothing_behind_a_layer_norm():
    block, _ = draw((2, 3, 4, 0, 5, 8))
    names = ["res_ln_norms", "globenc_norms", "mixing_res_ln"]
    shifted = {**block, "residual": block["residual"] + 3}
    torch.testing.assert_close(block_quantities(names, **shifted), block_quantities(names, **block))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_batch_is_its_examples_one_by_one(dtype):
    block, _ = draw((3, 2, 4, 0, 5, 8), dtype)
    together = block_quantities([*NORMS, *MIXING], **block)
    for b in range(3):
        alone = {name: part[b : b + 1] for name, part in block.items() if isinstance(part, Tensor) and name != "W_O"}
        alone["W_O"] = block["W_O"]
        for name in ("norm", "second_norm"):
            norm = block[name]
            alone[name] = FrozenNorm(norm.state[b : b + 1], norm.weight, norm.bias, norm.eps, norm.centred)
        for name, result in block_quantities([*NORMS, *MIXING], **alone).items():
            torch.testing.assert_close(result[0], together[name][b], rtol=1e-6, atol=1e-7)


def test_many_queries_are_worked_on_in_blocks(monkeypatch):
    block, _ = draw((2, 2, 300, 0, 3, 6), torch.float32)
    in_blocks = block_quantities(["res_norms", "mixing_res_ln"], **block)
    monkeypatch.setattr("captum_norm.functional.block._QUERIES", 1000)
    torch.testing.assert_close(block_quantities(["res_norms", "mixing_res_ln"], **block), in_blocks)


@pytest.mark.parametrize("ratio", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("batch", [1, 2])
def test_where_heads_cancel_float32_results_are_those_of_float64(ratio, batch):
    """Three heads that all but undo one another, in what a position keeps and in what it gets."""
    block, own = draw((batch, 3, 20, 0, 8, 32), torch.float32)
    block["weights"], block["values"] = (
        block["weights"][:, :1].repeat(1, 3, 1, 1),
        block["values"][:, :1].repeat(1, 3, 1, 1),
    )
    W_O = torch.randn(3, 8, 32).double()
    W_O[2] = ratio * W_O[2] - W_O[0] - W_O[1]
    block["W_O"] = W_O.float()
    block["residual"] = torch.zeros_like(block["residual"])
    expected = by_definition(block, own)
    names = [*NORMS, "mixing_attn", "mixing_res", "mixing_res_ln"]
    for _ in range(3):
        for name, found in block_quantities(names, **block).items():
            torch.testing.assert_close(found.double(), expected[name], rtol=2e-6, atol=0, msg=lambda m, n=name: n + m)


def test_where_the_residual_cancels_attention_float32_results_are_those_of_float64():
    block, own = draw((1, 3, 20, 0, 8, 32), torch.float32)
    kept = torch.stack(
        [contributions(block["weights"], block["values"], block["W_O"]).sum(1)[0, i, i] for i in range(20)]
    )
    block["residual"] = -(1 + 1e-5) * kept.float()[None]
    expected = by_definition(block, own)["res_norms"]
    torch.testing.assert_close(res_norms(*list(block.values())[:4]).double(), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("of_others", [1.0, 1e-2, 1e-6])
def test_ratios_are_the_same_where_what_attention_gave_out_is_known(of_others):
    """What comes from others is that less the own part, or is mixed by itself where little of it is left."""
    block, own = draw((2, 3, 20, 0, 8, 32), torch.float32, form="plain")
    block["weights"] *= torch.where(torch.eye(20, dtype=torch.bool), 1.0, of_others)
    attention = {name: block[name] for name in ("weights", "values", "W_O")}
    expected = by_definition(block, own)
    b_O = torch.randn(32)
    block["attended"] = (contributions(**attention).sum((1, 3)) + b_O).float()
    for name, found in block_quantities(["mixing_attn", "mixing_res", "mixing_res_ln"], **block, b_O=b_O).items():
        torch.testing.assert_close(found.double(), expected[name], rtol=5e-6, atol=0, msg=lambda m, n=name: n + m)


def test_a_changed_gamma_is_seen_though_the_projection_is_kept():
    block, own = draw((1, 2, 20, 0, 3, 16), torch.float32)
    for _ in range(3):
        res_ln_norms(**{name: part for name, part in block.items() if name != "second_norm"})
    assert len(gram._kept[block["W_O"].untyped_storage()]) == 1
    block["norm"].weight.mul_(-2).add_(0.1)
    expected = by_definition(block, own)
    for _ in range(3):
        found = block_quantities(NORMS, **block)
        for name in NORMS:
            torch.testing.assert_close(found[name].double(), expected[name], **tolerance(torch.float32))


def test_norms_of_two_forms_with_one_gamma_are_kept_apart():
    block, own = draw((1, 2, 20, 0, 3, 16), torch.float32)
    for _ in range(3):
        for centred in (True, False):
            block["norm"] = FrozenNorm(block["norm"].state, block["norm"].weight, centred=centred)
            expected = by_definition(block, own)["res_ln_norms"]
            found = block_quantities(["res_ln_norms"], **block)["res_ln_norms"]
            torch.testing.assert_close(found.double(), expected, **tolerance(torch.float32))


def test_nothing_changes_under_inference_mode_or_autocast_and_no_gradients_are_made():
    block, _ = draw((1, 2, 3, 0, 4, 6), torch.float32)
    expected = block_quantities([*NORMS, *MIXING], **block)
    with torch.inference_mode():
        torch.testing.assert_close(block_quantities([*NORMS, *MIXING], **block), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(block_quantities([*NORMS, *MIXING], **block), expected)
    block["weights"].requires_grad_()
    assert not any(found.requires_grad for found in block_quantities([*NORMS, *MIXING], **block).values())


def test_inputs_are_left_as_they_were():
    block, _ = draw((2, 3, 4, 2, 5, 8), torch.float64, "elementwise", inner="layer norm", keys="per example")
    before = {name: part.clone() for name, part in block.items() if isinstance(part, Tensor)}
    block_quantities([*NORMS, *MIXING], **block)
    for name, tensor in before.items():
        torch.testing.assert_close(block[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_no_tensor_of_query_by_key_by_model_size_is_ever_made(dtype):
    block, _ = draw((2, 4, 12, 0, 8, 32), dtype)
    for _ in range(3):
        with LargestTensor() as largest:
            block_quantities([*NORMS, *MIXING], **block)
        assert 0 < largest.elements < 12 * 12 * 32


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"residual": torch.ones(1, 4, 6)}, r"query is 3 in weights but 4 in residual"),
        ({"residual": None}, "res_norms needs residual, which is None"),
        ({"norm": None}, "res_ln_norms needs norm, which is None"),
        ({"second_norm": None}, "globenc_norms needs second_norm, which is None"),
        ({"norm": FrozenNorm(torch.ones(1, 3, 5))}, "model is 6 in W_O but 5 in norm.state"),
        ({"inner": FrozenNorm(weight=torch.ones(7))}, "model is 6 in W_O but 7 in inner.weight"),
        ({"weights": torch.ones(1, 2, 3, 4), "values": torch.ones(1, 2, 4, 5)}, "3 queries and 4 keys; pass 'column'"),
        ({"residual_key": "first"}, "should be 'diagonal', 'column' or a tensor, got 'first'"),
        ({"residual_key": torch.tensor([0, 1])}, r"of shape \(query,\) = \(3,\) or \(batch, query\) = \(1, 3\)"),
        ({"residual_key": torch.tensor([0.0, 1.0, 2.0])}, "got torch.float32"),
        ({"residual_key": torch.tensor([0, 1, -1])}, "should be from 0 to 2"),
        ({"residual_key": torch.tensor([0, 1, 3])}, "should be from 0 to 2"),
        ({"norm": FrozenNorm(torch.full((1, 3, 6), torch.nan))}, "norm.state is not finite at 18 of 18 places"),
        ({"residual": torch.full((1, 3, 6), torch.inf)}, "residual is not finite"),
    ],
)
def test_bad_blocks_are_refused_by_name(changed, message):
    block, _ = draw((1, 2, 3, 0, 5, 6), torch.float32)
    with pytest.raises(ValueError, match=f"block_quantities: .*{message}"):
        block_quantities([*NORMS, *MIXING], **block | changed)


def test_unknown_quantities_and_constant_states_are_refused():
    block, _ = draw((1, 2, 3, 0, 5, 6), torch.float32)
    with pytest.raises(ValueError, match="no quantity 'res'; there are res_norms, res_ln_norms, globenc_norms, mixing"):
        block_quantities(["res"], **block)
    block["norm"] = FrozenNorm(torch.ones(1, 3, 6), eps=0.0)
    with pytest.raises(ValueError, match=r"the state at \(batch, query\) = \(0, 0\) has no spread, and eps is 0"):
        block_quantities(["res_ln_norms"], **block)
    with pytest.raises(ValueError, match="the norm has no state"):
        FrozenNorm(weight=torch.ones(3)).output()
    with pytest.raises(TypeError, match="mixing_weights: weights should be of floating point"):
        mixing_weights(torch.ones(1, 1, 2, 2).long())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("sizes", [(0, 2, 3, 1, 4, 6), (2, 2, 0, 1, 4, 6), (2, 2, 3, 1, 0, 6)], ids=str)
def test_an_axis_of_length_zero_gives_empty_norms_or_those_of_the_residual_alone(sizes, keys, dtype):
    block, own = draw(sizes, dtype, keys=keys) if keys != "per example" or sizes[2] else draw(sizes, dtype)
    expected = by_definition(block, own)
    for name, found in block_quantities(NORMS, **block).items():
        torch.testing.assert_close(found.double(), expected[name], rtol=1e-6, atol=1e-7)
    assert block_quantities(["mixing_res"], **block)["mixing_res"].shape == sizes[:1] + sizes[2:3]
