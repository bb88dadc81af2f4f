"""Which tokens are real is read off what attention itself was allowed to look at, whatever name the mask has."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from captum_norm.capture import InexactCaptureError, recording
from captum_norm.capture.masks import allowed_by_scores
from captum_norm.capture.real_tokens import real_keys

REAL = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
LEFT = REAL.flip(1)
HIDDEN, FUTURE = ~REAL[:, None, None], torch.ones(5, 5, dtype=torch.bool).triu(1)


def _setitem(s: Tensor, hidden: Tensor) -> Tensor:
    s[hidden.expand_as(s)] = -1e9
    return s.softmax(-1)


def _renormalised(s: Tensor, hidden: Tensor) -> Tensor:
    w = s.softmax(-1) * ~hidden
    return w / w.sum(-1, keepdim=True)


def _largest(w: Tensor) -> Tensor:
    largest = w.topk(4, -1)
    return torch.zeros_like(w).scatter(-1, largest.indices, largest.values)


def _by_hand(s: Tensor, hidden: Tensor) -> Tensor:
    e = (s - s.amax(-1, keepdim=True)).exp() * (~hidden).float()
    return e / e.sum(-1, keepdim=True)


def _less_log_sum(s: Tensor) -> Tensor:
    return (s - s.logsumexp(-1, keepdim=True)).exp()


FORMS = {
    "-1e4 added": lambda s, hidden: (s + hidden * -1e4).softmax(-1),
    "-100 added": lambda s, hidden: (s + hidden * -100.0).softmax(-1),
    "filled": lambda s, hidden: s.masked_fill(hidden, -torch.inf).softmax(-1),
    "filled in place": lambda s, hidden: s.masked_fill_(hidden, -1e9).softmax(-1),
    "chosen": lambda s, hidden: torch.where(hidden, torch.finfo(s.dtype).min, s).softmax(-1),
    "written": _setitem,
    "renormalised": _renormalised,
    "weights filled": lambda s, hidden: s.softmax(-1).masked_fill(hidden, 0.0),
    "by hand": _by_hand,
    "exponentials of log-weights": lambda s, hidden: s.masked_fill(hidden, -1e9).log_softmax(-1).exp(),
    "exponentials less their log-sum": lambda s, hidden: _less_log_sum(s.masked_fill(hidden, -1e4)),
    "chosen and put back": lambda s, hidden: _largest(s.masked_fill(hidden, -1e9).softmax(-1)),
    "causal": lambda s, hidden: s.masked_fill(hidden | FUTURE, -1e9).softmax(-1),
    "one map for all heads": lambda s, hidden: s.masked_fill(hidden, -1e9).softmax(-1).mean(1, keepdim=True),
}


class Attention(nn.Module):
    """Its mask has a name that no library uses."""

    def __init__(self, weights) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.weights = weights

    def forward(self, x: Tensor, nothing_there: Tensor) -> Tensor:
        q, k, v = (f(x).view(2, -1, 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o((self.weights(q @ k.mT, nothing_there) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("form", FORMS)
def test_real_tokens_are_those_that_a_softmax_was_allowed_to_look_at(form):
    x, attention = torch.randn(2, 5, 8), Attention(FORMS[form])
    with torch.no_grad(), recording(sources=(x,)) as records:
        attention(x, HIDDEN)
        attention(x, torch.zeros_like(HIDDEN))
    assert torch.equal(records[0].key_mask, REAL)
    assert torch.equal(records[0].query_mask, REAL)
    assert records[1].key_mask is records[1].query_mask is None


def test_tokens_that_attract_no_weight_are_still_real():
    x = torch.randn(2, 5, 8)
    x[:, :, 0] = 0
    x[:, 0, 0] = 300.0  # all others underflow to a weight of zero
    attention = Attention(lambda s, _: s.masked_fill(FUTURE, -1e9).softmax(-1))
    for f in (attention.q, attention.k):
        f.weight.data.zero_()
        f.bias.data.fill_(1.0)
        f.weight.data[:, 0] = 1.0
    with torch.no_grad(), recording(sources=(x,)) as records:
        attention(x, HIDDEN)
    assert (records[0].weights[:, :, -1, 1:] == 0).all()
    assert records[0].key_mask is None


def _in_millions(number: float) -> tuple[Attention, Tensor]:
    """Scores of all sizes, the largest of which is 0, and what a mask leaves out set to a number."""
    attention = Attention(lambda s, _: (s - s.amax(-1, keepdim=True)).masked_fill(FUTURE, number).softmax(-1))
    return attention, 1e4 * torch.randn(2, 5, 8)


def test_scores_in_millions_are_not_taken_for_masked_ones():
    attention, x = _in_millions(-torch.inf)
    with torch.no_grad(), recording(sources=(x,)) as records:
        attention(x, HIDDEN)
    assert records[0].key_mask is records[0].query_mask is None
    assert records[0].call.kind == "causal"


def test_scores_that_may_be_those_of_a_mask_are_refused_with_a_way_out():
    attention, x = _in_millions(-1e9)
    with pytest.raises(InexactCaptureError, match="Let the mask write minus infinity"), recording(sources=(x,)):
        attention(x, HIDDEN)


def test_an_empty_mask_whose_rows_are_chosen_by_size_hides_nothing():
    x = torch.randn(2, 5, 8)

    def weights(s: Tensor, hidden: Tensor) -> Tensor:
        rows = s.topk(2, -1).indices[:, 0]
        torch.ones(2, 5, 0, dtype=torch.bool).gather(1, rows[..., :0])
        return s.masked_fill(hidden, -1e9).softmax(-1)

    with torch.no_grad(), recording(sources=(x,)) as records:
        Attention(weights)(x, HIDDEN)
    assert torch.equal(records[0].key_mask, REAL)


@pytest.mark.parametrize("mask", [~HIDDEN, HIDDEN.float() * -1e9, HIDDEN.float() * -100])
def test_the_mask_of_scaled_dot_product_attention_says_which_tokens_are_real(mask):
    x, module = torch.randn(2, 5, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def attend(x: Tensor) -> Tensor:
        q, k, v = (f.view(2, 5, 2, 4).transpose(1, 2) for f in module.in_proj_weight.matmul(x.mT).mT.chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, mask)
        return module.out_proj(y.transpose(1, 2).flatten(2))

    with torch.no_grad(), recording(sources=(x,)) as records:
        attend(x)
    assert torch.equal(records[0].key_mask, REAL)


def test_a_mask_that_holds_nan_is_refused():
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    x, mask = torch.randn(2, 5, 8), torch.zeros(2, 5)
    mask[0, 4] = torch.nan
    with pytest.raises(RuntimeError, match=r"holds NaN"), torch.no_grad(), recording(sources=(x,)):
        module(x, x, x, key_padding_mask=mask, need_weights=False)


def test_cross_attention_tells_the_real_keys_and_remembers_the_real_queries():
    source, target = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.no_grad(), recording(sources=(source, target)) as records:
        layer(target, source, tgt_key_padding_mask=~LEFT, memory_key_padding_mask=~REAL)
    assert torch.equal(records[1].key_mask, REAL)
    assert torch.equal(records[1].query_mask, LEFT)


@pytest.mark.parametrize(
    ("rows", "real"),
    [
        (["11111", "01000", "01100", "01110", "01111"], "01111"),  # a row of padding alone sees everything
        (["10000", "11000", "11100", "11110", "11111"], "11111"),  # causal
        (["11100", "11100", "11110", "11110", "11111"], "11111"),  # a prefix that sees itself whole
        (["10111", "01111", "00111", "00111", "00111"], "00111"),  # padding that sees itself, too
        (["00000", "00000", "00100", "00110", "00111"], "00111"),
    ],
)
def test_rows_of_padding_do_not_make_tokens_real(rows, real):
    found = real_keys(torch.tensor([[[int(cell) for cell in row] for row in rows]]).bool())
    found = torch.ones(1, 5, dtype=torch.bool) if found is None else found
    assert "".join(str(int(token)) for token in found[0]) == real


SELECTIONS = {
    "a mask": lambda real: (real,),
    "what is padding": lambda real: (~real,),
    "lengths": lambda real: (torch.arange(5) < real.sum(1)[:, None],),
    "a mask added": lambda real: ((real[:, None, None] * 1.0 - 1)[:, 0, 0] == 0,),
}


@pytest.mark.parametrize("told", SELECTIONS)
@pytest.mark.parametrize("real", [REAL, torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()])
def test_padding_that_sees_itself_is_told_by_the_selection_that_its_mask_was_made_of(told, real):
    [selected] = SELECTIONS[told](real)

    def weights(s: Tensor, seen: Tensor) -> Tensor:
        seen = seen[:, None, None] & ~FUTURE
        itself = torch.eye(5, dtype=torch.bool)
        return s.masked_fill(~(seen | itself), -torch.inf).softmax(-1)

    x = torch.randn(2, 5, 8)
    with torch.no_grad(), recording(sources=(x,)) as records:
        Attention(weights)(x, ~selected if told == "what is padding" else selected)
    assert torch.equal(records[0].key_mask, real)


ADDED = {
    "baddbmm": lambda q, k, hidden: torch.baddbmm(_minus_infinity(hidden), q, k.mT),
    "of the mask": lambda q, k, hidden: _minus_infinity(hidden).baddbmm(q, k.mT, alpha=0.5),
    "in place": lambda q, k, hidden: _minus_infinity(hidden).baddbmm_(q, k.mT),
    "times beta": lambda q, k, hidden: torch.baddbmm(hidden * 1.0, q, k.mT, beta=-1e9),
    "-100": lambda q, k, hidden: torch.baddbmm(hidden * -100.0, q, k.mT),
    "times beta, -100": lambda q, k, hidden: torch.baddbmm(hidden * 1.0, q, k.mT, beta=-100),
    "addmm": lambda q, k, hidden: torch.stack(list(map(torch.addmm, _minus_infinity(hidden), q, k.mT))),
    "add": lambda q, k, hidden: torch.add(q @ k.mT, hidden * 1.0, alpha=-1e9),
    "addcmul": lambda q, k, hidden: torch.addcmul(q @ k.mT, hidden * 1.0, torch.tensor(-1e9)),
    "lerp": lambda q, k, hidden: torch.lerp(q @ k.mT, torch.tensor(-1e9), hidden * 1.0),
}


def _minus_infinity(hidden: Tensor) -> Tensor:
    return torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)


@pytest.mark.parametrize("form", ADDED)
def test_a_mask_that_one_operation_adds_to_scores_and_makes_them_is_made_of_the_same_selection(form):
    module = Attention(None)

    def attend(x: Tensor, real: Tensor) -> Tensor:
        q, k, v = (f(x).view(2, 5, 2, 4).transpose(1, 2).flatten(0, 1) for f in (module.q, module.k, module.v))
        hidden = ~(real[:, None] & ~FUTURE | torch.eye(5, dtype=torch.bool)).repeat_interleave(2, 0)
        y = ADDED[form](q, k, hidden).softmax(-1) @ v
        return module.o(y.view(2, 2, 5, 4).transpose(1, 2).flatten(2))

    x = torch.randn(2, 5, 8)
    with torch.no_grad(), recording(sources=(x,)) as records:
        attend(x, REAL)
    assert torch.equal(records[0].key_mask, REAL)


LOOKING_BACK = {
    "ones": lambda x: torch.ones(2, 2).tril().bool(),
    "what is hidden": lambda x: ~torch.ones(2, 2, dtype=torch.bool).triu(1),
    "minus infinity": lambda x: x.new_full((2, 2), -torch.inf).triu(1) == 0,
    "numbers of positions": lambda x: torch.arange(2)[None] <= torch.arange(2)[:, None],
    "for all heads": lambda x: torch.ones(2, 2).tril().bool().expand(2, 1, 2, 2),
    "with a mask of ones": lambda x: torch.ones(2, 2).tril().bool() & torch.ones(2, 1, 1, 2).bool(),
    "a buffer": None,
}


def _of_two_texts(weights, told: Tensor) -> Tensor | None:
    """The real tokens of two texts of two tokens each."""
    attention, x = Attention(weights), torch.randn(2, 2, 8)
    attention.pattern = nn.Buffer(torch.ones(2, 2).tril().bool())
    with torch.no_grad(), recording(sources=(x,)) as records:
        attention.weights = lambda s, told: weights(s, told, attention.pattern)
        attention(x, told)
    assert records[0].call.kind == "causal"
    return records[0].key_mask


@pytest.mark.parametrize("made", LOOKING_BACK)
def test_a_causal_mask_of_as_many_tokens_as_there_are_texts_is_no_selection_of_them(made):
    def weights(s: Tensor, _: Tensor, pattern: Tensor) -> Tensor:
        seen = pattern if LOOKING_BACK[made] is None else LOOKING_BACK[made](s)
        return s.masked_fill(~seen, -torch.inf).softmax(-1)

    assert _of_two_texts(weights, torch.ones(2, 2)) is None


def test_a_selection_that_is_given_tells_padding_that_sees_itself_in_as_many_texts_as_tokens():
    real = torch.tensor([[1, 0], [1, 1]]).bool()

    def weights(s: Tensor, told: Tensor, pattern: Tensor) -> Tensor:
        seen = told[:, None, None] & pattern | torch.eye(2, dtype=torch.bool)
        return s.masked_fill(~seen, -torch.inf).softmax(-1)

    assert torch.equal(_of_two_texts(weights, real), real)


SLOTS = {
    "a cache of zeros": (lambda x: torch.zeros(2, 8, 8).index_copy_(1, torch.arange(5), x), (0, 3)),
    "slots behind": (lambda x: torch.cat([x, torch.zeros(2, 3, 8)], 1), (0, 3)),
    "keys in front": (lambda x: torch.cat([torch.ones(2, 3, 8), x], 1), (3, 0)),
}
IN_SLOTS = {
    "added behind": lambda seen, real, slots: pad(seen, slots),
    "written": lambda seen, real, slots: _written(seen, slots),
    "selected with the slots": lambda seen, real, slots: (
        pad(~FUTURE, slots) & (pad(real, slots)[:, None] > 0) | pad(torch.eye(5, dtype=torch.bool), slots)
    ),
}


def _written(seen: Tensor, slots: tuple[int, int]) -> Tensor:
    whole = torch.zeros(2, 5, 8, dtype=torch.bool)
    whole[..., slots[0] : slots[0] + 5] = seen
    return whole


@pytest.mark.parametrize("real", [REAL, torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool(), LEFT])
@pytest.mark.parametrize("form", IN_SLOTS)
@pytest.mark.parametrize("where", SLOTS)
def test_padding_that_sees_itself_beside_keys_that_are_no_tokens_is_told_by_the_selection(where, form, real):
    (place, slots), module = SLOTS[where], Attention(None)

    def attend(x: Tensor, real: Tensor) -> Tensor:
        itself = torch.eye(5, dtype=torch.bool)
        told = (real[:, None] > 0) & ~FUTURE | itself if form != "selected with the slots" else None
        seen = IN_SLOTS[form](told, real, slots)[:, None]
        states = module.q(x), place(module.k(x)), place(module.v(x))
        q, k, v = (f.unflatten(-1, (2, 4)).transpose(1, 2) for f in states)
        y = (q @ k.mT).masked_fill(~seen, -torch.inf).softmax(-1) @ v
        return module.o(y.transpose(1, 2).flatten(2))

    x, given = torch.randn(2, 5, 8), real.long()
    with torch.no_grad(), recording(sources=(x,)) as records:
        attend(x, given)
    assert torch.equal(records[0].query_mask, real)
    assert torch.equal(records[0].key_mask, pad(real, slots))


def test_a_text_that_looks_back_is_no_padding():
    x = torch.randn(2, 5, 8)
    with torch.no_grad(), recording(sources=(x,)) as records:
        Attention(lambda s, seen: s.masked_fill(FUTURE & ~seen[:, None, None], -torch.inf).softmax(-1))(x, ~REAL | REAL)
    assert records[0].key_mask is None


def _smallest_left_out(s: Tensor) -> Tensor:
    return s < s.topk(2, -1).values[..., -1:]


BY_SIZE = {
    "scores": lambda s, hidden: _filled(s.masked_fill(hidden, -1e9)).softmax(-1),
    "scores, then the mask": lambda s, hidden: _filled(s).masked_fill(hidden, -1e9).softmax(-1),
    "weights": lambda s, hidden: _filled(s.masked_fill(hidden, -1e9).softmax(-1), 0.0),
    "weights, then the mask": lambda s, hidden: _filled(s.softmax(-1), 0.0) * ~hidden,
    "one mask for both": lambda s, hidden: s.masked_fill(_smallest_of(s, hidden) | hidden, -torch.inf).softmax(-1),
    "one mask of what stays": lambda s, hidden: s.masked_fill(~(~_smallest_of(s, hidden) & ~hidden), -1e9).softmax(-1),
    "one mask added": lambda s, hidden: (
        s + torch.zeros_like(s).masked_fill(_smallest_of(s, hidden) | hidden, -torch.inf)
    ).softmax(-1),
    "one mask of weights": lambda s, hidden: s.softmax(-1) * ~(_smallest_of(s, hidden) | hidden),
    "scores put back": lambda s, hidden: _put_back(s.masked_fill(hidden, -1e9)).softmax(-1),
    "scores put back in place": lambda s, hidden: _put_back(s.masked_fill(hidden, -1e9), Tensor.scatter_).softmax(-1),
    "scores scaled and put back": lambda s, hidden: (
        _put_back(s.masked_fill(hidden, -1e9), change=lambda taken: taken / 2 + 1).softmax(-1)
    ),
    "scores gathered and put back": lambda s, hidden: _gathered(s.masked_fill(hidden, -1e9)).softmax(-1),
    "scores put back, then the mask": lambda s, hidden: _put_back(s).masked_fill(hidden, -1e9).softmax(-1),
    "the smallest written over": lambda s, hidden: _written_over(s.masked_fill(hidden, -1e9)).softmax(-1),
    "a float mask": lambda s, hidden: (w := s.masked_fill(hidden, -1e9).softmax(-1)) * (~_smallest_left_out(w)).float(),
}


def _put_back(s: Tensor, scatter=Tensor.scatter, change=lambda taken: taken) -> Tensor:
    taken = s.topk(2, -1)
    return scatter(torch.full_like(s, -torch.inf), -1, taken.indices, change(taken.values))


def _gathered(s: Tensor) -> Tensor:
    order = s.argsort(-1, descending=True)[..., :2]
    return torch.full_like(s, -torch.inf).scatter(-1, order, s.gather(-1, order))


def _written_over(s: Tensor) -> Tensor:
    return s.scatter(-1, s.topk(3, -1, largest=False).indices, -torch.inf)


def _smallest_of(s: Tensor, hidden: Tensor) -> Tensor:
    return _smallest_left_out(s.masked_fill(hidden, -1e9))


def _filled(s: Tensor, value: float = -torch.inf) -> Tensor:
    return s.masked_fill(_smallest_left_out(s), value)


@pytest.mark.parametrize("form", BY_SIZE)
def test_what_is_left_out_for_being_small_is_real(form):
    x, attention = torch.randn(2, 5, 8), Attention(BY_SIZE[form])
    with torch.no_grad(), recording(sources=(x,)) as records:
        attention(x, HIDDEN)
        attention(x, torch.zeros_like(HIDDEN))
    assert torch.equal(records[0].key_mask, REAL)
    assert records[1].key_mask is None


@pytest.mark.parametrize("hidden", [HIDDEN, torch.zeros_like(HIDDEN)])
def test_keys_that_a_fused_kernel_is_told_to_leave_out_for_being_small_are_real(hidden):
    module, x = Attention(None), torch.randn(2, 5, 8)
    real = None if not bool(hidden.any()) else REAL

    def attend(x: Tensor, hidden: Tensor) -> Tensor:
        q, k, v = (f(x).view(2, -1, 2, 4).transpose(1, 2) for f in (module.q, module.k, module.v))
        sizes = (q @ k.mT).mean((1, 2), keepdim=True)  # one key is left out for all queries
        smallest = sizes == sizes.masked_fill(hidden, torch.inf).amin(-1, keepdim=True)
        mask = torch.zeros(2, 2, 5, 5).masked_fill(smallest | hidden, -torch.inf)
        y = nn.functional.scaled_dot_product_attention(q, k, v, mask)
        return module.o(y.transpose(1, 2).flatten(2))

    with torch.no_grad(), recording(sources=(x,)) as records:
        attend(x, hidden)
    assert records[0].key_mask is None if real is None else torch.equal(records[0].key_mask, real)


@pytest.mark.parametrize("given", [HIDDEN, HIDDEN.expand(2, 1, 5, 5).clone()])
def test_rows_of_a_mask_in_the_order_of_sizes_hide_nothing_for_its_size(given):
    def weights(s: Tensor, hidden: Tensor) -> Tensor:
        order = s.norm(dim=-1).argsort(-1)[..., None].expand_as(s)
        in_order = s.gather(2, order).masked_fill(hidden.expand_as(s).gather(2, order), -1e9).softmax(-1)
        return torch.zeros_like(s).scatter(2, order, in_order)

    x = torch.randn(2, 5, 8)
    with torch.no_grad(), recording(sources=(x,)) as records:
        Attention(weights)(x, given)
    assert torch.equal(records[0].key_mask, REAL)


@pytest.mark.parametrize("kind", [nn.Buffer, nn.Parameter])
def test_a_pattern_that_the_model_is_made_with_is_no_padding(kind):
    attention = Attention(lambda s, _: s.softmax(-1) * attention.pattern)
    attention.pattern = kind(torch.ones(5, 5))
    attention.pattern.data[:, 3] = torch.eye(5)[3]
    attention.pattern.data[3, 0] = 0
    x = torch.randn(2, 5, 8)
    with torch.no_grad(), recording(sources=(x,)) as records:
        attention(x, HIDDEN)
    assert records[0].key_mask is None


def _alone() -> Tensor:
    """The fourth token is seen by itself alone."""
    pattern = torch.ones(5, 5)
    pattern[:, 3] = torch.eye(5)[3]
    pattern[3, 0] = 0
    return pattern


ISOLATED = {
    "filled": lambda s, seen: s.masked_fill(seen == 0, -torch.inf).softmax(-1),
    "filled in place": lambda s, seen: s.masked_fill_(~seen.bool(), -1e9).softmax(-1),
    "chosen": lambda s, seen: torch.where(seen > 0, s, torch.finfo(s.dtype).min).softmax(-1),
    "added": lambda s, seen: (s + (1 - seen) * -1e9).softmax(-1),
    "-100 added": lambda s, seen: (s - 100 * (1 - seen)).softmax(-1),
    "written": lambda s, seen: _setitem(s, seen == 0),
    "weights filled": lambda s, seen: s.softmax(-1).masked_fill(seen == 0, 0.0),
    "weights written": lambda s, seen: _weights_written(s.softmax(-1), seen == 0),
    "by hand": lambda s, seen: _by_hand(s, seen == 0),
    "of some tokens": lambda s, seen: s.masked_fill(seen[: s.shape[-1], : s.shape[-1]] == 0, -1e9).softmax(-1),
}


def _weights_written(w: Tensor, hidden: Tensor) -> Tensor:
    w[hidden.expand_as(w)] = 0
    return w


def _real(weights, given: Tensor) -> Tensor | None:
    attention, x = Attention(weights), torch.randn(2, 5, 8)
    attention.pattern = nn.Buffer(_alone())
    with torch.no_grad(), recording(sources=(x,)) as records:
        attention.weights = lambda s, told: weights(s, told, attention.pattern)
        attention(x, given)
    return records[0].key_mask


@pytest.mark.parametrize("form", ISOLATED)
def test_what_a_pattern_of_the_model_hides_from_all_others_is_no_padding(form):
    assert _real(lambda s, _, pattern: ISOLATED[form](s, pattern), HIDDEN) is None


@pytest.mark.parametrize("form", ISOLATED)
def test_what_a_mask_that_is_made_anew_of_nothing_given_hides_from_all_others_is_no_padding(form):
    assert _real(lambda s, *_: ISOLATED[form](s, _alone()), HIDDEN) is None


@pytest.mark.parametrize("form", ISOLATED)
def test_what_a_mask_that_is_given_hides_from_all_others_is_padding(form):
    real = _real(lambda s, told, _: ISOLATED[form](s, told), _alone())
    assert torch.equal(real, (torch.eye(5)[3] == 0).expand(2, 5))


@pytest.mark.parametrize("form", ISOLATED)
def test_a_selection_of_positions_tells_padding_from_what_a_pattern_hides(form):
    real = _real(lambda s, told, pattern: ISOLATED[form](s, pattern * ~told), HIDDEN)
    assert torch.equal(real, REAL)


SMALL = torch.tensor([0.0, 0.0, 0.0, -200.0, 0.0])


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.copy_(2 * w), lambda w: w.index_copy_(2, torch.arange(5), 2 * w),
        lambda w: w.index_put_((torch.tensor([0]),), w[:1].clone()), lambda w: w.index_fill_(2, torch.tensor([0]), 0.2),
    ],
)  # fmt: skip
def test_weights_that_underflow_and_are_written_again_hide_nothing(write):
    assert _real(lambda s, *_: write((s + SMALL).softmax(-1)), HIDDEN) is None


def test_the_mask_of_a_kernel_that_is_a_pattern_hides_no_padding():
    def attend(given: Tensor | None) -> Tensor | None:
        projection, pattern, x = nn.Linear(8, 8), nn.Buffer(_alone()), torch.randn(2, 1, 5, 8)
        module = nn.ModuleList([projection])
        module.pattern = pattern
        module.forward = lambda x, told: projection(
            scaled_dot_product_attention(x, x, x, (module.pattern if told is None else told) > 0)
        )
        with torch.no_grad(), recording(sources=(x[:, 0],)) as records:
            module(x, given)
        return records[0].key_mask

    assert attend(None) is None
    assert not attend(_alone())[:, 3].any()


def _smallest_written(s: Tensor) -> Tensor:
    s[_smallest_left_out(s)] = -torch.inf
    return s


SMALL_WRITTEN = [
    lambda s: s.masked_fill_(_smallest_left_out(s), -torch.inf),
    _smallest_written,
    lambda s: _put_back(s, change=lambda taken: taken.tanh()),
]


@pytest.mark.parametrize("write", SMALL_WRITTEN)
def test_scores_overwritten_for_being_small_do_not_tell_what_is_padding(write):
    attention = Attention(lambda s, hidden: write(s).softmax(-1))
    x = torch.randn(2, 5, 8)
    message = r"Attention overwrites .* \(masked_fill, where\)"
    with pytest.raises(InexactCaptureError, match=message), torch.no_grad(), recording(sources=(x,)):
        attention(x, HIDDEN)


@pytest.mark.parametrize("heads", ["alike", "apart"])
def test_what_a_softmax_allows_is_told_of_each_head(heads):
    hidden = torch.stack([FUTURE, FUTURE if heads == "alike" else FUTURE.T, FUTURE]).expand(2, 3, 5, 5)
    scores = torch.randn(2, 3, 5, 5).masked_fill(hidden, -1e9)
    assert torch.equal(allowed_by_scores(scores), ~hidden)
    assert allowed_by_scores(torch.randn(2, 3, 5, 5)) is None


def test_states_that_are_put_back_where_they_were_taken_for_their_size_hide_nothing():
    module, x = Attention(None), torch.randn(2, 5, 8)

    def attend(x: Tensor) -> Tensor:
        q, k, v = (f(x).view(2, -1, 2, 4).transpose(1, 2) for f in (module.q, module.k, module.v))
        order = v.norm(dim=-1, keepdim=True).topk(2, 2).indices.expand(-1, -1, -1, 4)
        y = (q @ k.mT).softmax(-1) @ torch.zeros_like(v).scatter(2, order, v.gather(2, order).tanh())
        return module.o(y.transpose(1, 2).flatten(2))

    with torch.no_grad(), recording(sources=(x,)) as records:
        attend(x)
    assert records[0].key_mask is None
