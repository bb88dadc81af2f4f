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
