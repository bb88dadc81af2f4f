"""How are the links of two directions joined?  As intersection, union, or intersection grown towards the union.

Source: Och and Ney (2003), https://aclanthology.org/J03-1002; Koehn et al. (2003), "Statistical Phrase-Based
Translation", https://aclanthology.org/N03-1017 (grow-diag-final).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

from captum_norm.alignment.aligner import CrossAttentionAligner, Gold, Sentence
from captum_norm.alignment.links import Link, check_links
from captum_norm.alignment.scoring import AlignmentScore, alignment_score

Symmetrisation: TypeAlias = Literal["intersection", "union", "grow-diag-final"]

_NEIGHBOURS = ((-1, 0), (0, -1), (1, 0), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))


def symmetrise(
    forward: Iterable[Link], backward: Iterable[Link], how: Symmetrisation = "grow-diag-final"
) -> list[Link]:
    """Joins the links of two directions into one set.

    Args:
        forward: (source, target) links of the model from source to target.
        backward: (source, target) links of the model from target to source, already turned round.
        how: ``"intersection"`` (few and good), ``"union"`` (many), or ``"grow-diag-final"``: the intersection; then
            links of the union next to a link already in (diagonally, too) that give a word its first link; then other
            links of ``forward`` and of ``backward`` that do so.

    Returns:
        The links in order.

    Raises:
        ValueError: if ``how`` is none of these.

    Example:
        >>> symmetrise([(0, 0), (1, 1)], [(0, 0), (2, 1)], "intersection")
        [(0, 0)]
        >>> symmetrise([(0, 0), (1, 1)], [(0, 0), (2, 1)])
        [(0, 0), (1, 1), (2, 1)]
    """
    check_way(how)
    there, back = set(forward), set(backward)
    if how == "intersection":
        return sorted(there & back)
    if how == "union":
        return sorted(there | back)
    links = there & back
    _grow(links, there | back)
    for link in (*sorted(there), *sorted(back)):
        if _gives_first(link, links):
            links.add(link)
    return sorted(links)


class SymmetricAligner:
    """Joins the links of a model from source to target with those of a model from target to source.

    One model gives each target word at most one link; two together can give many to both words.

    Args:
        forward: the aligner from source to target, its layer and setting chosen.
        backward: the aligner from target to source, likewise.
        how: ``"intersection"``, ``"union"`` or ``"grow-diag-final"``: see `symmetrise`.

    Raises:
        ValueError: if ``how`` is none of these.

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
        """The joined links of one pair of sentences, or of many pairs, as `CrossAttentionAligner.align` gives them."""
        there, back = self.forward.align(source, target), self.backward.align(target, source)
        if len(source) and isinstance(source[0], str):
            return self._joined(there, back)
        return [self._joined(*links) for links in zip(there, back, strict=True)]

    def evaluate(
        self, pairs: Sequence[tuple[Sentence, Sentence]], gold: Gold, *, resamples: int = 1000
    ) -> AlignmentScore:
        """Error rate, precision and recall of the joined links.

        Raises:
            ValueError: if pairs and gold links do not fit.
        """
        check_links(pairs, gold, "SymmetricAligner")
        links = self.align([source for source, _ in pairs], [target for _, target in pairs])
        return alignment_score(links, gold, resamples=resamples)

    def _joined(self, there: list[Link], back: list[Link]) -> list[Link]:
        return symmetrise(there, [(s, t) for t, s in back], self.how)


def check_way(how: str) -> None:
    """Refuses an unknown ``how``."""
    if how not in ("intersection", "union", "grow-diag-final"):
        raise ValueError(f"symmetrise: how should be intersection, union or grow-diag-final, got {how!r}.")


def _grow(links: set[Link], union: set[Link]) -> None:
    """Adds neighbours from the union until none is left to add."""
    grown = True
    while grown:
        grown = False
        for s, t in sorted(links):
            for ds, dt in _NEIGHBOURS:
                near = (s + ds, t + dt)
                if near in union and near not in links and _gives_first(near, links):
                    links.add(near)
                    grown = True


def _gives_first(link: Link, links: set[Link]) -> bool:
    """Whether one of a link's words has no link yet."""
    return all(link[0] != s for s, _ in links) or all(link[1] != t for _, t in links)
