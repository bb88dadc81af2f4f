"""Attention written by hand, in every way we have met: read exactly, output untouched, every share the true one."""

import pytest
import torch
from torch import Tensor

from captum_norm.capture import AttentionRecord, recording
from tests.capture.hand_written import ADAPTERS, BATCH, LENGTH, MODEL, WRITTEN, Attention, join, weights

# Here the module's output is more than what attention wrote.
_WRITES_ATTENTION_ALONE = sorted(WRITTEN.keys() - {"a_linear_map_follows", "something_else_beside_the_heads"})
# Here the value projection is a module of its own, and nothing after it depends on the values' size.
_CANNOT_ERASE = {"fused_projection_of_q_k_v", "queries_keys_and_values_by_convolution", "everything_by_keyword"}
_CAN_ERASE_A_VALUE = [name for name in _WRITES_ATTENTION_ALONE if "norm" not in name and name not in _CANNOT_ERASE]


def contributions(record: AttentionRecord) -> Tensor:
    """(batch, query, key, model): what each key adds to each output, by definition."""
    if record.gate is None:
        return torch.einsum("bhqk,bhke,hed->bqkd", record.weights, record.values, record.W_O)
    gate = record.gate.expand(*record.weights.shape[:3], record.values.shape[-1])
    return torch.einsum("bhqk,bhke,bhqe,hed->bqkd", record.weights, record.values, gate, record.W_O)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


def run(write, dtype=torch.float64):
    attention, x = Attention(write).to(dtype).eval(), torch.randn(BATCH, LENGTH, MODEL, dtype=dtype)
    expected = attention(x)
    with recording(sources=(x,)) as records:
        output = attention(x)
    return attention, x, expected, output, records


@pytest.mark.parametrize("name", WRITTEN)
def test_the_output_is_bit_equal_and_the_call_is_certified(name, dtype):
    _, _, expected, output, records = run(WRITTEN[name], dtype)
    assert torch.equal(output, expected)
    (record,) = records
    assert float(record.certificate) <= record.certificate.tolerance
    assert record.call.name == "Attention"
    assert record.weights.shape[0] == BATCH
    assert record.weights.shape[-2:] == (LENGTH, LENGTH)


@pytest.mark.parametrize("name", _WRITES_ATTENTION_ALONE)
def test_contributions_and_bias_add_up_to_the_output(name):
    attention, _, _, output, (record,) = run(WRITTEN[name])
    bias = attention.o.bias
    if name == "layer_norm_before_the_projection":  # beta goes through W_O, too
        bias = bias + attention.o.weight @ attention.norm.bias
    torch.testing.assert_close(contributions(record).sum(2) + bias, output, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", WRITTEN)
def test_keys_are_the_input_positions(name):
    *_, (record,) = run(WRITTEN[name])
    assert record.keys is not None, record.unknown_keys
    assert record.keys.source == 0
    assert record.keys.index.tolist() == list(range(LENGTH))


@pytest.mark.parametrize("name", _CAN_ERASE_A_VALUE)
def test_removing_one_value_changes_the_output_by_exactly_its_contribution(name):
    """The intervention knows nothing of our layout: one row of the value projection's own output becomes zero."""
    attention, x, _, output, (record,) = run(WRITTEN[name])

    def erase(_module, _inputs, value):
        value = value.clone()
        value[(slice(None), 2) if value.shape[0] == BATCH else (2,)] = 0
        return value

    with attention.v.register_forward_hook(erase):
        without = attention(x)
    torch.testing.assert_close(output - without, contributions(record)[:, :, 2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_beside_w_o_belongs_to_w_o(name):
    attention, _, _, output, (record,) = run(ADAPTERS[name])
    A, B = attention.q.weight[:, :2], attention.k.weight[:2]
    torch.testing.assert_close(record.W_O.flatten(0, 1), attention.o.weight.t() + A @ B)
    torch.testing.assert_close(contributions(record).sum(2) + attention.o.bias, output)


def test_a_bias_added_after_the_product_is_b_o():
    attention, *_, (record,) = run(WRITTEN["matmul_with_a_matrix"])
    assert torch.equal(record.b_O, attention.o.bias)


def test_heads_that_are_mixed_one_by_one_before_one_projection_are_one_call():
    def head_by_head(m, x):
        q, k, v = m.split(x)
        heads = [(q[:, h] @ k[:, h].mT).softmax(-1) @ v[:, h] for h in range(q.shape[1])]
        return m.o(torch.cat(heads, -1))

    attention, _, _, output, records = run(head_by_head)
    assert [(record.call.call, record.call.heads) for record in records] == [(0, 3)]
    torch.testing.assert_close(contributions(records[0]).sum(2) + attention.o.bias, output)


def test_gates_say_how_fine_they_are():
    *_, (element,) = run(WRITTEN["a_gate_on_every_element"])
    *_, (head,) = run(WRITTEN["a_gate_on_every_head"])
    *_, (none,) = run(WRITTEN["plain"])
    assert element.gate.shape == (BATCH, 3, LENGTH, 4)
    assert head.gate.shape == (BATCH, 3, LENGTH, 1)
    assert none.gate is None


def test_calls_that_share_one_projection_by_rows_are_recorded_one_by_one():
    """Packed pictures: attention runs piece by piece, W_O once over all of them."""

    def packed(m, x):
        q, k, v = m.split(x)
        pieces = [weights(q[:, :, i], k[:, :, i]) @ v[:, :, i] for i in (slice(0, 2), slice(2, 4), slice(4, LENGTH))]
        return m.o(join(torch.cat(pieces, 2)))

    attention, _, _, output, records = run(packed)
    assert [tuple(record.weights.shape[2:]) for record in records] == [(2, 2), (2, 2), (1, 1)]
    assert [record.keys.index.tolist() for record in records] == [[0, 1], [2, 3], [4]]
    total = torch.cat([contributions(record).sum(2) for record in records], 1)
    torch.testing.assert_close(total + attention.o.bias, output)


@pytest.mark.parametrize("name", ["softmax_by_hand", "plain"])
def test_a_single_key_is_attention_too(name):
    attention, x = Attention(WRITTEN[name]), torch.randn(BATCH, 1, MODEL)
    with recording(sources=(x,)) as records:
        attention(x)
    assert records[0].weights.shape[-2:] == (1, 1)
