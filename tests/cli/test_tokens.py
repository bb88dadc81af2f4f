"""``captum-norm tokens`` says what the counter says, on any part that reads text."""

import json

import pytest
import torch
from transformers import BertModel

from tests.cli.models import bert_tokenizer
from tests.cli.running import answer


def test_tokens_says_what_the_counter_says(capsys, folders, tmp_path, text_file):
    file, figure = tmp_path / "shares.json", tmp_path / "shares.png"
    arguments = ("--text", text_file, "--json", file, "--figure", figure, "--batch-size", 2)
    code, out, err = answer(capsys, "tokens", "--model", folders / "encoder", *arguments)
    assert (code, err) == (0, "")
    assert figure.stat().st_size > 1000
    saved = json.loads(file.read_text("utf-8"))
    assert saved["classes"] == ["[CLS]", "[SEP]", "punctuation", "other"]
    assert saved["sequences"] == 3
    assert len(saved["shares"]["weights"]) == 2

    from captum_norm.token_shares import ShareCounter, read_paragraphs
    from captum_norm.tokens import token_classes

    tokenizer, counter = bert_tokenizer(), ShareCounter(BertModel.from_pretrained(folders / "encoder").eval())
    for paragraph in read_paragraphs(text_file):
        encoding = tokenizer(paragraph, return_tensors="pt")
        counter.add(encoding, [token_classes(encoding["input_ids"][0], tokenizer)])
    expected = counter.result()
    for measure in ("weights", "head_norms", "summed_norms"):
        found = torch.tensor(saved["shares"][measure], dtype=torch.float64)
        torch.testing.assert_close(found, expected.shares[measure], atol=1e-6, rtol=1e-5)
        assert f"{expected.special_share(measure):.1%}" in out


def test_unknown_and_masked_words_are_words(capsys, folders, tmp_path):
    (tmp_path / "text").write_text("a film 電影 and a [MASK] plot .\n", encoding="utf-8")
    arguments = ("--text", tmp_path / "text", "--json", tmp_path / "shares.json")
    assert answer(capsys, "tokens", "--model", folders / "encoder", *arguments)[0] == 0
    assert json.loads((tmp_path / "shares.json").read_text())["classes"] == ["[CLS]", "[SEP]", "punctuation", "other"]


def test_tokens_takes_no_more_than_asked(capsys, folders, tmp_path, text_file):
    file = tmp_path / "shares.json"
    arguments = ("--text", text_file, "--max-sequences", 2, "--max-tokens", 5, "--json", file)
    assert answer(capsys, "tokens", "--model", folders / "encoder", *arguments)[0] == 0
    saved = json.loads(file.read_text("utf-8"))
    assert (saved["sequences"], saved["tokens"]) == (2, 10)


@pytest.mark.parametrize("model", ["decoder", "translator", "classifier"])
def test_tokens_runs_on_the_part_that_reads_the_text(capsys, folders, text_file, model):
    code, out, _ = answer(capsys, "tokens", "--model", folders / model, "--text", text_file)
    assert code == 0
    assert "share of attention received, %" in out
