"""Results for other libraries: what bertviz, CircuitsVis, Captum, Quantus and inseq take.

None of them is needed to import this, and none is a dependency: ``attention_views`` and ``captum_record`` give plain
arguments, ``quantus_explainer`` and ``inseq_method`` give what those libraries call.
"""

from captum_norm.exports.attention_views import bertviz_arguments, circuitsvis_arguments
from captum_norm.exports.captum_records import captum_record
from captum_norm.exports.inseq_methods import inseq_method
from captum_norm.exports.quantus_explainers import quantus_explainer

__all__ = ["bertviz_arguments", "captum_record", "circuitsvis_arguments", "inseq_method", "quantus_explainer"]
