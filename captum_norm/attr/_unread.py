"""What to say where an answer rests on something that was not read."""

from __future__ import annotations

from collections.abc import Sequence

from captum_norm.capture import InexactCaptureError, Opaque, Softmax, no_constants


def refuse_lost(title: str, lost: Sequence[Softmax]) -> None:
    """Refuse if a softmax over positions is on the way to the output whose weights were not seen to meet values.

    Raises:
        InexactCaptureError: if there is one, naming it.
    """
    if lost:
        others = f", and of {len(lost) - 1} more," if len(lost) > 1 else ""
        raise InexactCaptureError(
            f"{title}: the weights of {lost[0]}{others} look over positions, and were not seen to meet values on the "
            "way to the output: an attention call may be missing. Products of weights with values by matmul, einsum or "
            "scaled_dot_product_attention are read; DecompX holds any weights fixed; the calls that were read are in "
            "attention_maps, and Layer classes give them one by one."
        )


def refuse_opaque(title: str, parts: Sequence[Opaque], again: Sequence[Opaque]) -> None:
    """Refuse if a part that cannot be looked into is on the way to the output.

    Args:
        title: the method's name.
        parts: what looks like one.
        again: what looks like one when the model runs on other inputs: a constant is the same there.

    Raises:
        InexactCaptureError: for a part that is no constant.
    """
    for part in no_constants(parts, again):
        raise InexactCaptureError(
            f"{title}: the output rests on a part that cannot be looked into: {part}. What attends there, or mixes "
            "positions, is not known (TorchScript, a kernel of another library, a compiled graph, numpy, a custom "
            "autograd Function). Run that part as plain torch operations; attention_maps has the calls that were read."
        )
