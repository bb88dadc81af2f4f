"""What a command writes is there whole or not at all, and ``-`` is standard output."""

import io
import json
import os
import stat

import pytest

from tests.cli.models import TEXT
from tests.cli.running import answer


def test_a_failing_write_leaves_what_was_there(capsys, folders, tmp_path, monkeypatch):
    file = tmp_path / "scores.json"
    file.write_text("old")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", fail)
    arguments = ("--model", folders / "classifier", "--methods", "AttentionNorm", "--json", file)
    code, _, err = answer(capsys, "compare", TEXT, *arguments)
    assert code == 2
    assert "No space left on device" in err
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    assert file.read_text() == "old"


CERTIFY = ("certify", "--model")


def test_numbers_go_through_a_pipe_and_the_pipe_stays(capsys, folders, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert answer(capsys, *CERTIFY, folders / "encoder", "--json", pipe)[0] == 0
        assert len(json.loads(os.read(reader, 1 << 16))["calls"]) == 2
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_numbers_and_figures_follow_links(capsys, folders, tmp_path):
    links = tmp_path / "numbers.json", tmp_path / "strips.svg"
    for link in links:
        link.symlink_to(f"real-{link.name}")
    arguments = ("--methods", "AttentionNorm", "--json", links[0], "--figure", links[1])
    assert answer(capsys, "compare", TEXT, "--model", folders / "classifier", *arguments)[0] == 0
    assert all(link.is_symlink() for link in links)
    assert json.loads((tmp_path / "real-numbers.json").read_text("utf-8"))["text"] == TEXT
    assert "<svg" in (tmp_path / "real-strips.svg").read_text("utf-8")


def test_a_dash_is_standard_output_for_the_numbers_alone(capsys, folders):
    code, out, err = answer(capsys, *CERTIFY, folders / "encoder", "--json", "-")
    assert (code, err) == (0, "")
    assert len(json.loads(out)["calls"]) == 2


def test_texts_come_from_standard_input(capsys, folders, monkeypatch):
    model = ("--model", folders / "encoder", "--json", "-")
    monkeypatch.setattr("sys.stdin", io.StringIO("A warm film.\n"))
    code, out, err = answer(capsys, "compare", "-", "--methods", "AttentionNorm", *model)
    assert (code, err) == (0, "")
    assert json.loads(out)["text"] == "A warm film."
    monkeypatch.setattr("sys.stdin", io.StringIO("A warm film.\n"))
    assert answer(capsys, "certify", "--text", "-", *model)[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("A warm film.\n\nThe plot is thin.\n"))
    code, out, _ = answer(capsys, "tokens", "--text", "-", *model)
    assert (code, json.loads(out)["sequences"]) == (0, 2)


def test_a_byte_order_mark_on_standard_input_is_no_character(capsys, folders, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeffA warm film.\n"))
    model = ("--model", folders / "encoder", "--json", "-")
    _, out, _ = answer(capsys, "compare", "-", "--methods", "AttentionNorm", *model)
    assert json.loads(out)["text"] == "A warm film."


def test_input_that_is_no_text_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf-8"))
    code, _, err = answer(capsys, "compare", "-")
    assert (code, err.count("\n")) == (2, 1)
    assert "standard input is not UTF-8 text" in err


@pytest.mark.parametrize("second", ["x.svg", "./x.svg", "link.svg"])
def test_one_file_for_two_outputs_is_refused(capsys, tmp_path, monkeypatch, second):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.svg").symlink_to("x.svg")
    code, _, err = answer(capsys, "compare", "a", "--json", "x.svg", "--figure", second)
    assert code == 2
    assert "is named for two outputs" in err


LATIN = b"a warm caf\xe9 film".decode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", LATIN),
        ("compare", TEXT, "--pair", LATIN),
        ("compare", TEXT, "--target", LATIN),
        ("compare", TEXT, "--position", LATIN),
        ("view", LATIN, "-o", "page.html"),
        ("maps", LATIN),
        ("maps", TEXT, "--scale-without", LATIN),
        ("certify", "--text", LATIN),
        ("context", "--prompt", "prompt.txt", "--answer", LATIN),
        ("align", "--prefix", LATIN),
    ],
    ids=lambda arguments: "-".join(argument for argument in arguments if argument.isascii()),
)
def test_an_argument_that_is_not_utf_8_is_refused_before_any_work(capsys, arguments):
    code, out, err = answer(capsys, *arguments)
    assert (code, out) == (2, "")
    assert f"captum-norm {arguments[0]}: argument " in err
    assert "character 10 is '\\udce9', half a character, as of bytes that are not UTF-8. Write it in UTF-8" in err


def test_standard_input_that_is_not_utf_8_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(LATIN))
    code, _, err = answer(capsys, "compare", "-")
    assert code == 2
    assert "standard input: character 10 is" in err
