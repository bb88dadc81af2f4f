"""Reading attention from a running model, one call at a time, each checked exact.

The way of a call: :mod:`captum_norm.operations` shows every torch operation under one name,
:mod:`~captum_norm.capture.dataflow` follows softmax -> value product -> reshapes and gates -> W_O with one rule per
operation, :mod:`~captum_norm.capture.layout` finds (batch, head, query, key), :mod:`~captum_norm.capture.positions`
finds which input position each key is, :mod:`~captum_norm.capture.certificate` checks the result, and
:mod:`~captum_norm.capture.recorder` hands it over.  With ``blocks=True`` :mod:`~captum_norm.capture.blocks` follows
the residual stream around each call as well.

Other parts of the package import from here and from no module inside.
"""

from captum_norm.capture.answer import Answer, HowRead, Recorded
from captum_norm.capture.call import AttentionCall, Certificate, InexactCaptureError, Kind, Mixer, Positions
from captum_norm.capture.chain import Fed
from captum_norm.capture.dataflow import Dataflow
from captum_norm.capture.following import Following
from captum_norm.capture.heads import layout_of
from captum_norm.capture.held import HeadValues
from captum_norm.capture.layout import Layout, LayoutError
from captum_norm.capture.ledger import Softmax
from captum_norm.capture.looked_at import LookedAt
from captum_norm.capture.opaque import Opaque, no_constants
from captum_norm.capture.record import AttentionBlock, AttentionRecord
from captum_norm.capture.recorder import recording
from captum_norm.capture.running import blocks_in_float32, in_float32, run_recorded
from captum_norm.capture.traces import Mixture, RowsRead, Term
from captum_norm.capture.weights import attention_weights

__all__ = [
    "Answer",
    "AttentionBlock",
    "AttentionCall",
    "AttentionRecord",
    "Certificate",
    "Dataflow",
    "Fed",
    "Following",
    "HeadValues",
    "HowRead",
    "InexactCaptureError",
    "Kind",
    "Layout",
    "LayoutError",
    "LookedAt",
    "Mixer",
    "Mixture",
    "Opaque",
    "Positions",
    "Recorded",
    "RowsRead",
    "Softmax",
    "Term",
    "attention_weights",
    "blocks_in_float32",
    "in_float32",
    "layout_of",
    "no_constants",
    "recording",
    "run_recorded",
]
