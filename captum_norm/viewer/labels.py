"""What does a reader see of a token?  Its text, and whether it continues the word before.

Vocabularies mark words in their own ways (``##ful``, ``Ġfilm``, ``▁film``), and byte-level ones spell letters beyond
ASCII in other letters (``Ã©`` is é).  Labels are the text that was meant; the page tells the token as it stands in the
vocabulary beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

_SHOWN = {"\n": "⏎", "\r": "⏎", "\t": "⇥"}


def readable(tokens: Sequence[str]) -> dict[str, Any]:
    """Labels of tokens.

    Args:
        tokens: as the vocabulary writes them.

    Returns:
        ``tokens`` as given, ``written`` as a reader sees them, and the numbers of those ``glued`` to the one before.

    Example:
        >>> readable(["Ġfilm", "Ã©", "</s>"])
        {'tokens': ['Ġfilm', 'Ã©', '</s>'], 'written': ['film', 'é', '</s>'], 'glued': [1]}
    """
    mark = next((mark for mark in ("Ġ", "▁", "##") if any(token.startswith(mark) for token in tokens)), "")
    texts = [_text(token, mark) for token in tokens]
    glued = [i for i, text in enumerate(texts) if i and _continues(tokens, texts, i, mark)]
    return {"tokens": list(tokens), "written": [_visible(text) for text in texts], "glued": glued}


def _text(token: str, mark: str) -> str:
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


def _continues(tokens: Sequence[str], texts: Sequence[str], i: int, mark: str) -> bool:
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
