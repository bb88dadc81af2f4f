"""The paper's definition, written out one vector at a time.  Slow on purpose; everything is compared with this."""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from captum_norm.functional import FrozenNorm


def contributions(weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None = None) -> Tensor:
    """alpha_ij (gate_i * value_j) W_O for every head, in float64: (batch, head, query, key, model)."""
    weights, values, W_O = weights.double(), values.double(), W_O.double()
    batch, head, query, key = weights.shape
    out = torch.zeros(batch, head, query, key, W_O.shape[-1], dtype=torch.float64)
    for b, h, i, j in torch.cartesian_prod(*map(torch.arange, (batch, head, query, key))):
        value = values[b, h, j] if gate is None else gate[b, h, i].double() * values[b, h, j]
        out[b, h, i, j] = weights[b, h, i, j] * (value @ W_O[h])
    return out


def slow_head_norms(weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None = None) -> Tensor:
    return vector_norm(contributions(weights, values, W_O, gate), dim=-1)


def slow_summed_norms(weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None = None) -> Tensor:
    return vector_norm(contributions(weights, values, W_O, gate).sum(dim=1), dim=-1)


def slow_transformed_norms(values: Tensor, W_O: Tensor) -> Tensor:
    ones = torch.ones(*values.shape[:2], 1, values.shape[2])
    return slow_head_norms(ones, values, W_O)[:, :, 0]


def slow_rollout(maps: list[Tensor], residual: bool) -> Tensor:
    """First layer first, one example and one layer at a time, as in the paper's equations 1 and 2."""
    out = []
    for example in range(len(maps[0])):
        joint = None
        for layer in maps:
            A = layer[example].double()
            if residual:
                A = 0.5 * A + 0.5 * torch.eye(len(A), dtype=torch.float64)
                A = A / A.sum(dim=-1, keepdim=True)
            joint = A if joint is None else A @ joint
        out.append(joint)
    return torch.stack(out)


def block_vectors(
    weights: Tensor,
    values: Tensor,
    W_O: Tensor,
    residual: Tensor,
    *norms: FrozenNorm,
    gate: Tensor | None = None,
    inner: FrozenNorm | None = None,
    own_keys: Tensor | None = None,
) -> Tensor:
    """What each input adds to each output behind residual and norms, (batch, query, key, model).

    own_keys (batch, query): each query's own key; None: a last column holds the residual.
    """
    vectors = contributions(weights, values, W_O, gate).sum(dim=1)
    batch, query = vectors.shape[:2]
    if inner is not None:
        vectors = normalised(vectors, inner)
    if own_keys is None:
        vectors = torch.cat([vectors, residual.double()[:, :, None]], dim=2)
    else:
        for b, i in torch.cartesian_prod(torch.arange(batch), torch.arange(query)):
            vectors[b, i, own_keys[b, i]] += residual[b, i].double()
    for norm in norms:
        vectors = normalised(vectors, norm)
    return vectors


def normalised(vectors: Tensor, norm: FrozenNorm) -> Tensor:
    """Each vector (batch, query, key, model) through a norm that divides as it divided the whole state; no beta."""
    vectors = vectors.clone()
    if norm.centred:
        vectors -= vectors.mean(dim=-1, keepdim=True)
    if norm.state is not None:
        state = norm.state.double()
        if norm.centred:
            state = state - state.mean(dim=-1, keepdim=True)
        vectors /= (state.pow(2).mean(dim=-1) + norm.eps).sqrt()[:, :, None, None]
    if norm.factor is not None:
        vectors *= norm.factor.double()[:, :, None, None]
    return vectors if norm.weight is None else vectors * norm.weight.double()


def slow_mixing(vectors: Tensor, own_keys: Tensor) -> Tensor:
    """||sum over other keys|| / (the same + ||own||), (batch, query)."""
    batch, query, key, _ = vectors.shape
    ratios = torch.zeros(batch, query, dtype=vectors.dtype)
    for b, i in torch.cartesian_prod(torch.arange(batch), torch.arange(query)):
        own = int(own_keys[b, i])
        others = sum((vectors[b, i, j] for j in range(key) if j != own), torch.zeros_like(vectors[b, i, 0]))
        m, p = vector_norm(others), vector_norm(vectors[b, i, own])
        ratios[b, i] = m / (m + p)
    return ratios


def slow_alti(vectors: Tensor, output: Tensor, p: int, eps: float = 0.0) -> Tensor:
    """max(0, ||y|| - ||t - y + eps||), each row divided by its sum; rows of zeros stay."""
    output = output.double()[:, :, None]
    left = vector_norm(vectors - output + eps, ord=p, dim=-1)
    nearer = (vector_norm(output, ord=p, dim=-1) - left).clamp(min=0)
    return torch.nan_to_num(nearer / nearer.sum(dim=-1, keepdim=True), nan=0.0)


def slow_max_flow(layers: list[list[list[float]]], source: int, sink: int) -> float:
    """From a node of the top layer to one of the bottom, by shortest augmenting paths; the lowest layer first."""
    left: dict[tuple[int, int], dict[tuple[int, int], float]] = {}
    for n, layer in enumerate(layers):
        for i, row in enumerate(layer):
            for j, capacity in enumerate(row):
                left.setdefault((n + 1, i), {})[n, j] = capacity
                left.setdefault((n, j), {}).setdefault((n + 1, i), 0.0)
    start, end, flow = (len(layers), source), (0, sink), 0.0
    while True:
        came_from, queue = {start: start}, [start]
        for node in queue:
            for other, capacity in left[node].items():
                if capacity > 1e-15 and other not in came_from:
                    came_from[other] = node
                    queue.append(other)
        if end not in came_from:
            return flow
        path = [end]
        while path[-1] != start:
            path.append(came_from[path[-1]])
        edges = list(zip(path[1:], path, strict=False))
        amount = min(left[a][b] for a, b in edges)
        for a, b in edges:
            left[a][b] -= amount
            left[b][a] += amount
        flow += amount
