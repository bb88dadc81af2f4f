"""What did every attention call of a model do?  Its weights and its norms, under the papers' names, in one pass.

``attention_layers`` lists the calls, ``attention_maps`` computes measures call by call while the model runs, and
``AttentionMaps`` holds them as lists over calls (never stacked: calls differ in heads, queries and keys).  Each record
is reduced and dropped as its call finishes, so memory is one call plus the results.

Axes: batch, head, query, key; always batch-first.
"""

from captum_norm.maps.calls import CheckedCall, attention_layers, checked_calls
from captum_norm.maps.certified import Certified, certified
from captum_norm.maps.reading import attention_maps
from captum_norm.maps.results import AttentionMaps

__all__ = [
    "AttentionMaps",
    "Certified",
    "CheckedCall",
    "attention_layers",
    "attention_maps",
    "certified",
    "checked_calls",
]
