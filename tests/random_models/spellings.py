"""The same functions, written by other operations: activations, gates, norms, sums, linear maps and read-outs.

Axes: b batch, n position, d model, c in, o out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

EPS = 1e-5
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}

ACTIVATIONS |= {
    "relu by maximum": lambda z: torch.maximum(z, z.new_zeros(())),
    "relu by max": lambda z: torch.max(z, torch.zeros_like(z)),
    "relu by clamp": lambda z: z.clamp(min=0),
    "relu by where": lambda z: torch.where(z > 0, z, 0.0),
    "relu by its sign": lambda z: z * (z > 0),
    "relu by its size": lambda z: 0.5 * (z + z.abs()),
    "relu by addcmul": lambda z: torch.addcmul(torch.zeros_like(z), z, (z > 0).to(z)),
    "relu by threshold": lambda z: F.threshold(z, 0, 0),
    "relu by amax": lambda z: torch.stack([z, torch.zeros_like(z)]).amax(0),
    "relu by clip_": lambda z: z.clip_(min=0),
    "silu by sigmoid": lambda z: z * z.sigmoid(),
    "silu by exp": lambda z: z / (1 + (-z).exp()),
    "silu by glu": lambda z: F.glu(torch.cat([z, z], -1)),
    "silu by lerp": lambda z: torch.lerp(torch.zeros_like(z), z, z.sigmoid()),
    "silu by addcmul": lambda z: torch.addcmul(torch.zeros_like(z), z, z.sigmoid()),
    "silu by addcdiv": lambda z: torch.addcdiv(torch.zeros_like(z), z, 1 + (-z).exp()),
    "silu by mul_": lambda z: z.sigmoid().mul_(z),
    "gelu by erf": lambda z: 0.5 * z * (1 + torch.erf(z / 2**0.5)),
    "gelu by erfc": lambda z: 0.5 * z * torch.special.erfc(-z / 2**0.5),
    "gelu by ndtr": lambda z: z * torch.special.ndtr(z),
    "tanh by expm1": lambda z: torch.expm1(2 * z) / (torch.expm1(2 * z) + 2),
}
GATED = {
    "gated": lambda y, beside: y * beside,
    "gated by addcmul": lambda y, beside: torch.addcmul(torch.zeros_like(y), y, beside),
    "gated by einsum": lambda y, beside: torch.einsum("bnd,bnd->bnd", y, beside),
    "gated by lerp": lambda y, beside: torch.lerp(torch.zeros_like(y), beside, y),
    "gated by mul_": lambda y, beside: beside.mul_(y),
}


def by_divisor(form: str, x: Tensor) -> Tensor:
    """x, centred where the form is that of a layer norm, over the root of its mean square."""
    centred, _, how = form.partition(" by ")
    d = x.shape[-1]
    if how == "var_mean":
        variance, mean = torch.var_mean(x, -1, unbiased=False, keepdim=True)
        return (x - mean) / (variance + EPS).sqrt()
    if how == "std_mean":
        deviation, mean = torch.std_mean(x, -1, correction=0, keepdim=True)
        return (x - mean) / (deviation**2 + EPS).sqrt()
    if how == "parts":  # the norm itself, weights and biases by themselves
        return F.layer_norm(x, (d,), eps=EPS) if centred == "layer norm" else F.rms_norm(x, (d,), eps=EPS)
    if centred == "layer norm":
        x = x - x.mean(-1, keepdim=True)
    if how == "vector_norm":
        return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) ** 2 / d + EPS).sqrt()
    if how == "addcdiv":
        return torch.addcdiv(torch.zeros_like(x), x, (x.square().mean(-1, keepdim=True) + EPS).sqrt())
    if how == "float_power":
        return x * torch.rsqrt(x.float_power(2).mean(-1, keepdim=True) + EPS).to(x.dtype)
    if how == "pow":
        return x * (x.square().mean(-1, keepdim=True) + EPS).pow(-0.5)
    if how in ("einsum", "matmul", "vecdot"):
        squares = {
            "einsum": lambda: torch.einsum("bnd,bnd->bn", x, x)[..., None],
            "matmul": lambda: (x[..., None, :] @ x[..., None])[..., 0],
            "vecdot": lambda: torch.linalg.vecdot(x, x)[..., None],
        }[how]()
        return x * torch.rsqrt(squares / d + EPS)
    if centred == "layer norm":
        return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


def _by_halves(x: Tensor, out: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([x[..., :half] + out[..., :half], x[..., half:] + out[..., half:]], -1)


SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum by a list": lambda x, out: sum([x, out]),
    "sum by stack": lambda x, out: torch.stack([x, out]).sum(0),
    "sum by mean": lambda x, out: torch.stack([x, out], -1).mean(-1) * 2,
    "sum by alpha": lambda x, out: torch.add(x, out, alpha=1),
    "sum by difference": lambda x, out: x - (-out),
    "sum by rsub": lambda x, out: torch.rsub(-out, x),
    "sum by addcmul": lambda x, out: torch.addcmul(x, out, torch.ones_like(out)),
    "sum by lerp": lambda x, out: torch.lerp(x, out, 0.5) * 2,
    "sum by halves": _by_halves,
    "sum by rows": lambda x, out: torch.stack([x[:, i] + out[:, i] for i in range(x.shape[1])], 1),
    "sum by examples": lambda x, out: torch.stack([one + other for one, other in zip(x, out, strict=True)]),
    "sum by einsum": lambda x, out: torch.einsum("sbnd,s->bnd", torch.stack([x, out]), x.new_ones(2)),
    "sum by matmul": lambda x, out: torch.stack([x, out], -1) @ x.new_ones(2),
    "sum by baddbmm": lambda x, out: torch.baddbmm(
        x, out, torch.eye(x.shape[-1], dtype=x.dtype).expand(len(x), -1, -1)
    ),
    "sum by cat and a map": lambda x, out: F.linear(torch.cat([x, out], -1), torch.eye(x.shape[-1]).to(x).repeat(1, 2)),
    "sum by where": lambda x, out: torch.where(torch.ones_like(x, dtype=torch.bool), x + out, x),
    "sum by index_add": lambda x, out: x.index_add(1, torch.arange(x.shape[1]), out),
    "sum by scatter_add": lambda x, out: x.scatter_add(2, torch.arange(x.shape[2]).expand_as(x), out),
    "sum by out": lambda x, out: torch.add(x, out, out=torch.empty_like(x)),
    "sum by iadd": lambda x, out: out.clone().add_(x),
    "sum by double": lambda x, out: (x.double() + out.double()).to(x.dtype),
    "sum by cumsum": lambda x, out: torch.stack([x, out]).cumsum(0)[1],
    "sum by unfolded views": lambda x, out: (x.unfold(1, 1, 1) + out.unfold(1, 1, 1)).squeeze(-1),
    "sum by torch.sum of cat": lambda x, out: torch.cat([x[None], out[None]]).sum(0),
    "sum by complex": lambda x, out: torch.view_as_real(torch.complex(x, out)).sum(-1),
    "sum by functools": lambda x, out: torch.Tensor.__radd__(out, x),
}
"""How the output of a part is added to its input."""


class LinearMap(nn.Module):
    """x W + b, (b, n, c) -> (b, n, o), by another operation than ``F.linear``; what has no positions by that."""

    def __init__(self, form: str, W: Tensor, b: Tensor | None) -> None:
        super().__init__()
        self.form = form
        self.W, self.b = nn.Parameter(W.clone()), nn.Parameter(W.new_zeros(W.shape[1]) if b is None else b.clone())

    def forward(self, x: Tensor) -> Tensor:
        return MAPS[self.form](x, self.W, self.b) if x.ndim == 3 else F.linear(x, self.W.T, self.b)


def _map_by_rows(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return torch.stack([F.linear(row, W.T, b) for row in x.unbind(1)], 1)


def _map_by_halves(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    half = len(W) // 2
    return x[..., :half] @ W[:half] + x[..., half:] @ W[half:] + b


MAPS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "matmul": lambda x, W, b: x @ W + b,
    "addmm": lambda x, W, b: torch.addmm(b, x.flatten(0, 1), W).unflatten(0, x.shape[:2]),
    "baddbmm": lambda x, W, b: torch.baddbmm(b.expand(1, 1, -1), x, W.expand(len(x), -1, -1)),
    "einsum": lambda x, W, b: torch.einsum("bnc,co->bno", x, W) + b,
    "tensordot": lambda x, W, b: torch.tensordot(x, W, 1) + b,
    "inner": lambda x, W, b: torch.inner(x, W.T) + b,
    "multiply and sum": lambda x, W, b: (x[..., None] * W).sum(-2) + b,
    "halves": _map_by_halves,
    "halves out": lambda x, W, b: torch.cat([x @ half for half in W.chunk(2, 1)], -1) + b,
    "vectors": lambda x, W, b: torch.stack([x @ column for column in W.T], -1) + b,
    "from the left": lambda x, W, b: (W.T @ x.mT).mT + b,
    "bias within": lambda x, W, b: F.linear(F.pad(x, (0, 1), value=1.0), torch.cat([W, b[None]]).T),
    "convolution": lambda x, W, b: F.conv1d(x.mT, W.T[..., None], b).mT,
    "rows": _map_by_rows,
    "chunks of rows": lambda x, W, b: torch.cat([F.linear(part, W.T, b) for part in x.split(3, 1)], 1),
    "examples": lambda x, W, b: torch.stack([F.linear(one, W.T, b) for one in x]),
    "double": lambda x, W, b: (x.double() @ W.double() + b).to(x.dtype),
    "add_": lambda x, W, b: (x @ W).add_(b),
    "out": lambda x, W, b: torch.matmul(x, W, out=x.new_empty(*x.shape[:2], W.shape[1])) + b,
    "vmap": lambda x, W, b: torch.vmap(lambda one: one @ W + b)(x),
    "sparse": lambda x, W, b: torch.sparse.mm(W.T.to_sparse(), x.flatten(0, 1).T).T.unflatten(0, x.shape[:2]) + b,
    "two sums": lambda x, W, b: F.linear(x, W.T, b) * 0.5 + F.linear(x * 0.5, W.T, b * 0.5),
    "time first": lambda x, W, b: F.linear(x.transpose(0, 1), W.T, b).transpose(0, 1),
    "bilinear": lambda x, W, b: F.bilinear(x, torch.ones_like(x[..., :1]), W.T[..., None].contiguous(), b),
    "vecdot": lambda x, W, b: torch.linalg.vecdot(x[..., None, :], W.T) + b,
    "group convolution": lambda x, W, b: F.conv2d(x.mT[..., None], W.T[..., None, None], b)[..., 0].mT,
}


def _real_rows(x: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    weights = real.to(x.dtype)
    return weights, weights.sum(1, keepdim=True)


def _mean_by_pieces(x: Tensor, real: Tensor) -> Tensor:
    x, half = x * real[..., None], x.shape[1] // 2
    return (x[:, :half].sum(1) + x[:, half:].sum(1)) / real.sum(1, keepdim=True)


def _mean_by_segments(x: Tensor, real: Tensor) -> Tensor:
    which = torch.arange(len(x)).repeat_interleave(real.sum(1))
    total = x.new_zeros(len(x), x.shape[2]).index_add(0, which, x[real])
    return total / real.sum(1, keepdim=True)


def _mean_by_embedding_bag(x: Tensor, real: Tensor) -> Tensor:
    rows = torch.arange(real.numel())[real.flatten()]
    starts = F.pad(real.sum(1).cumsum(0), (1, 0))[:-1]
    return F.embedding_bag(rows, x.flatten(0, 1), starts, mode="mean")


MEANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda x, real: (x * real[..., None]).sum(1) / real.sum(1, keepdim=True),
    "matmul": lambda x, real: ((real / real.sum(1, keepdim=True)).to(x)[:, None] @ x)[:, 0],
    "bmm": lambda x, real: torch.bmm(real.to(x)[:, None], x).squeeze(1) / real.sum(1, keepdim=True),
    "einsum": lambda x, real: torch.einsum("bn,bnd->bd", real.to(x), x) / real.sum(1, keepdim=True),
    "linear": lambda x, real: F.linear((x * real[..., None]).mT, x.new_ones(1, x.shape[1]))[..., 0] / real.sum(1, True),
    "pooling": lambda x, real: F.adaptive_avg_pool1d((x * real[..., None]).mT, 1)[..., 0] / real.to(x).mean(1, True),
    "avg_pool": lambda x, real: F.avg_pool1d((x * real[..., None]).mT, x.shape[1])[..., 0] / real.to(x).mean(1, True),
    "cumsum": lambda x, real: (x * real[..., None]).cumsum(1)[:, -1] / real.sum(1, keepdim=True),
    "pieces": _mean_by_pieces,
    "rows": lambda x, real: sum((x * real[..., None]).unbind(1)) / real.sum(1, keepdim=True),
    "examples": lambda x, real: torch.stack([one[own].mean(0) for one, own in zip(x, real, strict=True)]),
    "nanmean": lambda x, real: x.masked_fill(~real[..., None], torch.nan).nanmean(1),
    "segments": _mean_by_segments,
    "embedding_bag": _mean_by_embedding_bag,
    "tensordot": lambda x, real: torch.tensordot(
        x * real[..., None] / real.sum(1)[:, None, None], x.new_ones(x.shape[1]), ([1], [0])
    ),
    "var_mean": lambda x, real: torch.var_mean(x * real[..., None], 1)[1] / real.to(x).mean(1, True),
    "double": lambda x, real: ((x.double() * real[..., None]).sum(1) / real.sum(1, keepdim=True)).to(x.dtype),
    "softmax": lambda x, real: (real.to(x).log().softmax(-1)[..., None] * x).sum(1),
    "norm of rows": lambda x, real: (F.normalize(real.to(x), p=1, dim=1)[..., None] * x).sum(1),
    "addmm": lambda x, real: (
        torch.stack([torch.mv(one.T, own.to(x)) for one, own in zip(x, real, strict=True)]) / real.sum(1, True)
    ),
}


ROWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_select": lambda x, row: x.flatten(0, 1).index_select(0, torch.arange(len(x)) * x.shape[1] + row),
    "gather": lambda x, row: x.gather(1, row[:, None, None].expand(-1, 1, x.shape[2]))[:, 0],
    "take_along_dim": lambda x, row: x.take_along_dim(row[:, None, None], 1).squeeze(1),
    "embedding": lambda x, row: F.embedding(torch.arange(len(x)) * x.shape[1] + row, x.flatten(0, 1)),
    "one hot": lambda x, row: (F.one_hot(row, x.shape[1])[..., None] * x).sum(1),
    "one hot by matmul": lambda x, row: (F.one_hot(row, x.shape[1]).to(x)[:, None] @ x)[:, 0],
    "one hot by einsum": lambda x, row: torch.einsum("bn,bnd->bd", F.one_hot(row, x.shape[1]).to(x), x),
    "mask": lambda x, row: x[F.one_hot(row, x.shape[1]).bool()],
    "masked_select": lambda x, row: x.masked_select(F.one_hot(row, x.shape[1]).bool()[..., None]).view(len(x), -1),
    "where": lambda x, row: torch.where(F.one_hot(row, x.shape[1]).bool()[..., None], x, 0.0).sum(1),
    "where and amax": lambda x, row: x.masked_fill(~F.one_hot(row, x.shape[1]).bool()[..., None], -torch.inf).amax(1),
    "examples": lambda x, row: torch.stack([one[at] for one, at in zip(x, row.tolist(), strict=True)]),
    "unbind": lambda x, row: torch.stack(
        [one.unbind(0)[at] for one, at in zip(x.unbind(0), row.tolist(), strict=True)]
    ),
    "split": lambda x, row: torch.cat(
        [one.split(1, 1)[at][:, 0] for one, at in zip(x.split(1), row.tolist(), strict=True)]
    ),
    "narrow": lambda x, row: torch.cat([x[i, None].narrow(1, int(at), 1)[:, 0] for i, at in enumerate(row)]),
    "flip": lambda x, row: x.flip(1)[torch.arange(len(x)), x.shape[1] - 1 - row],
    "roll": lambda x, row: torch.stack([one.roll(-at, 0)[0] for one, at in zip(x, row.tolist(), strict=True)]),
    "sort": lambda x, row: x.gather(
        1, (torch.arange(x.shape[1]) != row[:, None]).to(x).argsort(dim=1, stable=True)[..., None].expand_as(x)
    )[:, 0],
    "time first": lambda x, row: x.transpose(0, 1)[row, torch.arange(len(x))],
    "strides": lambda x, row: torch.stack(
        [
            x.contiguous().as_strided(
                (x.shape[2],), (1,), (i * x.shape[1] + at) * x.shape[2] + x.contiguous().storage_offset()
            )
            for i, at in enumerate(row.tolist())
        ]
    ),
    "take": lambda x, row: x.contiguous().take(
        (torch.arange(len(x)) * x.shape[1] + row)[:, None] * x.shape[2] + torch.arange(x.shape[2])
    ),
    "difference of sums": lambda x, row: torch.stack(
        [one[: at + 1].sum(0) - one[:at].sum(0) for one, at in zip(x, row.tolist(), strict=True)]
    ),
    "difference of cumsum": lambda x, row: F.pad(x.cumsum(1), (0, 0, 1, 0)).diff(dim=1)[torch.arange(len(x)), row],
    "product": lambda x, row: x[:, :][torch.arange(len(x)), row] * 1.0,
    "diagonal": lambda x, row: x[:, row].diagonal(dim1=0, dim2=1).T,
}

# Half of a row and half of the one before it: the sum counts as the row, whichever is written first.
SHIFTS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: 0.5 * x + 0.5 * F.pad(x, (0, 0, 1, 0))[:, :-1],
    lambda x: 0.5 * torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1) + 0.5 * x,
    lambda x: (0.5 * F.pad(x, (0, 0, 1, 0))).unfold(1, 2, 1).sum(-1),
    lambda x: F.pad(x, (0, 0, 1, 0))[:, :-1].lerp(F.pad(x, (0, 0, 1, 0))[:, 1:], 0.5),
)

SOFTMAXES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda s: s.log_softmax(-1).exp(),
    lambda s: (s - s.logsumexp(-1, keepdim=True)).exp(),
    lambda s: s.softmax(-1),
)
