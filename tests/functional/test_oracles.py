"""The figures are those of the papers' own code, on a tiny BERT with padded sentences, in float64."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_norm.functional import head_norms, rollout, summed_norms, transformed_norms

EXACT = {"rtol": 1e-10, "atol": 1e-10}


class TinyBERT:
    """What the forward pass of the reference left behind: weights, values and W_O of each layer."""

    def __init__(self, oracles: Path) -> None:
        self.forward = np.load(oracles / "tiny_forward.npz")
        self.parameters = np.load(oracles / "tiny_weights.npz")
        config = json.loads(str(self.forward["config"]))
        self.heads, self.layers = config["num_attention_heads"], range(config["num_hidden_layers"])
        self.lengths = self.forward["lengths"].tolist()

    def parameter(self, layer: int, name: str) -> Tensor:
        return torch.from_numpy(self.parameters[f"bert.encoder.layer.{layer}.attention.{name}"])

    def weights(self, layer: int) -> Tensor:
        return torch.from_numpy(self.forward["attentions"][layer])

    def values(self, layer: int) -> Tensor:
        x = torch.from_numpy(self.forward["hidden_states"][layer])
        v = x @ self.parameter(layer, "self.value.weight").T + self.parameter(layer, "self.value.bias")
        return v.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def projection(self, layer: int) -> Tensor:
        return self.parameter(layer, "output.dense.weight").T.unflatten(0, (self.heads, -1))


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
