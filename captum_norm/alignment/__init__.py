"""Word alignment from cross-attention: which source word does each word of a translation come from?

    aligner = CrossAttentionAligner(model, tokenizer, layer=1, setting="awi")
    aligner.align("das ist gut .".split(), "that is good .".split())

The second finding of Kobayashi et al. (2020), https://arxiv.org/abs/2004.10102: by the norm of what cross-attention
really adds, the links are better than by its weights.
"""

from captum_norm.alignment.aligner import AlignedPair, CrossAttentionAligner
from captum_norm.alignment.evaluation import AlignmentEvaluation, Choice, EvaluationRow
from captum_norm.alignment.links import GoldLinks, Link, read_links, read_sentences, write_links
from captum_norm.alignment.methods import METHODS
from captum_norm.alignment.pieces import Pieces, WordPieces
from captum_norm.alignment.scoring import (
    AlignmentScore,
    alignment_error_rate,
    alignment_score,
    diagonal,
    error_rate_difference,
)
from captum_norm.alignment.symmetrisation import SymmetricAligner, symmetrise

__all__ = [
    "METHODS",
    "AlignedPair",
    "AlignmentEvaluation",
    "AlignmentScore",
    "Choice",
    "CrossAttentionAligner",
    "EvaluationRow",
    "GoldLinks",
    "Link",
    "Pieces",
    "SymmetricAligner",
    "WordPieces",
    "alignment_error_rate",
    "alignment_score",
    "diagonal",
    "error_rate_difference",
    "read_links",
    "read_sentences",
    "symmetrise",
    "write_links",
]
