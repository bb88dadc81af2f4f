"""Layers are run again without the values of a key: what they then give out, and which layers they are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import AlbertConfig, AlbertModel, XLNetConfig, XLNetModel

from captum_norm.capture import InexactCaptureError, recording
from captum_norm.intervention import Outline, value_zeroing_maps
from tests.attr.models import ids, tell_calls, tiny

close = torch.testing.assert_close


def maps_of(run: Callable[[], Any], **options: Any) -> tuple[list[Tensor], list[Outline]]:
    """The scores of every call of a forward."""
    outlines: list[Outline] = []
    with torch.no_grad():
        with recording(lambda record: outlines.append(Outline.of(record))):
            run()
        return [found.scores for found in value_zeroing_maps(run, outlines, **options)], outlines


def slow_scores(layer: nn.Module, value: nn.Module, part: slice, run: Callable[[], Any], keys: int) -> Tensor:
    """1 - cos as the paper has it: the layer's own value projection loses a position, one layer call for each.

    Args:
        layer: the layer.
        value: the module in it that makes the values, (batch, key, ...).
        part: which of its outputs are values.
        run: runs the model.
        keys: how many positions there are.
    """
    given: list[tuple[Any, Any, Any]] = []

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        kwargs = {k: None if hasattr(v, "get_seq_length") else v for k, v in kwargs.items()}
        args = tuple(None if hasattr(v, "get_seq_length") else v for v in args)
        given.append((args, kwargs, output))

    handle = layer.register_forward_hook(keep, with_kwargs=True)
    with torch.no_grad():
        run()
        handle.remove()
        ((args, kwargs, output),) = given
        scores = []
        for key in range(keys):

            def without(module: nn.Module, args: Any, output: Tensor, key: int = key) -> Tensor:
                output = output.clone()
                output[:, key, part] = 0
                return output

            handle = value.register_forward_hook(without)
            changed = first(layer(*args, **kwargs))
            handle.remove()
            scores.append(1 - cosine_similarity(changed, first(output), dim=-1))
    return torch.stack(scores, -1)


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


ALL = slice(None)
PLACES: dict[str, tuple[str, list[tuple[str, str, slice]]]] = {
    "Bert": ("bert.encoder.layer.1", [("attention.self.value", "encoder", ALL)]),
    "GPT2": ("transformer.h.1", [("attn.c_attn", "encoder", slice(32, 48))]),
    "Llama": ("model.layers.1", [("self_attn.v_proj", "encoder", ALL)]),
    "Bart": ("model.decoder.layers.1", [("self_attn.v_proj", "decoder", ALL), ("encoder_attn.v_proj", "encoder", ALL)]),
    "T5": (
        "decoder.block.1",
        [("layer.0.SelfAttention.v", "decoder", ALL), ("layer.1.EncDecAttention.v", "encoder", ALL)],
    ),
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", PLACES)
def test_scores_are_those_of_a_layer_whose_value_projection_loses_a_position(family, attention):
    model = tiny(family, "eager" if family == "T5" else attention).double()
    inputs = {"input_ids": ids(2, 6), "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}
    if family in ("Bart", "T5"):
        inputs["decoder_input_ids"] = ids(2, 5, seed=1)
    found, outlines = maps_of(lambda: model(**inputs))
    name, places = PLACES[family]
    layer = model.get_submodule(name)
    calls = [n for n, outline in enumerate(outlines) if any(layer is m for m in outline.record.call.modules)]
    assert len(calls) == len(places)
    for call, (value, axis, part) in zip(calls, places, strict=True):
        keys = inputs["input_ids" if axis == "encoder" else "decoder_input_ids"].shape[1]
        expected = slow_scores(layer, layer.get_submodule(value), part, lambda: model(**inputs), keys)
        real = outlines[call].record.query_mask
        expected = expected if real is None else expected.masked_fill(~real[..., None], 0)
        close(found[call], expected, rtol=0, atol=1e-7 if family in ("Llama", "T5") else 1e-12)  # these cast
        assert float(expected.max()) > 1e-4


def test_keys_taken_at_once_change_nothing_but_the_number_of_calls():
    model, calls = tiny("GPT2").double(), []
    model.transformer.h[0].register_forward_hook(lambda *_: calls.append(1))
    whole, _ = maps_of(lambda: model(ids(2, 8)))
    assert len(calls) <= 8  # recorded, watched, repeated, its rows told, and all keys at once
    some, _ = maps_of(lambda: model(ids(2, 8)), keys_at_once=3)
    close(some, whole, rtol=0, atol=1e-12)


def test_the_calls_asked_for_alone_are_computed():
    model = tiny("Bert")
    outlines: list[Outline] = []
    calls: list[int] = []
    with torch.no_grad(), recording(lambda record: outlines.append(Outline.of(record))):
        model(ids(2, 6))
    model.bert.encoder.layer[0].register_forward_hook(lambda *_: calls.append(1))
    [found] = value_zeroing_maps(lambda: model(ids(2, 6)), outlines, outlines[1:])
    assert calls == [1]
    close(found.scores, maps_of(lambda: model(ids(2, 6)))[0][1])


def test_an_outline_keeps_no_weights():
    model, outlines = tiny("Bert"), []
    with torch.no_grad(), recording(lambda record: outlines.append(Outline.of(record))):
        model(ids(2, 6))
    record = outlines[0].record
    assert record.weights.shape == (2, 4, 6, 6)
    assert record.weights.untyped_storage().nbytes() == record.values.untyped_storage().nbytes() == 4


def test_a_query_before_a_key_is_not_touched():
    for model in (tiny("GPT2"), tiny("Llama")):
        for scores in maps_of(lambda model=model: model(ids(2, 6)))[0]:
            assert (scores.triu(1) == 0).all()
            assert (scores.tril().diagonal(dim1=1, dim2=2) > 0).all()


# which module is the layer


class Block(nn.Module):
    """A pre-LN block that says nothing of being a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm, self.up = (
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.LayerNorm(8),
            nn.Linear(8, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.up(x).relu()


class Stack(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def built(*blocks: nn.Module) -> Stack:
    return Stack(*blocks).double().eval()


X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)).double()


def test_a_layer_is_known_by_handing_its_output_to_another_of_its_kind():
    model = built(Block(), Block())
    calls: dict[nn.Module, int] = dict.fromkeys(model.modules(), 0)

    def count(module: nn.Module) -> None:
        calls[module] += 1

    for module in model.modules():
        tell_calls(module, partial(count, module))
    found, _ = maps_of(lambda: model(X))
    assert calls[model.blocks[0]] > calls[model] == 3  # recorded, layers found, watched
    given, _ = maps_of(lambda: model(X), layers=list(model.blocks))
    close(found, given, rtol=0, atol=0)


def test_one_module_for_all_layers_is_a_layer_each_time():
    albert = AlbertModel(
        AlbertConfig(vocab_size=60, embedding_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=4,
                     intermediate_size=24, max_position_embeddings=32)
    ).double().eval()  # fmt: skip
    found, outlines = maps_of(lambda: albert(ids(2, 6)))
    assert len({outline.record.call.module for outline in outlines}) == 1
    assert len(found) == 3
    block = Block()
    once, twice = built(block, block), built(block, Block())
    shared, _ = maps_of(lambda: once(X))
    apart, _ = maps_of(lambda: twice(X))
    close(shared[0], apart[0])
    assert not torch.allclose(shared[1], apart[1])


class Looking(nn.Module):
    """Half a layer: attention and its residual."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x, need_weights=False)[0]


class LookingAgain(Looking):
    """The other half, of another kind."""


def test_half_a_layer_that_hands_its_output_to_the_other_half_is_none():
    layers = [nn.Sequential(Looking(), LookingAgain()) for _ in range(2)]
    model = built(*layers)
    found, _ = maps_of(lambda: model(X))
    whole, _ = maps_of(lambda: model(X), layers=layers)
    close(found, whole, rtol=0, atol=0)


def test_a_single_layer_has_to_be_named_unless_its_class_says_so():
    model = built(Block())
    with pytest.raises(ValueError, match=r"'blocks\.0\.attention'.*Stack, Block, MultiheadAttention.*layers="):
        maps_of(lambda: model(X))
    with pytest.raises(ValueError, match=r"runs in none of the 1 modules given as layers=, but in these: Stack, Block"):
        maps_of(lambda: model(X), layers=[model.blocks[0].norm])
    assert maps_of(lambda: model(X), layers=list(model.blocks))[0][0].shape == (3, 5, 5)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
    assert maps_of(lambda: layer(X))[0][0].shape == (3, 5, 5)


# which product is which call


class Written(nn.Module):
    """A layer that writes its attention itself: ``mixed`` makes of weights and values what W_O takes in.

    ``lost`` is a key whose values are zero.
    """

    def __init__(self, mixed: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.mixed, self.lost = mixed, -1
        self.norm, self.qkv, self.o = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        lost = (torch.arange(v.shape[2]) == self.lost)[:, None]
        return (q @ k.mT / 2).softmax(-1), torch.where(lost, 0, v) if self.lost >= 0 else v

    def forward(self, x: Tensor) -> Tensor:
        weights, values = self.heads(self.norm(x))
        return x + self.o(self.mixed(weights, values).transpose(1, 2).flatten(2))


def outlined(layer: nn.Module, *inputs: Tensor) -> tuple[list[Outline], list[InexactCaptureError]]:
    """The calls of a layer whose inputs are followed, and those of them that were not read."""
    outlines: list[Outline] = []
    refused: list[InexactCaptureError] = []
    with torch.no_grad(), recording(
        lambda record: outlines.append(Outline.of(record)), sources=inputs, on_inexact=refused.append
    ):  # fmt: skip
        layer(*inputs)
    return outlines, refused


def slow_turns(run: Callable[[], Tensor], layer: Any, keys: int) -> Tensor:
    """1 - cos of the outputs of a layer that can lose the values of a key, (batch, query, key)."""
    scores, output = [], run()
    for layer.lost in range(keys):
        scores.append(1 - cosine_similarity(run(), output, dim=-1))
    layer.lost = -1
    return torch.stack(scores, -1)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda w, v: torch.stack([(w @ v)[:, h] for h in range(2)], 1),
        lambda w, v: (w * torch.ones(5, 5).tril()) @ v + (w * torch.ones(5, 5).triu(1)) @ v,
        lambda w, v: torch.cat([(w @ v)[:, :, :2], (w @ v)[:, :, 2:]], 2),
        lambda w, v: torch.stack([w[:, h] @ v[:, h] for h in range(2)], 1),
    ],
    ids=["all heads again for each", "the keys before and behind", "all queries again for some", "one for each head"],
)
def test_a_call_of_several_products_is_refused_though_one_of_them_has_all_heads_queries_and_keys(mixed):
    layer = Written(mixed).double().eval()
    outlines, _ = outlined(layer, X)
    with pytest.raises(InexactCaptureError, match=r"mixed by several products.*layer that mixes all of them at once"):
        value_zeroing_maps(lambda: layer(X), outlines, layers=[layer])


class HalfUsed(Written):
    """The second head is computed and read by nothing."""

    def forward(self, x: Tensor) -> Tensor:
        weights, values = self.heads(self.norm(x))
        return x + nn.functional.linear((weights @ values)[:, 0], self.o.weight[:, :4], self.o.bias)


class ByHead(Written):
    """Each head has its own call of W_O."""

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.matmul(*self.heads(self.norm(x)))
        return x + sum(mixed[:, h] @ self.o.weight[:, 4 * h : 4 * h + 4].T for h in range(2)) + self.o.bias


@pytest.mark.parametrize("kind", [Written, HalfUsed, ByHead])
def test_a_product_is_known_by_those_of_its_heads_that_are_projected_one_by_one_or_together(kind):
    layer = kind(torch.matmul).double().eval()
    (found,), _ = maps_of(lambda: layer(X), layers=[layer])
    close(found, slow_turns(lambda: layer(X), layer, 5), rtol=0, atol=1e-12)


class TwoSources(nn.Module):
    """W_O takes in what it sees of itself, and then of a memory of the same length: but the memory is mixed first."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.own, self.its, self.o = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.lost, self.losing = -1, self.own

    def mixed(self, x: Tensor, source: Tensor, kv: nn.Linear) -> Tensor:
        k, v = kv(source).chunk(2, -1)
        if self.lost >= 0 and kv is self.losing:
            v = torch.where((torch.arange(v.shape[1]) == self.lost)[:, None], 0, v)
        return (self.q(x) @ k.mT).softmax(-1) @ v

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        of_memory = self.mixed(x, memory, self.its)
        return x + self.o(torch.cat([self.mixed(x, x, self.own), of_memory], -1))


@pytest.mark.parametrize("alike", [False, True])
def test_calls_that_are_projected_in_another_order_than_they_ran_in_have_their_own_scores(alike):
    """Even where all that they mix is the same, and W_O alone tells them apart."""
    layer, memory = TwoSources().double().eval(), X.clone() if alike else X.flip(2)
    if alike:
        layer.its.load_state_dict(layer.own.state_dict())
    outlines, _ = outlined(layer, X, memory)
    assert [outline.record.call.kind for outline in outlines] == ["self", "cross"]
    found = value_zeroing_maps(lambda: layer(X, memory), outlines, layers=[layer])
    for scores, losing in zip(found, (layer.own, layer.its), strict=True):
        layer.losing = losing
        expected = slow_turns(lambda: layer(X, memory), layer, 5)
        close(scores.scores, expected, rtol=0, atol=1e-12)


class AfterUnread(Written):
    """Two calls in one module: in the first, a key adds values of two kinds, which no record can say."""

    def first(self, weights: Tensor, values: Tensor) -> Tensor:
        return weights @ values + weights @ values.tanh()

    def forward(self, x: Tensor) -> Tensor:
        lost, self.lost = self.lost, -1
        x = x + self.o(self.first(*self.heads(self.norm(x))).transpose(1, 2).flatten(2))
        self.lost = lost
        return super().forward(x)


class AfterSeveral(AfterUnread):
    """The first of the two is read, of one product for each head."""

    def first(self, weights: Tensor, values: Tensor) -> Tensor:
        return torch.stack([weights[:, h] @ values[:, h] for h in range(2)], 1)


def test_a_call_of_one_product_behind_one_of_several_in_its_module_has_its_own_scores():
    layer = AfterSeveral(torch.matmul).double().eval()
    outlines, _ = outlined(layer, X)
    [found] = value_zeroing_maps(lambda: layer(X), outlines, outlines[1:], layers=[layer])
    close(found.scores, slow_turns(lambda: layer(X), layer, 5), rtol=0, atol=1e-12)
    with pytest.raises(InexactCaptureError, match="mixed by several products"):
        value_zeroing_maps(lambda: layer(X), outlines, layers=[layer])


def test_a_call_that_was_not_read_is_not_taken_for_the_next_one_of_its_module():
    layer = AfterUnread(torch.matmul).double().eval()
    outlines, refused = outlined(layer, X)
    assert len(outlines) == len(refused) == 1
    [found] = value_zeroing_maps(lambda: layer(X), outlines, layers=[layer])
    close(found.scores, slow_turns(lambda: layer(X), layer, 5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_layer_that_attends_to_something_else_or_in_another_order_when_it_is_run_again_is_refused(axis):
    layer, inputs = Written(torch.matmul).double().eval(), iter((X, X.flip(axis)))
    with pytest.raises(InexactCaptureError, match=r"Written \(call 0\): .* the same weights and values"):
        maps_of(lambda: layer(next(inputs)), layers=[layer])


# how a layer lays out its rows


@pytest.mark.parametrize("length", [5, 3])
def test_rows_of_the_output_are_found_wherever_they_lie(length):
    """torch's layers compute attention position first, whatever their output is; batch and length may be equal."""
    first_batch = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).double().eval()
    first_position = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False
    ).double().eval()  # fmt: skip
    first_position.load_state_dict(first_batch.state_dict())
    x = X[:, :length]
    found, _ = maps_of(lambda: first_batch(x))
    turned, _ = maps_of(lambda: first_position(x.transpose(0, 1)))
    alone = [maps_of(lambda x=x[[n]]: first_batch(x))[0] for n in range(3)]
    for number in range(2):
        close(found[number], turned[number], rtol=0, atol=1e-12)
        close(found[number], torch.cat([maps[number] for maps in alone]), rtol=0, atol=1e-12)


class Turning(Looking):
    """Gives out what it was given the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x.transpose(0, 1).contiguous() if x.shape[0] == x.shape[1] else x


class PlainlyTurning(Turning):
    """Attention written out, batch first all the way."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.attention((x @ x.mT).softmax(-1) @ x)
        return y.transpose(0, 1).contiguous()


@pytest.mark.parametrize("kind", [Turning, PlainlyTurning])
def test_as_many_examples_as_positions_are_not_mixed_up(kind):
    layer = kind().double().eval()
    square = X[:, :3]
    (found,), _ = maps_of(lambda: layer(square), layers=[layer])
    straight = Looking().double().eval()
    straight.forward = lambda x: kind.forward(layer, x).transpose(0, 1)  # type: ignore[method-assign]
    (expected,), _ = maps_of(lambda: straight(square), layers=[straight])
    close(found, expected, rtol=0, atol=1e-12)


ORDER = torch.tensor([3, 0, 2, 4, 1])


class Ordering(Block):
    """A block whose rows stand in another order than those it gives out, in all of it or for some of attention."""

    def __init__(self, which: str = "none") -> None:
        super().__init__()
        self.which = which

    def attended(self, y: Tensor) -> Tensor:
        asking = y[:, ORDER] if self.which in ("attention", "queries") else y
        keys = y[:, ORDER] if self.which in ("attention", "keys") else y
        mixed = self.attention(asking, keys, keys, need_weights=False)[0]
        return mixed[:, ORDER.argsort()] if asking is not y else mixed

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, ORDER] if self.which == "layer" else x
        x = x + self.attended(self.norm(x))
        x = x + self.up(x).relu()
        return x[:, ORDER.argsort()] if self.which == "layer" else x


def in_rows_of_the_stream(which: str, scores: Tensor) -> Tensor:
    """Scores (batch, query, key) of a block that has its rows in another order, in that of what it was given."""
    asked, read = which in ("layer", "attention", "queries"), which in ("layer", "attention", "keys")
    scores = scores[:, ORDER.argsort()] if asked else scores
    return scores[..., ORDER.argsort()] if read else scores


@pytest.mark.parametrize("examples", [1, 3, 5])
@pytest.mark.parametrize("which", ["layer", "attention", "queries", "keys"])
def test_a_row_of_the_output_is_the_query_that_it_holds_in_whatever_order_attention_takes_its_rows(which, examples):
    """The twin takes its rows as they come, in the first layer; in the second, of the same kind, so does the model."""
    x = torch.cat([X, X.flip(1)])[:examples]
    model, plain = built(Ordering(which), Ordering()), built(Ordering(), Ordering())
    plain.load_state_dict(model.state_dict())
    close(model(x), plain(x))
    found, _ = maps_of(lambda: model(x))
    expected, _ = maps_of(lambda: plain(x))
    close(in_rows_of_the_stream(which, found[0]), expected[0], rtol=0, atol=1e-12)
    close(found[1], expected[1], rtol=0, atol=1e-12)


def test_a_call_before_another_of_its_layer_has_rows_of_its_own_order():
    """As in a decoder whose self-attention alone takes its rows in another order."""

    class Twice(Ordering):
        def __init__(self, which: str = "none") -> None:
            super().__init__(which)
            self.source = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attended(self.norm(x))
            source = X[: len(x), :4]
            return x + self.source(x, source, source, need_weights=False)[0]

    model, plain = built(Twice("attention"), Twice("attention")), built(Twice(), Twice())
    plain.load_state_dict(model.state_dict())
    found, _ = maps_of(lambda: model(X))
    expected, _ = maps_of(lambda: plain(X))
    close(in_rows_of_the_stream("attention", found[0]), expected[0], rtol=0, atol=1e-12)
    close(found[1], expected[1], rtol=0, atol=1e-12)


def test_another_order_within_a_layer_that_mixes_its_rows_again_is_refused():
    """Plain rows that mix are known by what they hold most of; these do not hold what was written to them."""

    class Both(Ordering):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            return x + 0.5 * x.roll(1, dims=1)

    plain, model = built(Both(), Both()), built(Both("layer"), Both("layer"))
    assert maps_of(lambda: plain(X[:1]))[0][0].shape == (1, 5, 5)
    with pytest.raises(InexactCaptureError, match=r"Both: which row of its output .* cannot be told.*layers=") as error:
        maps_of(lambda: model(X[:1]))
    assert "AttentionNorm answers" in str(error.value)


@pytest.mark.parametrize("which", ["none", "layer"])
def test_rows_that_hold_nothing_of_attention_hide_no_others(which):
    """A layer that sets a row to a constant: no key has a score there, and the others are where they were."""

    class Blanking(Ordering):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(torch.arange(5)[:, None] == 2, 1.0, super().forward(x))

    model, plain = built(Blanking(which), Blanking(which)), built(Ordering(which), Ordering(which))
    plain.load_state_dict(model.state_dict())
    (found, *_), _ = maps_of(lambda: model(X))
    (expected, *_), _ = maps_of(lambda: plain(X))
    found, expected = in_rows_of_the_stream(which, found), in_rows_of_the_stream(which, expected).clone()
    expected[:, 2] = 0
    close(found, expected, rtol=0, atol=1e-12)


def test_another_thread_on_the_same_model_is_not_watched():
    """A second thread calls a layer while the first one is inside it."""
    model = built(Block(), Block())
    expected, _ = maps_of(lambda: model(X))
    other = X[:1, :2]

    def elsewhere(module: nn.Module, args: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=model.blocks[1], args=(other,))
            thread.start()
            thread.join()

    model.blocks[0].norm.register_forward_pre_hook(elsewhere)
    close(maps_of(lambda: model(X))[0], expected, rtol=0, atol=0)


def test_position_first_models_have_maps_batch_first():
    model = XLNetModel(XLNetConfig(vocab_size=60, d_model=16, n_layer=2, n_head=4, d_inner=24)).double().eval()
    found, _ = maps_of(lambda: model(ids(2, 6)))
    alone, _ = maps_of(lambda: model(ids(2, 6)[1:]))
    close(found[1][1:], alone[1], rtol=0, atol=1e-12)


def test_padding_is_left_as_it_is_with_torchs_fused_layers_at_hand():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).double().eval()
    padding = torch.arange(5) >= torch.tensor([[5], [3], [4]])
    found, _ = maps_of(lambda: model(X, src_key_padding_mask=padding))
    assert (found[1][padding] == 0).all()
    alone, _ = maps_of(lambda: model(X[1:2, :3]))
    close(found[1][1:2, :3, :3], alone[1], rtol=0, atol=1e-12)


class Mixing(Block):
    """Positions are mixed once more behind attention."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + 0.5 * x.roll(1, dims=1)


def test_values_that_reach_a_query_behind_attention_count():
    """Causal attention, and then each position takes in half of the one before."""

    class Causal(Mixing):
        def forward(self, x: Tensor) -> Tensor:
            mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
            x = x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]
            return x + 0.5 * x.roll(1, dims=1)

    model = built(Causal(), Causal())
    (scores, *_), outlines = maps_of(lambda: model(X[:1]), layers=list(model.blocks))
    assert outlines[0].unseen[0, 0, 4]
    assert scores[0, 0, 4] > 1e-9  # by way of the last position, which the roll makes the first


def test_rounding_is_no_score():
    """All positions move in their last digits, whichever changes."""

    class Rounding(Block):
        def forward(self, x: Tensor) -> Tensor:
            mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
            x = x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]
            return x + 1e-16 * x.sum() * torch.linspace(-1, 1, 8).double()

    model = built(Rounding(), Rounding())
    for scores in maps_of(lambda: model(X[:1]), layers=list(model.blocks))[0]:
        assert (scores.triu(1) == 0).all()


def test_rows_that_depend_on_several_queries_are_refused_where_the_layout_is_not_plain():
    model = built(Mixing(), Mixing())
    with pytest.raises(InexactCaptureError, match=r"which row of its output .* is which query cannot be told"):
        maps_of(lambda: model(X), layers=list(model.blocks))


class Pooled(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(1, keepdim=True).expand(-1, 2, -1)


def test_a_layer_without_a_row_for_each_query_is_refused():
    model = built(Pooled())
    with pytest.raises(InexactCaptureError, match=r"Pooled: attention has 3 x 5 queries, but the layer gives out"):
        maps_of(lambda: model(X), layers=list(model.blocks))


# layers that are hard to repeat


class Asking(Block):
    """Its code needs to know a number, as routing to experts does: torch.vmap cannot run it."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x * 2 if float(x.detach().abs().sum()) > 0 else x


def test_a_layer_that_asks_for_numbers_runs_key_by_key():
    asking, plain = built(Asking(), Asking()), built(Block(), Block())
    plain.load_state_dict(asking.state_dict())
    found, _ = maps_of(lambda: asking(X), layers=list(asking.blocks))
    doubled = nn.Sequential(*(nn.Sequential(block, Twofold()) for block in plain.blocks))
    expected, _ = maps_of(lambda: doubled(X), layers=list(doubled))
    close(found, expected, rtol=0, atol=1e-12)


class Twofold(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Overwriting(Block):
    """Writes its result over its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.copy_(super().forward(x))


def test_a_layer_that_overwrites_its_input_gets_the_original():
    overwriting, plain = built(Overwriting(), Overwriting()), built(Block(), Block())
    plain.load_state_dict(overwriting.state_dict())
    found, _ = maps_of(lambda: overwriting(X.clone()), layers=list(overwriting.blocks))
    expected, _ = maps_of(lambda: plain(X), layers=list(plain.blocks))
    close(found, expected, rtol=0, atol=1e-12)


class Noisy(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(x.shape, dtype=x.dtype)


def test_a_layer_that_does_not_repeat_itself_is_refused_and_the_random_state_is_as_it_was():
    model, steady = built(Noisy(), Noisy()), built(Block(), Block())
    with pytest.raises(InexactCaptureError, match=r"Noisy, run again on its own input, differs.*model\.eval"):
        maps_of(lambda: model(X), layers=list(model.blocks))
    numbers = torch.get_rng_state()
    maps_of(lambda: steady(X))
    assert torch.equal(torch.get_rng_state(), numbers)


class Drifting(Block):
    """Gives out a little more each time it runs."""

    def __init__(self, drift: float) -> None:
        super().__init__()
        self.drift, self.calls = drift, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (1 + self.drift * self.calls)


@pytest.mark.parametrize(
    ("dtype", "rounding", "too_far"),
    [
        (torch.float64, 1e-11, 1e-7),
        (torch.float32, 1e-6, 1e-3),
        (torch.float16, 0.0, 0.05),
        (torch.bfloat16, 0.0, 0.3),
    ],
)
def test_a_layer_may_differ_from_itself_by_rounding_and_no_further(dtype, rounding, too_far):
    x = X[:1].to(dtype)
    steady, drifting = Stack(Drifting(rounding)).to(dtype).eval(), Stack(Drifting(too_far)).to(dtype).eval()
    assert maps_of(lambda: steady(x), layers=list(steady.blocks))[0][0].shape == (1, 5, 5)
    with pytest.raises(InexactCaptureError, match="Drifting, run again on its own input, differs"):
        maps_of(lambda: drifting(x), layers=list(drifting.blocks))


def test_a_layer_that_is_run_again_on_another_length_is_refused():
    model, lengths = built(Block(), Block()), iter((4, 5))
    with pytest.raises(InexactCaptureError, match="4 keys when it was read, but 5 when its layer was run again"):
        maps_of(lambda: model(X[:, : next(lengths)]), layers=list(model.blocks))


def test_keys_of_earlier_passes_are_refused():
    model = tiny("GPT2")
    with torch.no_grad():
        past = model(ids(1, 4), use_cache=True).past_key_values

    def run() -> Any:
        import copy

        return model(ids(1, 2, seed=1), past_key_values=copy.deepcopy(past))

    with pytest.raises(InexactCaptureError, match=r"GPT2Block cannot be run again.*earlier passes"):
        maps_of(run)


def test_hooks_are_gone_whatever_happens():
    model = built(Noisy(), Noisy())
    with pytest.raises(InexactCaptureError):
        maps_of(lambda: model(X), layers=list(model.blocks))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_users_own_hooks_take_part():
    """A pre-hook and a hook that change what a layer takes and gives: the replay sees the same."""
    model, plain = built(Block(), Block()), built(Block(), Block())
    plain.load_state_dict(model.state_dict())
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
        block.register_forward_hook(lambda module, args, output: output * 2 + args[0])
    found, _ = maps_of(lambda: model(X), layers=list(model.blocks))

    class Around(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x * 0.5) * 2 + x * 0.5

    around = nn.Sequential(*map(Around, plain.blocks))
    expected, _ = maps_of(lambda: around(X), layers=list(around))
    close(found, expected, rtol=0, atol=1e-12)
