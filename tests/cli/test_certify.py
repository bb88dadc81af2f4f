"""``captum-norm certify`` lists every attention call and how exactly it is read."""

import json

import pytest
from transformers import BertForSequenceClassification

from captum_norm.capture import AttentionCall, Certificate
from captum_norm.cli.table import width_of
from captum_norm.maps import CheckedCall, attention_layers
from tests.cli.models import TEXT, bert_tokenizer
from tests.cli.running import answer


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        ("classifier", ["self"] * 2),
        ("decoder", ["causal"] * 2),
        ("translator", ["self", "causal", "cross"]),
        ("vision", ["self"] * 2),
    ],
)
def test_certify_lists_every_call_with_inputs_made_from_the_config(capsys, folders, tmp_path, model, kinds):
    file = tmp_path / "calls.json"
    code, out, err = answer(capsys, "certify", "--model", folders / model, "--json", file)
    assert (code, err) == (0, "")
    assert "all read exactly" in " ".join(out.split())
    calls = json.loads(file.read_text("utf-8"))["calls"]
    assert [call["kind"] for call in calls] == kinds
    assert all(call["error"] < call["tolerance"] for call in calls)
    assert all(call["W_O"] in out and call["name"] in out for call in calls)


def test_on_a_narrow_screen_names_are_cut_and_in_a_pipe_they_are_whole(capsys, folders, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = answer(capsys, "certify", "--model", folders / "classifier")
    assert max(map(width_of, out.splitlines())) <= 80
    monkeypatch.delenv("COLUMNS")
    _, out, _ = answer(capsys, "certify", "--model", folders / "classifier")
    assert "bert.encoder.layer.1.attention.output.dense.weight" in out


def test_certify_takes_a_text(capsys, folders, tmp_path):
    file = tmp_path / "calls.json"
    assert answer(capsys, "certify", "--model", folders / "classifier", "--text", TEXT, "--json", file)[0] == 0
    model = BertForSequenceClassification.from_pretrained(folders / "classifier").eval()
    expected = attention_layers(model, bert_tokenizer()(TEXT, return_tensors="pt"))
    found = json.loads(file.read_text("utf-8"))["calls"]
    assert [(c["name"], c["heads"], c["W_O"]) for c in found] == [(c.name, c.heads, c.projection) for c in expected]


def test_a_refused_call_is_listed_and_the_exit_code_says_so(capsys, folders, monkeypatch):
    calls = [
        CheckedCall(AttentionCall("layer.0", "self", 0, 4, "layer.0.o"), Certificate(1e-7, 1e-5), keys_known=True),
        CheckedCall(AttentionCall("layer.1", "self", 0, 4, "layer.1.o"), None, "layer.1: it was off by 0.5"),
        CheckedCall(AttentionCall("pool", "self", 0, 1, "pool.o"), Certificate(1e-7, 1e-5), unknown_keys="a window"),
    ]
    monkeypatch.setattr("captum_norm.maps.checked_calls", lambda model, inputs: calls)
    code, out, _ = answer(capsys, "certify", "--model", folders / "classifier")
    assert code == 1
    assert "3 attention calls, 1 refused" in " ".join(out.split())
    assert "1 refused: layer.1: it was off by 0.5" in out
    assert "2: maps only, no scores of inputs: a window" in out
