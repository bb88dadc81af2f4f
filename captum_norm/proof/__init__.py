"""An independent proof of what is read from a model, one level below the capture.

``prove(model, inputs)`` erases values in the running model (:mod:`~captum_norm.proof.erasing`), changes tokens that the
output is said not to rest on (:mod:`~captum_norm.proof.tokens`), and compares weights with those that the model returns
(:mod:`~captum_norm.proof.attentions`).
"""

from captum_norm.proof.attentions import compare_attentions
from captum_norm.proof.erasing import Finding, Prover, contribution
from captum_norm.proof.verdict import Proof, prove

__all__ = ["Finding", "Proof", "Prover", "compare_attentions", "contribution", "prove"]
