"""Attention that takes its queries or positions in another order, answers some queries alone, or goes by windows.

Each function takes an attention part of :mod:`attention` with its q (b, h, n, e), k and v (b, h, m, e), the bias of its
position code (h, n, m) or None and who may see whom, and gives the mixed values (b, h, n, e).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _rows(tensor: Tensor, order: Tensor) -> Tensor:
    """The rows ``order`` (b, h, u) of (b, h, n, .)."""
    return tensor.gather(2, order[..., None].expand(-1, -1, -1, tensor.shape[-1]))


def _answered(
    part: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, visible: Tensor | None, order: Tensor
) -> Tensor:  # fmt: skip
    """The mixed values of the queries ``order`` (b, h, u) alone."""
    shape = (*q.shape[:3], k.shape[2])
    bias = None if bias is None else _rows(bias.expand(shape), order)
    visible = None if visible is None else _rows(visible.expand(shape), order)
    return part.changed(part.softmax(_rows(q, order) @ k.mT * part.scale, bias, visible)) @ v


def by_example(part: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, visible: Tensor | None) -> Tensor:
    """Queries sorted by how long they are, one order for each example, and put back by the inverse order."""
    order = q.norm(dim=-1).sum(1).argsort(-1)[:, None].expand(q.shape[:3])
    return _rows(_answered(part, q, k, v, bias, visible, order), order.argsort(-1))


def by_head(part: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, visible: Tensor | None) -> Tensor:
    """One order for each head, put back by an index."""
    order = q.norm(dim=-1).argsort(-1)
    mixed = _answered(part, q, k, v, bias, visible, order)
    return mixed[torch.arange(len(q))[:, None, None], torch.arange(q.shape[1])[:, None], order.argsort(-1)]


def longest_queries(part: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, visible: Tensor | None) -> Tensor:
    """The longest queries of each head alone; the rest have the mean of all values, or nothing."""
    order = q.norm(dim=-1).topk(max(2, q.shape[2] // 2), -1).indices
    mixed = _answered(part, q, k, v, bias, visible, order)
    mean = v.mean(2, keepdim=True)
    filled = mean if part.config.attention.endswith("mean") else torch.zeros_like(mean)
    filled = filled.expand(-1, -1, q.shape[2], -1).clone()
    filled[torch.arange(len(q))[:, None, None], torch.arange(q.shape[1])[:, None], order] = mixed
    return filled


def _windows(part: Any, q: Tensor, k: Tensor, v: Tensor, shift: int) -> Tensor:
    """Two windows; with a shift the second goes around the end, as the first row is then the window's last."""
    (b, h, n, e), size = q.shape, q.shape[2] // 2

    def cut(x: Tensor) -> Tensor:  # one window after another: (b windows, h, size, e)
        x = x.roll(-shift, 2) if shift else x
        return x.view(b, h, 2, size, e).transpose(1, 2).reshape(b * 2, h, size, e)

    mixed = part.changed((cut(q) @ cut(k).mT * part.scale).softmax(-1)) @ cut(v)
    mixed = mixed.view(b, 2, h, size, e).transpose(1, 2).reshape(b, h, n, e)
    return mixed.roll(shift, 2) if shift else mixed


FORMS: dict[str, Callable[..., Tensor]] = {
    "queries ordered by example": by_example,
    "queries ordered by head": by_head,
    "longest queries, the rest mean": longest_queries,
    "longest queries, the rest nothing": longest_queries,
    "windows": lambda part, q, k, v, bias, visible: _windows(part, q, k, v, 0),
    "shifted windows": lambda part, q, k, v, bias, visible: _windows(part, q, k, v, 1),
}
