"""What is kept of the scores of many batches at one layer, head and setting: links, and who received how much."""

from __future__ import annotations

import unicodedata

import torch
from torch import Tensor

from captum_norm.alignment.links import Link
from captum_norm.alignment.teacher import Batch


class Gathered:
    """What is gathered over batches for one place.

    Args:
        count: how many pairs there are.

    Attributes:
        links: of each pair.
        shares: (2,) sums over target words of the shares of special tokens and of punctuation marks.
        words: how many target words that is.
    """

    def __init__(self, count: int) -> None:
        self.links: list[list[Link]] = [[] for _ in range(count)]
        self.shares = torch.zeros(2, dtype=torch.float64)
        self.words = 0

    def add(self, batch: Batch, of_words: Tensor, marks: Tensor) -> None:
        """Takes in a batch's (batch, word, candidate)."""
        for number, links in zip(batch.numbers, batch.links(of_words), strict=True):
            self.links[number] = links
        total = of_words.sum(-1, keepdim=True)
        shares = (of_words / total.clamp(min=torch.finfo(total.dtype).tiny)) @ marks.to(of_words.dtype)
        self.shares += shares.sum((0, 1)).double().cpu()
        self.words += int((total > 0).sum())


def marked(batch: Batch) -> Tensor:
    """(batch, candidate, 2): 1 at special tokens, and at punctuation marks."""
    marks = torch.zeros(len(batch.pairs), batch.sources.shape[-1], 2)
    for row, pair in enumerate(batch.pairs):
        marks[row, len(pair.source) :, 0] = 1
        for place, word in enumerate(pair.source):
            marks[row, place, 1] = all(unicodedata.category(character)[0] in "PS" for character in word)
    return marks.to(batch.sources.device)
