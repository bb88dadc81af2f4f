"""How near are translations to their references?  BLEU over a corpus, on the words given.

Source: Papineni et al. (2002), https://aclanthology.org/P02-1040.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

_LONGEST = 4  # words


def bleu(translations: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """The geometric mean of the precisions of runs of one to four words, times a penalty for brevity, in percent.

    Args:
        translations: the words of each translation.
        references: the words of its reference.

    Raises:
        ValueError: if their numbers differ, or there are none.

    Example:
        >>> bleu([["a", "cat", "sat", "down", "."]], [["a", "cat", "sat", "down", "."]])
        100.0
    """
    if len(translations) != len(references) or not references:
        raise ValueError(
            f"bleu: {len(translations)} translations for {len(references)} references; give one reference for each."
        )
    right, given = [0] * _LONGEST, [0] * _LONGEST
    for translation, reference in zip(translations, references, strict=True):
        for n in range(1, _LONGEST + 1):
            runs = _runs(translation, n)
            right[n - 1] += (runs & _runs(reference, n)).total()
            given[n - 1] += runs.total()
    if not all(right):
        return 0.0
    mean = sum(math.log(r / g) for r, g in zip(right, given, strict=True)) / _LONGEST
    lengths = sum(map(len, translations)), sum(map(len, references))
    return 100 * math.exp(mean + min(0.0, 1 - lengths[1] / lengths[0]))


def _runs(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """The runs of ``n`` words, each with how often it occurs."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
