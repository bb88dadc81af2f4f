"""Which words does the translation model read?  Lower-cased ones, cut as the Moses tokeniser cuts them.

Punctuation stands apart, ``'s`` is a word of its own, and a number or a hyphenated word stays whole.  The training data
and the gold alignments are cut in the same way.
"""

from __future__ import annotations

import re

PLAIN_QUOTES = str.maketrans({"’": "'", "‘": "'", "„": '"', "“": '"', "”": '"', "«": '"', "»": '"', "–": "-", "—": "-"})
_TOKEN = re.compile(r"'\w+|\d+(?:[.,:]\d+)+|\w+(?:-\w+)*|[^\w\s]")


def translation_words(sentence: str) -> tuple[str, ...]:
    """The lower-cased words of a sentence in ordinary spelling, each punctuation mark a word of its own.

    Example:
        >>> translation_words("Toms Freund sagt, es sei 12.30 Uhr; that's it.")
        ('toms', 'freund', 'sagt', ',', 'es', 'sei', '12.30', 'uhr', ';', 'that', "'s", 'it', '.')
    """
    plain = re.sub(r"(\w)'(\w)", r"\1 '\2", sentence.translate(PLAIN_QUOTES))
    return tuple(_TOKEN.findall(plain.lower()))
