"""Reading attention from a running model, one call at a time, each checked exact.

The way of a call: :mod:`~captum_norm.capture.operations` shows every torch operation under one name,
:mod:`~captum_norm.capture.dataflow` follows softmax -> value product -> reshapes and gates -> W_O with one rule per
operation, :mod:`~captum_norm.capture.layout` finds (batch, head, query, key), :mod:`~captum_norm.capture.places` finds
which input position each key is, :mod:`~captum_norm.capture.certificate` checks the result, and
:mod:`~captum_norm.capture.recorder` hands it over.  With ``blocks=True`` :mod:`~captum_norm.capture.blocks` follows
the residual stream around each call as well.
"""

from captum_norm.capture.record import (
    AttentionBlock,
    AttentionCall,
    AttentionRecord,
    Certificate,
    InexactCaptureError,
    Kind,
    Positions,
)
from captum_norm.capture.recorder import recording

__all__ = [
    "AttentionBlock",
    "AttentionCall",
    "AttentionRecord",
    "Certificate",
    "InexactCaptureError",
    "Kind",
    "Positions",
    "recording",
]
