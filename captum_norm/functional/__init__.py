"""The maths of norm-based attribution: tensors in, tensors out.  It knows no model, hook or tokenizer."""

from captum_norm.functional.aggregate import mean, rollout
from captum_norm.functional.norms import head_norms, summed_norms, transformed_norms

__all__ = ["head_norms", "mean", "rollout", "summed_norms", "transformed_norms"]
