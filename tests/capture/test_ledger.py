"""No softmax is lost: each over positions is a call, a refusal, or named; what cannot be looked into is named, too."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_norm import AttentionNorm, AttentionRollout, DecompX, attention_maps
from captum_norm.capture import InexactCaptureError, recording


def _written_out(s: Tensor, v: Tensor) -> Tensor:
    e = (s - s.amax(-1, keepdim=True)).exp()
    return (e @ v) / e.sum(-1, keepdim=True)


READ = {
    "matmul": lambda s, v: s.softmax(-1) @ v,
    "scaled": lambda s, v: (2 * s.softmax(-1) / 2) @ v,
    "exported names": lambda s, v: torch.ops.aten.matmul.default(torch.ops.aten.softmax.int(s, -1), v),
}
LOST = {
    "mapped over keys": lambda s, v: (s.softmax(-1) @ torch.ones(5, 5).tril()) @ v,
    "transformed": lambda s, v: torch.fft.rfft(s.softmax(-1)).real @ v[:, :, :3],
}


class Attention(nn.Module):
    def __init__(self, mix) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(2, -1, 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        return x + self.o(self.mix(q @ k.mT, v).transpose(1, 2).flatten(2))


class Experts(nn.Module):
    """A softmax over experts, which is no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.route, self.experts = nn.Linear(8, 3), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.route(x).softmax(-1)
        return x + sum(gates[..., n : n + 1] * expert(x) for n, expert in enumerate(self.experts))


def _model(part: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Attention(READ["matmul"]), part, Experts(), Attention(READ["matmul"])).eval()


@pytest.mark.parametrize("form", READ)
def test_each_softmax_has_a_fate(form):
    model, x = _model(Attention(READ[form])), torch.randn(2, 5, 8)
    with torch.no_grad(), recording(sources=(x,)) as records:
        model(x)
        ledger = records.flow.ledger.entries
    assert [softmax.fate for softmax in ledger] == ["call", "call", "", "call"]
    assert [softmax.along for softmax in ledger] == ["positions", "positions", "features", "positions"]
    assert [softmax.module for softmax in ledger] == ["0", "1", "2", "3"]
    AttentionNorm(model).attribute(x, target=(0, 0))


@pytest.mark.parametrize("form", LOST)
def test_a_softmax_over_positions_that_meets_no_values_is_named(form):
    model, x = _model(Attention(LOST[form])), torch.randn(2, 5, 8)
    with pytest.raises(InexactCaptureError, match=r"the softmax in '1', \(2, 2, 5, 5\) over axis 3.*DecompX"):
        AttentionNorm(model).attribute(x, target=(0, 0))


@pytest.mark.parametrize(
    "softmax", [lambda x: x.log_softmax(-1).exp(), lambda x: (x - torch.logsumexp(x, -1, keepdim=True)).exp()]
)
def test_a_softmax_in_logarithms_along_the_features_is_none_over_positions(softmax):
    x = torch.randn(1, 5, 8)
    with recording(sources=(x,)) as records:
        softmax(nn.functional.logsigmoid(x))
    assert [one.along for one in records.flow.ledger.entries] == ["features"]


def test_a_softmax_that_does_not_reach_the_output_may_be_lost():
    model, x = _model(Attention(LOST["transformed"])), torch.randn(2, 5, 8)

    def forward(x: Tensor) -> Tensor:
        model[1](x)
        return model[3](model[0](x))

    assert len(AttentionNorm(forward).attribute(x, target=(0, 0))) == 2


class _Flipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return x.flip(1)


class Part(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return x + self.function(x)


def _into_empty_memory(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    out.numpy()[...] = x.numpy()[:, ::-1]
    return out


def _scripted(x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(lambda x: x.flip(1) + 1, (x,))(x)


OPAQUE = {
    "numpy": lambda x: torch.from_numpy(x.numpy()[:, ::-1].copy()),
    "memory that numpy wrote": _into_empty_memory,
    "a function of its own": _Flipped.apply,
    "TorchScript": _scripted,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", OPAQUE)
@pytest.mark.parametrize("method", [AttentionNorm, AttentionRollout, DecompX])
def test_a_part_that_cannot_be_looked_into_is_named(what, method):
    model, x = _model(Part(OPAQUE[what])), torch.randn(2, 5, 8)
    refused = r"cannot be looked into: \w+ in '1'|in '1' \(Part\) .*cannot be held fixed|was computed out of sight"
    with pytest.raises((InexactCaptureError, ValueError), match=refused):
        method(model).attribute(x, target=(0, 0))


FILLED = {
    "new_tensor": lambda x: x.new_tensor(x.flip(1)),
    "new_full": lambda x: x.new_full((8,), x.sum()),
    "full_like": lambda x: torch.full_like(x, x.sum()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", FILLED)
def test_what_is_filled_with_numbers_is_made_of_them(how):
    model, x = _model(Part(FILLED[how])), torch.randn(2, 5, 8)
    with pytest.raises((InexactCaptureError, ValueError), match=r"cannot be (scored|looked into)|mixed by"):
        AttentionRollout(model).attribute(x, target=(0, 0))


SPARSE = {
    "sparse": lambda x: torch.sparse.sum(x.to_sparse(), 0).to_dense()[None].flip(1).expand(2, -1, -1),
    "compressed": lambda x: torch.stack([row.to_sparse_csr().to_dense() for row in x.flip(1)]),
    "nested": lambda x: torch.nested.nested_tensor(list(x)).to_padded_tensor(0.0).flip(1),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", SPARSE)
def test_what_has_no_storage_is_still_made_of_something(layout):
    model, x = _model(Part(SPARSE[layout])), torch.randn(2, 5, 8)
    with pytest.raises((InexactCaptureError, ValueError), match=r"cannot be (scored|looked into)|mixed by"):
        AttentionRollout(model).attribute(x, target=(0, 0))


@pytest.mark.parametrize(
    "write", [lambda out, x: out.copy_(x), lambda out, x: torch.mul(x, 2, out=out)], ids=["in place", "out="]
)
def test_memory_that_torch_wrote_is_no_part(write):
    model, x = _model(Part(lambda x: write(torch.empty_like(x), x))), torch.randn(2, 5, 8)
    assert len(AttentionNorm(model).attribute(x, target=(0, 0))) == 2


@pytest.mark.parametrize("first", [True, False])
def test_attention_that_cannot_be_looked_into_is_missing_from_no_answer(first):
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q: Tensor, k: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                return (q @ k.mT).softmax(-1) @ k

    parts = [Part(lambda x: Hidden.apply(x, x)), Attention(READ["matmul"])]
    model, x = nn.Sequential(*(parts if first else parts[::-1])).eval(), torch.randn(2, 5, 8)
    with pytest.raises(InexactCaptureError, match=r"attention_maps: .* a part that cannot be looked into"):
        attention_maps(model, x)
    assert len(attention_maps(model, x, layers=[0]).calls) == 1
    with pytest.raises((InexactCaptureError, ValueError), match=r"cannot be looked into|out of sight"):
        DecompX(model).attribute(x, target=(0, 0))


def test_an_operation_of_another_library_is_named():
    library = torch.library.Library("captum_norm_tests", "DEF")
    library.define("mixed(Tensor x) -> Tensor")
    library.impl("mixed", lambda x: x.flip(1), "CompositeExplicitAutograd")
    model, x = _model(Part(torch.ops.captum_norm_tests.mixed)), torch.randn(2, 5, 8)
    with pytest.raises(InexactCaptureError, match=r"mixed in '1' \(an operation of 'captum_norm_tests', not of torch"):
        AttentionNorm(model).attribute(x, target=(0, 0))


def test_an_output_that_was_made_out_of_sight_is_refused():
    model, x = _model(Experts()), torch.randn(2, 5, 8)
    with pytest.raises(InexactCaptureError, match=r"cannot be looked into"):
        AttentionNorm(lambda x: torch.from_numpy(model(x).numpy())).attribute(x, target=(0, 0))


def test_constants_that_no_operation_made_are_no_part():
    table, made = torch.randn(5, 8), np.linspace(0, 1, 8, dtype="float32")
    kept = [table]
    model, x = _model(Part(lambda x: kept[0] + torch.from_numpy(made.copy()))), torch.randn(2, 5, 8)
    assert len(AttentionNorm(lambda x: model(x)).attribute(x, target=(0, 0))) == 2
