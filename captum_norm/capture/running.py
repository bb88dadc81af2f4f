"""Running a model once, with each of its attention calls handed over when it is complete.

What ``attention_maps``, ``certify`` and the token shares have in common: which inputs hold positions, what is refused
at the door, and that a model in which nothing was seen is an error rather than an empty answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_norm.capture.answer import Recorded
from captum_norm.capture.call import InexactCaptureError
from captum_norm.capture.record import AttentionRecord
from captum_norm.capture.recorder import recording
from captum_norm.forward.at_hand import tensors_beside
from captum_norm.forward.inputs import ModelInputs, call_model, named_inputs, position_sources
from captum_norm.forward.one_mapping import by_keywords
from captum_norm.forward.outputs import output_tensor


def run_recorded(
    model: Callable[..., Any],
    inputs: ModelInputs,
    on_record: Callable[[AttentionRecord], None],
    on_inexact: Callable[[InexactCaptureError], None] | None = None,
    blocks: bool = False,
    on_output: Callable[[Recorded, Any], None] | None = None,
) -> Any:
    """Run a model once and hand over each attention call when it is complete, in order, some of them at once.

    ``record.keys.source`` and ``record.queries.source`` are indices into
    ``position_sources(named_inputs(model, inputs))``.

    Args:
        model, inputs: as `call_model`.
        on_record, on_inexact, blocks: as :func:`captum_norm.capture.recording`.
        on_output: told of the recording, while it goes on, and of the output.

    Returns:
        The model's own output.

    Raises:
        ValueError: if not a single attention call was seen, read or refused; and as `call_model`.

    Example:
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> output = run_recorded(encoder, torch.randn(1, 3, 8), lambda record: print(tuple(record.weights.shape)))
        (1, 2, 3, 3)
    """
    seen = 0
    model = by_keywords(model)

    def count_record(record: AttentionRecord) -> None:
        nonlocal seen
        seen += 1
        on_record(record)

    def count_refusal(error: InexactCaptureError) -> None:
        nonlocal seen
        seen += 1
        if on_inexact is None:
            raise error
        on_inexact(error)

    sources = tuple(position_sources(named_inputs(model, inputs)).values())
    module = model if isinstance(model, nn.Module) else None
    given = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    beside = tensors_beside(model, given)
    with recording(
        count_record, sources=sources, model=module, on_inexact=count_refusal, blocks=blocks, beside=beside,
        together=True,
    ) as recorded:  # fmt: skip
        output = call_model(model, inputs)
        recorded.ends_with(output_tensor(output))
        if on_output is not None:
            on_output(recorded, output)
    if not seen:
        raise ValueError(_no_attention(model))
    return output


def in_float32(record: AttentionRecord) -> AttentionRecord:
    """The record with its tensors in float32 where the model computed in half precision."""

    tensors = (record.weights, record.values, record.W_O, record.gate)
    if all(tensor is None or _lifted(tensor) is tensor for tensor in tensors):
        return record
    return replace(
        record,
        weights=_lifted(record.weights),
        values=_lifted(record.values),
        W_O=_lifted(record.W_O),
        gate=None if record.gate is None else _lifted(record.gate),
    )


def _lifted(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def blocks_in_float32(record: AttentionRecord) -> Iterator[tuple[slice, AttentionRecord]]:
    """``record.blocks()``, each as ``in_float32`` gives it; values and W_O are the same tensors for all of them."""
    for rows, block in record.but(values=_lifted(record.values), W_O=_lifted(record.W_O)).blocks():
        yield rows, in_float32(block)


def _no_attention(model: Callable[..., Any]) -> str:
    title = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", repr(model))
    chosen = getattr(getattr(model, "config", None), "_attn_implementation", None)
    loaded = f" (attn_implementation={chosen!r})" if chosen else ""
    return (
        f"{title}{loaded} ran, but no attention call was seen: nothing that mixes values by a softmax. Flash and flex "
        'kernels are invisible: load the model with attn_implementation="sdpa" or "eager". A model without softmax '
        "attention has nothing to show."
    )
