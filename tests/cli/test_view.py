"""``captum-norm view`` writes a page of a text, and never replaces what is no regular file."""

import fcntl
import io
import os
import stat

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from captum_norm.cli import main
from captum_norm.cli.view import view_page
from tests.viewer.made import content_of

TEXT = "A warm film, delightful!"


def answer(capsys, *arguments):
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        code = exit_.code
    return (code, *capsys.readouterr())


def written(page):
    return content_of(page)["axes"][0]["written"]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    torch.manual_seed(0)
    words = "? a warm film that never ends".split()
    pieces = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("decoder")
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    config = GPT2Config(vocab_size=7, n_embd=16, n_layer=2, n_head=2, n_positions=16, **ends)
    GPT2LMHeadModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="?").save_pretrained(folder)
    return folder


def test_the_page_holds_the_text_and_every_layer_and_head(capsys, tmp_path):
    file = tmp_path / "maps.html"
    code, out, err = answer(capsys, "view", TEXT, "-o", file)
    assert (code, out) == (0, "")
    assert err.startswith(f"{file}: ")
    page = file.read_text(encoding="utf-8")
    assert written(page) == ["[CLS]", "a", "warm", "film", ",", "delightful", "!", "[SEP]"]
    told = content_of(page)
    assert [len(call["heads"]) for call in told["calls"]] == [12] * 6
    assert told["quantities"] == ["weights", "head_norms", "summed_norms"]


def test_text_and_page_go_through_a_pipe(capsysbinary, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TEXT}\n"))
    code, out, err = answer(capsysbinary, "view", "-", "-o", "-")
    assert (code, err) == (0, b"")
    assert written(out.decode())[1:4] == ["a", "warm", "film"]


def test_only_some_layers(capsys, tmp_path):
    file = tmp_path / "maps.html"
    assert answer(capsys, "view", TEXT, "-o", file, "--layers", 0, 5, "--title", "Mine")[0] == 0
    told = content_of(file.read_text(encoding="utf-8"))
    assert [call["label"] for call in told["calls"]] == ["0", "5"]
    assert told["title"] == "Mine"


def test_a_link_stays_a_link_and_a_device_a_device(capsys, tmp_path):
    file, link, pipe = tmp_path / "maps.html", tmp_path / "link.html", tmp_path / "pipe"
    file.write_text("before")
    link.symlink_to(file)
    assert answer(capsys, "view", TEXT, "-o", link, "--layers", 0)[0] == 0
    assert link.is_symlink()
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 1 << 20)  # room for the page
        assert answer(capsys, "view", TEXT, "-o", pipe, "--layers", 0)[0] == 0
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        assert os.read(reader, 15) == b"<!doctype html>"
    finally:
        os.close(reader)


def test_a_language_model_goes_on_from_the_text(capsys, tmp_path, decoder):
    file = tmp_path / "maps.html"
    code, _, err = answer(capsys, "view", "a warm film", "-o", file, "--model", decoder, "--generate", 4)
    assert code == 0, err
    told = content_of(file.read_text(encoding="utf-8"))
    assert told["axes"][0]["written"][:3] == ["a", "warm", "film"]
    assert len(told["axes"][0]["written"]) == 7
    assert told["axes"][0]["prompt"] == 3
    answer(capsys, "view", "a warm film", "-o", file, "--model", decoder)
    assert "prompt" not in content_of(file.read_text(encoding="utf-8"))["axes"][0]


def test_an_encoder_decoder_writes_its_translation_first():
    from captum_norm.cli.loading import Loaded
    from captum_norm.models.translation import load_translation

    model, tokenizer = load_translation()
    told = content_of(view_page(Loaded(model, tokenizer, "the translation model", "next token"), "ein roter ball ."))
    cross = next(i for i, call in enumerate(told["calls"]) if call["kind"] == "cross")
    stored = told["examples"][0]["maps"][cross]
    assert told["axes"][stored["keys"]]["written"][0] == "ein"
    assert told["axes"][stored["queries"]]["prompt"] == 1
    assert "ball" in told["axes"][stored["queries"]]["written"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["  ", "-o", "x.html"], "the text is empty"),
        ([TEXT], "required: -o/--output"),
        ([TEXT, "-o", "no/such/x.html"], "the folder no/such does not exist"),
        ([TEXT, "-o", "."], "is a folder"),
        ([TEXT, "-o", "x.html", "--layers", "6"], "layers holds 6"),
        ([TEXT, "-o", "x.html", "--generate", "-1"], "should be 0 or more"),
        ([TEXT, "-o", "x.html", "--generate", "3"], "writes no tokens"),
        ([TEXT * 200, "-o", "x.html"], "Shorten the text"),
        ([TEXT, "-o", "x.html", "--model", "/no/such/model"], "no such folder"),
    ],
)
def test_mistakes_are_answered_in_one_line_and_leave_no_file(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = answer(capsys, "view", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not list(tmp_path.iterdir())
