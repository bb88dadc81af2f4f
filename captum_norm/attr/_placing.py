"""From scores of key positions to a tensor shaped as an input.

Axes: b batch, q query, k key, p position in the input.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_norm.capture import Positions


def place(scores: Tensor, keys: Positions, count: int) -> Tensor:
    """Scores at the input positions that the keys stand for; keys that are no input are left out.

    Args:
        scores: (batch, key) or (batch, query, key).
        keys: where the key axis lies in the input.
        count: how many positions the input has.

    Returns:
        (batch, position) or (batch, query, position); 0 where no key stands for a position.

    Example:
        A class token, then two patches:

        >>> place(torch.tensor([[0.5, 0.2, 0.3]]), Positions(0, torch.tensor([-1, 0, 1])), 2)
        tensor([[0.2000, 0.3000]])
    """
    index = keys.index.to(scores.device)
    inside = (index >= 0).nonzero().flatten()
    return scores.new_zeros(*scores.shape[:-1], count).index_add(-1, index[inside], scores[..., inside])


def count_positions(like: Tensor, keys: Positions) -> int:
    """How many positions an input has: the cells of the keys' grid, else the length of its axis 1.

    Raises:
        ValueError: if the keys do not fit into the input.
    """
    count = math.prod(keys.grid) if keys.grid is not None else like.shape[1] if like.ndim > 1 else 0
    last = int(keys.index.max()) if keys.index.numel() else -1
    if last >= count:
        raise ValueError(
            f"a key stands for position {last}, but the input of shape {tuple(like.shape)} has {count} positions. "
            "Inputs are (batch, position, ...); a model that takes the position first needs a forward_func that "
            "transposes."
        )
    return count


def spread(scores: Tensor, like: Tensor, grid: tuple[int, ...] | None) -> Tensor:
    """Each position's score, shared evenly by the numbers of the input that make up the position.

    Args:
        scores: (batch, position); several rows, (batch, row, position), are not shared out.
        like: the input: (batch, position) ids or gate, (batch, position, ...) vectors, or (batch, channel, height,
            width) pixels.
        grid: the positions' spatial shape in pixels, else None.

    Returns:
        Shaped as ``like`` or, for several rows, as the scores; in the dtype of scores; sums to the scores.

    Raises:
        ValueError: if the grid does not divide the input evenly.

    Example:
        >>> spread(torch.tensor([[2.0, 4.0]]), torch.zeros(1, 2, 2), None)
        tensor([[[1., 1.],
                 [2., 2.]]])
    """
    if scores.ndim == 3:
        return scores
    if like.ndim == 2 and like.shape[1] == scores.shape[1]:
        return scores.clone()
    if grid is not None:
        return _over_cells(scores, like, grid)
    trailing = like.shape[2:]
    return (
        (scores / trailing.numel())
        .reshape(*scores.shape, *[1] * len(trailing))
        .expand(*scores.shape, *trailing)
        .clone()
    )


def _over_cells(scores: Tensor, like: Tensor, grid: tuple[int, ...]) -> Tensor:
    channel = _channel_axis(like, grid)
    cells = scores.reshape(len(scores), *grid)
    spatial = [size for axis, size in enumerate(like.shape) if axis not in (0, channel)]
    for axis, (size, cell_count) in enumerate(zip(spatial, grid, strict=True), start=1):
        cells = cells.repeat_interleave(size // cell_count, dim=axis)
    if channel is not None:
        cells = cells.unsqueeze(channel).expand(*like.shape)
    return cells * (scores.shape[1] / like[0].numel())


def _channel_axis(like: Tensor, grid: tuple[int, ...]) -> int | None:
    """Which axis holds the channels: 1, or 2 in videos of (batch, frame, channel, height, width)."""
    if like.ndim == len(grid) + 1:
        candidates: tuple[int | None, ...] = (None,)
    else:
        candidates = (1, 2) if like.ndim == 5 else (1,)
    for channel in candidates:
        spatial = [size for axis, size in enumerate(like.shape) if axis not in (0, channel)]
        if len(spatial) == len(grid) and all(size % cells == 0 for size, cells in zip(spatial, grid, strict=True)):
            return channel
    raise ValueError(
        f"the model reads the input of shape {tuple(like.shape)} in {' x '.join(map(str, grid))} patches, which do not "
        "divide it evenly: a patch's score cannot be shared by its own pixels alone. Use HFForward(model, mode='gate') "
        "or a Layer class."
    )


def share_left_out(scores: Tensor, placed: Tensor) -> Tensor:
    """The share of a row that went to keys that are no input, dimensionless: (batch,) or (batch, query)."""
    total = scores.sum(-1)
    return torch.where(total > 0, 1 - placed.sum(-1) / total, 0).clamp_min(0)


def finished(scores: Tensor, like: Tensor) -> Tensor:
    """Detached, contiguous, on the input's device."""
    return scores.detach().to(like.device).contiguous()
