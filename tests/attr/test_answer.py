"""The row explained is the one that the output was read from, and calls are composed as the model composes them."""

import pytest
import torch
import transformers
from torch import nn

from captum_norm import (
    ALTI,
    AttentionFlow,
    AttentionNorm,
    AttentionRelevance,
    AttentionRollout,
    GlobEnc,
    ValueZeroing,
    attention_maps,
)

close = torch.testing.assert_close
COMPOSING = (ALTI, AttentionFlow, AttentionRelevance, AttentionRollout, GlobEnc)
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
SIZES = {"vocab_size": 10, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32, "initializer_range": 0.2}  # fmt: skip


class Layer(nn.Module):
    def __init__(self, between=None):
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.feed_forward, self.between, self.mask = nn.Linear(16, 16), between or nn.Identity(), None

    def forward(self, x):
        y = self.norm(x)
        x = x + self.attention(y, y, y, attn_mask=self.mask)[0]
        return x + self.feed_forward(self.between(self.norm2(x)))


class Model(nn.Module):
    """Two layers, read in a way of the caller's."""

    def __init__(self, run=lambda self, x: self.second(self.first(x))[:, 0], between=None):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.first, self.second = nn.Embedding(10, 16), Layer(between), Layer()
        self.classes, self.wide, self.run = nn.Linear(16, 3), nn.Linear(32, 16), run
        self.narrow = nn.Linear(16, 16)
        self.eval()

    def forward(self, ids):
        return self.classes(self.run(self, self.embedding(ids)))


def gru_between():
    return nn.Sequential(nn.GRU(16, 16, batch_first=True), First())


class First(nn.Module):
    def forward(self, given):
        return given[0]


@pytest.mark.parametrize("method", COMPOSING)
def test_what_mixes_positions_between_calls_is_refused_by_name_with_ways_out_that_work(method):
    model = Model(between=gru_between())
    with pytest.raises(ValueError, match=r"gru in 'first.between.0'.*aggregate=<number>.*mixers_as_identity=True"):
        method(model).attribute(IDS, target=1)
    assert AttentionNorm(model, aggregate=1).attribute(IDS, target=1).shape == IDS.shape
    explained = method(model)
    assert explained.attribute(IDS, target=1, mixers_as_identity=True).shape == IDS.shape
    assert [mixer.operation for mixer in explained.report.mixers] == ["gru"]


class TwoTexts(nn.Module):
    """Two texts through one encoder, read together."""

    def __init__(self, read):
        super().__init__()
        self.encoder, self.read = Model(lambda self, x: self.second(self.first(x))), read
        self.encoder.classes = nn.Identity()

    def forward(self, one, other):
        return self.read(self.encoder(one), self.encoder(other))


TEXTS = (IDS, torch.tensor([[9, 7, 9, 3, 2, 3], [8, 4, 6, 2, 6, 4]]))


@pytest.mark.parametrize("method", [AttentionNorm, AttentionRollout, ALTI])
def test_of_two_texts_through_one_encoder_of_which_means_were_read_means_are_explained(method):
    def compared(u, v):
        return torch.cat([(u.mean(1) - v.mean(1)).abs(), u.mean(1) * v.mean(1)], -1)

    explained = method(TwoTexts(compared).eval())
    found = explained.attribute(TEXTS, target=1)
    assert explained.report.row == "read"
    for ours, asked in zip(found, explained.attribute(TEXTS, target=1, position="mean"), strict=True):
        close(ours, asked)


def test_one_row_of_two_texts_that_is_the_default_of_one_alone_is_asked_for():
    """The last row, of a text that is read looking back, and of one that is not."""
    last = torch.tensor([0.0, 0, 0, 0, 0, 1])[:, None]
    model = TwoTexts(lambda u, v: ((u * last).sum(1) - (v * last).sum(1)).abs()).eval()
    texts, ahead = {}, torch.ones(6, 6).triu(1).bool()
    encode = model.encoder.forward

    def encoded(ids):
        for layer in (model.encoder.first, model.encoder.second):
            layer.mask = None if texts else ahead
        texts[len(texts)] = ids
        return encode(ids)

    model.encoder.forward = encoded
    with pytest.raises(ValueError, match=r"which rows of inputs\[1\] the output was read from is not known"):
        AttentionNorm(model).attribute(TEXTS, target=1)


def test_a_row_of_another_text_is_not_taken_for_one_of_the_text_that_is_asked_for():
    """The first text, which is no input here, has its row before the last call's, which are the second one's."""
    model = TwoTexts(lambda u, v: u[:, 0] @ v[:, 3].T).eval()
    explained = AttentionNorm(lambda second, first: model(first, second))
    with pytest.raises(ValueError, match=r"which rows of inputs\[0\] the output was read from is not known"):
        explained.attribute(TEXTS[1], target=1, additional_forward_args=(TEXTS[0],))


READ_APART = {
    "another row of each": lambda u, v: (u[:, 0] * v[:, 3]).sum(-1, keepdim=True).expand(-1, 3),
    "rows beside each other, of which one alone is known": lambda u, v: torch.cat([u[:, 2], v[:, 4]], -1),
    "each compared with each": lambda u, v: u[:, 0] @ v[:, 3].T,
    "one added to the other": lambda u, v: u[:, 2] + v[:, 2],
    "a mean of one, a row of the other": lambda u, v: (u.mean(1) * v[:, 0]).sum(-1, keepdim=True).expand(-1, 3),
}


@pytest.mark.parametrize("what", READ_APART)
def test_of_two_texts_of_which_it_is_not_known_which_rows_were_read_a_row_is_asked_for(what):
    explained = AttentionNorm(TwoTexts(READ_APART[what]).eval())
    with pytest.raises(ValueError, match=r"which rows .*the output was read from is not known.*position=<row>"):
        explained.attribute(TEXTS, target=1)
    assert explained.attribute(TEXTS, target=1, position=2)[1].shape == TEXTS[1].shape


@pytest.mark.parametrize("method", COMPOSING)
def test_a_branch_that_nothing_uses_has_no_part(method):
    plain = Model(lambda self, x: self.first(x)[:, 0])
    with_branch = Model(lambda self, x: (self.second(x), self.first(x))[1][:, 0])
    explained = method(with_branch)
    close(explained.attribute(IDS, target=1), method(plain).attribute(IDS, target=1))
    assert [call.name for call in explained.report.unused] == ["second.attention"]


@pytest.mark.parametrize("method", COMPOSING)
def test_calls_side_by_side_are_not_composed_as_if_one_followed_the_other(method):
    model = Model(lambda self, x: (self.first(x) + self.second(x))[:, 0])
    with pytest.raises(ValueError, match=r"'first\.attention'.*'second\.attention'.*side by side"):
        method(model).attribute(IDS, target=1)
    assert AttentionNorm(model).attribute(IDS, target=1).shape == IDS.shape


LEADS_PAST = {
    "a long skip": (lambda self, x: (x + self.second(self.first(x)))[:, 0], "what is explained.*'second.attention'"),
    "a dense sum": (lambda self, x: (y := self.first(x)) + self.second(y), "what is explained.*'second.attention'"),
    "a dense mean": (lambda self, x: torch.stack([y := self.first(x), self.second(y)]).mean(0), "'second.attention'"),
    "features of two layers": (lambda self, x: self.second(self.wide(torch.cat([x, self.first(x)], -1))),
                               "'second.attention'.*'first.attention'"),
    "features of a map of what a layer was made of": (lambda self, x: self.second(self.wide(torch.cat(
        [self.first(x), self.narrow(x)], -1))), "'second.attention'.*'first.attention'"),
    "rows that attention did not write": (lambda self, x: self.second(torch.cat(
        [self.first(x)[:, :3], self.narrow(x)[:, 3:]], 1)), "'second.attention'"),
    "the embedding again": (lambda self, x: self.second(self.first(x) + x), "'second.attention'.*'first.attention'"),
    "the embedding multiplied in again": (lambda self, x: self.second(self.first(x) * x),
                                          "'second.attention'.*'first.attention'"),
    "the tokens embedded again": (lambda self, x: self.second(self.first(x) + self.embedding(IDS)),
                                  "'second.attention'.*'first.attention'"),
    "a skip that is scaled": (lambda self, x: self.second(self.first(x) + 0.5 * x), "'second.attention'"),
    "a skip that a parameter scales": (lambda self, x: self.second(self.first(x) + self.classes.bias[0].exp() * x),
                                       "'second.attention'.*'first.attention'"),
    "a sum of sums": (lambda self, x: self.second(sum([x, self.first(x)])), "'second.attention'.*'first.attention'"),
    "what is said of two layers": (lambda self, x: self.narrow(y := self.first(x)) + self.narrow(self.second(y)),
                                   "what is explained.*'second.attention'"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEADS_PAST)
@pytest.mark.parametrize("method", [AttentionRollout, ALTI])
def test_what_leads_past_a_block_is_refused_by_name(method, case):
    run, message = LEADS_PAST[case]
    model = Model(run)
    with pytest.raises(ValueError, match=f"{message}.*left: something leads past that call at .* in 'Model'"):
        method(model).attribute(IDS, target=(0, 1) if model(IDS).ndim == 3 else 1)
    assert AttentionNorm(model, aggregate=1).attribute(IDS, target=0, position=0).shape == IDS.shape


def test_features_beside_which_what_attention_was_made_of_lies_lead_past_it():
    model = Model(lambda self, x: self.second(self.wide(torch.cat([self.first.attention(x, x, x)[0], x], -1)))[:, 0])
    with pytest.raises(ValueError, match="something leads past that call at cat in 'Model'"):
        AttentionRollout(model).attribute(IDS, target=1)


@pytest.mark.parametrize("gated", [lambda _, y: y, lambda self, y: self.narrow(y)], ids=["the state", "a map of it"])
@pytest.mark.parametrize("method", [AttentionRollout, AttentionRelevance])
def test_a_gate_that_is_new_may_be_made_of_what_a_block_was_made_of(method, gated):
    model = Model(lambda self, x: self.second(gated(self, self.first(x)) * self.narrow(x).sigmoid())[:, 0])
    assert method(model).attribute(IDS, target=1).shape == IDS.shape


class Written(nn.Module):
    """A layer whose residual is written in one way or another; ``x + attention(x)``, then the same of a linear map."""

    def __init__(self, add):
        super().__init__()
        self.attention, self.feed_forward = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 16)
        self.add = add

    def forward(self, x):
        return self.add(x, lambda y: self.attention(y, y, y)[0], self.feed_forward)


def in_place(x, attend, feed):
    x = x.clone()
    x += attend(x)
    return x.add_(feed(x))


RESIDUALS = {
    "added": lambda x, attend, feed: (y := x + attend(x)) + feed(y),
    "in place": in_place,
    "beside, at last": lambda x, attend, feed: (x + attend(x)) + feed(x),
    "beside, first": lambda x, attend, feed: (attend(x) + feed(x)) + x,
    "beside, made first": lambda x, attend, feed: (lambda f: (attend(x) + x) + f)(feed(x)),
    "beside, with the residual": lambda x, attend, feed: (x + feed(x)) + attend(x),
    "beside, through one matrix": lambda x, attend, feed: x + nn.functional.linear(
        torch.cat([attend(x), feed(x)], -1), torch.eye(16).repeat(1, 2)),
    "beside, through one matrix, made first": lambda x, attend, feed: x + nn.functional.linear(
        torch.cat([feed(x).mT, attend(x).mT], 1).mT, torch.eye(16).repeat(1, 2)),
    "gated": lambda x, attend, feed: x + attend(x) * torch.sigmoid(feed(x)),
    "scaled": lambda x, attend, feed: torch.add(0.5 * x, attend(x), alpha=0.3),
    "a highway": lambda x, attend, feed: torch.lerp(x, attend(x), torch.sigmoid(feed(x))),
    "post-norm": lambda x, attend, feed: nn.functional.layer_norm(x + attend(x), (16,)),
    "of flat rows": lambda x, attend, feed: (x.flatten(0, 1) + attend(x).flatten(0, 1)).view(x.shape),
    "none": lambda x, attend, feed: attend(x),
}  # fmt: skip


@pytest.mark.parametrize("add", RESIDUALS.values(), ids=RESIDUALS)
def test_a_residual_is_known_however_it_is_written(add):
    model = Model(lambda self, x: self.third(self.second(self.first(x)))[:, 0])
    model.first, model.second, model.third = (Written(add).eval() for _ in range(3))
    scores = AttentionRollout(model).attribute(IDS, target=1)
    close(scores.sum(1), torch.ones(2))


def scattered(words, picture):
    is_picture = torch.zeros(*words.shape[:2], 1, dtype=torch.bool)
    is_picture[:, 1:3] = True
    return words.masked_scatter(is_picture, picture)


def set_by_rows(words, picture):
    words = words.clone()
    words[:, 1:3] = picture
    return words


@pytest.mark.parametrize("put", [scattered, set_by_rows])
def test_words_are_scored_with_a_picture_among_them_and_the_picture_is_refused(put):
    model, picture = Model(), torch.randn(2, 16, 2, 4)
    patches = nn.Conv2d(16, 16, 2, 2)

    def read(ids, picture):
        words = model.embedding(ids)
        return model.classes(model.second(put(words, model.first(patches(picture).flatten(2).mT)))[:, 0])

    scores = AttentionRollout(read).attribute(IDS, target=1, additional_forward_args=(picture,))
    close(scores.sum(1), torch.ones(2))
    assert (scores > 0).all()
    with pytest.raises(ValueError, match=r"inputs\[1\].* within another sequence.*additional_forward_args"):
        AttentionRollout(read).attribute((IDS, picture), target=1)


@pytest.mark.parametrize("method", [*COMPOSING, AttentionNorm, ValueZeroing])
def test_layers_behind_the_one_that_is_read_have_no_part(method):
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SIZES | {"num_hidden_layers": 3})).eval()

    def whole(ids):
        return model(ids, output_hidden_states=True).hidden_states[2][:, 0]

    expected, layers = method(whole), model.encoder.layer
    found = expected.attribute(IDS, target=3)
    model.encoder.layer = layers[:2]
    close(found, method(lambda ids: model(ids).last_hidden_state[:, 0]).attribute(IDS, target=3))
    assert len(expected.report.unused) == 1


def rows_read(method, model, target, position):
    explained = method(model)
    close(explained.attribute(IDS, target=target), method(model).attribute(IDS, target=target, position=position))
    return explained.report.row


@pytest.mark.parametrize("method", [AttentionNorm, AttentionRelevance, AttentionRollout])
def test_the_row_that_target_or_head_reads_is_explained(method):
    torch.manual_seed(0)
    config = transformers.BertConfig(num_labels=3, **SIZES)
    tokens = transformers.BertForTokenClassification(config).eval()
    assert rows_read(method, tokens, (3, 1), 3) == "read"
    assert rows_read(method, transformers.BertForSequenceClassification(config).eval(), 1, 0) == "read"
    assert rows_read(method, Model(lambda self, x: self.first(x).mean(1)), 1, "mean") == "read"
    assert rows_read(method, Model(lambda self, x: self.first(x)[range(2), [2, 4]]), 1, [2, 4]) == "read"


@pytest.mark.parametrize("apart", [False, True], ids=["put before at once", "one after the other"])
def test_of_two_class_tokens_the_one_that_is_read_is_explained(apart):
    torch.manual_seed(0)
    layer, both = Layer().eval(), torch.randn(1, 2, 16).expand(2, -1, -1)
    before = (lambda x: torch.cat([both[:, :1], torch.cat([both[:, 1:], x], 1)], 1)) if apart else (
        lambda x: torch.cat([both, x], 1)
    )  # fmt: skip
    x = torch.randn(2, 4, 16)
    for row in (0, 1):
        method = AttentionNorm(lambda x, row=row: layer(before(x))[:, row])
        close(method.attribute(x, target=3), method.attribute(x, target=3, position=row))
    with pytest.raises(ValueError, match="which rows the output was read from is not known"):
        AttentionNorm(lambda x: layer(before(x))[:, :2].amax(1)).attribute(x, target=3)
    method = AttentionNorm(lambda x: layer(before(x)).mean(1))
    close(method.attribute(x, target=3), method.attribute(x, target=3, position="mean"))


@pytest.mark.parametrize("row", [0, 4])
def test_the_row_that_is_read_is_followed_to_a_last_layer_that_asks_for_it_alone(row):
    torch.manual_seed(0)
    first, last, x = Layer().eval(), nn.MultiheadAttention(16, 2, batch_first=True).eval(), torch.randn(2, 5, 16)

    def model(x):
        y = first(x)
        return last(y[:, row : row + 1], y, y, need_weights=False)[0][:, 0]

    maps = attention_maps(model, x)
    expected = (maps.summed_norms[0][:, row] + maps.summed_norms[1][:, 0]) / 2
    method = AttentionNorm(model)
    close(method.attribute(x, target=3).sum(-1), expected)
    assert method.report.row == "read"
    with pytest.raises(ValueError, match=r"different queries \(5, 1 of them\)"):
        method.attribute(x, target=3, position=0)
    close(AttentionNorm(model, aggregate=0).attribute(x, target=3).sum(-1), maps.summed_norms[0][:, row])


def test_an_output_with_a_row_for_every_position_keeps_the_convention_and_says_so():
    assert rows_read(AttentionNorm, Model(lambda self, x: self.first(x)), None, 0) == "convention"


@pytest.mark.parametrize("read", [lambda h: h.amax(1), lambda h: h[:, 0] + h[:, 1]])
def test_a_read_out_that_was_not_followed_is_an_error_that_lists_the_choices(read):
    model = Model(lambda self, x: read(self.first(x)))
    with pytest.raises(ValueError, match=r'which rows the output was read from is not known.*position=<row>.*"mean"'):
        AttentionNorm(model).attribute(IDS, target=1)
    assert AttentionNorm(model).attribute(IDS, target=1, position=2).shape == IDS.shape


def test_a_weighted_mean_is_explained_by_its_weights():
    weights = torch.tensor([1.0, 2, 3, 0, 0, 4])[:, None]
    method = AttentionNorm(Model(lambda self, x: (self.first(x) * weights.expand(2, 6, 1)).sum(1)))
    rows = method.attribute(IDS, target=1, position="all")
    close(method.attribute(IDS, target=1), torch.einsum("q,bqk->bk", weights[:, 0] / 10, rows))


class InAnotherOrder(nn.Module):
    """Queries in the order of each text's own longest vectors; keys where they are."""

    def __init__(self, read):
        super().__init__()
        self.attention, self.classes, self.read = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 3), read

    def forward(self, x):
        example, order = torch.arange(len(x))[:, None], x.norm(dim=-1).argsort(-1)
        queries = x[example, order]
        rows = queries + self.attention(queries, x, x)[0]
        return self.classes(self.read(rows, example, order.argsort(-1)))


READ_BY = {
    "a token's row": lambda rows, example, back: rows[example, back][:, 2],
    "its row, found": lambda rows, example, back: rows[example[:, 0], back[:, 2]],
    "one row a text": lambda rows, example, back: rows[example[:, 0], torch.tensor([1, 3])],
    "their mean": lambda rows, example, back: rows.mean(1),
}


@pytest.mark.parametrize("read", READ_BY.values(), ids=READ_BY)
def test_a_row_among_queries_whose_positions_are_not_known_is_asked_for(read):
    model = InAnotherOrder(read).eval()
    with pytest.raises(ValueError, match="which rows the output was read from is not known"):
        AttentionNorm(model).attribute(torch.randn(2, 6, 16), target=1)


class Unseen(nn.Module):
    """A first row that looks at all others, and that no row looks at: by a mask, or since it is none of the keys."""

    def __init__(self, masks=True):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.classes, self.masks = nn.Embedding(10, 16), nn.Linear(16, 3), masks
        self.attention = nn.ModuleList(nn.MultiheadAttention(16, 4, batch_first=True) for _ in range(2))
        self.eval()

    def forward(self, ids):
        x, mask = self.embedding(ids), torch.zeros(6, 6)
        mask[:, 0] = -torch.inf
        for attention in self.attention:
            keys = x if self.masks else x[:, 1:]
            x = x + attention(x, keys, keys, attn_mask=mask if self.masks else None)[0]
        return self.classes(x[:, 0])


@pytest.mark.parametrize("position", [None, 0])
def test_a_row_that_no_query_looks_at_is_explained_where_the_output_is_read_from_it(position):
    found, expected = AttentionNorm(Unseen()), AttentionNorm(Unseen(masks=False))
    close(found.attribute(IDS, position=position), expected.attribute(IDS, position=position))
    assert position == 0 or (found.report.row == expected.report.row == "read")
    weights = attention_maps(Unseen(), IDS).weights
    rollout = AttentionRollout(Unseen()).attribute(IDS, position=position)
    layers = [(of_layer.mean(1) + torch.eye(6)) / 2 for of_layer in weights]
    close(rollout, (layers[1] @ layers[0])[:, 0])


def test_a_mean_of_all_rows_is_explained_as_it_was_read_with_those_of_padding():
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()
    layer, x = nn.MultiheadAttention(16, 4, batch_first=True).eval(), torch.randn(2, 6, 16)

    def pooled(x):
        return layer(x, x, x, key_padding_mask=~mask)[0].mean(1)

    method = AttentionNorm(pooled)
    norms = attention_maps(layer, {"query": x, "key": x, "value": x, "key_padding_mask": ~mask}).summed_norms[0]
    close(method.attribute(x).sum(-1), norms.mean(1))
    assert method.report.row == "read"


def test_a_method_that_runs_once_refuses_a_row_that_is_known_too_late_to_be_read():
    """Its gradients are of several outputs in one pass."""
    with pytest.raises(ValueError, match="AttentionRelevance: an attention call hides tokens that are no padding"):
        AttentionRelevance(Unseen()).attribute_each(IDS, targets=[0, 1])
    assert AttentionRelevance(Unseen()).attribute(IDS, target=0).shape == IDS.shape
