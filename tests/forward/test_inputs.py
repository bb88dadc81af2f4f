"""How long an input may be, and what positional inputs are called."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, RobertaConfig, RobertaModel

from captum_norm.forward.inputs import longest_input, named_inputs, position_sources

TINY = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}


@pytest.mark.parametrize(
    ("model", "longest"),
    [
        (lambda: BertModel(BertConfig(max_position_embeddings=20, **TINY)), 20),
        (lambda: RobertaModel(RobertaConfig(max_position_embeddings=20, pad_token_id=1, **TINY)), 18),
        (lambda: GPT2Model(GPT2Config(n_positions=20, n_embd=8, n_layer=1, n_head=2, vocab_size=30)), 20),
        (lambda: nn.Linear(2, 2), None),
    ],
    ids=["bert", "roberta", "gpt2", "linear"],
)
def test_the_longest_input_is_what_the_table_of_positions_holds(model, longest):
    assert longest_input(model()) == longest


def test_positional_inputs_get_the_names_of_forward():
    bert = BertModel(BertConfig(max_position_embeddings=20, **TINY))
    ids = mask = torch.ones(1, 3).long()
    assert list(named_inputs(bert, (ids, mask))) == ["input_ids", "attention_mask"]
    assert list(position_sources(named_inputs(bert, (ids, mask)))) == ["input_ids"]
    assert list(named_inputs(lambda *args: None, (ids, mask))) == ["input 0", "input 1"]
    x = torch.randn(1, 2, 4)
    assert list(position_sources(named_inputs(nn.MultiheadAttention(4, 1), (x, x, x)))) == ["query"]
