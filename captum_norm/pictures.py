"""Where in a picture, or in a sound, do the scores of the tokens lie that stand for it in a text?

A language model that sees or hears reads a placeholder for each patch or frame, one after another in the ids: so scores
of tokens hold those of patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def picture_grids(
    scores: Tensor, ids: Tensor, token: int, shapes: Sequence[tuple[int, int]] | None = None
) -> list[Tensor]:
    """The scores of each picture's patches, as they lie.

    Args:
        scores: (..., position), such as ``token_attr`` of a result, (target, position).
        ids: (position,) or (1, position), what the model read: one id for each score.
        token: the placeholder, ``model.config.image_token_id``.
        shapes: (rows, columns) of each picture; of a Qwen-VL, ``image_grid_thw[:, 1:] // spatial_merge_size``.  None:
            each run of placeholders is a square.

    Returns:
        (..., row, column) for each picture, or tile of one, in the order of the text; `picture_maps` draws them.

    Raises:
        ValueError: if there are no placeholders, or they are not as many as the patches.

    Example:
        >>> [grid] = picture_grids(torch.arange(6.0), torch.tensor([1, 9, 9, 9, 9, 2]), token=9)
        >>> grid
        tensor([[1., 2.],
                [3., 4.]])
    """
    runs = _runs(scores, ids, token)
    if shapes is None:
        sides = [math.isqrt(len(run)) for run in runs]
        odd = next((len(run) for run, side in zip(runs, sides, strict=True) if side * side != len(run)), None)
        if odd is not None:
            raise ValueError(f"picture_grids: {odd} placeholders in a row are no square: give shapes, (rows, columns).")
        shapes = [(side, side) for side in sides]
    counts = [rows * columns for rows, columns in shapes]
    places = torch.cat(runs)
    if sum(counts) != len(places):
        raise ValueError(
            f"picture_grids: the text holds {len(places)} placeholders, and shapes {list(shapes)} hold {sum(counts)}."
        )
    each = zip(torch.split(places, counts), shapes, strict=True)
    return [scores[..., of.to(scores.device)].reshape(*scores.shape[:-1], *shape) for of, shape in each]


def sound_frames(scores: Tensor, ids: Tensor, token: int) -> list[Tensor]:
    """The scores of each sound's frames, (..., frame), in time.

    Args:
        scores: (..., position).
        ids: (position,) or (1, position).
        token: the placeholder, ``model.config.audio_token_id``.

    Raises:
        ValueError: if there are no placeholders.

    Example:
        >>> sound_frames(torch.arange(4.0), torch.tensor([1, 9, 9, 2]), token=9)
        [tensor([1., 2.])]
    """
    return [scores[..., run.to(scores.device)] for run in _runs(scores, ids, token)]


def _runs(scores: Tensor, ids: Tensor, token: int) -> list[Tensor]:
    """The positions of the placeholders, run by run."""
    ids = ids[0] if ids.ndim == 2 and len(ids) == 1 else ids
    if ids.ndim != 1 or ids.shape[0] != scores.shape[-1]:
        raise ValueError(
            f"ids {tuple(ids.shape)} should be those of one text, one for each of the {scores.shape[-1]} scores."
        )
    places = (ids.cpu() == token).nonzero()[:, 0]
    if not len(places):
        raise ValueError(f"no id is the placeholder {token}: the text holds no picture or sound.")
    breaks = (places.diff() != 1).nonzero()[:, 0] + 1
    return list(places.tensor_split(breaks))
