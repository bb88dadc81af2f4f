"""The figures are those of the papers' own code, on a tiny BERT with padded sentences, in float64."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_norm.functional import (
    FrozenNorm,
    alti,
    block_quantities,
    flow,
    globenc_norms,
    head_norms,
    rollout,
    rollout_encoder_decoder,
    summed_norms,
    transformed_norms,
)

EXACT = {"rtol": 1e-10, "atol": 1e-10}


class TinyBERT:
    """What the forward pass of the reference left behind: weights, values and W_O of each layer."""

    def __init__(self, oracles: Path) -> None:
        self.forward = np.load(oracles / "tiny_forward.npz")
        self.parameters = np.load(oracles / "tiny_weights.npz")
        config = json.loads(str(self.forward["config"]))
        self.heads, self.layers = config["num_attention_heads"], range(config["num_hidden_layers"])
        self.eps = config["layer_norm_eps"]
        self.lengths = self.forward["lengths"].tolist()

    def parameter(self, layer: int, name: str, part: str = "attention.") -> Tensor:
        return torch.from_numpy(self.parameters[f"bert.encoder.layer.{layer}.{part}{name}"])

    def weights(self, layer: int) -> Tensor:
        return torch.from_numpy(self.forward["attentions"][layer])

    def values(self, layer: int) -> Tensor:
        x = torch.from_numpy(self.forward["hidden_states"][layer])
        v = x @ self.parameter(layer, "self.value.weight").T + self.parameter(layer, "self.value.bias")
        return v.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def projection(self, layer: int) -> Tensor:
        return self.parameter(layer, "output.dense.weight").T.unflatten(0, (self.heads, -1))

    def linear(self, layer: int, name: str, x: Tensor) -> Tensor:
        weight, bias = (self.parameter(layer, f"{name}.{which}", part="") for which in ("weight", "bias"))
        return x @ weight.T + bias

    def norm(self, layer: int, name: str, state: Tensor) -> FrozenNorm:
        weight, bias = (self.parameter(layer, f"{name}.LayerNorm.{which}", part="") for which in ("weight", "bias"))
        return FrozenNorm(state, weight, bias, eps=self.eps)

    def block(self, layer: int, sentence: int | None = None) -> dict:
        """The arguments of block_quantities; of one sentence without its padding, if asked for."""
        x = torch.from_numpy(self.forward["hidden_states"][layer])
        weights, values = self.weights(layer), self.values(layer)
        if sentence is not None:
            one, real = slice(sentence, sentence + 1), slice(self.lengths[sentence])
            x, weights, values = x[one, real], weights[one, :, real, real], values[one, :, real]
        attended = self.linear(layer, "attention.output.dense", (weights @ values).transpose(1, 2).flatten(2))
        norm = self.norm(layer, "attention.output", attended + x)
        hidden = torch.nn.functional.gelu(self.linear(layer, "intermediate.dense", norm.output()))
        second = self.norm(layer, "output", self.linear(layer, "output.dense", hidden) + norm.output())
        attention = {"weights": weights, "values": values, "W_O": self.projection(layer)}
        return attention | {"residual": x, "norm": norm, "second_norm": second}


@pytest.fixture(scope="module")
def bert(oracles: Path) -> TinyBERT:
    return TinyBERT(oracles)


def test_norms_are_those_of_kobayashi_2020(bert, oracles):
    published = np.load(oracles / "tiny_kobayashi2020.npz")
    for layer in bert.layers:
        weights, values, W_O = bert.weights(layer), bert.values(layer), bert.projection(layer)
        found = {
            "fx_norm": transformed_norms(values, W_O),
            "head_norm": head_norms(weights, values, W_O),
            "summed_norm": summed_norms(weights, values, W_O),
        }
        for name, norms in found.items():
            torch.testing.assert_close(norms, torch.from_numpy(published[name][layer]), **EXACT)
        in_float32 = summed_norms(weights.float(), values.float(), W_O.float())
        torch.testing.assert_close(in_float32, found["summed_norm"].float(), rtol=5e-6, atol=1e-7)


@pytest.mark.parametrize(("residual", "name"), [(True, "rollout"), (False, "rollout_nores")])
def test_rollout_is_that_of_abnar_and_zuidema(bert, oracles, residual, name):
    """Their figures hold the product up to each layer, sentence by sentence, without padding."""
    published = np.load(oracles / "tiny_rollout_flow.npz")
    for sentence, length in enumerate(bert.lengths):
        maps = [bert.weights(layer)[sentence, :, :length, :length].mean(dim=0)[None] for layer in bert.layers]
        expected = torch.from_numpy(published[f"{name}_{sentence}"])
        for layer in bert.layers:
            found = rollout(maps[: layer + 1], residual)
            torch.testing.assert_close(found[0], expected[layer], **EXACT)
        row = rollout(maps, residual, position=0)
        torch.testing.assert_close(row[0], expected[-1, 0], **EXACT)


def test_the_blocks_are_those_of_the_reference(bert):
    """Completeness: what the second norm gives out is the next layer's input."""
    for layer in bert.layers:
        expected = torch.from_numpy(bert.forward["hidden_states"][layer + 1])
        torch.testing.assert_close(bert.block(layer)["second_norm"].output(), expected, **EXACT)


def test_block_norms_and_mixing_ratios_are_those_of_kobayashi_2021(bert, oracles):
    published = np.load(oracles / "tiny_kobayashi2021.npz")
    names = {
        "res_norms": "attnres_n",
        "res_ln_norms": "attnresln_n",
        "mixing_attn": "mixing_attn_n",
        "mixing_res": "mixing_attnres_n",
        "mixing_res_ln": "mixing_attnresln_n",
        "mixing_weights": "mixing_attn_w",
        "mixing_res_weights": "mixing_attnres_w",
    }
    for layer in bert.layers:
        for name, found in block_quantities(list(names), **bert.block(layer)).items():
            torch.testing.assert_close(found, torch.from_numpy(published[names[name]][layer]), **EXACT)


def test_encoder_norms_and_their_rollout_are_those_of_globenc(bert, oracles):
    published = np.load(oracles / "tiny_globenc.npz")
    for layer in bert.layers:
        expected = torch.from_numpy(published["n_enc"][layer])
        torch.testing.assert_close(globenc_norms(**bert.block(layer)), expected, **EXACT)
    for sentence, length in enumerate(bert.lengths):
        found = rollout([globenc_norms(**bert.block(layer, sentence)) for layer in bert.layers])
        expected = torch.from_numpy(published[f"globenc_rollout_unpadded_{sentence}"])
        torch.testing.assert_close(found[0], expected, **EXACT)
        padded = torch.from_numpy(published["globenc_rollout"][sentence, :length, :length])
        torch.testing.assert_close(found[0], padded, **EXACT)


@pytest.mark.parametrize(("p", "suffix"), [(1, ""), (2, "_l2")])
def test_contributions_and_their_rollout_are_those_of_alti(bert, oracles, p, suffix):
    """The authors' code leaves out eps and adds 1e-6 to each coordinate: about 1e-4 away from the model's own."""
    published = np.load(oracles / "tiny_alti.npz")
    for sentence in range(len(bert.lengths)):
        maps, away = [], []
        for layer in bert.layers:
            block = {name: part for name, part in bert.block(layer, sentence).items() if name != "second_norm"}
            expected = torch.from_numpy(published[f"contrib{suffix}_{sentence}"][layer])
            maps.append(alti(**block, p=p, as_published=True))
            torch.testing.assert_close(maps[-1][0], expected, **EXACT)
            away.append((alti(**block, p=p)[0] - expected).abs().max().item())
            rolled = torch.from_numpy(published[f"rollout{suffix}_{sentence}"][layer])
            torch.testing.assert_close(rollout(maps)[0], rolled, **EXACT)
        assert 1e-6 < max(away) < 2e-4


def test_flow_is_that_of_abnar_and_zuidema(bert, oracles):
    published = np.load(oracles / "tiny_rollout_flow.npz")
    for sentence, length in enumerate(bert.lengths):
        maps = [bert.weights(layer)[sentence, :, :length, :length].mean(dim=0)[None] for layer in bert.layers]
        expected = torch.from_numpy(published[f"flow_last_layer_{sentence}"])
        torch.testing.assert_close(flow(maps, residual=True)[0], expected, **EXACT)
        torch.testing.assert_close(flow(maps, residual=True, position=0)[0], expected[0], **EXACT)


class TinyBART:
    """What the forward pass of the reference left behind, and the blocks of attention in it."""

    def __init__(self, oracles: Path) -> None:
        self.forward = np.load(oracles / "altiplus_bart_popstd.npz")
        self.parameters = np.load(oracles / "altiplus_bart_weights.npz")
        config = json.loads(str(self.forward["config"]))
        self.heads, self.layers = config["encoder_attention_heads"], range(config["encoder_layers"])

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ torch.from_numpy(self.parameters[f"{name}.weight"]).T + torch.from_numpy(
            self.parameters[f"{name}.bias"]
        )

    def block(self, name: str, weights: Tensor, x: Tensor, keys: Tensor) -> dict:
        values = self.linear(f"{name}.v_proj", keys).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = self.linear(f"{name}.out_proj", (weights @ values).transpose(1, 2).flatten(2))
        gamma, beta = (torch.from_numpy(self.parameters[f"{name}_layer_norm.{w}"]) for w in ("weight", "bias"))
        W_O = torch.from_numpy(self.parameters[f"{name}.out_proj.weight"]).T.unflatten(0, (self.heads, -1))
        norm = FrozenNorm(attended + x, gamma, beta)
        return {"weights": weights, "values": values, "W_O": W_O, "residual": x, "norm": norm}

    def blocks(self, layer: int) -> dict[str, dict]:
        """Those of one layer, by the reference's names; cross-attention with a column for the residual."""
        of = {name: torch.from_numpy(self.forward[name]) for name in self.forward.files if name.endswith("s")}
        source, target = of["encoder_hidden_states"], of["decoder_hidden_states"]
        name = f"layers.{layer}."
        encoder = self.block(f"encoder.{name}self_attn", of["encoder_attentions"][layer], source[layer], source[layer])
        decoder = self.block(f"decoder.{name}self_attn", of["decoder_attentions"][layer], target[layer], target[layer])
        state = decoder["norm"].output()
        cross = self.block(f"decoder.{name}encoder_attn", of["cross_attentions"][layer], state, source[-1])
        cross["residual_key"] = "column"
        return {"encoder.self_attn": encoder, "decoder.self_attn": decoder, "decoder.encoder_attn": cross}


@pytest.fixture(scope="module")
def bart(oracles: Path) -> TinyBART:
    return TinyBART(oracles)


@pytest.mark.parametrize("p", [1, 2])
def test_contributions_and_total_rollout_are_those_of_alti_plus(bart, p):
    maps: dict[str, list[Tensor]] = {"encoder.self_attn": [], "decoder.self_attn": [], "decoder.encoder_attn": []}
    for layer in bart.layers:
        for name, block in bart.blocks(layer).items():
            maps[name].append(alti(**block, p=p, as_published=True))
            expected = torch.from_numpy(bart.forward[f"contrib/l{p}_min_sum/{name}"][:, layer])
            torch.testing.assert_close(maps[name][-1], expected, **EXACT)
    encoder, decoder, cross = maps.values()
    for layer in bart.layers:
        source, prefix = rollout_encoder_decoder(encoder, decoder[: layer + 1], cross[: layer + 1])
        expected = torch.from_numpy(bart.forward[f"rollout/l{p}/total"][layer])
        torch.testing.assert_close(torch.cat([source, prefix], dim=-1)[0], expected, **EXACT)
        rolled = torch.from_numpy(bart.forward[f"rollout/l{p}/encoder.self_attn"][layer])
        torch.testing.assert_close(rollout(encoder[: layer + 1])[0], rolled, **EXACT)


def test_norms_of_cross_attention_have_the_residual_last_as_in_alti_plus(bart):
    """Their norms divide without eps."""
    for layer in bart.layers:
        for name, block in bart.blocks(layer).items():
            block["norm"] = replace(block["norm"], eps=0.0)
            found = block_quantities(["res_ln_norms"], **block)["res_ln_norms"]
            expected = torch.from_numpy(bart.forward[f"contrib/koba_None/{name}"][:, layer])
            torch.testing.assert_close(found, expected, **EXACT)
