"""What a user proves of a model: true records pass, and a wrong record, claim or weight is found."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    BigBirdConfig,
    BigBirdModel,
    GPT2Config,
    GPT2LMHeadModel,
    LongformerConfig,
    LongformerModel,
)

from captum_norm.capture import recording
from captum_norm.proof import Prover, prove, verdict
from captum_norm.proof.tokens import Claim, change_tokens
from tests.architectures import ARCHITECTURES, ids

LENGTH = 6


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).eval()


def test_a_causal_model_is_proved_in_calls_tokens_and_weights(decoder):
    proof = prove(decoder, {"input_ids": ids(2, LENGTH)})
    assert proof.verdict == "proved"
    assert [finding.status for finding in proof.findings] == ["proved"] * 4
    assert max(finding.error for finding in proof.calls) < 1e-6
    assert proof.tokens.error == 0
    assert proof.tokens.note == "3 of 6 tokens changed"
    assert proof.weights.note == "2 of 2 equal"
    assert decoder.config._attn_implementation == "sdpa"


def test_padding_is_proved_to_have_no_part_and_a_text_without_it_rests_on_every_token():
    model = ARCHITECTURES["BERT"].build().float()
    tokens, mask = ids(1, LENGTH), torch.tensor([[1, 1, 1, 1, 0, 0]])
    padded = prove(model, {"input_ids": tokens, "attention_mask": mask}, keys=1)
    assert (padded.tokens.status, padded.tokens.note) == ("proved", "2 of 6 tokens changed")
    whole = prove(model, {"input_ids": tokens}, keys=1)
    assert (whole.tokens.status, whole.tokens.note) == ("open", "it rests on every token")


def test_a_wrong_record_is_found(decoder):
    tokens = ids(1, LENGTH)
    with recording(model=decoder) as records:
        decoder(tokens)
    prover = Prover(decoder, lambda: decoder(tokens))
    wrong = replace(records[0], weights=records[0].weights.roll(1, -1))
    assert prover.prove(wrong, torch.Generator()).status == "wrong"
    assert prover.prove(records[0], torch.Generator()).status == "proved"


def test_a_claim_that_leaves_out_a_token_is_found(decoder):
    tokens = ids(1, LENGTH)
    with torch.no_grad():
        output = decoder(tokens).logits
    rests, free = torch.arange(LENGTH) < 3, torch.ones(LENGTH, dtype=torch.bool)

    def changed(claim):
        explain = torch.no_grad()(lambda given: decoder(given).logits)
        return change_tokens(tokens, explain, claim, output, free, torch.Generator().manual_seed(0)).status

    assert changed(Claim(2, rests)) == "proved"
    assert changed(Claim(3, rests)) == "wrong"


def test_weights_that_are_not_the_models_are_found(decoder, monkeypatch):
    compared = verdict.compare_attentions
    monkeypatch.setattr(verdict, "compare_attentions", lambda a, records: compared([t.roll(1, 2) for t in a], records))
    assert prove(decoder, {"input_ids": ids(1, LENGTH)}, keys=1).verdict == "wrong"


def test_windows_are_proved_in_whatever_order_the_model_keeps_them():
    class Windows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.o = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8)

        def forward(self, x):  # (1, 4 x 4, 8) in four windows of 2 x 2
            x = x.view(2, 2, 2, 2, 8).transpose(1, 2).reshape(4, 4, 8)
            q, k, v = self.qkv(x).chunk(3, -1)
            mixed = (q @ k.mT).softmax(-1) @ v
            return self.o(mixed.view(2, 2, 2, 2, 8).transpose(1, 2).reshape(1, 16, 8))

    torch.manual_seed(0)
    proof = prove(Windows().eval(), torch.randn(1, 16, 8))
    assert proof.calls[0].status == "proved"
    assert proof.calls[0].error < 1e-5


def test_pieces_of_one_map_are_proved_by_erasing_values_where_they_are_written():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LongformerConfig(**sizes, intermediate_size=24, attention_window=[4], max_position_embeddings=60)
    model, tokens = LongformerModel(config).eval(), ids(1, 16)
    given = {"input_ids": tokens, "global_attention_mask": torch.zeros_like(tokens).index_fill(1, torch.tensor([3]), 1)}
    proof = prove(model, given, keys=32)
    assert [finding.status for finding in proof.calls] == ["proved"]
    with recording(model=model) as records:
        model(**given)
    wrong = replace(records[0], values=records[0].values.roll(1, -1))
    assert Prover(model, lambda: model(**given)).prove(wrong, torch.Generator()).status != "proved"
    weights = records[0].weights.clone()
    weights[:, :, 5] = weights[:, :, 5].roll(1, -1)  # one row alone
    wrong = replace(records[0], weights=weights)
    assert Prover(model, lambda: model(**given)).prove(wrong, torch.Generator(), keys=32).status != "proved"
    config = BigBirdConfig(**sizes, intermediate_size=24, block_size=2, num_random_blocks=1, sep_token_id=3)
    proof = prove(BigBirdModel(config).eval(), {"input_ids": ids(1, 20)}, keys=20)  # one product has all keys
    assert [finding.status for finding in proof.calls] == ["proved"]


def test_a_projection_that_is_computed_from_a_parameter_is_proved_by_what_it_writes():
    class Normalised(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.o = torch.nn.Linear(8, 24), torch.nn.Parameter(torch.randn(8, 8))

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return torch.nn.functional.linear((q @ k.mT).softmax(-1) @ v, self.o / self.o.norm(dim=0))

    torch.manual_seed(0)
    proof = prove(Normalised().eval(), torch.randn(2, 5, 8))
    assert proof.calls[0].status == "proved"


def test_refused_calls_are_open_with_their_refusal():
    class Lost(torch.nn.Module):
        def forward(self, x):
            return ((x @ x.mT).softmax(-1) @ x).tanh()

    proof = prove(Lost(), torch.randn(1, 4, 8))
    assert proof.verdict == "open"
    assert "W_O" in proof.calls[0].note
