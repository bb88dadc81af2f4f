"""Classes of tokens, and what share of attention each receives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_norm import token_classes as token_classes_module
from captum_norm import tokens, words
from captum_norm.token_classes import (
    class_means,
    class_shares,
    token_classes,
)
from tests.tokenizers_of_every_kind import TOKENIZERS


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


@pytest.mark.parametrize("name", tokens.__all__)
def test_the_common_name_has_words_and_classes(name):
    assert getattr(tokens, name) is getattr(words, name, getattr(token_classes_module, name, None))
