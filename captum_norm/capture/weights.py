"""Attention weights that can be asked for rows: a tensor that the model made, or what a fused kernel was given.

A kernel keeps its weights to itself.  They are computed beside the model from its queries and keys, for those queries
that are asked about: a row costs a row.

Axes: ... the model's own leading axes (batch, head), q query, r row asked for, k key, e head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from captum_norm.functional.precision import full_precision
from captum_norm.operations.precision import at_least_float32

Rows = slice | Tensor
"""Which queries: some in a row, or a tensor of indices, (row,) the same for all or (..., row)."""


class Weights(Protocol):
    """Weights (..., query, key) of one attention call; mask and is_causal are those that are known beforehand."""

    shape: torch.Size
    device: torch.device
    mask: Tensor | None
    is_causal: bool

    @property
    def unchanged(self) -> bool:
        """Whether nothing has been written since to what they are read from."""

    @property
    def nbytes(self) -> int:
        """Of what they are read from."""

    def whole(self) -> Tensor:
        """All of them."""

    def at(self, rows: Rows) -> Tensor:
        """Those of some queries, (..., row, key)."""


class GivenWeights:
    """Weights that are there: rows of them are views where they can be."""

    is_causal = False

    def __init__(self, weights: Tensor) -> None:
        self.shape, self.device = weights.shape, weights.device
        self.mask: Tensor | None = None
        self._weights, self._version = weights, version_of(weights)
        self.nbytes = weights.nbytes

    @property
    def unchanged(self) -> bool:
        return self._version == version_of(self._weights)

    def whole(self) -> Tensor:
        return self._weights

    def at(self, rows: Rows) -> Tensor:
        # One map may serve all heads, of which rows are asked for one by one.
        lead = self.shape[:-2] if isinstance(rows, slice) or rows.ndim == 1 else rows.shape[:-1]
        return _rows_of(self._weights, rows, lead)


class HiddenWeights:
    """softmax(q k^T scale + mask): the weights that ``scaled_dot_product_attention`` uses and does not return.

    Args:
        query: (..., head, query, head_dim).
        key: (..., head or key/value head, key, head_dim).
        mask: bool, True where a key is allowed, or added to the scores; broadcastable to (..., head, query, key).
        is_causal: query i sees no key behind i.
        scale: of the scores; None for 1 / sqrt(head_dim).
    """

    def __init__(
        self, query: Tensor, key: Tensor, mask: Tensor | None = None, is_causal: bool = False,
        scale: float | None = None,
    ) -> None:  # fmt: skip
        self._query, self._key = query.detach(), key.detach()
        self.mask = mask = None if mask is None else mask.detach().expand(*(1,) * (2 - mask.ndim), *mask.shape)
        self.is_causal, self._scale = is_causal, query.shape[-1] ** -0.5 if scale is None else scale
        leads: list[Sequence[int]] = [query.shape[:-2]]
        self._grouped = key.ndim > 2 and query.ndim > 2 and key.shape[-3] != query.shape[-3]
        leads.append((*key.shape[:-3], 1) if self._grouped else key.shape[:-2])
        leads += [] if mask is None else [mask.shape[:-2]]
        alike = all(lead == leads[0] for lead in leads)
        self._lead = torch.Size(leads[0] if alike else np.broadcast_shapes(*leads))  # torch's own takes far longer
        self.shape, self.device = torch.Size((*self._lead, query.shape[-2], key.shape[-2])), query.device
        self._versions = self._versions_now()

    def _versions_now(self) -> list[int]:
        tensors = [self._query, self._key] if self.mask is None else [self._query, self._key, self.mask]
        return [version_of(tensor) for tensor in tensors]

    @property
    def unchanged(self) -> bool:
        return self._versions == self._versions_now()

    def whole(self) -> Tensor:
        return self.at(slice(None))

    @property
    def nbytes(self) -> int:
        """Of queries and keys."""
        return self._query.nbytes + self._key.nbytes

    def copied(self) -> HiddenWeights:
        """The same of queries and keys that nobody else writes to; a mask is no copy."""
        mask, scale = self.mask, self._scale
        return HiddenWeights(self._query.clone(), self._key.clone(), mask, self.is_causal, scale)

    @torch.no_grad()
    def at(self, rows: Rows) -> Tensor:
        dtype = at_least_float32(self._query.dtype)
        query = _rows_of(self._query, rows, self._lead).to(dtype) * self._scale
        keys, first = self.shape[-1], 0
        numbers = torch.arange(self.shape[-2], device=self.device)[rows] if isinstance(rows, slice) else rows
        if self.is_causal and isinstance(rows, slice) and len(numbers):  # none sees a key behind the last, all see some
            keys, first = min(keys, int(numbers.amax()) + 1), int(numbers.amin())
        with full_precision(self.device):
            scores = self._scores(query, self._key[..., :keys, :].to(dtype))
        if self.is_causal:
            behind = torch.arange(first, keys, device=self.device) > numbers[..., None]
            scores[..., first:].masked_fill_(behind, -math.inf)
        if self.mask is not None:
            mask = self.mask if self.mask.shape[-2] == 1 else _rows_of(self.mask, rows, self._lead)
            mask = mask[..., :keys] if mask.shape[-1] > 1 else mask
            scores.add_(_added(mask, scores.dtype))
        nothing = None if self.mask is None or not keys else scores.amax(-1, keepdim=True) == -math.inf
        # In place where that is known to be sound: on a CPU fresh memory costs more than the softmax itself.
        weights = torch.softmax(scores, -1, out=scores if scores.device.type == "cpu" else None)
        if nothing is not None and bool(nothing.any()):
            weights = weights.masked_fill_(nothing, 0.0)
        return _with_nothing_behind(weights, self.shape[-1])

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        """q k^T, (..., head, row, key); heads of a group side by side, so that no key is repeated for them."""
        if not self._grouped:
            scores = query @ key.mT
        else:
            groups, (heads, rows, width) = key.shape[-3], query.shape[-3:]
            joint = query.reshape(*query.shape[:-3], groups, heads // groups * rows, width)
            scores = joint @ key.mT
            scores = scores.view(*scores.shape[:-3], heads, rows, scores.shape[-1])
        wide = (*self._lead, *scores.shape[-2:])  # where a mask has more examples or heads than queries and keys
        return scores if scores.shape == wide else scores.expand(wide).clone()


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What a mask adds to scores, as torch's kernels do: writing where it says so takes several times as long."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -math.inf)


def _with_nothing_behind(weights: Tensor, keys: int) -> Tensor:
    """The same with zeros for the keys that follow."""
    found = weights.shape[-1]
    if found == keys:
        return weights
    wide = weights.new_empty(*weights.shape[:-1], keys)
    wide[..., :found] = weights
    wide[..., found:] = 0
    return wide


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    """All weights of :class:`HiddenWeights`, (..., head, query, key); float32 for half inputs.

    Rows with no key allowed are zero, as in torch.
    """
    return HiddenWeights(query, key, mask, is_causal, scale).whole()


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to; 0 where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _rows_of(tensor: Tensor, rows: Rows, lead: torch.Size) -> Tensor:
    """(..., row, last), with views where there is one slice for all."""
    if isinstance(rows, slice):
        return tensor[..., rows, :]
    if rows.ndim == 1:
        return tensor.index_select(-2, rows)
    wide = tensor.expand(*lead, *tensor.shape[-2:])
    return wide.gather(-2, rows[..., None].expand(*rows.shape, tensor.shape[-1]))


def is_unmasked_behind(weights: Weights) -> bool:
    """Whether a fused kernel was told to hide what comes after a query, and nothing else."""
    return isinstance(weights, HiddenWeights) and weights.is_causal and weights.mask is None
