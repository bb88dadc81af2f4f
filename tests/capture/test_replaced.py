"""A row in which something else stands than what the layer before left is not composed as if it held its token."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from captum_norm import ALTI, AttentionFlow, AttentionNorm, AttentionRelevance, AttentionRollout, DecompX
from captum_norm.capture import recording

close = torch.testing.assert_close
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0]])
COMPOSING = (
    AttentionRollout, AttentionFlow, AttentionRelevance, lambda model: AttentionNorm(model, aggregate="rollout"),
)  # fmt: skip
KEPT = (torch.arange(6) != 3)[:, None]
OTHER = torch.linspace(-1, 1, 16)


class Layer(nn.Module):
    """With a memory of its own, its keys are one more than the state's rows, and the same one in no other layer."""

    def __init__(self, memory):
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(16, 4, batch_first=True, add_bias_kv=memory), nn.LayerNorm(16)
        self.feed_forward = nn.Linear(16, 16)

    def forward(self, x, padding):
        x = self.norm(x + self.attention(x, x, x, key_padding_mask=padding)[0])
        return x + self.feed_forward(x)


class Model(nn.Module):
    """Two layers, and between them what the caller does to the state (batch, position, 16), which may begin with a
    class token."""

    def __init__(self, between, class_token=False, memory=False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.first, self.second = nn.Embedding(10, 16), Layer(memory), Layer(memory)
        self.class_tokens, self.gate = nn.Parameter(torch.randn(2, 1, 16)), nn.Linear(16, 1)
        self.classes, self.between, self.class_token = nn.Linear(16, 3), between, class_token
        self.eval()

    def forward(self, ids):
        x, padding = self.embedding(ids), ids == 0
        if self.class_token:
            x, padding = torch.cat([self.class_tokens[:1].expand(2, -1, -1), x], 1), F.pad(padding, (1, 0))
        x = self.between(self, self.first(x, padding), ~padding[..., None])
        return self.classes(self.second(x, padding)[:, 0])


def overwritten(write):
    """The state after a write into a copy of it."""

    def between(_, x, __):
        x = x.clone()
        write(x)
        return x

    return between


IN_A_ROW = {
    "setitem": overwritten(lambda x: x.__setitem__((slice(None), 3), OTHER)),
    "where": lambda _, x, __: torch.where(KEPT, x, OTHER),
    "masked_fill": lambda _, x, __: x.masked_fill(~KEPT, 1.0),
    "mul": lambda _, x, __: x * KEPT + OTHER * ~KEPT,
    "mul_": overwritten(lambda x: x[:, 3].mul_(0)),
    "lerp": lambda _, x, __: x.lerp(OTHER.expand_as(x), 1 - KEPT.float()),
    "einsum": lambda _, x, __: torch.einsum("bnd,n->bnd", x, KEPT[:, 0].float()),
}


@pytest.mark.parametrize("method", COMPOSING)
@pytest.mark.parametrize("write", IN_A_ROW)
def test_a_row_that_is_overwritten_between_layers_is_refused_by_name_with_ways_out_that_work(write, method):
    model = Model(IN_A_ROW[write])
    message = rf"in position 3 of example 0 the keys of 'second\.attention'.*put in its place by {write} in 'Model'"
    with pytest.raises(ValueError, match=f"{message}.*aggregate=<number>.*DecompX"):
        method(model).attribute(IDS, target=1)
    assert AttentionNorm(model, aggregate=1).attribute(IDS, target=1).shape == IDS.shape
    assert DecompX(model).attribute(IDS, target=1).shape == IDS.shape


def test_what_is_overwritten_in_one_example_alone_is_refused_with_its_number():
    kept = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1]])[..., None]
    with pytest.raises(ValueError, match="in position 2 of example 1"):
        AttentionRollout(Model(lambda _, x, __: x * kept)).attribute(IDS, target=1)


ANOTHER_CLASS_TOKEN = {
    "cat": lambda self, x, _: torch.cat([self.class_tokens[1:].expand(2, -1, -1), x[:, 1:]], 1),
    "pad": lambda _, x, __: F.pad(x[:, 1:], (0, 0, 1, 0)),
    "setitem": overwritten(lambda x: x.__setitem__((slice(None), 0), OTHER)),
    "where": lambda self, x, _: torch.where((torch.arange(7) == 0)[:, None], self.class_tokens[1], x),
}


@pytest.mark.parametrize("method", COMPOSING)
@pytest.mark.parametrize("put", ANOTHER_CLASS_TOKEN)
def test_a_class_token_that_is_another_one_in_each_layer_is_no_row_of_the_layer_before(put, method):
    message = f"in a row that is no input .*'second.attention'.*put in its place by {put} in 'Model'"
    with pytest.raises(ValueError, match=message):
        method(Model(ANOTHER_CLASS_TOKEN[put], class_token=True)).attribute(IDS, target=1)


@pytest.mark.parametrize("method", COMPOSING)
def test_a_class_token_that_is_made_of_the_other_rows_between_layers_is_no_row_of_the_layer_before(method):
    model = Model(lambda _, x, __: torch.cat([x.mean(1, keepdim=True), x[:, 1:]], 1), class_token=True)
    with pytest.raises(ValueError, match=r"a row that is no input.*in its place by cat in 'Model'"):
        method(model).attribute(IDS, target=1)


AS_IT_WAS = {
    "padding times zero": lambda _, x, real: x * real,
    "padding times zero in place": overwritten(lambda x: x.mul_((IDS != 0)[..., None])),
    "padding filled": lambda _, x, real: x.masked_fill(~real, 0.0),
    "padding chosen": lambda _, x, real: torch.where(real, x, OTHER),
    "padding written": overwritten(lambda x: x.__setitem__(IDS == 0, 0.0)),
    "a branch of some rows": lambda _, x, __: x + (0 * x) * KEPT,
    "experts of some rows each": lambda self, x, real: sum(
        x * ((self.gate(x) > 0) == chosen).float() * real for chosen in (True, False)
    ),
    "features times zero and back": lambda _, x, __: x * (torch.arange(16) < 3) + x * (torch.arange(16) >= 3),
    "a constant for all rows": lambda _, x, __: x * 1.0,
}


@pytest.mark.parametrize("method", COMPOSING)
@pytest.mark.parametrize("between", AS_IT_WAS)
def test_padding_and_branches_may_lose_rows(between, method):
    found = method(Model(AS_IT_WAS[between])).attribute(IDS, target=1)
    close(found, method(Model(lambda _, x, __: x)).attribute(IDS, target=1))


@pytest.mark.parametrize("between", ["padding times zero", "padding chosen"])
def test_methods_that_take_in_the_block_let_padding_lose_its_rows(between):
    found = ALTI(Model(AS_IT_WAS[between])).attribute(IDS, target=1)
    close(found, ALTI(Model(lambda _, x, __: x)).attribute(IDS, target=1))


def test_of_experts_that_hold_their_rows_apart_no_row_is_lost_but_what_none_of_them_takes():
    def between(self, x, _):
        return sum(x * (((self.gate(x) > 0) == chosen) & KEPT).float() for chosen in (True, False))

    with pytest.raises(ValueError, match="in position 3 of example 0"):
        AttentionRollout(Model(between)).attribute(IDS, target=1)


@pytest.mark.parametrize("class_token", [False, True])
def test_the_memory_of_each_layer_takes_no_ones_place(class_token):
    model = Model(lambda _, x, __: x, class_token=class_token, memory=True)
    assert AttentionRollout(model).attribute(IDS, target=1).shape == IDS.shape


@pytest.mark.parametrize("method", [AttentionRollout, AttentionRelevance])
def test_a_prompt_between_a_picture_and_words_takes_no_ones_place_where_nothing_attended_to_words_before(method):
    model = Model(None)

    def read(ids, picture):
        padding = torch.zeros(2, 11, dtype=torch.bool)
        picture, prompt = model.first(picture, padding[:, :4]), model.class_tokens[:1].expand(2, -1, -1)
        x = model.first(torch.cat([picture, prompt, model.embedding(ids)], 1), padding)
        return model.classes(model.second(x, padding)[:, -1])

    picture = torch.randn(2, 4, 16)
    assert method(read).attribute(IDS, target=1, additional_forward_args=(picture,)).shape == IDS.shape


def test_a_result_that_is_written_into_memory_of_the_models_stays_what_it_is():
    def between(_, x, __):
        torch.lerp(x, OTHER.expand_as(x), 1 - KEPT.float(), out=(memory := torch.empty_like(x)))
        return memory

    model = Model(between)
    with torch.no_grad():
        expected = model(IDS)
        with recording(chain=True, sources=(IDS,)) as recorded:
            close(model(IDS), expected)
    assert [row for replaced in recorded[1].fed.replaced for row in sorted(replaced.rows)] == [(0, 3), (1, 3)]
