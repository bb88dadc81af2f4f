"""The pieces of a sentence: every id knows its word, for tokenizers of every kind."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from captum_norm.alignment import (
    CrossAttentionAligner,
)
from captum_norm.alignment.pieces import TokenizerPieces
from tests.alignment.families import Slow, byte_level, family, sentence_piece, tokenizer, word_piece

from .sentences import ENGLISH, GERMAN


class TestPieces:
    @pytest.mark.parametrize("cut", [byte_level, sentence_piece, word_piece])
    @pytest.mark.parametrize("words", [GERMAN, ["kühe", "日本", "!"], ["naïve"]])
    def test_every_piece_knows_its_word(self, cut, words):
        made = tokenizer(cut(), "<s> $A </s>")
        found = TokenizerPieces(made).source(words)
        assert (found.words[0], found.words[-1]) == (None, None)
        plain = [word for word in found.words if word is not None]
        assert plain == sorted(plain)
        assert set(plain) == set(range(len(words)))
        assert list(found.ids) == made(" ".join(words))["input_ids"]
        assert found.special == ("<s>", "</s>")
        if cut is not word_piece:  # whose decoder was left out
            for number, word in enumerate(words):
                ids = [i for i, w in zip(found.ids, found.words, strict=True) if w == number]
                assert made.decode(ids).strip() == word

    def test_languages_go_where_the_tokenizer_puts_them_and_are_no_words(self):
        pieces = TokenizerPieces(tokenizer(sentence_piece(), "de_DE $A </s>", "en_XX $A </s>"))
        assert pieces.source(GERMAN).special == ("de_DE", "</s>")
        assert pieces.target(ENGLISH).special == ("en_XX", "</s>")

    def test_a_prefix_is_read_and_is_no_word(self):
        made = tokenizer(sentence_piece())
        plain, found = TokenizerPieces(made).source(GERMAN), TokenizerPieces(made, "der tisch:").source(GERMAN)
        assert list(found.ids) == made("der tisch: " + " ".join(GERMAN))["input_ids"]
        before = len(found.ids) - len(plain.ids)
        assert found.words == (None,) * before + plain.words
        assert len(found.special) == before + 1

    def test_a_tokenizer_without_offsets_is_asked_word_by_word(self):
        fast, slow = TokenizerPieces(tokenizer(sentence_piece(), "de_DE $A </s>")), TokenizerPieces(Slow())
        assert slow.source(GERMAN).words == fast.source(GERMAN).words
        assert slow.target(ENGLISH).special == ("en_XX", "</s>")

    def test_a_tokenizer_without_offsets_that_joins_words_is_refused(self):
        class Joining(Slow):
            def __call__(self, text="", text_target="", add_special_tokens=True):
                return super().__call__(text.replace(" ", ""), text_target, add_special_tokens)

        with pytest.raises(ValueError, match="cuts 'der kleine' into other pieces than its words one by one"):
            TokenizerPieces(Joining()).source(["der", "kleine"])

    def test_a_piece_over_two_words_is_refused(self):
        whole = Tokenizer(models.WordLevel({"a b": 0, "?": 1}, unk_token="?"))
        whole.pre_tokenizer = pre_tokenizers.Split("|", "removed")
        with pytest.raises(ValueError, match="covers more than one word, in 'a b'"):
            TokenizerPieces(PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="?")).source(["a", "b"])

    def test_what_is_no_tokenizer_is_refused(self):
        with pytest.raises(TypeError, match="dict is neither a tokenizer"):
            CrossAttentionAligner(family("marian")[0], {})
