"""Which ids does a model read for a sentence of words, and to which word does each id belong?

A fast tokenizer of any kind says which characters each piece covers, and so which word the piece belongs to.  A
tokenizer without such a record cuts one word after the other; in the whole sentence, the ids around those of the words,
such as ``</s>`` or the code of a language, are special.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from captum_norm.text_files import check_characters
from captum_norm.words import words_of


@dataclass(frozen=True)
class Pieces:
    """A sentence in pieces, as a model reads or writes it.

    Attributes:
        ids: of all pieces, special tokens included.
        words: the word of each piece, counted from 0; None for a special token.
        special: the names of the special tokens in order; empty if unknown.
    """

    ids: tuple[int, ...]
    words: tuple[int | None, ...]
    special: tuple[str, ...] = ()

    def special_names(self) -> tuple[str, ...]:
        """The name of each special token; a dot where names are unknown."""
        count = self.words.count(None)
        return self.special if len(self.special) == count else ("·",) * count

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.words):
            raise ValueError(
                f"Pieces: {len(self.ids)} ids, but words has {len(self.words)} entries; each id needs one."
            )


class WordPieces(Protocol):
    """How an aligner gets pieces; implement it for a model whose tokenizer is not of transformers.

    Attributes:
        start: the id that the decoder reads first.
    """

    start: int

    def source(self, words: Sequence[str]) -> Pieces:
        """The pieces that the encoder reads."""

    def target(self, words: Sequence[str]) -> Pieces:
        """The pieces that the decoder should write, with the end-of-sentence token if it writes one."""


class TokenizerPieces:
    """The pieces of a tokenizer of transformers, with language codes where the tokenizer puts them.

    Args:
        tokenizer: fast or slow.  For models of many languages its ``src_lang`` and ``tgt_lang`` should be set.
        prefix: the words that begin the source and are no words of it, such as T5's ``"translate German to English:"``.
    """

    def __init__(self, tokenizer: Any, prefix: str = "") -> None:
        if not callable(tokenizer) or not hasattr(tokenizer, "all_special_ids"):
            raise TypeError(
                f"CrossAttentionAligner: {type(tokenizer).__name__} is neither a tokenizer of transformers nor has "
                "source(words), target(words) and start (captum_norm.alignment.WordPieces)."
            )
        self._tokenizer, self._prefix = tokenizer, prefix.split()

    def source(self, words: Sequence[str]) -> Pieces:
        """The pieces that the encoder reads."""
        pieces, before = self._pieces([*self._prefix, *words], "text"), len(self._prefix)
        return self._named(pieces.ids, [None if w is None or w < before else w - before for w in pieces.words])

    def target(self, words: Sequence[str]) -> Pieces:
        """The labels: the pieces that the decoder should write."""
        return self._pieces(words, "text_target")

    def _pieces(self, words: Sequence[str], side: str) -> Pieces:
        encoding = self._tokenizer(**{side: " ".join(words)})
        if not getattr(self._tokenizer, "is_fast", False):
            return self._word_by_word(words, side, encoding["input_ids"])
        cut = words_of(encoding, " ".join(words))
        place = _places(words, cut.strings)
        return self._named(encoding["input_ids"], [None if w is None else place[w] for w in cut.index])

    def _word_by_word(self, words: Sequence[str], side: str, ids: Sequence[int]) -> Pieces:
        of_words = [self._tokenizer(**{side: word}, add_special_tokens=False)["input_ids"] for word in words]
        plain = [(i, w) for w, pieces in enumerate(of_words) for i in pieces]
        starts = range(len(ids) - len(plain) + 1)
        start = next((i for i in starts if [*ids[i : i + len(plain)]] == [i for i, _ in plain]), None)
        if start is None:
            raise ValueError(
                f"CrossAttentionAligner: {type(self._tokenizer).__name__} cuts {' '.join(words)!r} into other pieces "
                "than its words one by one, and keeps no record of which piece covers what. Use a fast tokenizer, or "
                "an object with source(words), target(words) and start."
            )
        of_word: list[int | None] = [None] * len(ids)
        of_word[start : start + len(plain)] = [w for _, w in plain]
        return self._named(ids, of_word)

    def _named(self, ids: Sequence[int], of_word: Sequence[int | None]) -> Pieces:
        special = [i for i, word in zip(ids, of_word, strict=True) if word is None]
        names = tuple(map(str, self._tokenizer.convert_ids_to_tokens(special)))
        return Pieces(tuple(ids), tuple(of_word), names)


def _places(words: Sequence[str], strings: Sequence[str]) -> list[int]:
    """The position in ``words`` of each string cut from the text; words without a piece have no string."""
    places, next_word = [], 0
    for string in strings:
        while next_word < len(words) and words[next_word] != string:
            next_word += 1
        if next_word == len(words):
            raise ValueError(
                f"CrossAttentionAligner: one piece of the tokenizer covers more than one word, in {string!r}. It may "
                "cut words but not join them: give sentences tokenised so that it does not."
            )
        places.append(next_word)
        next_word += 1
    return places


def checked_words(side: str, words: Sequence[str], number: int | None = None) -> list[str]:
    """The words of one sentence.

    Raises:
        TypeError: if ``words`` is no list of strings.
        ValueError: if it is empty, or a word is empty or holds white space.
    """
    where = f"CrossAttentionAligner: {side}" + ("" if number is None else f", sentence {number}")
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        kind = "a string" if isinstance(words, str) else f"{[type(word).__name__ for word in words][:3]}"
        raise TypeError(f"{where} should be a list of words, got {kind}. sentence.split() makes one.")
    if not words:
        raise ValueError(f"{where} is empty, but every sentence needs a word. Leave the pair out.")
    for place, word in enumerate(words):
        if not word or any(character.isspace() for character in word):
            raise ValueError(
                f"{where}: word {place} is {word!r}, but a word has characters and no white space. For many sentences, "
                "give a list of lists of words."
            )
        check_characters(f"{where}, word {place}", word)
    return list(words)
