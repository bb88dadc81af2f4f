"""``captum-norm maps`` draws, saves and tabulates what ``attention_maps`` gives."""

import io

import pytest
import torch

from captum_norm import AttentionMaps
from tests.cli.models import TEXT
from tests.cli.running import answer


@pytest.mark.parametrize(
    "how",
    [
        ("--call", "0", "--heads", "each"),
        ("--heads", "all"),
        ("--call", "1", "--heads", "2"),
        ("--scale-without", "[CLS]", "--width", "3.3"),
    ],
)
def test_a_figure_is_drawn(capsys, folders, tmp_path, how):
    file = tmp_path / "maps.svg"
    code, out, err = answer(capsys, "maps", TEXT, "--model", folders / "classifier", "--figure", file, *how)
    assert (code, err) == (0, "")
    assert "AttentionMaps of BertForSequenceClassification: 2 attention calls" in out
    assert ">film</text>" in file.read_text("utf-8") or "--heads" in how


def test_maps_are_saved_to_be_loaded_again_and_as_a_table(capsys, folders, tmp_path):
    pandas = pytest.importorskip("pandas")
    file = tmp_path / "maps.safetensors"
    code, out, _ = answer(capsys, "maps", TEXT, "--model", folders / "classifier", "--save", file, "--csv", "-")
    assert code == 0
    maps, table = AttentionMaps.load(file), pandas.read_csv(io.StringIO(out))
    rows = table[(table["quantity"] == "summed_norms") & (table["call"] == 1)]["value"]
    assert torch.allclose(torch.tensor(rows.to_numpy()).float(), maps.summed_norms[1].flatten())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (("--heads", "some"), "--heads some should be the number of a head, each or all"),
        (("--quantities", "weihgts"), "Did you mean weights"),
        (("--call", "9", "--figure", "x.png"), "call is 9, but maps holds 2"),
        (("--heads", "each", "--figure", "x.png"), "say which with call="),
        (("--width", "-1"), "--width -1.0 should be more than 0"),
    ],
)
def test_a_mistake_is_answered_in_one_line(capsys, folders, tmp_path, monkeypatch, how, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = answer(capsys, "maps", TEXT, "--model", folders / "classifier", *how)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert not list(tmp_path.iterdir())
