"""ValueZeroing along the model: products of a layer's shares, on every architecture and both sides of a decoder."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from captum_norm.attr import ValueZeroing
from captum_norm.capture import InexactCaptureError, recording
from captum_norm.functional import rollout, value_zeroing_shares
from captum_norm.intervention import Outline, value_zeroing_maps
from tests.architectures import ARCHITECTURES

from .models import ids, tell_calls, tiny

close = torch.testing.assert_close


def raw_maps(run: Any) -> list[Tensor]:
    outlines: list[Outline] = []
    with torch.no_grad(), recording(lambda record: outlines.append(Outline.of(record))):
        run()
    return [one.scores for one in value_zeroing_maps(run, outlines)]


@pytest.mark.parametrize("family", ["Bert", "GPT2", "Llama"])
def test_it_is_the_plain_product_of_shares(family):
    model, tokens = tiny(family).double(), ids(2, 6)
    shares = [value_zeroing_shares([scores])[0] for scores in raw_maps(lambda: model(tokens))]
    found = ValueZeroing(model).attribute(tokens, position="all")
    close(found, rollout(shares), rtol=0, atol=1e-12)
    close(found.sum(-1), torch.ones(2, 6).double())
    if family != "Bert":
        assert (found.triu(1) == 0).all()


@pytest.mark.parametrize("family", ["Bart", "T5"])
def test_a_decoder_layer_shares_what_it_takes_from_prefix_and_source(family):
    model = tiny(family).double()
    source, prefix = ids(2, 6), ids(2, 4, seed=1)
    e1, e2, s1, c1, s2, c2 = raw_maps(lambda: model(source, decoder_input_ids=prefix))
    encoded = rollout([value_zeroing_shares([scores])[0] for scores in (e1, e2)])
    (s1, c1), (s2, c2) = value_zeroing_shares([s1, c1]), value_zeroing_shares([s2, c2])
    method = ValueZeroing(lambda source, prefix: model(source, decoder_input_ids=prefix).logits)
    of_source, of_prefix = method.attribute((source, prefix), position="all")
    close(of_prefix, s2 @ s1, rtol=0, atol=1e-12)
    close(of_source, s2 @ (c1 @ encoded) + c2 @ encoded, rtol=0, atol=1e-12)
    close(of_source.sum(-1) + of_prefix.sum(-1), torch.ones(2, 4).double())
    own = method.attribute((source, prefix), position="all", kind="self")
    s1, s2 = (s / s.sum(-1, keepdim=True) for s in (s1, s2))
    close(own, (encoded, s2 @ s1), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r'ends there if its cross-attention alone counts.*kind="self"'):
        method.attribute((source, prefix), kind="cross")


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_rows_sum_to_one_on_every_architecture(architecture):
    model, batch = architecture.build(), architecture.batch()
    names = list(batch)[-1:] if architecture.name == "Whisper" else list(batch)  # sound has no positions of its own
    fixed = {name: value for name, value in batch.items() if name not in names}
    method = ValueZeroing(lambda *given: model(**fixed, **dict(zip(names, given, strict=True))))
    scores = method.attribute(tuple(batch[name] for name in names), kind="self" if fixed else None)
    left_out = sum(method.report.left_out) if architecture.name == "ViT" else 0  # the class token is no patch
    assert all((one >= 0).all() for one in scores)
    tolerance = 1e-6 if architecture.only_float32 else 1e-12
    total = sum(one.flatten(1).sum(1) for one in scores) + left_out
    close(total, torch.ones_like(total), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "Llama", "Mixtral", "T5", "BART"])
def test_a_layer_is_called_less_often_than_it_has_keys(name):
    """The most there may be is a call for each key."""
    if name == "Mixtral" and int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("its experts ask which tokens are theirs, so that its layers run key by key")
    architecture = ARCHITECTURES[name]
    model, batch = architecture.build(), architecture.batch()
    calls: dict[nn.Module, int] = {}

    def count(module: nn.Module) -> None:
        calls[module] = calls.get(module, 0) + 1

    for module in model.modules():
        if any(kind.__name__ == "GradientCheckpointingLayer" for kind in type(module).__mro__):
            tell_calls(module, partial(count, module))
    ValueZeroing(lambda *given: model(**dict(zip(batch, given, strict=True)))).attribute(tuple(batch.values()))
    assert len(calls) >= 2
    assert max(calls.values()) <= 6


def test_keys_at_once_bounds_the_replays_and_changes_nothing():
    model, calls = tiny("Bert").double(), []
    whole = ValueZeroing(model).attribute(ids(2, 6))
    tell_calls(model.bert.encoder.layer[1], lambda: calls.append(1))
    close(ValueZeroing(model, keys_at_once=2).attribute(ids(2, 6)), whole, rtol=0, atol=1e-12)
    bits = (2 * 6 - 1).bit_length()  # of the numbers of the queries, by which rows are known
    assert len(calls) == 3 + math.ceil((1 + 2 * bits + 6) / 2)  # read, seen, repeated; then two lanes each
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="keys_at_once should be a number of keys from 1 on"):
            ValueZeroing(model, keys_at_once=wrong)


def test_layers_may_be_named():
    model = tiny("Bert")
    named = ValueZeroing(model, layers=list(model.bert.encoder.layer))
    close(named.attribute(ids(2, 6)), ValueZeroing(model).attribute(ids(2, 6)))
    half = ValueZeroing(model, layers=[model.bert.encoder.layer[0]])
    with pytest.raises(ValueError, match=r"'bert\.encoder\.layer\.1.* runs in none of the 1 modules given as layers="):
        half.attribute(ids(2, 6))


def test_a_model_that_draws_random_numbers_is_refused():
    model = tiny("Bert").train()
    with pytest.raises(InexactCaptureError, match=r"training mode: its dropout .*model\.eval\(\)"):
        ValueZeroing(model).attribute(ids(2, 6))


class AllInOne(nn.Module):
    """A layer whose weights, values and W_O meet in one einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.W_O = nn.Parameter(torch.randn(2, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (2, 4)).transpose(1, 2)
        return x + torch.einsum("bhnm,bhme,hed->bnd", (heads @ heads.mT).softmax(-1), heads, self.W_O)


def test_weights_that_meet_values_and_projection_at_once_are_refused():
    model = nn.Sequential(AllInOne(), AllInOne()).eval()
    with pytest.raises(InexactCaptureError, match=r"weights, values and W_O meet in one operation, 'einsum'"):
        ValueZeroing(model).attribute(torch.randn(2, 5, 8))


def test_a_row_that_no_key_changes_is_zero_with_a_warning():
    """W_O erased in one layer: its outputs do not turn, whatever is zeroed."""
    model = tiny("GPT2")
    with torch.no_grad():
        model.transformer.h[1].attn.c_proj.weight.zero_()
    with pytest.warns(UserWarning, match=r"12 rows are zero.*no key changes these outputs"):
        found = ValueZeroing(model).attribute(ids(2, 6))
    assert (found == 0).all()


def test_the_models_own_random_numbers_are_drawn_as_in_one_forward():
    """A model that draws numbers outside its layers sees the same ones in each pass."""
    model = tiny("Bert").double()
    seen: list[Tensor] = []

    def forward(tokens: Tensor) -> Tensor:
        logits = model(tokens).logits
        seen.append(torch.rand(2))
        return logits

    model.bert.encoder.layer[0].register_forward_hook(lambda *_: torch.rand(1) and None)  # drawn, and of no use
    torch.manual_seed(1)
    ValueZeroing(forward).attribute(ids(2, 6))
    after = torch.rand(1)
    assert len({tuple(numbers.tolist()) for numbers in seen}) == 1
    torch.manual_seed(1)
    forward(ids(2, 6))
    assert torch.equal(torch.rand(1), after)


def test_autocast_and_compilation_leave_the_scores():
    model, tokens = tiny("Bert", "sdpa"), ids(2, 6)
    expected = ValueZeroing(model).attribute(tokens)
    close(ValueZeroing(torch.compile(model, backend="eager")).attribute(tokens), expected)
    with torch.autocast("cpu", torch.bfloat16):
        found = ValueZeroing(model).attribute(tokens)
    assert found.dtype is torch.float32
    close(found, expected, rtol=0, atol=0.02)
