"""How far does each of several methods agree with each other one?  All pairs at once, for the examples of one length.

A measure of agreement is an inner product of something that is computed once for each list: of centred ranks
(Spearman), of the signs of all differences (Kendall), of how much of each token is among the first k or the first d
(the overlaps).  So all pairs are one matrix product.

Axes: x example, m method, t token, d depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from captum_norm.optional_packages import required

Numbers = NDArray[np.float64]
Together = Callable[[Numbers], Numbers]
"""(x, m, t) -> (x, m, m), NaN where it is undefined."""

_AT_ONCE = 20_000_000  # numbers; memory is bounded for texts of any length


def of_all_pairs(lists: Sequence[Sequence[ArrayLike | None]], together: Together, name: str) -> Numbers:
    """A measure of each two methods on each example: (m, m, x).

    Args:
        lists: for each method its scores of every example, (t,) each; None for an example that it failed on.
        together: the measure.
        name: what it is called in errors.

    Raises:
        ValueError: where two methods score an example's tokens differently many, or a score is NaN or infinite.
    """
    matrix = np.full((len(lists), len(lists), len(lists[0]) if lists else 0), np.nan)
    places: dict[int, list[int]] = {}
    for example, of_methods in enumerate(zip(*lists, strict=True)):
        lengths = {len(np.atleast_1d(of)) for of in of_methods if of is not None}
        if len(lengths) > 1:
            raise ValueError(f"{name}: the methods score {sorted(lengths)} tokens of example {example}.")
        places.setdefault(min(lengths, default=0), []).append(example)
    for length, examples in places.items():
        step = max(1, _AT_ONCE // max(1, len(lists) * length**2))
        for start in range(0, len(examples) if length else 0, step):
            taken = examples[start : start + step]
            missing = np.array([[of[example] is None for of in lists] for example in taken])
            zeros = np.zeros(length)
            stacked = np.array([[zeros if of[example] is None else of[example] for of in lists] for example in taken])
            if not np.isfinite(stacked).all():
                raise ValueError(f"{name}: a score is NaN or infinite and has no rank.")
            found = together(stacked.astype(np.float64))
            found[missing[:, :, None] | missing[:, None, :]] = np.nan
            matrix[:, :, taken] = found.transpose(1, 2, 0)
    return matrix


def spearman(scores: Numbers) -> Numbers:
    """Of centred ranks, each in units of its own length."""
    ranked = required("scipy.stats", "agreement_matrix").rankdata(scores, axis=-1)
    return _cosines(ranked - ranked.mean(-1, keepdims=True))


def kendall_tau_b(scores: Numbers) -> Numbers:
    """Of the signs of all differences, in units of the pairs that are not tied."""
    first, second = np.triu_indices(scores.shape[-1], 1)
    return _cosines(np.sign(scores[..., first] - scores[..., second]))


def top_k_overlap(scores: Numbers, k: int = 5) -> Numbers:
    """Of how much of each token is among the first k."""
    depth = min(k, scores.shape[-1])
    among = memberships(scores, np.array([depth]))[..., 0, :]
    return among @ among.swapaxes(1, 2) / depth


def rank_biased_overlap(scores: Numbers, p: float = 0.9) -> Numbers:
    """Of how much of each token is among the first d, weighted over all depths d; see `captum_norm.study.agreement`."""
    length = scores.shape[-1]
    overlap = np.zeros((*scores.shape[:2], scores.shape[1]))
    for depth in range(1, length + 1):
        at_depth = _cosines(memberships(scores, np.array([depth]))[..., 0, :])
        overlap += at_depth * ((1 - p) * p ** (depth - 1) + (p**length if depth == length else 0.0))
    return overlap


def memberships(scores: Numbers, depths: NDArray[np.int64]) -> Numbers:
    """How much of each token is among the first d: 1, 0, or its tie's share of the places: (..., t) -> (..., d, t)."""
    above = (scores[..., None, :] > scores[..., None]).sum(-1)
    tied = (scores[..., None, :] == scores[..., None]).sum(-1)
    share: Numbers = np.clip((depths[:, None] - above[..., None, :]) / tied[..., None, :], 0, 1)
    return share


def _cosines(features: Numbers) -> Numbers:
    together: Numbers = features @ features.swapaxes(1, 2)
    own = np.einsum("xmt,xmt->xm", features, features)
    with np.errstate(invalid="ignore", divide="ignore"):
        return together / np.sqrt(own[:, :, None] * own[:, None, :])


TOGETHER: dict[str, Together] = {
    "spearman": spearman,
    "kendall_tau_b": kendall_tau_b,
    "top_k_overlap": top_k_overlap,
    "rank_biased_overlap": rank_biased_overlap,
}
"""The measures of `captum_norm.study.agreement.AGREEMENTS` by name."""
