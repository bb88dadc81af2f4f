"""A reader sees the text that was meant, and which pieces make one word."""

import pytest

from captum_norm.viewer.labels import readable


@pytest.mark.parametrize(
    ("tokens", "written", "glued"),
    [
        (["[CLS]", "un", "##believ", "##able", "film"], ["[CLS]", "un", "believ", "able", "film"], [2, 3]),
        (["<s>", "▁un", "believ", "▁film", "▁", "</s>"], ["<s>", "un", "believ", "film", "␣", "</s>"], [2]),
        (["ĠThe", "Ġcaf", "Ã©", "Ċ", "ĠðŁĺ", "Ģ"], ["The", "caf", "é", "⏎", "0xF09F98", "0x80"], [2, 5]),
        (["the", "film", "##"], ["the", "film", "##"], []),
        (["0", "1", ""], ["0", "1", "·"], []),
    ],
)  # fmt: skip
def test_word_marks_of_the_vocabulary(tokens, written, glued):
    assert readable(tokens) == {"tokens": tokens, "written": written, "glued": glued}


def test_line_breaks_and_tabs_are_seen():
    assert readable(["a\n", "\t"])["written"] == ["a⏎", "⇥"]


def test_all_bytes_have_a_letter_in_byte_level_vocabularies():
    from captum_norm.viewer.labels import _bytes_of_letters

    letters = _bytes_of_letters()
    assert sorted(letters.values()) == list(range(256))
    assert (letters["Ġ"], letters["Ċ"], letters["a"]) == (32, 10, 97)
