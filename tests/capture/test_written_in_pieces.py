"""One attention call that a model writes in pieces: heads, queries or examples one by one, W_O in factors or parts.

The oracle of each is the same function in one piece, by definition: w = softmax(q k^T), norms of sum_h w_h v_h W_O_h.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import captum_norm
from captum_norm.capture import InexactCaptureError, recording
from tests.capture.hand_written import BATCH, HEAD_DIM, HEADS, LENGTH, MODEL, Attention, join, weights

RANK = 2


class Head(nn.Module):
    """One head with projections of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(MODEL, HEAD_DIM) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return weights(self.q(x), self.k(x)) @ self.v(x)


class InPieces(Attention):
    """Attention in pieces; ``heads_of`` holds the same q, k and v as modules of each head."""

    def __init__(self, write: Callable[["InPieces", Tensor], Tensor]) -> None:
        super().__init__(write)
        self.heads_of = nn.ModuleList(Head() for _ in range(HEADS))
        for name in ("q", "k", "v"):
            whole = getattr(self, name)
            for h, head in enumerate(self.heads_of):
                rows = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
                getattr(head, name).weight.data = whole.weight.data[rows]
                getattr(head, name).bias.data = whole.bias.data[rows]
        self.down, self.up = nn.Linear(MODEL, RANK, bias=False), nn.Linear(RANK, MODEL)
        self.both = nn.Sequential(self.down, self.up)
        self.second = nn.Linear(MODEL, MODEL, bias=False)

    def W_O(self, name: str) -> Tensor:  # noqa: N802
        """What the module called so in ``WRITTEN`` leads mixed values out with, (head, head_dim, model)."""
        matrix = self.up.weight @ self.down.weight if "factors" in name else self.o.weight
        return matrix.T.unflatten(0, (HEADS, HEAD_DIM))


def chunks(m: InPieces, x: Tensor, step: int = 2) -> list[Tensor]:
    q, k, v = m.split(x)
    return [weights(q[:, :, i : i + step], k) @ v for i in range(0, LENGTH, step)]


def buffered(m: InPieces, x: Tensor) -> Tensor:
    q, k, v = (t.flatten(0, 1) for t in m.split(x))
    mixed = q.new_zeros(BATCH * HEADS, LENGTH, HEAD_DIM)
    for i in range(BATCH * HEADS):
        mixed[i : i + 1] = weights(q[i : i + 1], k[i : i + 1]) @ v[i : i + 1]
    return m.o(join(mixed.unflatten(0, (BATCH, HEADS))))


def matrices(m: InPieces, x: Tensor) -> Tensor:
    q, k, v = m.split(x)
    w = weights(q, k)
    return torch.stack([torch.stack([w[b, h] @ v[b, h] for h in range(HEADS)]) for b in range(BATCH)])


def chunks_of_heads(m: InPieces, x: Tensor) -> Tensor:
    q, k, v = m.split(x)
    rows = []
    for i in range(0, LENGTH, 2):
        rows.append(torch.cat([weights(q[:, h, i : i + 2], k[:, h]) @ v[:, h] for h in range(HEADS)], -1))
    return m.o(torch.cat(rows, 1))


def addmm_of_each_head(m: InPieces, x: Tensor) -> Tensor:
    out = m.o.bias.expand(BATCH * LENGTH, -1)
    for part, W in zip(join(m.mixed(x)).flatten(0, 1).split(HEAD_DIM, 1), m.o.weight.T.split(HEAD_DIM), strict=True):
        out = torch.addmm(out, part, W)
    return out.view(BATCH, LENGTH, MODEL)


def by_baddbmm(m: InPieces, x: Tensor, added: float = 0, **scales: float) -> Tensor:
    q, k, v = m.split(x)
    mixed = torch.baddbmm(x.new_full((1, 1, 1), added), weights(q, k).flatten(0, 1), v.flatten(0, 1), **scales)
    return m.o(join(mixed.unflatten(0, (BATCH, HEADS))))


def at_once(m: InPieces, x: Tensor, equation: str = "bhij,bhjd,hde->bie") -> Tensor:
    q, k, v = m.split(x)
    return torch.einsum(equation, weights(q, k), v, m.o.weight.T.unflatten(0, (HEADS, HEAD_DIM))) + m.o.bias


def near_and_far(m: InPieces, x: Tensor, far: int = 2) -> Tensor:
    """One softmax, whose first keys are mixed by themselves, as global tokens are beside windows."""
    q, k, v = m.split(x)
    w = weights(q, k)
    return m.o(join(w[..., :far] @ v[:, :, :far] + w[..., far:] @ v[:, :, far:]))


def one_row_again(m: InPieces, x: Tensor) -> Tensor:
    """All rows, then one of the first example in the place of its own."""
    q, k, v = m.split(x)
    rows = join(weights(q, k) @ v)
    rows[:1, :1] = join(weights(q[:1, :, :1], k[:1]) @ v[:1])
    return m.o(rows)


WRITTEN: dict[str, Callable[[InPieces, Tensor], Tensor]] = {
    "heads as modules": lambda m, x: m.o(torch.cat([head(x) for head in m.heads_of], -1)),
    "heads as modules, stacked": lambda m, x: m.o(join(torch.stack([head(x) for head in m.heads_of], 1))),
    "heads as modules, with an adapter": lambda m, x: _adapted(m, torch.cat([head(x) for head in m.heads_of], -1)),
    "chunks of queries": lambda m, x: m.o(join(torch.cat(chunks(m, x), 2))),
    "chunks of heads": chunks_of_heads,
    "a buffer for one head after the other": buffered,
    "keys near and far": near_and_far,
    "one row again": one_row_again,
    "matrices of each head": lambda m, x: m.o(join(matrices(m, x))),
    "matrices of each head, then one sum": lambda m, x: _summed(m, matrices(m, x)),
    "two factors": lambda m, x: m.up(m.down(join(m.mixed(x)))),
    "two factors of a Sequential": lambda m, x: m.both(join(m.mixed(x))),
    "addmm of each head": addmm_of_each_head,
    "baddbmm": by_baddbmm,
    "baddbmm with nothing of the first": lambda m, x: by_baddbmm(m, x, beta=0),
    "einsum at once": at_once,
    "einsum at once, in another order": lambda m, x: (
        torch.einsum("hde,bhjd,bhij->bie", m.o.weight.T.unflatten(0, (HEADS, HEAD_DIM)), m.split(x)[2],
                     weights(*m.split(x)[:2])) + m.o.bias
    ),
    "einsum of numbered axes": lambda m, x: m.o(
        join(torch.einsum(weights(*m.split(x)[:2]), [0, 1, 2, 3], m.split(x)[2], [0, 1, 3, 4], [0, 1, 2, 4]))
    ),
    "tensordot with W_O": lambda m, x: (
        torch.tensordot(m.mixed(x), m.o.weight.T.unflatten(0, (HEADS, HEAD_DIM)), dims=([1, 3], [0, 1])) + m.o.bias
    ),
}  # fmt: skip


def _summed(m: InPieces, mixed: Tensor) -> Tensor:
    W_O = m.o.weight.split(HEAD_DIM, 1)
    return sum(F.linear(mixed[:, h], W_O[h]) for h in range(HEADS)) + m.o.bias


def _adapted(m: InPieces, x: Tensor) -> Tensor:
    return m.o(x) + m.second(x) * 0


def run(write: Callable[[InPieces, Tensor], Tensor]) -> tuple[InPieces, Tensor]:
    return InPieces(write).double().eval(), torch.randn(BATCH, LENGTH, MODEL, dtype=torch.float64)


@torch.no_grad()
def definition(module: InPieces, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    q, k, v = module.split(x)
    w = weights(q, k)
    return w, torch.einsum("bhqk,bhke,hed->bqkd", w, v, module.W_O(name)).norm(dim=-1)


@pytest.mark.parametrize("name", WRITTEN)
def test_weights_and_norms_are_those_of_the_definition(name):
    module, x = run(WRITTEN[name])
    maps = captum_norm.attention_maps(module, x)
    w, norms = definition(module, x, name)
    assert [call.kind for call in maps.calls] == ["self"]
    torch.testing.assert_close(maps.weights[0], w, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(maps.summed_norms[0], norms, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", WRITTEN)
def test_attribute_answers_by_input_position(name):
    module, x = run(WRITTEN[name])
    scores = captum_norm.AttentionNorm(module).attribute(x, position=1).sum(-1)
    torch.testing.assert_close(scores, definition(module, x, name)[1][:, 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [
    "heads as modules", "chunks of queries", "matrices of each head", "chunks of heads", "keys near and far",
])
def test_gradients_of_weights_are_those_of_one_product(name):
    module, x = run(WRITTEN[name])
    whole = run(lambda m, x: m.o(join(m.mixed(x))))[0]
    whole.load_state_dict(module.state_dict())
    scores = [captum_norm.AttentionRelevance(m).attribute(x, target=(1, 3)) for m in (module, whole)]
    torch.testing.assert_close(*scores)


def own_values_of_the_first(m: InPieces, x: Tensor) -> Tensor:
    q, k, v = m.split(x)
    rows = join(weights(q, k) @ v)
    rows[:, :1] = join(weights(q[:, :, :1], k) @ m.second(x).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2))
    return m.o(rows)


def test_a_row_that_reads_values_of_its_own_is_a_row_of_the_same_map():
    module, x = run(own_values_of_the_first)
    maps = captum_norm.attention_maps(module, x)
    w, norms = definition(module, x, "")
    own = run(lambda m, x: m.o(join(m.mixed(x))))[0]
    own.load_state_dict(module.state_dict())
    own.v.weight.data, own.v.bias.data = own.second.weight.data, torch.zeros(MODEL).double()
    norms[:, 0] = definition(own, x, "")[1][:, 0]
    assert [call.kind for call in maps.calls] == ["self"]
    assert maps.keys[0].index.tolist() == [*range(LENGTH), *range(LENGTH)]
    torch.testing.assert_close(maps.weights[0].unflatten(-1, (2, LENGTH)).sum(-2), w)
    torch.testing.assert_close(maps.summed_norms[0].unflatten(-1, (2, LENGTH)).sum(-2), norms)
    for row in (0, 1):
        scores = captum_norm.AttentionNorm(module).attribute(x, position=row).sum(-1)
        torch.testing.assert_close(scores, norms[:, row])


def test_pieces_of_one_row_are_calls_of_their_own_though_their_positions_are_not_known():
    """As pictures that are packed into one row."""
    merged = torch.rand(6, LENGTH).double()

    def packed(m, x):
        q, k, v = m.split(merged @ x)
        pieces = [weights(q[:, :, i : i + 2], k[:, :, i : i + 2]) @ v[:, :, i : i + 2] for i in (0, 2, 4)]
        return m.o(join(torch.cat(pieces, 2)))

    assert [w.shape for w in captum_norm.attention_maps(*run(packed)).weights] == [(BATCH, HEADS, 2, 2)] * 3


@pytest.mark.parametrize("keys", [2, 4], ids=["of other counts", "at unknown positions"])
def test_keys_of_two_softmaxes_that_are_added_are_two_calls(keys):
    merged = torch.rand(8, LENGTH).double()

    def twice(m, x):
        q, k, v = m.split(x if keys == 2 else merged @ x)
        return m.o(join(weights(q, k[:, :, :keys]) @ v[:, :, :keys] + weights(q, k[:, :, keys:]) @ v[:, :, keys:]))

    assert [call.heads for call in captum_norm.attention_maps(*run(twice)).calls] == [HEADS, HEADS]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("flat", [False, True], ids=["", "rows of all examples on one axis before W_O"])
def test_examples_one_by_one_are_one_call_though_their_positions_are_not_known(order, flat):
    merged = torch.rand(3, LENGTH).double()

    def one_by_one(m, x):
        q, k, v = m.split(merged @ x)
        mixed = {b: torch.stack([weights(q[b, h], k[b, h]) @ v[b, h] for h in range(HEADS)]) for b in order}
        rows = join(torch.stack([mixed[b] for b in sorted(mixed)]))
        return m.o(rows.flatten(0, 1)).unflatten(0, rows.shape[:2]) if flat else m.o(rows)

    module, x = run(one_by_one)
    maps = captum_norm.attention_maps(module, x)
    w, norms = definition(module, merged @ x, "")
    assert maps.keys == (None,)
    torch.testing.assert_close(maps.weights[0], w, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(maps.summed_norms[0], norms, rtol=1e-9, atol=1e-9)


def test_pieces_with_keys_that_are_no_input_are_refused_with_a_way_out():
    def beside_memory(m, x):
        q, k, v = m.split(x)
        memory, own = torch.ones_like(v[:, :, :1]), m.second(x).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
        rows = join(weights(q, torch.cat([k, memory], 2)) @ torch.cat([v, memory], 2))
        rows[:1, :1] = join(weights(q[:1, :, :1], k[:1]) @ own[:1])
        return m.o(rows)

    with pytest.raises(InexactCaptureError, match=r"have 4, 5 queries.*DecompX reads"):
        captum_norm.attention_maps(*run(beside_memory))


def test_a_call_of_heads_that_are_modules_is_named_by_the_module_around_them():
    module, x = run(WRITTEN["heads as modules"])
    with recording(sources=(x,), model=nn.Sequential(module)) as records:
        module(x)
    assert [(record.call.name, record.call.heads, record.call.projection) for record in records] == [
        ("0", HEADS, "0.o.weight")
    ]


def test_queries_that_see_the_keys_before_them_alone_are_one_causal_call():
    def causal(m, x):
        q, k, v = m.split(x)
        rows = [weights(q[:, :, i : i + 1], k[:, :, : i + 1]) @ v[:, :, : i + 1] for i in range(LENGTH)]
        return m.o(join(torch.cat(rows, 2)))

    module, x = run(causal)
    maps = captum_norm.attention_maps(module, x)
    hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    q, k, _ = module.split(x)
    w = (q @ k.mT / HEAD_DIM**0.5).masked_fill(hidden, float("-inf")).softmax(-1)
    assert [call.kind for call in maps.calls] == ["causal"]
    torch.testing.assert_close(maps.weights[0], w, rtol=1e-9, atol=1e-9)


def test_a_difference_of_mixtures_is_one_call_with_the_sign_as_a_gate():
    def difference(m, x):
        q, k, v = m.split(x)
        return m.o(join(weights(q, k) @ v - 0.4 * (weights(k, q) @ v)))

    module, x = run(difference)
    maps = captum_norm.attention_maps(module, x)
    q, k, v = module.split(x)
    w = weights(q, k) - 0.4 * weights(k, q)
    norms = torch.einsum("bhqk,bhke,hed->bqkd", w, v, module.W_O("")).norm(dim=-1)
    assert len(maps.calls) == 1
    torch.testing.assert_close(maps.summed_norms[0], norms, rtol=1e-9, atol=1e-9)


def test_a_map_outside_the_module_of_attention_is_no_factor_of_w_o():
    attention, x = run(lambda m, x: m.o(join(m.mixed(x))))
    maps = captum_norm.attention_maps(nn.Sequential(attention, nn.Linear(MODEL, 7).double()), x)
    norms = definition(attention, x, "")[1]
    torch.testing.assert_close(maps.summed_norms[0], norms, rtol=1e-9, atol=1e-9)


def test_maps_that_read_the_same_result_are_no_factors_of_w_o():
    module, x = run(lambda m, x: (lambda y: m.k(y) + m.v(y))(m.o(join(m.mixed(x)))))
    with recording(sources=(x,)) as records:
        module(x)
    assert torch.equal(records[0].W_O, module.W_O(""))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda m, x: m.o(join(torch.cat(chunks(m, x), 2)).tanh()), "not seen to enter an output projection"),
        (lambda m, x: m.o(torch.cat([head(x) for head in m.heads_of], -1).relu()), "not seen to enter"),
        (lambda m, x: by_baddbmm(m, x, added=1.0), "baddbmm adds"),
        (lambda m, x: m.o(join(weights(*m.split(x)[:2]) @ m.split(x)[2] + x.mean())), "not seen to enter"),
        (lambda m, x: m.o(join(matrices(m, x)).tanh()), "not seen to enter"),
        (lambda m, x: m.o(join(torch.vmap(torch.matmul)(weights(*m.split(x)[:2]), m.split(x)[2]))), "torch.vmap"),
        (lambda m, x: m.o(join(torch.vmap(lambda q, k, v: weights(q, k) @ v)(*m.split(x)))), "torch.vmap"),
    ],
    ids=["chunks", "heads", "baddbmm", "something added", "matrices", "product under vmap", "all under vmap"],
)  # fmt: skip
def test_what_is_not_linear_in_the_pieces_is_refused_by_name(write, reason):
    module, x = run(write)
    with pytest.raises(InexactCaptureError, match=reason):
        captum_norm.attention_maps(module, x)


def test_one_einsum_without_its_mixed_values_has_no_gradient_of_the_weights():
    module, x = run(at_once)
    with pytest.raises(InexactCaptureError, match="write the value product by itself"):
        captum_norm.AttentionRelevance(module).attribute(x, target=(1, 3))
