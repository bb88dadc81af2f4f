"""How do the maps of many layers become one map?"""

from collections.abc import Sequence

import torch
from torch import Tensor


def mean(maps: Sequence[Tensor]) -> Tensor:
    """Mean over equally shaped maps."""
    return torch.stack(list(maps)).mean(0)


def rollout(maps: Sequence[Tensor], residual: bool = False, position: int | Sequence[int] | Tensor | None = None) -> Tensor:
    """Product of the maps, last @ ... @ first: (batch, query, key), or (batch, key) for the rows ``position``."""
    maps = list(maps)
    if residual:
        maps = [a + torch.eye(a.shape[-1], dtype=a.dtype, device=a.device) for a in maps]
        maps = [a / a.sum(-1, keepdim=True) for a in maps]
    result = maps[-1]
    if position is not None:
        position = torch.as_tensor(position, device=result.device)
        if position.is_floating_point():
            result = position[:, None].to(result.dtype) @ result
        else:
            result = result[torch.arange(len(result)), position][:, None]
    for a in reversed(maps[:-1]):
        result = result @ a
    return result if position is None else result[:, 0]
