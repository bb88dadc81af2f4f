"""``captum-norm context`` says what the language-model interface says of each source."""

import json

import pytest
import torch
from transformers import GPT2LMHeadModel

from captum_norm import AttentionNorm, LLMAttentionAttribution
from captum_norm.cli.context import prompt_with_documents
from tests.cli.models import gpt_tokenizer
from tests.cli.running import answer

DOCUMENTS = ("a warm film . the plot is thin", "that film never feels forced !")


@pytest.fixture
def files(tmp_path):
    for name, text in zip(("a.txt", "b.txt", "prompt.txt"), (*DOCUMENTS, "the film is"), strict=True):
        (tmp_path / name).write_text(text + "\n", "utf-8")
    return tmp_path


def asked(folders, files, *more):
    documents = ("--documents", files / "a.txt", files / "b.txt")
    return "context", "--model", folders / "decoder", "--prompt", files / "prompt.txt", *documents, *more


def test_documents_are_the_sources_of_an_answer(capsys, folders, files, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    file = files / "found.json"
    code, out, err = answer(capsys, *asked(folders, files, "--answer", "a warm", "--json", file))
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    saved = json.loads(file.read_text("utf-8"))
    assert [source["name"] for source in saved["sources"]] == ["a.txt", "b.txt", "the rest of the prompt"]
    assert saved["answer"] == ["a", "warm"]
    model = GPT2LMHeadModel.from_pretrained(folders / "decoder").eval()
    text, spans = prompt_with_documents("the film is", list(DOCUMENTS))
    expected = LLMAttentionAttribution(AttentionNorm(model), gpt_tokenizer()).attribute(
        text, target="a warm", sources=[*spans, ...]
    )
    for number, source in enumerate(saved["sources"]):
        torch.testing.assert_close(source["score"], float(expected.seq_attr[number]), rtol=1e-5, atol=1e-6)
        by_token = torch.tensor(source["by_token"])
        torch.testing.assert_close(by_token, expected.token_attr[:, number], rtol=1e-5, atol=1e-6)
    assert sum(source["share"] for source in saved["sources"]) == pytest.approx(1)


def test_the_model_writes_and_sentences_are_sources(capsys, folders, files):
    more = ("--split", "sentences", "--max-new-tokens", 2, "--method", "spantrace", "--json", "-")
    code, out, _ = answer(capsys, *asked(folders, files, *more))
    saved = json.loads(out)
    assert (code, saved["method"], len(saved["answer"])) == (0, "SpanTrace", 2)
    assert [source["name"] for source in saved["sources"]] == [
        "a warm film .", "the plot is thin", "that film never feels forced !", "the film is",
    ]  # fmt: skip


def test_the_answer_is_drawn_and_written_as_a_page_beside_its_sources(capsys, folders, files):
    (files / "a.txt").write_text("a <b>warm</b> film", "utf-8")
    page, figure = files / "page.html", files / "figure.svg"
    code, _, err = answer(capsys, *asked(folders, files, "--answer", "a warm", "--html", page, "--figure", figure))
    assert (code, err) == (0, "")
    text = page.read_text("utf-8")
    assert text.count("<section") == 3
    assert "a &lt;b&gt;warm&lt;/b&gt; film" in text
    assert text.count('title="') == 2  # a token of the answer each
    assert "Content-Security-Policy" in text
    assert "<script" not in text
    assert "a.txt" in figure.read_text("utf-8")
    code, _, err = answer(capsys, *asked(folders, files, "--answer", "a", "--figure", files / "figure.odd"))
    assert (code, "its ending should say the format" in err) == (2, True)


def test_documents_stand_where_the_prompt_says():
    assert prompt_with_documents("Read {documents} and say.", ["A", "B"]) == ("Read A\n\nB and say.", [(5, 6), (8, 9)])
    with pytest.raises(ValueError, match="there are no --documents"):
        prompt_with_documents("{documents}", [])


def test_a_second_place_for_documents_is_refused_and_not_read_as_a_word():
    with pytest.raises(ValueError, match=r"--prompt has 2 places for \{documents\}: leave one"):
        prompt_with_documents("Read {documents} and again {documents}.", ["A"])
    text = "a document may write {documents}"
    assert prompt_with_documents("Q?", [text]) == (f"{text}\n\nQ?", [(0, len(text))])


def test_the_mark_of_the_byte_order_is_no_text(capsys, folders, files):
    (files / "a.txt").write_text(DOCUMENTS[0], "utf-8-sig")
    (files / "prompt.txt").write_text("\ufeff{documents} the film is", "utf-8")
    found = []
    for number in range(2):
        code, _, _ = answer(capsys, *asked(folders, files, "--answer", "a", "--json", files / f"{number}.json"))
        assert code == 0
        found.append(json.loads((files / f"{number}.json").read_text("utf-8"))["sources"])
        (files / "a.txt").write_text(DOCUMENTS[0], "utf-8")
        (files / "prompt.txt").write_text("{documents} the film is", "utf-8")
    assert found[0] == found[1]


def test_files_of_one_name_go_by_their_paths(capsys, folders, files):
    for folder in ("one", "two"):
        (files / folder).mkdir()
        (files / folder / "a.txt").write_text("a warm film", "utf-8")
    given = [files / "b.txt", files / "one" / "a.txt", files / "two" / "a.txt", files / "two" / "a.txt"]
    more = ("--answer", "a", "--json", files / "found.json", "--documents", *given)
    code, _, _ = answer(capsys, *asked(folders, files, *more))
    found = [source["name"] for source in json.loads((files / "found.json").read_text("utf-8"))["sources"]]
    assert code == 0
    assert found == [
        "b.txt", f"{given[1]}", f"{given[2]} (document 3)", f"{given[2]} (document 4)", "the rest of the prompt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--method", "AttentionNrom"), "there is no such method. Did you mean AttentionNorm"),
        (("--documents", "nowhere.txt"), "--documents nowhere.txt: No such file"),
        (("--prompt", "empty"), "empty is empty"),
        (("--model", "classifier"), "is no causal language model"),
        (("--answer", "電影"), "is not in the vocabulary"),
    ],
)
def test_mistakes_are_answered_in_a_line(capsys, folders, files, change, message):
    (files / "empty").write_text(" \n", "utf-8")
    change = tuple(folders / c if c == "classifier" else files / c if c == "empty" else c for c in change)
    code, out, err = answer(capsys, *asked(folders, files, *change))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_on_a_terminal_it_says_what_it_does(capsys, folders, files, monkeypatch):
    monkeypatch.setattr("captum_norm.cli.progress.Steps._SILENT", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    code, _, err = answer(capsys, *asked(folders, files, "--max-new-tokens", "2"))
    assert code == 0
    assert "1 of 3: writing the answer" in err
    assert "3 of 3: AttentionNorm" in err
