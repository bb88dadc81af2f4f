"""What part of each hidden state comes from each token?  DecompX, propagated layer by layer.

A hidden state is kept as a sum of vectors x_i = sum_k x_{i<-k}, one for each token k, and each step of a layer is made
linear at the state that the model was in: attention weights and 1/sigma are constants, an activation is a line for each
entry.  What a bias adds belongs to no token; a rule says how it is shared among the parts it is added to.

Source: Modarressi et al. (2023), "DecompX: Explaining Transformers Decisions by Propagating Token Decomposition",
https://arxiv.org/abs/2306.02873, section 3.  In the first layer b_V goes with its token, in later layers it is among
the biases, as in the authors' code; ``values_of_tokens`` says where.

Axes: b batch, h head, q query, k key, s source, e head_dim, d model, f feed-forward.
Parts are (batch, query, source, model): x_{i<-k} with i the query and k the source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.linalg import vector_norm

from captum_norm.functional.axes import check_axes
from captum_norm.functional.normalization import FrozenNorm

BiasRule = Literal["none", "token", "equal", "cls", "absdot", "norm", "abssim", "dot"]
ActivationLine = Literal["ZO", "LA", "ReLU"]

_TINY = 1e-12  # as in the authors' code: where no part resembles the bias, it is shared to nobody


def share_bias(parts: Tensor, bias: Tensor, rule: BiasRule) -> Tensor:
    """Parts with what a bias adds to their sum.

    Args:
        parts: (..., source, model), with any leading axes.
        bias: (model,), or (..., model) with the leading axes of parts.
        rule: ``"none"`` drops the bias, ``"token"`` gives it to the last source, ``"cls"`` to the first, ``"equal"`` in
            the same share to all parts that are not zero; ``"absdot"`` in proportion to \\|<x, b>\\|, ``"abssim"`` to
            \\|cos(x, b)\\|, ``"norm"`` to \\|\\|x\\|\\|, ``"dot"`` to <x, b>, whose sum may be near zero.

    Returns:
        Shaped as parts.  But for ``"none"``, and where all weights are zero, their sum over sources has grown by bias.

    Raises:
        ValueError: for an unknown rule.

    Example:
        >>> share_bias(torch.tensor([[3.0, 0.0], [1.0, 5.0]]), torch.tensor([4.0, 0.0]), "absdot")
        tensor([[6., 0.],
                [2., 5.]])
    """
    wide = torch.promote_types(parts.dtype, torch.float32)  # half precision has no room for the weights
    weights = _weights(parts.to(wide), bias.to(wide), rule)
    return parts if weights is None else parts + weights[..., None].to(parts.dtype) * bias[..., None, :]


def _weights(parts: Tensor, bias: Tensor, rule: BiasRule) -> Tensor | None:
    """Each source's share of a bias, (..., source)."""
    if rule == "none":
        return None
    if rule in ("token", "cls"):
        shares = parts.new_zeros(parts.shape[-2])
        shares[-1 if rule == "token" else 0] = 1
        return shares
    if rule == "norm":
        weights = vector_norm(parts, dim=-1)
    elif rule == "equal":
        weights = (parts != 0).any(-1).to(parts.dtype)
    elif rule in ("absdot", "dot", "abssim"):
        weights = (parts * bias[..., None, :]).sum(-1) if bias.ndim > 1 else parts @ bias
        if rule == "abssim":
            lengths = vector_norm(parts, dim=-1) * vector_norm(bias, dim=-1, keepdim=bias.ndim > 1)
            weights = weights / lengths.clamp_min(torch.finfo(parts.dtype).tiny)
        weights = weights if rule == "dot" else weights.abs()
    else:
        raise ValueError(f"bias rule should be one of {', '.join(map(repr, get_args(BiasRule)))}, got {rule!r}.")
    return weights / (weights.sum(-1, keepdim=True) + _TINY)


@dataclass(frozen=True)
class EncoderLayer:
    """One encoder layer with norms after the residual (BERT), as it was when the model ran.

    Attributes:
        hidden: what went in, (batch, query, model).
        weights: of attention, (batch, head, query, key).
        W_V, b_V: values, (model, head, head_dim) and (head, head_dim).
        W_O, b_O: output projection, (head, head_dim, model) and (model,).
        norm_1, norm_2: after attention and after the feed-forward block, with their states.
        W_1, b_1, W_2, b_2: feed-forward block, (model, feed), (feed,), (feed, model), (model,).
        act: its activation, entry by entry.
    """

    hidden: Tensor
    weights: Tensor
    W_V: Tensor
    b_V: Tensor
    W_O: Tensor
    b_O: Tensor
    norm_1: FrozenNorm
    W_1: Tensor
    b_1: Tensor
    W_2: Tensor
    b_2: Tensor
    norm_2: FrozenNorm
    act: Callable[[Tensor], Tensor] = torch.nn.functional.gelu


def decompx_layer(
    parts: Tensor | None,
    layer: EncoderLayer,
    rule: BiasRule = "absdot",
    activation: ActivationLine = "ZO",
    *,
    feed_forward: bool = True,
    layer_norm: bool = True,
    values_of_tokens: bool | None = None,
) -> Tensor:
    """The parts of a layer's output from those of its input.

    Args:
        parts: (batch, query, source, model); None in the first layer, where every token is its own part.
        layer: what the model computed.
        rule: how biases are shared, see :func:`share_bias`; ``"token"`` adds a source that takes them all.
        activation: ``"ZO"`` act(z)/z, ``"LA"`` the tangent, its intercept shared like a bias (by absdot under
            ``"none"``, whose code never drops it), ``"ReLU"`` z where z > 0, the rest dropped.
        feed_forward: False leaves the feed-forward block out (an ablation).
        layer_norm: False leaves both norms out (an ablation).
        values_of_tokens: whether b_V goes with its token; None: in the first layer, as in the authors' code.

    Returns:
        (batch, query, source, model).

    Example:
        >>> h, norm = torch.tensor([[[1.0, -1.0], [0.5, 1.5]]]), FrozenNorm()
        >>> two, zero = torch.eye(2), torch.zeros(2)
        >>> layer = EncoderLayer(h, torch.full((1, 1, 2, 2), 0.5), two[:, None], zero[None], two[None], zero,
        ...                      norm, two, zero, two, zero, norm)
        >>> decompx_layer(None, layer, feed_forward=False, layer_norm=False)[0, 0]  # half of each, and itself
        tensor([[ 1.5000, -1.5000],
                [ 0.2500,  0.7500]])
    """
    check_axes("decompx_layer", **{name: (getattr(layer, name), axes) for name, axes in _AXES.items()})
    parts, bias = _attended(parts, layer, parts is None if values_of_tokens is None else values_of_tokens, rule)
    parts = share_bias(parts, bias, rule)
    if layer_norm:
        parts = _normed(parts, layer.norm_1, rule)
    if feed_forward:
        state = layer.norm_1.output().to(parts.dtype) if layer.norm_1.state is not None else parts.sum(2)
        inner = share_bias(parts @ layer.W_1, layer.b_1, rule)
        inner = activated(inner, state @ layer.W_1 + layer.b_1, layer.act, rule, activation)
        parts = parts + share_bias(inner @ layer.W_2, layer.b_2, rule)
    return _normed(parts, layer.norm_2, rule) if layer_norm else parts


_AXES = {
    "hidden": "batch query model",
    "weights": "batch head query key",
    "W_V": "model head head_dim",
    "b_V": "head head_dim",
    "W_O": "head head_dim model",
    "b_O": "model",
    "W_1": "model feed",
    "b_1": "feed",
    "W_2": "feed model",
    "b_2": "model",
}


def _attended(parts: Tensor | None, layer: EncoderLayer, with_b_V: bool, rule: BiasRule) -> tuple[Tensor, Tensor]:
    """Parts after attention and residual, and the bias that is still to be shared."""
    if parts is None:
        parts = torch.diag_embed(layer.hidden.mT).permute(0, 2, 3, 1)  # a token's hidden state is its own
        if rule == "token":
            parts = torch.cat([parts, torch.zeros_like(parts[:, :, :1])], 2)
    # Heads are mixed in value space, and projected once.
    values = torch.einsum("bksd,dhe->bhkse", parts, layer.W_V)
    if with_b_V:
        tokens = torch.arange(layer.hidden.shape[1], device=values.device)
        values[:, :, tokens, tokens] += layer.b_V[:, None]
    mixed = torch.einsum("bhqk,bhkse->bqshe", layer.weights, values)
    out = torch.einsum("bqshe,hed->bqsd", mixed, layer.W_O) + parts
    return out, layer.b_O if with_b_V else layer.b_O + torch.einsum("he,hed->d", layer.b_V, layer.W_O)


def _normed(parts: Tensor, norm: FrozenNorm, rule: BiasRule) -> Tensor:
    if norm.centred:
        parts = parts - parts.mean(-1, keepdim=True)
    if norm.weight is not None:
        parts = parts * norm.weight
    if norm.deviation is not None:
        parts = parts / norm.deviation[..., None, None].to(parts.dtype)
    return parts if norm.bias is None else share_bias(parts, norm.bias, rule)


def activated(
    parts: Tensor, z: Tensor, act: Callable[[Tensor], Tensor], rule: BiasRule, activation: ActivationLine
) -> Tensor:
    """Parts of act(z) from parts of z.

    Args:
        parts: (batch, query, source, feed), summing to z over sources if no bias was dropped.
        z: what the model's activation was given, (batch, query, feed).
        act: the activation.
        rule: how the intercept of the tangent is shared.
        activation: ``"ZO"``, ``"LA"`` or ``"ReLU"``.

    Raises:
        ValueError: for an unknown line.

    Example:
        >>> activated(torch.tensor([[[[1.0], [3.0]]]]), torch.tensor([[[4.0]]]), torch.square, "equal", "ZO").flatten()
        tensor([ 4., 12.])
    """
    if activation == "ZO":
        return parts * torch.where(z == 0, 0, act(z) / z)[:, :, None]
    if activation == "ReLU":
        return parts * (z > 0)[:, :, None]
    if activation != "LA":
        raise ValueError(f"activation should be 'ZO', 'LA' or 'ReLU', got {activation!r}.")
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        value = act(leaf)
        slope = torch.autograd.grad(value.sum(), leaf)[0]
    intercept = value.detach() - z * slope
    return share_bias(parts * slope[:, :, None], intercept, "absdot" if rule == "none" else rule)


def decompx_output(
    parts: Tensor,
    row: Tensor,
    W: Tensor,
    b: Tensor,
    classifier: Tensor,
    of_classes: Tensor,
    rule: BiasRule = "absdot",
    activation: ActivationLine = "ZO",
) -> Tensor:
    """What each source adds to each class, through a pooler with tanh and a linear classifier.

    Args:
        parts: of the position that is pooled, (batch, source, model).
        row: its hidden state, (batch, model).
        W, b: the pooler, (model, model) and (model,).
        classifier, of_classes: weight (model, class) and bias (class,).
        rule, activation: as in :func:`decompx_layer`.

    Returns:
        (batch, source, class), signed, in the units of the logits.

    Example:
        >>> eye, zero = torch.eye(1), torch.zeros(1)
        >>> parts = torch.tensor([[[0.25], [0.75]]])
        >>> decompx_output(parts, parts.sum(1), eye, zero, eye, zero).flatten()  # tanh(1) = 0.7616
        tensor([0.1904, 0.5712])
    """
    z = row @ W + b
    pooled = activated(share_bias(parts @ W, b, rule)[:, None], z[:, None], torch.tanh, rule, activation)[:, 0]
    return share_bias(pooled @ classifier, of_classes, rule)
