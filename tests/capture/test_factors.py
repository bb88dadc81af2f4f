"""W_O may be two linear maps in a row: the second is read as a factor, or the call refused, however it is written."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import captum_norm
from captum_norm import attention_maps
from captum_norm.capture import InexactCaptureError, recording
from tests.random_models.spellings import MAPS

WIDTH, HEADS, LENGTH = 8, 2, 5
READ = ("matmul", "addmm", "double", "add_", "out", "two sums")  # all rows in their order, all features at once
BEHIND = {
    "the residual and a layer": lambda m, x, y: (x + y) + m.last(x + y).tanh(),
    "a norm and a layer": lambda m, x, y: x + m.last(m.norm(y)),
    "a bias, a scale and the residual": lambda m, x, y: (y + m.last.bias).mul(m.last.bias) + x,
    "the residual in place and a layer": lambda m, x, y: m.last(y.add_(x)).tanh(),
    "the residual stacked beside it": lambda m, x, y: m.last(torch.stack([x, y]).sum(0)).tanh(),
    "an activation and a layer": lambda m, x, y: x + m.last(y.tanh()),
    "a gate": lambda m, x, y: x + y * m.last(x).sigmoid(),
    "the residual in a view and a layer": lambda m, x, y: in_a_view(x, y) + m.last(y).tanh(),
    "one row and a map": lambda m, x, y: m.last(y[:, :1]),
    "one row, a map and a norm": lambda m, x, y: m.norm(m.last(y[:, :1])),
    "a mean of rows and a map": lambda m, x, y: m.last(y.mean(1, keepdim=True)).expand_as(x),
}

IN_PARTS = {
    "a half alone": lambda m, x, y: torch.cat([x[..., :4] + y[..., :4], x[..., 4:]], -1),
    "a half that has an axis": lambda m, x, y: x + y.unflatten(-1, (2, 4))[:, :, 0].repeat(1, 1, 2),
    "one half gates the other": lambda m, x, y: x + (y[..., :4] * y[..., 4:].sigmoid()).repeat(1, 1, 2),
    "glu": lambda m, x, y: x + F.glu(y).repeat(1, 1, 2),
    "the sum of the halves": lambda m, x, y: x + sum(y.chunk(2, -1)).repeat(1, 1, 2),
    "one half through an activation": lambda m, x, y: x + torch.cat([y[..., :4], y[..., 4:].tanh()], -1),
}


def in_a_view(x: Tensor, y: Tensor) -> Tensor:
    y.view(-1, WIDTH).add_(x.view(-1, WIDTH))
    return y


class Layer(nn.Module):
    """Attention whose W_O is ``down``, of some rank, and ``up``, written in a form, and what comes behind it."""

    def __init__(self, rank=3, form=None, behind=None, first=None):
        super().__init__()
        self.form, self.behind, self.first = form, behind or (lambda m, x, y: x + y), first
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in "qkv")
        self.down, self.up = (nn.Parameter(torch.randn(shape)) for shape in ((WIDTH, rank), (rank, WIDTH)))
        self.bias, self.last, self.norm = nn.Parameter(torch.randn(WIDTH)), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def mixed(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        return ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        if self.form is None:
            return self.behind(self, x, F.linear(self.mixed(x), (self.down @ self.up).T, self.bias))
        first = torch.matmul if self.first is None else lambda y, W: MAPS[self.first](y, W, y.new_zeros(W.shape[1]))
        return self.behind(self, x, MAPS[self.form](first(self.mixed(x), self.down), self.up, self.bias))


def two_layers(**how) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Layer(**how) for _ in "ab")).eval().requires_grad_(False)


def norms(model: nn.Module, x: Tensor) -> Tensor:
    return torch.stack(list(attention_maps(model, x).summed_norms))


@pytest.mark.parametrize("rank", [3, WIDTH])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("form", MAPS)
def test_a_second_factor_is_read_or_refused_however_it_is_written(form, batch, rank):
    x = torch.randn(batch, LENGTH, WIDTH)
    model, truth = two_layers(rank=rank, form=form), norms(two_layers(rank=rank), x)
    assert model(x).allclose(two_layers(rank=rank)(x), atol=1e-4)
    if form in READ:
        assert norms(model, x).allclose(truth, atol=1e-4)
    else:
        with pytest.raises(InexactCaptureError, match=r"call 0|cannot be looked into"):
            captum_norm.AttentionNorm(model).attribute(x, target=(0, 0))


@pytest.mark.parametrize("form", ["halves", "examples", "rows", "time first", "halves out", "bias within"])
@pytest.mark.parametrize(
    "bent", [None, lambda m, x, y: x + m.norm(y), lambda m, x, y: x + y.tanh(), lambda m, x, y: y], ids="rnao"
)
def test_the_message_says_that_a_factor_is_not_read_and_how_it_would_be(form, bent):
    model = two_layers(rank=WIDTH, form=form, behind=bent)
    with pytest.raises(InexactCaptureError, match=r"'?0.* W_O is followed by another linear map .* x @ W"):
        captum_norm.AttentionNorm(model).attribute(torch.randn(2, LENGTH, WIDTH), target=(0, 0))


WHEREVER = {
    "the output": lambda: two_layers(rank=WIDTH, form="rows", behind=lambda m, x, y: y)[0],
    "another module": lambda: nn.Sequential(
        two_layers(rank=WIDTH, form="rows", behind=lambda m, x, y: y)[0], nn.Sigmoid()
    ),
    "one row": lambda: two_layers(rank=WIDTH, form="halves", behind=lambda m, x, y: y[:, :1])[0],
}


@pytest.mark.parametrize("leads_to", WHEREVER)
def test_a_factor_that_is_not_read_refuses_wherever_it_leads(leads_to):
    with pytest.raises(InexactCaptureError, match="followed by another linear map"):
        attention_maps(WHEREVER[leads_to](), torch.randn(2, LENGTH, WIDTH))


def test_where_nobody_says_what_the_output_is_a_factor_that_may_be_it_refuses():
    layer = WHEREVER["the output"]()
    with pytest.raises(InexactCaptureError, match="followed by another linear map"), recording():
        layer(torch.randn(2, LENGTH, WIDTH))


def test_one_example_projected_alone_is_no_head_of_several():
    """torch.stack of the one example's rows puts nothing beside them."""
    x = torch.randn(1, LENGTH, WIDTH)
    assert norms(two_layers(form="matmul", first="examples"), x).allclose(norms(two_layers(), x), atol=1e-5)


@pytest.mark.parametrize("behind", BEHIND)
def test_what_is_no_factor_refuses_nothing(behind):
    x = torch.randn(2, LENGTH, WIDTH)
    layer = two_layers(behind=BEHIND[behind])[0]
    alone = two_layers()[0]
    assert norms(layer, x).allclose(norms(alone, x), atol=1e-5)


def test_a_map_of_it_beside_other_features_is_refused():
    model = two_layers(behind=lambda m, x, y: x + torch.cat([y, x], -1) @ torch.cat([m.last.weight, m.last.weight]))
    with pytest.raises(InexactCaptureError, match="followed by another linear map"):
        attention_maps(model, torch.randn(2, LENGTH, WIDTH))


class Inside(nn.Module):
    """A layer without a residual, and a map of what it gave out in the module around it."""

    def __init__(self):
        super().__init__()
        self.layer = Layer(behind=lambda m, x, y: y)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer.last(self.layer(x))


def test_a_map_in_the_module_around_it_is_no_factor():
    torch.manual_seed(0)
    model, x = Inside().eval(), torch.randn(2, LENGTH, WIDTH)
    assert norms(model, x).allclose(norms(model.layer, x), atol=1e-5)


class Fused(nn.Module):
    """Attention with one map for queries, keys and values, and no residual."""

    def __init__(self):
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.o((q @ k.mT).softmax(-1) @ v)


@pytest.mark.parametrize("kind", [Fused, lambda: two_layers(behind=lambda m, x, y: y)[0]])
def test_a_layer_that_reads_what_another_run_of_it_wrote_reads_no_factor(kind):
    torch.manual_seed(0)
    layer, x = kind().eval(), torch.randn(2, LENGTH, WIDTH)
    first, second = norms(lambda x: layer(layer(x)), x)
    assert first.allclose(norms(layer, x)[0], atol=1e-4)
    assert second.allclose(norms(layer, layer(x))[0], atol=1e-4)


def test_attention_to_what_another_call_in_one_forward_wrote_reads_no_factor():
    W, x = torch.randn(WIDTH, WIDTH), torch.randn(2, LENGTH, WIDTH)

    def attended(x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-1) @ x @ W

    first, second = norms(lambda x: attended(attended(x)), x)
    assert first.allclose(norms(attended, x)[0], atol=1e-4)
    assert second.allclose(norms(attended, attended(x))[0], atol=1e-4)


@pytest.mark.parametrize("behind", IN_PARTS)
def test_features_that_part_ways_behind_the_output_projection_are_no_vector_of_the_stream(behind):
    model = two_layers(behind=IN_PARTS[behind])
    for method in (captum_norm.AttentionNorm, captum_norm.ALTI):
        with pytest.raises(InexactCaptureError, match=r"'?0.* W_O writes features of which some part ways"):
            method(model).attribute(torch.randn(2, LENGTH, WIDTH), target=(0, 0))
