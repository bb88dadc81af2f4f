"""At which lengths and angles do the heads' vectors stand?  The norms of the vectors and of their sum need no more.

For one key j, with f_h = v_h W_O^h the vector of head h, the Gram matrix M[h, h'] = <f_h, f_h'> gives

    ||f_h||^2 = M[h, h]        ||sum_h a_h f_h||^2 = a^T M a,

so that no vector of the model's size is needed per query.  Its entries are v_h (W_O^h W_O^h'^T) v_h': the middle
part depends on W_O alone and is kept from call to call.  So does that of a projection with normalisations after it,
whose centring and gamma fold into W_O.

In float64 throughout.  Squaring costs half of the digits where heads cancel: with ||sum|| at 1e-3 of sum||.||, a Gram
matrix in float32 is off by 24 %, one in float64 by 1e-10.

Axes: b batch, h head, k key, e head_dim, d model.  "Pairs" of heads are those with h' >= h, as M is symmetric: of M by
rows, (0, 0), (0, 1) ..., (1, 1) ..., and of its triangular factor R by columns, (0, 0), (0, 1), (1, 1), (0, 2) ...
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, UntypedStorage

from captum_norm.functional.normalization import Norms, fold
from captum_norm.functional.precision import full_precision
from captum_norm.functional.sums import (
    NO_ROUNDING,
    SMALLEST_PIVOT,
    TINY,
    compiled_for,
    heads_of,
    sums_of_products,
    triangular_factors,
)

# Middle parts larger than (2048, 2048), 17 MB for the pairs, are not kept: in large models they would outgrow W_O.
_LARGEST_KEPT = 2048

# For fewer keys than this, W_O is not looked at twice, however small it is.
_FEW = 64

T = TypeVar("T")

Middle = list[Tensor]
"""W_O^h' W_O^h^T of each head h with itself and each later head h', ((head - h) * head_dim, head_dim)."""

Parts = tuple[Tensor, Tensor, Tensor]
"""M, (pair, batch, key) in float64; R, likewise in float32; the lengths of the heads' vectors, (head, batch, key)."""

KeyParts = tuple[slice, slice, Parts]
"""What some keys need: slices of batch and key, and their parts."""


def head_products(W_O: Tensor, keys: int, after: Norms = ()) -> Callable[[Tensor], Tensor]:
    """A function from values (batch, head, key, head_dim) to M, (pair, batch, key) in float64.

    Args:
        W_O: each head's slice of the output projection, (head, head_dim, model).
        keys: how many keys, over the whole batch, are about to be asked for; tells which way is cheaper.
        after: normalisations that follow W_O; their divisors are left out.
    """
    middle = middle_parts(W_O, keys, after)
    if middle is None:
        return partial(_products_of_vectors, projection=fold(W_O, after))
    return partial(_products_by_middle, middle=middle)


def _products_by_middle(values: Tensor, middle: Middle) -> Tensor:
    batch, head, key, _ = values.shape
    # Keys innermost: each product below runs over long rows, and so do those of the caller.
    v = values.permute(1, 3, 0, 2).to(torch.float64, memory_format=torch.contiguous_format).flatten(2)
    # One piece of memory for all heads: fresh pages would cost as much as the products.
    images, products = torch.empty_like(v), v.new_empty(head * (head + 1) // 2, batch * key)
    compiled = compiled_for(products)
    for h, row in enumerate(by_rows(products)):
        torch.mm(middle[h], v[h], out=images[h:].view(-1, batch * key))
        if compiled:
            sums_of_products(images[h:], v[h:], out=row)
        else:
            torch.sum(images[h:].mul_(v[h:]), dim=1, out=row)
    return products.view(-1, batch, key)


def _products_of_vectors(values: Tensor, projection: Tensor) -> Tensor:
    f = torch.einsum("bhke,hed->bkhd", values.double(), projection)
    one, other = torch.triu_indices(len(projection), len(projection), device=f.device)
    return (f @ f.mT)[:, :, one, other].permute(2, 0, 1).contiguous()


def by_rows(products: Tensor) -> tuple[Tensor, ...]:
    """M (pair, ...) by rows: of each head with itself and each later head, (head - h, ...)."""
    heads = heads_of(products)
    return products.split([heads - h for h in range(heads)])  # type: ignore[no-untyped-call]


def by_columns(factor: Tensor) -> tuple[Tensor, ...]:
    """R (pair, ...) by columns, each (h + 1, ...)."""
    return factor.split([h + 1 for h in range(heads_of(factor))])  # type: ignore[no-untyped-call]


def triangular_factor(products: Tensor) -> Tensor:
    """R with R^T R = M, upper triangular, so that ||sum_h a_h f_h|| = ||R a|| (Cholesky, for all keys at once).

    Applied in float32 it loses digits in proportion to what cancels, and not to its square as M does.

    Args:
        products: M, (pair, batch, key) in float64.

    Returns:
        R, (pair, batch, key) in float32.
    """
    if compiled_for(products):
        return triangular_factors(products)
    rows = by_rows(products.clone())
    squares = [row[0].clone() for row in rows]
    for i, row in enumerate(rows):
        # A head whose vector the earlier ones span (or is zero) adds no row; what is left of its pivot is rounding.
        without = torch.where(row[0] < NO_ROUNDING * squares[i], torch.nan, 0.0)
        row *= torch.where(row[0] > SMALLEST_PIVOT * squares[i], row[0].clamp_min(TINY).rsqrt(), without)
        for later in range(1, len(row)):
            rows[i + later].addcmul_(row[later], row[later:], value=-1)
    return torch.stack([rows[i][h - i] for h in range(len(rows)) for i in range(h + 1)]).float()


KeyFactors = dict[tuple[object, ...], tuple[object, object]]
"""What was prepared for the keys of some calls, together with what it was made of."""

_factors: ContextVar[KeyFactors | None] = ContextVar("key factors", default=None)

# What is prepared for keys is kept up to this many numbers, 64 MB.
LARGEST_FACTORS = 1 << 23


class Grows(Protocol):
    """What is kept for keys whose number grows (:mod:`captum_norm.functional.growing`)."""

    def of(self, prepare: Any, values: Tensor, W_O: Tensor, after: Norms) -> Iterable[Any]: ...

    def known(self, prepare: Any, values: Tensor, W_O: Tensor, after: Norms = ()) -> int: ...


_growing: ContextVar[Grows | None] = ContextVar("growing key factors", default=None)


@contextmanager
def growing(kept: Grows) -> Iterator[None]:
    """Within, what the keys of one attention call need is taken from ``kept``, which grows with them."""
    token = _growing.set(kept)
    try:
        yield
    finally:
        _growing.reset(token)


def keys_known(prepare: Any, values: Tensor, W_O: Tensor) -> int:
    """For how many keys, from the first on, :func:`growing` has what ``prepare`` makes; 0 outside."""
    grows = _growing.get()
    return 0 if grows is None else grows.known(prepare, values, W_O)


@contextmanager
def key_factors(kept: KeyFactors) -> Iterator[None]:
    """Within, what keys need is kept for the next block of queries, and what was kept is used.

    Args:
        kept: from block to block, and empty for the first.
    """
    token = _factors.set(kept)
    try:
        yield
    finally:
        _factors.reset(token)


def prepared_once(
    prepare: Callable[[Tensor, Tensor, Norms], Iterable[T]], values: Tensor, W_O: Tensor, after: Norms
) -> Iterable[T]:
    """What ``prepare`` makes of values, W_O and the norms' weights, or what :func:`key_factors` has kept of it."""
    grows = _growing.get()
    if grows is not None:
        return grows.of(prepare, values, W_O, after)
    head, keys = W_O.shape[0], values.shape[0] * values.shape[2]
    if _factors.get() is None or head * (head + 1) * keys > LARGEST_FACTORS:
        return prepare(values, W_O, after)
    made_of = (values, W_O, *[norm.weight for norm in after])
    return kept_once(lambda: list(prepare(values, W_O, after)), prepare, made_of, *[norm.centred for norm in after])


def kept_once(make: Callable[[], T], what: object, made_of: tuple[Tensor | None, ...], *how: object) -> T:
    """What ``make`` gives, or what :func:`key_factors` has kept of it.

    Args:
        make: makes it.
        what: tells it from what else is made of the same tensors.
        made_of, how: what it depends on; tensors count as the same while nobody writes to them.
    """
    kept, place = _factors.get(), _place(what, made_of, how)
    if kept is None or place is None:
        return make()
    if place not in kept:
        kept[place] = (made_of, make())
    return cast("T", kept[place][1])


def kept_before(what: object, made_of: tuple[Tensor | None, ...], *how: object) -> Any:
    """What ``kept_once`` has kept; None where there is nothing, and nothing is made."""
    kept, place = _factors.get(), _place(what, made_of, how)
    return None if kept is None or place is None else kept.get(place, (None, None))[1]


def _place(what: object, made_of: tuple[Tensor | None, ...], how: tuple[object, ...]) -> tuple[object, ...] | None:
    tensors = [tensor for tensor in made_of if tensor is not None]
    if any(tensor.is_inference() for tensor in tensors[:1]):
        return None
    versions = tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)
    return (what, versions, *map(id, made_of), *how)


def middle_parts(W_O: Tensor, keys: int, after: Norms = ()) -> Middle | None:
    """W_O^h' W_O^h^T of all pairs of heads, each ((head - h) * head_dim, head_dim) in float64, or None.

    Making them costs as much as ``model`` keys do by way of their vectors.  So they are made where there are as many
    keys, or at the second call with the same W_O, and then kept for as long as its storage lives.
    """
    rows = W_O.shape[0] * W_O.shape[1]
    if rows > _LARGEST_KEPT:
        return _make_middle_parts(fold(W_O, after)) if keys >= rows else None
    return remembered(_make_middle_parts, W_O, keys >= rows, after)


def _make_middle_parts(W: Tensor) -> Middle:
    return [W[h:].flatten(0, 1) @ W[h].mT for h in range(len(W))]


def triangle(W_O: Tensor, keys: int) -> list[tuple[int, Tensor]] | None:
    """L with ||m W_O|| = ||m L|| for each m, lower triangular, so half the products; None where it does not pay.

    From a QR decomposition in float64, kept as middle parts are; making it costs as much as it saves for some ten rows
    of keys.  Whether it is used depends on the sizes alone: the same question has the same answer, bit for bit.

    Args:
        W_O: (head, head_dim, model).
        keys: how many vectors m are about to be asked for.

    Returns:
        Blocks of columns of L, (row, column) in float32 without the zeros above, each with its first row.
    """
    rows, model = W_O.shape[0] * W_O.shape[1], W_O.shape[2]
    if keys < max(_FEW, rows // 2) or rows > min(model, _LARGEST_KEPT):
        return None
    return remembered(_make_triangle, W_O, at_once=True)


def _make_triangle(W: Tensor) -> list[tuple[int, Tensor]]:
    lower = torch.linalg.qr(W.flatten(0, 1).mT, mode="r").R.mT.float()
    width = -(-len(lower) // 8)
    return [(n, lower[n:, n : n + width].contiguous()) for n in range(0, len(lower), width)]


def remembered(make: Callable[[Tensor], T], W_O: Tensor, at_once: bool, after: Norms = ()) -> T | None:
    """What ``make`` gives for W_O in float64, with the norms behind folded in, kept for as long as its storage lives.

    Args:
        make: makes it.
        W_O: (head, head_dim, model).
        at_once: make it at the first call; else at the second with the same contents, and give None before.
        after: the norms behind.
    """
    entries = _kept.setdefault(W_O.untyped_storage(), {})
    folds = tuple((norm.centred, norm.weight is None) for norm in after)
    place = (make, W_O.storage_offset(), W_O.shape, W_O.stride(), W_O.dtype, folds)
    scales = [norm.weight.float() for norm in after if norm.weight is not None]
    print_now = torch.cat([_fingerprint(W_O), *scales])
    print_then, made = entries.get(place, (None, None))
    seen = print_then is not None and torch.equal(print_then, print_now)
    if not seen:
        made = None
    if made is None and (seen or at_once):
        made = make(fold(W_O, after))
    entries[place] = (print_now, made)
    return cast("T | None", made)


def _fingerprint(W_O: Tensor) -> Tensor:
    """One number per row of W_O, (head * head_dim,).  It changes with the contents, whoever wrote them and how.

    A version counter would miss writes through ``.data``.  Costs 0.2 % of a BERT-base layer at 128 tokens.
    """
    with full_precision(W_O.device):
        return W_O.flatten(0, 1).float() @ _probe(W_O.shape[-1], W_O.device)


@cache
def _probe(size: int, device: torch.device) -> Tensor:
    """Any fixed numbers without a pattern, (size,)."""
    return torch.arange(1, size + 1, dtype=torch.float32, device=device).mul_(0.6180339887).frac_().add_(0.5)


_kept: WeakKeyDictionary[UntypedStorage, dict[tuple[object, ...], tuple[Tensor, object]]] = WeakKeyDictionary()
