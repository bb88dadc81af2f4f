"""Words from the marks that a vocabulary puts on its pieces."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
    the text itself.  So ``words_of`` never falls back on this function; the caller chooses it.

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
    strings: list[str] = []
    index: list[int | None] = []
    open_word = False  # whether the next piece may continue the last word
    for piece in pieces:
        is_special = piece in special_tokens
        if piece in padding or (is_special and special == "drop"):
            index.append(None)
            open_word = False
            continue
        joins, body, stays_open = (False, piece, False) if is_special else _read_mark(piece, mark)
        if joins and open_word:
            strings[-1] += body
        else:
            strings.append(body)
        index.append(len(strings) - 1)
        open_word = stays_open
    return Words(tuple(strings), tuple(index))


def _read_mark(piece: str, mark: str) -> tuple[bool, str, bool]:
    """Whether a piece continues the word before it; its characters; whether another piece may continue it."""
    if mark == "##":
        continues = piece.startswith(mark) and piece != mark
        return continues, piece[2:] if continues else piece, True
    if mark == "▁":
        return not piece.startswith(mark), piece.removeprefix(mark), True
    if mark == "@@":
        return True, piece.removesuffix(mark), piece.endswith(mark)
    return True, piece.removesuffix(mark), not piece.endswith(mark)
