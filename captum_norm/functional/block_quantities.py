"""How much does input j contribute to output i of a whole attention block, with its residual and normalisation?

With the vectors of ``block``, u with the residual, t behind the norm and e behind the second norm:

    ||u_ij||    res_norms          ||t_ij||    res_ln_norms          ||e_ij||    globenc_norms

In pre-LN blocks nothing stands behind the residual, and res_norms are all there is.  How much of output i comes from
other positions is the mixing ratio

    r_i = m_i / (m_i + p_i),    m_i = ||sum_{j != i} u_ij||,    p_i = ||u_ii||,

for sum_h alpha f, u and t: a norm of the sum, not a sum of norms.

Sources: Kobayashi et al. (2021), https://arxiv.org/abs/2109.07152 (Attn-N, AttnRes-N, AttnResLn-N and their ratios);
Modarressi et al. (2022), "GlobEnc", https://arxiv.org/abs/2205.03286 (N-Enc).

Axes: b batch, h head, q query (i), k key (j), e head_dim, d model.  Norms are L2.  They are computed in float64 (the
other positions' part of a ratio in float32, where nothing cancels) and returned in float64 if any tensor is float64,
else in float32.  No gradient flows through them.
"""

from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from torch import Tensor

from captum_norm.functional.axes import check_axes, check_finite, result_dtype
from captum_norm.functional.block import Block, BlockOptions, ResidualKey, own_keys_of, per_head
from captum_norm.functional.normalization import FrozenNorm, divided
from captum_norm.functional.norms import fill_summed_norms
from captum_norm.functional.precision import full_precision


@torch.no_grad()
def block_quantities(
    quantities: Sequence[str],
    weights: Tensor,
    values: Tensor,
    W_O: Tensor,
    residual: Tensor | None = None,
    norm: FrozenNorm | None = None,
    second_norm: FrozenNorm | None = None,
    **options: Unpack[BlockOptions],
) -> dict[str, Tensor]:
    """Several quantities of one attention block, at less cost than one by one: they share vectors and products.

    Args:
        quantities: any of ``res_norms``, ``res_ln_norms``, ``globenc_norms``, (batch, query, key) each, and of
            ``mixing_attn``, ``mixing_res``, ``mixing_res_ln``, ``mixing_weights``, ``mixing_res_weights``,
            (batch, query) each.
        weights, values, W_O: as in ``head_norms``.
        residual: what the model adds to attention's output, (batch, query, model).
        norm: the norm behind the residual, at the state it normalised (attention + b_O + residual).
        second_norm: the norm behind the feed-forward part, at the state it normalised.
        options: ``gate``, ``inner`` and ``residual_key``, see ``BlockOptions``.

    Returns:
        The quantities by name, in the order asked for.  With ``residual_key="column"`` norms are
        (batch, query, key + 1), the residual last.  A mixing ratio is 0 where nothing arrives at all.

    Raises:
        TypeError: if a tensor is not of the dtype it should be.
        ValueError: if a quantity is unknown or lacks the residual or a norm, if shapes or devices disagree, if a
            tensor holds NaN or infinity, or if ``"diagonal"`` meets more or fewer keys than queries.

    Example:
        Attention looks at both positions alike; the residual speaks for the position itself:

        >>> weights, values = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[2.0, 0.0], [0.0, 2.0]]]])
        >>> residual = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])
        >>> found = block_quantities(["res_norms", "mixing_res"], weights, values, torch.eye(2)[None], residual)
        >>> found["res_norms"]
        tensor([[[3., 1.],
                 [1., 3.]]])
        >>> found["mixing_res"]
        tensor([[0.2500, 0.2500]])
    """
    block = Block("block_quantities", weights, values, W_O, residual, norm, second_norm, **options)
    return {name: _quantity(block, name) for name in quantities}


@torch.no_grad()
def res_norms(
    weights: Tensor, values: Tensor, W_O: Tensor, residual: Tensor, **options: Unpack[BlockOptions]
) -> Tensor:
    """||sum_h alpha_ij f_h(x_j) + [j = i] x_i||, the authors' AttnRes-N: (batch, query, key).

    Arguments and errors are those of ``block_quantities``.

    Example:
        >>> weights, values = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[6.0, 8.0], [0.0, 2.0]]]])
        >>> res_norms(weights, values, torch.eye(2)[None], residual=torch.tensor([[[-3.0, 0.0], [0.0, 1.0]]]))
        tensor([[[4., 1.],
                 [5., 2.]]])
    """
    return _quantity(Block("res_norms", weights, values, W_O, residual, **options))


@torch.no_grad()
def res_ln_norms(
    weights: Tensor, values: Tensor, W_O: Tensor, residual: Tensor, norm: FrozenNorm, **options: Unpack[BlockOptions]
) -> Tensor:
    """||N(sum_h alpha_ij f_h(x_j) + [j = i] x_i)||, the authors' AttnResLn-N: (batch, query, key).

    Arguments and errors are those of ``block_quantities``.

    Example:
        An RMSNorm that halves both queries:

        >>> weights, values = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[6.0, 8.0], [0.0, 2.0]]]])
        >>> norm = FrozenNorm(state=2 * torch.ones(1, 2, 2), eps=0.0, centred=False)
        >>> residual = torch.tensor([[[-3.0, 0.0], [0.0, 1.0]]])
        >>> res_ln_norms(weights, values, torch.eye(2)[None], residual, norm)
        tensor([[[2.0000, 0.5000],
                 [2.5000, 1.0000]]])
    """
    return _quantity(Block("res_ln_norms", weights, values, W_O, residual, norm, **options))


@torch.no_grad()
def globenc_norms(
    weights: Tensor,
    values: Tensor,
    W_O: Tensor,
    residual: Tensor,
    norm: FrozenNorm,
    second_norm: FrozenNorm,
    **options: Unpack[BlockOptions],
) -> Tensor:
    """||N_2(N(sum_h alpha_ij f_h(x_j) + [j = i] x_i))||, the N-Enc of GlobEnc: (batch, query, key).

    The feed-forward part is not applied to the vectors; it counts through the state of ``second_norm`` only.  GlobEnc
    is ``rollout`` of these maps without a residual.  Arguments and errors are those of ``block_quantities``.

    Example:
        >>> weights, values = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[6.0, 8.0], [0.0, 2.0]]]])
        >>> halved = FrozenNorm(state=2 * torch.ones(1, 2, 2), eps=0.0, centred=False)
        >>> residual = torch.tensor([[[-3.0, 0.0], [0.0, 1.0]]])
        >>> globenc_norms(weights, values, torch.eye(2)[None], residual, halved, second_norm=halved)
        tensor([[[1.0000, 0.2500],
                 [1.2500, 0.5000]]])
    """
    return _quantity(Block("globenc_norms", weights, values, W_O, residual, norm, second_norm, **options))


@torch.no_grad()
def mixing_attn(weights: Tensor, values: Tensor, W_O: Tensor, **options: Unpack[BlockOptions]) -> Tensor:
    """How much of what attention hands to a position comes from other positions, 0 to 1: (batch, query).

    Arguments and errors are those of ``block_quantities``.

    Example:
        >>> weights, values = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[6.0, 8.0], [0.0, 2.0]]]])
        >>> mixing_attn(weights, values, torch.eye(2)[None])
        tensor([[0.1667, 0.8333]])
    """
    return _quantity(Block("mixing_attn", weights, values, W_O, **options))


@torch.no_grad()
def mixing_res(
    weights: Tensor, values: Tensor, W_O: Tensor, residual: Tensor, **options: Unpack[BlockOptions]
) -> Tensor:
    """How much of attention and residual together comes from other positions, 0 to 1: (batch, query).

    Arguments and errors are those of ``block_quantities``.

    Example:
        >>> weights, values = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[6.0, 8.0], [0.0, 2.0]]]])
        >>> mixing_res(weights, values, torch.eye(2)[None], residual=torch.tensor([[[-3.0, 0.0], [0.0, 4.0]]]))
        tensor([[0.2000, 0.5000]])
    """
    return _quantity(Block("mixing_res", weights, values, W_O, residual, **options))


@torch.no_grad()
def mixing_res_ln(
    weights: Tensor, values: Tensor, W_O: Tensor, residual: Tensor, norm: FrozenNorm, **options: Unpack[BlockOptions]
) -> Tensor:
    """How much of attention and residual comes from other positions behind the norm, 0 to 1: (batch, query).

    Arguments and errors are those of ``block_quantities``.

    Example:
        A norm that silences the first dimension:

        >>> weights, values = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[6.0, 8.0], [0.0, 2.0]]]])
        >>> norm = FrozenNorm(torch.ones(1, 2, 2), weight=torch.tensor([0.0, 1.0]), centred=False)
        >>> mixing_res_ln(weights, values, torch.eye(2)[None], torch.tensor([[[-3.0, 0.0], [0.0, 4.0]]]), norm)
        tensor([[0.2000, 0.4444]])
    """
    return _quantity(Block("mixing_res_ln", weights, values, W_O, residual, norm, **options))


@torch.no_grad()
def mixing_weights(weights: Tensor, residual_key: ResidualKey = "diagonal") -> Tensor:
    """What the weights alone leave to other positions, 1 - mean_h alpha_ii, the authors' Attn-W: (batch, query).

    Half of it is their AttnRes-W, ``mixing_res_weights``.

    Args:
        weights: attention weights alpha, (batch, head, query, key).
        residual_key: which key is the query itself, see ``ResidualKey``; 1 where there is none.

    Raises:
        TypeError, ValueError: as ``block_quantities`` does.

    Example:
        >>> mixing_weights(torch.tensor([[[[0.75, 0.25], [0.0, 1.0]]]]))
        tensor([[0.2500, 0.0000]])
    """
    inputs = {"weights": (weights, "batch head query key")}
    own_keys = own_keys_of("mixing_weights", residual_key, check_axes("mixing_weights", **inputs), weights.device)
    return check_finite("mixing_weights", _mixing_weights(weights, own_keys, result_dtype(weights)), **inputs)


@torch.no_grad()
def mixing_res_weights(weights: Tensor, residual_key: ResidualKey = "diagonal") -> Tensor:
    """Half of ``mixing_weights``: the residual counts as much as all attention, the authors' AttnRes-W.

    Example:
        >>> mixing_res_weights(torch.tensor([[[[0.75, 0.25], [0.0, 1.0]]]]))
        tensor([[0.1250, 0.0000]])
    """
    return mixing_weights(weights, residual_key) / 2


def _quantity(block: Block, name: str = "") -> Tensor:
    """A quantity of the table, by default the one that the block's caller is named after; checked to be finite."""
    name = name or block.caller
    if name not in _QUANTITIES:
        raise ValueError(f"{block.caller}: no quantity {name!r}; there are {', '.join(_QUANTITIES)}.")
    needs, make = _QUANTITIES[name]
    for part in needs:
        if getattr(block, part) is None:
            raise ValueError(f"{block.caller}: {name} needs {part}, which is None.")
    # Attribution may run inside an autocast region, which would take these products to half precision.
    with full_precision(block.weights.device):
        return check_finite(block.caller, make(block), **block.inputs)


def _block_norms(block: Block, depth: int) -> Tensor:
    """The contributions behind so many norms."""
    norms = block.norms[:depth]
    after = block.behind_attention(norms)
    batch, _, query, key = block.weights.shape
    attention = block.weights.new_empty(batch, query, key, dtype=block.dtype)
    fill_summed_norms(attention, block.weights, block.values, block.W_O, block.gate, after)
    own = divided(block.own_lengths[1 + depth, ..., None].clone(), norms)
    return block.with_own(divided(attention, after), own[..., 0])


def _mixing(block: Block, stage: int) -> Tensor:
    """The ratio of Block's lengths at a stage.  What each query is divided by cancels."""
    m, p = block.others_lengths[stage], block.own_lengths[stage]
    return torch.where(m + p == 0, 0.0, m / (m + p)).to(block.dtype)


def _mixing_weights(weights: Tensor, own_keys: Tensor | None, dtype: torch.dtype) -> Tensor:
    if own_keys is None:
        return torch.ones_like(weights[:, 0, :, 0], dtype=dtype)
    return 1 - weights.gather(3, per_head(own_keys, weights.shape[1]))[..., 0].to(dtype).mean(1)


_QUANTITIES: dict[str, tuple[tuple[str, ...], Callable[[Block], Tensor]]] = {
    "res_norms": (("residual",), lambda block: _block_norms(block, 0)),
    "res_ln_norms": (("residual", "norm"), lambda block: _block_norms(block, 1)),
    "globenc_norms": (("residual", "norm", "second_norm"), lambda block: _block_norms(block, 2)),
    "mixing_attn": ((), lambda block: _mixing(block, 0)),
    "mixing_res": (("residual",), lambda block: _mixing(block, 1)),
    "mixing_res_ln": (("residual", "norm"), lambda block: _mixing(block, 2)),
    "mixing_weights": ((), lambda block: _mixing_weights(block.weights, block.own_keys, block.dtype)),
    "mixing_res_weights": ((), lambda block: _mixing_weights(block.weights, block.own_keys, block.dtype) / 2),
}
"""What each quantity needs beside attention, and how it is made."""
