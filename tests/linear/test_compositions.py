"""Operations that are others in one have the shares of these: a gated linear unit is no gate as a whole."""

import pytest
import torch
from torch import Tensor, nn

from captum_norm import DecompX
from captum_norm.linear import NotFrozenError
from captum_norm.operations.compositions import written_out

close = torch.testing.assert_close
WEIGHT = torch.linspace(0, 1, 8)


def _in_place(h: Tensor, a: Tensor) -> Tensor:
    between = a.clone()
    between.lerp_(h, WEIGHT)
    return between


def _normed(a: Tensor, var: Tensor, mean: Tensor) -> Tensor:
    return (a - mean) * torch.rsqrt(var + 1e-5)


PAIRS = {
    "lerp": (lambda h, a: torch.lerp(a, h, WEIGHT), lambda h, a: a + WEIGHT * (h - a)),
    "lerp_": (_in_place, lambda h, a: a + WEIGHT * (h - a)),
    "addcmul": (lambda h, a: torch.addcmul(a, h, WEIGHT, value=2), lambda h, a: a + 2 * h * WEIGHT),
    "addcdiv": (lambda h, a: torch.addcdiv(a, h, 1 + WEIGHT), lambda h, a: a + h / (1 + WEIGHT)),
    "glu": (
        lambda h, a: nn.functional.glu(torch.cat([a, h], -1)),
        lambda h, a: a * h.sigmoid(),
    ),
    "glu along an axis": (
        lambda h, a: nn.functional.glu(torch.cat([a, h], -1).mT, dim=1).mT,
        lambda h, a: a * h.sigmoid(),
    ),
    "maximum": (lambda h, a: torch.maximum(a, h), lambda h, a: torch.where(a >= h, a, h)),
    "minimum": (lambda h, a: torch.minimum(a, h), lambda h, a: torch.where(a <= h, a, h)),
    "by keywords": (
        lambda h, a: nn.functional.glu(input=torch.cat([a, h], -1), dim=-1),
        lambda h, a: a * h.sigmoid(),
    ),
    "max of two": (lambda h, a: torch.max(a, other=h), lambda h, a: torch.where(a >= h, a, h)),
    "a rectifier": (lambda h, a: torch.maximum(a, torch.zeros(())), lambda h, a: a.relu()),
    "vecdot": (
        lambda h, a: a * torch.linalg.vecdot(h, a)[..., None],
        lambda h, a: a * (h * a).sum(-1, keepdim=True),
    ),
    "a norm by a power": (
        lambda h, a: a * (a.square().mean(-1, keepdim=True) + 1e-5).pow(-0.5),
        lambda h, a: a * (a.square().mean(-1, keepdim=True) + 1e-5).rsqrt(),
    ),
    "a norm by a root in place": (
        lambda h, a: a * (a.square().mean(-1, keepdim=True) + 1e-5).pow_(-0.5),
        lambda h, a: a / (a.square().mean(-1, keepdim=True) + 1e-5).sqrt(),
    ),
    "a norm by einsum": (
        lambda h, a: a * torch.rsqrt(torch.einsum("bnd,bnd->bn", a, a)[..., None] / 8 + 1e-5),
        lambda h, a: nn.functional.rms_norm(a, (8,), eps=1e-5),
    ),
    "nansum": (lambda h, a: torch.nansum(torch.stack([a, h]), 0), lambda h, a: a + h),
    "var_mean": (
        lambda h, a: _normed(a, *torch.var_mean(a, -1, keepdim=True, unbiased=False)),
        lambda h, a: nn.functional.layer_norm(a, (8,)),
    ),
    "std_mean": (
        lambda h, a: (lambda std, mean: (a - mean) / std)(*torch.std_mean(a, dim=-1, keepdim=True)),
        lambda h, a: (a - a.mean(-1, keepdim=True)) / a.std(-1, keepdim=True),
    ),
    "float_power": (lambda h, a: torch.float_power(a, 2).float(), lambda h, a: a**2),
    "complex": (lambda h, a: torch.view_as_real(torch.complex(a, h)).sum(-1), lambda h, a: a + h),
    "max along an axis": (
        lambda h, a: h + a.max(1, keepdim=True).values,
        lambda h, a: h + a.gather(1, a.argmax(1, keepdim=True)),
    ),
    "min along an axis": (lambda h, a: h + a.min(dim=1)[0][:, None], lambda h, a: h - (-a).amax(1, keepdim=True)),
    "amax as numpy says": (
        lambda h, a: h + torch.amax(a, axis=1, keepdims=True),
        lambda h, a: h + a.gather(1, a.argmax(1, keepdim=True)),
    ),
    "amin along two axes": (
        lambda h, a: h + a.amin((1, 2))[:, None, None],
        lambda h, a: h + a.flatten(1).gather(1, a.flatten(1).argmin(1, keepdim=True))[..., None],
    ),
    "the largest few": (
        lambda h, a: h + a.topk(2, 1).values.mean(1, keepdim=True),
        lambda h, a: h + a.gather(1, a.argsort(1, descending=True)[:, :2]).mean(1, keepdim=True),
    ),
    "the smallest few by keywords": (
        lambda h, a: h + torch.topk(a, k=2, dim=1, largest=False)[0].sum(1, keepdim=True),
        lambda h, a: h + a.gather(1, a.argsort(1)[:, :2]).sum(1, keepdim=True),
    ),
    "sort": (
        lambda h, a: h + a.sort(1)[0] * WEIGHT,
        lambda h, a: h + a.gather(1, a.argsort(1)) * WEIGHT,
    ),
    "sort downwards": (
        lambda h, a: h + torch.sort(a, stable=True, dim=-1, descending=True).values * WEIGHT,
        lambda h, a: h + a.take_along_dim(a.argsort(-1, descending=True), -1) * WEIGHT,
    ),
    "msort": (
        lambda h, a: h + a.transpose(0, 1).msort().transpose(0, 1) * WEIGHT,
        lambda h, a: h + a.gather(1, a.argsort(1)) * WEIGHT,
    ),
    "kthvalue": (
        lambda h, a: h + a.kthvalue(2, 1, keepdim=True)[0],
        lambda h, a: h + a.gather(1, a.argsort(1)[:, 1:2]),
    ),
    "median": (lambda h, a: h + a.median(1)[0][:, None], lambda h, a: h + a.gather(1, a.argsort(1)[:, 2:3])),
    "median of all": (
        lambda h, a: h + torch.stack([one.median() for one in a])[:, None, None],
        lambda h, a: h + a.flatten(1).gather(1, a.flatten(1).argsort(1)[:, 19:20])[..., None],
    ),
    "nanmedian": (
        lambda h, a: h + a.nanmedian(1, keepdim=True).values,
        lambda h, a: h + a.gather(1, a.argsort(1)[:, 2:3]),
    ),
    "mode": (  # of numbers that are all different: the smallest
        lambda h, a: h + a.mode(1, keepdim=True).values,
        lambda h, a: h + a.gather(1, a.argmin(1, keepdim=True)),
    ),
    "cummax": (lambda h, a: h + a.cummax(1)[0][:, -1:], lambda h, a: h + a.gather(1, a.argmax(1, keepdim=True))),
    "cummin": (
        lambda h, a: h + torch.cummin(a, dim=1).values[:, -1:],
        lambda h, a: h + a.gather(1, a.argmin(1, keepdim=True)),
    ),
    "aminmax": (
        lambda h, a: h + (lambda least, most: most - 2 * least)(*torch.aminmax(a, dim=1, keepdim=True)),
        lambda h, a: h + a.amax(1, keepdim=True) - 2 * a.amin(1, keepdim=True),
    ),
}


ACTIVATIONS = {
    "sine": (torch.sin, torch.sin),
    "rounding": (lambda x: (x * 64).round() / 64, lambda x: (x * 64).round() / 64),
    "exponential linear, by hand": (lambda x: torch.where(x > 0, x, torch.expm1(x)), nn.functional.elu),
    "logarithm of a sigmoid": (nn.functional.logsigmoid, lambda x: -nn.functional.softplus(-x)),
    "logarithm": (lambda x: x.abs().log1p() * x.sign(), lambda x: x.abs().log1p() * x.sign()),
}


class Model(nn.Module):
    def __init__(self, between) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between, self.embed, self.head = between, nn.Embedding(9, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        a = (h @ h.mT).softmax(-1) @ h
        x = self.between(h, a)
        return self.head(((x @ x.mT).softmax(-1) @ x)[:, 0])


@pytest.mark.parametrize("bias", ["token", "absdot"])
@pytest.mark.parametrize("name", PAIRS)
def test_an_operation_that_is_others_in_one_has_their_shares(name, bias):
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 1, 2]])
    one, others = (Model(between).eval().requires_grad_(False) for between in PAIRS[name])
    close(one(ids), others(ids))
    found = DecompX(one, bias=bias).attribute(ids, target=1)
    close(found, DecompX(others, bias=bias).attribute(ids, target=1))
    assert bool(found.abs().sum(1).gt(0).all())


@pytest.mark.parametrize(
    ("name", "function", "given"),
    [
        ("max", torch.max, (torch.randn(3, 4),)),
        ("max", torch.max, (torch.randn(3, 4), 1)),
        ("min", torch.min, (torch.randn(3, 4), 0, True)),
        ("amax", torch.amax, (torch.randn(3, 4, 2), (0, -1))),
        ("amin", torch.amin, (torch.randn(3, 4),)),
        ("var_mean", torch.var_mean, (torch.randn(3, 4), 1, False, True)),
        ("var_mean", torch.var_mean, (torch.randn(3, 4), False)),
        ("std_mean", torch.std_mean, (torch.randn(3, 4), (0, 1))),
        ("std_mean", torch.std_mean, (torch.randn(3, 4),)),
        ("aminmax", torch.aminmax, (torch.randn(3, 4),)),
        ("topk", torch.topk, (torch.randn(3, 4), 2)),
        ("topk", torch.topk, (torch.randn(3, 4), 2, 0, False)),
        ("sort", torch.sort, (torch.randn(3, 4), 0, True)),
        ("msort", torch.msort, (torch.randn(3, 4),)),
        ("kthvalue", torch.kthvalue, (torch.randn(3, 4), 2)),
        ("median", torch.median, (torch.randn(3, 4),)),
        ("median", torch.median, (torch.randn(3, 4), 0, True)),
        ("median", torch.median, (torch.randn(()),)),
        ("nanmedian", torch.nanmedian, (torch.tensor([[1.0, float("nan"), 3.0, 2.0]]), 1)),
        ("nanmedian", torch.nanmedian, (torch.tensor([[1.0, float("nan"), 3.0, 2.0]]),)),
        ("mode", torch.mode, (torch.randint(3, (4, 5)).float(),)),
        ("cummax", torch.cummax, (torch.randn(3, 4), 1)),
        ("cummin", torch.cummin, (torch.randn(3, 4), 0)),
        ("float_power", torch.float_power, (torch.randn(3, 4), 2)),
        ("glu", nn.functional.glu, (torch.randn(3, 4), 1)),
        ("vecdot", torch.linalg.vecdot, (torch.randn(3, 4), torch.randn(3, 4))),
        ("addcmul", torch.addcmul, (torch.randn(3), torch.randn(3), torch.randn(3))),
        ("addcdiv", torch.addcdiv, (torch.randn(3), torch.randn(3), torch.randn(3))),
        ("lerp", torch.lerp, (torch.randn(3), torch.randn(3), torch.rand(3))),
    ],
)
def test_what_is_written_out_is_the_operation(name, function, given):
    found, expected = written_out(name)(*given), function(*given)
    assert type(found) is type(expected)
    for one, other in zip(*([x] if isinstance(x, Tensor) else x for x in (found, expected)), strict=True):
        close(one, other)


@pytest.mark.parametrize("activation", ["ZO", "ReLU"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_function_through_the_origin_is_a_line_for_each_entry(name, activation):
    function, same = ACTIVATIONS[name]
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 1, 2]])
    found = DecompX(Model(lambda h, a: h + function(a)).eval(), activation=activation).attribute(ids, target=1)

    def line(a: Tensor) -> Tensor:
        return torch.where(a == 0, 0, same(a) / a).detach() * a

    if name != "exponential linear, by hand" or activation == "ZO":  # ReLU's line stands for the usual one
        close(found, DecompX(Model(lambda h, a: h + line(a)).eval()).attribute(ids, target=1))


COUNTED = {
    "to": lambda a: (a * 16).round().to(torch.int8).to(torch.float32) / 16,
    "int": lambda a: (a * 16).int() / 16,
    "moved": lambda a: (a * 16).long().flatten(1).view(a.shape).float(),
    "computed with": lambda a: ((a * 16).int() + 1) * 0.5,
}


@pytest.mark.parametrize("way", COUNTED)
def test_states_that_come_back_from_integers_are_refused_by_name(way):
    rounds = Model(lambda h, a: h + COUNTED[way](a)).eval()
    with pytest.raises(NotFrozenError, match="integers that hidden states were rounded to"):
        DecompX(rounds).attribute(torch.tensor([[1, 2, 3, 4, 5]]), target=1)


def test_states_in_few_digits_for_a_while_are_those_of_their_own_example():
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 1, 2]])
    coarse, plain = Model(lambda h, a: a.half().float()).eval(), Model(lambda h, a: a).eval()
    close(DecompX(coarse).attribute(ids, target=1), DecompX(plain).attribute(ids, target=1), atol=1e-2, rtol=1e-2)


def test_integers_that_only_choose_are_routing():
    chooses = Model(lambda h, a: h + a.gather(1, (a * 2).floor().clamp(0, 4).to(torch.long))).eval()
    DecompX(chooses).attribute(torch.tensor([[1, 2, 3, 4, 5]]), target=1)


def test_an_index_in_the_shape_of_states_is_a_constant():
    rows = torch.tensor([2, 0, 1, 4, 3])
    chosen = Model(lambda h, a: h + a.gather(1, rows[None, :, None].expand_as(a))).eval()
    plain = Model(lambda h, a: h + a[:, rows]).eval()
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 1, 2]])
    close(DecompX(chosen).attribute(ids, target=1), DecompX(plain).attribute(ids, target=1))


def test_other_operations_are_not_written_out():
    assert written_out("gelu") is None


OF_ONE_TOKEN = {
    "an activation by exponentials": (lambda z: z / (1 + (-z).exp()), nn.functional.silu),
    "a norm by einsum": (
        lambda z: z * torch.rsqrt(torch.einsum("bnd,bnd->bn", z, z)[..., None] / 8 + 1e-5),
        lambda z: nn.functional.rms_norm(z, (8,), eps=1e-5),
    ),
    "a norm by matmul": (
        lambda z: z / ((z[..., None, :] @ z[..., None])[..., 0] / 8 + 1e-5).sqrt(),
        lambda z: nn.functional.rms_norm(z, (8,), eps=1e-5),
    ),
}


class Before(nn.Module):
    """Something computed of each token alone, and attention behind it."""

    def __init__(self, function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.embed = function, nn.Embedding(9, 8)
        self.up, self.down, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.down(self.function(self.up(x)))
        return self.head(((x @ x.mT).softmax(-1) @ x)[:, 0])


IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 1, 2]])


@pytest.mark.parametrize("name", OF_ONE_TOKEN)
def test_what_is_computed_of_one_token_alone_is_that_tokens_with_its_biases(name):
    one, other = (DecompX(Before(function).eval()).attribute(IDS, target=1) for function in OF_ONE_TOKEN[name])
    close(one, other)


@pytest.mark.parametrize("function", [
    lambda z: z.softmax(-1),
    lambda z: z.exp() / z.exp().sum(-1, keepdim=True),
    lambda z: z * z.softmax(2),
    lambda z: z * (z - z.logsumexp(-1, keepdim=True)).exp(),
    lambda z: z * nn.functional.softplus(z).log().exp(),
])  # fmt: skip
def test_a_softmax_over_features_of_one_token_is_that_tokens_alone(function):
    model = Before(function).eval()
    _, delta = DecompX(model).attribute(IDS, target=1, return_convergence_delta=True)
    close(delta, model.head.bias[1].detach().expand(2))


@pytest.mark.parametrize("function", [
    lambda z: z.softmax(1), lambda z: z.mT.softmax(-1).mT, lambda z: z.exp() / z.exp().sum(1, keepdim=True),
])  # fmt: skip
def test_a_softmax_over_positions_is_attention_and_held_fixed(function):
    model = Before(function).eval()
    _, delta = DecompX(model).attribute(IDS, target=1, return_convergence_delta=True)
    x = model.embed(IDS)
    beside = model.down(function(model.up(x)))
    weights = ((x + beside) @ (x + beside).mT).softmax(-1)[:, :1]
    close(delta, (model.head((weights @ beside)[:, 0])[:, 1]).detach())


def test_weights_that_a_token_makes_of_itself_alone_are_held_fixed():
    def synthesised(ids: Tensor) -> Tensor:
        x = model.embed(ids)
        return model.head((model.up(x)[..., :5].softmax(-1) @ x)[:, 0])

    model = Before(None).eval()
    x = model.embed(IDS)
    weights = model.up(x)[..., :5].softmax(-1)
    shares = weights[:, 0] * (x @ model.head.weight[1])
    close(DecompX(synthesised).attribute(IDS, target=1), shares.detach())
