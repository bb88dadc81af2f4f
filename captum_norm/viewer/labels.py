"""What does a reader see of a token?  Its text, and whether it continues the word before.

Vocabularies mark words in their own ways (``##ful``, ``Ġfilm``, ``▁film``), and byte-level ones spell letters beyond
ASCII in other letters (``Ã©`` is é).  Labels are the text that was meant; the page tells the token as it stands in the
vocabulary beside it.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Literal, TypeAlias

Mark: TypeAlias = Literal["Ġ", "▁", "##", ""]
"""Byte-level, a space being spelled ``Ġ``; ``▁`` in front of a word; ``##`` in front of what continues one; no mark."""

_SHOWN = {"\n": "⏎", "\r": "⏎", "\t": "⇥"}
_LINE_END, _TAB = {"Ċ", "č"}, "ĉ"  # the letters of these bytes
_TELLING: tuple[tuple[Mark, list[str], str], ...] = (
    ("Ġ", ["Ã©"], "é"),
    ("▁", ["a", "▁a"], "a a"),
    ("##", ["a", "##a"], "aa"),
)


def readable(tokens: Sequence[str], mark: Mark | None = None) -> dict[str, Any]:
    """Labels of tokens.

    Args:
        tokens: as the vocabulary writes them.
        mark: how it marks words; None: as these tokens show.

    Returns:
        ``tokens`` as given, ``written`` as a reader sees them, and the numbers of those ``glued`` to the one before.

    Example:
        >>> readable(["Ġfilm", "Ã©", "</s>"])
        {'tokens': ['Ġfilm', 'Ã©', '</s>'], 'written': ['film', 'é', '</s>'], 'glued': [1]}
    """
    mark = mark_shown([tokens]) if mark is None else mark
    texts = [_text(token, mark) for token in tokens]
    glued = [i for i, text in enumerate(texts) if i and _continues(tokens, texts, i, mark)]
    return {"tokens": list(tokens), "written": [_visible(text) for text in texts], "glued": glued}


def mark_of(tokenizer: Any) -> Mark | None:
    """How a tokenizer's vocabulary marks words, by what the tokenizer makes of tokens; None where it does not say.

    Example:
        >>> from captum_norm.models import load_sentiment
        >>> mark_of(load_sentiment()[1])
        '##'
    """
    joined = getattr(tokenizer, "convert_tokens_to_string", None)
    if joined is None or getattr(getattr(tokenizer, "backend_tokenizer", tokenizer), "decoder", joined) is None:
        return None
    if tokenizer.convert_tokens_to_ids("a</w>") not in (None, getattr(tokenizer, "unk_token_id", None)):
        return ""  # words are marked where they end
    found: list[Mark] = [mark for mark, tokens, text in _TELLING if joined(tokens) == text]
    return found[0] if found else ""


def mark_shown(texts: Sequence[Sequence[str]]) -> Mark:
    """How the vocabulary marks words that these tokens are of, each list in order; ``""`` where they do not tell.

    Letters that bytes are spelled in are letters of Latvian, Maltese or Turkish, too.  So tokens are spelled in bytes
    only where all of them are, where the bytes are a text, and where no line ends within a word.

    Example:
        >>> mark_shown([["ä½ł", "å¥½"]]), mark_shown([["Ġ", "##urn", "##ata"]]), mark_shown([["čas", "Ãm"]])
        ('Ġ', '##', '')
    """
    plain = [[token for token in text if not _special(token)] for text in texts]
    every = [token for text in plain for token in text]
    pieces = any(token.startswith("##") and token[2:3].isalnum() for token in every)
    if any(len(token) > 4 and token.endswith("</w>") for token in every):
        return ""
    if not pieces and _spelled_in_bytes(plain):
        return "Ġ"
    begins = any(token.startswith("▁") for token in every)
    if begins or pieces:
        return "" if begins and pieces else "▁" if begins else "##"
    return "##" if any(token.startswith("##") and len(token) > 2 for token in every) else ""


def _spelled_in_bytes(texts: Sequence[Sequence[str]]) -> bool:
    """Whether tokens, without those set by a tokenizer, are letters for bytes of a text."""
    letters = _bytes_of_letters()
    spelled = ["".join(token for token in text if not token.isspace()) for text in texts]
    if all(text.isascii() for text in spelled) or not all(letter in letters for text in spelled for letter in text):
        return False
    begins = any(token.startswith("Ġ") for text in texts for token in text)
    in_words = _LINE_END if begins else _LINE_END | {_TAB}
    pairs = (pair for text in texts for token in text for pair in pairwise(token))
    if any(a in in_words and b.isascii() and b.isalnum() for a, b in pairs):
        return False
    read = [bytes(letters[letter] for letter in text) for text in spelled]
    if any(byte < 32 and byte not in b"\t\n\r" for text in read for byte in text):
        return False
    try:
        for text in read:
            getincrementaldecoder("utf-8")().decode(text, final=not begins)  # a text may be cut off within a letter
    except UnicodeDecodeError:
        return False
    return True


def _text(token: str, mark: Mark) -> str:
    """The text of a token, a space before it where a word begins there and the vocabulary says so."""
    if mark == "Ġ":
        letters = _bytes_of_letters()
        if all(letter in letters for letter in token):
            return _decoded(bytes(letters[letter] for letter in token))
    if mark == "▁":
        return token.replace("▁", " ")
    if mark == "##" and token.startswith("##") and len(token) > 2:
        return token[2:]
    return token


def _decoded(spelled: bytes) -> str:
    """The text that bytes spell; where a token holds a part of a letter only, the bytes themselves."""
    try:
        return spelled.decode("utf-8")
    except UnicodeDecodeError:
        before = " " if spelled.startswith(b" ") else ""
        return f"{before}0x{spelled.strip().hex().upper()}"


def _continues(tokens: Sequence[str], texts: Sequence[str], i: int, mark: Mark) -> bool:
    if mark == "##":
        return tokens[i].startswith("##") and len(tokens[i]) > 2
    if not mark or _special(tokens[i]) or _special(tokens[i - 1]):
        return False
    return not texts[i][:1].isspace() and not texts[i - 1][-1:].isspace()


def _special(token: str) -> bool:
    """Whether it looks like a mark that a tokenizer sets, ``[CLS]`` or ``</s>``."""
    return len(token) > 2 and (token[0], token[-1]) in (("[", "]"), ("<", ">"))


def _visible(text: str) -> str:
    kept = text.strip(" ") or ("␣" if text else "·")
    return "".join(_SHOWN.get(letter, letter) for letter in kept)


@cache
def _bytes_of_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others are counted up from U+0100."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}
