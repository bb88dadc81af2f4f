"""How much does input j contribute to output i of attention?  The maths only: tensors in, tensors out."""

import torch
from torch import Tensor
from torch.linalg import qr, vector_norm


def transformed_norms(values: Tensor, W_O: Tensor) -> Tensor:
    """||f(x_j)||, (batch, head, key)."""
    return vector_norm(values @ W_O, dim=-1)


def head_norms(weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None = None) -> Tensor:
    """||alpha_ij f(x_j)|| for every head, (batch, head, query, key)."""
    if gate is not None and gate.shape[-1] != 1:
        return weights.abs() * vector_norm((values[:, :, None] * gate[:, :, :, None]) @ W_O[:, None], dim=-1)
    weights = weights if gate is None else weights * gate
    return weights.abs() * transformed_norms(values, W_O)[:, :, None]


def summed_norms(weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None = None) -> Tensor:
    """||sum_h alpha^h_ij f^h(x_j)||, (batch, query, key)."""
    if gate is not None and gate.shape[-1] != 1:
        return vector_norm(torch.einsum("bhqk,bhke,bhqe,hed->bqkd", weights, values, gate, W_O), dim=-1)
    weights = weights if gate is None else weights * gate
    f = torch.einsum("bhke,hed->bkhd", values, W_O)
    factor = qr(f.mT.double(), mode="r").R.mT.to(f.dtype)
    return vector_norm(torch.einsum("bhqk,bkhr->bqkr", weights, factor), dim=-1)
