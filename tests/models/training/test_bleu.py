"""BLEU against the paper's formula."""

import pytest
import torch

from captum_norm.models.training.bleu import bleu

from .small import SENTENCES


class TestBleu:
    def test_equal_texts_have_a_hundred_and_others_none(self):
        text = [pair.english for pair in SENTENCES]
        assert bleu(text, text) == pytest.approx(100)
        assert bleu([("x",) * 5], [("a", "b", "c", "d", "e")]) == 0

    def test_it_is_the_papers_formula(self):
        # runs of 1 to 4 words: 5/6, 3/5, 2/4, 1/3 right; no brevity penalty
        ours, theirs = "the cat sat on a mat".split(), "the cat sat on the mat".split()
        assert bleu([ours], [theirs]) == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)

    def test_a_short_translation_pays(self):
        theirs = "one two three four five six seven eight".split()
        assert bleu([theirs[:4]], [theirs]) == pytest.approx(100 * torch.e ** (1 - 2))

    def test_a_long_translation_gains_nothing_by_its_length(self):
        theirs = "one two three four five".split()
        precisions = 5 / 6 * 4 / 5 * 3 / 4 * 2 / 3
        assert bleu([[*theirs, "six"]], [theirs]) == pytest.approx(100 * precisions**0.25)

    def test_nothing_to_compare_is_refused(self):
        with pytest.raises(ValueError, match="1 translations for 0 references"):
            bleu([["a"]], [])
