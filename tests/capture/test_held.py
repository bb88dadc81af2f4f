"""What a record gives out of the model's own: values by groups of heads, and nothing that was overwritten since."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from captum_norm.capture import AttentionRecord, HeadValues, InexactCaptureError, recording
from captum_norm.functional import head_norms

HEADS, GROUPS, SIZE = 6, 2, 4


class Grouped(nn.Module):
    """Six heads that read the values of two groups."""

    def __init__(self, **how: bool) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(8, HEADS * SIZE), nn.Linear(HEADS * SIZE, 8)
        self.kv, self.how = nn.Linear(8, 2 * GROUPS * SIZE), how

    def forward(self, x: Tensor) -> Tensor:
        q, (k, v) = self._heads(self.q(x)), map(self._heads, self.kv(x).chunk(2, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **self.how)
        return self.o(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, SIZE)).transpose(1, 2)


def read(model: nn.Module, *inputs: Tensor, **keywords: object) -> AttentionRecord:
    with torch.no_grad(), recording() as records:
        model(*inputs, **keywords)
    return records[0]


@pytest.mark.parametrize("is_causal", [True, False])
def test_values_are_given_by_groups_and_by_heads(is_causal):
    model, x = Grouped(is_causal=is_causal), torch.randn(2, 5, 8)
    record = read(model, x)
    v = model.kv(x)[..., GROUPS * SIZE :].unflatten(-1, (-1, SIZE)).transpose(1, 2)
    assert record.head_values.shared_by == HEADS // GROUPS
    assert torch.equal(record.head_values.given, v)
    assert torch.equal(record.values, v.repeat_interleave(HEADS // GROUPS, 1))
    assert record.head_values.shape == record.values.shape


def test_values_along_a_direction_are_those_of_each_head():
    groups, read = torch.randn(2, GROUPS, 5, SIZE), torch.randn(HEADS, SIZE)
    values = HeadValues(groups, HEADS // GROUPS)
    expected = torch.einsum("bhke,he->bhk", groups.repeat_interleave(HEADS // GROUPS, 1), read)
    torch.testing.assert_close(values.along(read), expected)


def test_a_record_without_groups_has_one_for_each_head():
    record = read(nn.MultiheadAttention(8, 2, batch_first=True), *[torch.randn(1, 3, 8)] * 3)
    assert record.head_values.shared_by == 1
    assert record.head_values.given is record.values
    assert record.but(values=record.values * 2).head_values.given.equal(2 * record.values)


def test_a_record_outlives_a_static_cache_that_is_used_again():
    """Without a copy its values would be those of the second text."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    for groups in (4, 2):
        config = LlamaConfig(vocab_size=20, num_key_value_heads=groups, **sizes)
        model, ids = LlamaForCausalLM(config).eval(), torch.randint(20, (2, 1, 6))
        cache = StaticCache(config=config, max_cache_len=9)
        record = read(model, ids[0], past_key_values=cache)
        norms = head_norms(record.weights, record.values, record.W_O)
        cache.reset()
        read(model, ids[1], past_key_values=cache)
        assert torch.equal(head_norms(record.weights, record.values, record.W_O), norms)


def _overwrite_values(model: Grouped, record: AttentionRecord) -> None:
    record.head_values.given.zero_()


def _overwrite_weights(model: Grouped, record: AttentionRecord) -> None:
    record.weights.mul_(2)


def _train(model: Grouped, record: AttentionRecord) -> None:
    with torch.no_grad():
        for parameter in model.o.parameters():
            parameter.add_(1)


@pytest.mark.parametrize(
    ("name", "overwrite"),
    [
        ("values were", _overwrite_values),
        ("weights were", _overwrite_weights),
        ("W_O was", _train),
        ("b_O was", _train),
    ],
)
def test_what_was_overwritten_since_is_given_out_no_more(
    name: str, overwrite: Callable[[Grouped, AttentionRecord], None]
):
    model = Grouped()
    record = read(model, torch.randn(1, 4, 8))
    overwrite(model, record)
    for of in (record, record.but(gate=None)):
        with pytest.raises(InexactCaptureError, match=f"its {name} overwritten after the call was read"):
            getattr(of, name.split()[0])


def test_values_that_were_copied_for_heads_are_what_they_were():
    record = read(Grouped(), torch.randn(1, 4, 8))
    before = record.values.clone()
    record.head_values.given.zero_()
    assert torch.equal(record.values, before)
    assert torch.equal(record.head_values.given, before)
