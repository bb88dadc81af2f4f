"""Which film snippets may a classifier learn from?  Those that are not in a test, nor near a sentence of one.

This file reads two data sets: the sentence polarity data of Pang & Lee (2005), https://arxiv.org/abs/cs/0506075 (CC BY
4.0), and the Stanford Sentiment Treebank (Socher et al. 2013), whose sentences are those same snippets, respelt, and
cut at full stops.  To keep the treebank's dev and test sentences out of training, texts are compared by what survives
respelling: the set of all runs of eight letters or digits, without accents, case, spaces and punctuation.  Each of
those 3,311 sentences shares at least 0.8 of its runs with some snippet, so half is a cautious bound: it also leaves out
180 snippets that merely resemble one of them.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

RUN = 8  # letters or digits per run: long enough to be rare, short enough that a respelt word spoils few of them
NEAR = 0.5  # two texts are near if they share this part of the runs of the one that has fewer

_ESCAPES = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "\\/": "/", "\\*": "*"}


class Snippet(NamedTuple):
    """A text and its label: 0 negative, 1 positive."""

    text: str
    label: int


@dataclass(frozen=True)
class SnippetSplit:
    """Snippets to learn from, to test on, and those removed because a test contains them or a near one."""

    training: list[Snippet]
    held_out: list[Snippet]
    removed: list[Snippet]


def read_polarity(path: str | Path) -> list[Snippet]:
    """All snippets of ``sentence_polarity.zip``, the negative ones first.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no zip file or has no ``rt-polarity.neg`` and ``rt-polarity.pos``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [archive.read(f"sentence_polarity/rt-polarity.{end}").decode("utf-8") for end in ("neg", "pos")]
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"read_polarity: {path} is not the sentence polarity data ({error}).") from error
    return [
        Snippet(line.strip(), label) for label, part in enumerate(parts) for line in part.split("\n") if line.strip()
    ]


def read_trees(path: str | Path) -> list[tuple[str, int]]:
    """The sentences of a file of treebank trees, in plain spelling, with labels 0 (very negative) to 4 (very positive).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is no tree.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [_sentence(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def binary(trees: Iterable[tuple[str, int]]) -> list[Snippet]:
    """The sentences that are not neutral, as snippets.

    >>> binary([("Fine.", 3), ("Hm.", 2), ("Awful.", 0)])
    [Snippet(text='Fine.', label=1), Snippet(text='Awful.', label=0)]
    """
    return [Snippet(text, int(label > 2)) for text, label in trees if label != 2]


def split_snippets(snippets: Sequence[Snippet], kept_out: Sequence[str], held_out: int) -> SnippetSplit:
    """Splits snippets into those to learn from and those to test on, with nothing near ``kept_out`` or each other.

    The letters of a snippet alone decide on which side it falls, not its place in the file nor random numbers.

    Args:
        snippets: all there are.
        kept_out: texts of which nothing may be learnt, such as the test sentences of another data set.
        held_out: how many snippets to test on.

    Returns:
        The split; ``removed`` are the snippets near a text of ``kept_out``, those near a held-out snippet, and all but
        the first of equal ones.

    Raises:
        ValueError: if fewer than ``held_out`` + 1 snippets remain.
    """
    texts = [snippet.text for snippet in snippets]
    barred = near(texts, kept_out)
    firsts = {letters(texts[i]): i for i in reversed(range(len(texts))) if i not in barred}
    order = sorted(firsts.values(), key=lambda i: hashlib.blake2b(letters(texts[i]).encode()).digest())
    if len(order) <= held_out:
        raise ValueError(f"split_snippets: held_out is {held_out}, but only {len(order)} of {len(texts)} remain.")
    test, rest = order[:held_out], order[held_out:]
    twins = near([texts[i] for i in rest], [texts[i] for i in test])
    training = [i for n, i in enumerate(rest) if n not in twins]
    return SnippetSplit(
        training=[snippets[i] for i in training],
        held_out=[snippets[i] for i in test],
        removed=[snippets[i] for i in sorted(set(range(len(texts))).difference(training, test))],
    )


def near(texts: Sequence[str], others: Sequence[str]) -> set[int]:
    """Which of the texts share at least half of their runs, or of the other's, with one of the others.

    >>> near(["amélie's eyes are green , she says .", "a quiet film ."], ["Amelie 's eyes are green"])
    {0}
    """
    sets = [runs(text) for text in texts]
    where = defaultdict(list)
    for i, own_runs in enumerate(sets):
        for run in own_runs:
            where[run].append(i)
    result: set[int] = set()
    for other in map(runs, others):
        shared = Counter(i for run in other for i in where.get(run, ()))
        result.update(i for i, n in shared.items() if n >= NEAR * min(len(sets[i]), len(other)))
    return result


def runs(text: str) -> set[str]:
    """All runs of eight letters or digits in a text, and its sentences that are no longer than that, whole.

    >>> sorted(runs("Yes. It's a film"))
    ['esitsafi', 'itsafilm', 'sitsafil', 'yes', 'yesitsaf']
    """
    whole = letters(text)
    short = {piece for part in re.split(r"[.!?;:]", text) if 0 < len(piece := letters(part)) <= RUN}
    return short | {whole[i : i + RUN] for i in range(len(whole) - RUN + 1)}


def letters(text: str) -> str:
    """What survives respelling: letters and digits, lower case, without accents.

    >>> letters("Amélie's  -LRB- 2001 -RRB-")
    'amelies2001'
    """
    for escaped, meant in _ESCAPES.items():
        text = text.replace(escaped, meant)
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", text).lower())


def _sentence(tree: str, place: str) -> tuple[str, int]:
    words = re.findall(r"\(\d ([^()\s]+)\)", tree)
    if not words or not re.match(r"\([0-4] ", tree):
        raise ValueError(f"read_trees: {place}: no tree: {tree[:60]!r}")
    text = " ".join(_ESCAPES.get(word, word.replace("\\/", "/").replace("\\*", "*")) for word in words)
    return re.sub(r" (?=(n't|'(s|re|ve|ll|d|m))( |$))", "", text), int(tree[1])
