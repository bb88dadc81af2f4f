"""A call is causal where no query sees later keys in any head, not where small scores give them nothing."""

import pytest
import torch
from torch import Tensor, nn

from captum_norm.capture import recording

LATER = torch.ones(4, 4, dtype=torch.bool).triu(1)


class Attention(nn.Module):
    """Two heads of these scores."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores, self.output = nn.Buffer(scores), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        values = x.view(len(x), 4, 2, 4).transpose(1, 2)
        scores = (x @ x.mT)[:, None] * 0 + self.scores
        return self.output((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))


def kind(scores: Tensor) -> str:
    x = torch.randn(2, 4, 8)
    with torch.no_grad(), recording(sources=(x,)) as records:
        Attention(scores)(x)
    return records[0].call.kind


def small(later: Tensor) -> Tensor:
    """Scores of which those of later keys are so small that their weights are 0, though no mask leaves them out."""
    return torch.randn(4, 4).masked_fill(later, -1000.0)


@pytest.mark.parametrize("head", [0, 1])
def test_a_call_of_which_one_head_looks_ahead_is_not_causal(head):
    scores = torch.stack([small(LATER), small(LATER)])
    scores[head] = torch.randn(4, 4)
    assert kind(scores) == "self"


@pytest.mark.parametrize(("prefix", "expected"), [(2, "self"), (1, "causal")])
def test_a_prefix_that_a_mask_lets_everyone_see_is_seen_where_its_scores_are_small(prefix, expected):
    hidden = LATER.clone()
    hidden[:, :prefix] = False
    assert kind(torch.stack([small(LATER), small(LATER)]).masked_fill(hidden, -torch.inf)) == expected
