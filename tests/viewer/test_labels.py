"""A reader sees the text that was meant, and which pieces make one word."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from captum_norm.viewer.labels import mark_of, mark_shown, readable
from tests.tokenizers_of_every_kind import TOKENIZERS


@pytest.mark.parametrize(
    ("tokens", "written", "glued"),
    [
        (["[CLS]", "un", "##believ", "##able", "film"], ["[CLS]", "un", "believ", "able", "film"], [2, 3]),
        (["<s>", "▁un", "believ", "▁film", "▁", "</s>"], ["<s>", "un", "believ", "film", "␣", "</s>"], [2]),
        (["ĠThe", "Ġcaf", "Ã©", "Ċ", "ĠðŁĺ", "Ģ"], ["The", "caf", "é", "⏎", "0xF09F98", "0x80"], [2, 5]),
        (["the", "film", "##"], ["the", "film", "##"], []),
        (["ä½ł", "å¥½"], ["你", "好"], [1]),  # no space in it
        (["caf", "Ã©", "</s>"], ["caf", "é", "</s>"], [1]),
        (["Ġ", "##urn", "##ata", "tajba"], ["Ġ", "urn", "ata", "tajba"], [1, 2]),  # Maltese, by WordPiece
        (["caf", "##é"], ["caf", "é"], [1]),
        (["0", "1", ""], ["0", "1", "·"], []),
    ],
)  # fmt: skip
def test_word_marks_of_the_vocabulary(tokens, written, glued):
    assert readable(tokens) == {"tokens": tokens, "written": written, "glued": glued}


@pytest.mark.parametrize(
    "words",
    [["čas", "letí"], ["Ġesù", "tajba"], ["café"], ["Ã", "fim"], ["ćma", "a"], ["Ã©</w>", "film</w>"], ["▁a", "##b"],
     ["映画", "Ã©"], ["ĉio", "a"]],
)  # fmt: skip
def test_letters_of_a_text_are_not_taken_for_bytes(words):
    assert readable(words) == {"tokens": words, "written": words, "glued": []}


def test_a_text_in_bytes_may_end_within_a_letter_and_hold_line_ends():
    assert mark_shown([["Ġa", "ðŁĺ"], ["ĉreturn", ".ĊĊ"]]) == "Ġ"
    assert mark_shown([["<s>", "Ã"], ["a"]]) == ""


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_says_how_its_vocabulary_marks_words(name):
    tokenizer = TOKENIZERS[name]
    state = tokenizer.backend_tokenizer.to_str()
    expected = "Ġ" if '"ByteLevel"' in state else "▁" if "▁" in state else "##"
    assert mark_of(tokenizer) == expected


def test_a_tokenizer_knows_a_mark_from_a_letter_where_tokens_do_not_tell():
    assert readable(["Ġurnata"], mark_of(TOKENIZERS["MiniLM"]))["written"] == ["Ġurnata"]
    assert readable(["Ġurnata"])["written"] == ["urnata"]
    assert readable(["hel", "lo"], "Ġ")["glued"] == [1]


def test_a_vocabulary_that_marks_where_words_end_has_no_other_mark():
    core = Tokenizer(models.BPE(vocab={"a</w>": 0, "a": 1}, merges=[], end_of_word_suffix="</w>"))
    core.decoder = decoders.ByteLevel()  # as CLIP's
    assert mark_of(PreTrainedTokenizerFast(tokenizer_object=core)) == ""


def test_a_tokenizer_that_cannot_say_says_nothing():
    assert mark_of(None) is None
    core = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    assert mark_of(PreTrainedTokenizerFast(tokenizer_object=core)) is None


def test_line_breaks_and_tabs_are_seen():
    assert readable(["a\n", "\t"])["written"] == ["a⏎", "⇥"]


def test_all_bytes_have_a_letter_in_byte_level_vocabularies():
    from captum_norm.viewer.labels import _bytes_of_letters

    letters = _bytes_of_letters()
    assert sorted(letters.values()) == list(range(256))
    assert (letters["Ġ"], letters["Ċ"], letters["a"]) == (32, 10, 97)
