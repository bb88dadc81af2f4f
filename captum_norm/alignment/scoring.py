"""How good are links?  Precision, recall and alignment error rate against gold links, pooled over the sentences.

With A the links found, S the sure and P the possible gold links (S among P):

    precision = |A and P| / |A|      recall = |A and S| / |S|      AER = 1 - (|A and P| + |A and S|) / (|A| + |S|)

Source: Och and Ney (2003), "A Systematic Comparison of Various Statistical Alignment Models", section 4,
https://aclanthology.org/J03-1002.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_norm.alignment.links import GoldLinks, Link, check_sequence
from captum_norm.numerals import at_least


@dataclass(frozen=True)
class AlignmentScore:
    """How good links are, as fractions.

    Attributes:
        error_rate: AER, 0 (all sure links and none but possible ones) to 1.
        precision: of the links found, those possible; 0 where none was found.
        recall: of the sure links, those found; 0 where none is sure.
        low, high: the middle 95 % of the error rate over resampled sentences that have one; NaN where none has.
        links: how many links were found.
    """

    error_rate: float
    precision: float
    recall: float
    low: float
    high: float
    links: int


def alignment_error_rate(links: Sequence[Iterable[Link]], gold: Sequence[GoldLinks]) -> float:
    """AER of the links of many sentences, as a fraction.

    Args:
        links: (source word, target word) of each sentence, counted from 0.
        gold: the gold links of each sentence.

    Raises:
        ValueError: if there are not as many of one as of the other, or no gold link is sure and none was found.

    Example:
        >>> alignment_error_rate([[(0, 0), (1, 2)]], [GoldLinks(sure={(0, 0), (1, 1)}, possible={(1, 2)})])
        0.25
    """
    found, hit, sure, hit_sure = _counts("alignment_error_rate", links, gold).sum(0).tolist()
    return 1 - (hit + hit_sure) / (found + sure)


def alignment_score(
    links: Sequence[Iterable[Link]], gold: Sequence[GoldLinks], *, resamples: int = 1000, seed: int = 0
) -> AlignmentScore:
    """AER with its interval, precision and recall.

    The interval says how much the figure would change with other sentences of the same kind: sentences are drawn with
    replacement, as many as there are.  Draws with nothing to count, whose rate is 0/0, are left out.

    Args:
        links, gold: as in `alignment_error_rate`.
        resamples: how many times sentences are drawn; 0 leaves the interval at the figure itself.
        seed: of the drawing, so that figures can be compared: the same sentences are drawn for all methods.

    Raises:
        TypeError: if ``resamples`` or ``seed`` is no whole number.
        ValueError: as `alignment_error_rate`, or if one of them is below 0.

    Example:
        >>> score = alignment_score([[(0, 0)], [(0, 1)]], [GoldLinks({(0, 0)}), GoldLinks({(0, 0)})])
        >>> score.error_rate, score.precision, (score.low, score.high)
        (0.5, 0.5, (0.0, 1.0))
    """
    counts = _counts("alignment_score", links, gold)
    found, hit, sure, hit_sure = counts.sum(0).tolist()
    low = high = rate = 1 - (hit + hit_sure) / (found + sure)
    draws = _draws("alignment_score", len(counts), resamples, seed)
    if len(draws):
        low, high = _limits(_rates(counts[draws].sum(1)))
    return AlignmentScore(rate, hit / max(found, 1), hit_sure / max(sure, 1), low, high, int(found))


def error_rate_difference(
    links: Sequence[Iterable[Link]], others: Sequence[Iterable[Link]], gold: Sequence[GoldLinks], *,
    resamples: int = 1000, seed: int = 0,
) -> tuple[float, float, float]:  # fmt: skip
    """AER of ``links`` minus that of ``others`` on the same sentences, with the middle 95 % over resampled sentences.

    Draws in which one of them has no rate, as in `alignment_score`, are left out; both limits are NaN where all are.

    Raises:
        TypeError, ValueError: as `alignment_score`.

    Example:
        >>> gold = [GoldLinks({(0, 0)}), GoldLinks({(0, 0)})]
        >>> error_rate_difference([[(0, 0)], [(0, 0)]], [[(0, 1)], [(0, 1)]], gold)
        (-1.0, -1.0, -1.0)
    """
    both = [_counts("error_rate_difference", each, gold) for each in (links, others)]
    draws = _draws("error_rate_difference", len(gold), resamples, seed)
    one, other = (_rates(np.concatenate([counts.sum(0)[None], counts[draws].sum(1)])) for counts in both)
    difference = one - other
    whole = float(difference[0])
    return whole, *(_limits(difference[1:]) if len(draws) else (whole, whole))


def diagonal(sources: int, targets: int) -> list[Link]:
    """What knows nothing of the words: each target word is linked to the source word at the same part of the sentence.

    >>> diagonal(3, 6)
    [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5)]
    """
    return [(min(sources - 1, int((t + 0.5) / targets * sources)), t) for t in range(targets)]


def _draws(caller: str, sentences: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """(resample, sentence): which sentences are drawn, with replacement."""
    size = at_least(0, resamples, f"{caller}: resamples"), sentences
    return np.random.default_rng(at_least(0, seed, f"{caller}: seed")).integers(sentences, size=size)


def _rates(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(resample,) the error rates of `_counts` added up, (resample, 4); NaN where there is nothing to count."""
    found, hit, sure, hit_sure = counts.T
    with np.errstate(invalid="ignore"):
        rates: NDArray[np.float64] = 1 - (hit + hit_sure) / (found + sure)
    return rates


def _limits(rates: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of those that are defined."""
    defined = rates[~np.isnan(rates)]
    if not len(defined):
        return math.nan, math.nan
    low, high = (float(bound) for bound in np.quantile(defined, (0.025, 0.975)))
    return low, high


def _pairs(caller: str, links: Any, sentence: int) -> set[Link]:
    """The links of a sentence, each a pair of word numbers."""
    found = None if isinstance(links, str) or not isinstance(links, Iterable) else list(links)
    if found is None or not all(isinstance(link, tuple) and len(link) == 2 for link in found):
        raise TypeError(
            f"{caller}: links should be, for each sentence, pairs (source word, target word), got {links!r} for "
            f"sentence {sentence}. For one sentence give a list of one: [[(0, 0), (1, 2)]]."
        )
    return set(found)


def _counts(caller: str, links: Sequence[Iterable[Link]], gold: Sequence[GoldLinks]) -> NDArray[np.int64]:
    """(sentence, 4): |A|, |A and P|, |S|, |A and S|."""
    check_sequence(caller, "links", links, ordered=False)
    check_sequence(caller, "gold", gold, ordered=False)
    if len(links) != len(gold):
        raise ValueError(f"{caller}: links of {len(links)} sentences, but gold links of {len(gold)}.")
    rows = []
    for i, (one, right) in enumerate(zip(links, gold, strict=True)):
        if not isinstance(right, GoldLinks):
            raise TypeError(
                f"{caller}: gold should be one GoldLinks per sentence, got {right!r} for sentence {i}. "
                "GoldLinks(links) takes the links of one sentence as sure; for one sentence give lists of one."
            )
        found = _pairs(caller, one, i)
        rows.append((len(found), len(found & right.possible), len(right.sure), len(found & right.sure)))
    counts = np.array(rows, dtype=np.int64).reshape(-1, 4)
    if not counts[:, [0, 2]].sum():
        raise ValueError(f"{caller}: no link was found and no gold link is sure: there is nothing to count.")
    return counts
