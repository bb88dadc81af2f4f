"""From a running model to the papers' own figures: a tiny BERT in float64, four padded sentences, read end to end."""

import json

import numpy as np
import pytest
import torch
from transformers import BartConfig, BartModel, BertConfig, BertForSequenceClassification

from captum_norm import (
    ALTI,
    AttentionBlockNorm,
    AttentionFlow,
    AttentionNorm,
    AttentionRelevance,
    AttentionRollout,
    AttentionWeights,
    GlobEnc,
    HFForward,
    LayerAttentionBlockNorm,
    LayerAttentionNorm,
    ValueZeroing,
    attention_maps,
)
from captum_norm.capture import recording
from captum_norm.functional import alti, relevance, rollout, value_zeroing_shares
from captum_norm.intervention import Outline, value_zeroing_maps

EXACT = {"rtol": 0, "atol": 1e-10}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def reference(request, oracles):
    """The model, its inputs, and what its authors' code computed."""
    forward, weights = np.load(oracles / "tiny_forward.npz"), np.load(oracles / "tiny_weights.npz")
    config = BertConfig(**json.loads(str(forward["config"])), attn_implementation=request.param)
    model = BertForSequenceClassification(config).double().eval()
    parameters = {name: torch.from_numpy(weights[name]) for name in weights.files if weights[name].dtype.kind == "f"}
    model.load_state_dict(parameters, strict=False)
    inputs = {name: torch.from_numpy(forward[name]) for name in INPUTS}
    return model, inputs, forward


def real(inputs):
    """(batch, query, key) bool: both are real tokens."""
    mask = inputs["attention_mask"].bool()
    return mask[:, :, None] & mask[:, None, :]


def test_the_model_is_the_reference_model(reference):
    model, inputs, forward = reference
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, torch.from_numpy(forward["logits"]), **EXACT)


def test_maps_are_the_published_figures(reference, oracles):
    model, inputs, forward = reference
    published = np.load(oracles / "tiny_kobayashi2020.npz")
    maps = attention_maps(model, inputs, ("weights", "transformed_norms", "head_norms", "summed_norms"))
    pairs, keys = real(inputs), inputs["attention_mask"].bool()
    for layer in range(len(maps.calls)):
        for found, expected in (
            (maps.weights[layer], forward["attentions"][layer]),
            (maps.head_norms[layer], published["head_norm"][layer]),
        ):
            both = pairs[:, None].expand_as(found)
            torch.testing.assert_close(found[both], torch.from_numpy(expected)[both], **EXACT)
        found, expected = maps.summed_norms[layer], torch.from_numpy(published["summed_norm"][layer])
        torch.testing.assert_close(found[pairs], expected[pairs], **EXACT)
        found, expected = maps.transformed_norms[layer], torch.from_numpy(published["fx_norm"][layer])
        heads = keys[:, None].expand_as(found)
        torch.testing.assert_close(found[heads], expected[heads], **EXACT)


def test_classes_give_rows_of_the_published_maps(reference, oracles):
    model, inputs, forward = reference
    published = torch.from_numpy(np.load(oracles / "tiny_kobayashi2020.npz")["summed_norm"])
    ids, *extras = inputs.values()
    mask = inputs["attention_mask"]
    row = AttentionNorm(model).attribute(ids, additional_forward_args=tuple(extras), target=1)
    torch.testing.assert_close(row, published.mean(0)[:, 0] * mask, **EXACT)
    attentions = torch.from_numpy(forward["attentions"])
    row = AttentionWeights(model, aggregate=1).attribute(ids, additional_forward_args=tuple(extras))
    torch.testing.assert_close(row, attentions[1].mean(1)[:, 0], **EXACT)
    layer = LayerAttentionNorm(model, model.bert.encoder.layer[2])
    found = layer.attribute(ids, additional_forward_args=tuple(extras), heads="sum")
    torch.testing.assert_close(found[real(inputs)], published[2][real(inputs)], **EXACT)


def test_rollout_is_the_published_rollout(reference, oracles):
    model, inputs, forward = reference
    published = np.load(oracles / "tiny_rollout_flow.npz")
    ids, *extras = inputs.values()
    found = AttentionRollout(model).attribute(ids, additional_forward_args=tuple(extras), position="all")
    for example, length in enumerate(forward["lengths"].tolist()):
        expected = torch.from_numpy(published[f"rollout_{example}"][-1])
        torch.testing.assert_close(found[example, :length, :length], expected, **EXACT)


def test_value_zeroing_is_the_published_value_zeroing(reference, oracles):
    model, inputs, forward = reference
    published = np.load(oracles / "tiny_value_zeroing.npz")
    ids, *extras = inputs.values()
    outlines = []
    with torch.no_grad(), recording(lambda record: outlines.append(Outline.of(record))):
        model(ids, *extras)
    scores = [found.scores for found in value_zeroing_maps(lambda: model(ids, *extras), outlines)]
    shares = [value_zeroing_shares([layer], inputs["attention_mask"].bool())[0] for layer in scores]
    every = ValueZeroing(model).attribute(ids, additional_forward_args=tuple(extras), position="all")
    first = ValueZeroing(model).attribute(ids, additional_forward_args=tuple(extras))
    for example, length in enumerate(forward["lengths"].tolist()):
        for layer in range(len(scores)):
            for found, name in ((scores[layer], "raw"), (shares[layer], "scores")):
                expected = torch.from_numpy(published[f"{name}_{example}"][layer])
                torch.testing.assert_close(found[example, :length, :length], expected, **EXACT)
        expected = torch.from_numpy(published[f"rollout_{example}"][-1])
        torch.testing.assert_close(every[example, :length, :length], expected, **EXACT)
        torch.testing.assert_close(first[example, :length], expected[0], **EXACT)


def test_relevance_is_the_published_relevance(reference, oracles):
    model, inputs, forward = reference
    published = np.load(oracles / "tiny_chefer.npz")
    ids, *extras = inputs.values()
    targets = [int(published[f"target_{example}"]) for example in range(len(ids))]
    method, given = AttentionRelevance(model), {"target": targets, "additional_forward_args": tuple(extras)}
    every, first = method.attribute(ids, **given, position="all"), method.attribute(ids, **given)
    for example, length in enumerate(forward["lengths"].tolist()):
        expected = torch.from_numpy(published[f"R_{example}"])
        torch.testing.assert_close(every[example, :length, :length], expected, **EXACT)
        torch.testing.assert_close(first[example, :length], expected[0], **EXACT)
        maps = [torch.from_numpy(layer)[None] for layer in published[f"cams_{example}"]]
        torch.testing.assert_close(relevance(maps)[0], expected, **EXACT)


def test_flow_is_the_published_flow(reference, oracles):
    model, inputs, forward = reference
    published = np.load(oracles / "tiny_rollout_flow.npz")
    ids, *extras = inputs.values()
    method = AttentionFlow(model)
    every = method.attribute(ids, additional_forward_args=tuple(extras), position="all")
    first = method.attribute(ids, additional_forward_args=tuple(extras))
    for example, length in enumerate(forward["lengths"].tolist()):
        expected = torch.from_numpy(published[f"flow_last_layer_{example}"])
        torch.testing.assert_close(every[example, :length, :length], expected, **EXACT)
        torch.testing.assert_close(first[example, :length], expected[0], **EXACT)


BLOCK_QUANTITIES = {
    "res_norms": "attnres_n",
    "res_ln_norms": "attnresln_n",
    "summed_norms": "attn_n",
    "mixing_attn": "mixing_attn_n",
    "mixing_res": "mixing_attnres_n",
    "mixing_res_ln": "mixing_attnresln_n",
    "mixing_weights": "mixing_attn_w",
    "mixing_res_weights": "mixing_attnres_w",
}


def test_maps_of_blocks_are_the_published_figures(reference, oracles):
    model, inputs, _ = reference
    published = np.load(oracles / "tiny_kobayashi2021.npz")
    maps = attention_maps(model, inputs, tuple(BLOCK_QUANTITIES))
    pairs, queries = real(inputs), inputs["attention_mask"].bool()
    for name, theirs in BLOCK_QUANTITIES.items():
        for found, expected in zip(getattr(maps, name), published[theirs], strict=True):
            kept = pairs if found.ndim == 3 else queries
            torch.testing.assert_close(found[kept], torch.from_numpy(expected)[kept], **EXACT)


def test_block_norms_are_rows_of_the_published_maps(reference, oracles):
    model, inputs, _ = reference
    published = np.load(oracles / "tiny_kobayashi2021.npz")
    ids, *extras = inputs.values()
    for arguments, theirs in (({}, "attnresln_n"), ({"layer_norm": False}, "attnres_n")):
        expected = torch.from_numpy(published[theirs])
        found = AttentionBlockNorm(model, **arguments).attribute(ids, additional_forward_args=tuple(extras))
        torch.testing.assert_close(found, expected.mean(0)[:, 0] * inputs["attention_mask"], **EXACT)
        method = LayerAttentionBlockNorm(model, model.bert.encoder.layer[2], **arguments)
        found = method.attribute(ids, additional_forward_args=tuple(extras))
        torch.testing.assert_close(found[real(inputs)], expected[2][real(inputs)], **EXACT)


def test_globenc_is_the_published_globenc(reference, oracles):
    model, inputs, forward = reference
    published = np.load(oracles / "tiny_globenc.npz")
    maps = attention_maps(model, inputs, "globenc_norms")
    for found, expected in zip(maps.globenc_norms, published["n_enc"], strict=True):
        torch.testing.assert_close(found[real(inputs)], torch.from_numpy(expected)[real(inputs)], **EXACT)
    ids, *extras = inputs.values()
    method = GlobEnc(model)
    found = method.attribute(ids, additional_forward_args=tuple(extras), position="all")
    row = method.attribute(ids, additional_forward_args=tuple(extras))
    for example, length in enumerate(forward["lengths"].tolist()):
        for name in (f"globenc_rollout_unpadded_{example}", "globenc_rollout"):
            expected = torch.from_numpy(published[name])
            expected = expected[example, :length, :length] if expected.ndim == 3 else expected
            torch.testing.assert_close(found[example, :length, :length], expected, **EXACT)
            torch.testing.assert_close(row[example, :length], expected[0], **EXACT)


@pytest.mark.parametrize(("p", "suffix"), [(1, ""), (2, "_l2")])
def test_alti_is_the_published_alti_but_for_eps(reference, oracles, p, suffix):
    """Their norm divides without the model's eps, and 1e-6 is added to each coordinate; the class does neither."""
    model, inputs, forward = reference
    published = np.load(oracles / "tiny_alti.npz")
    ids, *extras = inputs.values()
    every = ALTI(model, p=p).attribute(ids, additional_forward_args=tuple(extras), position="all")
    for example, length in enumerate(forward["lengths"].tolist()):
        one = {name: tensor[example : example + 1, :length] for name, tensor in inputs.items()}
        with torch.no_grad(), recording(blocks=True) as records:
            model(**one)
        maps = [alti_as_published(record, p) for record in records]
        expected = torch.from_numpy(published[f"contrib{suffix}_{example}"])
        torch.testing.assert_close(torch.cat(maps), expected, **EXACT)
        rolled = torch.from_numpy(published[f"rollout{suffix}_{example}"])
        torch.testing.assert_close(rollout(maps)[0], rolled[-1], **EXACT)
        away = (every[example, :length, :length] - rolled[-1]).abs().max().item()
        assert 1e-7 < away < 1e-4


def alti_as_published(record, p):
    """The contributions of a record's block as the authors' code computes them."""
    block = record.block
    return alti(
        record.weights, record.values, record.W_O, block.residual, block.norm, p=p, as_published=True,
        residual_key=block.residual_key,
    )  # fmt: skip


@pytest.fixture(scope="module")
def translation(oracles):
    """A tiny BART, its inputs, and the contributions that ALTI+ found in it."""
    published = np.load(oracles / "altiplus_bart_popstd.npz")
    weights = np.load(oracles / "altiplus_bart_weights.npz")
    config = BartConfig(**json.loads(str(published["config"])))
    model = BartModel(config).double().eval()
    missing, unexpected = model.load_state_dict(
        {name: torch.from_numpy(weights[name]) for name in weights.files if weights[name].dtype.kind == "f"},
        strict=False,
    )
    assert not unexpected, unexpected
    assert all("embed_tokens" in name for name in missing), missing
    return model, published


@pytest.mark.parametrize("p", [1, 2])
def test_alti_plus_is_the_published_alti_plus_but_for_eps(translation, p):
    model, published = translation
    given = torch.from_numpy(published["src"])[None], torch.from_numpy(published["tgt"])[None]
    with torch.no_grad(), recording(sources=given, blocks=True) as records:
        model(given[0], decoder_input_ids=given[1])
    assert len(records) == 9
    for record in records:
        side, _, layer, attention = record.call.name.split(".")
        name, layer = f"{side}.{attention}", int(layer)
        expected = torch.from_numpy(published[f"contrib/l{p}_min_sum/{name}"][:, layer])
        torch.testing.assert_close(alti_as_published(record, p), expected, **EXACT)
    source, prefix = ALTI(HFForward(model), p=p).attribute(given, position="all")
    total = torch.cat([source, prefix], dim=-1)
    torch.testing.assert_close(total.sum(-1), torch.ones(total.shape[:2], dtype=torch.float64), **EXACT)
    away = (total[0] - torch.from_numpy(published[f"rollout/l{p}/total"][-1])).abs().max().item()
    assert 1e-9 < away < 1e-4
