"""What is handed to other libraries has the shapes they document; where they are installed, they take it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.attr import visualization
from torch import nn
from transformers import (
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from captum_norm import ALTI, AttentionNorm, DecompX, HFForward, attention_maps, explain
from captum_norm.exports import (
    bertviz_arguments,
    captum_record,
    circuitsvis_arguments,
    inseq_method,
    quantus_explainer,
)
from tests.cli.models import PIECES, TEXT, bert_config, bert_tokenizer, gpt_tokenizer

theirs = pytest.mark.filterwarnings("default")  # what other libraries warn of is theirs
QUANTITIES = ("weights", "head_norms", "summed_norms", "transformed_norms")


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return BertForSequenceClassification(bert_config()).eval()


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(PIECES), n_embd=16, n_layer=2, n_head=4, n_positions=32, bos_token_id=2, eos_token_id=3
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def translator():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(PIECES), d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=16, decoder_start_token_id=0,
        eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def maps(classifier):
    return attention_maps(classifier, bert_tokenizer()([TEXT, "thin"], return_tensors="pt", padding=True), QUANTITIES)


@pytest.fixture(scope="module")
def cross(translator):
    ids = torch.tensor([[5, 6, 7, 3]])
    return attention_maps(translator, {"input_ids": ids, "decoder_input_ids": ids[:, :3]}, QUANTITIES)


def test_bertviz_gets_each_call_without_padding(maps):
    given = bertviz_arguments(maps, example=1)
    assert [tuple(one.shape) for one in given["attention"]] == [(1, 4, 3, 3)] * 2
    assert given["tokens"] == ["[CLS]", "thin", "[SEP]"]
    assert torch.allclose(given["attention"][0].sum(-1), torch.ones(1, 4, 3))  # shares, as bertviz draws 0 to 1
    weights = bertviz_arguments(maps, "weights")["attention"][1][0]
    assert torch.equal(weights, maps.weights[1][0])
    assert bertviz_arguments(maps, "summed_norms")["attention"][0].shape[1] == 1


def test_bertviz_gets_encoder_decoder_and_cross_attention_apart(cross):
    given = bertviz_arguments(cross)
    assert [tuple(given[f"{part}_attention"][0].shape[1:]) for part in ("encoder", "decoder", "cross")] == [
        (2, 4, 4), (2, 3, 3), (2, 3, 4),
    ]  # fmt: skip
    assert (len(given["encoder_tokens"]), len(given["decoder_tokens"])) == (4, 3)


def test_circuitsvis_gets_one_call(maps, cross):
    given = circuitsvis_arguments(maps, 1, "weights")
    assert (given["attention"].shape[0], len(given["tokens"]), given["mask_upper_tri"]) == (4, 9, False)
    with pytest.raises(ValueError, match="are not the same tokens in one order, and CircuitsVis has one list"):
        circuitsvis_arguments(cross, [call.kind for call in cross.calls].index("cross"))


@pytest.mark.parametrize("ids", [[3, 3, 3], [3, 4, 5]])
@pytest.mark.parametrize("rows", [[2, 1, 0], [1], [0, 0, 0]])
def test_chosen_rows_are_no_view_even_of_tokens_that_are_alike(decoder, ids, rows):
    maps = attention_maps(decoder, torch.tensor([ids]), ("weights",), positions=rows)
    with pytest.raises(ValueError, match=r"CircuitsVis has one list for both. .*, leave positions= out"):
        circuitsvis_arguments(maps, 0, "weights")
    with pytest.raises(ValueError, match=r"bertviz_arguments: rows or columns of all calls .*, leave positions= out"):
        bertviz_arguments(maps, "weights")
    whole = attention_maps(decoder, torch.tensor([ids]), ("weights",), positions=[0, 1, 2])
    assert torch.equal(circuitsvis_arguments(whole, 0, "weights")["attention"], whole.weights[0][0])
    assert torch.equal(bertviz_arguments(whole, "weights")["attention"][0], whole.weights[0][:1])


def test_chosen_rows_whose_input_is_not_known_are_no_view():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    maps = attention_maps(encoder, torch.randn(1, 3, 8), ("weights",), positions=[2, 1, 0])
    unknown = replace(maps, queries=(None,), keys=(None,))
    with pytest.raises(ValueError, match="not the same tokens in one order"):
        circuitsvis_arguments(unknown, 0, "weights")
    assert circuitsvis_arguments(replace(unknown, positions=None), 0, "weights")["tokens"] == ["0", "1", "2"]


def test_what_lies_ahead_is_hidden_where_tokens_stand_in_their_order(decoder):
    maps = attention_maps(decoder, torch.tensor([[3, 4, 5]]), ("weights",), layers=[0])
    turned = (replace(maps.keys[0], index=torch.tensor([2, 1, 0]), rows=None),)
    assert circuitsvis_arguments(maps, 0, "weights")["mask_upper_tri"]
    assert not circuitsvis_arguments(replace(maps, keys=turned, queries=turned), 0, "weights")["mask_upper_tri"]


def test_chosen_rows_of_a_decoder_are_no_view_beside_its_encoder(translator):
    ids = torch.tensor([[5, 5, 5, 5]])
    given = {"input_ids": ids, "decoder_input_ids": ids[:, :3]}
    with pytest.raises(ValueError, match="rows or columns of the encoder are not the same tokens in one order"):
        bertviz_arguments(attention_maps(translator, given, ("weights",), positions=[2, 1, 0]), "weights")
    chosen = attention_maps(translator, given, ("weights",), layers=[1, 2], positions=[2, 1, 0])
    assert [call.kind for call in chosen.calls] == ["causal", "cross"]
    with pytest.raises(ValueError, match="rows or columns of the decoder are not the same tokens in one order"):
        bertviz_arguments(chosen, "weights")


def test_chosen_heads_go_by_their_numbers_or_not_at_all(decoder):
    maps = attention_maps(decoder, torch.tensor([[3, 4, 5]]), ("weights", "summed_norms"), head_indices=[-1, 1])
    given = circuitsvis_arguments(maps, 0, "weights")
    assert given["attention_head_names"] == ["head 3", "head 1"]
    with pytest.raises(ValueError, match="maps hold heads 3, 1, and bertviz counts heads from 0"):
        bertviz_arguments(maps, "weights")
    assert bertviz_arguments(maps, "summed_norms")["attention"][0].shape[1] == 1
    first = attention_maps(decoder, torch.tensor([[3, 4, 5]]), ("weights",), head_indices=[0, 1])
    assert bertviz_arguments(first, "weights")["attention"][0].shape[1] == 2


def test_a_measure_without_rows_is_no_view(maps):
    with pytest.raises(ValueError, match="transformed_norms is no map"):
        bertviz_arguments(maps, "transformed_norms")


@theirs
def test_bertviz_itself_draws_it(maps, cross):
    bertviz = pytest.importorskip("bertviz")
    for view in (bertviz.head_view, bertviz.model_view):
        assert "delight" in view(**bertviz_arguments(maps), html_action="return").data
        assert "cross" in view(**bertviz_arguments(cross), html_action="return").data.lower()


@theirs
def test_circuitsvis_itself_draws_it(maps):
    attention = pytest.importorskip("circuitsvis.attention")
    assert "AttentionHeads" in str(attention.attention_heads(**circuitsvis_arguments(maps, 0)))


def test_captum_itself_draws_the_record(classifier, monkeypatch):
    pytest.importorskip("IPython")
    monkeypatch.setattr(visualization, "display", lambda *given: None)
    found = explain(DecompX(classifier), bert_tokenizer()(TEXT, return_tensors="pt"), text=TEXT, target=1)
    record = captum_record(found, pred_prob=0.75, pred_class="good", true_class="good")
    assert float(record.word_attributions.abs().max()) == 1.0
    assert record.attr_score == pytest.approx(float(found.scores.sum()), rel=1e-5)
    assert "film," in visualization.visualize_text([record]).data


@pytest.mark.parametrize("method", [AttentionNorm, ALTI])
def test_quantus_gets_scores_shaped_as_its_inputs(method):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    inputs = np.random.default_rng(0).normal(size=(2, 3, 8)).astype("float32")
    scores = quantus_explainer(method, position=1)(model=encoder, inputs=inputs, targets=np.array([0, 1]))
    assert isinstance(scores, np.ndarray)
    assert np.allclose(scores, method(encoder).attribute(torch.tensor(inputs), position=1).numpy())


@theirs
def test_quantus_itself_measures_it():
    quantus = pytest.importorskip("quantus")
    torch.manual_seed(0)

    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.cut, self.head = nn.Conv2d(1, 8, 4, 4), nn.Linear(8, 2)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

        def forward(self, pixels):
            return self.head(self.layer(self.cut(pixels).flatten(2).transpose(1, 2))[:, 0])

    pixels = np.random.default_rng(0).normal(size=(3, 1, 16, 16)).astype("float32")
    metric = quantus.Sparseness(disable_warnings=True)
    explain_func = quantus_explainer(AttentionNorm)
    found = metric(model=Patches().eval(), x_batch=pixels, y_batch=np.array([0, 1, 0]), explain_func=explain_func)
    assert len(found) == 3
    assert all(0 <= value <= 1 for value in found)


@theirs
def test_inseq_runs_and_saves_our_method(decoder, tmp_path):
    inseq = pytest.importorskip("inseq")
    assert inseq_method(AttentionNorm) == "attention_norm"
    tokenizer = gpt_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]", "bos_token": "[CLS]", "eos_token": "[SEP]"})
    model = inseq.load_model(decoder, "attention_norm", tokenizer=tokenizer)
    out = model.attribute("a warm", "a warm film that", show_progress=False, pretty_progress=False)
    found = out.sequence_attributions[0].target_attributions
    ids = tokenizer("a warm film", return_tensors="pt")["input_ids"]
    expected = AttentionNorm(HFForward(decoder)).attribute(ids)
    assert torch.allclose(found[-ids.shape[1] - 1 : -1, -1], expected[0], rtol=1e-4)
    out.save(tmp_path / "out.json")
    assert torch.allclose(
        inseq.FeatureAttributionOutput.load(tmp_path / "out.json").sequence_attributions[0].target_attributions,
        found, equal_nan=True, atol=1e-3,
    )  # fmt: skip


@theirs
def test_inseq_asks_cross_attention_of_a_translation(translator):
    inseq = pytest.importorskip("inseq")
    model = inseq.load_model(translator, inseq_method(AttentionNorm), tokenizer=bert_tokenizer())
    out = model.attribute("a warm film", "the plot", show_progress=False, pretty_progress=False)
    assert out.sequence_attributions[0].source_attributions.isfinite().any()


@theirs
def test_a_method_of_inseqs_own_is_not_replaced():
    pytest.importorskip("inseq")
    from captum_norm import ValueZeroing

    with pytest.raises(ValueError, match="inseq has a method 'value_zeroing' of its own"):
        inseq_method(ValueZeroing)


def test_without_inseq_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "inseq", None)
    monkeypatch.setitem(__import__("sys").modules, "inseq.attr.feat", None)
    with pytest.raises(ImportError, match="pip install inseq"):
        inseq_method(AttentionNorm)
