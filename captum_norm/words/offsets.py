"""The word of each token by the character offsets that the tokenizer kept: words are exact slices of the text."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple, TypeAlias

from captum_norm.token_classes import is_punctuation
from captum_norm.words.words import Special, Words, check_choice

WordSplit: TypeAlias = Literal["whitespace", "punctuation", "tokenizer", "given"]
Text: TypeAlias = "str | list[str]"


class _Piece(NamedTuple):
    """One token as the tokenizer described it."""

    string: str
    sequence: int | None  # which text of a pair; None for a token of no text
    start: int
    end: int
    word: int | None
    special: bool
    padding: bool


def words_of(
    encoding: Any,
    text: Text | tuple[Text, Text],
    index: int = 0,
    *,
    split: WordSplit = "whitespace",
    special: Special = "drop",
    special_ids: Collection[int] = (),
) -> Words:
    """The words of one encoded text, each an exact slice of it, and the word of every token.

    Tokens stay whole: where one token covers parts of two words, the two become one word.  A token without a visible
    character (a piece for the space before a word, a newline) belongs to the word after it, or to the last word where
    none follows, so sums over words lose no score.

    Args:
        encoding: what a fast tokenizer returned (``transformers.BatchEncoding``), or one ``tokenizers.Encoding``.
        text: the text of this example as it was given to the tokenizer; for a pair of texts, a tuple of two.
        index: which example of the encoding.
        split: what a word is: ``"whitespace"``, a run of characters between white space (so "great." is one word);
            ``"punctuation"``, the same with every punctuation mark a word of its own; ``"tokenizer"``, the tokenizer's
            own words (its ``word_ids``; some SentencePiece tokenizers take the whole text as one); ``"given"``, the
            words of a text that was given to the tokenizer as a list (``is_split_into_words=True``).
        special: ``"drop"`` leaves special tokens out of the words; ``"keep"`` makes each a word of its own, in its
            place and under its own name.  Padding belongs to no word either way.
        special_ids: ids that count as special tokens even inside the text, as a chat template writes them
            (``tokenizer.all_special_ids``); by default a special token written into the text is text.

    Returns:
        The words that have a token.  With ``split="given"``, all words of the list, at their positions in it;
        ``word_scores`` refuses to average over a word without tokens.

    Raises:
        ValueError: if the tokenizer keeps no offsets (a tokenizer written in Python: use ``words_of_pieces``), or the
            text is not the one that was encoded.
        TypeError: if text or encoding are of other types.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> pieces = ["un", "##believ", "##able", "film", "!"]
        >>> tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="film"))
        >>> tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        >>> words = words_of(tokenizer.encode("unbelievable film!"), "unbelievable film!")
        >>> words.strings, words.index
        (('unbelievable', 'film!'), (0, 0, 0, 1, 1))
    """
    check_choice("words_of", "split", split, ("whitespace", "punctuation", "tokenizer", "given"))
    check_choice("words_of", "special", special, ("drop", "keep"))
    pieces = _pieces(encoding, index, frozenset(special_ids))
    texts = _texts(text, pieces, split)
    text_words = []
    for sequence, words in enumerate(texts):
        own = {token: piece for token, piece in enumerate(pieces) if piece.sequence == sequence}
        text_words.append(_given_words(words, own) if isinstance(words, list) else _sliced_words(words, own, split))
    return _in_token_order(pieces, text_words, special)


def _pieces(encoding: Any, index: int, special_ids: Collection[int]) -> list[_Piece]:
    example = _one_encoding(encoding, index)
    where = (example.sequence_ids, example.offsets, example.word_ids)
    columns = (example.tokens, example.ids, *where, example.special_tokens_mask, example.attention_mask)
    return [
        _Piece(string, sequence, start, end, word, bool(marked) or token in special_ids, not attended)
        for string, token, sequence, (start, end), word, marked, attended in zip(*columns, strict=True)
    ]


def _one_encoding(encoding: Any, index: int) -> Any:
    """The ``tokenizers.Encoding`` of one example."""
    if hasattr(encoding, "offsets") and hasattr(encoding, "special_tokens_mask"):
        return encoding
    if not hasattr(encoding, "encodings"):
        raise TypeError(
            f"words_of: encoding should be what a tokenizer returned (BatchEncoding), got {type(encoding).__name__}; "
            "a plain dict of tensors has lost the offsets."
        )
    if not encoding.encodings:
        raise ValueError(
            "words_of: this tokenizer is written in Python and keeps no offsets; use a fast tokenizer, or "
            "words_of_pieces(tokens, mark), which joins pieces into words by their marks."
        )
    if not 0 <= index < len(encoding.encodings):
        raise ValueError(f"words_of: index {index}, but the encoding holds {len(encoding.encodings)} examples.")
    return encoding.encodings[index]


def _texts(text: Text | tuple[Text, Text], pieces: Sequence[_Piece], split: WordSplit) -> tuple[Text, ...]:
    texts = text if isinstance(text, tuple) else (text,)
    kind = list if split == "given" else str
    for words in texts:
        if not isinstance(words, kind):
            raise TypeError(
                f"words_of: split={split!r} takes the text of one example as a {kind.__name__}, got "
                f"{type(words).__name__}; a list is for words tokenised with is_split_into_words=True (split='given'), "
                "a tuple for a pair of texts."
            )
    count = 1 + max((piece.sequence for piece in pieces if piece.sequence is not None), default=0)
    if count > len(texts):
        raise ValueError(f"words_of: the encoding holds {count} texts but one was given; give a pair as a tuple.")
    return texts


class _TextWords(NamedTuple):
    """The words of one text, and the word of each token."""

    strings: list[str]
    of_token: Mapping[int, int]


def _given_words(words: list[str], pieces: dict[int, _Piece]) -> _TextWords:
    of_token = {}
    for token, piece in pieces.items():
        if piece.special:
            continue
        if piece.word is None or piece.word >= len(words) or piece.end > len(words[piece.word]):
            raise ValueError(
                f"words_of: token {token}, {piece.string!r}, lies outside the {len(words)} words given; split='given' "
                "takes the list that was tokenised with is_split_into_words=True."
            )
        of_token[token] = piece.word
    return _TextWords(words, of_token)


def _sliced_words(text: str, pieces: dict[int, _Piece], split: WordSplit) -> _TextWords:
    """The words of a text that have tokens, as slices of it."""
    plain = {token: piece for token, piece in pieces.items() if not piece.special}
    spans = {token: _visible(text, token, piece) for token, piece in plain.items()}
    covered = {token: span for token, span in spans.items() if span[0] < span[1]}
    _refuse_other_text(text, plain, covered)
    if not covered:
        if plain and text.strip():
            raise ValueError("words_of: no token has an offset into the text; use words_of_pieces(tokens, mark).")
        return _TextWords([text] if plain else [], dict.fromkeys(plain, 0))  # nothing but white space is one word
    of_character = _words_of_characters(text, pieces, covered, split)
    spanned = (range(of_character[start] + 1, of_character[end - 1] + 1) for start, end in covered.values())
    joined = {word for words in spanned for word in words}
    merged = list(accumulate(int(word not in joined) for word in range(max(of_character) + 1)))
    of_token = {token: merged[of_character[start]] for token, (start, _) in covered.items()}
    bounds: dict[int, tuple[int, int]] = {}
    for place, finer in enumerate(of_character):
        if finer >= 0:
            bounds[merged[finer]] = bounds.get(merged[finer], (place, 0))[0], place + 1
    used = sorted(set(of_token.values()))
    rank = {word: place for place, word in enumerate(used)}
    strings = [text[slice(*bounds[word])] for word in used]
    return _TextWords(strings, _with_neighbours(plain, {token: rank[word] for token, word in of_token.items()}))


def _refuse_other_text(text: str, pieces: dict[int, _Piece], covered: dict[int, tuple[int, int]]) -> None:
    """Refuse a text that the tokens were not cut from: offsets that begin anew, or other letters than the tokens'."""
    word, until = None, 0
    for token, (start, end) in covered.items():
        within = start < until and pieces[token].word != word
        if within and not _is_of_character(pieces[token].string, text[start:until]):
            raise ValueError(
                f"words_of: token {token}, {pieces[token].string!r}, begins at character {start}, within the word in "
                "front of it: the tokenizer was given a list of words. Give the same list, with split='given'."
            )
        word, until = pieces[token].word, end
    letters = {token: _letters(pieces[token].string) for token in covered}
    found = {token: text[slice(*span)] for token, span in covered.items()}
    # Letters that are not plain may be so in lower case, and more of them: a token of "ß" may be one "s" of two.
    known = [token for token, plain in letters.items() if plain and found[token].isascii()]
    wrong = [token for token in known if letters[token] != found[token].lower()]
    if len(wrong) > len(known) / 2:  # a normaliser may rewrite some
        raise ValueError(
            f"words_of: where token {wrong[0]}, {pieces[wrong[0]].string!r}, should be, the text has "
            f"{found[wrong[0]]!r}, and so on for {len(wrong)} of {len(known)} tokens; text should be the text of this "
            "example as it was given to the tokenizer."
        )


def _letters(string: str) -> str:
    """A token without marks of vocabularies and upper case; empty where it is not plain letters and digits."""
    plain = _unmarked(string)
    return plain.lower() if plain.isascii() and plain.isalnum() else ""


def _unmarked(string: str) -> str:
    return string.strip().removeprefix("##").removesuffix("</w>").removesuffix("@@").lstrip("▁Ġ")


def _is_of_character(string: str, overlap: str) -> bool:
    """Whether a token is of one character that a normaliser writes as several, "½" as "1⁄2", which may be words."""
    whole = unicodedata.normalize("NFKC", overlap).casefold()
    return len(overlap) == 1 < len(whole) and _unmarked(string).casefold() in whole


def _visible(text: str, token: int, piece: _Piece) -> tuple[int, int]:
    """The characters of a token without the white space around them."""
    if piece.end > len(text):
        raise ValueError(
            f"words_of: token {token}, {piece.string!r}, ends at character {piece.end}, but the text has {len(text)}; "
            "text should be the text of this example as it was given to the tokenizer."
        )
    inside = text[piece.start : piece.end]
    return piece.end - len(inside.lstrip()), piece.start + len(inside.rstrip())


def _words_of_characters(
    text: str, pieces: dict[int, _Piece], covered: dict[int, tuple[int, int]], split: WordSplit
) -> list[int]:
    """For each character the word it lies in, counted from 0; -1 between words."""
    labels: list[object] = [None] * len(text)  # a word is a run of equal labels
    if split == "tokenizer":
        bounds: dict[int | None, tuple[int, int]] = {}
        for token, (start, end) in covered.items():
            first, last = bounds.get(word := pieces[token].word, (start, end))
            bounds[word] = min(first, start), max(last, end)
        for word, (start, end) in bounds.items():
            labels[start:end] = [word] * (end - start)
    else:
        for place, character in enumerate(text):
            if not character.isspace():
                labels[place] = (place,) if split == "punctuation" and is_punctuation(character) else "word"
        for piece in pieces.values():
            if piece.special:  # it stands in the text, but belongs to no word beside it
                labels[piece.start : piece.end] = [None] * (piece.end - piece.start)
    begins = [label is not None and (place == 0 or labels[place - 1] != label) for place, label in enumerate(labels)]
    counted = accumulate(map(int, begins))
    return [-1 if label is None else count - 1 for label, count in zip(labels, counted, strict=True)]


def _with_neighbours(pieces: dict[int, _Piece], of_token: dict[int, int]) -> dict[int, int]:
    """The word of every token; one without a visible character takes the next word, or else the last."""
    complete, following = {}, max(of_token.values())
    for token in reversed(pieces):
        following = of_token.get(token, following)
        complete[token] = following
    return complete


def _in_token_order(pieces: Sequence[_Piece], texts: Sequence[_TextWords], special: Special) -> Words:
    """The words of all texts and the special tokens that are kept, in the order of their tokens."""
    strings: list[str] = []
    index: list[int | None] = []
    place: dict[tuple[int, int], int] = {}  # (text, word) -> position in strings
    added = [0] * len(texts)

    def add_up_to(sequence: int, word: int) -> None:
        for number in range(added[sequence], word + 1):
            place[sequence, number] = len(strings)
            strings.append(texts[sequence].strings[number])
        added[sequence] = max(added[sequence], word + 1)

    for token, piece in enumerate(pieces):
        if piece.padding or (piece.special and special == "drop"):
            index.append(None)
        elif piece.special or piece.sequence is None:
            strings.append(piece.string)
            index.append(len(strings) - 1)
        else:
            word = texts[piece.sequence].of_token[token]
            add_up_to(piece.sequence, word)
            index.append(place[piece.sequence, word])
    for sequence, words in enumerate(texts):
        add_up_to(sequence, len(words.strings) - 1)
    return Words(tuple(strings), tuple(index))
