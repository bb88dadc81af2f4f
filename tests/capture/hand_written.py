"""Attention modules as people write them: one class of weights, many ways to write the same few lines.

Every entry of ``WRITTEN`` is a function of a :class:`Attention` and its input that returns the module's output; the
oracle of each is the definition, Sum_h weights_h values_h [gate_h] W_O_h + b_O, computed in the tests.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange
from torch import Tensor, nn

BATCH, LENGTH, HEADS, HEAD_DIM = 2, 5, 3, 4
MODEL = HEADS * HEAD_DIM


class Attention(nn.Module):
    """Four linear maps and a way to put them together."""

    def __init__(self, write: Callable[["Attention", Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(MODEL, MODEL) for _ in range(4))
        self.heads = nn.Conv2d(HEADS, HEADS, 1, bias=False)
        self.mixing = nn.Parameter(torch.randn(HEADS, HEADS))
        self.norm, self.rms = nn.LayerNorm(MODEL), nn.RMSNorm(MODEL)
        for norm in (self.norm, self.rms):
            nn.init.normal_(norm.weight)
        nn.init.normal_(self.norm.bias)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self, x)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (batch, head, position, head_dim)."""
        return tuple(rearrange(m(x), "b n (h d) -> b h n d", h=HEADS) for m in (self.q, self.k, self.v))

    def mixed(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return weights(q, k) @ v


def weights(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT / HEAD_DIM**0.5).softmax(-1)


def join(mixed: Tensor) -> Tensor:
    return rearrange(mixed, "b h n d -> b n (h d)")


WRITTEN: dict[str, Callable[[Attention, Tensor], Tensor]] = {}


def written(function: Callable[[Attention, Tensor], Tensor]) -> Callable[[Attention, Tensor], Tensor]:
    WRITTEN[function.__name__] = function
    return function


@written
def plain(m, x):
    return m.o(join(m.mixed(x)))


@written
def einsum(m, x):
    q, k, v = m.split(x)
    alpha = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
    return m.o(join(torch.einsum("bhij,bhjd->bhid", alpha, v)))


@written
def einsum_with_an_ellipsis(m, x):
    q, k, v = m.split(x)
    return m.o(join(torch.einsum("...ij,...jd->...id", weights(q, k), v)))


@written
def einsum_with_heads_last(m, x):
    q, k, v = (rearrange(f(x), "b n (h d) -> b n h d", h=HEADS) for f in (m.q, m.k, m.v))
    alpha = torch.einsum("bihd,bjhd->bijh", q, k).softmax(2)
    return m.o(torch.einsum("bijh,bjhd->bihd", alpha, v).flatten(2))


@written
def einsum_projection(m, x):
    W_O = rearrange(m.o.weight, "e (h d) -> h d e", h=HEADS)
    return torch.einsum("bhnd,hde->bne", m.mixed(x), W_O) + m.o.bias


@written
def einsum_projection_of_each_head_then_sum(m, x):
    W_O = rearrange(m.o.weight, "e (h d) -> h d e", h=HEADS)
    return torch.einsum("bhnd,hde->bnhe", m.mixed(x), W_O).sum(2) + m.o.bias


@written
def a_projection_for_each_head(m, x):
    mixed = m.mixed(x)
    W_O = m.o.weight.split(HEAD_DIM, 1)
    return sum(F.linear(mixed[:, h], W_O[h]) for h in range(HEADS)) + m.o.bias


@written
def stacked_projections_of_heads(m, x):
    mixed = m.mixed(x)
    W_O = m.o.weight.split(HEAD_DIM, 1)
    return torch.stack([F.linear(mixed[:, h], W_O[h]) for h in range(HEADS)]).sum(0) + m.o.bias


@written
def head_slices_concatenated(m, x):
    return m.o(torch.cat(m.mixed(x).unbind(1), -1))


@written
def a_stack_that_is_never_summed(m, x):
    output = m.o(join(m.mixed(x)))
    torch.stack([output])
    return output


@written
def heads_interleaved(m, x):
    return m.o(rearrange(m.mixed(x), "b h n d -> b n (d h)"))


@written
def queries_in_two_chunks(m, x):
    q, k, v = m.split(x)
    mixed = weights(q, k) @ v
    return m.o(join(torch.cat([mixed[:, :, 2:], mixed[:, :, :2]], 2).roll(2, 2)))


@written
def batch_times_heads_and_position_first(m, x):
    q, k, v = (f(x.transpose(0, 1)).reshape(LENGTH, BATCH * HEADS, HEAD_DIM).transpose(0, 1) for f in (m.q, m.k, m.v))
    mixed = torch.bmm(torch.bmm(q, k.mT).softmax(-1), v)
    return m.o(mixed.transpose(0, 1).reshape(LENGTH, BATCH, MODEL)).transpose(0, 1)


@written
def fused_projection_of_q_k_v(m, x):
    W, b = torch.cat([m.q.weight, m.k.weight, m.v.weight]), torch.cat([m.q.bias, m.k.bias, m.v.bias])
    q, k, v = rearrange(F.linear(x, W, b), "b n (c h d) -> c b h n d", c=3, h=HEADS)
    return m.o(join(weights(q, k) @ v))


@written
def conv1d_as_in_gpt2(m, x):
    mixed = join(m.mixed(x))
    return torch.addmm(m.o.bias, mixed.view(-1, MODEL), m.o.weight.t()).view(BATCH, LENGTH, MODEL)


@written
def one_by_one_convolution(m, x):
    mixed = rearrange(m.mixed(x), "b h n d -> b (h d) n")
    return F.conv1d(mixed, m.o.weight[..., None], m.o.bias).transpose(1, 2)


@written
def queries_keys_and_values_by_convolution(m, x):
    q, k, v = (F.conv1d(x.mT, f.weight[..., None], f.bias).unflatten(1, (HEADS, -1)).mT for f in (m.q, m.k, m.v))
    return m.o(join(weights(q, k) @ v))


@written
def matmul_with_a_matrix(m, x):
    return join(m.mixed(x)) @ m.o.weight.t() + m.o.bias


@written
def values_on_the_left(m, x):
    q, k, v = m.split(x)
    return m.o(rearrange(v.mT @ weights(q, k).mT, "b h d n -> b n (h d)"))


@written
def softmax_by_hand(m, x):
    q, k, v = m.split(x)
    scores = q @ k.mT / HEAD_DIM**0.5
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    return m.o(join(e / e.sum(-1, keepdim=True) @ v))


@written
def sdpa_with_a_bias_for_each_example(m, x):
    q, k, v = m.split(x)
    bias = torch.linspace(-1, 1, BATCH * LENGTH * LENGTH, dtype=x.dtype).view(BATCH, 1, LENGTH, LENGTH)
    return m.o(join(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)))


@written
def softmax_by_logsumexp(m, x):
    q, k, v = m.split(x)
    scores = q @ k.mT / HEAD_DIM**0.5
    return m.o(join(torch.exp(scores - torch.logsumexp(scores, -1, keepdim=True)) @ v))


@written
def softmax_by_log_softmax(m, x):
    q, k, v = m.split(x)
    return m.o(join((q @ k.mT / HEAD_DIM**0.5).log_softmax(-1).exp() @ v))


@written
def scaled_dot_product_attention(m, x):
    return m.o(join(F.scaled_dot_product_attention(*m.split(x))))


@written
def causal_sdpa_with_one_key_head(m, x):
    q, k, v = m.split(x)
    return m.o(join(F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], is_causal=True, enable_gqa=True)))


@written
def sdpa_with_a_boolean_mask_and_a_scale(m, x):
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(1)
    return m.o(join(F.scaled_dot_product_attention(*m.split(x), attn_mask=mask, scale=0.3)))


@written
def sdpa_with_a_query_that_may_see_nothing(m, x):
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-1)
    return m.o(join(F.scaled_dot_product_attention(*m.split(x), attn_mask=mask)))


@written
def sdpa_with_a_bias(m, x):
    bias = torch.linspace(-1, 1, LENGTH * LENGTH).view(LENGTH, LENGTH).to(x.dtype)
    return m.o(join(F.scaled_dot_product_attention(*m.split(x), attn_mask=bias)))


@written
def one_key_head_broadcast(m, x):
    q, k, v = m.split(x)
    return m.o(join(weights(q, k[:, :1]) @ v[:, :1]))


@written
def a_sink_beside_the_scores(m, x):
    q, k, v = m.split(x)
    scores = torch.cat([q @ k.mT, torch.zeros(BATCH, HEADS, LENGTH, 1, dtype=x.dtype)], -1)
    return m.o(join(scores.softmax(-1)[..., :-1] @ v))


@written
def talking_heads_by_convolution(m, x):
    q, k, v = m.split(x)
    return m.o(join(m.heads(weights(q, k)) @ v))


@written
def talking_heads_by_einsum(m, x):
    q, k, v = m.split(x)
    return m.o(join(torch.einsum("bhij,hg->bgij", weights(q, k), m.mixing) @ v))


@written
def weights_masked_and_scaled(m, x):
    q, k, v = m.split(x)
    return m.o(join((weights(q, k) * 0.5).masked_fill(torch.eye(LENGTH, dtype=torch.bool), 0) @ v))


@written
def a_gate_on_every_element(m, x):
    return m.o(join(m.mixed(x)) * torch.sigmoid(m.k(x)))


@written
def a_gate_that_is_a_softmax(m, x):
    return (join(m.mixed(x)) * m.k(x).softmax(-1)) @ m.o.weight.t() + m.o.bias


@written
def a_gate_on_every_head(m, x):
    q, k, v = m.split(x)
    return m.o(join(weights(q, k) @ v * torch.sigmoid(q[..., :1])))


@written
def layer_norm_before_the_projection(m, x):
    return m.o(m.norm(join(m.mixed(x))))


@written
def everything_by_keyword(m, x):
    q, k, v = m.split(x)
    scores = torch.mul(input=torch.matmul(input=q, other=k.mT), other=HEAD_DIM**-0.5)
    mixed = torch.matmul(input=F.softmax(input=scores, dim=-1), other=v)
    mixed = torch.reshape(input=torch.transpose(input=mixed, dim0=1, dim1=2), shape=(BATCH, LENGTH, MODEL))
    mixed = F.layer_norm(input=torch.clone(input=mixed), normalized_shape=(MODEL,), weight=m.norm.weight)
    return torch.add(input=F.linear(input=mixed, weight=m.o.weight), other=m.o.bias)


@written
def rms_norm_before_the_projection(m, x):
    return m.o(m.rms(join(m.mixed(x))))


@written
def rms_norm_by_hand_before_the_projection(m, x):
    mixed = join(m.mixed(x))
    return m.o(m.rms.weight * (mixed * torch.rsqrt(mixed.pow(2).mean(-1, keepdim=True) + 1e-6)))


@written
def something_else_beside_the_heads(m, x):
    mixed = torch.cat([m.mixed(x).unbind(1)[0], x[..., HEAD_DIM:]], -1)
    return m.o(mixed)


@written
def a_linear_map_follows(m, x):
    return m.k(m.o(join(m.mixed(x))))


def adapter(add: Callable[[Attention, Tensor, Tensor, Tensor], Tensor]) -> Callable[[Attention, Tensor], Tensor]:
    """W_O with a low-rank update A B beside it, added in this way."""

    def write(m: Attention, x: Tensor) -> Tensor:
        return add(m, join(m.mixed(x)), m.q.weight[:, :2], m.k.weight[:2])

    return write


ADAPTERS: dict[str, Callable[[Attention, Tensor], Tensor]] = {
    "added": adapter(lambda m, x, A, B: m.o(x) + F.linear(F.linear(x, A.t()), B.t())),
    "added_first": adapter(lambda m, x, A, B: F.linear(F.linear(x, A.t()), B.t()) * 1.0 + m.o(x)),
    "added_in_place": adapter(lambda m, x, A, B: m.o(x).add_(x @ A @ B)),
    "added_with_alpha": adapter(lambda m, x, A, B: torch.add(m.o(x), x @ A @ (B / 2), alpha=2)),
    "subtracted": adapter(lambda m, x, A, B: m.o(x) - x @ A @ -B),
    "scaled": adapter(lambda m, x, A, B: m.o(x) + (F.dropout(x, 0.1, training=False) @ A @ B / 2) * 2),
    "with_a_part_of_itself": adapter(lambda m, x, A, B: (y := m.o(x)) * 0.25 + (y * 0.75 + x @ A @ B)),
    "in_rows_of_their_own": adapter(lambda m, x, A, B: m.o(x.view(-1, MODEL)).view(*x.shape[:2], -1) + x @ A @ B),
    "merged": adapter(lambda m, x, A, B: F.linear(x, m.o.weight + (A @ B).t(), m.o.bias)),
}
