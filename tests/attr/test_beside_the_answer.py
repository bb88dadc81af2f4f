"""What the answer does not rest on refuses nothing."""

import pytest
import torch
from torch import nn

import captum_norm

close = torch.testing.assert_close


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


class TwoTexts(nn.Module):
    """Two texts, each read by an encoder of its own, put together in what a third one attends to."""

    def __init__(self, together):
        super().__init__()
        torch.manual_seed(0)
        self.together = together
        self.embed = nn.Embedding(9, 8)
        layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(3)]
        self.first, self.second, self.third = layers
        self.reads = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, first, second, third):
        memory = self.together(self.first(self.embed(first)), self.second(self.embed(second)))
        x = self.third(self.embed(third))
        return (x + self.reads(x, memory, memory)[0])[:, 0]


TOGETHER = {"one behind the other": lambda one, other: torch.cat([one, other], 1), "added up": torch.add}


@pytest.mark.parametrize("name", ["AttentionNorm", "AttentionWeights"])
@pytest.mark.parametrize("together", TOGETHER)
def test_an_input_that_is_read_in_another_ones_rows_is_not_scored_by_its_own_encoder(name, together):
    """Scores of the two would be of different calls, on different scales."""
    texts = tuple(torch.randint(1, 9, (1, length)) for length in (3, 3, 4))
    method = getattr(captum_norm, name)(TwoTexts(TOGETHER[together]).eval())
    with pytest.raises(ValueError, match=r"inputs\[1\] is put together with other inputs before .* 'reads' reads it"):
        method.attribute(texts, target=0)
    within = method.attribute(texts, target=0, kind="self")
    assert [scores.shape[1] for scores in within] == [3, 3, 4]
    followed = captum_norm.DecompX(method.forward_func).attribute(texts, target=0)
    assert [scores.shape[1] for scores in followed] == [3, 3, 4]


class WordsAndPicture(nn.Module):
    """Words that attend to each other, and then to themselves and a picture in one memory."""

    def __init__(self, write, first=True):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.pixels, self.write, self.first = nn.Embedding(9, 8), nn.Linear(4, 8), write, first
        self.words, self.both = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))

    def forward(self, ids, picture):
        words, seen = self.embed(ids), self.pixels(picture)
        if self.first:
            words = words + self.words(words, words, words)[0]
        memory = self.write(words, seen)
        return (words + self.both(words, memory, memory)[0])[:, 0]


def into_a_buffer(one, other):
    memory = one.new_zeros(len(one), one.shape[1] + other.shape[1], one.shape[2])
    memory[:, : one.shape[1]] = one
    memory[:, one.shape[1] :] = other
    return memory


PUT_TOGETHER = {
    "words first": lambda words, seen: torch.cat([words, seen], 1),
    "the picture first": lambda words, seen: torch.cat([seen, words], 1),
    "into a buffer": into_a_buffer,
    "into a buffer, the picture first": lambda words, seen: into_a_buffer(seen, words),
}
WORDS, PICTURE = torch.tensor([[1, 5, 2], [4, 3, 8]]), torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["AttentionNorm", "AttentionRollout", "ALTI"])
@pytest.mark.parametrize("write", sorted({*PUT_TOGETHER} - {"into a buffer"}))  # that one leads past the first call
def test_an_input_whose_rows_are_keys_among_another_ones_is_not_scored_without_them(name, write):
    """Its own calls alone would answer, and what the joint one reads of it be left out."""
    model = WordsAndPicture(PUT_TOGETHER[write]).eval()
    with pytest.raises(ValueError, match=r"inputs\[.\] is put together with other inputs before .* 'both' reads it"):
        getattr(captum_norm, name)(model).attribute((WORDS, PICTURE), target=0)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("write", PUT_TOGETHER)
def test_shares_of_two_inputs_in_one_memory_are_each_ones_own(write, first):
    """Each has the share that it has where it is asked for alone; the value biases here are zeros."""
    model = WordsAndPicture(PUT_TOGETHER[write], first).double().eval()
    picture = PICTURE.double()
    words, seen = captum_norm.DecompX(model).attribute((WORDS, picture), target=0)
    words_alone = captum_norm.DecompX(model).attribute(WORDS, 0, (picture,))
    seen_alone = captum_norm.DecompX(lambda picture, ids: model(ids, picture)).attribute(picture, 0, (WORDS,))
    torch.testing.assert_close(words, words_alone)
    torch.testing.assert_close(seen, seen_alone)
    assert bool((words != 0).all())


class LearnedRowsByThemselves(nn.Module):
    """Rows that are learned stand before a text's, and ask by themselves in a call of their own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.learned = nn.Embedding(9, 8), nn.Parameter(torch.randn(1, 2, 8))
        self.both, self.reads = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))

    def forward(self, memory, ids):
        memory, x = self.embed(memory), torch.cat([self.learned.expand(len(ids), -1, -1), self.embed(ids)], 1)
        x = x + self.both(x, x, x)[0]
        return torch.cat([part + self.reads(part, memory, memory)[0] for part in (x[:, :2], x[:, 2:])], 1)[:, -1]


@pytest.mark.parametrize("position", [1, "all"])
@pytest.mark.parametrize("aggregate", [0, -1])
def test_a_position_of_a_text_is_no_row_of_a_call_that_learned_rows_make_by_themselves(aggregate, position):
    texts = torch.randint(1, 9, (2, 5)), torch.randint(1, 9, (2, 4))
    method = captum_norm.AttentionNorm(LearnedRowsByThemselves().eval(), aggregate=aggregate)
    with pytest.raises(ValueError, match="attention calls of one sequence have different queries"):
        method.attribute(texts, target=0, position=position)


class Rolled(nn.Module):
    """Two layers, the second of which takes the positions in another order."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(9, 8)
        self.first, self.second = (nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in "ab")

    def forward(self, ids):
        return self.second(self.first(self.embed(ids)).roll(1, 1))


@pytest.mark.parametrize("aggregate", [0, 1, -1])
def test_positions_of_one_call_are_counted_in_its_own_queries(aggregate):
    """Another call of the sequence may take them in another order; what is not known in time says how to have it."""
    ids, model = torch.tensor([[1, 2, 3, 4]]), Rolled().eval()
    maps = captum_norm.attention_maps(model, ids)
    rows, keys = maps.summed_norms[aggregate][0], maps.keys[aggregate].index
    expected = torch.empty(4, 4)
    expected[keys[:, None], keys] = rows  # queries are the keys, in their order
    method = captum_norm.AttentionNorm(model, aggregate=aggregate)
    close(method.attribute(ids, target=(0, 0), position="all")[0], expected)
    for position in (1, -1):
        if aggregate == 0:
            close(method.attribute(ids, target=(0, 0), position=position)[0], expected[position])
        else:
            with pytest.raises(ValueError, match=r'known only after the first attention calls: .* Give position="all"'):
                method.attribute(ids, target=(0, 0), position=position)


class LearnedRowsApart(LearnedRowsByThemselves):
    """The learned rows attend to a text and themselves alone, and so do the text's: one sequence, two calls."""

    def forward(self, ids):
        x = torch.cat([self.learned.expand(len(ids), -1, -1), self.embed(ids)], 1)
        x = torch.cat([part + self.reads(part, x, x)[0] for part in (x[:, :2], x[:, 2:])], 1)
        return (x + self.both(x, x, x)[0])[:, -1]


def test_a_position_is_none_of_a_call_of_the_text_s_sequence_that_has_learned_rows_alone():
    ids, model = torch.randint(1, 9, (2, 4)), LearnedRowsApart().eval()
    learned, text = (captum_norm.AttentionWeights(model, aggregate=n) for n in (0, 1))
    for position in (1, "all"):
        with pytest.raises(ValueError, match="attention calls of one sequence have different queries"):
            learned.attribute(ids, target=0, position=position)
    rows = captum_norm.attention_maps(model, ids).weights[1].mean(1)[..., 2:]
    close(text.attribute(ids, target=0, position="all"), rows)
