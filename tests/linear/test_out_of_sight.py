"""What is computed out of sight is refused by name; gates are held fixed, in the first layer as in later ones."""

import warnings

import pytest
import torch
from torch import nn

from captum_norm.linear import Conventions, NotFrozenError, token_contributions

close = torch.testing.assert_close


def attended(x):
    return torch.softmax(x @ x.mT, -1) @ x


class OutOfSight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        with torch._C.DisableTorchFunction():
            return x * torch.sigmoid(x)


class Squared(OutOfSight):
    @staticmethod
    def backward(ctx, gradient):
        return gradient


@pytest.fixture(scope="module")
def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(_squared)


def _squared(x):
    return x * x


class Layer(nn.Module):
    def __init__(self, work):
        super().__init__()
        self.work = work

    def forward(self, x):
        return self.work(x)


class Model(nn.Module):
    def __init__(self, work):
        super().__init__()
        self.layer = Layer(work)

    def forward(self, x):
        return self.layer(attended(x)).sum((1, 2))


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda x: torch.vmap(lambda row: torch.softmax(row @ row.mT, -1) @ row)(x), "'layer'.*torch.vmap"),
        (lambda x: torch.from_numpy(x.detach().numpy() ** 2), "'numpy' in 'layer'.*out of sight"),
        (lambda x: torch.tensor(x.tolist()), "'tolist' in 'layer'.*out of sight"),
        (lambda x: OutOfSight.apply(x) + 1, "in 'layer' was computed out of sight"),
        (lambda x: Squared.apply(x) + 1, "in 'layer' was computed out of sight"),
    ],
    ids=["vmap", "numpy", "tolist", "a function", "a function with a backward pass"],
)
def test_what_is_computed_out_of_sight_is_refused_by_name(work, message, x):
    with pytest.raises(NotFrozenError, match=message):
        token_contributions(lambda: Model(work)(x), [x], Conventions())


@pytest.mark.parametrize("work", [lambda x: torch.vmap(attended)(x), lambda x: torch.from_numpy(x.numpy() ** 2)],
                         ids=["vmap", "numpy"])  # fmt: skip
def test_so_is_what_is_made_of_tokens_that_nothing_has_mixed(work, x):
    with pytest.raises(NotFrozenError, match="out of sight"):
        token_contributions(lambda: attended(work(x) + x).sum((1, 2)), [x], Conventions())


def test_so_is_what_is_scripted(scripted, x):
    with pytest.raises(NotFrozenError, match="in 'layer' was computed out of sight, by TorchScript"):
        token_contributions(lambda: Model(lambda x: scripted(x) + 1)(x), [x], Conventions())


def test_packed_weights_are_named_by_their_format(x):
    class Int8Params(nn.Parameter):
        pass

    class Packed(Layer):
        weight = Int8Params(torch.ones(1))

    model = Model(None)
    model.layer = Packed(lambda x: OutOfSight.apply(x) + 1)
    with pytest.raises(NotFrozenError, match=r"in 'layer' \(its weights are Int8Params\) was computed out of sight"):
        token_contributions(lambda: model(x), [x], Conventions())


@pytest.mark.parametrize("by", [lambda a, g: a * g, lambda a, g: torch.einsum("bqd,bqd->bqd", a, g), torch.mul])
def test_a_gate_made_of_tokens_is_held_fixed_as_one_made_of_mixed_states_is(by, x):
    shares = torch.softmax(x @ x.mT, -1)
    gate = torch.sigmoid(2 * x)
    expected = torch.einsum("bqd,bqk,bkd->bk", gate, shares, x)
    found = token_contributions(lambda: by(attended(x), torch.sigmoid(2 * x)).sum((1, 2)), [x], Conventions())
    close(found.tokens[0], expected)


def test_a_token_whose_vector_went_through_a_gate_keeps_its_share(x):
    vectors = torch.sigmoid(x) * x
    found = token_contributions(lambda: (attended(torch.sigmoid(x) * x)).sum((1, 2)), [x], Conventions())
    close(found.tokens[0], torch.einsum("bqk,bkd->bk", torch.softmax(vectors @ vectors.mT, -1), vectors))


def test_a_gate_made_of_all_tokens_is_held_fixed_and_what_comes_after_is_no_token_alone(x):
    bias, shares = torch.ones(x.shape[-1]), torch.softmax(x @ x.mT, -1)

    def model():
        gated = x * torch.sigmoid(x.mean(1, keepdim=True))
        return (torch.softmax((x @ x.mT).detach(), -1) @ (gated + bias)).sum((1, 2))

    found = token_contributions(model, [x], Conventions())
    close(found.tokens[0], torch.einsum("bqk,bkd->bk", shares, x * torch.sigmoid(x.mean(1, keepdim=True))))


def _through_strides(y):
    y.as_strided(y.size(), y.stride()).mul_(2)
    return y


def _row_by_row(y):
    for row in y.unbind(1):
        row.mul_(2)
    return y


def _masked_beside_a_sink(y):
    scores = (y @ y.mT).clone()
    scores.unsqueeze(0).masked_fill_(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return torch.cat([scores, scores.new_zeros(*scores.shape[:-1], 1)], -1).softmax(-1)[..., :-1] @ y


def _another(y):
    z = y * 1
    z.data = y
    return z


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (_through_strides, "it writes to memory that as_strided reads as well; take the entries by an index"),
        (_row_by_row, "held fixed"),
        (_masked_beside_a_sink, "it writes through a view into a tensor that is used further; write into a new one"),
        (_another, "it puts another tensor in the place of one; give that one on instead"),
        (lambda y: y + y.new_tensor(y), "its numbers go on as a constant; expand them instead"),
        (lambda y: y + y.sum().item(), "its numbers go on out of sight"),
        (lambda y: y * float(y.mean()), "its numbers go on out of sight"),
    ],
    ids=["strides", "rows", "sink", "data", "new", "item", "float"],
)
def test_what_is_written_or_read_past_the_linear_form_is_refused_by_name(function, reason, x):
    with pytest.raises(NotFrozenError, match=reason):
        token_contributions(lambda: function(attended(x)).sum((1, 2)), [x], Conventions())
