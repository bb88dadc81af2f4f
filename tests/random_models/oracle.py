"""The same function written a second time, slowly, from the formulas: what its attention calls really did.

The oracle takes a config, the parameters in their mathematical form and the inputs.  It never sees the model, its
modules or a torch operation that the model ran, and shares no code with ``captum_norm``.  That its output equals the
model's shows that it is the same function; everything else it knows (weights, values, what feeds what, what mixes
positions, what the output reads, whose share is whose) it knows because it computed the output from it.

A state carries, beside its value, two accounts that are kept by hand at every step:

- ``parts``: the state as a sum of one part for each token and one for the biases, with everything held fixed that is
  not linear (DecompX).  A state that no mixing has touched belongs to its own token as a whole, biases included.
- ``reach`` and ``alti``: how much of each token a row is, by rollout and by ALTI; None from where that is not defined.

Axes: b batch, n row, p part (tokens of all inputs, then biases), t token, h head, q query, k key, e head_dim, d model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.random_models.config import (
    LINEAR_MIXERS,
    OWN_ROWS,
    WEIGHTED_READOUTS,
    WRITTEN_ELSEWHERE,
    Config,
    function_of,
)
from tests.random_models.formulas import (
    changed_weights,
    edges_of,
    gru,
    in_one_window,
    linear_mixer,
    longest_queries,
    of_longest_queries,
    position_bias,
    row_weights,
    tokens_mixed,
    turned,
    two_windows,
)
from tests.random_models.parameters import (
    AttentionParameters,
    FeedForwardParameters,
    Inputs,
    LayerParameters,
    NormParameters,
    Parameters,
)
from tests.random_models.truth import Call, State, Truth

EPS = 1e-5


class Oracle:
    """Runs the second form.

    Args:
        config, parameters, inputs: of the model.
        erased: (call, key): the values of this key are zero in this call, the weights being what they are.
        probed: every call's output is cut off from what it is made of and has a tensor of zeros added,
            ``probes[call]``, whose gradients tell where the call's rows go without passing through another call.
    """

    def __init__(
        self, config: Config, parameters: Parameters, inputs: Inputs, erased: tuple[int, int] | None = None,
        probed: bool = False,
    ) -> None:  # fmt: skip
        self.config, self.parameters, self.inputs, self.erased = config, parameters, inputs, erased
        self.probed, self.probes = probed, []
        self.calls: list[Call] = []
        self.empty_rows = False
        self._edges: dict[int, Tensor] = {}
        self.lengths = tuple(t.shape[1] for t in inputs.tensors)

    def run(self) -> Truth:
        """The truth about the model at its inputs."""
        memory = None
        if self.config.stack == "encoder-decoder":
            memory = self._embedded(0)
            for layer in self.parameters.encoder:
                memory = self._layer(memory, layer, None, visible=None)
        state = self._embedded(len(self.lengths) - 1)
        if self.config.stack == "latents":
            memory, state = state, self._latents()
        state = self._stream(state, memory)
        if self.config.mixer_place == "end":
            state = self.mixed_by(state)
        if self.config.norm in ("pre", "sandwich"):
            state = self.norm(state, self.parameters.final)
        return self._read(state)

    # --------------------------------------------------------------------------------------- steps on one position

    def _embedded(self, source: int) -> State:
        tokens, p = self.inputs.tensors[source], self.parameters
        x = p.embedding[tokens] if self.config.inputs == "ids" else tokens.double().clone()
        n, d = x.shape[1:]
        if self.config.position == "learned":
            x = x + p.positions[:n]
        elif self.config.position == "sinusoidal":
            for position in range(n):
                for i in range(0, d, 2):
                    angle = position / 100.0 ** (i / d)
                    x[:, position, i] += math.sin(angle)
                    x[:, position, i + 1] += math.cos(angle)
        prefix = self.config.prefix
        x = torch.cat([p.prefix.expand(len(x), -1, -1), x], 1)
        one = torch.zeros(len(x), prefix + n, sum(self.lengths), dtype=torch.float64)
        offset = sum(self.lengths[:source])
        for position in range(n):
            one[:, prefix + position, offset + position] = 1
        state = State(x, None, True, source, torch.arange(-prefix, n), one, one)
        return replace(state, parts=self._own_parts(state))

    def _latents(self) -> State:
        """Learned vectors: no token's, and so among the biases."""
        x = self.parameters.latents.expand(self.config.batch, -1, -1)
        parts = x.new_zeros(sum(self.lengths) + 1, *x.shape)
        parts[-1] = x
        none = x.new_zeros(*x.shape[:2], sum(self.lengths))
        return State(x, parts, False, len(self.lengths), torch.arange(x.shape[1]), none, none)

    def _class_token(self, of: State) -> State:
        """A learned vector before the tokens of a state."""
        x = self.parameters.class_token.expand(len(of.value), 1, -1)
        parts = x.new_zeros(sum(self.lengths) + 1, *x.shape)
        parts[-1] = x
        none = x.new_zeros(*x.shape[:2], sum(self.lengths))
        return State(x, parts, False, of.source, torch.tensor([-1]), none, none)

    def _own_parts(self, state: State) -> Tensor:
        """Each row belongs to its own token; one that is no token's is among the biases."""
        assert state.index is not None
        parts = state.value.new_zeros(sum(self.lengths) + 1, *state.value.shape)
        offset = sum(self.lengths[: state.source])
        for row, position in enumerate(state.index.tolist()):
            parts[offset + position if position >= 0 else -1, :, row] = state.value[:, row]
        return parts

    def linear(self, state: State, W: Tensor, b: Tensor) -> State:
        """x W + b."""
        return self._affine(state, state.value @ W, lambda parts: parts @ W, b)

    def _affine(self, state: State, product: Tensor, of_parts: Callable[[Tensor], Tensor], bias: Tensor) -> State:
        moved = replace(state, value=product + bias)
        if state.pure:
            return replace(moved, parts=self._own_parts(moved))
        if state.parts is None:
            return moved
        parts = of_parts(state.parts)
        parts = torch.cat([parts[:-1], parts[-1:] + bias])
        return replace(moved, parts=parts)

    def norm(self, state: State, p: NormParameters) -> State:
        """LayerNorm or RMSNorm, its divisor held fixed."""
        sigma = self.sigma(state.value)
        beta = p.beta if self._centres else torch.zeros_like(p.beta)

        def scaled(x: Tensor) -> Tensor:
            return self.centred(x) / sigma * p.gamma

        return self._affine(state, scaled(state.value), scaled, beta)

    @property
    def _centres(self) -> bool:
        return self.config.norm_form.startswith("layer") or self.config.attention == "TransformerEncoderLayer"

    def centred(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self._centres else x

    def sigma(self, x: Tensor) -> Tensor:
        return (self.centred(x).square().mean(-1, keepdim=True) + EPS).sqrt()

    def activated(self, state: State, name: str) -> State:
        """act(z), as act(z)/z times z."""
        z = state.value
        y = {
            "relu": lambda z: z * (z > 0),
            "gelu": lambda z: z * 0.5 * (1 + torch.erf(z / math.sqrt(2))),
            "silu": lambda z: z / (1 + (-z).exp()),
            "gated": lambda z: z / (1 + (-z).exp()),
            "tanh": lambda z: (z.exp() - (-z).exp()) / (z.exp() + (-z).exp()),
        }[function_of(name)](z)
        slope = torch.where(z == 0, 0.0, y / z)
        return self._affine(state, y, lambda parts: parts * slope, torch.zeros_like(y[0, 0]))

    def feed_forward(self, state: State, p: FeedForwardParameters, mixer: bool) -> State:
        state = self.mixed_by(state) if mixer else state
        up = self.activated(self.linear(state, p.W_1, p.b_1), self.config.feed_forward)
        if function_of(self.config.feed_forward) == "gated":
            other = self.linear(state, p.W_3, p.b_3)

            def halves(_: Tensor) -> Tensor:
                return 0.5 * up.parts * other.value + 0.5 * up.value * other.parts

            up = self._affine(up, up.value * other.value, halves, torch.zeros_like(up.value[0, 0]))
        return self.linear(up, p.W_2, p.b_2)

    def total(self, *states: State, reach: Tensor | None, alti: Tensor | None, scale: float = 1.0) -> State:
        """A sum of states; what it reaches is for the caller to say."""
        first = states[0]
        known = all(s.parts is not None for s in states)
        index = first.index if all(_same(first.index, s.index) for s in states) else None
        return State(
            value=sum(s.value for s in states) * scale,
            parts=sum(s.parts for s in states) * scale if known else None,
            pure=all(s.pure for s in states),
            source=first.source,
            index=index,
            reach=reach,
            alti=alti,
            calls=frozenset().union(*(s.calls for s in states)),
            parents=frozenset().union(*(s.parents for s in states)),
            mixers=tuple(dict.fromkeys(m for s in states for m in s.mixers)),
        )

    def beside(self, x: State, out: State) -> State:
        """x plus work on its single positions: a row stays what it is."""
        out, moved = self._in_place(x, out)
        return self.total(x, out, reach=None if moved else x.reach, alti=None if moved else x.alti)

    def _in_place(self, x: State, out: State) -> tuple[State, bool]:
        """``out`` with its rows counted as those of x, which it is added to, and whether that takes a mixer."""
        if _same(out.index, x.index):
            return out, out.mixers != x.mixers
        return replace(out, index=x.index, mixers=(*x.mixers, self.config.mixer)), True

    # ------------------------------------------------------------------------------------------------ attention

    def attention(
        self, x: State, memory: State, p: AttentionParameters, visible: Tensor | None, cross: bool = False,
        alpha: Tensor | None = None,
    ) -> tuple[State, Call]:  # fmt: skip
        """What an attention part gives out, with its own weights or those given, and the call."""
        windows = two_windows(x.value.shape[1], p.form)
        visible = visible if windows is None else in_one_window(windows)
        alpha = self._weights(x.value, memory.value, p, visible, cross) if alpha is None else alpha
        h = len(p.W_O)
        shared = h // len(p.W_V)
        values = torch.stack([memory.value @ p.W_V[i // shared] + p.b_V[i // shared] for i in range(h)], 1)
        mixed = torch.einsum("bhqk,bhke->bhqe", alpha, values)
        gate = self._gate(x.value, mixed, p)
        number = len(self.calls)
        if id(alpha) not in self._edges:  # else the weights of an earlier call, whose own masks made them
            self._edges[id(alpha)] = edges_of(visible, p.change, p.extra["keep"], alpha)
        edges = self._edges[id(alpha)]
        edges = edges & (alpha != 0).any(-1).any(1)[..., None]  # a query that is not answered looks nowhere
        kind = "cross" if cross else "causal" if _looks_back(edges, x.index, memory.index) else "self"
        call = Call(
            alpha, values, p.W_O, p.b_O, gate, kind, x.source, x.index, memory.source, memory.index,
            memory.parents, memory.mixers, windows, self._answered(x.value, p, cross),
        )  # fmt: skip
        self.calls.append(call)
        if self.erased is not None and self.erased[0] == number:
            values = values.clone()
            values[:, :, self.erased[1]] = 0
            mixed = torch.einsum("bhqk,bhke->bhqe", alpha, values)
            gate = self._gate(x.value, mixed, p)
        gated = mixed if gate is None else mixed * gate
        value = torch.einsum("bhqe,hed->bqd", gated, p.W_O) + p.b_O
        if self.probed:
            probe = torch.zeros_like(value, requires_grad=True)
            self.probes.append(probe)
            value = value.detach() + probe
        state = State(
            value=value,
            parts=self._attention_parts(memory, call, p, shared),
            pure=False,
            source=x.source,
            index=x.index,
            reach=None,
            alti=None,
            calls=x.calls | memory.calls | {number},
            parents=frozenset({number}),
        )
        return state, call

    def _attention_parts(self, memory: State, call: Call, p: AttentionParameters, shared: int) -> Tensor | None:
        if memory.parts is None:
            return None
        total: Any = 0
        for i in range(len(p.W_O)):
            if memory.pure:  # the values are the token's own, b_V included
                values = self._own_parts(replace(memory, value=call.values[:, i]))
            else:
                values = memory.parts @ p.W_V[i // shared]
                values = torch.cat([values[:-1], values[-1:] + p.b_V[i // shared]])
            mixed = torch.einsum("bqk,pbke->pbqe", call.weights[:, i], values)
            if call.gate is not None:
                mixed = mixed * call.gate[:, i]
            total = total + mixed @ p.W_O[i]
        return torch.cat([total[:-1], total[-1:] + p.b_O])

    def _weights(
        self, x: Tensor, memory: Tensor, p: AttentionParameters, visible: Tensor | None, cross: bool
    ) -> Tensor:  # fmt: skip
        position = "none" if cross else self.config.position
        alpha = self._softmax(x, memory, p, visible, position)
        if p.change == "differential":
            other = replace(p, W_Q=p.extra["W_Q2"], W_K=p.extra["W_K2"], b_Q=0 * p.b_Q, b_K=0 * p.b_K)
            unturned = "none" if position == "rotary" else position
            return alpha - 0.4 * self._softmax(x, memory, other, visible, unturned)
        if p.form.startswith("longest queries"):
            alpha = of_longest_queries(alpha, longest_queries(self._queries(x, p, position)), p.form)
        return changed_weights(alpha, p.change, p.extra)

    def _answered(self, x: Tensor, p: AttentionParameters, cross: bool) -> Tensor | None:
        """(b, row) which queries are answered, where not all are and heads agree on them."""
        if not p.form.startswith("longest queries"):
            return None
        longest = longest_queries(self._queries(x, p, "none" if cross else self.config.position)).sort(-1).values
        return longest[:, 0] if torch.equal(longest, longest[:, :1].expand_as(longest)) else None

    def _queries(self, x: Tensor, p: AttentionParameters, position: str) -> Tensor:
        """(b, h, q, e), turned where positions are."""
        queries = [x @ W + b for W, b in zip(p.W_Q, p.b_Q, strict=True)]
        return torch.stack([turned(q) if position == "rotary" else q for q in queries], 1)

    def _softmax(
        self, x: Tensor, memory: Tensor, p: AttentionParameters, visible: Tensor | None, position: str
    ) -> Tensor:  # fmt: skip
        b, n, m, h = len(x), x.shape[1], memory.shape[1], len(p.W_Q)
        alpha = x.new_zeros(b, h, n, m)
        for i in range(h):
            group = i // (h // len(p.W_K))
            q, k = x @ p.W_Q[i] + p.b_Q[i], memory @ p.W_K[group] + p.b_K[group]
            if position == "rotary":
                q, k = turned(q), turned(k)
            scores = torch.einsum("bne,bme->bnm", q, k) / math.sqrt(q.shape[-1])
            scores = scores + position_bias(position, i, h, n, m, p.extra["relative"])
            scores = scores if visible is None else torch.where(visible, scores, -math.inf)
            largest = scores.amax(-1, keepdim=True)
            total = (scores - largest).exp().sum(-1, keepdim=True)
            if p.change == "sink":
                total = total + (p.extra["sink"][i] - largest).exp()
            alpha[:, i] = (scores - largest).exp() / total
        return alpha

    def _gate(self, x: Tensor, mixed: Tensor, p: AttentionParameters) -> Tensor | None:
        """What multiplies the mixed values, (b, h, q, e)."""
        change, (b, h, n, e) = p.change, mixed.shape
        if change == "gate on heads":
            gate = 1 / (1 + (-(x @ p.extra["head gate"])).exp())
            return torch.stack([gate[..., i, None].expand(b, n, e) for i in range(h)], 1)
        if change == "gate on elements":
            gate = 1 / (1 + (-(x @ p.extra["element gate"])).exp())
            return torch.stack([gate[..., i * e : (i + 1) * e] for i in range(h)], 1)
        if change == "gate by themselves":
            joined = torch.cat([mixed[:, i] for i in range(h)], -1)
            gate = 1 / (1 + (-(joined @ p.W_O.reshape(h * e, -1) @ p.extra["element gate"])).exp())
            return torch.stack([gate[..., i * e : (i + 1) * e] for i in range(h)], 1)
        if change == "norm before the projection":
            square = sum(mixed[:, i].square().sum(-1) for i in range(h)) / (h * e)
            gamma = p.extra["sub norm"].view(h, 1, e)
            return gamma / (square + 1e-6).sqrt()[:, None, :, None]
        return None

    # ---------------------------------------------------------------------------------------------------- layers

    @property
    def real(self) -> Tensor:
        """(b, n) bool: what some layer hides, and another one looks at from what is real or is read, is real."""
        c = self.config
        nobody_looks = c.causal and c.padding == "right" and c.readout == "every position"
        return self.inputs.real if c.told == "all" or nobody_looks else torch.ones_like(self.inputs.real)

    def visible(self, n: int, number: int = 0) -> Tensor | None:
        """(b, n, n) bool, who may see whom in one layer."""
        c, told = self.config, self.config.is_told(number)
        real = self.inputs.real if told else torch.ones_like(self.inputs.real)
        if c.mask == "none" and not (c.padding and told):
            return None
        visible = torch.zeros(c.batch, n, n, dtype=torch.bool)
        for i in range(n):
            for j in range(n):
                seen = {
                    "none": True,
                    "causal": j <= i,
                    "window": abs(i - j) <= 1,
                    "causal window": i - 2 <= j <= i,
                    "prefix": j <= i or (i < 2 and j < 2),
                    "isolated": j != 1 or i == 1,  # no other token sees the second
                }[c.mask]
                for example in range(c.batch):
                    is_real = not c.padding or bool(real[example, j])
                    itself = i == j and not is_real
                    visible[example, i, j] = (seen and is_real) or itself
        return visible

    def _layer(
        self, x: State, p: LayerParameters, memory: State | None, visible: Tensor | None, mixer: bool = False,
        row: int | None = None, alpha: Tensor | None = None,
    ) -> State:  # fmt: skip
        """One layer, or one row behind it, the only one that asks; with weights of its own or those given."""
        if self.config.beside:
            return self._parallel_layer(x, p, visible, mixer)
        if self.config.branch.startswith("parallel blocks"):
            x = self._side_by_side(x, p, visible)
        else:
            x = self._attended(x, p, "attention", visible, row=row, alpha=alpha)
        if p.cross is not None:
            assert memory is not None
            x = self._attended(x, p, "cross", None, memory)
        norm = self.config.norm
        if norm == "none":
            return self.beside(x, self.feed_forward(x, p.feed_forward, mixer))
        if norm == "post":
            return self.norm(self.beside(x, self.feed_forward(x, p.feed_forward, mixer)), p.norms["feed forward"])
        out = self.feed_forward(self.norm(x, p.norms["feed forward"]), p.feed_forward, mixer)
        out = self.norm(out, p.norms["feed forward out"]) if norm == "sandwich" else out
        return self.beside(x, out)

    def _side_by_side(self, x: State, p: LayerParameters, visible: Tensor | None) -> State:
        """x with what two attention parts give out, each behind its norm and times its scale."""
        outs, calls, keys = [], [], []
        scales = p.scales or (torch.ones(x.value.shape[-1], dtype=torch.float64),) * 2
        for name, part, scale in zip(("attention", "side"), (p.attention, _present(p.side)), scales, strict=True):
            y = self.norm(x, p.norms[name])
            out, call = self.attention(y, y, part, visible)
            outs.append(self._affine(out, out.value * scale, lambda parts, s=scale: parts * s, torch.zeros_like(scale)))
            calls.append(call)
            keys.append(y)
        return self.total(x, *outs, reach=self._reached(x, keys[0], calls), alti=None)

    def _attended(
        self, x: State, p: LayerParameters, name: str, visible: Tensor | None, memory: State | None = None,
        row: int | None = None, alpha: Tensor | None = None,
    ) -> State:  # fmt: skip
        """x with attention's output added, norms where they belong."""
        norm, crosses = self.config.norm, memory is not None
        y = self.norm(x, p.norms[name]) if norm in ("pre", "sandwich") else x
        keys = y if memory is None else memory
        if self.config.branch == "latents among the keys" and memory is not None:
            keys = _one_behind_the_other(memory, y)
        if self.config.branch == "keys of the token before" and memory is None:
            keys = _of_the_token_before(y)
        x, y = (x, y) if row is None else (one_row(x, row), one_row(y, row))
        out, call = self.attention(y, keys, _present(p.cross if crosses else p.attention), visible, crosses, alpha)
        outs, calls = [out], [call]
        if p.side is not None and not crosses:
            shared = call.weights if self.config.branch == "shared softmax" else None
            side, second = self.attention(y, keys, p.side, visible, alpha=shared)
            outs, calls = [out, side], [call, second]
        inner = p.norms[f"{name} out"] if norm == "sandwich" else None
        if inner is not None:  # it stands behind the sum
            outs = [self.norm(self.total(*outs, reach=None, alti=None), inner)]
        total = self.total(x, *outs, reach=self._reached(x, keys, calls), alti=None)
        outer = p.norms[name] if norm == "post" else None
        result = total if outer is None else self.norm(total, outer)
        if len(calls) > 1:
            return result
        alti = self._alti(x, keys, call, out.value, inner, total.value, outer, result.value, crosses)
        return replace(result, alti=alti)

    def _parallel_layer(self, x: State, p: LayerParameters, visible: Tensor | None, mixer: bool) -> State:
        """Attention and feed-forward beside each other on the same normalised input."""
        y = self.norm(x, p.norms["attention"])
        out, call = self.attention(y, y, p.attention, visible)
        fed, moved = self._in_place(x, self.feed_forward(y, p.feed_forward, mixer))
        attended = x.value + out.value
        alti = self._alti(x, y, call, out.value, None, attended, None, attended)
        if moved:
            return self.total(x, out, fed, reach=None, alti=None)
        return self.total(x, out, fed, reach=self._reached(x, y, [call]), alti=alti)

    def _reached(self, x: State, memory: State, calls: list[Call]) -> Tensor | None:
        """(sum of A reach(keys) + reach(x)) / row sum."""
        if x.reach is None or memory.reach is None:
            return None
        total, mass = x.reach, torch.ones_like(x.reach[..., :1])
        for call in calls:
            A = call.weights.mean(1)
            total, mass = total + A @ memory.reach, mass + A.sum(-1, keepdim=True)
        return total / mass

    def _alti(
        self, x: State, memory: State, call: Call, attended: Tensor, inner: NormParameters | None, total: Tensor,
        outer: NormParameters | None, y: Tensor, cross: bool = False,
    ) -> Tensor | None:  # fmt: skip
        """c reach, with c_ij = max(0, ||y_i|| - ||y_i - t_ij||) / row sum in L1; the call has the lengths of t_ij."""
        t = self._through_block(x, memory, call, attended, inner, total, outer, cross)
        call.block_norms = t.norm(dim=-1)
        if x.alti is None or memory.alti is None:
            return None
        length = y.abs().sum(-1)[..., None]
        c = length - (y[:, :, None] - t).abs().sum(-1)
        c = torch.where(c > 1e-12 * length, c, 0.0)  # less is rounding: a masked key brings nothing nearer
        total_c = c.sum(-1, keepdim=True)
        self.empty_rows |= bool((total_c == 0).any())
        c = torch.where(total_c > 0, c / total_c, 0.0)
        if cross:
            return c[..., :-1] @ memory.alti + c[..., -1:] * x.alti
        return c @ memory.alti

    def _through_block(
        self, x: State, memory: State, call: Call, attended: Tensor, inner: NormParameters | None, total: Tensor,
        outer: NormParameters | None, cross: bool,
    ) -> Tensor:  # fmt: skip
        """t_ij, what each key makes of each query through the block, the residual and the norms included, (b, q, k, d);
        the residual of cross-attention is one more key."""
        vectors = call.vectors().sum(1)  # (b, q, k, d)
        own = x.value
        if inner is not None:
            vectors = self.centred(vectors) / self.sigma(attended)[:, :, None] * inner.gamma
        columns = [vectors[:, :, k] for k in range(vectors.shape[2])]
        if cross:
            columns.append(own)
        else:
            for i, k in enumerate(_where(x.index, memory.index, vectors)):
                columns[k][:, i] = columns[k][:, i] + own[:, i]
        t = torch.stack(columns, 2)
        if outer is not None:
            t = self.centred(t) / self.sigma(total)[:, :, None] * outer.gamma
        return t

    def _stream(self, x: State, memory: State | None) -> State:
        c, p = self.config, self.parameters
        start, other, kept = x, x, []
        x = self.mixed_by(x) if c.mixer_place == "before" else x
        for number, layer in enumerate(p.layers):
            visible = self.visible(x.value.shape[1], number)
            inside = c.mixer_place == "inside" and (number == 0 or c.shared)
            if c.branch == "embedding again" and number:
                x, moved = self._in_place(start, x)  # what was moved since is added to rows that were not
                x = self.total(x, start, reach=None if moved else _mean(x.reach, start.reach), alti=None)
            if c.branch == "interleaved":
                other = self._layer(other, p.other[number], memory, visible)
            if c.branch == "unused":
                self._layer(x, p.other[number], memory, visible)
            row = None if c.branch != "one row last" or number < c.layers - 1 else 0 if c.readout == "first" else -1
            again = c.branch == "weights again" and number > 0
            first = self.calls[0 if c.stack != "encoder-decoder" else c.layers].weights if again else None
            x = self._layer(x, layer, memory, visible, inside, row, first)
            if number == 0 and c.mixer_place == "between":
                x = self.mixed_by(x)
            elif number == 0 and c.mixer_place == "beside":
                x = self.beside(x, self.mixed_by(x))
            kept.append(x)
        if c.branch == "two towers":
            for layer in p.other:
                other = self._layer(other, layer, memory, self.visible(other.value.shape[1]))
        if c.branch == "class attention":
            token = self._class_token(x)
            for layer in p.other:
                token = self._layer(one_behind(token, x), layer, None, None, row=0)
            return one_behind(token, x)
        if c.branch in ("two towers", "interleaved"):
            return self.total(x, other, reach=_mean(x.reach, other.reach), alti=None)
        if c.branch == "long skip":
            return self.total(x, start, reach=_mean(x.reach, start.reach), alti=None)
        if c.branch == "dense mean":
            reach = _mean(*(k.reach for k in kept))
            return self.total(*kept, reach=reach, alti=kept[0].alti if len(kept) == 1 else None, scale=1 / len(kept))
        return kept[0] if c.readout == "hidden layer" else x

    # ---------------------------------------------------------------------------------------------------- mixers

    def mixed_by(self, state: State) -> State:
        """What the config's mixer makes of a state."""
        p, name = self.parameters.mixer, WRITTEN_ELSEWHERE.get(self.config.mixer, self.config.mixer)
        n, d = state.value.shape[1:]
        mixed = replace(state, pure=False, reach=None, alti=None, mixers=(*state.mixers, name))
        if name in LINEAR_MIXERS:
            T, bias = linear_mixer(name, n, d, p)
            if name in ("roll", "flip"):
                order = [(i - 1) % n for i in range(n)] if name == "roll" else [n - 1 - i for i in range(n)]
                moved = None if state.index is None else state.index[order]
                reach, alti = (None if r is None else r[:, order] for r in (state.reach, state.alti))
                parts = None if state.parts is None else state.parts[:, :, order]
                # Each row is still made of one token alone: what is pure stays so.
                return replace(state, value=state.value[:, order], parts=parts, index=moved, reach=reach, alti=alti)
            mixed = replace(mixed, index=None) if name == "halved" else mixed
            return self._transformed(state, mixed, T, bias)
        if name == "token mlp":
            T, bias = tokens_mixed(p["tokens"], p["token bias"], n, d)
            T2, bias2 = tokens_mixed(p["tokens 2"], p["token bias 2"], n, d)
            hidden = self.activated(self._transformed(state, mixed, T, bias), "gelu")
            return self._transformed(hidden, hidden, T2, bias2)
        if name == "gru":
            return replace(mixed, value=gru(state.value, p), parts=None)
        if name == "squeeze":
            gate = 1 / (1 + (-(state.value.mean(1, keepdim=True) @ p["squeeze"])).exp())
            value, parts = state.value * gate, None if state.parts is None else state.parts * gate
        else:
            centred, parts = state.value - state.value.mean((1, 2), keepdim=True), state.parts
            sigma = (centred.square().mean((1, 2), keepdim=True) + EPS).sqrt()
            value = centred / sigma
            if parts is not None:
                parts = (parts - parts.mean((2, 3), keepdim=True)) / sigma
        return replace(mixed, value=value, parts=parts)

    def _transformed(self, state: State, mixed: State, T: Tensor, bias: Tensor) -> State:
        """x_i = sum_j T_ij x_j + bias."""
        value = torch.einsum("idje,bje->bid", T, state.value) + bias
        if state.parts is None:
            return replace(mixed, value=value, parts=None)
        parts = torch.einsum("idje,pbje->pbid", T, state.parts)
        parts = torch.cat([parts[:-1], parts[-1:] + bias])
        return replace(mixed, value=value, parts=parts)

    # --------------------------------------------------------------------------------------------------- read-out

    def _read(self, x: State) -> Truth:
        c, readout, (b, n, _) = self.config, self.config.readout, x.value.shape
        real = self.real if n == self.real.shape[1] else torch.ones(b, n, dtype=torch.bool)
        W, bias = self.parameters.classifier
        prefix = c.prefix + (c.branch == "class attention")
        rows: Tensor | None = self._rows(x, real)
        target: Any = self.inputs.target_class
        if readout in ("every position", "row in target"):
            logits = self.linear(x, W, bias)
            assert rows is not None
            # With padding the row of the convention differs by example, and a target has one row for the batch.
            number = self.inputs.row if c.padding or readout == "row in target" else int(rows[0].argmax())
            target = (number, target)
            parts = None if logits.parts is None else logits.parts[:, :, number, target[1]]
            output = logits.value
        elif readout in OWN_ROWS:
            logits = self.linear(x, W, bias)
            of_classes = torch.arange(logits.value.shape[-1])
            output = logits.value[:, of_classes % n, of_classes]
            parts = None if logits.parts is None else logits.parts[:, :, target % n, target]
        else:
            pooled = self._picked(x, rows, real)
            if readout == "pooler":
                pooled = self.activated(self.linear(pooled, *self.parameters.pooler), "tanh")
            logits = self.linear(pooled, W, bias)
            output = logits.value[:, 0]
            parts = None if logits.parts is None else logits.parts[:, :, 0, target]
        if readout == "max pooling" or (x.mixers and c.mixer_place == "end"):
            rows = None
        reach, alti = ((None if r is None or rows is None else torch.einsum("bn,bnt->bt", rows, r))
                       for r in (x.reach, x.alti))  # fmt: skip
        placed = None
        if rows is not None and x.index is not None:
            length = n if c.stack == "latents" else self.lengths[-1] + prefix
            placed = torch.zeros(b, length, dtype=torch.float64).index_add(1, x.index + prefix, rows)
        return Truth(
            output=output,
            calls=self.calls,
            used=x.calls,
            rows=placed,
            by_convention=readout == "every position",
            reach=reach,
            alti=alti,
            shares=None if parts is None else parts[:-1].T,
            real=self.real,
            never_hidden=self.inputs.real,
            room=c.room,
            target=target,
            mixers=x.mixers,
            lengths=self.lengths,
            prefix=prefix,
            empty_rows=self.empty_rows,
            last=x,
        )

    def _rows(self, x: State, real: Tensor) -> Tensor | None:
        """(b, n): how much of each row the output reads."""
        readout, (b, n, _) = self.config.readout, x.value.shape
        rows = torch.zeros(b, n, dtype=torch.float64)
        if readout == "every position":
            calls = [call for call in self.calls if call.query_source == call.key_source == x.source]
            kinds = {call.kind for call in calls}
            readout = "last" if kinds == {"causal"} else "first"
        for example in range(b):
            positions = [i for i in range(n) if real[example, i]]
            if readout in ("first", "pooler", "hidden layer"):
                rows[example, 0 if readout == "pooler" else positions[0]] = 1
            elif readout == "last":
                rows[example, positions[-1]] = 1
            elif readout in ("fixed row", "row in target", "row through a view"):
                rows[example, self.inputs.row] = 1
            elif readout in OWN_ROWS:
                rows[example, self.inputs.target_class % n] = 1
            elif readout == "mean":
                rows[example, positions] = 1 / len(positions)
            elif readout in WEIGHTED_READOUTS:
                weights = row_weights(n)[positions]
                rows[example, positions] = weights / weights.sum()
            elif readout == "attention pooling":
                scores = x.value[example, positions] @ self.parameters.pooling
                e = (scores - scores.max()).exp()
                rows[example, positions] = (e / e.sum()).detach()
        return rows

    def _picked(self, x: State, rows: Tensor, real: Tensor) -> State:
        if self.config.readout != "max pooling":
            value = torch.einsum("bn,bnd->bd", rows, x.value)[:, None]
            parts = None if x.parts is None else torch.einsum("bn,pbnd->pbd", rows, x.parts)[:, :, None]
            return replace(x, value=value, parts=parts, pure=False)
        chosen = x.value.masked_fill(~real[..., None], float("-inf")).argmax(1, keepdim=True)
        value = x.value.gather(1, chosen)
        parts = None if x.parts is None else x.parts.gather(2, chosen.expand(len(x.parts), *chosen.shape))
        return replace(x, value=value, parts=parts, pure=False)


def _present(p: AttentionParameters | None) -> AttentionParameters:
    assert p is not None
    return p


def _looks_back(edges: Tensor, queries: Tensor | None, keys: Tensor | None) -> bool:
    """Whether no position sees a later one; rows count where they are no positions."""
    if queries is None or keys is None:
        queries, keys = (torch.arange(n) for n in edges.shape[-2:])
    return not (edges & (keys[None, :] > queries[:, None])).any()


def _where(queries: Tensor | None, keys: Tensor | None, vectors: Tensor) -> list[int]:
    """Which key each query is."""
    if queries is None or keys is None:
        return list(range(vectors.shape[1]))
    return [keys.tolist().index(position) for position in queries.tolist()]


def one_row(state: State, row: int) -> State:
    """One row of a state, from the first (0) or the last (-1)."""

    def of(x: Tensor | None, axis: int) -> Tensor | None:
        return None if x is None else x.narrow(axis, row % x.shape[axis], 1)

    parts = None if state.parts is None else of(state.parts, 2)
    return replace(state, value=of(state.value, 1), parts=parts, index=of(state.index, 0), reach=of(state.reach, 1),
                   alti=of(state.alti, 1))  # fmt: skip


def one_behind(first: State, second: State) -> State:
    """Two sequences of one source, one behind the other."""

    def both(a: Tensor | None, b: Tensor | None, axis: int) -> Tensor | None:
        return None if a is None or b is None else torch.cat([a, b], axis)

    return State(
        value=torch.cat([first.value, second.value], 1),
        parts=both(first.parts, second.parts, 2),
        pure=False,
        source=second.source,
        index=both(first.index, second.index, 0),
        reach=both(first.reach, second.reach, 1),
        alti=both(first.alti, second.alti, 1),
        calls=first.calls | second.calls,
        parents=first.parents | second.parents,
        mixers=tuple(dict.fromkeys((*first.mixers, *second.mixers))),
    )


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)


def _mean(*reaches: Tensor | None) -> Tensor | None:
    return None if any(r is None for r in reaches) else sum(reaches) / len(reaches)


def _one_behind_the_other(first: State, second: State) -> State:
    """The rows of a sequence, and behind them those of learned vectors, which are none of its positions."""
    assert first.index is not None
    index = torch.cat([first.index, torch.full((second.value.shape[1],), -1)])
    nothing_taken_in = second.parts is not None and not second.parts[:-1].any()

    def both(ours: Tensor | None, theirs: Tensor | None, axis: int) -> Tensor | None:
        return None if ours is None or theirs is None else torch.cat([ours, theirs], axis)

    return replace(
        first, value=torch.cat([first.value, second.value], 1), parts=both(first.parts, second.parts, 2),
        pure=first.pure and nothing_taken_in, index=index,
        reach=both(first.reach, second.reach, 1), alti=both(first.alti, second.alti, 1),
        calls=first.calls | second.calls, parents=first.parents | second.parents,
        mixers=(*first.mixers, *second.mixers),
    )  # fmt: skip


def _of_the_token_before(state: State) -> State:
    """A state whose rows are those of the token before, of the first the last one's."""
    def moved(rows: Tensor | None, axis: int) -> Tensor | None:
        return None if rows is None else rows.roll(1, axis)

    return replace(
        state, value=state.value.roll(1, 1), parts=moved(state.parts, 2), index=moved(state.index, 0),
        reach=moved(state.reach, 1), alti=moved(state.alti, 1),
    )  # fmt: skip
