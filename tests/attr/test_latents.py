"""Learned queries are rows of a sequence that is no input, and what they take in of the inputs is composed."""

import pytest
import torch
from torch import nn

from captum_norm import ALTI, AttentionNorm, AttentionRelevance, AttentionRollout
from captum_norm.capture import recording

close = torch.testing.assert_close
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


class Attention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.fused = fused

    def forward(self, x, y):
        q, k, v = (f(z).unflatten(-1, (4, 4)).transpose(1, 2) for f, z in ((self.q, x), (self.k, y), (self.v, y)))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.mT / 2).softmax(-1) @ v
        return self.o(mixed.transpose(1, 2).flatten(2))


class Latents(nn.Module):
    """Tokens attend to themselves; latents to themselves, to the tokens, to themselves; one of them is read."""

    def __init__(self, fused=False, read=lambda latents, tokens: latents[:, 1]):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.latents = nn.Embedding(10, 16), nn.Parameter(torch.randn(1, 3, 16))
        self.calls, self.norms = nn.ModuleList(Attention(fused) for _ in range(5)), nn.LayerNorm(16)
        self.classes, self.read = nn.Linear(16, 3), read
        self.eval()

    def forward(self, ids):
        x = self.embedding(ids)
        x = x + self.calls[0](self.norms(x), self.norms(x))
        latents = self.latents.expand(len(ids), -1, -1)
        latents = latents + self.calls[1](self.norms(latents), self.norms(latents))
        latents = latents + self.calls[2](self.norms(latents), x)
        latents = latents + self.calls[3](self.norms(latents), self.norms(latents))
        return self.classes(self.read(latents, x))


def recorded(model):
    with torch.no_grad(), recording(sources=(IDS,), model=model) as records:
        model(IDS)
    return records


def half(weights):
    """(A + I) / 2, the mean over heads."""
    return (weights.mean(1) + torch.eye(weights.shape[-1])) / 2


@pytest.mark.parametrize("fused", [False, True])
def test_latents_are_a_sequence_of_their_own(fused):
    records = recorded(Latents(fused))
    assert [record.call.kind for record in records] == ["self", "self", "cross", "self"]
    assert [record.queries.source for record in records] == [0, "latents 0", "latents 0", "latents 0"]
    assert [record.keys.source for record in records] == [0, "latents 0", 0, "latents 0"]


@pytest.mark.parametrize("fused", [False, True])
def test_what_latents_took_in_is_carried_to_the_row_that_is_read(fused):
    model = Latents(fused)
    tokens, _, cross, latents = (record.weights for record in recorded(model))
    by_hand = half(latents) @ (cross.mean(1) / 2) @ half(tokens)  # the other half of the cross call is no input
    method = AttentionRollout(model)
    close(method.attribute(IDS, target=0), by_hand[:, 1], atol=1e-6, rtol=0)
    assert method.report.row == "read"
    close(method.attribute(IDS, position=2), by_hand[:, 2], atol=1e-6, rtol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_a_query_that_pools_is_the_row_that_is_read(fused):
    model = Latents(fused)

    def pooled(ids):
        x = model.embedding(ids)
        x = x + model.calls[0](model.norms(x), model.norms(x))
        return model.classes(model.calls[2](model.latents[:, :1].expand(len(ids), -1, -1), x)[:, 0])

    own, pool = recorded_of(pooled)
    assert (pool.call.kind, pool.queries.source, pool.keys.source) == ("cross", "latents 0", 0)
    method = AttentionRollout(pooled)
    close(method.attribute(IDS, target=0), (pool.weights.mean(1) / 2 @ half(own.weights))[:, 0], atol=1e-6, rtol=0)
    assert not method.report.unused


def summed_norms(record):
    vectors = torch.einsum("bhqk,bhkd,hdm->bqkm", record.weights, record.values, record.W_O)
    return vectors.norm(dim=-1)


def test_one_call_is_the_row_of_a_latent():
    model = Latents()
    summed = summed_norms(recorded(model)[2])
    close(AttentionNorm(model).attribute(IDS, target=0), summed[:, 1], atol=1e-5, rtol=0)


def test_of_latents_within_another_sequence_the_row_is_not_guessed():
    """Latents are added to the first tokens: what is explained is a token, no latent."""
    model = Latents(read=lambda latents, tokens: (tokens + nn.functional.pad(latents, (0, 0, 0, 3)))[:, 0])
    for method in (AttentionNorm, AttentionRollout, ALTI, AttentionRelevance):
        with pytest.raises(ValueError, match=r"cannot be scored|which rows the output was read from is not known"):
            method(model).attribute(IDS, target=0)


def test_a_given_memory_is_a_sequence_that_is_no_input():
    model, memory = Latents(), torch.randn(2, 4, 16)

    def reads_memory(ids):
        x = model.embedding(ids)
        x = x + model.calls[0](model.norms(x), model.norms(x))
        return model.classes((x + model.calls[1](model.norms(x), memory))[:, 2])

    own, read = (record.weights.mean(1) for record in recorded_of(reads_memory))
    by_hand = (own + torch.eye(6)) / 2 / (1 + read.sum(-1, keepdim=True))
    close(AttentionRollout(reads_memory).attribute(IDS, target=0), by_hand[:, 2], atol=1e-6, rtol=0)


def recorded_of(function):
    with torch.no_grad(), recording(sources=(IDS,)) as records:
        function(IDS)
    return records


class LatentsAmongTheKeys(Latents):
    """Latents attend to the tokens and to themselves at once, ``times``; or tokens attend to latents and themselves."""

    def __init__(self, times, read_by_tokens=False):
        super().__init__()
        self.times, self.read_by_tokens = times, read_by_tokens

    def forward(self, ids):
        x, latents = self.embedding(ids), self.latents.expand(len(ids), -1, -1)
        for call in self.calls[: self.times]:
            latents = latents + call(latents, torch.cat([x, latents], 1))
        if self.read_by_tokens:
            return self.classes((x + self.calls[4](x, torch.cat([latents, x], 1)))[:, 0])
        return self.classes(latents[:, 1])


@pytest.mark.parametrize("method", [AttentionRollout, ALTI, AttentionRelevance])
@pytest.mark.parametrize("model", [LatentsAmongTheKeys(2), LatentsAmongTheKeys(1, read_by_tokens=True)])
def test_keys_that_hold_what_latents_took_in_are_not_composed(method, model):
    """The map has no column for what they hold, so that a row of a product would lack it."""
    with pytest.raises(ValueError, match=r"beside them, what 'calls\.0' \(call 0\) took in|have no (product|rele)"):
        method(model).attribute(IDS, target=0)
    assert AttentionNorm(model).attribute(IDS, target=0).shape == IDS.shape


def test_latents_that_have_taken_in_nothing_yet_may_stand_among_the_keys():
    model = LatentsAmongTheKeys(1)
    (record,) = recorded(model)
    weights = record.weights.mean(1)[:, 1, : IDS.shape[1]]
    close(AttentionRollout(model).attribute(IDS, target=0), weights / 2)  # the other half is its own
