"""Which attention calls does a model make, and can each of them be read exactly?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from captum_norm.capture import AttentionCall, AttentionRecord, Certificate, InexactCaptureError, Mixer, run_recorded
from captum_norm.forward.inputs import ModelInputs


def attention_layers(model: Callable[..., Any], inputs: ModelInputs) -> list[AttentionCall]:
    """The attention calls of a model in the order they run: what ``layers=`` and ``LayerAttentionNorm`` choose from.

    Args:
        model: any module or function; it runs once, without gradient, in the mode it is in.
        inputs: what it takes: a mapping (passed as keywords), a tensor or a tuple (positionally).

    Returns:
        One `AttentionCall` per call: ``name``, ``module``, ``kind``, ``call``, ``heads``, ``projection`` (W_O's name).
        A call that cannot be read exactly is listed too, so that indices here are those of ``attention_maps``.

    Raises:
        ValueError, TypeError: for inputs the model cannot take, or a model in which no attention was seen.

    Example:
        >>> import torch
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> [(call.name, call.kind, call.heads) for call in attention_layers(encoder, torch.randn(1, 3, 8))]
        [('self_attn', 'self', 2)]
    """
    return [checked.call for checked in checked_calls(model, inputs)]


@dataclass(frozen=True)
class CheckedCall:
    """An attention call with its certificate, or with the reason why it could not be read.

    Attributes:
        call: which call.
        certificate: the check it passed, or None.
        refusal: why it could not be read exactly; ``""`` where it could.
        keys_known: whether its keys are known to be positions of an input, which ``attribute()`` needs.
        unknown_keys: why not, in words; ``""`` where they are known.
        mixers: what beside attention has mixed positions on the way to its values.
        reaches: whether the output rests on it, as far as that is known.
    """

    call: AttentionCall
    certificate: Certificate | None
    refusal: str = ""
    keys_known: bool = False
    unknown_keys: str = ""
    mixers: tuple[Mixer, ...] = ()
    reaches: bool = True


def checked_calls(model: Callable[..., Any], inputs: ModelInputs) -> list[CheckedCall]:
    """Every attention call with its certificate; refused calls are listed with the reason instead of raising.

    Args, Raises: as `attention_layers`.

    Example:
        >>> import torch
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> [checked] = checked_calls(encoder, torch.randn(1, 3, 8))
        >>> float(checked.certificate) < checked.certificate.tolerance
        True
    """
    checked: list[CheckedCall] = []

    def keep(record: AttentionRecord) -> None:
        _ = record.weights  # all of them are checked
        checked.append(CheckedCall(record.call, record.certificate, "", record.keys is not None, record.unknown_keys))

    def refuse(error: InexactCaptureError) -> None:
        checked.append(CheckedCall(call_of(error), None, str(error)))

    run_recorded(model, inputs, keep, refuse)
    return checked


def call_of(error: InexactCaptureError) -> AttentionCall:
    """The call that could not be read, nameless where not even that is known."""
    return error.call or AttentionCall("", "self", 0, 0, "")
