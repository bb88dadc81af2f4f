"""Running a model outside ``torch.inference_mode``, whose tensors no graph may hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

Given = TypeVar("Given")


@contextmanager
def outside_inference_mode(given: Given) -> Iterator[Given]:
    """Inference mode is off for the length of the ``with``; yields what was given, with plain tensors in it.

    Tensors that were made in inference mode are copied; all others are the same.

    Example:
        >>> with torch.inference_mode():
        ...     x = torch.ones(2)
        ...     with outside_inference_mode((x, "a")) as (y, _):
        ...         print(y.is_inference(), torch.is_inference_mode_enabled())
        False False
    """
    with torch.inference_mode(False):
        yield _plain(given)


def _plain(given: Any) -> Any:
    if isinstance(given, Tensor):
        return given.clone() if given.is_inference() else given
    if isinstance(given, tuple):
        return type(given)(*map(_plain, given)) if hasattr(given, "_fields") else tuple(map(_plain, given))
    if isinstance(given, list):
        return [_plain(item) for item in given]
    if isinstance(given, dict):
        return {key: _plain(item) for key, item in given.items()}
    return given
