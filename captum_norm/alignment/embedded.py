"""An aligner that needs nothing but this package: the embedded translation model, German to English."""

from __future__ import annotations

from captum_norm.alignment.aligner import CrossAttentionAligner
from captum_norm.alignment.evaluation import Choice

EMBEDDED_CHOICES: dict[str, Choice] = {
    **dict.fromkeys(("norm", "weights", "block_norm", "alti", "value_zeroing"), Choice("awi", 0)),
    "rollout": Choice("awo", 3),
}
"""The places of the embedded model's best links, chosen on the first 100 sentences of the gold alignments of Vilar et
al. (2006) alone."""


def embedded_aligner(method: str = "norm", *, batch_size: int = 32) -> CrossAttentionAligner:
    """The embedded translation model as an aligner, German to English, its layer and setting chosen.

    Sentences are lists of words as :func:`captum_norm.models.translation_words` makes them.

    Args:
        method: as in `CrossAttentionAligner`.
        batch_size: pairs that run at a time.

    Raises:
        FileNotFoundError, ValueError: as :func:`captum_norm.models.load_translation`.

    Example:
        >>> aligner = embedded_aligner()
        >>> (0, 0) in aligner.align("wir haben zwei hunde .".split(), "we have two dogs .".split())
        True
    """
    from captum_norm.models.translation import load_translation

    model, tokenizer = load_translation()
    aligner = CrossAttentionAligner(model, tokenizer, method, batch_size=batch_size)
    aligner.choice = EMBEDDED_CHOICES[method]
    return aligner
