"""How much does input j contribute to output i of attention?  The maths only: tensors in, tensors out.

A head rewrites each input x_j into the vector it would pass on if attended to with weight one,

    f(x_j) = (x_j W_V + b_V) W_O,

and its output is the weighted sum  y_i = sum_j alpha_ij f(x_j).  The contribution of j to i is therefore
the length of the vector actually added, ||alpha_ij f(x_j)||, and not the weight alpha_ij alone.

Source: Kobayashi et al. (2020), "Attention is Not Only a Weight", https://arxiv.org/abs/2004.10102.
The authors' code (class BertNormOutput) calls the three quantities ||f(x)||, ||αf(x)|| and ||Σαf(x)||.
Like theirs, f leaves out the output bias b_O, which belongs to no input.

Some models multiply the mixed values with a gate before W_O.  A gate of one number per head and query scales alpha; one
of head_dim numbers changes f itself, to (g_i * (x_j W_V + b_V)) W_O, anew for each query i.

Axes, in the order and with the einsum letters used throughout captum_norm:
    b batch    h head    q query position (i)    k key position (j)    e head_dim    d model
All norms are L2, in the units of the residual stream.  They are computed in float64 and returned in float64 if any
tensor is float64, else in float32, also for bfloat16 and float16.  No gradient flows through them.
"""

from collections.abc import Iterator, Sequence
from typing import TypeGuard

import torch
from torch import Tensor
from torch.linalg import qr, vector_norm

from captum_norm.functional.axes import check_axes, check_finite, result_dtype
from captum_norm.functional.gram import (
    KeyParts,
    Parts,
    by_columns,
    by_rows,
    head_products,
    kept_before,
    kept_once,
    keys_known,
    middle_parts,
    prepared_once,
    triangle,
    triangular_factor,
)
from captum_norm.functional.normalization import Norms, fold
from captum_norm.functional.row import fill_summed_norms_of_row
from captum_norm.functional.sums import compiled_for, norms_of_sums

_VALUES = "batch head key head_dim"
_WEIGHTS = "batch head query key"
_PROJECTION = "head head_dim model"

# Below this part of sum_h ||a_h f_h|| the norm of their sum is computed in float64, so that what is left to float32 is
# right to about 1e-6.
_CANCELS = 0.1

# So many queries are computed one by one: what a key needs for any number of them costs as much as two, and of the two
# rows that may be the answer while all calls look back, the first reads one key.
_FEW_ROWS = 2


# Vectors no longer than this, as in examples that are solved by hand, are summed in float64: it costs nothing there,
# and every digit of the result is right, on whichever processor.
_SHORT = 12


@torch.no_grad()
def transformed_norms(values: Tensor, W_O: Tensor) -> Tensor:
    """||f(x_j)||: how long each input is after the head's value and output transforms.

    Args:
        values: x W_V + b_V, (batch, head, key, head_dim).
        W_O: each head's slice of the output projection, (head, head_dim, model).

    Returns:
        (batch, head, key), non-negative.

    Raises:
        TypeError, ValueError: as ``head_norms`` does.

    Example:
        >>> values = torch.tensor([[[[3.0, 4.0], [0.0, 0.1]]]])            # 1 batch, 1 head, 2 keys
        >>> transformed_norms(values, 2 * torch.eye(2)[None])
        tensor([[[10.0000,  0.2000]]])
    """
    inputs = {"values": (values, _VALUES), "W_O": (W_O, _PROJECTION)}
    check_axes("transformed_norms", **inputs)
    return check_finite("transformed_norms", _transformed_norms(values, W_O, result_dtype(values, W_O)), **inputs)


@torch.no_grad()
def head_norms(weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None = None) -> Tensor:
    """||alpha_ij f(x_j)|| for every head.

    Args:
        weights: attention weights alpha, (batch, head, query, key).
        values: x W_V + b_V, (batch, head, key, head_dim).
        W_O: each head's slice of the output projection, (head, head_dim, model).
        gate: what the mixed values are multiplied with before W_O: (batch, head, query, 1) or, at the cost of a
            projection per query and key, (batch, head, query, head_dim).

    Returns:
        (batch, head, query, key), non-negative.

    Raises:
        TypeError: if a tensor is not of floating point.
        ValueError: if shapes or devices disagree, or a tensor holds NaN or infinity.

    Example:
        Two inputs get equal weight, but the second is all but erased by the value transform:

        >>> weights = torch.tensor([[[[0.5, 0.5]]]])                       # 1 batch, 1 head, 1 query, 2 keys
        >>> values = torch.tensor([[[[3.0, 4.0], [0.0, 0.1]]]])
        >>> head_norms(weights, values, torch.eye(2)[None])
        tensor([[[[2.5000, 0.0500]]]])

        A gate that shuts the first of the two value dimensions:

        >>> head_norms(weights, values, torch.eye(2)[None], gate=torch.tensor([[[[0.0, 1.0]]]]))
        tensor([[[[2.0000, 0.0500]]]])
    """
    inputs = attention_inputs(weights, values, W_O, gate)
    result = _empty(check_axes("head_norms", **inputs), _WEIGHTS, weights, values, W_O, gate)
    if result.numel() == 0:
        return result
    if is_elementwise(gate):
        _fill_gated_head_norms(result, weights, values, W_O, gate)
    else:
        # alpha is a scalar, so it comes out of the norm: the (query, key, model) vectors are never built.
        lengths = _transformed_norms(values, W_O, result.dtype)
        torch.mul(weights, lengths[:, :, None], out=result)
        if gate is not None:
            result.mul_(gate)
        result.abs_()
    return check_finite("head_norms", result, **inputs)


@torch.no_grad()
def summed_norms(weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None = None) -> Tensor:
    """||sum_h alpha^h_ij f^h(x_j)||: the contribution of j to i through all heads together.

    Heads that push in opposite directions cancel here, so this is at most ``head_norms(...).sum(dim=1)``.

    Arguments and errors are those of ``head_norms``.

    Returns:
        (batch, query, key), non-negative.

    Example:
        Two heads read the same value, 5 long.  They agree on the first key; on the second, one undoes the other:

        >>> weights = torch.tensor([[[[0.5, 0.5]], [[0.5, 0.5]]]])         # 1 batch, 2 heads, 1 query, 2 keys
        >>> values = torch.tensor([[[[3.0, 4.0], [3.0, 4.0]], [[3.0, 4.0], [-3.0, -4.0]]]])
        >>> summed_norms(weights, values, torch.eye(2).expand(2, 2, 2))
        tensor([[[5., 0.]]])
    """
    inputs = attention_inputs(weights, values, W_O, gate)
    result = _empty(check_axes("summed_norms", **inputs), "batch query key", weights, values, W_O, gate)
    fill_summed_norms(result, weights, values, W_O, gate)
    return check_finite("summed_norms", result, **inputs)


def fill_summed_norms(
    result: Tensor, weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None, after: Norms = ()
) -> None:
    """Writes into result (batch, query, key), float32 or float64, the summed norms behind W_O and normalisations.

    What a query is divided by in these is left out: ``normalization.divided`` does that.
    """
    if result.numel() == 0 or weights.shape[1] == 0:
        result.zero_()
    elif is_elementwise(gate):
        _fill_gated_summed_norms(result, weights, values, fold(W_O, after), gate)
    elif result.dtype == torch.float64 or W_O.shape[2] <= max(W_O.shape[0], _SHORT):
        # Vectors are short, or no longer than what would replace them: a number for each head.
        _fill_summed_norms_by_factors(result, weights, values, fold(W_O, after), gate)
    elif weights.shape[2] <= _FEW_ROWS and not after:
        for q in range(weights.shape[2]):
            row = slice(q, q + 1)
            own = None if gate is None else gate[:, :, row]
            _fill_summed_norms_of_row(result[:, row], weights[:, :, row], values, W_O, own)
    else:
        fill_summed_norms_by_products(result, weights, values, W_O, gate, after)


def _transformed_norms(values: Tensor, W_O: Tensor, dtype: torch.dtype) -> Tensor:
    return kept_once(lambda: _made_transformed_norms(values, W_O, dtype), transformed_norms, (values, W_O), dtype)


def _made_transformed_norms(values: Tensor, W_O: Tensor, dtype: torch.dtype) -> Tensor:
    result = values.new_empty(values.shape[:3], dtype=dtype)
    if not result.numel():
        return result
    head, _, model = W_O.shape
    known: list[KeyParts] | None = None if dtype == torch.float64 else kept_before(_key_factors, (values, W_O))
    for b, k, (_, _, lengths) in known or ():
        result[b, :, k] = lengths.transpose(0, 1)
    if known:
        return result
    middle = None if result.dtype == torch.float64 else middle_parts(W_O, result.shape[0] * result.shape[2])
    projection = W_O.double() if middle is None else torch.stack([part[: W_O.shape[1]] for part in middle])
    for b, k in _key_blocks(values, head * model):
        v = values[b, :, k].double()
        images = v @ projection
        squares = images.square_().sum(-1) if middle is None else images.mul_(v).sum(-1).clamp_min_(0)
        result[b, :, k] = squares.sqrt_()
    return result


def _fill_summed_norms_of_row(
    result: Tensor, weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None
) -> None:
    """For one query in float32: what is known of keys, else W_O, or its triangle, over keys that stay in cache."""
    used = _used_keys(weights)
    result[..., used:] = 0
    known = min(keys_known(_key_factors, values, W_O), used)
    if known:
        fill_summed_norms_by_products(result[..., :known], weights[..., :known], values[:, :, :known], W_O, gate)
    result, weights, values = result[..., known:used], weights[..., known:used], values[:, :, known:used]
    factor = triangle(W_O, result.shape[0] * (used - known)) or [(0, W_O.flatten(0, 1).float())]
    for b, k in _key_blocks(values, W_O.shape[0] * W_O.shape[1]):
        own = None if gate is None else gate[b]
        fill_summed_norms_of_row(result[b, :, k], weights[b, :, :, k], values[b, :, k], W_O, own, factor)


def _used_keys(weights: Tensor) -> int:
    """How many keys there are up to the last that gets any weight; a query that looks back leaves out all behind it."""
    if bool((weights[..., -1] != 0).any()):
        return weights.shape[-1]
    used = (weights != 0).flatten(0, -2).any(0).nonzero()
    return int(used[-1]) + 1 if len(used) else 0


def fill_summed_norms_by_products(
    result: Tensor, weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None, after: Norms = ()
) -> None:
    """For float32 results: a triangular factor in float32, and in float64 what cancels too much for that."""
    for b, k, parts in prepared_once(_key_factors, values, W_O, after):
        own = None if gate is None else gate[b]
        if compiled_for(parts[0]):
            norms_of_sums(result[b, :, k], weights[b, :, :, k], own, parts, _CANCELS)
        else:
            _fill_by_parts(result[b, :, k], weights[b, :, :, k], own, parts)


def _fill_by_parts(result: Tensor, weights: Tensor, gate: Tensor | None, parts: Parts) -> None:
    products, factor, lengths = by_rows(parts[0]), by_columns(parts[1][:, :, None]), parts[2][:, :, None]
    for q in _query_blocks(weights, size=4):
        if not bool(weights[:, :, q][..., -1, 0].any()) and all_zero(weights[:, :, q]):
            result[:, q] = 0
            continue
        a = weights[:, :, q].float()
        a = (a if gate is None else a * gate[:, :, q]).transpose(0, 1)
        norms = _norms_by_factor(factor, a)
        cancelling = ~(norms >= _CANCELS * _sum_of_products(a.abs(), lengths))  # where there is no R, too
        if cancelling.any():
            of_gate = None if gate is None else gate[:, :, q]
            _repeat_in_float64(norms, cancelling, products, weights[:, :, q], of_gate)
        result[:, q] = norms


def _key_factors(values: Tensor, W_O: Tensor, after: Norms) -> Iterator[KeyParts]:
    """What keys need, whatever the queries: of slices of batch and key M, R and the lengths of the heads' vectors."""
    head, head_dim, _ = W_O.shape
    products_of = head_products(W_O, values.shape[0] * values.shape[2], after)
    for b, k in _key_blocks(values, head * head_dim):
        products = products_of(values[b, :, k])
        lengths = torch.stack([row[0] for row in by_rows(products)]).clamp_min_(0).sqrt_().float()
        yield b, k, (products, triangular_factor(products), lengths)


def all_zero(numbers: Tensor) -> bool:
    """Whether all are 0, as weights of keys behind their queries are; ten times as fast as ``any`` on a CPU."""
    return not numbers.numel() or bool((numbers.amax() == 0) & (numbers.amin() == 0))


def _norms_by_factor(factor: Sequence[Tensor], a: Tensor) -> Tensor:
    """||R a||, (batch, query, key): R by columns, each (h + 1, batch, 1, key), and a (head, batch, query, key)."""
    last = len(a) - 1
    total = factor[last] * a[last]
    for h in range(last):  # whole rows of keys at a time, in cache
        total[: h + 1].addcmul_(factor[h], a[h])
    return _sum_of_products(total, total).sqrt_()


def _sum_of_products(first: Tensor, second: Tensor) -> Tensor:
    """(first * second).sum(0) without the products of all heads at once."""
    total = first[0] * second[0]
    for one, other in zip(first[1:], second[1:], strict=True):
        total.addcmul_(one, other)
    return total


def _repeat_in_float64(
    norms: Tensor, where: Tensor, products: Sequence[Tensor], weights: Tensor, gate: Tensor | None
) -> None:
    """Writes sqrt(a^T M a) into norms, (batch, query, key), where the mask of the same shape says so.

    M is products, each (head - h, batch, key).  a is weights (batch, head, query, key) times gate (batch, head, query,
    1), whose product is not rounded to float32 either: where heads cancel, its last digit is the norm's first.
    """
    example, query, key = where.nonzero(as_tuple=True)
    chosen = weights[example, :, query, key].double().T
    if gate is not None:
        chosen = chosen * gate[example, :, query, 0].T
    total = torch.zeros_like(chosen)
    for h, row in enumerate(products):  # sum_h a_h (M[h, h] a_h + 2 sum_h' M[h', h] a_h') over h' > h
        own = row[:, example, key]
        own[1:] *= 2
        total[h:].addcmul_(own, chosen[h])
    norms[example, query, key] = total.mul_(chosen).sum(0).clamp_min_(0).sqrt_().float()


def _fill_summed_norms_by_factors(
    result: Tensor, weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None
) -> None:
    """With the full accuracy of float64 where heads cancel: no squares, f^T = Q R gives ||a f|| = ||R a||."""
    head, _, model = W_O.shape
    projection = W_O.double()
    for b, k in _key_blocks(values, head * model):
        f = torch.einsum("bhke,hed->bkdh", values[b, :, k].double(), projection)
        factor = qr(f, mode="r").R
        for q in _query_blocks(weights[b, :, :, k]):
            a = weights[b, :, q, k].to(torch.float64, memory_format=torch.contiguous_format)
            a = a if gate is None else a * gate[b, :, q]
            result[b, q, k] = vector_norm(torch.einsum("bhqk,bkrh->bqkr", a, factor), dim=-1)


def _fill_gated_head_norms(result: Tensor, weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor) -> None:
    projection = narrow(W_O.double())
    for b, q, k in pair_blocks(result, W_O.shape[0] * max(W_O.shape[1:])):
        f = _elementwise_gated(values[b, :, k], gate[b, :, q]).flatten(1, 2) @ projection
        result[b, :, q, k] = weights[b, :, q, k].abs() * vector_norm(f, dim=-1).view_as(weights[b, :, q, k])


def _fill_gated_summed_norms(result: Tensor, weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor) -> None:
    projection = narrow(W_O.double().flatten(0, 1))
    for b, q, k in pair_blocks(result, max(projection.shape[0], W_O.shape[2])):
        mixed = _elementwise_gated(values[b, :, k], gate[b, :, q]) * weights[b, :, q, k, None]
        result[b, q, k] = vector_norm(mixed.permute(1, 2, 0, 3).flatten(2) @ projection, dim=-1)


def _elementwise_gated(values: Tensor, gate: Tensor) -> Tensor:
    """(head, query, key, head_dim) in float64, from values (head, key, head_dim) and gate (head, query, head_dim)."""
    return values.double()[:, None] * gate[:, :, None]


def narrow(projection: Tensor) -> Tensor:
    """A projection (..., rows, at most rows) that leaves vectors as long as this one, (..., rows, model), does."""
    rows, model = projection.shape[-2:]
    return qr(projection.mT, mode="r").R.mT if rows < model else projection


def is_elementwise(gate: Tensor | None) -> TypeGuard[Tensor]:
    """Whether f itself depends on the query."""
    return gate is not None and gate.shape[-1] != 1


def attention_inputs(
    weights: Tensor, values: Tensor, W_O: Tensor, gate: Tensor | None
) -> dict[str, tuple[Tensor, str]]:
    """The tensors of an attention call with their axes, as ``check_axes`` takes them."""
    inputs = {"weights": (weights, _WEIGHTS), "values": (values, _VALUES), "W_O": (W_O, _PROJECTION)}
    if gate is not None:
        last = "one" if isinstance(gate, Tensor) and gate.ndim and gate.shape[-1] == 1 else "head_dim"
        inputs["gate"] = (gate, f"batch head query {last}")
    return inputs


def _empty(sizes: dict[str, int], axes: str, first: Tensor, *tensors: Tensor | None) -> Tensor:
    shape = [sizes[axis] for axis in axes.split()]
    return torch.empty(shape, dtype=result_dtype(first, *tensors), device=first.device)


def work(tensor: Tensor) -> int:
    """How many float64 numbers to hold at once: what a core keeps in its cache, or on a GPU what keeps it busy."""
    return 1 << 19 if tensor.device.type == "cpu" else 1 << 25


def _key_blocks(values: Tensor, width: int) -> Iterator[tuple[slice, slice]]:
    """Slices of batch and key that cover values (batch, head, key, head_dim), at ``width`` numbers to a key."""
    batch, _, key, _ = values.shape
    columns = max(32, work(values) // max(1, width))
    keys = -(-key // -(-key // columns)) if key else 1  # all about as large
    for b in slices(batch, columns // keys):
        for k in slices(key, keys):
            yield b, k


def _query_blocks(weights: Tensor, size: int = 8) -> Iterator[slice]:
    """Slices of query that cover weights (batch, head, query, key), at two numbers of ``size`` bytes to a weight."""
    batch, head, query, key = weights.shape
    yield from slices(query, 8 * work(weights) // (2 * size * batch * head * key))


def pair_blocks(result: Tensor, width: int) -> Iterator[tuple[int, slice, slice]]:
    """Batch and slices of query and key that cover result (batch, ..., query, key), at ``width`` numbers to a pair."""
    query, key = result.shape[-2:]
    # Never all pairs at once, however few: that would be the (query, key, model) tensor we promise not to build.
    pairs = max(1, min(work(result) // max(1, width), query * key // 2))
    keys = min(key, pairs)
    for b in range(len(result)):
        for q in slices(query, pairs // keys):
            for k in slices(key, keys):
                yield b, q, k


def slices(size: int, step: int) -> Iterator[slice]:
    """Slices of at most ``step``, and of one at least, that cover range(size)."""
    step = max(1, step)
    for start in range(0, size, step):
        yield slice(start, start + step)
