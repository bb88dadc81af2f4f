"""The words of a text, and a word's score from the scores of its tokens.

Axes: q query, k key (one per token), w word.  Words are a list, never a dictionary: a word that occurs twice has two
scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Special: TypeAlias = Literal["drop", "keep"]
Reduce: TypeAlias = Literal["sum", "mean", "max"]


@dataclass(frozen=True)
class Words:
    """The words of one example and the word of each of its tokens.

    Attributes:
        strings: the words in order; a word that occurs twice is here twice.
        index: (token,) the position in ``strings`` of each token's word, or None for padding and for special
            tokens that were dropped.
    """

    strings: tuple[str, ...]
    index: tuple[int | None, ...]

    def __len__(self) -> int:
        return len(self.strings)

    def __post_init__(self) -> None:
        wrong = [i for i in self.index if i is not None and not 0 <= i < len(self.strings)]
        if wrong:
            raise ValueError(f"Words: index names word {wrong[0]}, but there are {len(self.strings)} words.")


def word_scores(
    scores: Tensor, words: Words, reduce: Reduce = "sum", *, axis: int = -1, empty: float | None = None
) -> Tensor:
    """One score per word from one score per token.

    Args:
        scores: (..., token), or any tensor whose ``axis`` counts the tokens of one example; floating point.
        words: the words of these tokens.
        reduce: how the pieces of a word become one: ``"sum"`` (what the word received in all), ``"mean"`` or ``"max"``.
        axis: the axis that counts tokens.
        empty: the score of a word that has no token, where ``reduce`` is a mean or a maximum.

    Returns:
        ``scores`` with ``axis`` counting words, in float32 at least.  Tokens without a word (``words.index`` None) are
        left out.

    Raises:
        ValueError: if the axis does not count the tokens of ``words``, or a word without tokens would be averaged.

    Example:
        >>> words = Words(("unbelievable", "film"), (None, 0, 0, 1, None))        # [CLS] un ##believable film [SEP]
        >>> word_scores(torch.tensor([0.4, 0.1, 0.2, 0.2, 0.1]), words)
        tensor([0.3000, 0.2000])
    """
    check_choice("word_scores", "reduce", reduce, ("sum", "mean", "max"))
    if not scores.is_floating_point():
        raise TypeError(f"word_scores: scores should be floating point, got {scores.dtype}.")
    if not -scores.ndim <= axis < scores.ndim:
        raise ValueError(f"word_scores: axis {axis} of scores of shape {tuple(scores.shape)} does not exist.")
    if scores.shape[axis] != len(words.index):
        raise ValueError(
            f"word_scores: axis {axis} of scores, which is {tuple(scores.shape)}, has {scores.shape[axis]} entries but "
            f"words has {len(words.index)} tokens; take the words from the encoding that was scored."
        )
    of_token = torch.tensor([-1 if i is None else i for i in words.index], dtype=torch.long, device=scores.device)
    kept = of_token >= 0
    counts = torch.bincount(of_token[kept], minlength=len(words))
    if reduce != "sum" and empty is None and (counts == 0).any():
        lost = int((counts == 0).nonzero()[0])
        raise ValueError(
            f"word_scores: word {lost}, {words.strings[lost]!r}, has no token, so it has no {reduce}; "
            "reduce='sum' gives it 0, empty= gives it a score."
        )
    # Half precision would lose the sums over long words, or count beyond its largest number.
    exact = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    pieces = exact.movedim(axis, -1)[..., kept]
    target = of_token[kept].expand(pieces.shape)
    result = pieces.new_full((*pieces.shape[:-1], len(words)), 0.0 if reduce == "sum" or empty is None else empty)
    reduction = {"sum": "sum", "mean": "mean", "max": "amax"}[reduce]
    return result.scatter_reduce(-1, target, pieces, reduction, include_self=False).movedim(-1, axis)


def word_map(
    scores: Tensor, queries: Words, keys: Words, *, query_reduce: Reduce = "mean", key_reduce: Reduce = "sum"
) -> Tensor:
    """A word × word map from a token × token map: first the sum over the pieces of each source word, then the mean over
    the pieces of each target word (as Kobayashi et al. 2020 do for word alignment).

    Args:
        scores: (..., query, key).
        queries: the words of the query axis.
        keys: the words of the key axis; for self-attention the same.
        query_reduce, key_reduce: how the pieces of a query word, of a key word become one.

    Returns:
        (..., query word, key word).
    """
    return word_scores(word_scores(scores, keys, key_reduce), queries, query_reduce, axis=-2)


def check_choice(caller: str, argument: str, found: object, allowed: tuple[str, ...]) -> None:
    """Raises ``ValueError`` for an argument that is none of those allowed."""
    if found not in allowed:
        raise ValueError(f"{caller}: {argument} should be one of {', '.join(map(repr, allowed))}, got {found!r}.")
