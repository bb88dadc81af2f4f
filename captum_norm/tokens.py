"""From word pieces to words, and from tokens to classes of tokens.

A tokenizer cuts a text into pieces; a reader thinks in words.  ``words_of`` says which word each token belongs to, by
the character offsets the tokenizer kept, so that the words are exact slices of the text, and ``word_scores`` and
``word_map`` add or average scores over the pieces of a word.  ``token_classes`` names what each token is ([CLS], [SEP],
punctuation, other), and ``class_shares`` says what part of a query's attention each class receives:

    share(c) = mean over real queries i of  (sum over j in c of m_ij) / (sum over all real j of m_ij)

for a map m of weights or norms (Kobayashi et al. 2020, https://arxiv.org/abs/2004.10102, who report the sum in the
numerator alone).

Axes: b batch, h head, q query, k key (one per token), w word.  Words and classes are lists, never dictionaries keyed by
a string: a word that occurs twice has two scores.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Split: TypeAlias = Literal["whitespace", "punctuation", "tokenizer", "given"]
Special: TypeAlias = Literal["drop", "keep"]
Reduce: TypeAlias = Literal["sum", "mean", "max"]
Text: TypeAlias = "str | list[str]"

__all__ = [
    "Words",
    "class_means",
    "class_shares",
    "token_classes",
    "word_map",
    "word_scores",
    "words_of",
    "words_of_pieces",
]


@dataclass(frozen=True)
class Words:
    """The words of one example and the word of each of its tokens.

    Attributes:
        strings: the words in order; a word that occurs twice stands here twice.
        index: (token,) the position in ``strings`` of each token's word, or None for a token that belongs to no word:
            a special token that was dropped, or padding.
    """

    strings: tuple[str, ...]
    index: tuple[int | None, ...]

    def __len__(self) -> int:
        return len(self.strings)

    def __post_init__(self) -> None:
        wrong = [i for i in self.index if i is not None and not 0 <= i < len(self.strings)]
        if wrong:
            raise ValueError(f"Words: index names word {wrong[0]}, but there are {len(self.strings)} words.")


@dataclass(frozen=True)
class _Piece:
    """One token as the tokenizer described it."""

    string: str
    sequence: int | None  # which text of a pair; None for a token that stands in no text
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
    split: Split = "whitespace",
    special: Special = "drop",
    special_ids: Collection[int] = (),
) -> Words:
    """The words of one encoded text, each an exact slice of it, and the word of every token.

    A token is never cut: words that one token straddles become one word.  A token that covers no visible character
    (a piece for the space before a word, a newline) goes to the word after it, or to the last word where none follows,
    so that scores added up over words lose nothing.

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
        special_ids: ids to take for special tokens although they stand in the text, as those of a chat template do
            (``tokenizer.all_special_ids``); by default a special token that was written into the text is text.

    Returns:
        The words that have a token.  With ``split="given"``, all words of the list, so that positions stay what they
        were; one that has no token is an error in ``word_scores`` unless its score is a sum.

    Raises:
        ValueError: where the tokenizer keeps no offsets (a tokenizer written in Python: use ``words_of_pieces``), or
            the text is not the one that was encoded.
        TypeError: where text or encoding are not of the kinds above.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> pieces = ["un", "##believ", "##able", "film", "!"]
        >>> tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="film"))
        >>> tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        >>> words = words_of(tokenizer.encode("unbelievable film!"), "unbelievable film!")
        >>> words.strings, words.index
        (('unbelievable', 'film!'), (0, 0, 0, 1, 1))
    """
    _choose("words_of", "split", split, ("whitespace", "punctuation", "tokenizer", "given"))
    _choose("words_of", "special", special, ("drop", "keep"))
    pieces = _pieces(encoding, index, frozenset(special_ids))
    texts = _texts(text, pieces, split)
    found = []
    for sequence, one in enumerate(texts):
        mine = {token: piece for token, piece in enumerate(pieces) if piece.sequence == sequence}
        found.append(_given_words(one, mine) if isinstance(one, list) else _sliced_words(one, mine, split))
    return _in_token_order(pieces, found, special)


def words_of_pieces(
    pieces: Sequence[str],
    mark: Literal["##", "▁", "@@", "</w>"],
    *,
    special: Special = "drop",
    special_tokens: Collection[str] = (),
    padding: Collection[str] = (),
) -> Words:
    """Words from the marks that a vocabulary puts on its pieces, for tokenizers that keep no offsets.

    The words are put together from their pieces.  They are the text as the tokenizer normalised it (lower case, for
    example), not slices of the text itself, which is why this is a choice and no silent stand-in for ``words_of``.

    Args:
        pieces: the tokens of one example as strings (``tokenizer.convert_ids_to_tokens(ids)``).
        mark: how the vocabulary marks words: ``"##"`` before a piece that continues a word (WordPiece), ``"▁"`` before
            a piece that begins one (SentencePiece), ``"@@"`` after a piece that is continued (subword-nmt), ``"</w>"``
            after a piece that ends one (the first BPE vocabularies, CLIP).
        special: as in ``words_of``.
        special_tokens: the special tokens (``tokenizer.all_special_tokens``).
        padding: tokens that are only padding and belong to no word.

    Example:
        >>> words_of_pieces(["▁un", "believ", "able", "▁film", "</s>"], "▁", special_tokens=["</s>"]).strings
        ('unbelievable', 'film')
    """
    _choose("words_of_pieces", "mark", mark, ("##", "▁", "@@", "</w>"))
    _choose("words_of_pieces", "special", special, ("drop", "keep"))
    strings: list[str] = []
    index: list[int | None] = []
    open_word = False  # whether the next piece may go on with the last word
    for piece in pieces:
        if piece in padding or (piece in special_tokens and special == "drop"):
            index.append(None)
            open_word = False
            continue
        is_special = piece in special_tokens
        joins, body, stays_open = (False, piece, False) if is_special else _read_mark(piece, mark)
        if joins and open_word:
            strings[-1] += body
        else:
            strings.append(body)
        index.append(len(strings) - 1)
        open_word = stays_open
    return Words(tuple(strings), tuple(index))


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
        ``scores`` with ``axis`` counting words.  Tokens without a word (``words.index`` None) are left out.

    Raises:
        ValueError: where the axis does not count the tokens of ``words``, or a word without tokens is to be averaged.

    Example:
        >>> words = Words(("unbelievable", "film"), (None, 0, 0, 1, None))        # [CLS] un ##believable film [SEP]
        >>> word_scores(torch.tensor([0.4, 0.1, 0.2, 0.2, 0.1]), words)
        tensor([0.3000, 0.2000])
    """
    _choose("word_scores", "reduce", reduce, ("sum", "mean", "max"))
    if not scores.is_floating_point():
        raise TypeError(f"word_scores: scores should be floating point, got {scores.dtype}.")
    if not -scores.ndim <= axis < scores.ndim:
        raise ValueError(f"word_scores: axis {axis} of scores of shape {tuple(scores.shape)} does not exist.")
    if scores.shape[axis] != len(words.index):
        raise ValueError(
            f"word_scores: axis {axis} of scores, which is {tuple(scores.shape)}, has {scores.shape[axis]} entries but "
            f"words were read from {len(words.index)} tokens; take the words from the encoding that was scored."
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
    pieces = scores.movedim(axis, -1)[..., kept]
    target = of_token[kept].expand(pieces.shape)
    result = pieces.new_full((*pieces.shape[:-1], len(words)), 0.0 if reduce == "sum" or empty is None else empty)
    how = {"sum": "sum", "mean": "mean", "max": "amax"}[reduce]
    return result.scatter_reduce(-1, target, pieces, how, include_self=False).movedim(-1, axis)


def word_map(
    scores: Tensor, queries: Words, keys: Words, *, query_reduce: Reduce = "mean", key_reduce: Reduce = "sum"
) -> Tensor:
    """A word × word map from a token × token map: what the pieces of a source word give is added up, and the pieces of
    a target word are averaged, in this order (as Kobayashi et al. 2020 do for word alignment).

    Args:
        scores: (..., query, key).
        queries: the words of the query axis.
        keys: the words of the key axis; for self-attention the same.
        query_reduce: how the pieces of a query word become one.
        key_reduce: how the pieces of a key word become one.

    Returns:
        (..., query word, key word).
    """
    return word_scores(word_scores(scores, keys, key_reduce), queries, query_reduce, axis=-2)


def token_classes(
    tokens: Tensor | Sequence[int] | Sequence[str], tokenizer: Any, *, punctuation: Collection[str] | None = None
) -> list[str]:
    """What each token is: a special token by its own name ("[CLS]", "</s>", "[PAD]" ...), "punctuation" or "other".

    "[UNK]" and "[MASK]" are special tokens and stand under their names.

    Args:
        tokens: the ids of one example, (token,), or its tokens as strings.
        tokenizer: the transformers tokenizer they came from.
        punctuation: the marks that count as punctuation, for example ``{".", ","}`` as in the paper; by default every
            token that consists of punctuation only (Unicode's, and the ASCII symbols).

    Returns:
        One name per token.
    """
    strings = _token_strings(tokens, tokenizer)
    special = _special_tokens(tokenizer)

    def name(token: str) -> str:
        if token in special:
            return token
        surface = _surface(token, tokenizer)
        if punctuation is not None:
            return "punctuation" if surface in punctuation else "other"
        return "punctuation" if surface and all(map(_is_punctuation, surface)) else "other"

    known = {token: name(token) for token in set(strings)}
    return [known[token] for token in strings]


def class_shares(
    scores: Tensor,
    classes: Sequence[str] | Sequence[Sequence[str]],
    *,
    key_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    normalize: bool = True,
) -> dict[str, Tensor]:
    """What share of a query's attention each class of tokens receives, on the mean over the real queries.

    Args:
        scores: a map of weights or norms, (batch, query, key) or (batch, head, query, key), non-negative.
        classes: the class of each key, one list per example; for a batch of one the list itself.
        key_mask: (batch, key) bool, True at real tokens; None where all are.
        query_mask: (batch, query) bool, the same for the queries; for self-attention the same mask.  Give both or
            neither.
        normalize: True divides by what the query gives to all real keys together, so that shares add up to 1; False
            leaves the sum over the class as it is, as Kobayashi et al. (2020) report it.

    Returns:
        For every class that occurs, (batch,) or (batch, head), dimensionless if normalised, else in the map's unit; 0
        for an example in which the class does not occur.  Special tokens first, then "punctuation", then "other".

    Raises:
        ValueError: where shapes disagree, where the map holds a negative, infinite or undefined score between real
            tokens, or where a real query gives nothing to anything, so that it has no shares.

    Example:
        >>> weights = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]]])
        >>> class_shares(weights, ["[CLS]", "other", "[SEP]"])
        {'[CLS]': tensor([0.4000]), '[SEP]': tensor([0.1000]), 'other': tensor([0.5000])}
    """
    if scores.ndim not in (3, 4):
        raise ValueError(
            "class_shares: scores should be (batch, query, key) or (batch, head, query, key), "
            f"got shape {tuple(scores.shape)}."
        )
    if (key_mask is None) != (query_mask is None):
        raise ValueError("class_shares: give key_mask and query_mask or neither; for self-attention they are the same.")
    batch, query, key = scores.shape[0], scores.shape[-2], scores.shape[-1]
    names, one_hot = _one_hot("class_shares", classes, batch, key, scores)
    keys, queries = (
        _mask("class_shares", "key_mask", key_mask, batch, key, scores),
        _mask("class_shares", "query_mask", query_mask, batch, query, scores),
    )
    if not queries.any(-1).all():
        raise ValueError("class_shares: query_mask leaves an example without a real query.")
    pairs = queries[:, :, None] & keys[:, None, :]
    if scores.ndim == 4:
        pairs, queries, one_hot = pairs[:, None], queries[:, None], one_hot[:, None]
    real = _finite("class_shares", torch.where(pairs, scores, 0.0))
    if (real < 0).any():
        raise ValueError("class_shares: scores hold negative numbers; shares are of weights or norms.")
    received = real @ one_hot.to(real.dtype)  # (batch, [head,] query, class)
    if normalize:
        total = real.sum(-1)
        if (queries & (total == 0)).any():
            where = [int(i) for i in (queries & (total == 0)).nonzero()[0]]
            raise ValueError(
                f"class_shares: example {where[0]}, query {where[-1]} gives nothing to any token, so it has no shares; "
                "leave it out with query_mask, or ask for the sums with normalize=False."
            )
        # Rows of padding queries are 0 / 1: they count for nothing below.
        received = received / torch.where(queries, total, 1.0)[..., None]
    means = received.sum(-2) / queries.sum(-1)[..., None]
    return {name: means[..., column] for column, name in enumerate(names)}


def class_means(
    scores: Tensor, classes: Sequence[str] | Sequence[Sequence[str]], *, key_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """The mean of a score per token, such as ||f(x)||, over the tokens of each class.

    Args:
        scores: (batch, key) or (batch, head, key).
        classes: the class of each key, as in ``class_shares``.
        key_mask: (batch, key) bool, True at real tokens; None where all are.

    Returns:
        For every class that occurs, (example,) or (example, head) in the unit of ``scores``: one entry for each example
        in which the class occurs, in order, since the others have no mean.

    Example:
        >>> class_means(torch.tensor([[1.0, 4.0, 6.0]]), ["[CLS]", "other", "other"])
        {'[CLS]': tensor([1.]), 'other': tensor([5.])}
    """
    if scores.ndim not in (2, 3):
        raise ValueError(
            f"class_means: scores should be (batch, key) or (batch, head, key), got shape {tuple(scores.shape)}."
        )
    batch, key = scores.shape[0], scores.shape[-1]
    names, one_hot = _one_hot("class_means", classes, batch, key, scores)
    keys = _mask("class_means", "key_mask", key_mask, batch, key, scores)
    one_hot = one_hot & keys[:, :, None]
    counts = one_hot.sum(1)  # (batch, class)
    real = torch.where(keys if scores.ndim == 2 else keys[:, None], scores, 0.0)
    real = _finite("class_means", real.unsqueeze(1) if scores.ndim == 2 else real)
    sums = real @ one_hot.to(real.dtype)  # (batch, head, class)
    means = {}
    for column, name in enumerate(names):
        has = counts[:, column] > 0
        if has.any():
            mean = sums[has, :, column] / counts[has, column, None]
            means[name] = mean[:, 0] if scores.ndim == 2 else mean
    return means


def _choose(caller: str, argument: str, found: object, allowed: tuple[str, ...]) -> None:
    if found not in allowed:
        raise ValueError(f"{caller}: {argument} should be one of {', '.join(map(repr, allowed))}, got {found!r}.")


def _pieces(encoding: Any, index: int, special_ids: frozenset[int]) -> list[_Piece]:
    one = _one_encoding(encoding, index)
    columns = (
        one.tokens,
        one.ids,
        one.sequence_ids,
        one.offsets,
        one.word_ids,
        one.special_tokens_mask,
        one.attention_mask,
    )
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
            "words_of_pieces(tokens, mark), which puts words together from the marks on their pieces."
        )
    if not 0 <= index < len(encoding.encodings):
        raise ValueError(f"words_of: index {index}, but the encoding holds {len(encoding.encodings)} examples.")
    return encoding.encodings[index]


def _texts(text: Text | tuple[Text, Text], pieces: Sequence[_Piece], split: Split) -> tuple[Text, ...]:
    texts = text if isinstance(text, tuple) else (text,)
    kind = list if split == "given" else str
    for one in texts:
        if not isinstance(one, kind):
            raise TypeError(
                f"words_of: split={split!r} takes the text of one example as a {kind.__name__}, got "
                f"{type(one).__name__}; a list is for words tokenised with is_split_into_words=True (split='given'), "
                "a tuple for a pair of texts."
            )
    held = 1 + max((piece.sequence for piece in pieces if piece.sequence is not None), default=0)
    if held > len(texts):
        raise ValueError(f"words_of: the encoding holds {held} texts but one was given; give a pair as a tuple.")
    return texts


@dataclass(frozen=True)
class _Found:
    """The words of one text, and token -> word."""

    strings: list[str]
    of_token: Mapping[int, int]


def _given_words(words: list[str], pieces: dict[int, _Piece]) -> _Found:
    of_token = {}
    for token, piece in pieces.items():
        if piece.special:
            continue
        if piece.word is None or piece.word >= len(words) or piece.end > len(words[piece.word]):
            raise ValueError(
                f"words_of: token {token}, {piece.string!r}, lies outside the {len(words)} words given; split='given' "
                "takes the very list that was tokenised with is_split_into_words=True."
            )
        of_token[token] = piece.word
    return _Found(words, of_token)


def _sliced_words(text: str, pieces: dict[int, _Piece], split: Split) -> _Found:
    """The words of a text that have tokens, as slices of it."""
    plain = {token: piece for token, piece in pieces.items() if not piece.special}
    spans = {token: _visible(text, token, piece) for token, piece in plain.items()}
    covered = {token: span for token, span in spans.items() if span[0] < span[1]}
    if not covered:
        if plain and text.strip():
            raise ValueError("words_of: no token has an offset into the text; use words_of_pieces(tokens, mark).")
        return _Found([text] if plain else [], dict.fromkeys(plain, 0))  # nothing but white space is one word
    of_character = _words_of_characters(text, pieces, covered, split)
    joined = {
        word for start, end in covered.values() for word in range(of_character[start] + 1, of_character[end - 1] + 1)
    }
    merged = list(accumulate(int(word not in joined) for word in range(max(of_character) + 1)))
    of_token = {token: merged[of_character[start]] for token, (start, _) in covered.items()}
    bounds: dict[int, tuple[int, int]] = {}
    for place, finer in enumerate(of_character):
        if finer >= 0:
            bounds[merged[finer]] = bounds.get(merged[finer], (place, 0))[0], place + 1
    used = sorted(set(of_token.values()))
    rank = {word: place for place, word in enumerate(used)}
    strings = [text[slice(*bounds[word])] for word in used]
    return _Found(strings, _with_neighbours(plain, {token: rank[word] for token, word in of_token.items()}))


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
    text: str, pieces: dict[int, _Piece], covered: dict[int, tuple[int, int]], split: Split
) -> list[int]:
    """For each character the word it lies in, counted from 0; -1 between words."""
    labels: list[object] = [None] * len(text)  # a word is a run of equal labels
    if split == "tokenizer":
        bounds: dict[int | None, tuple[int, int]] = {}
        for token, (start, end) in covered.items():
            known = bounds.get(word := pieces[token].word, (start, end))
            bounds[word] = min(known[0], start), max(known[1], end)
        for word, (start, end) in bounds.items():
            labels[start:end] = [word] * (end - start)
    else:
        for place, character in enumerate(text):
            if not character.isspace():
                labels[place] = (place,) if split == "punctuation" and _is_punctuation(character) else "word"
        for piece in pieces.values():
            if piece.special:  # written into the text, and no part of the words beside it
                labels[piece.start : piece.end] = [None] * (piece.end - piece.start)
    begins = [label is not None and (place == 0 or labels[place - 1] != label) for place, label in enumerate(labels)]
    counted = accumulate(map(int, begins))
    return [-1 if label is None else count - 1 for label, count in zip(labels, counted, strict=True)]


def _with_neighbours(pieces: dict[int, _Piece], of_token: dict[int, int]) -> dict[int, int]:
    """Gives a token that covers nothing visible to the word after it, or else to the last word."""
    complete, following = {}, max(of_token.values())
    for token in reversed(pieces):
        following = of_token.get(token, following)
        complete[token] = following
    return complete


def _in_token_order(pieces: Sequence[_Piece], found: Sequence[_Found], special: Special) -> Words:
    """One list of words for all texts and kept special tokens, in the order of their tokens."""
    strings: list[str] = []
    index: list[int | None] = []
    place: dict[tuple[int, int], int] = {}  # (text, word) -> word in the common list
    added = [0] * len(found)

    def add_up_to(sequence: int, word: int) -> None:
        for one in range(added[sequence], word + 1):
            place[sequence, one] = len(strings)
            strings.append(found[sequence].strings[one])
        added[sequence] = max(added[sequence], word + 1)

    for token, piece in enumerate(pieces):
        if piece.padding or (piece.special and special == "drop"):
            index.append(None)
        elif piece.special or piece.sequence is None:
            strings.append(piece.string)
            index.append(len(strings) - 1)
        else:
            word = found[piece.sequence].of_token[token]
            add_up_to(piece.sequence, word)
            index.append(place[piece.sequence, word])
    for sequence, one_text in enumerate(found):
        add_up_to(sequence, len(one_text.strings) - 1)
    return Words(tuple(strings), tuple(index))


def _read_mark(piece: str, mark: str) -> tuple[bool, str, bool]:
    """Whether a piece goes on with the word before it, its characters, and whether the word may go on after it."""
    if mark == "##":
        continues = piece.startswith(mark) and piece != mark
        return continues, piece[2:] if continues else piece, True
    if mark == "▁":
        return not piece.startswith(mark), piece.removeprefix(mark), True
    if mark == "@@":
        return True, piece.removesuffix(mark), piece.endswith(mark)
    return True, piece.removesuffix(mark), not piece.endswith(mark)


def _token_strings(tokens: Tensor | Sequence[int] | Sequence[str], tokenizer: Any) -> list[str]:
    if isinstance(tokens, Tensor):
        if tokens.ndim != 1 or tokens.is_floating_point():
            raise ValueError(
                "token_classes: tokens should be the ids of one example, (token,), got "
                f"{tokens.dtype} of shape {tuple(tokens.shape)}."
            )
        tokens = tokens.tolist()
    listed: list[Any] = list(tokens)
    if isinstance(tokens, str) or not (
        all(isinstance(token, str) for token in listed) or all(isinstance(token, int) for token in listed)
    ):
        raise TypeError("token_classes: tokens should be a list of ids or a list of token strings, of one example.")
    if listed and isinstance(listed[0], int):
        return list(tokenizer.convert_ids_to_tokens(listed))
    return listed


def _special_tokens(tokenizer: Any) -> set[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}


def _surface(token: str, tokenizer: Any) -> str:
    """The characters a token stands for, without the vocabulary's marks."""
    if token.startswith("##") and len(token) > 2:
        return token[2:]
    return str(tokenizer.convert_tokens_to_string([token])).strip()


def _is_punctuation(character: str) -> bool:
    """Unicode's punctuation, and the ASCII symbols, which Unicode counts as mathematics, currency or accents."""
    ascii_symbol = character.isascii() and character.isprintable() and not character.isalnum() and character != " "
    return ascii_symbol or unicodedata.category(character).startswith("P")


def _one_hot(
    caller: str, classes: Sequence[str] | Sequence[Sequence[str]], batch: int, key: int, like: Tensor
) -> tuple[list[str], Tensor]:
    """The names of the classes, and (batch, key, class) bool."""
    rows: list[list[str]]
    rows = [list(classes)] if classes and isinstance(classes[0], str) else [list(row) for row in classes]  # type: ignore[arg-type]
    if len(rows) != batch:
        raise ValueError(f"{caller}: batch is {batch} in scores but classes has {len(rows)} lists, one per example.")
    for example, row in enumerate(rows):
        if len(row) != key:
            raise ValueError(f"{caller}: key is {key} in scores but {len(row)} in classes of example {example}.")
    seen = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in seen if name not in ("punctuation", "other")]
    names += [name for name in ("punctuation", "other") if name in seen]
    number = {name: column for column, name in enumerate(names)}
    columns = torch.tensor([[number[name] for name in row] for row in rows], dtype=torch.long, device=like.device)
    return names, columns[..., None] == torch.arange(len(names), device=like.device)


def _mask(caller: str, name: str, mask: Tensor | None, batch: int, length: int, like: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=like.device)
    if mask.shape != (batch, length) or mask.dtype != torch.bool:
        raise ValueError(
            f"{caller}: {name} should be bool of shape {(batch, length)}, got {mask.dtype} of {tuple(mask.shape)}."
        )
    return mask.to(like.device)


def _finite(caller: str, scores: Tensor) -> Tensor:
    if not torch.isfinite(scores).all():
        raise ValueError(f"{caller}: scores hold NaN or infinity at real tokens.")
    # Half precision would lose the sums over long sequences.
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
