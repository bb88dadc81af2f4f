"""Rows of a record are rows of its weights, each one that is handed out is checked, and no other is computed."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from captum_norm import AttentionBlockNorm, AttentionNorm, AttentionWeights
from captum_norm.capture import AttentionRecord, InexactCaptureError, recording
from captum_norm.capture.rows import Arranged, CheckedRows
from captum_norm.capture.weights import HiddenWeights

HEADS, WIDTH = 4, 16


class Attention(nn.Module):
    """Causal self-attention by torch's fused function, with two heads for each key head."""

    def __init__(self, eager: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, n * 4) for n in (HEADS, 2, 2, HEADS))
        self.eager = eager

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.eager:
            k, v = (t.repeat_interleave(2, 1) for t in (k, v))
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            mixed = (q @ k.mT / 2).masked_fill(later, -torch.inf).softmax(-1) @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o(mixed.transpose(1, 2).flatten(2))


@pytest.fixture(params=[False, True], ids=["sdpa", "eager"])
def attention(request) -> Attention:
    torch.manual_seed(0)
    return Attention(request.param)


def transformers_models() -> dict:
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, MistralConfig, MistralModel

    small = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    decoder = {**small, "num_attention_heads": 4, "num_key_value_heads": 2}
    return {
        "grouped queries": lambda: LlamaModel(LlamaConfig(**decoder)),
        "a window": lambda: MistralModel(MistralConfig(sliding_window=6, **decoder)),
        "an encoder": lambda: BertModel(BertConfig(num_attention_heads=4, **small)),
    }


def compare_rows_with_whole(record: AttentionRecord) -> None:
    batch, _, query, _ = record.shape
    asked = {
        "a slice": slice(query // 2, query),
        "the same rows": torch.tensor([[query - 1, 0]]).expand(batch, -1),
        "rows of each example": torch.randint(query, (batch, 3)),
    }
    cut = {name: record.at(rows) for name, rows in asked.items()}
    blocks = torch.cat([part.weights for _, part in record.blocks(5)], 2)
    assert "_rows" in vars(record)
    whole = record.weights
    torch.testing.assert_close(blocks, whole, rtol=1e-5, atol=1e-7)
    for name, rows in asked.items():
        numbers = torch.arange(query)[rows].expand(batch, -1) if isinstance(rows, slice) else rows
        index = numbers[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[3])
        torch.testing.assert_close(cut[name].weights, whole.gather(2, index), rtol=1e-5, atol=1e-7)
        if name != "rows of each example" and record.queries is not None:
            axis = cut[name].queries
            assert torch.equal(axis.index, record.queries.index[numbers[0]])
            assert record.queries.rows is None or torch.equal(axis.rows, record.queries.rows[numbers[0]])
        for found, given in zip(cut[name].certificate.rows or (), numbers.tolist(), strict=False):
            assert set(given) <= set(found)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", list(transformers_models()))
def test_rows_are_rows_of_the_whole(name, implementation, padding):
    torch.manual_seed(1)
    model = transformers_models()[name]().eval()
    model.set_attn_implementation(implementation)
    mask = torch.ones(2, 20, dtype=torch.long)
    if padding != "none":
        mask[1, slice(0, 4) if padding == "left" else slice(16, 20)] = 0
    kinds = []
    with torch.no_grad(), recording(lambda r: [compare_rows_with_whole(r), kinds.append(r.call.kind)]):
        model(torch.randint(50, (2, 20)), attention_mask=mask)
    assert kinds == ["self" if name == "an encoder" else "causal"] * 2


def test_heads_that_a_static_cache_lays_into_the_queries_are_told_apart():
    torch.manual_seed(0)
    model = transformers_models()["grouped queries"]().eval()
    from transformers import StaticCache

    cache, seen = StaticCache(config=model.config, max_cache_len=12), []
    with torch.no_grad(), recording(lambda r: [compare_rows_with_whole(r), seen.append(r.shape)]):
        model(torch.randint(50, (1, 5)), past_key_values=cache)
        model(torch.randint(50, (1, 1)), past_key_values=cache, cache_position=torch.tensor([5]))
    assert [shape[2] for shape in seen] == [5, 5, 1, 1]


class Corrupted(Arranged):
    """Weights of which one query's are wrong."""

    row: int = 0
    disturb = staticmethod(lambda weights: weights)

    def at(self, rows):
        weights = super().at(rows).clone()
        numbers = torch.arange(self.shape[2])[rows].expand(self.shape[0], -1) if isinstance(rows, slice) else rows
        for example, row in (numbers == self.row).nonzero().tolist():
            weights[example, :, row] = self.disturb(weights[example, :, row])
        return weights


def corrupted(record: AttentionRecord, row: int, disturb) -> AttentionRecord:
    rows: CheckedRows = record._rows
    wrong = Corrupted(rows.arranged.weights, rows.arranged.layout, rows.arranged.lead)
    object.__setattr__(wrong, "row", row)
    object.__setattr__(wrong, "disturb", disturb)
    return record.but(weights=CheckedRows(wrong, rows.check, rows.call, rows.unchanged, rows.certificate))


def random_disturbance(generator: torch.Generator):
    kind, head, size = (int(torch.randint(n, (), generator=generator)) for n in (4, HEADS, 9))

    def disturb(weights: Tensor) -> Tensor:
        if kind == 0:
            return weights.roll(1, -1)
        if kind == 1:
            return weights.roll(1, 0)
        wrong = weights.clone()
        wrong[head] = wrong[head].flip(-1) if kind == 2 else wrong[head] * (1 + 10.0 ** -(size % 3 + 1))
        return wrong

    return disturb


def test_a_wrong_row_that_is_used_is_refused_every_time(attention):
    generator, refused = torch.Generator().manual_seed(3), []

    def use_wrong_rows(record: AttentionRecord) -> None:
        for n in range(100):
            row = int(torch.randint(1, record.shape[2], (), generator=generator))
            wrong = corrupted(record, row, random_disturbance(generator))
            rows = [torch.tensor([[row], [0]]), torch.tensor([[3, row], [0, 1]]), slice(row, row + 1)][n % 3]
            with pytest.raises(InexactCaptureError, match="do not reproduce the projection's output") as caught:
                wrong.at(rows)
            refused.append(caught.value.call is record.call)

    with torch.no_grad(), recording(use_wrong_rows):
        attention(torch.randn(2, 30, WIDTH))
    assert refused == [True] * 100


def test_a_row_that_was_not_looked_at_is_not_claimed(attention):
    def look(record: AttentionRecord) -> None:
        checked = {row for rows in record.certificate.rows for row in rows}
        assert len(checked) == 8
        assert 29 in checked
        other = next(row for row in range(1, 30) if row not in checked)
        wrong = corrupted(record, other, lambda weights: weights.roll(1, 0))
        used = wrong.at(slice(29, 30))
        assert other not in used.certificate.rows[0]
        with pytest.raises(InexactCaptureError, match="do not reproduce"):
            wrong.at(slice(other, 30))
        assert record.weights is record.weights
        assert record.certificate.rows is None

    with torch.no_grad(), recording(look):
        attention(torch.randn(2, 30, WIDTH))


def test_a_mask_over_no_keys_leaves_nothing_to_weigh():
    nobody = HiddenWeights(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 0, 4), torch.zeros(1, 1, 3, 0))
    assert nobody.whole().shape == (1, 2, 3, 0)


def test_rows_that_were_checked_when_their_call_was_complete_are_not_computed_again(monkeypatch):
    torch.manual_seed(0)
    computed = []
    whole = HiddenWeights.at
    monkeypatch.setattr(HiddenWeights, "at", lambda self, rows: computed.append(rows) or whole(self, rows))

    def look(record: AttentionRecord) -> None:
        assert len(computed) == 1
        first, last = record.at(torch.tensor([[0], [0]])).weights, record.at(slice(29, 30)).weights
        both = record.at(torch.tensor([[29, 0], [29, 0]])).weights
        assert len(computed) == 1
        assert torch.equal(both, torch.cat([last, first], 2))
        apart = record.at(torch.tensor([[0], [29]])).weights
        assert len(computed) == 2
        torch.testing.assert_close(apart, torch.cat([first[:1], last[1:]]), rtol=1e-6, atol=1e-7)

    with torch.no_grad(), recording(look):
        Attention()(torch.randn(2, 30, WIDTH))


def test_rows_of_one_map_for_all_heads_are_rows_of_the_whole():
    class Averaged(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
            weights = (q @ k.repeat_interleave(2, 1).mT).softmax(-1).mean(1, keepdim=True)
            return self.o((weights @ v.repeat_interleave(2, 1)).transpose(1, 2).flatten(2))

    found, x, rows = [], torch.randn(2, 5, WIDTH), torch.tensor([[3], [1]])
    with torch.no_grad(), recording(lambda record: found.append((record.at(rows).weights, record.weights))):
        Averaged()(x)
    [(some, whole)] = found
    assert torch.equal(some[:, :, 0], whole[torch.arange(2), :, rows[:, 0]])


def test_refused_rows_are_refused_calls():
    attention, refusals = Attention(), []

    def use(record: AttentionRecord) -> None:
        corrupted(record, 11, lambda weights: weights * 0.5).at(slice(11, 12))

    with torch.no_grad(), recording(use, on_inexact=refusals.append):
        attention(torch.randn(1, 20, WIDTH))
    assert [str(error).startswith("attention (call 0)") or "(call 0)" in str(error) for error in refusals] == [True]


def test_what_was_overwritten_is_not_read_later():
    attention, records = Attention(), []
    x = torch.randn(1, 20, WIDTH)
    keys = []
    attention.k.register_forward_hook(lambda module, given, out: keys.append(out))
    with torch.no_grad(), recording(records.append):
        attention(x)
        attention(x)
    torch.testing.assert_close(records[1].at(slice(3)).weights, records[1].weights[:, :, :3])
    with torch.no_grad():
        keys[0].zero_()
    for read in (lambda: records[0].weights, lambda: records[0].at(slice(3))):
        with pytest.raises(InexactCaptureError, match=r"overwritten after they were read.*inside on_record"):
            read()


def test_a_record_is_changed_without_asking_for_weights():
    def change(record: AttentionRecord) -> None:
        assert "_rows" in vars(record.but(gate=None))
        changed = replace(record, weights=record.weights * 2)
        torch.testing.assert_close(changed.weights, record.weights * 2)

    with torch.no_grad(), recording(change):
        Attention()(torch.randn(1, 20, WIDTH))


class Squares(TorchDispatchMode):
    """Operations that gave out as many numbers as there are pairs of positions, of any type."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.found = length, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.numel() >= self.length**2 and "attention" not in func.__name__:
                self.found.append(func.__name__)
        return out


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), Attention()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.norm(x))


@pytest.mark.parametrize("method", [AttentionNorm, AttentionWeights, AttentionBlockNorm])
def test_a_row_makes_no_tensor_of_queries_times_keys(method):
    model, x = Block(), torch.randn(1, 1024, WIDTH)
    for position in (-1, 5, torch.tensor([[3, 900]])):
        with Squares(1024) as squares:
            method(model).attribute(x, position=position)
        assert squares.found == []
    with Squares(1024) as squares:
        method(model).attribute(x[:, :1024], position="all")
    assert squares.found
