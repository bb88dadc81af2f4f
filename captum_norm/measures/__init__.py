"""What can be asked of one attention call: a table of measures, by the papers' names."""

from captum_norm.measures.of_blocks import alti_contributions, lacks_block, lacks_feed_forward, lacks_norm, lacks_part
from captum_norm.measures.table import MEASURES, Measure, Paper, Role, compute_measures, mean_weights, need_blocks

__all__ = [
    "MEASURES",
    "Measure",
    "Paper",
    "Role",
    "alti_contributions",
    "compute_measures",
    "lacks_block",
    "lacks_feed_forward",
    "lacks_norm",
    "lacks_part",
    "mean_weights",
    "need_blocks",
]
