"""A random transformer as a torch module: embedding, layers, what mixes positions beside attention, and the read-out.

Axes: b batch, n position, d model, c class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.random_models.attention import (
    additive,
    fill_torch_attention,
    linear,
    make_attention,
    torch_masks,
    visible_keys,
)
from tests.random_models.config import OVERWRITTEN, OWN_ROWS, WEIGHTED_READOUTS, Config
from tests.random_models.formulas import row_weights
from tests.random_models.opaque import sums_so_far
from tests.random_models.parameters import (
    FeedForwardParameters,
    Inputs,
    LayerParameters,
    NormParameters,
    Parameters,
    draw_parameters,
)
from tests.random_models.spellings import ACTIVATIONS, GATED, MEANS, ROWS, SHIFTS, SUMS, by_divisor

EPS = 1e-5


class Norm(nn.Module):
    """LayerNorm or RMSNorm written out by hand."""

    def __init__(self, form: str, p: NormParameters) -> None:
        super().__init__()
        self.form = form
        self.weight, self.bias = nn.Parameter(p.gamma.clone()), nn.Parameter(p.beta.clone())

    def forward(self, x: Tensor) -> Tensor:
        x = by_divisor(self.form, x)
        if self.form == "layer norm by addcmul":
            return torch.addcmul(self.bias, x, self.weight)
        return x * self.weight + self.bias if self.form.startswith("layer") else x * self.weight


def make_norm(config: Config, p: NormParameters) -> nn.Module:
    if " by " in config.norm_form:
        return Norm(config.norm_form, p)
    if config.norm_form == "rms norm":
        norm: nn.Module = nn.RMSNorm(config.width, eps=EPS, dtype=torch.float64)
    else:
        norm = nn.LayerNorm(config.width, eps=EPS, dtype=torch.float64)
        norm.bias.data = p.beta.clone()
    norm.weight.data = p.gamma.clone()
    return norm


class FeedForward(nn.Module):
    """Two linear maps with an activation between, or a gated one; ``inside`` stands before them."""

    def __init__(self, config: Config, p: FeedForwardParameters, inside: nn.Module | None) -> None:
        super().__init__()
        self.gated = GATED.get(config.feed_forward)
        self.activation = F.silu if self.gated else ACTIVATIONS[config.feed_forward]
        form = config.linear_elsewhere
        self.up, self.down, self.inside = linear(p.W_1, p.b_1, form), linear(p.W_2, p.b_2, form), inside
        if self.gated is not None:
            self.beside = linear(p.W_3, p.b_3, form)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.inside is None else self.inside(x)
        y = self.activation(self.up(x))
        return self.down(y if self.gated is None else self.gated(y, self.beside(x)))


class Mixer(nn.Module):
    """Something other than attention that mixes positions, (b, n, d) -> (b, n, d)."""

    def __init__(self, config: Config, p: dict[str, Tensor]) -> None:
        super().__init__()
        self.kind, self.seed, d = config.mixer, config.seed, config.width
        for name, tensor in p.items():
            if not name.startswith("gru"):
                self.register_buffer(name.replace(" ", "_"), tensor.clone())
        if self.kind == "gru":
            self.gru = nn.GRU(d, d, batch_first=True, dtype=torch.float64)
            self.gru.weight_ih_l0.data, self.gru.weight_hh_l0.data = p["gru input"].clone(), p["gru hidden"].clone()
            self.gru.bias_ih_l0.data, self.gru.bias_hh_l0.data = p["gru bias"].clone().unbind()

    def forward(self, x: Tensor) -> Tensor:
        name, _, place = self.kind.partition(" in ")
        return sums_so_far(place, x) if place else getattr(self, "_" + name.replace(" ", "_"))(x)

    def _convolution(self, x: Tensor) -> Tensor:
        return F.conv1d(x.mT, self.kernel, padding=1).mT

    def _depthwise_convolution(self, x: Tensor) -> Tensor:
        return F.conv1d(x.mT, self.depthwise[:, None], padding=1, groups=x.shape[-1]).mT

    def _causal_convolution(self, x: Tensor) -> Tensor:
        return F.conv1d(F.pad(x.mT, (2, 0)), self.kernel).mT

    def _fourier(self, x: Tensor) -> Tensor:
        return torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real / x.shape[-1] ** 0.5

    def _roll(self, x: Tensor) -> Tensor:
        return x.roll(1, 1)

    def _roll_through_a_view(self, x: Tensor) -> Tensor:
        y = x.clone()
        y.flatten(1).copy_(x.roll(1, 1).flatten(1))
        return y

    def _cumsum_through_a_view(self, x: Tensor) -> Tensor:
        y = x.clone()
        for position in range(1, x.shape[1]):
            y[:, position].add_(y[:, position - 1])
        return y

    def _roll_by_numpy(self, x: Tensor) -> Tensor:
        y = x.detach().clone()
        memory = y.numpy()
        memory[:] = np.roll(memory, 1, 1)
        return y

    def _flip(self, x: Tensor) -> Tensor:
        return x.flip(1)

    def _average(self, x: Tensor) -> Tensor:
        return F.avg_pool1d(x.mT, 3, stride=1, padding=1).mT

    def _halved(self, x: Tensor) -> Tensor:
        return F.avg_pool1d(x.mT, 2).mT

    def _cumsum(self, x: Tensor) -> Tensor:
        return x.cumsum(1)

    def _token_linear(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        return F.linear(x.mT, self.tokens[:n, :n], self.token_bias[:n]).mT

    def _token_mlp(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        y = F.gelu(F.linear(x.mT, self.tokens[:n, :n], self.token_bias[:n]))
        return F.linear(y, self.tokens_2[:n, :n], self.token_bias_2[:n]).mT

    def _token_shift(self, x: Tensor) -> Tensor:
        return SHIFTS[self.seed // 16 % len(SHIFTS)](x)

    def _recurrence(self, x: Tensor) -> Tensor:
        state, states = torch.zeros_like(x[:, 0]), []
        for one in x.unbind(1):
            state = self.decay * state + one
            states.append(state)
        return torch.stack(states, 1)

    def _centred(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)

    def _gru(self, x: Tensor) -> Tensor:
        return self.gru(x)[0]

    def _squeeze(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.mean(1, keepdim=True) @ self.squeeze)

    def _norm_over_positions(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:], eps=EPS)


def _in_a_view(x: Tensor, out: Tensor) -> Tensor:
    x.view(-1).add_(out.reshape(-1))
    return x


def _read_by_a_view(x: Tensor, out: Tensor) -> Tensor:
    view = x.view(x.shape)
    x.add_(out)
    return view


def _in_detached_memory(x: Tensor, out: Tensor) -> Tensor:
    detached = x.detach()
    x.add_(out)
    return detached


def _row_by_row(x: Tensor, out: Tensor) -> Tensor:
    for own, row in zip(x.unbind(1), out.unbind(1), strict=True):
        own.add_(row)
    return x


def _in_a_buffer(x: Tensor, out: Tensor) -> Tensor:
    buffer = torch.empty_like(x)
    buffer.copy_(x)
    return buffer.add_(out)


def _halved(write: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """What was read is overwritten, too: half of it is what is added to, twice."""

    def added(x: Tensor, out: Tensor) -> Tensor:
        write(x)
        return x * 2 + out

    return added


def _by_numpy(x: Tensor, out: Tensor) -> Tensor:
    x.detach().numpy()[:] += out.detach().numpy()
    return x


ADDED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "": lambda x, out: x + out,
    **SUMS,
    "in place": lambda x, out: x.add_(out),
    "through a view": _in_a_view,
    "read by a view": _read_by_a_view,
    "in detached memory": _in_detached_memory,
    "row by row": _row_by_row,
    "in a buffer": _in_a_buffer,
    "halved in place": _halved(lambda x: x.mul_(0.5)),
    "halved through a view": _halved(lambda x: x.view(-1).mul_(0.5)),
    "halved in detached memory": _halved(lambda x: x.detach().mul_(0.5)),
    "halved by its data": _halved(lambda x: setattr(x, "data", x * 0.5)),
    "by numpy": _by_numpy,
}
"""How the output of a part is added to its input, which is a tensor of its own unless nothing is overwritten."""


class Layer(nn.Module):
    """One layer: attention (and cross-attention), feed-forward, residuals and norms where the config has them."""

    def __init__(self, config: Config, p: LayerParameters, mixer: nn.Module | None) -> None:
        super().__init__()
        self.config = config
        self.attention = make_attention(config, p.attention)
        self.cross = None if p.cross is None else make_attention(config, p.cross, cross=True)
        self.side = None if p.side is None else make_attention(config, p.side)
        self.scales = None if p.scales is None else nn.Parameter(torch.stack(p.scales))
        self.feed_forward = FeedForward(config, p.feed_forward, mixer)
        if config.norm != "none":
            parts = ("attention", "cross", "feed forward") if p.cross else ("attention", "feed forward")
            names = [*parts, *(f"{part} out" for part in parts if config.norm == "sandwich")]
            names += ["side"] if config.branch.startswith("parallel blocks") else []
            self.norms = nn.ModuleDict({name.replace(" ", "_"): make_norm(config, p.norms[name]) for name in names})

    def forward(
        self, x: Tensor, memory: Tensor | None, visible: Tensor | None, weights: list[Tensor] | None = None
    ) -> Tensor:  # fmt: skip
        if self.config.beside:
            return self._beside(x, visible)
        if self.config.branch.startswith("parallel blocks"):
            x = x + self._side_by_side(x, visible)
        elif weights is not None:
            x = self.wrapped("attention", x, lambda y: self._by_first_weights(y, visible, weights))
        elif self.config.branch == "shared softmax":
            x = self.wrapped("attention", x, lambda y: self._by_one_softmax(y, visible))
        elif self.config.branch == "keys of the token before":
            x = self.wrapped("attention", x, lambda y: self.attention(y, y.roll(1, 1), visible))
        elif self.side is None:
            x = self.wrapped("attention", x, lambda y: self.attention(y, y, visible))
        else:
            x = self.wrapped("attention", x, lambda y: self.attention(y, y, visible) + self.side(y, y, visible))
        if self.cross is not None:
            assert memory is not None
            among = self.config.branch == "latents among the keys"
            x = self.wrapped("cross", x, lambda y: self.cross(y, torch.cat([memory, y], 1) if among else memory, None))
        return self.wrapped("feed_forward", x, self.feed_forward)

    def _beside(self, x: Tensor, visible: Tensor | None) -> Tensor:
        y = self.norms["attention"](x)
        return x + self.attention(y, y, visible) + self.feed_forward(y)

    def _side_by_side(self, x: Tensor, visible: Tensor | None) -> Tensor:
        y, z = self.norms["attention"](x), self.norms["side"](x)
        out, side = self.attention(y, y, visible), self.side(z, z, visible)
        if self.scales is None:
            return torch.stack([out, side]).sum(0)
        return out * self.scales[0] + side * self.scales[1]

    def _by_one_softmax(self, y: Tensor, visible: Tensor | None) -> Tensor:
        w = self.attention.weights_of(y, visible)
        return self.attention(y, y, visible, w) + self.side(y, y, visible, w)

    def _by_first_weights(self, y: Tensor, visible: Tensor | None, weights: list[Tensor]) -> Tensor:
        if not weights:
            weights.append(self.attention.weights_of(y, visible))
        return self.attention(y, y, visible, weights[0])

    def row_alone(self, x: Tensor, row: slice) -> Tensor:
        """One row after this layer, the only one that asks."""
        x = self.wrapped("attention", x, lambda y: self.attention(y[:, row], y, None), row)
        return self.wrapped("feed_forward", x, self.feed_forward)

    def wrapped(self, name: str, x: Tensor, part, row: slice | None = None) -> Tensor:
        """x (or one row of it) with a part's output added, norms where they belong."""
        norm, residual = self.config.norm, ADDED[self.config.residual if row is None else ""]

        def added(own: Tensor, out: Tensor) -> Tensor:
            whole, rest = residual(own, out), getattr(self._modules.get(name), "rest", None)
            return whole if rest is None else whole + rest

        if self.config.residual in OVERWRITTEN and row is None:
            x = x.clone(memory_format=torch.contiguous_format)
        own = x if row is None else x[:, row]
        if norm == "none":
            return added(own, part(x))
        if norm == "post":
            return self.norms[name](added(own, part(x)))
        out = part(self.norms[name](x))
        return added(own, self.norms[f"{name}_out"](out) if norm == "sandwich" else out)


class TorchLayer(nn.Module):
    """nn.TransformerEncoderLayer."""

    def __init__(self, config: Config, p: LayerParameters) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.TransformerEncoderLayer(
            config.width, config.heads, config.inner, 0.0, config.feed_forward,
            batch_first=True, norm_first=config.norm == "pre", dtype=torch.float64,
        )  # fmt: skip
        fill_torch_attention(self.layer.self_attn, p.attention)
        f = p.feed_forward
        self.layer.linear1.weight.data, self.layer.linear1.bias.data = f.W_1.T.contiguous(), f.b_1.clone()
        self.layer.linear2.weight.data, self.layer.linear2.bias.data = f.W_2.T.contiguous(), f.b_2.clone()
        for norm, name in ((self.layer.norm1, "attention"), (self.layer.norm2, "feed forward")):
            norm.weight.data, norm.bias.data = p.norms[name].gamma.clone(), p.norms[name].beta.clone()

    def forward(self, x: Tensor, memory: Tensor | None, visible: Tensor | None) -> Tensor:
        masks = torch_masks(self.config, x, visible)
        names = {"attn_mask": "src_mask", "key_padding_mask": "src_key_padding_mask"}
        return self.layer(x, **{names[name]: mask for name, mask in masks.items()})


class Embedding(nn.Module):
    """Vectors of the tokens, with what a learned or sinusoidal position code adds."""

    def __init__(self, config: Config, p: Parameters) -> None:
        super().__init__()
        self.position = config.position
        self.words = nn.Embedding.from_pretrained(p.embedding.clone()) if config.inputs == "ids" else None
        if self.position == "learned":
            self.positions = nn.Embedding.from_pretrained(p.positions.clone())

    def forward(self, tokens: Tensor) -> Tensor:
        x = tokens if self.words is None else self.words(tokens)
        n, d = x.shape[1:]
        if self.position == "learned":
            return x + self.positions(torch.arange(n))
        if self.position == "sinusoidal":
            angles = torch.arange(n)[:, None] * 100.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
            return x + torch.stack([angles.sin(), angles.cos()], -1).flatten(1).to(x.dtype)
        return x


class RandomTransformer(nn.Module):
    """The model of a config; ``run`` takes what every way of calling it comes down to."""

    def __init__(self, config: Config, p: Parameters) -> None:
        super().__init__()
        self.config, place = config, config.mixer_place
        self.mixer = Mixer(config, p.mixer) if config.mixer else None
        self.embedding = Embedding(config, p)
        self.layers = self._stack(p.layers, self.mixer if place == "inside" else None)
        if p.encoder:
            self.encoder = self._stack(p.encoder, None)
        if config.branch in ("two towers", "interleaved", "unused", "class attention"):
            self.other = self._stack(p.other, None)
        if config.branch == "class attention":
            self.class_token = nn.Parameter(p.class_token.clone())
        self.final = make_norm(config, p.final) if config.norm in ("pre", "sandwich") else None
        if config.readout == "pooler":
            self.pooler = linear(*p.pooler, config.linear_elsewhere)
        if config.readout == "attention pooling":
            self.pooling = nn.Parameter(p.pooling.clone())
        if config.stack == "latents":
            self.latents = nn.Parameter(p.latents.clone())
        if config.prefix:
            self.prefix = nn.Parameter(p.prefix.clone())
        self.classifier = linear(*p.classifier, config.linear_elsewhere)

    def _stack(self, layers: list[LayerParameters], mixer: nn.Module | None) -> nn.ModuleList:
        def one(number: int) -> nn.Module:
            if self.config.attention == "TransformerEncoderLayer":
                return TorchLayer(self.config, layers[number])
            has_mixer = number == 0 or self.config.shared
            return Layer(self.config.of_layer(number), layers[number], mixer if has_mixer else None)

        first = one(0)
        rest = range(1, len(layers))
        return nn.ModuleList([first, *(first if self.config.shared else one(number) for number in rest)])

    def run(self, tensors: tuple[Tensor, ...], real: Tensor | None, row: int) -> Tensor:
        """The output, (b, c), or (b, n, c) where there is one for every position."""
        memory = None
        if self.config.stack == "encoder-decoder":
            memory = self.embedding(tensors[0])
            for layer in self.encoder:
                memory = layer(memory, None, None)
        x = self.embedding(tensors[-1])
        if self.config.stack == "latents":
            memory, x = x, self.latents.expand(len(x), -1, -1)
        if self.config.prefix:
            x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        x = self._stream(x, memory, real)
        if self.config.mixer_place == "end":
            x = self.mixer(x)
        return self._read(x if self.final is None else self.final(x), real if self.config.told == "all" else None, row)

    def _stream(self, x: Tensor, memory: Tensor | None, real: Tensor | None) -> Tensor:
        branch, place = self.config.branch, self.config.mixer_place
        start, other, kept = x, x, [x]
        x = self.mixer(x) if place == "before" else x
        weights: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            told = real if self.config.is_told(number) else None
            visible = visible_keys(self.config, x.shape[1], x.shape[1], told, cross=False)
            if branch == "embedding again" and number:
                x = x + start
            if branch == "interleaved":
                other = self.other[number](other, memory, visible)
            if branch == "unused":
                self.other[number](x, memory, visible)
            if branch == "one row last" and number == len(self.layers) - 1:
                x = layer.row_alone(x, slice(-1, None) if self.config.readout == "last" else slice(0, 1))
            elif branch == "weights again":
                x = layer(x, memory, visible, weights)
            else:
                x = layer(x, memory, visible)
            if number == 0 and place in ("between", "beside"):
                x = self.mixer(x) if place == "between" else x + self.mixer(x)
            kept.append(x)
        if branch == "two towers":
            for layer in self.other:
                other = layer(other, memory, visible)
        if branch == "class attention":
            token = self.class_token.expand(len(x), 1, -1)
            for layer in self.other:
                token = layer.row_alone(torch.cat([token, x], 1), slice(0, 1))
            return torch.cat([token, x], 1)
        if branch in ("two towers", "interleaved"):
            return x + other
        if branch == "long skip":
            return x + start
        if branch == "dense mean":
            return torch.stack(kept[1:]).mean(0)
        return kept[1] if self.config.readout == "hidden layer" else x

    def _read(self, x: Tensor, real: Tensor | None, row: int) -> Tensor:
        readout = self.config.readout
        examples = torch.arange(len(x))
        everything = torch.ones(x.shape[:2], dtype=torch.bool) if real is None else real
        if self.config.read_by in MEANS:
            return self.classifier(MEANS[self.config.read_by](x, everything))
        if self.config.read_by:
            first, last = everything.int().argmax(1), x.shape[1] - 1 - everything.flip(1).int().argmax(1)
            return self.classifier(ROWS[self.config.read_by](x, first if readout == "first" else last))
        if readout in ("every position", "row in target"):
            return self.classifier(x)
        if readout in OWN_ROWS:
            return _of_own_rows(self.classifier(x), readout)
        if readout == "pooler":
            return self.classifier(torch.tanh(self.pooler(x[:, 0])))
        if readout in ("first", "hidden layer"):
            x = x[:, 0] if real is None else x[examples, real.int().argmax(1)]
        elif readout == "last":
            x = x[:, -1] if real is None else x[examples, x.shape[1] - 1 - real.flip(1).int().argmax(1)]
        elif readout == "fixed row":
            x = x[:, row]
        elif readout == "row through a view":
            read = x[:, 0].clone()
            read.unsqueeze(1).copy_(x[:, row : row + 1])
            x = read
        elif readout == "mean":
            weights = everything.to(x.dtype)[..., None]
            x = x.mean(1) if real is None else (x * weights).sum(1) / weights.sum(1)
        elif readout in WEIGHTED_READOUTS:
            weights = row_weights(x.shape[1]).to(x.dtype)[:, None] * everything.to(x.dtype)[..., None]
            x = _weighted(x, weights, readout) / weights.sum(1)
        elif readout == "attention pooling":
            scores = (x @ self.pooling).masked_fill(~everything, float("-inf"))
            x = (scores.softmax(-1)[..., None] * x).sum(1)
        elif readout == "max pooling":
            x = x.masked_fill(~everything[..., None], torch.finfo(x.dtype).min).amax(1)
        return self.classifier(x)


def _weighted(x: Tensor, weights: Tensor, readout: str) -> Tensor:
    """The sum of rows by their weights, in one of the ways of ``WEIGHTED_READOUTS``."""
    if readout == "weighted twice":
        return (x * weights.clamp_max(2) * (weights / weights.clamp(1, 2))).sum(1)
    if readout == "weighted in another format":
        return (x * weights).double().transpose(1, 2).sum(-1).to(x.dtype)
    if readout == "weighted in detached memory":
        x = x.clone()
        x.detach().mul_(weights)
        return x.sum(1)
    return (x * weights).sum(1)


def _of_own_rows(logits: Tensor, readout: str) -> Tensor:
    """Of each class the row of its number, (b, n, c) -> (b, c)."""
    n, c = logits.shape[1:]
    rows = torch.arange(c) % n
    if readout == "own rows by a mask":
        return (logits * F.one_hot(rows, n).T.to(logits.dtype)).sum(1)
    if readout == "own rows by indices":
        return logits[:, rows, torch.arange(c)]
    return logits[:, rows].diagonal(dim1=1, dim2=2)


class Unpadded(RandomTransformer):
    """Takes ids or vectors alone."""

    row = 0

    def forward(self, tokens: Tensor) -> Tensor:
        return self.run((tokens,), None, self.row)


class EncoderDecoder(RandomTransformer):
    """Takes the source and the prefix."""

    row = 0

    def forward(self, source: Tensor, prefix: Tensor) -> Tensor:
        return self.run((source, prefix), None, self.row)


class _ByAttentionMask(Unpadded):
    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        return self.run((tokens,), attention_mask.bool(), self.row)


class _ByMask(Unpadded):
    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.run((tokens,), mask, self.row)


class _ByKeyIsPadding(Unpadded):
    def forward(self, tokens: Tensor, key_is_padding: Tensor) -> Tensor:
        return self.run((tokens,), ~key_is_padding, self.row)


class _BySrcKeyPaddingMask(Unpadded):
    def forward(self, tokens: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        return self.run((tokens,), ~src_key_padding_mask, self.row)


class _ByLengths(Unpadded):
    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        counted = torch.arange(tokens.shape[1])
        if self.config.padding == "left":
            return self.run((tokens,), counted >= tokens.shape[1] - lengths[:, None], self.row)
        return self.run((tokens,), counted < lengths[:, None], self.row)


class _ByBoolean(Unpadded):
    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        return self.run((tokens,), visible[:, 0, 0], self.row)


class _ByBias(Unpadded):
    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        return self.run((tokens,), bias[:, 0, 0] == 0, self.row)


_CLASSES = {
    "": Unpadded, "attention_mask": _ByAttentionMask, "mask": _ByMask, "key_is_padding": _ByKeyIsPadding,
    "src_key_padding_mask": _BySrcKeyPaddingMask, "lengths": _ByLengths, "4-d boolean": _ByBoolean,
    "4-d additive": _ByBias,
}  # fmt: skip


def make_model(config: Config, p: Parameters | None = None, row: int = 0) -> RandomTransformer:
    """The model in evaluation mode; ``row`` is the one that the read-out "fixed row" reads."""
    kind = EncoderDecoder if config.stack == "encoder-decoder" else _CLASSES[config.padding_form]
    model = kind(config, draw_parameters(config) if p is None else p).to(getattr(torch, config.dtype)).eval()
    model.row = row
    return model.requires_grad_(False)


def arguments(config: Config, inputs: Inputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What the model takes: inputs that hold positions, and what it is told of padding."""
    dtype, real = getattr(torch, config.dtype), inputs.real
    tensors = tuple(t.to(dtype) if t.is_floating_point() else t for t in inputs.tensors)
    told = {
        "": (),
        "attention_mask": (real.long(),),
        "mask": (real,),
        "key_is_padding": (~real,),
        "src_key_padding_mask": (~real,),
        "lengths": (real.sum(1),),
        "4-d boolean": (real[:, None, None],),
        "4-d additive": (additive(real, torch.zeros((), dtype=dtype))[:, None, None],),
    }
    return tensors, told[config.padding_form]
