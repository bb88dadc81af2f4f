"""Models of other libraries, read without a line written for them."""

import pytest
import torch
from torch import nn

from captum_norm.capture import recording

x_transformers = pytest.importorskip("x_transformers")

OPTIONS = {
    "plain": {},
    "rotary": {"rotary_pos_emb": True, "attn_dim_head": 32},
    "two key heads": {"attn_kv_heads": 2},
    "one key head": {"attn_one_kv_head": True},
    "alibi": {"alibi_pos_bias": True},
    "gated values": {"attn_gate_values": True},
    "talking heads": {"attn_pre_talking_heads": True, "attn_post_talking_heads": True},
    "normalised queries and keys": {"attn_qk_norm": True},
    "memory keys": {"attn_num_mem_kv": 3},
    "head scales": {"attn_head_scale": True},
    "flash": {"attn_flash": True},
    "rms norms and gated feed-forward": {"use_rmsnorm": True, "ff_glu": True},
    "sandwich norms": {"sandwich_norm": True},
    "wide values": {"attn_value_dim_head": 20},
}


@pytest.mark.parametrize("layers", ["Encoder", "Decoder"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_x_transformers_are_read_exactly(options, layers):
    arguments = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8} | options
    model = x_transformers.TransformerWrapper(
        num_tokens=50, max_seq_len=16, attn_layers=getattr(x_transformers, layers)(**arguments)
    ).eval()
    for parameter in model.parameters():  # scales and biases that start at one and zero would test nothing
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(0, 50, (2, 8))
    with torch.no_grad():
        expected = model(ids)
        with recording(sources=(ids,)) as records:
            output = model(ids)
    assert torch.equal(output, expected)
    assert [record.call.heads for record in records] == [4, 4]
    assert {record.call.kind for record in records} == {"causal" if layers == "Decoder" else "self"}
    memory = options.get("attn_num_mem_kv", 0)
    for record in records:
        assert record.keys.index.tolist() == [-1] * memory + list(range(8))


def test_shifted_tokens_have_no_single_position_and_say_so():
    layers = x_transformers.Decoder(dim=32, depth=1, heads=4, attn_dim_head=8, shift_tokens=1)
    model = x_transformers.TransformerWrapper(num_tokens=50, max_seq_len=16, attn_layers=layers).eval()
    ids = torch.randint(0, 50, (2, 8))
    with torch.no_grad(), recording(sources=(ids,)) as (records):
        model(ids)
    assert records[0].keys is None
    assert "reads several at once" in records[0].unknown_keys
