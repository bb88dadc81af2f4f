"""What is computed of one token alone, before attention, is that token's own, however it is written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from captum_norm import AttentionWeights, DecompX

WIDTH, LENGTH = 8, 5


def rows_one_by_one(of, x: Tensor) -> Tensor:
    return torch.stack([of(row) for row in x.unbind(1)], 1)


def rows_in_chunks(of, x: Tensor) -> Tensor:
    return torch.cat([of(part) for part in x.split(2, 1)], 1)


def written_row_by_row(of, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for i in range(x.shape[1]):
        out[:, i] = of(x[:, i])
    return out


WAYS = {
    "rows one by one": rows_one_by_one,
    "rows in chunks": rows_in_chunks,
    "rows written": written_row_by_row,
    "examples": lambda of, x: torch.stack([of(one) for one in x]),
    "a column at a time": lambda of, x: torch.stack([x @ w for w in of.weight], -1) + of.bias,
    "time first": lambda of, x: of(x.transpose(0, 1)).transpose(0, 1),
}
RELUS = {
    "amax beside zeros": lambda z: torch.stack([z, torch.zeros_like(z)]).amax(0),
    "max beside zeros": lambda z: torch.stack([torch.zeros_like(z), z], -1).max(-1).values,
    "the larger one is taken out": lambda z: torch.stack([z, 0 * z.detach()]).gather(0, (z < 0).long()[None])[0],
}


class Model(nn.Module):
    """A feed-forward part before attention, whose linear maps and activation are written in some way."""

    def __init__(self, way=lambda of, x: of(x), relu=F.relu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.classes = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.attention, self.way, self.relu = nn.MultiheadAttention(WIDTH, 2, batch_first=True), way, relu
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.way(self.down, self.relu(self.way(self.up, x)))
        return self.classes((x + self.attention(x, x, x, need_weights=False)[0])[:, 0])


def shares(model: Model) -> Tensor:
    x = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    return DecompX(model).attribute(x, target=1)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_linear_map_before_attention_is_its_tokens_own_however_it_is_written(way):
    assert torch.allclose(shares(Model(way)), shares(Model()), atol=1e-5)


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
def test_an_activation_by_something_stacked_beside_it_is_its_tokens_own(relu):
    assert torch.allclose(shares(Model(relu=relu)), shares(Model()), atol=1e-5)


def test_rows_that_are_added_to_one_are_no_row_of_their_own():
    """Each example's rows are added up by an index that holds its number once for each of them."""

    class Pooled(Model):
        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(x, x, x, need_weights=False)[0]
            which = torch.arange(len(x)).repeat_interleave(x.shape[1])
            return self.classes(x.new_zeros(len(x), WIDTH).index_add(0, which, x.flatten(0, 1)))

    with pytest.raises(ValueError, match="which rows the output was read from is not known"):
        AttentionWeights(Pooled()).attribute(torch.randn(2, LENGTH, WIDTH), target=0)
