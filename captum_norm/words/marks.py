"""Words from the marks that a vocabulary puts on its pieces."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from captum_norm.words.words import Special, Words, check_choice


def words_of_pieces(
    pieces: Sequence[str],
    mark: Literal["##", "▁", "@@", "</w>"],
    *,
    special: Special = "drop",
    special_tokens: Collection[str] = (),
    padding: Collection[str] = (),
) -> Words:
    """Words from the marks that a vocabulary puts on its pieces, for tokenizers that keep no offsets.

    The words are joined pieces: the text as the tokenizer normalised it (lower case, for example), and not slices of
    the text itself.  So ``words_of`` never falls back on this function; the caller chooses it.  As there, a piece
    without a character (``"▁"`` alone) belongs to the word after it, or to the last one of its text.

    Args:
        pieces: the tokens of one example as strings (``tokenizer.convert_ids_to_tokens(ids)``).
        mark: how the vocabulary marks words: ``"##"`` before a piece that continues a word (WordPiece), ``"▁"`` before
            a piece that begins one (SentencePiece), ``"@@"`` after a piece that another continues (subword-nmt),
            ``"</w>"`` after a piece that ends one (the first BPE vocabularies, CLIP).
        special: as in ``words_of``.
        special_tokens: the special tokens (``tokenizer.all_special_tokens``).
        padding: the padding tokens, which belong to no word.

    Example:
        >>> words_of_pieces(["▁un", "believ", "able", "▁film", "</s>"], "▁", special_tokens=["</s>"]).strings
        ('unbelievable', 'film')
    """
    check_choice("words_of_pieces", "mark", mark, ("##", "▁", "@@", "</w>"))
    check_choice("words_of_pieces", "special", special, ("drop", "keep"))
    reading = _Reading()
    for piece in pieces:
        is_special = piece in special_tokens
        if piece in padding or is_special:
            reading.end_text()
            reading.index.append(reading.new_word(piece) if is_special and special == "keep" else None)
        else:
            reading.read(*_read_mark(piece, mark))
    reading.end_text()
    return Words(tuple(reading.strings), tuple(reading.index))


@dataclass
class _Reading:
    """The words so far, and what the next piece may do to them.

    Attributes:
        strings: the words.
        index: the word of each piece.
        blank: the pieces without a character that wait for their word.
        in_text: whether a word began since the last special token or padding.
        is_open: whether the next piece may continue the last word.
    """

    strings: list[str] = field(default_factory=list)
    index: list[int | None] = field(default_factory=list)
    blank: list[int] = field(default_factory=list)
    in_text: bool = False
    is_open: bool = False

    def read(self, joins: bool, body: str, stays_open: bool) -> None:
        """A piece of a text."""
        if joins and self.is_open:
            self.strings[-1] += body
            self.index.append(len(self.strings) - 1)
        elif body:
            self.index.append(self.new_word(body))
            self._give_blank_to(len(self.strings) - 1)
            self.in_text = True
        else:
            self.blank.append(len(self.index))
            self.index.append(None)
        self.is_open = stays_open

    def end_text(self) -> None:
        """No word follows: pieces that wait for one belong to the last, or are a blank of their own where none is."""
        if self.blank:
            self._give_blank_to(len(self.strings) - 1 if self.in_text else self.new_word(" "))
        self.in_text = self.is_open = False

    def new_word(self, string: str) -> int:
        """The place of a word that begins."""
        self.strings.append(string)
        return len(self.strings) - 1

    def _give_blank_to(self, word: int) -> None:
        for place in self.blank:
            self.index[place] = word
        self.blank.clear()


def _read_mark(piece: str, mark: str) -> tuple[bool, str, bool]:
    """Whether a piece continues the word before it; its characters; whether another piece may continue it."""
    if mark == "##":
        continues = piece.startswith(mark) and piece != mark
        return continues, piece[2:] if continues else piece, True
    if mark == "▁":
        return not piece.startswith(mark), piece.strip(mark).replace(mark, " "), not piece.endswith(mark)
    if mark == "@@":
        continued = piece.endswith(mark) and piece != mark
        return True, piece.removesuffix(mark) if continued else piece, continued
    return True, piece.removesuffix(mark), not piece.endswith(mark)
