"""What mixes positions beside attention is named, and what treats them alike is not."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from captum_norm.capture import recording

LENGTH, MODEL = 6, 16
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


class Layer(nn.Module):
    """A pre-norm layer whose feed-forward part begins with ``between``."""

    def __init__(self, between):
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(MODEL), nn.LayerNorm(MODEL)
        self.attention = nn.MultiheadAttention(MODEL, 4, batch_first=True)
        self.feed_forward, self.between = nn.Linear(MODEL, MODEL), between

    def forward(self, x):
        y = self.norm(x)
        x = x + self.attention(y, y, y)[0]
        return x + self.feed_forward(self.between(self.norm2(x)))


def two_layers(between):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, MODEL), Layer(between), Layer(between)).eval()


def mixers(between):
    """What mixed positions on the way to the second call."""
    model = two_layers(between)
    with torch.no_grad(), recording(sources=(IDS,), model=model) as records:
        model(IDS)
    assert not records[0].mixers
    assert records[1].keys is not None
    assert records[1].keys.index.tolist() == list(range(LENGTH))
    return [(mixer.operation, mixer.module) for mixer in records[1].mixers]


def first_row_written(x):
    x = x.clone()
    x[:, 0] = x[:, 3]
    return x


tokens, gru = nn.Linear(LENGTH, LENGTH), nn.GRU(MODEL, MODEL, batch_first=True)
convolution = nn.Conv1d(MODEL, MODEL, 3, padding=1)
fixed = torch.randn(LENGTH, LENGTH)

MIXING = {
    "a convolution over neighbours": (lambda x: convolution(x.mT).mT, "conv1d"),
    "a recurrence": (lambda x: gru(x)[0], "gru"),
    "a token MLP": (lambda x: tokens(x.mT).mT, "linear"),
    "a fixed matrix over positions": (lambda x: fixed @ x, "matmul"),
    "a running sum": (lambda x: x.cumsum(1), "cumsum"),
    "pooling of neighbours": (lambda x: F.avg_pool1d(x.mT, 3, 1, 1).mT, "avg_pool1d"),
    "a Fourier transform": (lambda x: torch.fft.fft(x, dim=1).real, "fft_fft"),
    "rows put back at others": (lambda x: x.scatter(1, x.argsort(1), x) + x, "add"),
    "a roll, added to the stream": (lambda x: x.roll(3, 1), "add"),
    "the mean taken away": (lambda x: x - x.mean(1, keepdim=True), "sub"),
    "squeeze and excitation": (lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)), "mul"),
    "the first row added to all": (lambda x: x + x[:, :1], "add"),
    "a norm over positions": (lambda x: F.layer_norm(x, x.shape[1:]), "layer_norm"),
    "the norm of the whole batch": (lambda x: x / x.norm(), "div"),
    "the log-sum-exp of all positions": (lambda x: x + x.logsumexp(1, keepdim=True), "add"),
    "exponentials of all positions, summed": (lambda x: x / x.exp().sum(1, keepdim=True), "div"),
    "the log-sum-exp of scores": (lambda x: x + (x @ x.mT).logsumexp(-1, keepdim=True), "matmul"),
    "a row written over another": (first_row_written, "add"),
    "products of other rows": (lambda x: torch.einsum("bnd,bnd->bnd", x, x.flip(1)), "einsum"),
    "products of other rows by matmul": (lambda x: (x[..., None] @ x.flip(1)[..., None, :]).sum(-1), "matmul"),
    "products of other rows, added": (lambda x: torch.addcmul(x, x, x.flip(1)), "mul"),
    "scores of one key": (lambda x: (x[..., None, :] @ x.tanh()[..., None])[..., 0] * x, "matmul"),
    "linear attention": (lambda x: F.elu(x) @ (F.elu(x).mT @ x), "matmul"),
}


@pytest.mark.parametrize("what", MIXING)
def test_what_mixes_positions_between_calls_is_named(what):
    between, operation = MIXING[what]
    assert operation in [name for name, _ in mixers(between)]
    assert all(module.startswith("1") for _, module in mixers(between))


def routed(x):
    """Experts write the rows that they were given into zeros."""
    flat, out = x.reshape(-1, MODEL), torch.zeros(x.shape[0] * LENGTH, MODEL)
    for rows in (torch.tensor([0, 2, 5]), torch.tensor([1, 7])):
        out.index_add_(0, rows, flat[rows] * 2)
    return out.view_as(x)


ALIKE = {
    "nothing": lambda x: x,
    "a norm written out by hand": lambda x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True),
    "divided by its length": lambda x: x / torch.linalg.norm(x, ord=2, dim=-1, keepdim=True),
    "a gated activation": lambda x: F.silu(x) * x,
    "a convolution of width one": lambda x: F.conv1d(x.mT, torch.ones(MODEL, MODEL, 1)).mT,
    "positions first and back": lambda x: (x.transpose(0, 1) * 2).transpose(0, 1),
    "features beside features": lambda x: torch.cat([x, x * 2], -1)[..., :MODEL],
    "a weight on the left": lambda x: (torch.ones(MODEL, MODEL) @ x.mT).mT,
    "the largest features alone": lambda x: x.masked_fill(x < x.topk(3, -1).values[..., -1:], 0),
    "a softmax over features": lambda x: x.softmax(-1) * x,
    "the log-sum-exp of features": lambda x: x - x.logsumexp(-1, keepdim=True),
    "exponentials of features, summed": lambda x: x / x.exp().sum(-1, keepdim=True),
    "the smaller of two": lambda x: torch.min(x, 2 * x) + torch.max(x, torch.zeros(())),
    "the largest features put back": lambda x: x * torch.zeros_like(x).scatter(-1, *reversed(x.topk(3, -1))).sigmoid(),
    "and in place": lambda x: x * torch.full_like(x, -9).scatter_(-1, *reversed(x.topk(3, -1))).sigmoid(),
    "a feature taken out": lambda x: x + x.scatter(-1, x.argmax(-1, keepdim=True), 0.0),
    "the shape of something mixed": lambda x: x.view_as(x.roll(1, 1)),
    "a product row by row": lambda x: torch.einsum("bnd,bnd->bnd", x, x.tanh()),
    "squares summed by einsum": lambda x: x * torch.rsqrt(torch.einsum("...d,...d->...", x, x)[..., None]),
    "squares summed by matmul": lambda x: x * torch.rsqrt((x[..., None, :] @ x[..., None])[..., 0]),
    "squares summed by vecdot": lambda x: x / torch.linalg.vecdot(x, x)[..., None],
    "a matrix of each row": lambda x: (x[..., None] * x[..., None, :] @ x[..., None])[..., 0],
    "functions under other names": lambda x: x * torch.special.ndtr(x) + torch.special.erfc(x) + F.threshold(x, 0, 0),
    "products that are added": lambda x: torch.addcmul(x, x, x.tanh()) + torch.addcdiv(x, x, 1 + x.abs()),
    "experts": routed,
    "a table of positions": lambda x: x + torch.arange(float(LENGTH))[:, None],
}


@pytest.mark.parametrize("what", ALIKE)
def test_what_treats_positions_alike_is_no_mixer(what):
    assert mixers(ALIKE[what]) == []


def test_what_constants_do_to_each_other_mixes_no_positions_of_the_input():
    """A tower beside the input, such as a picture's beside a text, has its own table of positions."""
    torch.manual_seed(0)
    picture, table = nn.Conv2d(3, MODEL, 2, 2), nn.Embedding(5, MODEL)
    towards, layer = nn.Embedding(10, MODEL), Layer(lambda x: x)

    def model(ids):
        cells = picture(torch.ones(2, 3, 4, 4)).flatten(2).mT
        cells = torch.cat([torch.zeros(2, 1, MODEL), cells], 1) + table(torch.arange(5)[None])
        return layer(torch.cat([layer(cells), towards(ids)], 1))

    with torch.no_grad(), recording(sources=(IDS,)) as records:
        model(IDS)
    assert records[1].mixers == ()


def test_a_buffer_that_is_written_and_read_again_and_again_is_followed_in_one_go():
    """Each write was once gone through twice for every write after it."""

    def rewritten(x):
        x = x.clone()
        for _ in range(8):
            for row in range(LENGTH):
                x[:, row] = x[:, row] * 2
        return x

    assert mixers(rewritten) == []


def test_rows_taken_out_and_put_back_are_where_they_were():
    chosen = torch.tensor([True, False, False, True, True, False]).expand(2, -1)

    def put_back(x, into=chosen):
        return x.masked_scatter(into.unsqueeze(-1), torch.tanh(x[chosen]))

    assert mixers(put_back) == []
    assert [operation for operation, _ in mixers(lambda x: put_back(x, chosen.flip(1)))] == ["masked_scatter"]


def test_sequences_that_are_no_input_are_one_when_they_are_joined():
    project, picture = nn.Linear(MODEL, MODEL), torch.randn(1, 4, MODEL)

    def in_halves(x):
        halves = [F.scaled_dot_product_attention(half, half, half) for half in x.unsqueeze(1).split(2, 2)]
        return x + project(torch.cat(halves, 2).squeeze(1))

    with torch.no_grad(), recording(sources=(IDS,)) as records:
        in_halves(in_halves(picture))
    assert [record.keys is None for record in records] == [False] * 4
    assert records[2].keys.source == records[3].keys.source not in (records[0].keys.source, records[1].keys.source)
    assert records[3].keys.index.tolist() == [2, 3]


def test_streams_beside_each_other_stay_where_they_are_behind_a_convolution():
    embedding, convolution, query = nn.Embedding(10, MODEL), nn.Conv1d(MODEL, MODEL, 3, padding=1), torch.randn(MODEL)
    with torch.no_grad(), recording(sources=(IDS,)) as records:
        x = embedding(IDS)
        streams = torch.cat([x.unsqueeze(2), convolution(x.mT).mT.unsqueeze(2)], 2)
        (streams @ query).softmax(-1).unsqueeze(2) @ streams
    assert records == []  # a softmax over streams of one position is no attention


def test_of_what_a_recurrence_written_out_gives_it_is_not_known_which_position_it_is():
    def recurrence(x):
        state, states = torch.zeros_like(x[:, 0]), []
        for one in x.unbind(1):
            state = 0.5 * state + one
            states.append(state)
        return torch.stack(states, 1)

    model = nn.Sequential(nn.Embedding(10, MODEL), nn.TransformerEncoderLayer(MODEL, 4, 16, batch_first=True)).eval()
    with torch.no_grad(), recording(sources=(IDS,), model=model) as records:
        model[1](recurrence(model[0](IDS)))
    assert records[0].keys is None
    assert records[0].call.kind == "self"


def previous(x):
    return F.pad(x, (0, 0, 1, 0))[:, :-1]


def following(x):
    return F.pad(x, (0, 0, 0, 1))[:, 1:]


IN_ORDER = {
    "itself last": lambda x: previous(x) + x,
    "two slices of a padded one": lambda x: F.pad(x, (0, 0, 1, 0))[:, :-1] + F.pad(x, (0, 0, 1, 0))[:, 1:],
    "neighbours first": lambda x: previous(x) + following(x) + x,
    "chosen": lambda x: torch.where(x > 0, following(x), x),
    "a product by einsum": lambda x: torch.einsum("bnd,bnd->bnd", previous(x), x),
    "products of features": lambda x: (previous(x)[..., None] @ x[..., None, :]).sum(-1),
    "an operation of no known kind": lambda x: torch.dist(previous(x), x) * torch.hypot(previous(x), x),
    "of two heads": lambda x: (previous(x).unflatten(-1, (2, -1)) + x.unflatten(-1, (2, -1))).flatten(2),
    "rows first": lambda x: (previous(x).transpose(0, 1) + x.transpose(0, 1)).transpose(0, 1),
}


def records_behind(between):
    embedding, layer, _ = two_layers(nn.Identity())
    with torch.no_grad(), recording(sources=(IDS,)) as records:
        layer(between(embedding(IDS)))
    return records


@pytest.mark.parametrize("what", IN_ORDER)
def test_a_sum_of_neighbours_counts_as_the_one_that_is_in_order(what):
    """In whichever order they are written: the shifted one would name every key one too low."""
    (record,) = records_behind(IN_ORDER[what])
    assert record.keys.index.tolist() == record.queries.index.tolist() == list(range(LENGTH))
    assert [mixer.operation for mixer in record.mixers]


NOBODYS = {
    "two neighbours": lambda x: previous(x) + following(x),
    "neighbours of rows in another order": lambda x: x.flip(1) + x.flip(1).roll(1, 1),
    "pairs": lambda x: x[:, 1:] + x[:, :-1],
    "a product of neighbours by einsum": lambda x: torch.einsum("bnd,bnd->bnd", previous(x), following(x)),
    "one position and a maximum, each time": lambda x: torch.stack([x[:, 0] + t * x.amax(1) for t in range(6)], 1),
    "rows of others, into shifted ones": lambda x: torch.where(x > 0, previous(x), following(x)),
}


@pytest.mark.parametrize("what", NOBODYS)
def test_of_a_sum_of_others_alone_nobody_knows_which_position_it_is(what):
    (record,) = records_behind(NOBODYS[what])
    assert record.keys is None


def test_queries_in_another_order_keep_it_where_they_meet_keys_in_theirs():
    embedding, layer, _ = two_layers(nn.Identity())
    with torch.no_grad(), recording(sources=(IDS,)) as records:
        x = embedding(IDS)
        layer.attention(x.flip(1), x, x)
    assert records[0].queries.index.tolist() == [5, 4, 3, 2, 1, 0]
    assert records[0].keys.index.tolist() == [0, 1, 2, 3, 4, 5]


class AddedUp(nn.Module):
    """Two states stacked, and the last of their sums or products so far."""

    def __init__(self, added_up, others, order=1):
        super().__init__()
        self.added_up, self.others, self.order = added_up, others, order

    def forward(self, x):
        return self.added_up(torch.stack([x, self.others(x)][:: self.order]), 0)[1]


@pytest.mark.parametrize("added_up", [torch.cumsum, torch.cumprod])
def test_the_last_of_several_states_added_up_lies_nowhere_where_their_rows_do_not_match(added_up):
    """It is no more the last one's rows than the first one's; where they match it lies where both do."""
    assert mixers(AddedUp(added_up, lambda x: 2 * x)) == []
    for others in (lambda x: x.roll(1, 1), lambda x: F.pad(x[:, 1:], (0, 0, 0, 1))):
        embedding, layer, _ = two_layers(None)
        layer.between = nn.Identity()
        model = nn.Sequential(embedding, AddedUp(added_up, others), layer)
        with torch.no_grad(), recording(sources=(IDS,), model=model) as records:
            model(IDS)
        assert records[0].keys is None


@pytest.mark.parametrize("order", [1, -1])
def test_behind_attention_rows_of_no_input_added_to_a_state_may_hold_others(order):
    embedding, first, second = two_layers(nn.Identity())
    nothing = AddedUp(torch.cumsum, lambda x: F.pad(x[:, :0], (0, 0, 0, LENGTH)), order)
    with torch.no_grad(), recording(sources=(IDS,)) as records:
        nn.Sequential(embedding, first, nothing, second)(IDS)
    assert records[1].keys is None
