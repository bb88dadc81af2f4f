"""Weights that are changed between softmax and product: read as they multiply the values, whatever was done to them.

The oracle of each is the definition, written out: w = change(softmax(q k^T)), norms of sum_h w_h v_h W_O_h.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import captum_norm
from captum_norm.capture import recording
from tests.capture.hand_written import BATCH, HEAD_DIM, HEADS, LENGTH, MODEL, Attention, join, weights

ANOTHER = 4  # heads that three are mixed to


class Changing(Attention):
    """Attention whose weights go through a change of its own."""

    def __init__(self, change: Callable[["Changing", Tensor], Tensor]) -> None:
        super().__init__(lambda m, x: m.o(join(change(m, weights(*m.split(x)[:2])) @ m.split(x)[2])))
        self.change = change
        self.talk = nn.Linear(HEADS, HEADS)
        self.batch_norm, self.head_norm = nn.BatchNorm2d(HEADS), nn.LayerNorm(HEADS)
        nn.init.uniform_(self.batch_norm.running_var, 0.5, 2)
        nn.init.normal_(self.batch_norm.running_mean, std=0.1)
        self.around = nn.Conv2d(HEADS, HEADS, 3, padding=1)
        self.scale = nn.Parameter(torch.randn(HEADS, 1, 1))
        self.keep = nn.Buffer((torch.rand(LENGTH, LENGTH) > 0.3).double() + torch.eye(LENGTH).double())


def over_keys(w: Tensor) -> Tensor:
    return w / w.sum(-1, keepdim=True)


def largest(w: Tensor) -> Tensor:
    return w.masked_fill(w < w.topk(2, -1).values[..., -1:], 0.0)


def scattered(w: Tensor) -> Tensor:
    top, index = torch.topk(w, 2, dim=-1)
    return torch.zeros_like(w).scatter(-1, index, top)


def scattered_in_place(w: Tensor) -> Tensor:
    top, index = w.topk(2)
    return torch.zeros_like(w).scatter_(-1, index, top)


def in_a_buffer(w: Tensor) -> Tensor:
    buffer = torch.empty_like(w)
    buffer[:, :, :2], buffer[:, :, 2:] = w[:, :, :2], w[:, :, 2:]
    return buffer


def by_the_queries(m: Changing, w: Tensor) -> Tensor:
    """Heads are mixed by a matrix for each query that the weights themselves decide."""
    mixing = w.detach().mean(-1).transpose(1, 2)[..., None] * m.mixing  # (batch, query, head, head)
    return (w.permute(0, 2, 3, 1) @ mixing).permute(0, 3, 1, 2)


CHANGES: dict[str, Callable[[Changing, Tensor], Tensor]] = {
    "linear over heads": lambda m, w: m.talk(w.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "matmul over heads, heads last": lambda m, w: (w.movedim(1, -1) @ m.mixing).movedim(-1, 1),
    "matmul over heads, heads first": lambda m, w: (m.mixing.mT @ w.flatten(2)).unflatten(2, w.shape[2:]),
    "einsum over heads": lambda m, w: torch.einsum("bhij,hg->bgij", w, m.mixing),
    "einsum over heads, matrix first": lambda m, w: torch.einsum("hg,b h i j->bgij", m.mixing, w),
    "tensordot over heads": lambda m, w: torch.tensordot(w, m.mixing, dims=([1], [0])).permute(0, 3, 1, 2),
    "tensordot of one axis": lambda m, w: torch.tensordot(w.movedim(1, -1), m.mixing, 1).movedim(-1, 1),
    "convolution of width one": lambda m, w: m.heads(w),
    "convolution over neighbours": lambda m, w: m.around(w),
    "heads mixed by a matrix for each query": by_the_queries,
    "twice": lambda m, w: m.heads(m.talk(w.permute(0, 2, 3, 1)).relu().permute(0, 3, 1, 2)),
    "batch norm": lambda m, w: m.batch_norm(w),
    "layer norm over heads": lambda m, w: m.head_norm(w.movedim(1, -1)).movedim(-1, 1),
    "largest by mask": lambda m, w: largest(w),
    "largest by scatter": lambda m, w: scattered(w),
    "largest by scatter in place": lambda m, w: scattered_in_place(w),
    "largest, renormalised": lambda m, w: over_keys(largest(w)),
    "masked": lambda m, w: w * m.keep,
    "masked, renormalised": lambda m, w: F.normalize(w * m.keep, p=1, dim=-1),
    "lower triangle": lambda m, w: w.tril(),
    "sharpened": lambda m, w: over_keys(w**2),
    "root": lambda m, w: over_keys(w.sqrt()),
    "averaged over heads": lambda m, w: w.mean(1, keepdim=True),
    "averaged over heads and unsqueezed": lambda m, w: w.mean(1).unsqueeze(1),
    "largest head": lambda m, w: w.amax(1, keepdim=True),
    "sum of heads, scaled for each head": lambda m, w: w.sum(1, keepdim=True) * m.scale,
    "less the average": lambda m, w: w - w.mean(1, keepdim=True),
    "one less": lambda m, w: 1 - w,
    "written into a buffer": lambda m, w: in_a_buffer(w),
    "differential": lambda m, w: w - 0.4 * w.roll(1, 1),
}


def run(change: Callable[[Changing, Tensor], Tensor]) -> tuple[Changing, Tensor]:
    return Changing(change).double().eval(), torch.randn(BATCH, LENGTH, MODEL, dtype=torch.float64)


@torch.no_grad()
def definition(module: Changing, x: Tensor) -> tuple[Tensor, Tensor]:
    """The weights, and the norms of what each key adds to each query: (b, h, q, k), (b, q, k)."""
    q, k, v = module.split(x)
    w = module.change(module, weights(q, k)).expand(BATCH, HEADS, LENGTH, LENGTH)
    W_O = module.o.weight.T.unflatten(0, (HEADS, HEAD_DIM))
    return w, torch.einsum("bhqk,bhke,hed->bqkd", w, v, W_O).norm(dim=-1)


@pytest.mark.parametrize("name", CHANGES)
def test_weights_and_norms_are_those_of_the_definition(name):
    module, x = run(CHANGES[name])
    maps = captum_norm.attention_maps(module, x)
    w, norms = definition(module, x)
    assert len(maps.calls) == 1
    torch.testing.assert_close(maps.weights[0].expand_as(w), w, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(maps.summed_norms[0], norms, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CHANGES)
def test_attribute_answers_by_input_position(name):
    module, x = run(CHANGES[name])
    scores = captum_norm.AttentionNorm(module).attribute(x, position=1).sum(-1)
    torch.testing.assert_close(scores, definition(module, x)[1][:, 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(CHANGES.keys() - {"heads mixed by a matrix for each query"}))
def test_queries_and_keys_are_the_input_positions(name):
    module, x = run(CHANGES[name])
    with recording(sources=(x,)) as records:
        module(x)
    (record,) = records
    assert record.keys is not None
    assert record.keys.index.tolist() == list(range(LENGTH))
    if name != "written into a buffer":
        assert record.queries is not None
        assert record.queries.index.tolist() == list(range(LENGTH))


def test_negative_weights_on_later_keys_are_no_causal_attention():
    def look_ahead(m, w):
        return w.tril() - w.triu(1)

    module, x = run(look_ahead)
    assert captum_norm.attention_maps(module, x).calls[0].kind == "self"
    torch.testing.assert_close(
        captum_norm.AttentionNorm(module).attribute(x).sum(-1), definition(module, x)[1][:, 0], rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    "read",
    [
        lambda m, x: F.linear((x @ x.mT).softmax(-1), m.o.weight[:LENGTH, :LENGTH]) @ x,
        lambda m, x: m.o(F.linear(x.softmax(-1), m.q.weight)),
        lambda m, x: m.o(x.softmax(-1) @ m.mixing.new_ones(MODEL, MODEL).requires_grad_()),
    ],
    ids=["keys read by a linear map", "classes", "a matrix that nobody followed"],
)
def test_a_map_that_reads_the_softmax_axis_gives_no_weights(read):
    attention, x = Attention(read).double().eval(), torch.randn(BATCH, LENGTH, MODEL, dtype=torch.float64)
    with recording(sources=(x,), on_inexact=lambda error: None) as records:
        attention(x)
    assert records == []


def test_values_chosen_with_the_largest_weights_are_at_the_positions_that_they_were_chosen_from():
    def chosen(m, x):
        q, k, v = m.split(x)
        top, index = weights(q, k).topk(2, -1)
        index = index[..., None].expand(-1, -1, -1, -1, HEAD_DIM)
        some = v.unsqueeze(2).expand(-1, -1, LENGTH, -1, -1).gather(3, index)
        return m.o(join((top.unsqueeze(-2) @ some).squeeze(-2)))

    attention, x = Attention(chosen).eval(), torch.randn(BATCH, LENGTH, MODEL)
    dense = Attention(lambda m, x: m.o(join(largest(weights(*m.split(x)[:2])) @ m.split(x)[2]))).eval()
    dense.load_state_dict(attention.state_dict())
    assert captum_norm.attention_maps(attention, x).weights[0].shape == (BATCH * LENGTH, HEADS, 1, 2)
    for position in (0, LENGTH - 1):
        scores = [captum_norm.AttentionNorm(m).attribute(x, position=position) for m in (attention, dense)]
        torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-6)
