"""One rule per torch operation, a file per step of the way from the input to W_O.

Importing this package fills ``captum_norm.capture.dataflow.RULES``.
"""

from captum_norm.capture.rules import (
    einsum,
    elementwise,
    moves,
    norms,
    positions,
    products,
    projections,
    softmax,
    weights,
    writes,
)

__all__ = [
    "einsum",
    "elementwise",
    "moves",
    "norms",
    "positions",
    "products",
    "projections",
    "softmax",
    "weights",
    "writes",
]
