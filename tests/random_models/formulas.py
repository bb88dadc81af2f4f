"""The slow forms of single steps: position codes, changes of the weights, mixers, each straight from its formula.

Axes: b batch, n row, h head, q query, k key, d model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def position_bias(position: str, head: int, heads: int, n: int, m: int, table: Tensor) -> Tensor:
    """What a position code adds to one head's scores, (n, m)."""
    bias = torch.zeros(n, m, dtype=torch.float64)
    for i in range(n):
        for j in range(m):
            if position == "alibi":
                bias[i, j] = -(2.0 ** (-8.0 * (head + 1) / heads)) * abs(i - j)
            elif position == "relative":
                bias[i, j] = table[head, j - i + table.shape[1] // 2]
    return bias


def turned(x: Tensor) -> Tensor:
    """Rotary positions: entry i and entry i + e/2 are one complex number, turned by position / 100^(2i/e)."""
    half = x.shape[-1] // 2
    numbers = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous())
    out = numbers.clone()
    for position in range(x.shape[1]):
        for i in range(half):
            angle = position / 100.0 ** (2 * i / x.shape[-1])
            out[:, position, i] = numbers[:, position, i] * complex(math.cos(angle), math.sin(angle))
    return torch.cat([out.real, out.imag], -1)


def changed_weights(alpha: Tensor, change: str, extra: dict[str, Tensor]) -> Tensor:
    """What multiplies the values, from what the softmax gave: (b, h, q, k)."""
    h, keys = alpha.shape[1], alpha.shape[3]
    if change.startswith("talking heads"):
        return torch.stack([sum(alpha[:, i] * extra["talking"][i, g] for i in range(h)) for g in range(h)], 1)
    if change.startswith("top-k"):
        kept = torch.zeros_like(alpha)
        order = alpha.argsort(-1, descending=True)[..., : min(3, keys)]
        kept.scatter_(-1, order, 1.0)
        kept = alpha * kept
        return kept / kept.sum(-1, keepdim=True) if change.endswith("renormalised") else kept
    if change == "sharpened":
        return alpha * alpha / (alpha * alpha).sum(-1, keepdim=True)
    if change.startswith("masked after"):
        kept = alpha * extra["keep"][: alpha.shape[2], :keys]
        return kept / kept.sum(-1, keepdim=True) if change.endswith("renormalised") else kept
    if change == "averaged over heads":
        return (sum(alpha[:, i] for i in range(h)) / h)[:, None].expand_as(alpha)
    if change == "scaled":
        return 0.7 * alpha
    if change == "scaled by head":
        return torch.stack([alpha[:, i] * extra["head scale"][i] for i in range(h)], 1)
    if change == "batch norm":
        mean, variance, gamma, beta = extra["batch norm"]
        return torch.stack(
            [(alpha[:, i] - mean[i]) / (variance[i] + 1e-5).sqrt() * gamma[i] + beta[i] for i in range(h)], 1
        )  # fmt: skip
    return alpha


def edges_of(visible: Tensor | None, change: str, keep: Tensor, alpha: Tensor) -> Tensor:
    """(b or 1, q, k) bool, False where a weight is 0 for every input."""
    edges = torch.ones(1, *alpha.shape[2:], dtype=torch.bool) if visible is None else visible
    return edges & (keep[: alpha.shape[2], : alpha.shape[3]] != 0) if change.startswith("masked after") else edges


def two_windows(n: int, form: str) -> Tensor | None:
    """(window, row); shifted ones begin at the second row and go around the end."""
    if form not in ("windows", "shifted windows"):
        return None
    rows = [(i + form.startswith("shifted")) % n for i in range(n)]
    return torch.tensor([rows[: n // 2], rows[n // 2 :]])


def in_one_window(windows: Tensor) -> Tensor:
    """(1, q, k) bool: who sees whom."""
    n = windows.numel()
    visible = torch.zeros(1, n, n, dtype=torch.bool)
    for window in windows.tolist():
        for row in window:
            visible[0, row, window] = True
    return visible


def row_weights(n: int) -> Tensor:
    """(n,) what rows weigh in a weighted mean: numbers that no format rounds."""
    return 2.0 ** (torch.arange(n) % 3).double()


def longest_queries(queries: Tensor) -> Tensor:
    """(b, h, row): half of the queries (b, h, q, e), two at least."""
    return queries.square().sum(-1).argsort(-1, descending=True)[..., : max(2, queries.shape[2] // 2)]


def of_longest_queries(alpha: Tensor, longest: Tensor, form: str) -> Tensor:
    """Weights of the longest queries of each head; the rest give every key the same, or nothing."""
    found = torch.full_like(alpha, 1 / alpha.shape[3] if form.endswith("mean") else 0.0)
    for example, heads in enumerate(longest.tolist()):
        for head, rows in enumerate(heads):
            found[example, head, rows] = alpha[example, head, rows]
    return found


def linear_mixer(name: str, n: int, d: int, p: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """T (i, d, j, e) and a bias: row i is the sum over j of T_ij x_j, plus the bias."""
    size = n // 2 if name == "halved" else n
    T, none = torch.zeros(size, d, n, d, dtype=torch.float64), torch.zeros(size, d, dtype=torch.float64)
    one = torch.eye(d, dtype=torch.float64)
    if name == "token linear":
        return tokens_mixed(p["tokens"], p["token bias"], n, d)
    for i in range(size):
        for j in range(n):
            T[i, :, j] = {
                "convolution": lambda i, j: p["kernel"][:, :, j - i + 1] if abs(i - j) <= 1 else 0 * one,
                "depthwise convolution": lambda i, j: one * p["depthwise"][:, j - i + 1] if abs(i - j) < 2 else 0 * one,
                "causal convolution": lambda i, j: p["kernel"][:, :, j - i + 2] if i - 2 <= j <= i else 0 * one,
                "fourier": lambda i, j: _fourier(i, j, n, d),
                "roll": lambda i, j: one * (j == (i - 1) % n),
                "flip": lambda i, j: one * (j == n - 1 - i),
                "average": lambda i, j: one / 3 * (abs(i - j) <= 1),
                "halved": lambda i, j: one / 2 * (j // 2 == i),
                "cumsum": lambda i, j: one * (j <= i),
                "cumsum in numpy": lambda i, j: one * (j <= i),
                "cumsum in torchscript": lambda i, j: one * (j <= i),
                "cumsum in a function": lambda i, j: one * (j <= i),
                "token shift": lambda i, j: one * (0.5 * (i == j) + 0.5 * (j == i - 1)),
                "recurrence": lambda i, j: torch.diag(p["decay"] ** (i - j)) if j <= i else 0 * one,
                "centred": lambda i, j: one * ((i == j) - 1 / n),
            }[name](i, j)
    return T, none


def _fourier(i: int, j: int, n: int, d: int) -> Tensor:
    features = torch.arange(d, dtype=torch.float64)
    turns = i * j / n + features[:, None] * features / d
    return torch.cos(2 * math.pi * turns) / math.sqrt(d)


def tokens_mixed(W: Tensor, bias: Tensor, n: int, d: int) -> tuple[Tensor, Tensor]:
    """T and bias of a linear map over positions, the same for each feature."""
    T = torch.einsum("ij,de->idje", W[:n, :n], torch.eye(d, dtype=torch.float64))
    return T, bias[:n, None].expand(n, d)


def gru(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    """Cho et al. (2014), as torch has it, (b, n, d)."""
    W, U, (b, c) = p["gru input"], p["gru hidden"], p["gru bias"]
    d = x.shape[-1]
    h, out = torch.zeros_like(x[:, 0]), []
    for position in range(x.shape[1]):
        of_x, of_h = x[:, position] @ W.T + b, h @ U.T + c
        reset = torch.sigmoid(of_x[:, :d] + of_h[:, :d])
        update = torch.sigmoid(of_x[:, d : 2 * d] + of_h[:, d : 2 * d])
        new = torch.tanh(of_x[:, 2 * d :] + reset * of_h[:, 2 * d :])
        h = (1 - update) * new + update * h
        out.append(h)
    return torch.stack(out, 1)
