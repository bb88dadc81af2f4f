"""One attention part of a random transformer, written in one of the ways in which people write it.

Axes: b batch, h head, g key head, n query, m key, e head_dim, d model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.random_models.config import WHOLE_MODULES, Config
from tests.random_models.opaque import mixed_values
from tests.random_models.parameters import RANK, AttentionParameters
from tests.random_models.rearranged import FORMS
from tests.random_models.spellings import SOFTMAXES, LinearMap


def linear(W: Tensor, b: Tensor | None, form: str = "") -> nn.Linear | LinearMap:
    """nn.Linear with W (in, out), or another form of it; without a bias where b is None or zero."""
    if form:
        return LinearMap(form, W, b)
    bias = b is not None and bool(b.any())
    module = nn.Linear(W.shape[0], W.shape[1], bias=bias, dtype=torch.float64)
    module.weight.data = W.T.contiguous()
    if bias:
        module.bias.data = b.clone()
    return module


def flat(W: Tensor) -> Tensor:
    """(h, d, e) as one matrix (d, h e)."""
    return W.transpose(0, 1).reshape(W.shape[1], -1)


def visible_keys(config: Config, queries: int, keys: int, real: Tensor | None, cross: bool) -> Tensor | None:
    """(b or 1, 1, n, m) bool, True where a query may look; None where it may look everywhere."""
    visible = None if cross else _pattern(config.mask, queries)
    visible = None if visible is None else visible[None, None]
    if real is not None and not cross:
        keys_seen = real[:, None, None, :]
        visible = keys_seen if visible is None else visible & keys_seen
        alone = torch.eye(queries, dtype=torch.bool) & ~real[:, None, :, None]  # padding sees at least itself
        visible = visible | alone
    return visible


def _pattern(mask: str, n: int) -> Tensor | None:
    square = torch.ones(n, n, dtype=torch.bool)
    if mask == "causal":
        return square.tril()
    if mask == "window":
        return square.tril(1).triu(-1)
    if mask == "causal window":
        return square.tril().triu(-2)
    if mask == "prefix":
        visible = square.tril()
        visible[:2, :2] = True
        return visible
    if mask == "isolated":
        square[:, 1] = torch.arange(n) == 1
        return square
    return None


def additive(visible: Tensor, like: Tensor, low: float | None = None) -> Tensor:
    """0 where visible, else a large negative number."""
    low = torch.finfo(like.dtype).min if low is None else low
    return torch.zeros(visible.shape, dtype=like.dtype).masked_fill(~visible, low)


MASKINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fill -inf": lambda s, visible: s.masked_fill(~visible, float("-inf")),
    "fill lowest": lambda s, visible: s.masked_fill(~visible, torch.finfo(s.dtype).min),
    "where": lambda s, visible: torch.where(visible, s, torch.full([], -1e4, dtype=s.dtype)),
    "add -10000": lambda s, visible: s + (1.0 - visible.to(s.dtype)) * -10000.0,
    "add -inf": lambda s, visible: s + additive(visible, s, float("-inf")),
    "setitem": lambda s, visible: _set(s, visible),
    "fill through a view": lambda s, visible: _filled_through_a_view(s, visible),
}


def _set(scores: Tensor, visible: Tensor) -> Tensor:
    scores = scores.clone()
    scores[~visible.expand_as(scores)] = float("-inf")
    return scores


def _filled_through_a_view(scores: Tensor, visible: Tensor) -> Tensor:
    scores = scores.clone()
    scores.unsqueeze(0).masked_fill_(~visible.expand_as(scores), float("-inf"))
    return scores


def rotated(x: Tensor) -> Tensor:
    """Rotary positions, in the half-and-half layout: x (b, h, n, e)."""
    n, e = x.shape[-2:]
    angles = torch.arange(n)[:, None] * 100.0 ** (-torch.arange(0, e, 2, dtype=torch.float64) / e)
    cos, sin = (torch.cat([f(angles)] * 2, -1).to(x.dtype) for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Attention(nn.Module):
    """Attention with parameters ``p``, laid out and computed as the config says.

    ``forward(x, context, visible)``: x (b, n, d), context (b, m, d) or x itself, visible as :func:`visible_keys`.
    """

    def __init__(self, config: Config, p: AttentionParameters, cross: bool = False) -> None:
        super().__init__()
        self.config, self.cross, self.scale = config, cross, config.head_dim**-0.5
        self.position = "none" if cross else config.position
        self.rest: Tensor | None = None  # what is added to the stream by itself, behind the residual
        form, _, self.place = config.attention.partition(" in ")
        self.mix = self._rearranged if self.config.attention in FORMS else getattr(self, "_" + form.replace(" ", "_"))
        self._make_inputs(p)
        self._make_output(p)
        self._make_extras(p)

    def _linear(self, W: Tensor, b: Tensor | None) -> nn.Module:
        return linear(W, b, self.config.linear_elsewhere)

    # -------------------------------------------------------------------------------- queries, keys and values

    def _make_inputs(self, p: AttentionParameters) -> None:
        form = self.config.projection
        form = "split" if self.cross and form in ("fused", "interleaved") else form
        self.form = form
        Q, K, V = (flat(W) for W in (p.W_Q, p.W_K, p.W_V))
        b = [x.flatten() for x in (p.b_Q, p.b_K, p.b_V)]
        if form == "fused":
            self.qkv = self._linear(torch.cat([Q, K, V], 1), torch.cat(b))
        elif form == "interleaved":
            each, biases = torch.cat([p.W_Q, p.W_K, p.W_V], 2), torch.cat([p.b_Q, p.b_K, p.b_V], 1)
            self.qkv = self._linear(flat(each), biases.flatten())
        elif form == "keys and values fused":
            self.q, self.kv = self._linear(Q, b[0]), self._linear(torch.cat([K, V], 1), torch.cat(b[1:]))
        elif form == "convolution":
            self.q, self.k, self.v = (_convolution(W, c) for W, c in zip((Q, K, V), b, strict=True))
        elif form == "parameters":
            for name in ("W_Q", "W_K", "W_V", "b_Q", "b_K", "b_V"):
                setattr(self, name, nn.Parameter(getattr(p, name).clone()))
        elif form == "low rank":
            self.q, self.k = self._linear(Q, b[0]), self._linear(K, b[1])
            up = p.factors["V up"].flatten(1)
            self.v = nn.Sequential(self._linear(p.factors["V down"], None), self._linear(up, b[2]))
        elif form == "heads as modules":
            self.heads = nn.ModuleList(Head(self, p, h) for h in range(self.config.heads))
        else:  # split, and inside modules
            self.q, self.k, self.v = self._linear(Q, b[0]), self._linear(K, b[1]), self._linear(V, b[2])

    def inputs(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (b, h, n, e), k and v (b, g, m, e)."""
        c = self.config
        sizes = [c.heads * c.head_dim, c.key_heads * c.head_dim, c.key_heads * c.head_dim]
        if self.form == "fused":
            q, k, v = self.qkv(x).split(sizes, -1)
        elif self.form == "interleaved":
            q, k, v = self.qkv(x).unflatten(-1, (c.heads, 3 * c.head_dim)).transpose(1, 2).chunk(3, -1)
            return self._placed(q), self._placed(k), v
        elif self.form == "keys and values fused":
            q, (k, v) = self.q(x), self.kv(context).chunk(2, -1)
        elif self.form == "convolution":
            q, k, v = self.q(x.mT).mT, self.k(context.mT).mT, self.v(context.mT).mT
        elif self.form == "parameters":
            q = torch.einsum("bnd,hde->bhne", x, self.W_Q) + self.b_Q[:, None]
            k, v = (torch.einsum("bnd,hde->bhne", context, W) + b[:, None]
                    for W, b in ((self.W_K, self.b_K), (self.W_V, self.b_V)))  # fmt: skip
            return self._placed(q), self._placed(k), v
        else:
            q, k, v = self.q(x), self.k(context), self.v(context)
        q, k, v = (t.unflatten(-1, (-1, c.head_dim)).transpose(1, 2) for t in (q, k, v))
        return self._placed(q), self._placed(k), v

    def _placed(self, x: Tensor) -> Tensor:
        return rotated(x) if self.position == "rotary" else x

    # ---------------------------------------------------------------------------------------------- weights

    def _make_extras(self, p: AttentionParameters) -> None:
        c, change = self.config, self.config.change
        if self.position == "relative":
            self.table = nn.Parameter(p.extra["relative"].clone())
        if change == "dropout":
            self.dropout = nn.Dropout(0.1)
        elif change == "talking heads by linear":
            self.talking = linear(p.extra["talking"], None)
        elif change == "talking heads by convolution":
            self.talking = nn.Conv2d(c.heads, c.heads, 1, bias=False, dtype=torch.float64)
            self.talking.weight.data = p.extra["talking"].T[..., None, None].contiguous()
        elif change.startswith("talking heads"):
            self.talking = nn.Parameter(p.extra["talking"].clone())
        elif change == "batch norm":
            self.batch_norm = nn.BatchNorm2d(c.heads, dtype=torch.float64)
            mean, variance, gamma, beta = p.extra["batch norm"]
            self.batch_norm.running_mean, self.batch_norm.running_var = mean.clone(), variance.clone()
            self.batch_norm.weight.data, self.batch_norm.bias.data = gamma.clone(), beta.clone()
        elif change.startswith("masked after"):
            self.register_buffer("keep", p.extra["keep"].clone())
        elif change == "differential":
            self.q2, self.k2 = linear(flat(p.extra["W_Q2"]), None), linear(flat(p.extra["W_K2"]), None)
        elif change == "norm before the projection":
            self.sub_norm = nn.RMSNorm(c.heads * c.head_dim, eps=1e-6, dtype=torch.float64)
            self.sub_norm.weight.data = p.extra["sub norm"].clone()
        elif change == "gate by themselves":
            self.gate = linear(p.W_O.flatten(0, 1) @ p.extra["element gate"], None)
        elif change in ("gate on heads", "gate on elements"):
            self.gate = linear(p.extra["head gate" if change == "gate on heads" else "element gate"], None)
        elif change == "sink":
            self.sink = nn.Parameter(p.extra["sink"].clone())
        elif change == "scaled by head":
            self.head_scale = nn.Parameter(p.extra["head scale"].clone())

    def bias_of(self, q: Tensor, k: Tensor) -> Tensor | None:
        """What the position code adds to the scores, (h, n, m)."""
        n, m, h = q.shape[-2], k.shape[-2], self.config.heads
        if self.position == "alibi":
            distance = (torch.arange(m) - torch.arange(n)[:, None]).abs()
            slopes = 2.0 ** (-8.0 * torch.arange(1, h + 1, dtype=torch.float64) / h)
            return (-slopes[:, None, None] * distance).to(q.dtype)
        if self.position == "relative":
            buckets = torch.arange(m) - torch.arange(n)[:, None] + self.table.shape[1] // 2
            return self.table[:, buckets]
        return None

    def weights(self, q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
        """Softmax and what is done to it, (b, h, n, m); k has a head for each of q's."""
        return self.changed(self.softmax(q @ k.mT * self.scale, self.bias_of(q, k), visible))

    def softmax(self, scores: Tensor, bias: Tensor | None, visible: Tensor | None) -> Tensor:
        scores = scores if bias is None else scores + bias
        if self.config.change.startswith("top-k at once"):
            visible = _largest_seen(scores, visible)
        scores = scores if visible is None else MASKINGS[self.config.mask_form](scores, visible)
        if self.config.change == "sink":
            sink = self.sink[:, None, None].expand(*scores.shape[:-1], 1)
            return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
        return SOFTMAXES[min(self.config.seed // 16 % 16, len(SOFTMAXES) - 1)](scores)

    def changed(self, w: Tensor) -> Tensor:
        change = self.config.change
        if change == "dropout":
            return self.dropout(w)
        if change.startswith("talking heads"):
            return self._talked(w, change)
        if change.startswith("top-k") and not change.startswith("top-k at once"):
            return _largest(w, change)
        if change == "sharpened":
            w = w**2
            return w / w.sum(-1, keepdim=True)
        if change.startswith("masked after"):
            w = w * self.keep[: w.shape[-2], : w.shape[-1]]
            return w / w.sum(-1, keepdim=True) if change.endswith("renormalised") else w
        if change == "averaged over heads":
            return w.mean(1, keepdim=True)
        if change == "scaled":
            return w * 0.7
        if change == "scaled by head":
            return w * self.head_scale[:, None, None]
        return self.batch_norm(w) if change == "batch norm" else w

    def _talked(self, w: Tensor, change: str) -> Tensor:
        if change.endswith("linear"):
            return self.talking(w.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if change.endswith("convolution"):
            return self.talking(w)
        if change.endswith("einsum"):
            return torch.einsum("bhnm,hg->bgnm", w, self.talking)
        if change.endswith("tensordot"):
            return torch.tensordot(w, self.talking, dims=([1], [0])).permute(0, 3, 1, 2)
        return (self.talking.mT @ w.flatten(2)).unflatten(2, w.shape[2:])

    # ------------------------------------------------------------------------------------ weights times values

    def forward(self, x: Tensor, context: Tensor, visible: Tensor | None, weights: Tensor | None = None) -> Tensor:
        if self.form == "heads as modules":
            return self.o(torch.cat([head(x, context, visible) for head in self.heads], -1))
        q, k, v = self.inputs(x, context)
        if self.config.room:
            visible = torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool) if visible is None else visible
            k, v, visible = self._with_room(k), self._with_room(v), F.pad(visible, (0, self.config.room))
        if weights is not None:
            return self.led_out(weights.expand(-1, self.config.heads, -1, -1) @ self._repeated(v), x)
        if self.config.attention == "head by head":
            return self._head_by_head(self.weights(q, self._repeated(k), visible), self._repeated(v))
        if self.config.output == "einsum at once":
            w = self.weights(q, self._repeated(k), visible)
            w = w.expand(-1, self.config.heads, -1, -1)
            return torch.einsum("bhnm,bhme,hed->bnd", w, self._repeated(v), self.W_O) + self.b_O
        if self.config.change == "differential":
            return self.led_out(self._differential(x, context, q, k, v, visible), x)
        return self.led_out(self.mix(q, k, v, visible), x)

    def _with_room(self, k: Tensor) -> Tensor:
        """Keys with spare slots behind them."""
        room, form, n = self.config.room, self.config.room_form, k.shape[2]
        if form == "padded":
            return F.pad(k, (0, 0, 0, room))
        if form == "joined":
            return torch.cat([k, k.new_zeros(*k.shape[:2], room, k.shape[3])], 2)
        buffer = k.new_zeros(*k.shape[:2], n + room, k.shape[3])
        if form == "by index_copy":
            return buffer.index_copy_(2, torch.arange(n), k)
        buffer[:, :, :n] = k
        return buffer

    def weights_of(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """What multiplies the values of a sequence that looks at itself."""
        q, k, _ = self.inputs(x, x)
        return self.weights(q, self._repeated(k), visible)

    def _repeated(self, k: Tensor) -> Tensor:
        return k.repeat_interleave(self.config.heads // k.shape[1], 1)

    def _differential(
        self, x: Tensor, context: Tensor, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None
    ) -> Tensor:  # fmt: skip
        e = self.config.head_dim
        q2, k2 = (t.unflatten(-1, (-1, e)).transpose(1, 2) for t in (self.q2(x), self.k2(context)))
        first = self.softmax(q @ self._repeated(k).mT * self.scale, self.bias_of(q, k), visible)
        second = self.softmax(q2 @ self._repeated(k2).mT * self.scale, self.bias_of(q, k), visible)
        return (first - 0.4 * second) @ self._repeated(v)

    def _written(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        return self.weights(q, self._repeated(k), visible) @ self._repeated(v)

    def _einsum(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        scores = torch.einsum("bhne,bhme->bhnm", q, self._repeated(k)) * self.scale
        w = self.changed(self.softmax(scores, self.bias_of(q, k), visible))
        w = w.expand(-1, self.config.heads, -1, -1)
        return torch.einsum("bhnm,bhme->bhne", w, self._repeated(v))

    def _einsum_heads_last(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, self._repeated(k), self._repeated(v)))
        scores = torch.einsum("bnhe,bmhe->bhnm", q, k) * self.scale
        w = self.changed(self.softmax(scores, self.bias_of(q.transpose(1, 2), k.transpose(1, 2)), visible))
        return torch.einsum("bhnm,bmhe->bnhe", w, v).transpose(1, 2)

    def _bmm(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        b, h = q.shape[:2]
        bias = self.bias_of(q, k)
        q, k, v = (t.flatten(0, 1) for t in (q, self._repeated(k), self._repeated(v)))
        scores = torch.bmm(q * self.scale, k.mT).unflatten(0, (b, h))
        w = self.changed(self.softmax(scores, bias, visible)).expand(-1, h, -1, -1)
        return torch.bmm(w.reshape(b * h, *w.shape[2:]), v).unflatten(0, (b, h))

    def _baddbmm(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        b, h = q.shape[:2]
        w = self.weights(q, self._repeated(k), visible).expand(-1, h, -1, -1)
        w, v = w.flatten(0, 1), self._repeated(v).flatten(0, 1)
        return torch.baddbmm(torch.zeros(1, 1, 1, dtype=w.dtype), w, v).unflatten(0, (b, h))

    def _by_hand(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        scores, bias = q @ self._repeated(k).mT * self.scale, self.bias_of(q, k)
        scores = scores if bias is None else scores + bias
        scores = scores if visible is None else MASKINGS[self.config.mask_form](scores, visible)
        w = (scores - scores.amax(-1, keepdim=True)).exp()
        return self.changed(w / w.sum(-1, keepdim=True)) @ self._repeated(v)

    def _normalised_afterwards(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        e = self._exponentials(q, k, visible)
        return e @ self._repeated(v) / e.sum(-1, keepdim=True)

    def _halves_of_keys(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        e, v, half = self._exponentials(q, k, visible), self._repeated(v), (k.shape[2] + 1) // 2
        mixed = torch.einsum("bhnm,bhme->bhne", e[..., :half], v[:, :, :half]) + e[..., half:] @ v[:, :, half:]
        return mixed / (e[..., :half].sum(-1, keepdim=True) + e[..., half:].sum(-1, keepdim=True))

    def _exponentials(self, q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
        scores, bias = q @ self._repeated(k).mT * self.scale, self.bias_of(q, k)
        scores = scores if bias is None else scores + bias
        scores = scores if visible is None else MASKINGS[self.config.mask_form](scores, visible)
        return (scores - scores.amax(-1, keepdim=True)).exp()

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        bias, form = self.bias_of(q, k), self.config.mask_form
        if visible is not None and self.config.mask == "causal" and bias is None and not self.config.padding:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] < q.shape[1])
        mask = visible
        if visible is not None and (bias is not None or form != "boolean"):
            mask = additive(visible, q, float("-inf") if form == "add -inf" else None)
        mask = mask if bias is None else bias.unsqueeze(0) if mask is None else mask + bias
        return F.scaled_dot_product_attention(q, self._repeated(k), self._repeated(v), attn_mask=mask)

    def _rearranged(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        return FORMS[self.config.attention](self, q, self._repeated(k), self._repeated(v), self.bias_of(q, k), visible)

    def _head_by_head(self, w: Tensor, v: Tensor) -> Tensor:
        """Each head mixed, and led out by its own part of W_O, before the next."""
        out = self.b_O
        for h, W in enumerate(self.W_O):
            out = out + F.linear(w[:, h] @ v[:, h], W.T)
        return out

    def _matrices_for_each_head(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        w, v = self.weights(q, self._repeated(k), visible).expand(-1, q.shape[1], -1, -1), self._repeated(v)
        return torch.stack([torch.stack([w[b, h] @ v[b, h] for h in range(w.shape[1])]) for b in range(len(w))])

    def _vmap(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        w = self.weights(q, self._repeated(k), visible).expand(-1, q.shape[1], -1, -1)
        return torch.vmap(torch.matmul)(w, self._repeated(v))

    def _multiply_and_sum(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        w = self.weights(q, self._repeated(k), visible)
        return (w[..., None] * self._repeated(v)[:, :, None]).sum(3)

    def _softmax_and_product(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        scores, bias = q @ self._repeated(k).mT * self.scale, self.bias_of(q, k)
        scores = scores if bias is None else scores + bias
        scores = scores if visible is None else MASKINGS[self.config.mask_form](scores, visible)
        return mixed_values(self.place, scores, self._repeated(v))

    def _chunks_of_queries(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        k, v, bias, chunks = self._repeated(k), self._repeated(v), self.bias_of(q, k), []
        for start in range(0, q.shape[2], 3):
            rows = slice(start, start + 3)
            some = None if visible is None else visible.expand(-1, -1, q.shape[2], -1)[:, :, rows]
            scores = q[:, :, rows] @ k.mT * self.scale
            w = self.changed(self.softmax(scores, None if bias is None else bias[:, rows], some))
            chunks.append(w @ v)
        return torch.cat(chunks, 2)

    # ------------------------------------------------------------------------------------------- the output

    def _make_output(self, p: AttentionParameters) -> None:
        form, W = self.config.output, p.W_O.flatten(0, 1)
        h, e, d = p.W_O.shape
        if form == "convolution":
            self.o = _convolution(W, p.b_O)
        elif form in ("addmm", "matmul", "addmm for each head"):
            self.W, self.b = nn.Parameter(W.clone()), nn.Parameter(p.b_O.clone())
        elif form in ("einsum", "einsum at once", "sum over heads"):
            self.W_O, self.b_O = nn.Parameter(p.W_O.clone()), nn.Parameter(p.b_O.clone())
        elif form == "projected heads as modules":
            self.o = nn.ModuleList(self._linear(p.W_O[n], p.b_O if n == 0 else None) for n in range(h))
        elif form.startswith("adapter"):
            self.o = self._linear(p.factors["O"].flatten(0, 1), p.b_O)
            self.a = self._linear(p.factors["O down"].flatten(0, 1), None)
            self.b = self._linear(p.factors["O up"], None)
        elif form.startswith("two linears"):
            down = self._linear(p.factors["O down"].flatten(0, 1), None)
            up = linear(p.factors["O up"], p.b_O, self.config.linear)
            self.o = nn.Sequential(down, up) if form.endswith("Sequential") else up
            if not form.endswith("Sequential"):
                self.down = down
        else:
            self.o = self._linear(W, p.b_O)
        self.shape = h, e, d, RANK

    def led_out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """From (b, h, n, e) to (b, n, d)."""
        form, change = self.config.output, self.config.change
        if change == "gate on heads":
            mixed = mixed * self.gate(x).sigmoid().transpose(1, 2)[..., None]
        on_all = ("gate on elements", "gate by themselves", "norm before the projection")
        if form == "projected heads as modules" and change not in on_all:
            return sum(o(mixed[:, h]) for h, o in enumerate(self.o))
        joined = mixed.transpose(1, 2).flatten(2)
        if change == "gate on elements":
            joined = joined * self.gate(x).sigmoid()
        if change == "gate by themselves":
            joined = joined * self.gate(joined).sigmoid()
        if change == "norm before the projection":
            joined = self.sub_norm(joined)
        return self._projected(joined)

    def _projected(self, joined: Tensor) -> Tensor:
        form, e = self.config.output, self.config.head_dim
        if form == "convolution":
            return self.o(joined.mT).mT
        if form == "addmm":
            return torch.addmm(self.b, joined.flatten(0, 1), self.W).view(*joined.shape[:2], -1)
        if form == "addmm for each head":
            out = self.b.expand(joined.shape[0] * joined.shape[1], -1)
            for part, W in zip(joined.flatten(0, 1).split(e, 1), self.W.split(e), strict=True):
                out = torch.addmm(out, part, W)
            return out.view(*joined.shape[:2], -1)
        if form == "matmul":
            return joined @ self.W + self.b
        if form == "einsum":
            return torch.einsum("bnhe,hed->bnd", joined.unflatten(-1, (-1, e)), self.W_O) + self.b_O
        if form == "sum over heads":
            heads = joined.unflatten(-1, (-1, e)).unbind(2)
            return sum(F.linear(x, W.T) for x, W in zip(heads, self.W_O, strict=True)) + self.b_O
        if form == "projected heads as modules":
            return sum(o(x) for o, x in zip(self.o, joined.split(e, -1), strict=True))
        if form == "adapter":
            return self.o(joined) + self.b(self.a(joined))
        if form == "adapter after the residual":
            self.rest = self.b(self.a(joined))
        return self.o(self.down(joined)) if hasattr(self, "down") else self.o(joined)


class Head(nn.Module):
    """One head with projections of its own, as in many teaching models."""

    def __init__(self, whole: Attention, p: AttentionParameters, h: int) -> None:
        super().__init__()
        self.__dict__["whole"] = whole  # no submodule
        self.q, self.k, self.v = linear(p.W_Q[h], p.b_Q[h]), linear(p.W_K[h], p.b_K[h]), linear(p.W_V[h], p.b_V[h])

    def forward(self, x: Tensor, context: Tensor, visible: Tensor | None) -> Tensor:
        scores = self.q(x) @ self.k(context).mT * self.whole.scale
        if visible is not None:
            scores = MASKINGS[self.whole.config.mask_form](scores, visible[:, 0])
        return scores.softmax(-1) @ self.v(context)


class TorchAttention(nn.Module):
    """nn.MultiheadAttention, batch first or time first."""

    def __init__(self, config: Config, p: AttentionParameters, cross: bool = False) -> None:
        super().__init__()
        self.config, self.cross = config, cross
        self.first = not config.attention.endswith("time first")
        self.attend = nn.MultiheadAttention(config.width, config.heads, batch_first=self.first, dtype=torch.float64)
        fill_torch_attention(self.attend, p)

    def forward(self, x: Tensor, context: Tensor, visible: Tensor | None) -> Tensor:
        masks = torch_masks(self.config, x, visible)
        x, context = (x, context) if self.first else (x.transpose(0, 1), context.transpose(0, 1))
        out = self.attend(x, context, context, need_weights=False, **masks)[0]
        return out if self.first else out.transpose(0, 1)


class TorchAttentionToMemory(TorchAttention):
    """The same, with another name for what it looks at."""

    def forward(self, x: Tensor, memory: Tensor, visible: Tensor | None) -> Tensor:
        return super().forward(x, memory, visible)


def torch_masks(config: Config, x: Tensor, visible: Tensor | None) -> dict[str, Tensor]:
    """What nn.MultiheadAttention is told, True at what is hidden; padding alone by ``key_padding_mask``."""
    if visible is None:
        return {}
    n = visible.shape[-1]
    if config.padding and config.mask == "none":  # each real row says which keys are real
        hidden = {"key_padding_mask": ~visible[:, 0].all(1)}  # padding is seen by itself alone
    elif len(visible) == 1:
        hidden = {"attn_mask": ~visible[0, 0]}
    else:
        hidden = {"attn_mask": ~visible.expand(-1, config.heads, n, -1).flatten(0, 1)}
    if config.mask_form == "add -inf":
        return {name: torch.zeros(m.shape, dtype=x.dtype).masked_fill(m, float("-inf")) for name, m in hidden.items()}
    return hidden


def fill_torch_attention(module: nn.MultiheadAttention, p: AttentionParameters) -> None:
    module.in_proj_weight.data = torch.cat([flat(W) for W in (p.W_Q, p.W_K, p.W_V)], 1).T.contiguous()
    module.in_proj_bias.data = torch.cat([b.flatten() for b in (p.b_Q, p.b_K, p.b_V)])
    module.out_proj.weight.data = p.W_O.flatten(0, 1).T.contiguous()
    module.out_proj.bias.data = p.b_O.clone()


def _convolution(W: Tensor, b: Tensor) -> nn.Conv1d:
    module = nn.Conv1d(W.shape[0], W.shape[1], 1, dtype=torch.float64)
    module.weight.data, module.bias.data = W.T[..., None].contiguous(), b.clone()
    return module


def _largest(w: Tensor, change: str) -> Tensor:
    k = min(3, w.shape[-1])
    top, index = w.topk(k, -1)
    if change == "top-k by scatter":
        return torch.zeros_like(w).scatter(-1, index, top)
    w = w.masked_fill(w < top[..., -1:], 0.0)
    return w / w.sum(-1, keepdim=True) if change.endswith("renormalised") else w


def _largest_seen(scores: Tensor, visible: Tensor | None) -> Tensor:
    """One mask of what may be seen and is among the largest."""
    seen = scores if visible is None else scores.masked_fill(~visible, -torch.inf)
    large = scores >= seen.topk(min(3, scores.shape[-1]), -1).values[..., -1:]
    return large if visible is None else large & visible


def make_attention(config: Config, p: AttentionParameters, cross: bool = False) -> nn.Module:
    """The attention part in the config's form."""
    if config.attention not in WHOLE_MODULES:
        return Attention(config, p, cross)
    return (TorchAttentionToMemory if config.context == "memory" else TorchAttention)(config, p, cross)
