"""Layers that no module is: modules in a list whose residuals their owner adds."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from captum_norm.attr import ValueZeroing
from tests.intervention.test_value_zeroing_maps import Block, X, built, first, maps_of

close = torch.testing.assert_close


class Pairs(nn.Module):
    """The stack of blocks, with the parts of each in an entry of a list, and something behind them, or in between."""

    def __init__(
        self, blocks: Sequence[Block], last: nn.Module | None = None, between: nn.Module | None = None, loops: int = 1
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([b.norm, b.attention, b.up, None]) for b in blocks)
        self.last, self.between, self.loops = last, between, loops

    def forward(self, x: Tensor) -> Tensor:
        for norm, attention, up, _ in self.layers:
            y = norm(x)
            x = x + attention(y, y, y, need_weights=False)[0]
            if self.between is not None:
                x = self.between(x)
            x = x + up(x).relu()
        return x if self.last is None else self.last(x)


def pairs(blocks: Sequence[Block], *rest: Any) -> nn.Module:
    return Pairs(blocks, *rest).double().eval()


@pytest.mark.parametrize("last", [None, nn.LayerNorm(8)], ids=["returned", "normed behind"])
def test_entries_of_a_list_are_the_layers_that_blocks_of_them_are(last):
    blocks = [Block() for _ in range(3)]
    expected, _ = maps_of(lambda: built(*blocks)(X))
    model = nn.Sequential(nn.Identity(), pairs(blocks, last))
    found, _ = maps_of(lambda: model(X))
    for one, other in zip(found, expected, strict=True):
        close(one, other, rtol=1e-9, atol=1e-12)
    alone, _ = maps_of(lambda: model(X), keys_at_once=1)
    close(alone[2], expected[2], rtol=1e-9, atol=1e-12)


def test_an_owner_may_run_more_than_once():
    blocks = [Block() for _ in range(2)]
    owner = pairs(blocks)
    found, _ = maps_of(lambda: owner(owner(X).tanh()))
    with torch.no_grad():
        before = owner(X).tanh()
    expected, _ = maps_of(lambda: built(*blocks)(before))
    assert len(found) == 4
    for one, other in zip(found[2:], expected, strict=True):
        close(one, other, rtol=1e-9, atol=1e-12)


def test_an_owner_may_run_again_on_the_same_input():
    blocks = [Block() for _ in range(2)]
    owner = pairs(blocks)
    found, _ = maps_of(lambda: [owner(X), owner(X)])
    expected, _ = maps_of(lambda: built(*blocks)(X))
    for one, other in zip(found, [*expected, *expected], strict=True):
        close(one, other, rtol=1e-9, atol=1e-12)


def test_hooks_of_an_owner_are_gone_and_those_that_look_saw_one_forward_each_time_the_model_ran():
    owner, seen = pairs([Block() for _ in range(2)]), []
    owner.layers[1][2].register_forward_hook(lambda module, args, output: seen.append(module))
    ValueZeroing(owner).attribute(X)
    assert len(seen) == 4  # recorded; layers sought, found; watched
    assert all(len(m._forward_pre_hooks) == 0 for m in owner.modules())
    assert sum(len(m._forward_hooks) for m in owner.modules()) == 1


class Apart(Pairs):
    """Each kind of part has a list of its own, so that none holds a layer."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__(blocks)
        parts = zip(*[list(entry)[:3] for entry in self.layers], strict=True)
        self.norms, self.attentions, self.ups = (nn.ModuleList(kind) for kind in parts)
        self.layers = None

    def forward(self, x: Tensor) -> Tensor:
        for norm, attention, up in zip(self.norms, self.attentions, self.ups, strict=True):
            y = norm(x)
            x = x + attention(y, y, y, need_weights=False)[0]
            x = x + up(x).relu()
        return x


class NormedByTheOwner(Pairs):
    """The owner computes norms itself: in front of attention, or behind the last layer alone."""

    def __init__(self, blocks: Sequence[Block], where: str = "", last: nn.Module | None = None) -> None:
        super().__init__(blocks, last)
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        for norm, attention, up, _ in self.layers:
            y = normed(self.where, norm, x) if self.where in ("layer_norm", "by hand", "scaled") else norm(x)
            x = x.clone() if self.where == "a copy" else x
            a = attention(y, y, y, need_weights=False)[0]
            x = x.add_(a) if self.where == "added in place" else x + a
            x = x + up(x).relu()
            x = normed("layer_norm", norm, x) if self.where == "behind each" else x
        x = normed("layer_norm", self.layers[0][0], x) if self.where == "behind" else x
        return x if self.last is None else self.last(x)


def normed(how: str, norm: nn.LayerNorm, x: Tensor) -> Tensor:
    if how == "layer_norm":
        return nn.functional.layer_norm(x, (8,), norm.weight, norm.bias, norm.eps)
    if how == "by hand":
        return x * (x.pow(2).mean(-1, keepdim=True) + norm.eps).rsqrt() * norm.weight
    return 0.5 * x


@pytest.mark.parametrize("last", [None, nn.Linear(8, 8)], ids=["returned", "with a head"])
@pytest.mark.parametrize("where", ["layer_norm", "by hand", "scaled", "behind"])
def test_what_a_norm_of_the_owner_hands_on_is_not_taken_for_what_a_layer_does(where, last):
    model = NormedByTheOwner([Block() for _ in range(2)], where, last).double().eval()
    with pytest.raises(ValueError, match=r"each given what the one before hands on.*a norm that no module is"):
        maps_of(lambda: model(X))


@pytest.mark.parametrize("where", ["added in place", "a copy"])
def test_a_state_that_is_written_to_or_copied_is_what_a_layer_hands_on(where):
    blocks = [Block() for _ in range(3)]
    expected, _ = maps_of(lambda: built(*blocks)(X))
    model = NormedByTheOwner(blocks, where).double().eval()
    found, _ = maps_of(lambda: model(X.clone()))
    for one, other in zip(found, expected, strict=True):
        close(one, other, rtol=1e-9, atol=1e-12)


def test_a_norm_of_the_owner_behind_each_layer_is_part_of_it():
    model = NormedByTheOwner([Block() for _ in range(2)], "behind each").double().eval()
    found, _ = maps_of(lambda: model(X))
    stack = built(*map(PostNormed, model.layers))
    expected, _ = maps_of(lambda: stack(X))
    for one, other in zip(found, expected, strict=True):
        close(one, other, rtol=1e-9, atol=1e-12)


class PostNormed(nn.Module):
    """An entry of a list as a module, with its norm once more behind it."""

    def __init__(self, entry: nn.ModuleList) -> None:
        super().__init__()
        self.entry = entry

    def forward(self, x: Tensor) -> Tensor:
        norm, attention, up, _ = self.entry
        y = norm(x)
        x = x + attention(y, y, y, need_weights=False)[0]
        return norm(x + up(x).relu())


class Heads(nn.Module):
    """Attention whose heads are modules that are all given the same."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.MultiheadAttention(8, 1, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + sum(head(x, x, x, need_weights=False)[0] for head in self.heads)


@pytest.mark.parametrize(
    "model",
    [
        lambda: pairs([Block()]),
        lambda: pairs([Block() for _ in range(2)], None, nn.Tanh()),
        lambda: pairs([Block()] * 2),
        lambda: Apart([Block() for _ in range(2)]).double().eval(),
        lambda: Heads().double().eval(),
    ],
    ids=["a single layer", "something in between", "shared modules", "a list for each kind", "heads"],
)
def test_lists_that_are_no_layers_are_refused(model):
    model = model()
    with pytest.raises(ValueError, match="no list of modules runs layers that are alike"):
        maps_of(lambda: model(X))


@pytest.mark.parametrize("kind", ["Encoder", "Decoder"])
def test_layers_of_x_transformers_are_those_whose_values_lose_a_position(kind):
    x_transformers = pytest.importorskip("x_transformers")
    torch.manual_seed(0)
    owner = getattr(x_transformers, kind)(dim=16, depth=2, heads=2, attn_dim_head=8, ff_mult=1).double().eval()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    found, _ = maps_of(lambda: owner(x))
    ends = [owner.layers[2][0][0], owner.final_norm]
    for layer, end in enumerate(ends):
        scores = []
        for key in (None, *range(5)):
            states: list[Tensor] = []

            def without(module: nn.Module, args: Any, output: Tensor, key: int | None = key) -> Tensor:
                output = output.clone()
                if key is not None:
                    output[:, key] = 0
                return output

            handles = [
                owner.layers[2 * layer][1].to_v.register_forward_hook(without),
                end.register_forward_pre_hook(lambda module, args, states=states: states.append(first(args))),
            ]
            with torch.no_grad():
                owner(x)
            for handle in handles:
                handle.remove()
            scores.append(states[0])
        expected = torch.stack([1 - cosine_similarity(changed, scores[0], dim=-1) for changed in scores[1:]], -1)
        close(found[layer], expected, rtol=1e-7, atol=1e-10)
