"""``captum-norm heads`` says what the counter says; the counter is its definition."""

import json
import math

import pytest
import torch
from transformers import GPT2LMHeadModel

from captum_norm.capture import recording
from captum_norm.functional import head_norms, transformed_norms
from captum_norm.head_activity import QUANTITIES, HeadCounter
from tests.attr.models import ids, tiny
from tests.cli.running import answer


def test_counts_are_their_definition():
    model, tokens = tiny("GPT2").double(), [ids(1, 6, seed=n) for n in range(3)]
    counter = HeadCounter(model)
    for each in tokens:
        counter.add(each, [False, False, True, False, False, False])
    found = counter.result()
    expected = {name: [] for name in QUANTITIES}
    for each in tokens:
        with torch.no_grad(), recording() as records:
            model(each)
        first = records[0]
        weights, norms = first.weights[0], head_norms(first.weights, first.values, first.W_O)[0]
        shares = norms[:, 1:] / norms[:, 1:].sum(-1, keepdim=True)
        lengths = transformed_norms(first.values, first.W_O)[0]
        out = torch.einsum("hqk,hke,hed->hqd", weights, first.values[0], first.W_O)[:, 1:].norm(dim=-1).mean(1)
        for name, value in {
            "first_weight": weights[:, 1:, 0].mean(1),
            "first_norm": shares[..., 0].mean(1),
            "special_weight": weights[:, 1:, 2].mean(1),
            "special_norm": shares[..., 2].mean(1),
            "first_length": lengths[:, 0] / lengths[:, 1:].mean(1),
            "activity": out / out.mean(),
        }.items():
            expected[name].append(value)
    for name, values in expected.items():
        stacked = torch.stack(values)
        torch.testing.assert_close(found.means[name][0], stacked.mean(0))
        torch.testing.assert_close(found.margins[name][0], 1.96 * stacked.std(0) / math.sqrt(3))
    assert (found.sequences, found.tokens) == (3, 18)
    assert len(found.as_table().rows) == 2 * 4


def test_heads_says_what_the_counter_says(capsys, folders, tmp_path, text_file, monkeypatch):
    file = tmp_path / "heads.json"
    code, out, err = answer(capsys, "heads", "--model", folders / "decoder", "--text", text_file, "--json", file)
    assert (code, err) == (0, "")
    saved = json.loads(file.read_text("utf-8"))
    assert saved["sequences"] == 3
    assert set(saved["means"]) == set(QUANTITIES)
    assert saved["means"]["special_weight"] == [[0.0] * 4] * 2  # this tokenizer puts none around a text
    assert f"{100 * saved['means']['first_norm'][1][2]:.1f}" in out
    model = GPT2LMHeadModel.from_pretrained(folders / "decoder")
    assert len(saved["layers"]) == model.config.n_layer
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = answer(capsys, "heads", "--model", folders / "encoder", "--text", text_file)
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = answer(capsys, "heads", "--model", folders / "encoder", "--text", text_file, "--json", "-")
    assert json.loads(out)["means"]["special_weight"][0][0] > 0


def test_what_cannot_be_counted_is_refused(capsys, folders, tmp_path, text_file):
    counter = HeadCounter(tiny("GPT2"))
    with pytest.raises(ValueError, match="no sequence was added"):
        counter.result()
    with pytest.raises(ValueError, match="one sequence of two tokens or more at a time"):
        counter.add(ids(2, 4), [False] * 4)
    (tmp_path / "short").write_text("film\n", "utf-8")
    code, _, err = answer(capsys, "heads", "--model", folders / "decoder", "--text", tmp_path / "short")
    assert (code, "no sequence of two tokens" in err) == (2, True)
    code, _, err = answer(capsys, "heads", "--model", folders / "decoder", "--text", text_file, "--max-tokens", 99)
    assert (code, "takes 32 tokens at most" in err) == (2, True)
