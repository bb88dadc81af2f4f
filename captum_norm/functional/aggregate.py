"""How do the maps of many layers become one answer?

A map says how much each output of a layer owes to each of its inputs.  Where one layer's outputs are the next one's
inputs, the product of the maps says what the last layer owes to the first:

    rollout = A_last @ ... @ A_2 @ A_1,        with residual connections  A' = (A + I) / rowsum(A + I).

Attention flow asks for more: taking each entry for the most that can pass along that edge, how much can pass from one
input to one output at all, by whatever paths?

In encoder-decoder models the decoder's layers owe to the source through cross-attention, and to the prefix of the
target through their residual and self-attention.

Sources: Abnar and Zuidema (2020), "Quantifying Attention Flow in Transformers", https://arxiv.org/abs/2005.00928;
Ferrando et al. (2022), "Towards Opening the Black Box of Neural Machine Translation" (ALTI+),
https://arxiv.org/abs/2205.11631.

Axes: b batch, q query position of the last map, k key position of the first.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captum_norm.functional.axes import check_axes, check_finite, result_dtype
from captum_norm.functional.maxflow import max_flows
from captum_norm.functional.precision import full_precision
from captum_norm.functional.stacks import check_chain, check_encoder_decoder, check_maps, identity, rows_at


@torch.no_grad()
def rollout(
    maps: Sequence[Tensor], residual: bool = False, position: int | Sequence[int] | Tensor | None = None
) -> Tensor:
    """What the outputs of the last layer owe to the inputs of the first, through all paths.

    Args:
        maps: one map (batch, query, key) per layer, from the first layer to the last; the queries of one are the keys
            of the next.
        residual: mix each map with the identity, (A + I) / 2, and divide rows by their sum, as the paper does for
            attention weights.
        position: the outputs asked for.  ``None``: all.  An integer, or one per example: that row of the last map
            (negative from the end).  A floating-point tensor (batch, query): the sum of the rows with these weights,
            for example 1 / query for a model that pools by the mean.

    Returns:
        (batch, query, key) or, with ``position``, (batch, key).  float64 if any map is, else float32.  The rows of
        ``position`` cost one vector-matrix product per layer, where all rows cost a matrix product.

    Raises:
        TypeError: if a map is not of floating point.
        ValueError: if there is no map, if two that follow each other disagree in shape, if ``residual`` meets a map
            that is not square, if ``position`` is out of range, or if a map holds NaN or infinity.

    Example:
        The second layer's output 0 looks at position 1, which in the first layer looked at position 0:

        >>> first, second = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]), torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])
        >>> rollout([first, second])
        tensor([[[1.0000, 0.0000],
                 [0.7500, 0.2500]]])
        >>> rollout([first, second], position=1)
        tensor([[0.7500, 0.2500]])
        >>> rollout([first, second], residual=True, position=0)
        tensor([[0.6250, 0.3750]])
    """
    named = check_maps("rollout", maps)
    check_chain("rollout", maps, residual)
    dtype = result_dtype(*maps)
    # Attribution may run inside an autocast region, which would take these products to half precision.
    with full_precision(maps[0].device):
        if position is None:
            last = maps[-1].to(dtype, copy=True)
            rows, rest = with_identity(last) if residual else last, maps[:-1]
        else:
            rows, rest = rows_at("rollout", position, maps[-1], dtype), maps
        for layer in reversed(rest):
            rows = _through(rows, layer.to(rows), residual)
    check_finite("rollout", rows, **named)
    return rows if position is None else rows.squeeze(1)


@torch.no_grad()
def flow(
    maps: Sequence[Tensor], residual: bool = False, position: int | Sequence[int] | Tensor | None = None,
    normalize: bool = True, on_found: Callable[[int], object] | None = None,
) -> Tensor:  # fmt: skip
    """How much can pass from each input of the first layer to the outputs of the last: the maximum flow of each pair.

    Args:
        maps: as in ``rollout``, and non-negative.
        residual: mix each map with the identity, as in ``rollout``; the paper does.
        position: the outputs asked for, as in ``rollout``; floating-point weights give the weighted sum of the rows.
        normalize: divide each row by its sum, as the authors' code does.  Rows of zeros stay.
        on_found: told, each time that some flows are found, how many: a row has one for each key.

    Returns:
        (batch, query, key) or, with ``position``, (batch, key).  float64 if any map is, else float32; exact in
        float64 to about 1e-12 of what can leave the output or reach the input at most.  A row costs a flow per key:
        with 12 layers of 128 positions a tenth of a second, or some seconds where narrow passages lie in between.

    Raises:
        TypeError, ValueError: as ``rollout`` does; ValueError, too, if a map holds a negative number.

    Example:
        Output 0 takes .5 of both positions, but no more than .2 of position 1 comes from input 1:

        >>> first, second = torch.tensor([[[1.0, 0.0], [0.8, 0.2]]]), torch.tensor([[[0.5, 0.5], [0.0, 1.0]]])
        >>> flow([first, second], position=0, normalize=False)
        tensor([[1.0000, 0.2000]])
        >>> flow([first, second], position=0)
        tensor([[0.8333, 0.1667]])
    """
    named = check_maps("flow", maps)
    check_chain("flow", maps, residual)
    for name, (a, _) in named.items():
        if (a < 0).any():
            raise ValueError(f"flow: {name} holds {(a < 0).sum().item()} negative numbers, the least {a.min().item()}.")
        check_finite("flow", a, **{name: named[name]})
    capacities = [with_identity(a.double()) if residual else a.double() for a in maps]
    flows = []
    for b, weights in enumerate(rows_at("flow", position, maps[-1], torch.float64)):  # (rows of the result, query)
        rows = weights.any(0).nonzero()[:, 0]
        flows.append(weights[:, rows] @ _flows([a[b] for a in capacities], rows, normalize, on_found))
    result = torch.stack(flows).to(result_dtype(*maps))
    return result if position is None else result.squeeze(1)


@torch.no_grad()
def rollout_encoder_decoder(
    encoder: Sequence[Tensor], decoder: Sequence[Tensor], cross: Sequence[Tensor], residual: bool = False,
    position: int | Sequence[int] | Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the decoder's outputs owe to the source and to the prefix of the target, through all paths, as in ALTI+.

    A decoder layer passes what its self-attention gathered on by way of the residual of its cross-attention:
    ``source = cross @ encoder + r * (self @ source below)`` and ``prefix = r * (self @ prefix below)``, with r that
    residual's share.

    Args:
        encoder: the maps of the encoder's layers, (batch, source, source), from the first to the last; may be empty
            if the source is to be taken as the encoder's output.
        decoder: the maps of the decoder's self-attention, (batch, target, target), from the first layer to the last.
        cross: the maps of its cross-attention, (batch, target, source + 1), as many; the last column is the residual,
            as ``residual_key="column"`` gives it.
        residual: for maps without residuals, as of attention weights: mix self-attention with the identity, as in
            ``rollout``, and add to cross-attention, (batch, target, source), a last column of ones, each row being
            divided by its sum.
        position: the decoder's outputs asked for, as in ``rollout``.

    Returns:
        Scores of the source, (batch, target, source), and of the prefix, (batch, target, target); with ``position``
        (batch, source) and (batch, target).  Where the rows of all maps add up to 1, so do a row of both together.

    Raises:
        TypeError: if a map is not of floating point.
        ValueError: if the decoder has no map or not as many as ``cross``, if shapes disagree, if ``position`` is out
            of range, or if a map holds NaN or infinity.

    Example:
        The decoder's only layer takes a quarter from source token 1, and hands on the rest of its own tokens:

        >>> self_map, cross_map = torch.tensor([[[0.5, 0.5]]]).expand(1, 2, 2), torch.tensor([[[0.0, 0.25, 0.75]]])
        >>> rollout_encoder_decoder([], [self_map], [cross_map.expand(1, 2, 3)], position=1)
        (tensor([[0.0000, 0.2500]]), tensor([[0.3750, 0.3750]]))
    """
    caller = "rollout_encoder_decoder"
    named = check_encoder_decoder(caller, encoder, decoder, cross, residual)
    dtype = result_dtype(*encoder, *decoder, *cross)
    # Attribution may run inside an autocast region, which would take these products to half precision.
    with full_precision(decoder[0].device):
        rows = rows_at(caller, position, decoder[-1], dtype)
        source = rows.new_zeros(*rows.shape[:2], cross[0].shape[2] - (not residual))
        for self_map, cross_map in zip(reversed(decoder), reversed(cross), strict=True):
            cross_map = cross_map.to(dtype)
            shares, kept = cross_shares(cross_map) if residual else (cross_map[..., :-1], cross_map[..., -1:])
            source = passed_on(rows, shares, own=source)
            rows = _through(rows * kept.mT, self_map.to(dtype), residual)
        for layer in reversed(encoder):
            source = _through(source, layer.to(dtype), residual)
    check_finite(caller, source, **named)
    check_finite(caller, rows, **named)
    return (source, rows) if position is None else (source.squeeze(1), rows.squeeze(1))


@torch.no_grad()
def mean(maps: Sequence[Tensor]) -> Tensor:
    """The mean of equally shaped maps.

    Args:
        maps: maps (batch, query, key), all of one shape.

    Returns:
        (batch, query, key), float64 if any map is, else float32.

    Raises:
        TypeError: if a map is not of floating point.
        ValueError: if there is no map, if two disagree in shape, or one holds NaN or infinity.

    Example:
        >>> mean([torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])])
        tensor([[[0.5000, 0.5000]]])
    """
    named = check_maps("mean", maps)
    check_axes("mean", **named)
    total = torch.zeros_like(maps[0], dtype=result_dtype(*maps))
    for a in maps:
        total += a
    return check_finite("mean", total / len(maps), **named)


def _flows(
    capacities: Sequence[Tensor], rows: Tensor, normalize: bool, on_found: Callable[[int], object] | None
) -> Tensor:
    """Flows of one example from all inputs to some outputs, (row, key); capacities (query, key), first layer first."""
    bottom, *middle = capacities
    supply = middle.pop()[rows] if middle else identity(bottom[None], bottom.dtype)[0][rows]
    demand = bottom.T
    result = torch.stack([max_flows(middle, row.expand(len(demand), -1), demand, on_found) for row in supply])
    if normalize:
        totals = result.sum(1, keepdim=True)
        result = result / totals.masked_fill(totals == 0, 1)
    return result


def with_identity(weights: Tensor, rows: slice | None = None) -> Tensor:
    """(A + I) / row sum: each position keeps as much of itself as it takes in where a row of A sums to 1.

    Args:
        weights: A, a map within one sequence, (batch, position, position).
        rows: the queries that weights are of, where they are not all.

    Example:
        >>> with_identity(torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]))
        tensor([[[0.7500, 0.2500],
                 [0.5000, 0.5000]]])
    """
    if rows is None:
        return (weights + identity(weights, weights.dtype)) / _row_sums(weights)
    weights = weights / (sums := _row_sums(weights))
    weights[:, :, rows].diagonal(dim1=1, dim2=2).add_(1 / sums[..., 0])
    return weights


def cross_shares(weights: Tensor) -> tuple[Tensor, Tensor]:
    """``with_identity`` of cross-attention, where no key is the query itself: A / (1 + row sum), 1 / (1 + row sum).

    Args:
        weights: A, (batch, query, key).

    Returns:
        The shares of the keys, (batch, query, key), and what each query keeps of itself, (batch, query, 1).

    Example:
        >>> cross_shares(torch.tensor([[[0.25, 0.75]]]))
        (tensor([[[0.1250, 0.3750]]]), tensor([[[0.5000]]]))
    """
    sums = _row_sums(weights)
    return weights / sums, 1 / sums


def passed_on(weights: Tensor, reach: Tensor, own: Tensor | None = None) -> Tensor:
    """One step along the model, ``own + weights @ reach``: rollout, ALTI+ and relevance are made of such steps.

    Args:
        weights: what queries take from each key, (batch, query, key).
        reach: what the keys owe to some sequence so far, (batch, key, position).
        own: what the queries owe to it already and keep, (batch, query, position); None for nothing.

    Example:
        >>> passed_on(torch.tensor([[[0.5, 0.5]]]), torch.eye(2)[None], own=torch.tensor([[[0.0, 1.0]]]))
        tensor([[[0.5000, 1.5000]]])
    """
    return weights @ reach if own is None else own + weights @ reach


def _through(rows: Tensor, layer: Tensor, residual: bool) -> Tensor:
    """rows @ layer, or rows @ with_identity(layer) without making that matrix."""
    if not residual:
        return passed_on(rows, layer)
    rows = rows / _row_sums(layer).mT
    return passed_on(rows, layer, own=rows)


def _row_sums(layer: Tensor) -> Tensor:
    """Row sums of layer + I, (batch, query, 1)."""
    return 1 + layer.sum(-1, keepdim=True)
