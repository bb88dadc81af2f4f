"""Under ``max_memory`` the calls that do not fit are read again, and no number changes."""

import pytest
import torch

from captum_norm import ALTI, AttentionBlockNorm, AttentionNorm, AttentionRollout, GlobEnc
from captum_norm.attr._kept import KeptCalls
from captum_norm.capture import AttentionRecord, InexactCaptureError, recording
from tests.capture.test_rows import WIDTH, Block, transformers_models

METHODS = {
    "weights": AttentionRollout,
    "norms": lambda model, **limit: AttentionNorm(model, aggregate="rollout", **limit),
    "block norms": lambda model, **limit: AttentionBlockNorm(model, aggregate="rollout", **limit),
    "GlobEnc": GlobEnc,
    "ALTI": ALTI,
}


class Stack(torch.nn.Module):
    """Five blocks; how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.runs = torch.nn.Sequential(*(Block() for _ in range(5))), 0

    def forward(self, x):
        self.runs += 1
        return self.blocks(x)


def kept_bytes(model, x, blocks=False) -> int:
    """What one call keeps."""
    found = []
    with torch.no_grad(), recording(lambda record: found.append(record.kept_bytes), blocks=blocks):
        model(x)
    assert len(set(found)) == 1
    return found[0]


@pytest.mark.parametrize(("calls", "runs"), [(1, 5), (2, 3), (4, 2), (5, 1)])
def test_the_model_runs_as_often_as_it_takes_and_the_row_is_the_same(calls, runs):
    model, x = Stack(), torch.randn(2, 12, WIDTH)
    free = AttentionNorm(model, aggregate="rollout")
    expected = free.attribute(x, position=-1)
    assert model.runs == 1
    limited = AttentionNorm(model, aggregate="rollout", max_memory=calls * kept_bytes(model, x))
    model.runs = 0
    assert torch.equal(limited.attribute(x, position=-1), expected)
    assert model.runs == runs
    for (_, one), (_, other) in zip(limited.report.certificates, free.report.certificates, strict=True):
        assert (one.error, one.rows) == (other.error, other.rows)


@pytest.mark.parametrize("position", [15, "mean"])
@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.filterwarnings("ignore:alti")
def test_no_method_changes_under_a_limit(name, position):
    torch.manual_seed(0)
    model = transformers_models()["an encoder"]().eval()
    model.set_attn_implementation("sdpa")
    ids, mask = torch.randint(50, (2, 20)), torch.ones(2, 20, dtype=torch.long)
    mask[1, 16:] = 0
    given = {"additional_forward_args": (mask,), "position": position}
    expected = METHODS[name](model).attribute(ids, **given)
    one_call = kept_bytes(model, ids, blocks=True)
    assert torch.equal(METHODS[name](model, max_memory=one_call).attribute(ids, **given), expected)


def test_no_more_is_kept_than_is_let(monkeypatch):
    model, x, most = Stack(), torch.randn(1, 12, WIDTH), []
    limit = 5 * kept_bytes(model, x) // 2

    def put(self, number, record, original=KeptCalls._put):
        found = original(self, number, record)
        most.append(sum(one.head_values.given.nbytes + one._rows.kept_bytes for one in self._records.values()))
        return found

    monkeypatch.setattr(KeptCalls, "_put", put)
    AttentionRollout(model, max_memory=limit).attribute(x, position=-1)
    assert max(most) == 2 * limit * 2 // 5


def test_what_is_kept_is_known_from_shapes():
    x, wrong = torch.randn(2, 12, WIDTH), []

    def compare(record: AttentionRecord) -> None:
        kept = record.kept()
        hidden = kept._rows.arranged.weights
        states = [kept.block.residual, kept.block.attended, kept.block.output, kept.block.behind]
        copied = sum(tensor.nbytes for tensor in (*states, kept.head_values.given, hidden._query, hidden._key))
        wrong.append(record.kept_bytes - copied)

    with torch.no_grad(), recording(compare, blocks=True):
        Stack()(x)
    assert wrong == [0] * 5


def test_a_limit_below_one_call_is_refused_with_the_figure():
    model, x = Stack(), torch.randn(1, 12, WIDTH)
    needed = kept_bytes(model, x)
    with pytest.raises(ValueError, match=f"keeps {needed:,} bytes .* more than max_memory = {needed - 1:,}. Give at"):
        AttentionRollout(model, max_memory=needed - 1).attribute(x, position=-1)
    AttentionRollout(model, max_memory=needed).attribute(x, position=-1)
    AttentionNorm(model, max_memory=1).attribute(x, position=-1)  # the mean keeps nothing


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "1GB"])
def test_a_limit_is_a_number_of_bytes(limit):
    with pytest.raises(ValueError, match="AttentionRollout: max_memory should be a number of bytes"):
        AttentionRollout(Stack(), max_memory=limit)


def test_a_model_that_does_something_else_when_it_runs_again_is_refused():
    class Moody(Stack):
        def forward(self, x):
            return super().forward(x.roll(self.runs, -1))

    model, x = Moody(), torch.randn(1, 12, WIDTH)
    limit = kept_bytes(model, x)
    with pytest.raises(InexactCaptureError, match=r"blocks.0.*did something else than before"):
        AttentionRollout(model, max_memory=limit).attribute(x, position=-1)
