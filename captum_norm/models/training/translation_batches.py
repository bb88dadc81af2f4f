"""In which order and in which batches does the translation model see its sentences?  A seed and the epoch decide.

The first epoch has only short sentences, one in a row: with few words to choose from, the model soon finds which
translates which.  Later rows may join several sentences with their translations, because short sentences alone never
show distant positions.  Collections with few sentences are repeated.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from tokenizers import Tokenizer

from captum_norm.models.training.parallel_text import Pair

Row: TypeAlias = tuple[list[int], list[int]]
"""Piece ids of source and target, </s> not yet added."""
Part: TypeAlias = list[Row]

SHORT = 12  # target pieces of a sentence of the first epoch


def encode(pieces: Tokenizer, pairs: Sequence[Pair], longest: int = 120) -> list[Row]:
    """Piece ids of each pair; pairs of more than ``longest`` pieces on a side are left out."""
    sides = [
        [row.ids for row in pieces.encode_batch(list(side), is_pretokenized=True, add_special_tokens=False)]
        for side in zip(*pairs, strict=True)
    ]
    return [(s, t) for s, t in zip(*sides, strict=True) if len(s) <= longest and len(t) <= longest]


def epoch_batches(
    data: Sequence[Sequence[Row]], repeats: Sequence[float], chances: Sequence[float], size: int, epoch: int, seed: int
) -> list[list[Part]]:
    """An epoch's batches in order, two parts each.  They depend on the data, the epoch and the seed alone.

    Args:
        data: the rows of each collection, the one with short sentences first.
        repeats: how often an epoch has each collection; for the first, the part of it that is drawn anew each time.
        chances: the probabilities that one, two ... rows of the first collection are joined.
        size: the most pieces of a part, padding included.
        epoch: its number; 0 has only the short rows of the first collection.
        seed: of everything drawn at random.
    """
    chance = random.Random(f"{seed}/{epoch}")
    if epoch == 0:
        rows = [row for row in data[0] if len(row[1]) <= SHORT]
    else:
        rows = joined(chance.sample(data[0], int(len(data[0]) * repeats[0])), chances, chance)
        for more, times in zip(data[1:], repeats[1:], strict=True):
            rows += list(more) * int(times)
    rows = sorted(rows, key=lambda row: (len(row[1]) // 3, len(row[0]) // 3, chance.random()))
    parts = list(_filled(rows, size))
    chance.shuffle(parts)
    return [parts[i : i + 2] for i in range(0, len(parts) - 1, 2)]


def joined(rows: Sequence[Row], chances: Sequence[float], chance: random.Random) -> list[Row]:
    """The rows in random order, some of them joined: ``chances`` are the probabilities of one, two ... in a row.

    >>> joined([([5], [6]), ([7], [8])], (0, 1), random.Random(0))
    [([5, 7], [6, 8])]
    """
    order = list(range(len(rows)))
    chance.shuffle(order)
    result, start = [], 0
    while start < len(order):
        count = chance.choices(range(1, len(chances) + 1), chances)[0]
        chosen = [rows[i] for i in order[start : start + count]]
        result.append(([i for source, _ in chosen for i in source], [i for _, target in chosen for i in target]))
        start += count
    return result


def _filled(rows: Sequence[Row], size: int) -> Iterator[Part]:
    """Parts of neighbouring rows, each as full as the size allows."""
    part: Part = []
    longest = 0
    for row in rows:
        length = 1 + max(len(row[0]), len(row[1]))
        if part and max(longest, length) * (len(part) + 1) > size:
            yield part
            part, longest = [], 0
        part.append(row)
        longest = max(longest, length)
    if part:
        yield part
