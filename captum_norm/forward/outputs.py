"""Which tensor of a model's output is explained?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

# Where a Hugging Face ModelOutput, or a sentence encoder, keeps what `target` is an index of, in order of preference.
_FIELDS = ("logits", "start_logits", "scores", "sentence_embedding", "last_hidden_state")


def output_tensor(output: Any, axes: int = 0) -> Tensor | None:
    """The tensor that ``target`` is an index of: the output itself, the field named for it, or the first tensor in it.

    Args:
        output: what a model returned: a tensor, a mapping, a tuple or a list.
        axes: how many axes it has at least; with 1, a loss, which labels put first, is passed over.

    Returns:
        The tensor as it is; None where there is none.

    Example:
        >>> import torch
        >>> output_tensor({"loss": torch.tensor(2.0), "logits": torch.ones(1, 3)}).shape
        torch.Size([1, 3])
        >>> output_tensor((torch.tensor(2.0), torch.ones(1, 4)), axes=1).shape
        torch.Size([1, 4])
    """
    if isinstance(output, Mapping):
        items = [output[name] for name in (*_FIELDS, *output) if name in output]
    else:
        items = list(output) if isinstance(output, tuple | list) else [output]
    return next((item for item in items if isinstance(item, Tensor) and item.ndim >= axes), None)
