"""Ids and embeddings that a model puts together of others count as the tokens that they are, however it writes that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import MBartConfig, MBartForSequenceClassification
from transformers.models.mbart import modeling_mbart

from captum_norm import AttentionNorm, AttentionRollout, DecompX
from captum_norm.capture import recording
from captum_norm.linear import NotFrozenError

METHODS = (AttentionNorm, AttentionRollout, DecompX)
IDS = torch.tensor([[3, 4, 5, 6, 7, 2], [5, 3, 2, 9, 4, 8]])


class Model(nn.Module):
    """Embeds what ``ids`` makes of its ids, and goes on with what ``states`` makes of the embeddings."""

    def __init__(
        self, ids: Callable[[Tensor], Tensor] = lambda i: i, states: Callable[[Tensor], Tensor] = lambda x: x
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ids, self.states = ids, states
        self.words, self.positions = nn.Embedding(12, 8), nn.Embedding(6, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classes = nn.Linear(8, 2)
        self.double().eval()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.states(self.words(self.ids(ids)))
        return self.classes(self.layers(x + self.positions.weight)[:, 0])


def written(into: Tensor, index: object, value: object) -> Tensor:
    into = into.clone()
    into[index] = value
    return into


def third() -> Tensor:
    return torch.arange(6) == 3


def at(i: Tensor, number: int = 3) -> Tensor:
    return torch.full((len(i), 1), number)


def through(into: Tensor, *writes: Callable[[Tensor], object]) -> Tensor:
    """A copy, written through views of it."""
    into = into.clone()
    for write in writes:
        write(into)
    return into


COPIED = {
    "a view": lambda i: through(i, lambda j: j[:, 3].copy_(i[:, 1])),
    "where": lambda i: torch.where(third(), i[:, 1:2], i),
    "a write": lambda i: written(i, (slice(None), 3), i[:, 1]),
    "scatter": lambda i: i.scatter(1, at(i), i[:, 1:2]),
    "scatter in place": lambda i: i.clone().scatter_(1, at(i), i[:, 1:2]),
    "index_put": lambda i: i.index_put((torch.arange(len(i)), at(i)[:, 0]), i[:, 1]),
    "masked_scatter": lambda i: i.masked_scatter(third().expand_as(i), i[:, 1]),
    "index_copy": lambda i: i.index_copy(1, at(i)[0], i[:, 1:2]),
    "slice_scatter": lambda i: i.slice_scatter(i[:, 1:2], 1, 3, 4),
    "select_scatter": lambda i: i.select_scatter(i[:, 1], 1, 3),
    "take": lambda i: i.take(torch.tensor([0, 1, 2, 1, 4, 5]) + 6 * torch.arange(len(i))[:, None]),
    "products with masks": lambda i: i * ~third() + i[:, 1:2] * third(),
    "the larger of products": lambda i: torch.maximum(i * ~third(), i[:, 1:2] * third()),
}
SHIFTED = {
    "writes over a clone": lambda i: written(written(i, (..., slice(1, None)), i[:, :-1]), (slice(None), 0), 11),
    "views of a clone": lambda i: through(i, lambda j: j[:, 1:].copy_(i[:, :-1]), lambda j: j[:, 0].fill_(11)),
    "a selected view": lambda i: through(i.roll(1, 1), lambda j: j.select(1, 0).fill_(11)),
    "a view that is computed on": lambda i: through(i.roll(1, 1), lambda j: j[:, :1].zero_().add_(11)),
    "a view of a transposed one": lambda i: through(i.roll(1, 1).t(), lambda j: j[0].copy_(torch.tensor(11))).t(),
    "a roll and a write": lambda i: written(i.roll(1, 1), (slice(None), 0), 11),
    "where": lambda i: torch.where(torch.arange(6) > 0, i.roll(1, 1), 11),
}
SWAPPED = {
    "where": lambda i: torch.where(torch.arange(6) < 2, i[:, [1, 0, 2, 3, 4, 5]], i),
    "a write": lambda i: written(i, (slice(None), [0, 1]), i[:, [1, 0]]),
}


@pytest.mark.parametrize(
    ("change", "twin"),
    [
        *((change, lambda i: torch.cat([i[:, :3], i[:, 1:2], i[:, 4:]], 1)) for change in COPIED.values()),
        *((change, lambda i: torch.cat([torch.full_like(i[:, :1], 11), i[:, :-1]], 1)) for change in SHIFTED.values()),
        *((change, lambda i: i[:, [1, 0, 2, 3, 4, 5]]) for change in SWAPPED.values()),
    ],
    ids=[f"{kind}, {name}" for kind in ("copied", "shifted", "swapped") for name in globals()[kind.upper()]],
)
def test_ids_that_are_put_together_are_the_tokens_that_they_are(change, twin):
    model, other = Model(change), Model(twin)
    assert torch.equal(model(IDS), other(IDS))
    for method in METHODS:
        torch.testing.assert_close(method(model).attribute(IDS, target=1), method(other).attribute(IDS, target=1))


def overwritten(x: Tensor) -> Tensor:
    return torch.cat([x[:, :3], torch.ones(len(x), 3, 8, dtype=x.dtype)], 1)


BEHIND = {
    "where": lambda x: torch.where((torch.arange(6) < 3)[:, None], x, 1.0),
    "where, the constant first": lambda x: torch.where((torch.arange(6) > 2)[:, None], torch.ones(8, dtype=x.dtype), x),
    "masked_fill": lambda x: x.masked_fill((torch.arange(6) > 2)[:, None], 1.0),
    "a write": lambda x: written(x, (slice(None), slice(3, None)), 1.0),
}


@pytest.mark.parametrize("change", BEHIND.values(), ids=BEHIND)
def test_a_token_whose_embedding_is_overwritten_before_attention_has_no_part(change):
    model, other = Model(states=change), Model(states=overwritten)
    torch.testing.assert_close(model(IDS), other(IDS))
    for method in METHODS:
        scores = method(model).attribute(IDS, target=1)
        assert not scores[:, 3:].any()
        torch.testing.assert_close(scores, method(other).attribute(IDS, target=1))


@pytest.mark.parametrize(
    "change", [
        lambda i: torch.where(i == 2, 0, i), lambda i: i.masked_fill(i == 2, 0), lambda i: written(i, i == 2, 0),
        lambda i: i.clamp(max=5), lambda i: i + 2, lambda i: i * 1,
    ],
)  # fmt: skip
def test_what_is_made_of_a_tokens_own_id_is_the_tokens(change):
    with torch.no_grad(), recording(sources=(IDS,)) as records:
        Model(change)(IDS)
    assert records[0].keys.index.tolist() == list(range(6))


def test_ids_that_are_expanded_follow_what_is_written_into_the_row_they_repeat():
    def repeated(i: Tensor) -> Tensor:
        row = i[:1].clone()
        twice = row.expand(2, -1)
        row[:, 0].fill_(11)
        return twice

    with torch.no_grad(), recording(sources=(IDS,)) as records:
        Model(repeated)(IDS)
    with torch.no_grad(), recording(sources=(IDS,)) as twin:
        Model(lambda i: torch.cat([torch.full_like(i[:1, :1], 11), i[:1, 1:]], 1).expand(2, -1))(IDS)
    assert (records[0].keys, records[0].unknown_keys) == (twin[0].keys, twin[0].unknown_keys)


PADDED = {
    "a product": lambda m, i, mask: m.words(i) * mask[..., None],
    "masked_fill": lambda m, i, mask: m.words(i).masked_fill(mask[..., None] == 0, 0.0),
    "other ids": lambda m, i, mask: m.words(torch.where(mask == 0, 1, i)),
}


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("embed", PADDED.values(), ids=PADDED)
def test_rows_of_padding_count_as_the_tokens_that_they_were(embed, given):
    """Whether the model is given the mask or holds it."""
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0

    class Padded(Model):
        mask = None

        def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
            mask = self.mask if mask is None else mask
            x = embed(self, ids, mask) + self.positions.weight
            return self.classes(self.layers(x, src_key_padding_mask=mask == 0)[:, 0])

    model = Padded()
    model.mask = mask
    with torch.no_grad(), recording(model=model, sources=(IDS,)) as records:
        model(IDS, mask) if given else model(IDS)
    assert records[0].keys.index.tolist() == list(range(6))


def test_entries_of_a_row_that_are_chosen_of_two_positions_mix_them():
    model = Model(states=lambda x: torch.where(torch.arange(8) < 4, x, F.pad(x, (0, 0, 1, -1))))
    with pytest.raises(ValueError, match="positions are mixed by where"):
        AttentionRollout(model).attribute(IDS, target=1)


@pytest.mark.parametrize(
    ("compute", "name"),
    [(lambda i: (i + i.roll(1, 1)) % 12, "add"), (lambda i: torch.maximum(i, i.roll(1, 1)), "maximum")],
)
def test_ids_that_are_computed_of_two_tokens_are_refused_by_name(compute, name):
    model = Model(compute)
    with pytest.raises(ValueError, match=f"positions are mixed by {name}"):
        AttentionRollout(model).attribute(IDS, target=1)
    with pytest.raises(NotFrozenError, match=f"which token each row is made of is not known: .* by {name}"):
        DecompX(model).attribute(IDS, target=1)


def test_the_shifted_ids_of_mbart_are_its_tokens(monkeypatch):
    """Its decoder reads the last token, then all others: by writes over a clone, with an index that is counted."""
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 32, "d_model": 16}
    torch.manual_seed(0)
    model = MBartForSequenceClassification(MBartConfig(vocab_size=20, num_labels=3, **sizes)).double().eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 2]])
    found = DecompX(lambda given: model(input_ids=given).logits).attribute(ids, target=1)
    by_cat = lambda given, pad: torch.cat([given[:, -1:], given[:, :-1]], 1)  # noqa: E731
    monkeypatch.setattr(modeling_mbart, "shift_tokens_right", by_cat)
    torch.testing.assert_close(found, DecompX(lambda given: model(input_ids=given).logits).attribute(ids, target=1))
