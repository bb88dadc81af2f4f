"""Two models, one for each direction, align together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from captum_norm.alignment.aligner import CrossAttentionAligner, Gold, Words
from captum_norm.alignment.links import Link, check_links
from captum_norm.alignment.scoring import AlignmentScore, alignment_score
from captum_norm.alignment.symmetrisation import Symmetrisation, check_way, symmetrise


class SymmetricAligner:
    """Joins the links of a model from source to target with those of a model from target to source.

    One model gives each target word at most one link; two let a source word and a target word have many.

    Args:
        forward: from source to target, its layer and setting chosen.
        backward: from target to source, likewise.
        how: ``"intersection"``, ``"union"`` or ``"grow-diag-final"``: see `symmetrise`.

    Raises:
        ValueError: if there is no such way to join.

    Example:
        >>> from captum_norm.alignment.synthetic import untrained
        >>> model, pieces = untrained(seed=0)
        >>> there = CrossAttentionAligner(model, pieces, layer=0, setting="awo")
        >>> class Turned:  # the same vocabulary, read from the other side
        ...     start = pieces.start
        ...     source, target = staticmethod(pieces.target), staticmethod(pieces.source)
        >>> back = CrossAttentionAligner(model, Turned(), layer=0, setting="awo")
        >>> both = SymmetricAligner(there, back, "union")
        >>> set(there.align(["det0"], ["DET0"])) <= set(both.align(["det0"], ["DET0"]))
        True
    """

    def __init__(
        self, forward: CrossAttentionAligner, backward: CrossAttentionAligner, how: Symmetrisation = "grow-diag-final"
    ) -> None:
        check_way(how)
        self.forward, self.backward, self.how = forward, backward, how

    def align(self, source: Any, target: Any) -> Any:
        """The links of a sentence and its translation, or of many and theirs, as `CrossAttentionAligner.align`."""
        there, back = self.forward.align(source, target), self.backward.align(target, source)
        if len(source) and isinstance(source[0], str):
            return self._joined(there, back)
        return [self._joined(one, other) for one, other in zip(there, back, strict=True)]

    def evaluate(self, pairs: Sequence[tuple[Words, Words]], gold: Gold, *, resamples: int = 1000) -> AlignmentScore:
        """Error rate, precision and recall of the joined links.

        Raises:
            ValueError: if pairs and gold links do not fit.
        """
        check_links(pairs, gold, "SymmetricAligner")
        links = self.align([source for source, _ in pairs], [target for _, target in pairs])
        return alignment_score(links, gold, resamples=resamples)

    def _joined(self, there: list[Link], back: list[Link]) -> list[Link]:
        return symmetrise(there, [(s, t) for t, s in back], self.how)
