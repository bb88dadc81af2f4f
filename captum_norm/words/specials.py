"""Which tokens are special?  Those that the tokenizer put around a text, not words that it does not know."""

from __future__ import annotations

from typing import Any


def added_ids(tokenizer: Any) -> set[int]:
    """The ids of tokens that a tokenizer adds to a text: all that it calls special but the unknown token and the mask,
    which stand for words of the text, unless they begin or end it, too."""
    of_words = {getattr(tokenizer, f"{name}_token_id", None) for name in ("unk", "mask")}
    around = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "cls", "sep")}
    return set(getattr(tokenizer, "all_special_ids", ())) - (of_words - around)


def special_tokens(encoding: Any, tokenizer: Any, index: int = 0) -> list[bool]:
    """Which tokens of an encoded example the tokenizer put around its text.

    Args:
        encoding: what the tokenizer returned.  A fast one has kept it; of others the ids say it, so that a special
            token that is written in the text counts as one, too.
        tokenizer: the tokenizer.
        index: which example of the encoding.
    """
    kept = getattr(encoding, "encodings", None)
    if kept:
        return [bool(marked) for marked in kept[index].special_tokens_mask]
    added = added_ids(tokenizer)
    return [int(token) in added for token in encoding["input_ids"][index]]
