"""The norms agree with the paper's definition, written out slowly, and with what attention really outputs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.utils._python_dispatch import TorchDispatchMode

from captum_norm.functional import head_norms, summed_norms, transformed_norms
from tests.functional.definition import (
    contributions,
    slow_head_norms,
    slow_summed_norms,
    slow_transformed_norms,
)
from tests.functional.make_cancelling_heads import FILE, KINDS, RATIOS

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
GATES = ("none", "one per head", "elementwise")


def draw(
    batch: int, head: int, query: int, key: int, head_dim: int, model: int, gate: str = "none", dtype=torch.float64
) -> dict[str, Tensor]:
    """A random attention.  Weights are signed: the algebra needs no softmax."""
    drawn = {
        "weights": torch.randn(batch, head, query, key),
        "values": torch.randn(batch, head, key, head_dim),
        "W_O": torch.randn(head, head_dim, model),
    }
    if gate != "none":
        drawn["gate"] = torch.randn(batch, head, query, 1 if gate == "one per head" else head_dim)
    return {name: tensor.to(dtype) for name, tensor in drawn.items()}


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """float32 results are the exact ones, rounded: half precision goes in, not on."""
    return {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2.5e-7, "atol": 1e-7}


sizes = st.tuples(*[st.integers(1, 4)] * 2, *[st.integers(1, 6)] * 2, st.integers(1, 5), st.integers(1, 12))


@given(sizes=sizes, dtype=st.sampled_from(DTYPES), gate=st.sampled_from(GATES))
def test_all_norms_are_the_definition_at_any_shape_dtype_and_gate(sizes, dtype, gate):
    attention = draw(*sizes, gate=gate, dtype=dtype)
    out = torch.float64 if dtype == torch.float64 else torch.float32
    values, W_O = attention["values"], attention["W_O"]
    for _ in range(3):  # the second call with one W_O keeps part of the work for the third
        for fast, slow in (
            (head_norms(**attention), slow_head_norms(**attention)),
            (summed_norms(**attention), slow_summed_norms(**attention)),
            (transformed_norms(values, W_O), slow_transformed_norms(values, W_O)),
        ):
            torch.testing.assert_close(fast, slow.to(out), **tolerance(dtype))
            torch.testing.assert_close(fast.double(), slow, rtol=1e-6, atol=0)  # however small


wider = st.tuples(*[st.integers(1, 4)] * 2, *[st.integers(1, 6)] * 2, st.integers(1, 5), st.integers(13, 24))


@given(sizes=wider, dtype=st.sampled_from(DTYPES[1:]), gate=st.sampled_from(GATES))
def test_norms_that_are_summed_in_float32_are_right_to_a_millionth(sizes, dtype, gate):
    """Longer vectors than those above, which are summed in float64."""
    attention = draw(*sizes, gate=gate, dtype=dtype)
    expected = slow_summed_norms(**attention)
    for _ in range(3):
        torch.testing.assert_close(summed_norms(**attention).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("sizes", [(2, 3, 12, 200, 4, 24), (40, 2, 3, 20, 4, 16)], ids=["many keys", "large batch"])
def test_sizes_that_are_worked_on_in_blocks_give_the_same(monkeypatch, sizes, gate):
    attention = draw(*sizes, gate=gate, dtype=torch.float32)
    in_one = head_norms(**attention), summed_norms(**attention)
    monkeypatch.setattr("captum_norm.functional.norms.work", lambda tensor: 1 << 9)
    torch.testing.assert_close((head_norms(**attention), summed_norms(**attention)), in_one)
    doubled = {name: tensor.double() for name, tensor in attention.items()}
    torch.testing.assert_close(summed_norms(**doubled).float(), in_one[1])


def test_contributions_add_up_to_the_output_of_torch_attention():
    """The vectors whose norms we report are all there is: with b_O they sum to the module's own output."""
    mha = nn.MultiheadAttention(embed_dim=12, num_heads=3, batch_first=True).double().eval()
    nn.init.normal_(mha.in_proj_bias)
    nn.init.normal_(mha.out_proj.bias)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    output, weights = mha(x, x, x, average_attn_weights=False)

    W_V, b_V = mha.in_proj_weight[24:], mha.in_proj_bias[24:]
    values = (x @ W_V.T + b_V).unflatten(-1, (3, 4)).transpose(1, 2)
    W_O = mha.out_proj.weight.T.unflatten(0, (3, 4))

    vectors = contributions(weights, values, W_O)
    torch.testing.assert_close(vectors.sum(dim=(1, 3)) + mha.out_proj.bias, output)
    torch.testing.assert_close(summed_norms(weights, values, W_O), vector_norm(vectors.sum(dim=1), dim=-1))


def test_two_heads_solved_by_hand():
    """At the first key f = (3, 4) and (0, 12); at the second (1, 0) and (-1, 0).  All weights are 1/2."""
    weights = torch.full((1, 2, 1, 2), 0.5)
    values = torch.tensor([[[[3.0, 4.0], [1.0, 0.0]], [[12.0, 0.0], [0.0, 1.0]]]])
    W_O = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [-1.0, 0.0]]])
    assert transformed_norms(values, W_O).tolist() == [[[5.0, 1.0], [12.0, 1.0]]]
    assert head_norms(weights, values, W_O).tolist() == [[[[2.5, 0.5]], [[6.0, 0.5]]]]
    torch.testing.assert_close(summed_norms(weights, values, W_O), torch.tensor([[[(1.5**2 + 8**2) ** 0.5, 0.0]]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rotating_the_output_space_changes_nothing(dtype):
    attention = draw(2, 3, 4, 5, 6, 18)
    rotation = torch.linalg.qr(torch.randn(18, 18, dtype=torch.float64)).Q
    rotated = attention | {"W_O": attention["W_O"] @ rotation}
    one, other = ({name: tensor.to(dtype) for name, tensor in a.items()} for a in (attention, rotated))
    torch.testing.assert_close(summed_norms(**one), summed_norms(**other))
    torch.testing.assert_close(head_norms(**one), head_norms(**other))


@pytest.mark.parametrize("gate", GATES)
def test_norms_move_along_when_heads_queries_or_keys_are_permuted(gate):
    attention = draw(2, 3, 4, 5, 6, 18, gate=gate, dtype=torch.float32)
    h, q, k = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2]), torch.tensor([4, 0, 3, 1, 2])
    permuted = {
        "weights": attention["weights"][:, h][:, :, q][..., k],
        "values": attention["values"][:, h][:, :, k],
        "W_O": attention["W_O"][h],
    }
    if gate != "none":
        permuted["gate"] = attention["gate"][:, h][:, :, q]
    torch.testing.assert_close(head_norms(**permuted), head_norms(**attention)[:, h][:, :, q][..., k])
    torch.testing.assert_close(summed_norms(**permuted), summed_norms(**attention)[:, q][..., k])


@pytest.mark.parametrize("gate", GATES)
def test_a_batch_gives_what_its_examples_give_one_by_one(gate):
    attention = draw(3, 2, 4, 5, 6, 18, gate=gate, dtype=torch.float32)
    for norms in (head_norms, summed_norms):
        one_by_one = [
            norms(**{name: t if name == "W_O" else t[b : b + 1] for name, t in attention.items()}) for b in range(3)
        ]
        torch.testing.assert_close(norms(**attention), torch.cat(one_by_one))


def test_a_gate_of_ones_changes_nothing_and_one_number_per_head_is_that_number_everywhere():
    attention = draw(2, 3, 4, 5, 6, 18)
    per_head = torch.randn(2, 3, 4, 1, dtype=torch.float64)
    for norms in (head_norms, summed_norms):
        torch.testing.assert_close(norms(**attention, gate=torch.ones(2, 3, 4, 6)), norms(**attention))
        torch.testing.assert_close(
            norms(**attention, gate=per_head.expand(2, 3, 4, 6)), norms(**attention, gate=per_head)
        )


@pytest.mark.parametrize("gate", GATES)
def test_a_key_of_weight_zero_contributes_exactly_nothing(gate):
    attention = draw(1, 3, 4, 5, 6, 18, gate=gate, dtype=torch.float32)
    attention["weights"][..., 3] = 0
    assert (head_norms(**attention)[..., 3] == 0).all()
    assert (summed_norms(**attention)[..., 3] == 0).all()


@pytest.fixture(params=[f"{kind}/{ratio}" for kind in KINDS for ratio in RATIOS])
def cancelling(request) -> tuple[float, dict[str, Tensor]]:
    """||sum|| / sum ||.|| and an attention in float32 with it, from the committed file."""
    tensors = load_file(FILE)
    attention = {name: tensors[f"{request.param}/{name}"] for name in ("weights", "values", "W_O")}
    return float(request.param.split("/")[1]), attention


def test_heads_that_undo_one_another_are_as_exact_as_others(cancelling):
    ratio, attention = cancelling
    exact = slow_summed_norms(**attention)
    loud = slow_head_norms(**attention).sum(dim=1)
    assert (exact / loud).mean().item() == pytest.approx(ratio, rel=0.05)

    naive = vector_norm(
        torch.einsum("bhqk,bhkd->bqkd", attention["weights"], attention["values"] @ attention["W_O"]), dim=-1
    )
    for _ in range(3):
        error = ((summed_norms(**attention) - exact) / exact).abs().max()
        assert error <= 2 * ((naive - exact) / exact).abs().max()
        assert error <= 2e-7  # 2e-5 would do at 1e-3
    doubled = {name: tensor.double() for name, tensor in attention.items()}
    torch.testing.assert_close(summed_norms(**doubled), exact, rtol=1e-11, atol=0)
    gate = torch.ones(1, *attention["weights"].shape[1:3], attention["values"].shape[3])
    torch.testing.assert_close(summed_norms(**attention, gate=gate), exact.float(), rtol=2e-7, atol=0)


@pytest.mark.parametrize("compiled_from", [1, 1 << 40], ids=["compiled", "torch"])
@pytest.mark.parametrize("queries", [1, 3], ids=["a row", "all rows"])
def test_gates_by_which_heads_undo_one_another_are_not_rounded(monkeypatch, cancelling, queries, compiled_from):
    monkeypatch.setattr("captum_norm.functional.sums._COMPILED_FROM", compiled_from)
    _, attention = cancelling
    gate = 0.5 + torch.rand(*attention["weights"].shape[:3], 1)
    gated = {**attention, "weights": attention["weights"] / gate, "gate": gate}
    gated |= {name: gated[name][:, :, :queries] for name in ("weights", "gate")}
    exact = slow_summed_norms(**gated)
    assert ((summed_norms(**gated) - exact) / exact).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_that_undo_one_another_entirely_leave_zero_and_never_nan(dtype):
    """Small integers in W_O make the third head undo the other two exactly, in half precision too."""
    attention = draw(1, 3, 20, 20, 8, 32, dtype=dtype)
    attention["weights"][:], attention["values"][:] = (
        attention["weights"][:, :1].clone(),
        attention["values"][:, :1].clone(),
    )
    attention["W_O"].random_(-8, 8)
    attention["W_O"][2] = -attention["W_O"][0] - attention["W_O"][1]
    loud = head_norms(**attention).sum(dim=1)
    for _ in range(3):
        summed = summed_norms(**attention)
        assert (summed >= 0).all()
        assert (summed <= 1e-7 * loud).all()


def test_shared_values_and_any_memory_layout_are_read_alike():
    """Grouped heads share values without a copy; W_O is a view of a projection's weight, kept or transposed."""
    weights, values = torch.randn(5, 7, 2, 4).permute(2, 3, 0, 1), torch.randn(2, 1, 7, 3).expand(2, 4, 7, 3)
    weight = torch.randn(10, 12)
    W_O = weight.view(10, 4, 3).permute(1, 2, 0)
    expected = slow_summed_norms(weights, values, W_O).float()
    for _ in range(3):
        torch.testing.assert_close(summed_norms(weights, values, W_O), expected)
        torch.testing.assert_close(summed_norms(weights, values, weight.T.unflatten(0, (4, 3))), expected)


@pytest.mark.parametrize("axis", ["batch", "head", "query", "key", "head_dim", "model"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("gate", GATES)
def test_an_axis_of_length_zero_gives_empty_or_zero_norms(axis, dtype, gate):
    lengths = {"batch": 2, "head": 2, "query": 3, "key": 4, "head_dim": 2, "model": 6} | {axis: 0}
    attention = draw(*lengths.values(), gate=gate, dtype=dtype)
    batch, head, query, key, *_ = lengths.values()
    each_gate = attention.get("gate", torch.ones(2, 2, 3, 1)[:batch, :head, :query])
    f = (attention["values"][:, :, None] * each_gate[:, :, :, None]) @ attention["W_O"][:, None]
    vectors = attention["weights"][..., None] * f
    for _ in range(2):
        torch.testing.assert_close(head_norms(**attention), vector_norm(vectors, dim=-1))
        torch.testing.assert_close(summed_norms(**attention), vector_norm(vectors.sum(dim=1), dim=-1))
        assert transformed_norms(attention["values"], attention["W_O"]).shape == (batch, head, key)


def test_gradients_are_neither_needed_nor_made():
    attention = {name: tensor.requires_grad_() for name, tensor in draw(1, 2, 3, 4, 5, 6, dtype=torch.float32).items()}
    for norms in (head_norms(**attention), summed_norms(**attention)):
        assert not norms.requires_grad


def test_nothing_changes_under_inference_mode_or_autocast():
    attention = draw(1, 2, 3, 4, 5, 6, dtype=torch.float32)
    for norms in (head_norms, summed_norms):
        expected = norms(**attention)
        for _ in range(3):
            with torch.inference_mode():
                torch.testing.assert_close(norms(**attention), expected)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                torch.testing.assert_close(norms(**attention), expected)
            torch.testing.assert_close(norms(**attention), expected)


def test_inputs_are_left_as_they_were():
    attention = draw(2, 3, 4, 5, 6, 18, gate="one per head", dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in attention.items()}
    head_norms(**attention), summed_norms(**attention)
    for name, tensor in attention.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operation gave out."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_no_tensor_of_query_by_key_by_model_size_is_ever_made(gate, dtype):
    attention = draw(2, 4, 12, 10, 8, 32, gate=gate, dtype=dtype)
    for norms in (head_norms, summed_norms):
        for _ in range(3):
            with LargestTensor() as largest:
                norms(**attention)
            assert 0 < largest.elements < 12 * 10 * 32


def test_long_inputs_are_worked_on_in_blocks_of_bounded_size():
    attention = draw(1, 2, 200, 3000, 4, 8, dtype=torch.float32)
    with LargestTensor() as largest:
        summed_norms(**attention)
    assert largest.elements <= attention["weights"].numel()
    attention["gate"] = torch.rand(1, 2, 200, 4)
    with LargestTensor() as largest:
        summed_norms(**attention)
    assert largest.elements <= attention["weights"].numel()


@pytest.mark.parametrize("name", ["weights", "values", "W_O", "gate"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("gate", ["one per head", "elementwise"])
def test_nan_and_infinity_are_refused_with_their_place(name, value, gate):
    attention = draw(1, 2, 3, 4, 5, 6, gate=gate, dtype=torch.float32)
    attention[name].view(-1)[-1] = value
    for norms in (head_norms, summed_norms):
        with pytest.raises(
            ValueError, match=rf"{norms.__name__}: {name} is not finite at 1 of \d+ places, first -?(nan|inf)"
        ):
            norms(**attention)


def test_a_result_too_long_for_its_dtype_is_refused():
    attention = {name: 1e30 * tensor for name, tensor in draw(1, 2, 3, 4, 5, 6, dtype=torch.float32).items()}
    with pytest.raises(ValueError, match=r"summed_norms: the result overflows torch.float32; pass float64 tensors"):
        summed_norms(**attention)
    assert summed_norms(**{name: tensor.double() for name, tensor in attention.items()}).isfinite().all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"values": torch.ones(1, 2, 9, 5)},
            r"key is 4 in weights but 9 in values, which is \(batch, head, key, head_dim\)",
        ),
        ({"values": torch.ones(1, 1, 4, 5)}, "head is 2 in weights but 1 in values"),
        ({"W_O": torch.ones(10, 6)}, r"W_O should be \(head, head_dim, model\), got shape \(10, 6\)"),
        ({"W_O": torch.ones(2, 6, 5)}, "head_dim is 5 in values but 6 in W_O"),
        ({"gate": torch.ones(1, 2, 4, 1)}, "query is 3 in weights but 4 in gate"),
        ({"gate": torch.ones(1, 2, 3, 4)}, "head_dim is 5 in values but 4 in gate"),
        ({"gate": torch.ones(1, 2, 3)}, r"gate should be \(batch, head, query, head_dim\), got shape \(1, 2, 3\)"),
        ({"gate": torch.ones(1, 2, 3, 1, device="meta")}, "weights is on cpu but gate on meta"),
    ],
)
def test_disagreeing_inputs_are_named(changed, message):
    attention = draw(1, 2, 3, 4, 5, 6, dtype=torch.float32) | changed
    for norms in (head_norms, summed_norms):
        with pytest.raises(ValueError, match=f"{norms.__name__}: {message}"):
            norms(**attention)


def test_integers_and_what_is_no_tensor_are_refused():
    attention = draw(1, 2, 3, 4, 5, 6, dtype=torch.float32)
    with pytest.raises(TypeError, match=r"head_norms: weights should be of floating point, got torch.int64"):
        head_norms(attention["weights"].long(), attention["values"], attention["W_O"])
    with pytest.raises(TypeError, match=r"transformed_norms: values should be a tensor, got list"):
        transformed_norms([[1.0]], attention["W_O"])
