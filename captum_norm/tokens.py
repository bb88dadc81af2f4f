"""Words and classes of tokens under one name: :mod:`captum_norm.words` and :mod:`captum_norm.token_classes`."""

from captum_norm.token_classes import class_means, class_shares, token_classes
from captum_norm.words import Words, word_map, word_scores, words_of, words_of_pieces

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
