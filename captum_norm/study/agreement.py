"""Do two methods put the same tokens first?  Four measures of two score lists over the same tokens or words.

    spearman              Pearson's correlation of the ranks, ties by their average rank
    kendall_tau_b         (concordant - discordant) / sqrt(pairs not tied in a * pairs not tied in b)
    top_k_overlap         |top k of a and top k of b| / k
    rank_biased_overlap   (1 - p) sum over depths d of p^(d-1) A_d, extrapolated;  A_d = |first d of both| / d

Sources: Kendall (1945), https://doi.org/10.1093/biomet/33.3.239 (tau-b); Webber, Moffat and Zobel (2010), "A similarity
measure for indefinite rankings", https://doi.org/10.1145/1852102.1852106 (rank-biased overlap, extrapolated by their
equation 32); Corsi and Urbano (2024), "The Treatment of Ties in Rank-Biased Overlap",
https://doi.org/10.1145/3626772.3657700 (its ties, their variant b, which relates to rank-biased overlap as tau-b to
tau).

Scores are lists of numbers, (token,); the largest is the first.  A measure is NaN where it is undefined, only there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from captum_norm import ranks
from captum_norm.optional_packages import required
from captum_norm.study.all_pairs import TOGETHER, memberships, of_all_pairs
from captum_norm.words import Words

Scores: TypeAlias = NDArray[np.float64]
RankCorrelation: TypeAlias = Literal["kendall", "spearman"]
Specials: TypeAlias = Literal["keep", "mask", "report"]
Agreement: TypeAlias = Callable[[ArrayLike, ArrayLike], float]


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rho; NaN for fewer than two tokens or where either list is constant.

    Example:
        >>> spearman([1.0, 2.0, 3.0, 4.0], [10.0, 30.0, 20.0, 40.0])
        0.8
    """
    first, second = _pair("spearman", a, b)
    if not _has_order(first, second):
        return float("nan")
    return float(ranks.spearman(torch.from_numpy(first), torch.from_numpy(second)))


def kendall_tau_b(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-b, by scipy; NaN for fewer than two tokens or where either list is constant.

    Example:
        >>> kendall_tau_b([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
        0.33333333333333337
    """
    first, second = _pair("kendall_tau_b", a, b)
    if not _has_order(first, second):
        return float("nan")
    return float(required("scipy.stats", "kendall_tau_b").kendalltau(first, second).statistic)


def top_k_overlap(a: ArrayLike, b: ArrayLike, k: int = 5) -> float:
    """Which part of their first k tokens two lists share; of all tokens where there are fewer than k.

    Tokens of equal score at the edge share the remaining places, each as a fraction of one.  So a constant list
    overlaps as a random one does on average, and the order of the tokens in the text does not count.

    Raises:
        ValueError: if k is below 1.

    Example:
        >>> top_k_overlap([9.0, 8.0, 1.0, 2.0], [9.0, 1.0, 8.0, 2.0], k=2)
        0.5
    """
    first, second = _pair("top_k_overlap", a, b)
    if k < 1:
        raise ValueError(f"top_k_overlap: k should be at least 1, got {k}.")
    depth = np.array([min(k, len(first))])
    return float((memberships(first, depth) * memberships(second, depth)).sum() / depth[0])


def rank_biased_overlap(a: ArrayLike, b: ArrayLike, p: float = 0.9) -> float:
    """Extrapolated rank-biased overlap: how far two orders agree, the first places counting most.

    Args:
        a: (token,) scores.
        b: (token,) scores of the same tokens.
        p: how much each place counts beside the one before; 0.9 gives the first 10 places 86 % of the weight.

    Returns:
        0 to 1; 1 for the same order.  Tokens of equal score share their places: at a depth inside the tie, each belongs
        to the first ones by the fraction of the tie's places that lie above that depth.

    Raises:
        ValueError: if p is not between 0 and 1.

    Example:
        >>> round(rank_biased_overlap([3.0, 2.0, 1.0], [2.0, 3.0, 1.0], p=0.5), 6)
        0.5
    """
    first, second = _pair("rank_biased_overlap", a, b)
    if not 0 < p < 1:
        raise ValueError(f"rank_biased_overlap: p should be between 0 and 1, got {p}.")
    depths = np.arange(1, len(first) + 1)
    in_a, in_b = memberships(first, depths), memberships(second, depths)
    # Divided by d this would be the mean over all ways of breaking ties, in which a tie disagrees with itself.
    agreement = (in_a * in_b).sum(1) / np.sqrt((in_a * in_a).sum(1) * (in_b * in_b).sum(1))
    return float((1 - p) * (agreement * p ** (depths - 1)).sum() + agreement[-1] * p ** len(first))


AGREEMENTS: dict[str, Agreement] = {
    "spearman": spearman,
    "kendall_tau_b": kendall_tau_b,
    "top_k_overlap": top_k_overlap,
    "rank_biased_overlap": rank_biased_overlap,
}
"""Every measure of agreement by name; the larger, the more alike."""


def agreement_matrix(
    scores: Mapping[str, Sequence[ArrayLike | None]], measure: str | Agreement = "spearman"
) -> NDArray[np.float64]:
    """How far each two methods agree on each example.

    Args:
        scores: for each method its scores of every example, (token,) each; None for an example that it failed on.
        measure: one of `AGREEMENTS`, or a function of two score lists.

    Returns:
        (method, method, example) in the order of ``scores``; symmetric; NaN where either method failed or the measure
        is undefined.

    Raises:
        ValueError: where the methods hold different examples, or two score an example's tokens differently many.

    Example:
        >>> agreement_matrix({"a": [[3, 1, 2]], "b": [[1, 3, 2]]})[..., 0]
        array([[ 1., -1.],
               [-1.,  1.]])
    """
    if isinstance(measure, str) and measure not in AGREEMENTS:
        raise ValueError(f"agreement_matrix: measure should be one of {', '.join(AGREEMENTS)}, got {measure!r}.")
    of_pair = AGREEMENTS[measure] if isinstance(measure, str) else measure
    counts = {name: len(examples) for name, examples in scores.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"agreement_matrix: every method should score the same examples, got {counts}.")
    lists = list(scores.values())
    known = next((name for name, one in AGREEMENTS.items() if one is of_pair), None)
    if known is not None:
        return of_all_pairs(lists, TOGETHER[known], known)
    matrix = np.full((len(lists), len(lists), next(iter(counts.values()), 0)), np.nan)
    for i, of_i in enumerate(lists):
        for j, of_j in enumerate(lists[: i + 1]):
            pairs = zip(of_i, of_j, strict=True)
            matrix[i, j] = [np.nan if a is None or b is None else of_pair(a, b) for a, b in pairs]
            matrix[j, i] = matrix[i, j]
    return matrix


@dataclass(frozen=True)
class Comparable:
    """The scores of one example that are compared.

    Attributes:
        scores: (token,) or (word,), float64.
        special_share: what part of all scores, by size, fell to special tokens; None unless it was to be reported.
    """

    scores: Scores
    special_share: float | None = None


def comparable(
    scores: ArrayLike,
    *,
    real: ArrayLike,
    special: ArrayLike,
    specials: Specials = "mask",
    words: Words | None = None,
) -> Comparable:
    """The scores of one example that methods are compared by: of tokens or words, with or without special tokens.

    Args:
        scores: (token,), padding included.
        real: (token,) bool, True where a token is no padding.
        special: (token,) bool, True at [CLS], [SEP] and their kind.
        specials: ``"keep"`` compares them like any token; ``"mask"`` leaves them out; ``"report"`` leaves them out and
            says what share of the scores they had.
        words: adds the scores of each word's tokens; read with ``words_of(special="keep")`` to keep special tokens and
            with ``special="drop"`` otherwise.

    Raises:
        ValueError: where shapes disagree, nothing is left to compare, or ``words`` treat special tokens otherwise.

    Example:
        >>> comparable([0.5, 0.3, 0.2, 0.0], real=[1, 1, 1, 0], special=[1, 0, 0, 0], specials="report")
        Comparable(scores=array([0.3, 0.2]), special_share=0.5)
    """
    if specials not in ("keep", "mask", "report"):
        raise ValueError(f"comparable: specials should be 'keep', 'mask' or 'report', got {specials!r}.")
    values = np.asarray(scores, dtype=np.float64)
    is_real, is_special = (np.asarray(mask, dtype=bool) for mask in (real, special))
    if values.ndim != 1 or not values.shape == is_real.shape == is_special.shape:
        raise ValueError(
            f"comparable: scores, real and special should be (token,) alike, got {values.shape}, {is_real.shape} and "
            f"{is_special.shape}."
        )
    is_special = is_special & is_real
    total = np.abs(values[is_real]).sum()
    share = float(np.abs(values[is_special]).sum() / total) if total > 0 else 0.0
    compared = is_real if specials == "keep" else is_real & ~is_special
    if not compared.any():
        raise ValueError(f"comparable: with specials={specials!r} no token is left to compare.")
    kept = values[compared] if words is None else _of_words(values, words, compared)
    return Comparable(kept, share if specials == "report" else None)


def _of_words(values: Scores, words: Words, compared: NDArray[np.bool_]) -> Scores:
    if len(words.index) != len(compared):
        raise ValueError(f"comparable: words were read from {len(words.index)} tokens, but there are {len(compared)}.")
    places = np.array([-1 if place is None else place for place in words.index])
    in_words = places >= 0
    wrong = np.flatnonzero(in_words != compared)
    if len(wrong):
        raise ValueError(
            f"comparable: token {wrong[0]} {'is' if in_words[wrong[0]] else 'is not'} part of a word, which the choice "
            "of special tokens contradicts: words_of(special='keep') goes with specials='keep', 'drop' with the others."
        )
    return np.bincount(places[in_words], weights=values[in_words], minlength=len(words)).astype(np.float64)


def rank_correlation(name: str) -> Agreement:
    """``"kendall"`` (tau-b) or ``"spearman"``.

    Raises:
        ValueError: for another name.
    """
    correlations: dict[str, Agreement] = {"kendall": kendall_tau_b, "spearman": spearman}
    if name not in correlations:
        raise ValueError(f"a rank correlation is one of {', '.join(map(repr, correlations))}, got {name!r}.")
    return correlations[name]


def _pair(caller: str, a: ArrayLike, b: ArrayLike) -> tuple[Scores, Scores]:
    first, second = (np.asarray(x, dtype=np.float64) for x in (a, b))
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"{caller}: a is {first.shape} but b is {second.shape}; both should be (token,).")
    if not len(first):
        raise ValueError(f"{caller}: there are no tokens to compare.")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError(f"{caller}: a score is NaN or infinite and has no rank.")
    return first, second


def _has_order(*lists: Scores) -> bool:
    return all(len(x) > 1 and x.min() < x.max() for x in lists)
