"""Records made by hand, where a model would be beside the point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from captum_norm.capture import AttentionCall, AttentionRecord, Certificate, Positions


def record_of(weights: Tensor, values: Tensor) -> AttentionRecord:
    """A self-attention call with these weights, (batch, head, query, key), and values, and any W_O."""
    heads, head_dim = values.shape[1], values.shape[3]
    call, positions = AttentionCall("attention", "self", 0, heads, "W_O"), Positions(0, torch.arange(weights.shape[3]))
    W_O = torch.randn(heads, head_dim, 8)
    return AttentionRecord(
        call, weights, values, W_O, None, None, positions, positions, "", None, None, Certificate(0, 1)
    )


def recording_of(*records: AttentionRecord) -> Callable[..., Any]:
    """Stands for ``recording``: whatever runs, these records are handed over."""

    @contextmanager
    def recording(on_record: Any, **_: Any) -> Iterator[None]:
        yield
        for record in records:
            on_record(record)

    return recording
