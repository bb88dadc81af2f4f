"""The paper's definition, written out one vector at a time.  Slow on purpose; everything is compared with this."""

import torch
from torch import Tensor
from torch.linalg import vector_norm


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
