"""Which word does each token belong to, and what is a word's score?  From subword tokens to words.

A tokenizer cuts a text into pieces; a reader thinks in words.  ``words_of`` finds the word of each token by the
character offsets that the tokenizer kept, so words are exact slices of the text; ``words_of_pieces`` joins pieces by
their marks.  ``word_scores`` and ``word_map`` add or average the scores of a word's pieces.
"""

from captum_norm.words.marks import words_of_pieces
from captum_norm.words.offsets import words_of
from captum_norm.words.specials import added_ids, special_tokens
from captum_norm.words.words import Words, word_map, word_scores

__all__ = ["Words", "added_ids", "special_tokens", "word_map", "word_scores", "words_of", "words_of_pieces"]
