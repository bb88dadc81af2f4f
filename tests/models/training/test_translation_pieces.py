"""The pieces that the translation model cuts its words into."""

from captum_norm.models.translation import as_tokenizer


def test_spellings_before_and_after_the_reform_are_one(pieces):
    tokenizer = as_tokenizer(pieces)
    assert tokenizer("Daß WEISS")["input_ids"] == tokenizer("dass weiß")["input_ids"]
