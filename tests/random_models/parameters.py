"""The numbers of a random transformer in their mathematical form, before any module lays them out.

Both the model and the oracle start from these: the model packs them into modules (fused, interleaved, factored ...),
the oracle reads them as they are.  All are float64 with values that the model's dtype holds exactly.

Axes: h head, g key head, e head_dim, d model, i inner, n position.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.random_models.config import Config

VOCABULARY, CLASSES, RANK, LATENTS = 30, 4, 3, 3


@dataclass
class NormParameters:
    """gamma and beta, (d,)."""

    gamma: Tensor
    beta: Tensor


@dataclass
class AttentionParameters:
    """One attention part: W_Q (h, d, e), W_K and W_V (g, d, e), W_O (h, e, d) and their biases.

    ``change`` is what happens between softmax and product; ``form`` how it is computed; ``factors`` are matrices whose
    product (or, for an adapter, sum with a product) one of them is; ``extra`` is what positions and changes need.
    """

    W_Q: Tensor
    b_Q: Tensor
    W_K: Tensor
    b_K: Tensor
    W_V: Tensor
    b_V: Tensor
    W_O: Tensor
    b_O: Tensor
    change: str
    form: str = ""
    factors: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class FeedForwardParameters:
    """W_1 (d, i), W_3 (d, i) for gated ones, W_2 (i, d) and biases."""

    W_1: Tensor
    b_1: Tensor
    W_3: Tensor
    b_3: Tensor
    W_2: Tensor
    b_2: Tensor


@dataclass
class LayerParameters:
    """One layer; ``side`` is the attention part that runs in parallel, ``cross`` a decoder's.

    ``scales``, (d,) each, multiply what attention and the part at its side give out.
    """

    attention: AttentionParameters
    feed_forward: FeedForwardParameters
    norms: dict[str, NormParameters]
    cross: AttentionParameters | None = None
    side: AttentionParameters | None = None
    scales: tuple[Tensor, Tensor] | None = None


@dataclass
class Parameters:
    """A whole model; ``other`` is the second tower or the branch that is not used."""

    embedding: Tensor
    positions: Tensor
    latents: Tensor
    prefix: Tensor
    layers: list[LayerParameters]
    encoder: list[LayerParameters]
    other: list[LayerParameters]
    mixer: dict[str, Tensor]
    final: NormParameters
    pooler: tuple[Tensor, Tensor]
    pooling: Tensor
    classifier: tuple[Tensor, Tensor]
    class_token: Tensor


class Draw:
    """Random tensors in the precision of the model."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(config.seed)

    def exact(self, tensor: Tensor) -> Tensor:
        return tensor.to(getattr(torch, self.config.dtype)).double()

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return self.exact(scale * torch.randn(*shape, generator=self.generator, dtype=torch.float64))

    def uniform(self, *shape: int, low: float, high: float) -> Tensor:
        numbers = torch.rand(*shape, generator=self.generator, dtype=torch.float64)
        return self.exact(low + (high - low) * numbers)

    def bias(self, *shape: int) -> Tensor:
        return self.normal(*shape, scale=0.3) if self.config.bias else torch.zeros(*shape, dtype=torch.float64)

    def integers(self, high: int, *shape: int, low: int = 0) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)


def draw_parameters(config: Config) -> Parameters:
    """The parameters of a model, from its seed."""
    draw, d = Draw(config), config.width
    numbers = range(1 if config.shared else config.layers)
    layers = [_layer(draw, number, cross=config.crossing) for number in numbers]
    encoder = [_layer(draw, number) for number in numbers] if config.stack == "encoder-decoder" else []
    other = [_layer(draw, number) for number in numbers]
    return Parameters(
        embedding=draw.normal(VOCABULARY, d),
        positions=draw.normal(16, d, scale=0.7),
        latents=draw.normal(LATENTS, d),
        prefix=draw.normal(config.prefix, d),
        layers=_repeated(layers, config),
        encoder=_repeated(encoder, config),
        other=_repeated(other, config),
        mixer=_mixer(draw, config),
        final=_norm(draw),
        pooler=(draw.normal(d, d, scale=d**-0.5), draw.bias(d)),
        pooling=draw.normal(d),
        classifier=(draw.normal(d, CLASSES, scale=d**-0.5), draw.bias(CLASSES)),
        class_token=draw.normal(d),
    )


def _repeated(layers: list[LayerParameters], config: Config) -> list[LayerParameters]:
    return layers * config.layers if config.shared else layers


def _norm(draw: Draw) -> NormParameters:
    d = draw.config.width
    has_bias = draw.config.norm_form.startswith("layer")
    return NormParameters(draw.uniform(d, low=0.5, high=1.5), draw.normal(d, scale=0.3 * has_bias))


def _layer(draw: Draw, number: int, cross: bool = False) -> LayerParameters:
    config = draw.config.of_layer(number)
    names = ("attention", "attention out", "cross", "cross out", "feed forward", "feed forward out", "side")
    parallel = config.branch in ("parallel attention", "parallel blocks", "parallel blocks scaled", "shared softmax")
    scaled = config.branch == "parallel blocks scaled"
    return LayerParameters(
        attention=_attention(draw, config),
        feed_forward=_feed_forward(draw),
        norms={name: _norm(draw) for name in names},
        cross=_attention(draw, config) if cross else None,
        side=_attention(draw, config) if parallel else None,
        scales=(draw.normal(config.width, scale=0.5), draw.normal(config.width)) if scaled else None,
    )


def _attention(draw: Draw, c: Config) -> AttentionParameters:
    d, h, g, e = c.width, c.heads, c.key_heads, c.head_dim
    damped = 0.5 if c.norm == "none" else 1.0  # nothing else keeps the stream from growing
    p = AttentionParameters(
        W_Q=draw.normal(h, d, e, scale=1.3 * d**-0.5),
        b_Q=draw.bias(h, e),
        W_K=draw.normal(g, d, e, scale=1.3 * d**-0.5),
        b_K=draw.bias(g, e),
        W_V=draw.normal(g, d, e, scale=d**-0.5),
        b_V=draw.bias(g, e),
        W_O=draw.normal(h, e, d, scale=1.5 * damped * (h * e) ** -0.5),
        b_O=draw.bias(d),
        change=c.change,
        form=c.attention,
        extra=_extra(draw),
    )
    _factorise(draw, c, p)
    return p


def _factorise(draw: Draw, c: Config, p: AttentionParameters) -> None:
    """Replace a matrix by a product of two where the model holds it so."""
    d, h, g, e = c.width, c.heads, c.key_heads, c.head_dim
    if c.projection == "low rank":
        down, up = draw.normal(d, RANK, scale=d**-0.5), draw.normal(RANK, g, e, scale=RANK**-0.5)
        p.factors |= {"V down": down, "V up": up}
        p.W_V = torch.einsum("dr,rge->gde", down, up)
    if c.output.startswith("two linears"):
        down, up = draw.normal(h, e, RANK, scale=(h * e) ** -0.5), draw.normal(RANK, d, scale=3 * RANK**-0.5)
        p.factors |= {"O down": down, "O up": up}
        p.W_O = torch.einsum("her,rd->hed", down, up)
    if c.output.startswith("adapter"):
        down, up = draw.normal(h, e, RANK, scale=(h * e) ** -0.5), draw.normal(RANK, d, scale=RANK**-0.5)
        p.factors |= {"O": p.W_O, "O down": down, "O up": up}
        p.W_O = p.W_O + torch.einsum("her,rd->hed", down, up)


def _extra(draw: Draw) -> dict[str, Tensor]:
    """What positions and changes of the weights need."""
    c = draw.config
    d, h, g, e = c.width, c.heads, c.key_heads, c.head_dim
    longest = max(c.length, c.memory) + c.prefix
    return {
        "relative": draw.normal(h, 2 * longest + 1),
        "talking": draw.normal(h, h, scale=h**-0.5) + torch.eye(h, dtype=torch.float64) * 0.5,
        "head scale": draw.uniform(h, low=0.4, high=1.6),
        "keep": (torch.rand(longest, longest, generator=draw.generator) < 0.7).double().clamp(
            min=torch.eye(longest, dtype=torch.float64)
        ),
        "head gate": draw.normal(d, h, scale=d**-0.5),
        "element gate": draw.normal(d, h * e, scale=d**-0.5),
        "sub norm": draw.uniform(h * e, low=0.5, high=1.5),
        "batch norm": torch.stack(
            [draw.normal(h, scale=0.1), draw.uniform(h, low=0.1, high=0.5), draw.uniform(h, low=0.5, high=1.5),
             draw.normal(h, scale=0.1)]
        ),
        "W_Q2": draw.normal(h, d, e, scale=1.3 * d**-0.5),
        "W_K2": draw.normal(g, d, e, scale=1.3 * d**-0.5),
        "sink": draw.normal(h),
    }  # fmt: skip


def _feed_forward(draw: Draw) -> FeedForwardParameters:
    d, i = draw.config.width, draw.config.inner
    damped = 0.5 if draw.config.norm == "none" else 1.0
    return FeedForwardParameters(
        W_1=draw.normal(d, i, scale=d**-0.5),
        b_1=draw.bias(i),
        W_3=draw.normal(d, i, scale=d**-0.5),
        b_3=draw.bias(i),
        W_2=draw.normal(i, d, scale=damped * i**-0.5),
        b_2=draw.bias(d),
    )


def _mixer(draw: Draw, config: Config) -> dict[str, Tensor]:
    d, n = config.width, config.length + config.prefix
    return {
        "kernel": draw.normal(d, d, 3, scale=(3 * d) ** -0.5),  # (out, in, offset)
        "depthwise": draw.normal(d, 3),
        "decay": draw.uniform(d, low=0.3, high=0.9),
        "tokens": draw.normal(n, n, scale=n**-0.5),
        "token bias": draw.bias(n),
        "tokens 2": draw.normal(n, n, scale=n**-0.5),
        "token bias 2": draw.bias(n),
        "squeeze": draw.normal(d, d, scale=2 * d**-0.5),
        "gru input": draw.normal(3 * d, d, scale=d**-0.5),
        "gru hidden": draw.normal(3 * d, d, scale=d**-0.5),
        "gru bias": draw.normal(2, 3 * d, scale=0.3),
    }


@dataclass
class Inputs:
    """What a model is given.

    Attributes:
        tensors: ids (batch, position) or vectors (batch, position, d); of an encoder-decoder the source, then the
            prefix.
        real: (batch, position) bool, True at real tokens.
        row: the row that ``target`` names, where the read-out is "row in target"; the row of "fixed row".
        target_class: which class is explained.
    """

    tensors: tuple[Tensor, ...]
    real: Tensor
    row: int
    target_class: int


def draw_inputs(config: Config) -> Inputs:
    """The inputs of a model, from its seed."""
    draw = Draw(Config(seed=config.seed + 10**9, kind="", dtype=config.dtype))
    lengths = (config.memory, config.length) if config.stack == "encoder-decoder" else (config.length,)

    def one(length: int) -> Tensor:
        if config.inputs == "ids":
            order = torch.randperm(VOCABULARY - 1, generator=draw.generator)[: config.batch * length]
            return order.view(config.batch, length) + 1  # no token twice: equal keys would have equal weights
        return draw.normal(config.batch, length, config.width)

    tensors = tuple(one(length) for length in lengths)
    real = torch.ones(config.batch, config.length, dtype=torch.bool)
    if config.padding:
        for example in range(1, config.batch):
            count = 1 + int(draw.integers(min(3, config.length - 2), 1))
            real[example, slice(0, count) if config.padding == "left" else slice(config.length - count, None)] = False
    first = int(real.int().argmax(1).max())  # real in every example
    last = int(real.int().sum(1).min()) - 1 + (first if config.padding == "left" else 0)
    row = first + int(draw.integers(max(1, min(last, config.length - 1) - first + 1), 1))
    row = min(row, config.length // 2 - 1) if config.mixer == "halved" else row
    return Inputs(tensors, real, row, int(draw.integers(CLASSES, 1)))
