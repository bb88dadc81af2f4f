"""Real tokens are those that any call looks at from real ones."""

import pytest
import torch
from torch import Tensor, nn

from captum_norm.capture import AttentionRecord, Positions, recording
from captum_norm.capture.looked_at import LookedAt, Sight

TEXT = torch.tensor([[True, True, False, False]])
FOUR = Positions(0, torch.arange(4))


def looked_at(*sights: dict) -> LookedAt:
    found = LookedAt()
    for sight in sights:
        found.add(Sight(found.places(FOUR), **({"queries": found.places(FOUR)} | sight)))
    return found


def test_real_tokens_look_on_until_nothing_is_added():
    next_one = (torch.eye(4) + torch.eye(4).roll(1, 1)).bool()[None]
    assert looked_at({"allowed": next_one}).spread(TEXT, FOUR).all()
    before_it = (torch.eye(4) + torch.diag(torch.ones(3), -1)).bool()[None]
    assert torch.equal(looked_at({"allowed": before_it}).spread(TEXT, FOUR), TEXT)


def test_what_looks_back_alone_sees_no_token_behind_the_text():
    assert torch.equal(looked_at({"back": True}).spread(TEXT, FOUR), TEXT)
    assert looked_at({"back": True}).spread(~TEXT, FOUR).all()


def test_calls_of_other_examples_say_nothing():
    assert torch.equal(looked_at({"allowed": torch.ones(3, 4, 4).bool()}).spread(TEXT.expand(2, -1), FOUR)[1:], TEXT)


def test_what_an_earlier_call_does_not_hide_is_real_for_a_later_one():
    found = looked_at()
    found.add_masked(~TEXT, FOUR)
    assert found.add_masked(TEXT, FOUR).all()


def test_a_class_token_has_a_place_of_its_own():
    found, axis = LookedAt(), Positions(0, torch.tensor([-1, 0, 1]), rows=torch.tensor([-3, 0, 1]))
    found.add(Sight(found.places(axis), None))
    assert found.spread(torch.tensor([[False, True, True]]), axis).all()
    other = Positions(0, torch.tensor([-1, 0, 1]), rows=torch.tensor([-4, 0, 1]))
    assert not found.spread(torch.tensor([[False, True, True]]), other).all()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor, weights, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        given = ((self.q, x), (self.k, memory), (self.v, memory))
        q, k, v = (f(y).unflatten(-1, (2, 4)).transpose(1, 2) for f, y in given)
        y = weights(q, k, v) if weights is _kernel else weights(q @ k.mT) @ v
        return self.o(y.transpose(1, 2).flatten(2))


def _kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def masked(s: Tensor) -> Tensor:
    return s.masked_fill(~TEXT, -torch.inf).softmax(-1)


def records_of(*all_weights) -> list[AttentionRecord]:
    torch.manual_seed(0)
    x, attention = torch.randn(1, 4, 8), Attention()
    with torch.no_grad(), recording(sources=(x,)) as records:
        for weights in all_weights:
            attention(x, weights)
    return records


@pytest.mark.parametrize("weights", [lambda s: s.softmax(-1), lambda s: s.exp() / s.exp().sum(-1, keepdim=True)])
def test_a_mask_behind_a_call_without_one_hides_no_padding(weights):
    assert [one.key_mask for one in records_of(weights, masked)] == [None, None]
    first, second = records_of(masked, weights)
    assert torch.equal(first.key_mask, TEXT)
    assert second.key_mask is None
    assert first.looked_at.spread(TEXT, FOUR).all()


LOOKING_BACK = [_kernel, lambda s: s.masked_fill(~torch.ones(4, 4).tril().bool(), -1e9).softmax(-1)]


@pytest.mark.parametrize("weights", LOOKING_BACK)
def test_padding_behind_a_text_is_not_looked_at_by_what_looks_back(weights):
    assert torch.equal(records_of(weights, masked)[1].key_mask, TEXT)


def test_the_largest_scores_look_at_no_more_than_they_choose():
    def first_two(s: Tensor) -> Tensor:
        s = s + torch.tensor([9.0, 8.0, 0.0, 0.0])
        return s.masked_fill(s < s.topk(2, -1).values[..., -1:], -torch.inf).softmax(-1)

    assert torch.equal(records_of(first_two, masked)[1].key_mask, TEXT)
    assert records_of(lambda s: first_two(s.flip(-1)).flip(-1), masked)[1].key_mask is None


def test_queries_that_are_padding_make_nothing_real_in_another_text():
    torch.manual_seed(0)
    x, memory, attention, cross = torch.randn(1, 4, 8), torch.randn(1, 4, 8), Attention(), Attention()
    each_its_own = torch.eye(4).bool()
    with torch.no_grad(), recording(sources=(x, memory)) as records:
        attention(x, masked)
        cross(x, lambda s: s.masked_fill(~each_its_own, -torch.inf).softmax(-1), memory)
        attention(memory, masked)
    assert torch.equal(records[2].key_mask, TEXT)


def test_a_class_token_that_one_call_hides_and_another_looks_at_is_real():
    torch.manual_seed(0)
    x, first, attention = torch.randn(1, 3, 8), nn.Parameter(torch.randn(1, 1, 8)), Attention()
    hidden = torch.tensor([False, True, True, True])
    with torch.no_grad(), recording(sources=(x,)) as records:
        y = torch.cat([first, x], 1)
        attention(y, lambda s: s.softmax(-1))
        attention(y, lambda s: s.masked_fill(~hidden, -torch.inf).softmax(-1))
    assert records[1].keys.index.tolist() == [-1, 0, 1, 2]
    assert records[1].query_mask is None
