"""What the answer does not rest on refuses nothing."""

import pytest
import torch
from torch import nn

import captum_norm


class Pooled(nn.Module):
    """An encoder beside whose output a query pools the states, without a residual stream; used or not."""

    def __init__(self, used: bool):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.used = nn.Embedding(9, 8), used
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.query, self.pool = nn.Parameter(torch.randn(1, 1, 8)), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, ids):
        states = self.layer(self.embed(ids))
        pooled, _ = self.pool(self.query.expand(len(ids), -1, -1), states, states)
        return pooled[:, 0] if self.used else states[:, 0]


@pytest.mark.parametrize("name", ["AttentionBlockNorm", "GlobEnc", "ALTI"])
def test_a_block_that_cannot_be_taken_in_is_refused_only_where_the_answer_rests_on_it(name):
    ids = torch.tensor([[1, 2, 3, 4]])
    method, used = (getattr(captum_norm, name)(Pooled(used).eval()) for used in (False, True))
    model = Pooled(False).eval()
    alone = getattr(captum_norm, name)(lambda ids: model.layer(model.embed(ids))[:, 0])
    assert torch.allclose(method.attribute(ids, target=0), alone.attribute(ids, target=0), atol=1e-6)
    assert [call.name for call in method.report.unused] == ["pool"]
    with pytest.raises(ValueError, match="'pool'"):
        used.attribute(ids, target=0)


class WithAPicture(nn.Module):
    """A text, to whose rows is added what latents take in, twice, of parts of a picture and of themselves."""

    def __init__(self, reads: bool):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.reads = nn.Embedding(9, 8), reads
        self.parts, self.numbers = nn.Embedding(3, 8), nn.Buffer(torch.arange(3)[None])
        self.latents, self.resampler = nn.Parameter(torch.randn(1, 2, 8)), nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def picture(self, latents):
        parts = self.parts(self.numbers.expand(len(latents), -1))
        for _ in range(2):
            both = torch.cat([parts, latents], 1)
            latents = latents + self.resampler(latents, both, both)[0]
        return latents[:, :1]

    def forward(self, ids):
        x = self.embed(ids)
        return self.layer(x + self.picture(self.latents.expand(len(ids), -1, -1) + (x[:, :1] if self.reads else 0)))


def test_calls_with_nothing_of_the_inputs_in_them_refuse_nothing():
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    model = WithAPicture(False).eval()
    beside = model.picture(model.latents).detach()
    alone = captum_norm.AttentionNorm(lambda ids: model.layer(model.embed(ids) + beside))
    assert torch.allclose(captum_norm.AttentionNorm(model).attribute(ids), alone.attribute(ids), atol=1e-6)
    with pytest.raises(ValueError, match="'resampler'"):
        captum_norm.AttentionNorm(WithAPicture(True).eval()).attribute(ids)


class WithALongerCallBehind(nn.Module):
    """Tokens that attend to each other, and behind what is given out once more, beside two rows that are no input."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.two = nn.Embedding(9, 8), nn.Parameter(torch.randn(1, 2, 8))
        self.layer, self.behind = (nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in "ab")

    def forward(self, ids, goes_on=True):
        states = self.layer(self.embed(ids))
        if goes_on:
            self.behind(torch.cat([self.two.expand(len(ids), -1, -1), states], 1))
        return states


@pytest.mark.parametrize("name", ["AttentionNorm", "AttentionRollout", "ALTI"])
def test_rows_are_those_of_calls_that_the_answer_rests_on(name):
    ids, model = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), WithALongerCallBehind().eval()
    method = getattr(captum_norm, name)
    alone = method(lambda ids: model(ids, goes_on=False)).attribute(ids)
    assert torch.allclose(method(model).attribute(ids), alone, atol=1e-6)
