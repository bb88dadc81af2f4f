"""``captum-norm certify`` lists every attention call and how exactly it is read."""

import json

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from captum_norm.capture import AttentionCall, Certificate
from captum_norm.cli.certify import _rests_on
from captum_norm.cli.table import width_of
from captum_norm.maps import Certified, CheckedCall, attention_layers, certified
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
    found = Certified(tuple(calls), (), (), (), (), "it is read from row 0", {"input_ids": (5, 7)})
    monkeypatch.setattr("captum_norm.maps.certified", lambda model, inputs: found)
    code, out, _ = answer(capsys, "certify", "--model", folders / "classifier")
    assert code == 1
    assert "3 attention calls, 1 refused" in " ".join(out.split())
    assert "1 refused: layer.1: it was off by 0.5" in out
    assert "2: maps only, no scores of inputs: a window" in out
    assert "real tokens: 5 of 7 in input_ids" in out


def test_certify_says_what_the_output_rests_on(capsys, folders, tmp_path):
    file = tmp_path / "certified.json"
    code, out, _ = answer(capsys, "certify", "--model", folders / "classifier", "--json", file)
    assert code == 0
    assert "softmaxes: 2 read as attention\noutput: it is read from row 0\npositions are mixed by att" in out
    found = json.loads(file.read_text("utf-8"))
    assert found["whole"] is True
    assert found["unused"] == found["mixers"] == found["opaque"] == []
    assert [softmax["fate"] for softmax in found["softmaxes"]] == ["call", "call"]
    assert found["real_tokens"]["input_ids"] == {"real": 20, "all": 24}  # inputs made from the config are padded


class Losing(BertForSequenceClassification):
    """Behind its encoder, a softmax over positions whose weights are summed up before they meet values."""

    def forward(self, input_ids, **given):
        x = self.bert(input_ids, **given).last_hidden_state
        weights = (x @ x.mT).softmax(-1).cumsum(-2).sum(1, keepdim=True)
        return self.classifier(x[:, 0] + torch.fft.fft(weights).real.mean(-1))


def test_a_lost_softmax_is_listed_and_the_exit_code_says_so():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    found = certified(Losing(config).eval(), {"input_ids": torch.randint(1, 30, (1, 5))})
    assert not found.is_whole
    assert [(one.module, one.fate) for one in found.softmaxes if one in found.lost] == [("Losing", "")]
    assert "  lost: they never met values: the softmax in 'Losing', (1, 5, 5) over axis 2" in _rests_on(found)


def test_certify_proves_by_other_means_and_tells_the_verdict(capsys, folders, tmp_path):
    file = tmp_path / "proof.json"
    code, out, err = answer(capsys, "certify", "--model", folders / "decoder", "--prove", "--json", file)
    assert (code, err) == (0, "")
    assert "verdict: proved (2 of 2 attention calls proved)" in out
    proof = json.loads(file.read_text("utf-8"))["proof"]
    assert (proof["verdict"], [call["status"] for call in proof["calls"]]) == ("proved", ["proved"] * 2)
    assert proof["tokens"]["status"] == proof["weights"]["status"] == "proved"
    assert all(call["error"] < 1e-5 for call in proof["calls"])
