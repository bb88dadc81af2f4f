"""Does a model look ahead?  Measured, seen by nobody, also in half precision."""

import copy
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
)

from captum_norm.forward import HFForward

from .models import CAUSAL, ENCODER, IDS, LOOKS_AHEAD, HandMade, call, model_of, text


@pytest.mark.parametrize("name", [*CAUSAL, *LOOKS_AHEAD])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_the_row_is_the_last_real_token_of_a_causal_model_and_the_first_of_another(name, padding):
    model, encoding = model_of(name), text(padding)
    with torch.no_grad():
        logits = model(**encoding).logits
    real = [row.nonzero().flatten().tolist() for row in encoding["attention_mask"]]
    rows = [r[-1] if name in CAUSAL else r[0] for r in real]
    assert torch.equal(call(HFForward(model), encoding), logits[range(3), rows])


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_causal_models_are_told_in_half_precision(name, dtype):
    model = copy.deepcopy(model_of(name)).to(dtype)
    found = call(HFForward(model), text())
    assert found.dtype == dtype
    assert torch.equal(found[1], model(**text()).logits[1, 4])


def test_a_small_model_that_looks_ahead_is_told_in_half_precision():
    """With default weights and bfloat16 the other tokens barely move the first row."""
    model = BertModel(BertConfig(**ENCODER | {"initializer_range": 0.02})).to(torch.bfloat16).eval()
    assert torch.equal(call(HFForward(model), text())[0], model(**text()).last_hidden_state[0, 0])


def test_a_decoder_made_bidirectional_is_no_longer_causal():
    config = BertConfig(**ENCODER | {"is_decoder": True})
    causal, model = BertForMaskedLM(config).eval(), BertForMaskedLM(BertConfig(**ENCODER)).eval()
    model.load_state_dict(causal.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [call(HFForward(m), text()) for m in (causal, model)]
    assert torch.equal(rows[0], causal(**text()).logits[range(3), [6, 4, 2]])
    assert torch.equal(rows[1], model(**text()).logits[:, 0])


def test_measuring_causality_is_seen_by_nobody():
    """Not by a mode around the call, nor by the random generator; and it is done once."""
    model, runs = copy.deepcopy(model_of("gpt2")).train(), []
    model.register_forward_pre_hook(lambda *args: runs.append(threading.get_ident()))

    class Count(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            Count.calls += func is nn.functional.embedding
            return func(*args, **(kwargs or {}))

    forward = HFForward(model)
    arguments = forward.inputs(text())
    with Count(), torch.inference_mode():
        torch.manual_seed(3)
        first = forward(arguments["inputs"], *arguments["additional_forward_args"])
        after_first = torch.get_rng_state()
        torch.manual_seed(3)
        second = forward(arguments["inputs"], *arguments["additional_forward_args"])
    assert torch.equal(torch.get_rng_state(), after_first)
    assert torch.equal(first, second)
    assert Count.calls == 2 * 2  # tokens and positions, twice
    assert len(runs) == 3
    assert runs.count(threading.get_ident()) == 2
    assert all(p.grad is None for p in model.parameters())


def test_a_model_whose_causality_cannot_be_measured_asks_for_the_position():
    model = HandMade()
    model.forward = lambda input_ids: model.weight[input_ids]
    with pytest.raises(ValueError, match=r"cannot be measured.*Give position: -1, 0"):
        HFForward(model, names=())(torch.tensor([[3, 4, 5]]))
    assert HFForward(model, names=(), position=-1)(torch.tensor([[3, 4, 5]])).shape == (1, 4)


def test_causality_is_measured_where_the_model_adds_to_its_embeddings_in_place():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 4)

        def forward(self, input_ids):
            embeds = self.table(input_ids)
            embeds += 1.0
            return embeds.cumsum(1)

    model = InPlace()
    torch.testing.assert_close(HFForward(model)(IDS), model(IDS)[:, -1])


def test_causality_is_measured_on_an_example_with_more_than_one_token():
    """The first example has one real token, which depends on nothing else in any model."""
    encoding = {"input_ids": text()["input_ids"], "attention_mask": text()["attention_mask"].clone()}
    encoding["attention_mask"][0, 1:] = 0
    with torch.no_grad():
        expected = model_of("roberta")(**encoding).logits[:, 0]
    assert torch.equal(call(HFForward(model_of("roberta")), encoding), expected)
