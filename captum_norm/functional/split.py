"""Which numbers of an input does the length of its contribution come from?

What j adds to i is linear in the value of j, and the norm of a linear map is 1-homogeneous.  So by Euler's theorem,
with alpha held fixed, y_ij = sum_h alpha^h_ij f^h(x_j) and u_ij = y_ij / ||y_ij||,

    ||y_ij|| = sum_c x_jc <dy_ij / dx_jc, u_ij>  +  <sum_h alpha^h_ij b_V^h W_O^h, u_ij> :

an exact split over the features c of x_j, and a share that belongs to the bias b_V and to no input.  Where y_ij = 0 the
norm has no gradient; its share is 0 there, which keeps the sum exact.

Axes: b batch, h head, q query, k key, e head_dim, d model, c feature of the layer's input.
In float64; returned in float64 if any tensor is float64, else in float32.  No gradient flows through.
"""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from captum_norm.functional.axes import check_axes, check_finite, result_dtype
from captum_norm.functional.norms import attention_inputs


@torch.no_grad()
def value_gradients(weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None = None) -> Tensor:
    """d (sum_ij ||y_ij||) / d values, with the weights held fixed: times the values it sums to the norms themselves.

    Costs a projection and its transpose for each query.

    Arguments and errors are those of ``head_norms``.

    Returns:
        (batch, head, key, head_dim).

    Example:
        >>> values = torch.tensor([[[[3.0, 4.0]]]])                        # 1 batch, 1 head, 1 key
        >>> value_gradients(torch.tensor([[[[0.5]]]]), values, torch.eye(2)[None])
        tensor([[[[0.3000, 0.4000]]]])
    """
    inputs = attention_inputs(weights, values, W_O, gate)
    sizes = check_axes("value_gradients", **inputs)
    result = torch.zeros_like(values, dtype=torch.float64)
    projection = W_O.double()
    for query in range(sizes["query"]):
        scale = weights[:, :, query, :, None].double()
        if gate is not None:
            scale = scale * gate[:, :, query, None]
        vectors = torch.einsum("bhke,hed->bkd", scale * values, projection)
        lengths = vector_norm(vectors, dim=-1, keepdim=True)
        unit = torch.where(lengths > 0, vectors / lengths, 0)
        result += scale * torch.einsum("bkd,hed->bhke", unit, projection)
    return check_finite("value_gradients", result.to(result_dtype(weights, values, W_O, gate)), **inputs)


@torch.no_grad()
def input_split(
    weights: Tensor, inputs: Tensor, W_V: Tensor, b_V: Tensor, W_O: Tensor, gate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The norms of all given queries, added up, split over the features of the layer's input.

    Args:
        weights: attention weights alpha of the queries asked for, (batch, head, query, key).
        inputs: the layer's input x, (batch, key, feature).
        W_V: each head's slice of the value projection, (head, feature, head_dim).
        b_V: its bias, (head, head_dim).
        W_O, gate: as in ``head_norms``.

    Returns:
        The split (batch, key, feature), signed, and the bias share (batch,): together they add up to
        ``summed_norms(...).sum((1, 2))``.

    Raises:
        TypeError, ValueError: as ``head_norms`` does.

    Example:
        The value is (0, 4) + (3, 0), 5 long: 16/5 of that come from the input, 9/5 from the bias.

        >>> x, same = torch.tensor([[[0.0, 4.0]]]), torch.eye(2)[None]
        >>> input_split(torch.ones(1, 1, 1, 1), x, W_V=same, b_V=torch.tensor([[3.0, 0.0]]), W_O=same)
        (tensor([[[0.0000, 3.2000]]]), tensor([1.8000]))
    """
    check_axes(
        "input_split",
        weights=(weights, "batch head query key"),
        inputs=(inputs, "batch key feature"),
        W_V=(W_V, "head feature head_dim"),
        b_V=(b_V, "head head_dim"),
        W_O=(W_O, "head head_dim model"),
    )
    dtype = result_dtype(weights, inputs, W_V, b_V, W_O, gate)
    values = torch.einsum("bkc,hce->bhke", inputs.double(), W_V.double()) + b_V.double()[:, None]
    gradients = value_gradients(weights, values, W_O, gate)
    split = inputs * torch.einsum("bhke,hce->bkc", gradients, W_V.double())
    return split.to(dtype), torch.einsum("bhke,he->b", gradients, b_V.double()).to(dtype)
