"""A call is causal where no query sees later keys in any head, not where small scores give them nothing."""

from random import Random

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from captum_norm.capture import recording
from captum_norm.capture.rows import sample

LATER = torch.ones(4, 4, dtype=torch.bool).triu(1)


class Attention(nn.Module):
    """Two heads of these scores, whose weights are multiplied with a factor."""

    def __init__(self, scores: Tensor, factor: Tensor | float) -> None:
        super().__init__()
        self.scores, self.factor, self.output = nn.Buffer(scores), factor, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        values = x.unflatten(-1, (2, 4)).transpose(1, 2)
        scores = (x @ x.mT)[:, None] * 0 + self.scores
        return self.output((scores.softmax(-1) * self.factor @ values).transpose(1, 2).flatten(2))


def kind(scores: Tensor, factor: Tensor | float = 1.0) -> str:
    x, found = torch.randn(2, scores.shape[-1], 8), []
    with torch.no_grad(), recording(lambda record: found.append(record.call.kind), sources=(x,)):
        Attention(scores, factor)(x)
    return found[0]


def small(later: Tensor) -> Tensor:
    """Scores of which those of later keys are so small that their weights are 0, though no mask leaves them out."""
    return torch.randn(later.shape).masked_fill(later, -1000.0)


@pytest.mark.parametrize("head", [0, 1])
def test_a_call_of_which_one_head_looks_ahead_is_not_causal(head):
    scores = torch.stack([small(LATER), small(LATER)])
    scores[head] = torch.randn(4, 4)
    assert kind(scores) == "self"


@pytest.mark.parametrize(("hidden", "expected"), [(LATER, "causal"), (LATER.roll(1, 0), "self")])
def test_a_mask_that_leaves_later_keys_a_little_weight_is_asked_before_the_weights(hidden, expected):
    assert kind(hidden * -100.0) == expected


@pytest.mark.parametrize(("prefix", "expected"), [(2, "self"), (1, "causal")])
def test_a_prefix_that_a_mask_lets_everyone_see_is_seen_where_its_scores_are_small(prefix, expected):
    hidden = LATER.clone()
    hidden[:, :prefix] = False
    assert kind(torch.stack([small(LATER), small(LATER)]).masked_fill(hidden, -torch.inf)) == expected


def test_a_query_that_was_not_among_those_checked_beforehand_may_be_the_one_that_looks_ahead():
    later = torch.ones(2, 20, 20, dtype=torch.bool).triu(1)
    query = next(n for n in range(20) if n not in sample(20, Random(0)))
    later[1, query, query + 1] = False
    assert kind(small(later)) == "self"


def test_weights_below_nothing_look_ahead():
    factor = torch.ones(4, 4).tril()
    factor[1, 2] = -1
    assert kind(torch.randn(2, 4, 4), factor) == "self"
    assert kind(torch.randn(2, 4, 4), factor.clamp_min(0)) == "causal"


LEFT = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]).bool()
PADDING_SEES = {
    "everything": lambda seen, real: seen | ~seen.any(-1, keepdim=True),
    "itself": lambda seen, real: seen | torch.eye(seen.shape[-1], dtype=torch.bool),
    "all real tokens": lambda seen, real: torch.where(seen.any(-1, keepdim=True), seen, real[:, None, None]),
}
APPLIED = {
    "filled": lambda s, v, seen: s.masked_fill(~seen, -torch.inf).softmax(-1) @ v,
    "added": lambda s, v, seen: (s + ~seen * -1e9).softmax(-1) @ v,
    "weights filled": lambda s, v, seen: _of_one(s.exp() * seen) @ v,
    "times a pattern": lambda s, v, seen: s.masked_fill(~seen, -1e9).softmax(-1) * torch.ones(s.shape[-2:]) @ v,
    "by head": lambda s, v, seen: torch.stack(
        [s[:, n].masked_fill(~seen[:, 0], -torch.inf).softmax(-1) @ v[:, n] for n in range(2)], 1
    ),
}


def _of_one(w: Tensor) -> Tensor:
    return w / w.sum(-1, keepdim=True)


def padded(sees: str, applied: str, real: Tensor, causal: bool = True, prefix: int = 0) -> tuple[str, Tensor | None]:
    """The kind of a call whose padding sees more than real tokens let it, and which keys are real."""
    q, k, v, o = (nn.Linear(8, 8) for _ in range(4))

    def attend(x: Tensor, real: Tensor) -> Tensor:
        query, key, values = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (q, k, v))
        size = x.shape[1]
        ahead = torch.ones(size, size, dtype=torch.bool).triu(1)
        ahead[:, size - 4 : size - 4 + prefix] = False
        seen = real[:, None, None] & ~(ahead & causal)
        seen = PADDING_SEES[sees](seen, real)
        if applied == "kernel":
            y = scaled_dot_product_attention(query, key, values, seen)
        else:
            y = APPLIED[applied](query @ key.mT / 2, values, seen)
        return o(y.transpose(1, 2).flatten(2))

    x = torch.randn(*real.shape, 8)
    with torch.no_grad(), recording(sources=(x,)) as records:
        attend(x, real)
    assert len({record.call.kind for record in records}) == 1
    return records[0].call.kind, records[0].key_mask


@pytest.mark.parametrize("real", [LEFT, LEFT.flip(0), LEFT[1:2]], ids=["longest first", "shortest first", "one"])
@pytest.mark.parametrize("applied", [*APPLIED, "kernel"])
@pytest.mark.parametrize("sees", PADDING_SEES)
def test_a_call_in_which_rows_of_padding_alone_look_ahead_is_causal(sees, applied, real):
    kind, found = padded(sees, applied, real)
    assert kind == "causal"
    assert torch.equal(found, real)


@pytest.mark.parametrize("applied", [*APPLIED, "kernel"])
def test_texts_of_two_tokens_of_which_padding_looks_ahead_are_causal(applied):
    kind, found = padded("everything", applied, torch.tensor([[1, 1], [0, 1]]).bool())
    assert kind == "causal"
    assert torch.equal(found, torch.tensor([[1, 1], [0, 1]]).bool())


@pytest.mark.parametrize("real", [LEFT, LEFT.flip(0), LEFT[1:2]], ids=["longest first", "shortest first", "one"])
@pytest.mark.parametrize("applied", [*APPLIED, "kernel"])
@pytest.mark.parametrize("sees", PADDING_SEES)
@pytest.mark.parametrize(("causal", "prefix"), [(False, 0), (True, 2)])
def test_a_call_in_which_real_tokens_look_ahead_beside_padding_is_not_causal(sees, applied, real, causal, prefix):
    assert padded(sees, applied, real, causal, prefix)[0] == "self"


@pytest.mark.parametrize(("ahead", "expected"), [((0, 0), "causal"), ((1, 0), "self")], ids=["padding", "a real token"])
def test_of_weights_that_no_mask_tells_of_those_of_padding_do_not_tell(ahead, expected):
    scores = torch.randn(2, 1, 4, 4)
    scores[0, :, LATER] = -1e9
    scores[0, :, 1:, 0] = -1e9  # the first token of the first text is padding
    scores[1, :, LATER] = -1000.0
    scores[ahead[0], :, ahead[1]] = torch.randn(4)
    assert kind(scores) == expected


@pytest.mark.parametrize("sees", ["everything", "all real tokens"])
def test_a_text_of_one_token_behind_padding_does_not_tell_that_a_call_is_causal(sees):
    assert padded(sees, "filled", torch.tensor([[0, 0, 0, 1]]).bool())[0] == "self"


@pytest.mark.parametrize("length", [4, 6])
@pytest.mark.parametrize(
    "scaled", [lambda s: s, lambda s: (s - s.amax()).clamp(-50, 50), lambda s: s.flatten(1).unflatten(1, s.shape[1:])]
)
def test_scores_that_are_read_both_ways_have_the_queries_of_each(scaled, length):
    """As text attends to a picture, and the picture to the text, by one product of both."""
    output = nn.Linear(8, 8)

    def attend(x: Tensor, y: Tensor) -> Tensor:
        scores = scaled(x @ y.mT / 3)
        return output(scores.softmax(-1) @ y), output(scores.mT.softmax(-1) @ x)

    x, y, found = torch.randn(2, 4, 8), torch.randn(2, length, 8), []
    with torch.no_grad(), recording(found.append, sources=(x, y)):
        attend(x, y)
    assert [record.call.kind for record in found] == ["cross", "cross"]
    assert [(record.queries.source, record.keys.source) for record in found] == [(0, 1), (1, 0)]
    assert [record.queries.index.tolist() for record in found] == [list(range(4)), list(range(length))]


@pytest.mark.parametrize("by", [lambda s: s.softmax(-2), lambda s: s.mT.softmax(-1).mT], ids=["axis", "turned"])
def test_a_softmax_over_queries_leaves_them_where_they_are(by):
    """As slots compete for what they look at."""
    output = nn.Linear(8, 8)

    def attend(x: Tensor, y: Tensor) -> Tensor:
        return output(by(x @ y.mT / 3) @ y)

    x, y = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    found = []
    with torch.no_grad(), recording(found.append, sources=(x, y)):
        attend(x, x), attend(x, y)
    assert [record.call.kind for record in found] == ["self", "cross"]
    assert all(record.queries is not None and record.queries.source == 0 for record in found)
