"""The words that the translation model reads."""

from hypothesis import given
from hypothesis import strategies as st

from captum_norm.models import parallel_text, translation_words
from captum_norm.models.training.parallel_text import (
    letters,
)


def test_words_are_cut_as_in_the_gold_alignments():
    assert translation_words("Er sagte: „Das ist 's, bzw. 12.30 Uhr!“") == (
        "er", "sagte", ":", '"', "das", "ist", "'s", ",", "bzw", ".", "12.30", "uhr", "!", '"',
    )  # fmt: skip
    assert translation_words("a well-known man's") == ("a", "well-known", "man", "'s")


@given(st.text(max_size=40))
def test_words_lose_no_letter(text):
    assert letters(translation_words(text)) == letters(text.lower())


def test_their_earlier_place_still_has_them():
    assert parallel_text.words is translation_words
