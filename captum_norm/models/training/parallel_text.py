"""Which German-English pairs may a translation model learn from?  Those that share no sentence with a test.

This file reads three collections in the form in which they are distributed: Tatoeba's pairs (CC BY 2.0), the WMT 2015
sample of OpenNMT, and a sample of Europarl v7.  All become lower-cased words, cut as the Moses tokeniser cuts them.

Two sentences are the same if they have the same letters and digits, whatever their case, spaces and punctuation.  So a
test sentence is kept out whether a collection has it tokenised or as it was written.
"""

from __future__ import annotations

import hashlib
import html
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from captum_norm.models.translation_text import PLAIN_QUOTES, translation_words


class Pair(NamedTuple):
    """A sentence and its translation, as words."""

    german: tuple[str, ...]
    english: tuple[str, ...]


def letters(sentence: str | Iterable[str]) -> str:
    """The letters and digits of a sentence in lower case: two sentences are the same if these are equal.

    >>> letters("That's  it!") == letters(("that", "'s", "it", "!"))
    True
    """
    text = sentence if isinstance(sentence, str) else "".join(sentence)
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if character.isalnum())


def read_tatoeba(path: str | Path) -> list[Pair]:
    """The pairs of ``deu-eng.zip`` (manythings.org/anki): lines of English, tab, German.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no archive with ``deu.txt``, or a line has no tab.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            lines = archive.read("deu.txt").decode("utf-8").splitlines()
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"read_tatoeba: {path} is not the archive with deu.txt ({error}).") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        english, tab, rest = line.partition("\t")
        if not tab:
            raise ValueError(f"read_tatoeba: {path}, line {number} of deu.txt has no tab between the languages.")
        pairs.append(Pair(translation_words(rest.split("\t")[0]), translation_words(english)))
    return pairs


def read_tokenised(german: str | Path, english: str | Path) -> list[Pair]:
    """The pairs of two files with one sentence per line, already cut into words; pieces (``@@``) are joined.

    Raises:
        FileNotFoundError: if one of them is missing.
        ValueError: if they have different numbers of lines.
    """
    sides = [Path(path).read_text(encoding="utf-8").split("\n") for path in (german, english)]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(
            f"read_tokenised: {german} has {len(sides[0])} lines, {english} has {len(sides[1])}. "
            "Line n of one must translate line n of the other."
        )
    return [Pair(_words_of_line(source), _words_of_line(target)) for source, target in zip(*sides, strict=True)]


def _words_of_line(line: str) -> tuple[str, ...]:
    joined = html.unescape(line).replace("@@ ", "").replace(" @-@ ", "-")
    return tuple(joined.translate(PLAIN_QUOTES).lower().split())


def usable(pairs: Iterable[Pair], longest: int = 60) -> list[Pair]:
    """The pairs with words on both sides, none longer than ``longest``, and no side much longer than the other."""
    return [
        pair
        for pair in pairs
        if 0 < len(pair.german) <= longest
        and 0 < len(pair.english) <= longest
        and len(pair.german) <= 2.5 * len(pair.english) + 3
        and len(pair.english) <= 2.5 * len(pair.german) + 3
    ]


def without(pairs: Iterable[Pair], kept_out: Iterable[str | Iterable[str]]) -> list[Pair]:
    """The pairs that have none of the sentences kept out on either side, however these are cut or written.

    >>> without([Pair(("hallo", "!"), ("hi", "!")), Pair(("gut", "."), ("fine", "."))], ["Hallo"])
    [Pair(german=('gut', '.'), english=('fine', '.'))]
    """
    barred = {letters(sentence) for sentence in kept_out}
    return [pair for pair in pairs if letters(pair.german) not in barred and letters(pair.english) not in barred]


def hold_out(pairs: Sequence[Pair], count: int) -> tuple[list[Pair], list[Pair]]:
    """Splits pairs into those to learn from and ``count`` to test on, which share no sentence.

    The letters of a pair alone decide whether it is held out, not its place in the list.

    Returns:
        The pairs to learn from and those to test on.

    Raises:
        ValueError: if there are not more than ``count`` different pairs.
    """
    different = {letters(pair.german) + "/" + letters(pair.english): pair for pair in pairs}
    if len(different) <= count:
        raise ValueError(f"hold_out: {count} pairs cannot be held out of {len(different)} different ones.")
    order = sorted(different, key=lambda key: hashlib.blake2b(key.encode()).digest())
    held = [different[key] for key in order[:count]]
    return without(pairs, [side for pair in held for side in pair]), held
