"""What reads mixed values beside W_O: refused where it goes on, and none of the answer's business where it does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import captum_norm
from captum_norm import InexactCaptureError, attention_maps
from captum_norm.capture import recording
from captum_norm.maps import certified, checked_calls

HEADS, WIDTH, LENGTH = 2, 8, 5


class Layer(nn.Module):
    """One attention layer whose mixed values are read in a way of the test's own."""

    def __init__(self, read) -> None:
        super().__init__()
        self.read = read
        self.q, self.k, self.v, self.o, self.other = (nn.Linear(WIDTH, WIDTH) for _ in range(5))
        self.down, self.up, self.norm = nn.Linear(WIDTH, 3), nn.Linear(3, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in (self.q, self.k, self.v))
        weights = (q @ k.mT / 2).softmax(-1)
        return self.read(self, x, (weights @ v).transpose(1, 2).flatten(2))


class Model(nn.Module):
    """That layer, an ordinary one behind it, and a class read from the first row; ``side`` is added to it."""

    def __init__(self, read) -> None:
        super().__init__()
        self.first, self.second, self.classes = Layer(read), Layer(lambda m, x, y: x + m.o(y)), nn.Linear(WIDTH, 3)
        self.side = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))[:, 0]
        return self.classes(x if self.first.__dict__.get("side") is None else x + self.first.side[:, 0])


def model_of(read) -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    return Model(read).eval().requires_grad_(False), torch.randn(2, LENGTH, WIDTH)


def noted(m: Layer, side: Tensor) -> None:
    m.side = side


def rows_apart(m: Layer, y: Tensor) -> Tensor:
    return torch.stack([m.o(y[:, i]) for i in range(LENGTH)], 1)


def half(m: Layer, y: Tensor, which: slice, function=lambda t: t) -> Tensor:
    return F.linear(function(y[..., which]), m.o.weight[:, which])


FIRST, SECOND = slice(0, WIDTH // 2), slice(WIDTH // 2, None)
IN_HALVES = torch.eye(2).repeat_interleave(WIDTH // 2, 1)
ELSEWHERE = {
    "an adapter behind the residual": lambda m, x, y: (x + m.o(y)) + m.up(m.down(y)),
    "an adapter before W_O": lambda m, x, y: (x + m.up(m.down(y))) + m.o(y),
    "a layer of its own": lambda m, x, y: x + m.o(y) + m.up(m.down(y).tanh()),
    "a layer of its own, first": lambda m, x, y: x + (m.up(m.down(y).tanh()) + m.o(y)),
    "two outputs, one bent": lambda m, x, y: x + m.o(y).tanh() + m.other(y),
    "a gate that goes on": lambda m, x, y: x + m.o(y * m.other(y).sigmoid()) + m.other(y),
    "a gate behind W_O": lambda m, x, y: x + m.o(y) * m.other(y).sigmoid(),
    "a product of two outputs": lambda m, x, y: x + m.o(y) * m.other(y),
    "an activation": lambda m, x, y: x + m.o(y) + y.tanh(),
    "themselves": lambda m, x, y: x + m.o(y) + y,
    "themselves behind the residual": lambda m, x, y: (x + m.o(y)) + y,
    "their norm": lambda m, x, y: x + m.o(y) + m.norm(y),
    "rows one by one": lambda m, x, y: x + rows_apart(m, y),
    "one row by another map": lambda m, x, y: x + torch.cat([m.other(y[:, :1]), m.o(y[:, 1:])], 1),
    "every second row by another map": lambda m, x, y: (
        x + torch.where((torch.arange(LENGTH) % 2 == 0)[:, None], m.o(y), m.other(y))
    ),
    "features of two maps": lambda m, x, y: x + m.o(y) * IN_HALVES[0] + m.other(y) * IN_HALVES[1],
    "one head behind an activation": lambda m, x, y: x + half(m, y, FIRST) + half(m, y, SECOND, torch.tanh),
    "heads added one by one to the stream": lambda m, x, y: (x + half(m, y, FIRST)) + half(m, y, SECOND),
    "experts": lambda m, x, y: x + m.o(y) * m.norm(y)[..., :1] + m.other(y) * m.norm(y)[..., 1:2],
    "what is added at the end": lambda m, x, y: (x + m.o(y), noted(m, m.other(y)))[0],
}
PART_OF_W_O = {
    "an adapter": lambda m, x, y: x + (m.o(y) + m.up(m.down(y))),
    "an adapter, first": lambda m, x, y: x + (m.up(m.down(y)) + m.o(y)),
    "an adapter by matmul, biases added": lambda m, x, y: (
        x + ((y @ m.o.weight.T + m.o.bias) + ((y @ m.down.weight.T + m.down.bias) @ m.up.weight.T + m.up.bias))
    ),
    "heads": lambda m, x, y: x + (half(m, y, FIRST) + half(m, y, SECOND)),
    "two factors": lambda m, x, y: x + m.up(m.down(y)),
    "two factors by convolution": lambda m, x, y: (
        x + F.conv1d(F.conv1d(y.mT, m.down.weight[..., None], m.down.bias), m.up.weight[..., None], m.up.bias).mT
    ),
    "a difference": lambda m, x, y: x + (m.o(y) - m.other(y)),
}
OWN_GATES = {
    "elements": lambda m, y: y * m.other(y).sigmoid(),
    "elements, in place": lambda m, y: y.clone().mul_(m.other(y).sigmoid()),
    "rows": lambda m, y: y * m.down(y).sigmoid()[..., :1],
    "a norm by hand": lambda m, y: y / (y.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt(),
    "a norm of heads": lambda m, y: (heads := y.unflatten(-1, (HEADS, -1)), heads / heads.norm(dim=-1, keepdim=True))[
        1
    ].flatten(-2),
    "two gates": lambda m, y: y * m.other(y).sigmoid() * m.down(y).tanh()[..., 1:2],
    "a gate of the gated": lambda m, y: (gated := y * m.other(y).sigmoid(), gated * m.down(gated).tanh()[..., 1:2])[1],
}
NOT_ON_THE_WAY = {
    "nothing is made of it": lambda m, x, y: (x + m.o(y), m.other(y), y.tanh())[0],
    "a question": lambda m, x, y: x + m.o(y) if bool(y.isfinite().all()) else x,
    "a shape": lambda m, x, y: x + m.o(y) + torch.zeros_like(y),
    "a mask": lambda m, x, y: (x + m.o(y)) * torch.ones_like(y > 0).to(y),
}


@pytest.mark.parametrize("read", ELSEWHERE.values(), ids=ELSEWHERE)
def test_mixed_values_that_something_else_reads_are_refused_with_its_name(read):
    model, x = model_of(read)
    with pytest.raises(InexactCaptureError, match=r"'?first.* mixed values are read by operation '\w+' in 'first"):
        attention_maps(model, x)
    for method in (captum_norm.AttentionNorm, captum_norm.ALTI, captum_norm.AttentionRollout):
        with pytest.raises(InexactCaptureError, match=r"read by operation .* no part of its output projection W_O"):
            method(model).attribute(x, target=0)


@pytest.mark.parametrize("name", [name for name in ELSEWHERE if "end" not in name])
def test_what_the_message_names_as_a_way_out_answers(name):
    model, x = model_of(ELSEWHERE[name])
    scores, delta = captum_norm.DecompX(model).attribute(x, target=0, return_convergence_delta=True)
    assert scores.shape == x.shape
    assert (scores.sum((1, 2)) + delta).allclose(model(x)[:, 0], atol=1e-5)


@pytest.mark.parametrize("read", PART_OF_W_O.values(), ids=PART_OF_W_O)
def test_linear_maps_that_are_added_are_one_projection(read):
    """Erasing one value changes what the layer adds by exactly its share."""
    model, x = model_of(read)
    layer = model.first
    with recording(model=model) as records:
        model(x)
    weights, values = records[0].weights, records[0].values
    nothing = read(layer, torch.zeros_like(x), torch.zeros_like(x))
    each = [
        read(layer, torch.zeros_like(x), (weights[..., j : j + 1] * values[:, :, j : j + 1]).transpose(1, 2).flatten(2))
        - nothing
        for j in range(LENGTH)
    ]
    norms = attention_maps(model, x).summed_norms[0]
    assert norms.allclose(torch.stack(each, 2).norm(dim=-1), atol=1e-5)


@pytest.mark.parametrize(
    "read",
    [
        lambda m, x, y: x + m.up(m.down(y).transpose(0, 1)).transpose(0, 1),
        lambda m, x, y: x + F.conv1d(m.down(y).mT, m.up.weight[..., None], m.up.bias).mT,
    ],
    ids=["time first", "features first"],
)
def test_a_second_factor_behind_a_transposition_is_no_part_that_is_passed_over(read):
    model, x = model_of(read)
    with pytest.raises(InexactCaptureError, match="two linear maps in a row, and rows of what the first one wrote are"):
        attention_maps(model, x)


@pytest.mark.parametrize("gated", OWN_GATES.values(), ids=OWN_GATES)
def test_a_gate_or_norm_that_mixed_values_make_of_themselves_is_held_fixed(gated):
    model, x = model_of(lambda m, x, y: x + m.o(gated(m, y)))
    layer, seen = model.first, []
    layer.read = lambda m, x, y: (seen.append(y), x + m.o(gated(m, y)))[1]
    maps = attention_maps(model, x, quantities=("weights", "summed_norms"))
    mixed, values = seen[0], layer.v(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    gate = gated(layer, mixed) / mixed
    one_by_one = (maps.weights[0][..., None] * values[:, :, None]).permute(0, 2, 3, 1, 4).flatten(3)
    assert maps.summed_norms[0].allclose(((one_by_one * gate[:, :, None]) @ layer.o.weight.T).norm(dim=-1), atol=1e-5)


@pytest.mark.parametrize("read", NOT_ON_THE_WAY.values(), ids=NOT_ON_THE_WAY)
def test_a_reader_whose_result_goes_nowhere_changes_nothing(read):
    model, x = model_of(read)
    plain, _ = model_of(lambda m, x, y: x + m.o(y))
    assert torch.equal(attention_maps(model, x).summed_norms[0], attention_maps(plain, x).summed_norms[0])


def test_a_reader_in_the_last_layer_whose_result_goes_nowhere_changes_nothing_either():
    """Whoever asks: all calls, one layer's map, or the row of a product whose calls are read again."""
    model, x = model_of(lambda m, x, y: x + m.o(y))
    model.second.read = NOT_ON_THE_WAY["nothing is made of it"]
    assert not any(checked.refusal for checked in checked_calls(model, x))
    assert captum_norm.LayerAttentionNorm(model, model.second).attribute(x).shape == (2, HEADS, LENGTH, LENGTH)
    assert captum_norm.AttentionRollout(model, max_memory=1).attribute(x, target=0).shape == x.shape


def test_a_reader_before_w_o_that_goes_nowhere_is_refused_rather_than_taken_for_w_o():
    model, x = model_of(lambda m, x, y: (m.other(y), x + m.o(y))[1])
    with pytest.raises(InexactCaptureError, match=r"read by operation 'linear' in 'first\.o'"):
        attention_maps(model, x)


def test_without_an_output_every_reader_counts():
    model, x = model_of(NOT_ON_THE_WAY["nothing is made of it"])
    with pytest.raises(InexactCaptureError, match="read by operation"), recording(model=model):
        model.first(x)


def test_the_certificate_lists_the_call_as_refused():
    model, x = model_of(ELSEWHERE["a gate that goes on"])
    found = certified(model, x)
    assert not found.is_whole
    assert ["read by operation" in call.refusal for call in found.calls] == [True, False]


def test_a_reader_that_is_added_at_the_end_is_seen_when_the_output_is_known():
    model, x = model_of(ELSEWHERE["what is added at the end"])
    with pytest.raises(
        InexactCaptureError, match=r"^first: its mixed values are read by .* 'linear' in 'first\.other'"
    ):
        captum_norm.AttentionWeights(model).attribute(x, target=0)
