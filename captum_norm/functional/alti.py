"""How much nearer does input j bring output i of a block to what it became?

With t_ij the vector that j adds to output y_i (see ``block``: attention, residual and norms, which are linear with
their divisors held fixed), the contribution of j to i is

    c_ij = max(0, ||y_i|| - ||y_i - t_ij||) / sum_j',        by default with the norm L1:

0 where taking t_ij away leaves no less than there was.  The rows add up to 1, and ``rollout`` without a residual takes
them through the layers.

Sources: Ferrando et al. (2022), "Measuring the Mixing of Contextual Information in the Transformer" (ALTI),
https://arxiv.org/abs/2203.04212; Ferrando et al. (2022), "Towards Opening the Black Box of Neural Machine Translation"
(ALTI+), https://arxiv.org/abs/2205.11631.

How much nearer a vector brings the output is in ``nearer``.

Axes: b batch, h head, q query (i), k key (j), e head_dim, d model.
"""

import warnings
from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor
from torch.linalg import vector_norm

from captum_norm.functional.axes import check_finite
from captum_norm.functional.block import Block, BlockOptions
from captum_norm.functional.nearer import nearer
from captum_norm.functional.normalization import FrozenNorm
from captum_norm.functional.precision import full_precision

# What the authors' code adds to each coordinate of a difference: a default of torch's pairwise_distance.
_PUBLISHED_EPS = 1e-6

# Of the output's length: less than this is rounding of a vector that points away, or of none.
_ROUNDING = 1e-12


@torch.no_grad()
def alti(
    weights: Tensor,
    values: Tensor,
    W_O: Tensor,
    residual: Tensor,
    norm: FrozenNorm | None = None,
    *,
    output: Tensor | None = None,
    p: int = 1,
    as_published: bool = False,
    **options: Unpack[BlockOptions],
) -> Tensor:
    """The contributions of ALTI, in shares of each row.

    Args:
        weights, values, W_O: as in ``head_norms``.
        residual: what the model adds to attention's output, (batch, query, model).
        norm: the norm behind the residual (post-LN), at the state it normalised; ``None`` in pre-LN blocks.
        output: y, what the block gave out with all biases, (batch, query, model).  ``None``: what ``norm`` made of its
            state; without a norm (pre-LN) it must be given, attention + b_O + residual.
        p: 1 for the L1 norm, 2 for L2.
        as_published: as the authors' code computes it: the norm divides without its eps, and 1e-6 is added to each
            coordinate of t - y.
        options: ``gate``, ``inner`` and ``residual_key``, see ``BlockOptions``.  In cross-attention (ALTI+)
            ``residual_key="column"`` gives (batch, query, key + 1), the residual last.

    Returns:
        (batch, query, key), non-negative, each row with the sum 1, or 0 where no input brings the output nearer (with
        a warning).  float64 if any tensor is float64, else float32.

    Raises:
        TypeError: if a tensor is not of the dtype it should be.
        ValueError: if the output is not known, if ``p`` is neither 1 nor 2, if shapes or devices disagree, or if a
            tensor holds NaN or infinity.

    Example:
        Three inputs of one output, of which the last points away from it:

        >>> weights, values = torch.ones(1, 1, 1, 3), torch.tensor([[[[2.0, 0.0], [0.0, 3.0], [0.0, -1.0]]]])
        >>> nothing = torch.zeros(1, 1, 2)
        >>> y = torch.tensor([[[2.0, 2.0]]])
        >>> alti(weights, values, torch.eye(2)[None], nothing, output=y, residual_key="column")
        tensor([[[0.6667, 0.3333, 0.0000, 0.0000]]])
    """
    if p not in (1, 2):
        raise ValueError(f"alti: p should be 1 or 2, got {p!r}.")
    if as_published and norm is not None:
        norm = replace(norm, eps=0.0)
    block = Block("alti", weights, values, W_O, residual, norm, output=output, **options)
    if output is not None:
        y = output.double()
    elif norm is None or norm.state is None:
        raise ValueError("alti: without a norm behind the residual, pass output=, what the block gave out.")
    else:
        y = norm.output()
    # Attribution may run inside an autocast region, which would take these products to half precision.
    with full_precision(weights.device):
        length = vector_norm(y, ord=p, dim=-1)
        y = y - _PUBLISHED_EPS if as_published else y
        shifted = vector_norm(y, ord=p, dim=-1)
        own = shifted - vector_norm(y - block.own_part(), ord=p, dim=-1)
        found = block.with_own(nearer(block, y, p), own) + (length - shifted)[..., None]
    check_finite("alti", found, **block.inputs)
    return shares_of_rows(torch.where(found > _ROUNDING * length[..., None], found, 0)).to(block.dtype)


def shares_of_rows(contributions: Tensor) -> Tensor:
    """Contributions (batch, query, key) divided by their row sums; rows without any are 0, with a warning."""
    totals = contributions.sum(-1, keepdim=True)
    empty = totals[..., 0] == 0
    if empty.any():
        place = tuple(empty.nonzero()[0].tolist())
        warnings.warn(
            f"alti: no input brings the output nearer at {int(empty.sum())} of {empty.numel()} queries, first at "
            f"(batch, query) = {place}; their contributions are zero.",
            stacklevel=4,  # the caller of alti, past the decorator
        )
    return contributions / totals.masked_fill(totals == 0, 1)
