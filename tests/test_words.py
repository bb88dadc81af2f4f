"""From subword tokens to words: exact slices of the text for every kind of tokenizer, and sums that lose nothing."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from captum_norm.words import (
    Words,
    added_ids,
    special_tokens,
    word_map,
    word_scores,
    words_of,
    words_of_pieces,
)
from tests.tokenizers_of_every_kind import TOKENIZERS, sentencepiece


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


TEXTS = [
    "The film isn't bad at all, it is great.",
    "Café naïve — don't stop",
    "unbelievable   films;\n\tfilming   (great)\n\n",
    "The film 映画 is 😀 great",
    "the the the",
]


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_what_stands_between_white_space_for_every_tokenizer(tokenizer, text):
    words = words_of(tokenizer(text), text)
    assert list(words.strings) == text.split()


@pytest.mark.parametrize("text", TEXTS)
def test_every_token_that_is_not_special_has_a_word_and_words_come_in_order(tokenizer, text):
    encoding = tokenizer(text)
    words = words_of(encoding, text)
    special = encoding.encodings[0].special_tokens_mask
    assert [i is None for i in words.index] == [bool(s) for s in special]
    order = [i for i in words.index if i is not None]
    assert all(a <= b for a, b in pairwise(order))
    assert set(order) == set(range(len(words)))


def test_punctuation_can_stand_apart():
    words = words_of(TOKENIZERS["MiniLM"]("Isn't it (really) great?"), "Isn't it (really) great?", split="punctuation")
    assert words.strings == ("Isn", "'", "t", "it", "(", "really", ")", "great", "?")


def test_the_tokenizers_own_words_are_a_choice():
    text = "The film isn't bad"
    strings = words_of(TOKENIZERS["byte-level BPE"](text), text, split="tokenizer").strings
    assert strings == ("The", "film", "isn", "'t", "bad")
    assert words_of(TOKENIZERS["byte fallback"](text), text, split="tokenizer").strings == (text,)


@pytest.mark.parametrize("text", TEXTS)
def test_words_stay_whole_slices_where_pieces_straddle_them(text):
    words = words_of(sentencepiece(split=False, straddling=True)(text), text)
    assert " ".join(words.strings).split() == text.split()
    assert all(word in text for word in words.strings)


def test_words_that_one_token_straddles_become_one_word():
    core = Tokenizer(models.WordLevel({"New York": 0, "is": 1, "big": 2}, unk_token="is"))
    core.pre_tokenizer = pre_tokenizers.Split("|", "removed")
    text = "New York|is|big"
    words = words_of(core.encode(text), text)
    assert words.strings == (text,)
    spaced = "New York is big"
    core.pre_tokenizer = pre_tokenizers.Split(" is ", "isolated")
    words = words_of(core.encode(spaced), spaced)
    assert words.strings == ("New York", "is", "big")
    assert words.index == (0, 1, 2)


def test_a_word_that_occurs_twice_keeps_two_scores():
    text = "film film film"
    words = words_of(TOKENIZERS["WordPiece"](text), text)
    scores = word_scores(torch.tensor([9.0, 1.0, 2.0, 3.0, 9.0]), words)
    assert words.strings == ("film", "film", "film")
    assert scores.tolist() == [1.0, 2.0, 3.0]


def test_pieces_for_space_go_to_the_word_after_them_and_at_the_end_to_the_last():
    text = "The   film\n\n"
    encoding = TOKENIZERS["byte-level BPE"](text)
    words = words_of(encoding, text)
    blank = [i for i, (a, b) in enumerate(encoding.encodings[0].offsets) if not text[a:b].strip()]
    assert len(blank) >= 3
    assert [words.index[i] for i in blank] == [1] * len(blank)


def test_white_space_alone_is_one_word_and_an_empty_text_has_none():
    encoding = TOKENIZERS["byte-level BPE"]("  ")
    assert words_of(encoding, "  ").strings == ("  ",)
    assert words_of(TOKENIZERS["WordPiece"](""), "") == Words((), (None, None))


def test_special_tokens_are_dropped_or_kept_by_name_in_their_place_and_padding_never_counts():
    tokenizer, text = TOKENIZERS["WordPiece"], "great film"
    encoding = tokenizer([text, "it is great film"], padding=True)
    dropped = words_of(encoding, text)
    assert dropped.strings == ("great", "film")
    kept = words_of(encoding, text, special="keep")
    assert kept.strings == ("[CLS]", "great", "film", "[SEP]")
    assert kept.index == (0, 1, 2, 3, None, None)
    assert words_of(encoding, "it is great film", index=1).index == (None, 0, 1, 2, 3, None)


def test_special_tokens_in_the_text_are_text_unless_said_otherwise():
    tokenizer, text = TOKENIZERS["WordPiece"], "film[SEP]great"
    encoding = tokenizer(text)
    assert words_of(encoding, text).strings == (text,)
    ids = tokenizer.all_special_ids
    assert words_of(encoding, text, special_ids=ids).strings == ("film", "great")
    assert words_of(encoding, text, special_ids=ids, special="keep").strings == (
        "[CLS]",
        "film",
        "[SEP]",
        "great",
        "[SEP]",
    )


def test_a_pair_of_texts_is_one_list_of_words():
    first, second = "the film", "the film is great"
    encoding = TOKENIZERS["WordPiece"](first, second)
    words = words_of(encoding, (first, second), special="keep")
    assert words.strings == ("[CLS]", "the", "film", "[SEP]", "the", "film", "is", "great", "[SEP]")
    assert words_of(encoding, (first, second)).strings == tuple(f"{first} {second}".split())


@pytest.mark.parametrize("name", ["WordPiece", "SentencePiece", "MiniLM"])
def test_given_words_stay_what_and_where_they_were(name):
    given_words = ["The", "film", "great film", "", "film"]
    encoding = TOKENIZERS[name](given_words, is_split_into_words=True)
    words = words_of(encoding, given_words, split="given")
    assert words.strings == tuple(given_words)
    scores = torch.ones(len(words.index))
    assert word_scores(scores, words)[3] == 0
    with pytest.raises(ValueError, match="word 3, '', has no token, so it has no mean"):
        word_scores(scores, words, "mean")
    assert word_scores(scores, words, "mean", empty=0.0).tolist() == [1, 1, 1, 0, 1]


def test_words_cut_off_by_truncation_are_left_out():
    text = "the film is great"
    encoding = TOKENIZERS["MiniLM"](text, truncation=True, max_length=4)
    assert words_of(encoding, text).strings == ("the", "film")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("film great film", {"text": "film"}), ValueError, "ends at character .* but the text has 4"),
        (("film", {"text": ["film"]}), TypeError, "takes the text of one example as a str, got list"),
        (("film", {"text": "film", "split": "given"}), TypeError, "as a list, got str"),
        (("great film", {"text": "a great film"}), ValueError, "should be, the text has 'a gre', and so on for 2 of 2"),
        (("A warm film", {"text": "The plot is thin."}), ValueError, "text should be the text of this example"),
        (("film", {"text": "film", "index": 1}), ValueError, "index 1, but the encoding holds 1 examples"),
        (("film", {"text": "film", "split": "spaces"}), ValueError, "split should be one of 'whitespace'"),
        (("film", {"text": "film", "special": "ignore"}), ValueError, "special should be one of 'drop', 'keep'"),
        (("film", {"text": ["other"], "split": "given"}), None, ""),
    ],
)
def test_a_text_that_does_not_fit_the_encoding_is_an_error(arguments, error, message):
    text, options = arguments
    encoding = TOKENIZERS["WordPiece"](text)
    if error is None:  # a list that fits by length cannot be told apart
        assert words_of(encoding, **options).strings == ("other",)
        return
    with pytest.raises(error, match=message):
        words_of(encoding, **options)


@pytest.mark.parametrize(
    ("before", "text", "words"),
    [
        (pre_tokenizers.Whitespace(), "ß ẞ", ("ß", "ẞ")),  # in lower case "ss", of which a token is one
        (pre_tokenizers.Whitespace(), "\u212a ﬁne", ("\u212a", "ﬁne")),  # the unit kelvin is "k" in lower case
        (pre_tokenizers.Split("", "isolated"), "½ ﬁne …", ("½", "ﬁne", "…")),  # each letter a word of the tokenizer's
    ],
)
def test_letters_that_a_normaliser_writes_as_several_are_those_of_the_text(before, text, words):
    letters = {letter: number for number, letter in enumerate("?abcdefghijklmnopqrstuvwxyz0123456789⁄.")}
    tokenizer = Tokenizer(models.BPE(letters, [], unk_token="?"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("ß", "ss"), normalizers.Replace("ẞ", "ss"), normalizers.Replace("\u212a", "x"),
         normalizers.NFKC()]
    )  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), before])
    assert words_of(tokenizer.encode(text), text).strings == words


def test_words_of_one_letter_each_are_still_no_text():
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "电": 1, "影": 2, "1": 3, "a": 4, "⁄": 5, "2": 6}, unk_token="?"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Split("", "isolated")
    for words in (["电", "影"], ["½", "a"]):
        with pytest.raises(ValueError, match="begins at character 0, within the word in front"):
            words_of(tokenizer.encode(words, is_pretokenized=True), "".join(words))


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_the_text_of_a_list_of_words_is_refused_with_the_way_out(name):
    given = ["great", "film", "great", "film"]
    encoding = TOKENIZERS[name](given, is_split_into_words=True)
    with pytest.raises(ValueError, match=r"begins at character 0, within the word in front.*split='given'"):
        words_of(encoding, " ".join(given))


def test_a_pair_needs_both_texts_and_a_dict_has_no_offsets():
    encoding = TOKENIZERS["WordPiece"]("film", "great")
    with pytest.raises(ValueError, match="holds 2 texts but one was given; give a pair as a tuple"):
        words_of(encoding, "film")
    with pytest.raises(TypeError, match="a plain dict of tensors has lost the offsets"):
        words_of(dict(encoding), "film")
    with pytest.raises(ValueError, match="lies outside the 1 words given"):
        words_of(TOKENIZERS["WordPiece"](["the", "film"], is_split_into_words=True), ["the"], split="given")


def test_a_tokenizer_without_offsets_is_refused_with_the_way_out():
    from transformers import BatchEncoding

    with pytest.raises(ValueError, match=r"keeps no offsets; use a fast tokenizer, or words_of_pieces"):
        words_of(BatchEncoding({"input_ids": [1, 2]}), "film")


@pytest.mark.parametrize(
    ("mark", "pieces"),
    [
        ("##", ["[CLS]", "un", "##believ", "##able", "film", "[SEP]", "[PAD]"]),
        ("▁", ["[CLS]", "▁un", "believ", "able", "▁film", "[SEP]", "[PAD]"]),
        ("@@", ["[CLS]", "un@@", "believ@@", "able", "film", "[SEP]", "[PAD]"]),
        ("</w>", ["[CLS]", "un", "believ", "able</w>", "film</w>", "[SEP]", "[PAD]"]),
    ],
)
def test_marks_on_pieces_tell_the_words_where_there_are_no_offsets(mark, pieces):
    special = {"special_tokens": ["[CLS]", "[SEP]"], "padding": ["[PAD]"]}
    words = words_of_pieces(pieces, mark, **special)
    assert words == Words(("unbelievable", "film"), (None, 0, 0, 0, 1, None, None))
    kept = words_of_pieces(pieces, mark, special="keep", **special)
    assert kept == Words(("[CLS]", "unbelievable", "film", "[SEP]"), (0, 1, 1, 1, 2, 3, None))


def test_a_lone_mark_begins_a_word_and_the_first_piece_needs_none():
    assert words_of_pieces(["un", "fit", "▁", "映画"], "▁") == Words(("unfit", "映画"), (0, 0, 1, 1))
    with pytest.raises(ValueError, match="mark should be one of"):
        words_of_pieces(["un"], "Ġ")


@pytest.mark.parametrize("text", ["the  film", "the film ", "  the film", "the   film  great"])
def test_a_lone_mark_belongs_to_the_word_that_words_of_gives_it(text):
    core = Tokenizer(models.WordLevel({"▁": 0, "▁the": 1, "▁film": 2, "▁great": 3}, unk_token="▁"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    encoding = core.encode(text)
    assert "▁" in encoding.tokens
    assert words_of_pieces(encoding.tokens, "▁") == words_of(encoding, text)


def test_pieces_of_marks_alone_are_no_words():
    assert words_of_pieces(["▁▁", "▁the", "▁▁film"], "▁") == Words(("the", "film"), (0, 0, 1))
    assert words_of_pieces(["▁a▁b▁", "c"], "▁") == Words(("a b", "c"), (0, 1))
    special = {"special_tokens": ["</s>"], "padding": ["<pad>"]}
    pieces = ["▁the", "▁", "</s>", "▁", "film", "▁", "</s>", "<pad>"]
    assert words_of_pieces(pieces, "▁", **special) == Words(("the", "film"), (0, 0, None, 1, 1, 1, None, None))
    kept = words_of_pieces(["▁", "</s>", "▁a"], "▁", special="keep", **special)
    assert kept == Words((" ", "</s>", "a"), (0, 1, 2))  # a text of nothing but a blank
    assert words_of_pieces(["@@", "a@@", "b"], "@@") == Words(("@@", "ab"), (0, 1, 1))


def word_scores_by_definition(scores, words, reduce):
    """One word at a time."""
    how = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}[reduce]
    columns = [
        how(torch.stack([scores[..., j] for j, i in enumerate(words.index) if i == word], dim=-1), dim=-1)
        for word in range(len(words))
    ]
    return torch.stack(columns, dim=-1)


@given(
    st.lists(st.none() | st.integers(0, 4), min_size=5, max_size=12),
    st.sampled_from(["sum", "mean", "max"]),
    st.sampled_from([(), (3,), (2, 3)]),
)
def test_word_scores_are_their_definition(index, reduce, leading):
    index = [*index, 0, 1, 2, 3, 4]
    words = Words(tuple("abcde"), tuple(index))
    scores = torch.randn(*leading, len(index), dtype=torch.float64)
    expected = word_scores_by_definition(scores, words, reduce)
    torch.testing.assert_close(word_scores(scores, words, reduce), expected)
    torch.testing.assert_close(
        word_scores(scores.unsqueeze(0).movedim(-1, 0), words, reduce, axis=0), expected.unsqueeze(0).movedim(-1, 0)
    )


def test_the_sum_over_words_is_the_sum_over_their_tokens():
    text = TEXTS[2]
    for tokenizer in TOKENIZERS.values():
        words = words_of(tokenizer(text), text, special="keep")
        scores = torch.rand(len(words.index), dtype=torch.float64)
        torch.testing.assert_close(word_scores(scores, words).sum(), scores.sum())


def test_in_a_map_source_pieces_are_summed_and_target_pieces_averaged():
    queries, keys = Words(("ab", "c"), (0, 0, 1)), Words(("x", "yz"), (0, 1, 1, None))
    scores = torch.tensor([[1.0, 2.0, 3.0, 9.0], [3.0, 4.0, 5.0, 9.0], [5.0, 6.0, 7.0, 9.0]])
    assert word_map(scores, queries, keys).tolist() == [[2.0, 7.0], [5.0, 13.0]]
    assert word_map(scores.expand(2, 3, 3, 4), queries, keys).shape == (2, 3, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_in_half_precision_are_added_up_in_more(dtype):
    words = Words(("long", "short"), (*[0] * 3000, 1))
    scores = torch.full((3001,), 100.0, dtype=dtype)
    assert word_scores(scores, words).tolist() == [300000.0, 100.0]
    two = Words(("a", "b"), (0, 1))
    assert word_map(scores.expand(2, 3001), two, words).tolist() == [[300000.0, 100.0]] * 2
    assert word_scores(scores.double(), words).dtype == torch.float64


def test_gradients_pass_and_inputs_stay():
    words = Words(("ab", "c"), (0, 0, 1))
    scores = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    word_scores(scores, words, "mean").sum().backward()
    assert scores.grad.tolist() == [0.5, 0.5, 1.0]


def test_scores_that_do_not_fit_the_words_are_named():
    words = Words(("ab", "c"), (0, 0, 1))
    with pytest.raises(ValueError, match=r"axis -1 of scores, which is \(2, 4\), has 4 entries but words .* 3 tokens"):
        word_scores(torch.ones(2, 4), words)
    with pytest.raises(TypeError, match="floating point"):
        word_scores(torch.ones(3, dtype=torch.long), words)
    with pytest.raises(ValueError, match="axis 2 of scores of shape"):
        word_scores(torch.ones(2, 3), words, axis=2)
    with pytest.raises(ValueError, match="reduce should be one of"):
        word_scores(torch.ones(3), words, "median")
    with pytest.raises(ValueError, match="index names word 2, but there are 2 words"):
        Words(("a", "b"), (0, 2))


def test_tokens_that_stand_for_words_are_not_added_ones_unless_they_begin_or_end_a_text():
    ids = {"unk_token_id": 1, "mask_token_id": 4, "cls_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}
    slow = SimpleNamespace(**ids, all_special_ids=[0, 1, 2, 3, 4])
    assert added_ids(slow) == {0, 2, 3}
    assert special_tokens({"input_ids": [[2, 7, 1, 4, 3, 0]]}, slow) == [True, False, False, False, True, True]
    one_for_all = SimpleNamespace(unk_token_id=9, eos_token_id=9, bos_token_id=9, all_special_ids=[9])
    assert added_ids(one_for_all) == {9}
    assert added_ids(None) == set()
