"""Of which vectors is the output of an attention block the sum, with its residual and normalisation?  How long is what
a position keeps of itself, and what it takes from all others together?

To the vectors that attention adds, the residual adds the input itself, and a normalisation with its divisor held fixed
(``FrozenNorm``) keeps the sum a sum:

    u_ij = N_in(sum_h alpha_ij f_h(x_j)) + [j = i] x_i,      t_ij = N(u_ij),      e_ij = N_2(t_ij).

N is the norm behind the residual (post-LN; N_2 that behind the feed-forward part) and N_in one between attention and
residual (Gemma's, LayerScale; elsewhere none).  In pre-LN blocks nothing stands behind the residual, and x_i is the
state before the norm.  b_O and beta belong to no input and are left out: with them, the vectors add up to the block's
own output.  What is asked of the vectors is in ``block_quantities`` and ``alti``.

Axes: b batch, h head, q query (i), k key (j), e head_dim, d model.  Lengths are L2, in float64 (the other positions'
part in float32, where nothing cancels).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypedDict

import torch
from torch import Tensor
from torch.linalg import vector_norm

from captum_norm.functional.axes import check_axes, result_dtype
from captum_norm.functional.normalization import FrozenNorm, Norms
from captum_norm.functional.norms import attention_inputs, slices

ResidualKey = Literal["diagonal", "column"] | Tensor
"""Which key is the query itself, so that the residual joins its contribution.

``"diagonal"``: key i, in self-attention.  ``"column"``: none, in cross-attention, so that the residual is one more
column behind the keys.  A tensor (query,) or (batch, query) of integers: these keys, for example with a cache, where
the queries are the last of the keys.
"""


Queries = slice | Tensor
Mix = Callable[[Queries, torch.dtype], Tensor]


class BlockOptions(TypedDict, total=False):
    """What most blocks do without.

    gate: what the mixed values are multiplied with before W_O, as in ``summed_norms``.
    inner: a norm or fixed scale between attention and residual, at the state it normalised (attention + b_O).
    residual_key: which key is the query itself, see ``ResidualKey``; ``"diagonal"`` unless told.
    attended: what attention gave out, b_O included, (batch, query, model).  Not needed, but with it what comes from
        other positions is a difference instead of a product.
    b_O: the output projection's bias, (model,); only used to take it off ``attended``.
    """

    gate: Tensor | None
    inner: FrozenNorm | None
    residual_key: ResidualKey
    attended: Tensor | None
    b_O: Tensor | None


@dataclass(frozen=True)
class Block:
    """One attention block, with the vectors that several quantities share.

    Arguments are those of ``block_quantities``; ``output`` is what the block gave out, (batch, query, model).
    """

    caller: str
    weights: Tensor
    values: Tensor
    W_O: Tensor
    residual: Tensor | None = None
    norm: FrozenNorm | None = None
    second_norm: FrozenNorm | None = None
    gate: Tensor | None = None
    inner: FrozenNorm | None = None
    residual_key: ResidualKey = "diagonal"
    attended: Tensor | None = None
    b_O: Tensor | None = None
    output: Tensor | None = None

    def __post_init__(self) -> None:
        _ = self.own_keys  # checks all shapes

    @cached_property
    def inputs(self) -> dict[str, tuple[Tensor, str]]:
        """All tensors by the names that errors use, with their axes."""
        inputs = attention_inputs(self.weights, self.values, self.W_O, self.gate)
        for name in ("residual", "attended", "output"):
            if getattr(self, name) is not None:
                inputs[name] = (getattr(self, name), _STATE)
        if self.b_O is not None:
            inputs["b_O"] = (self.b_O, "model")
        for name in ("inner", "norm", "second_norm"):
            norm: FrozenNorm | None = getattr(self, name)
            if norm is not None:
                parts = {"state": (norm.state, _STATE), "weight": (norm.weight, "model"), "bias": (norm.bias, "model")}
                inputs |= {f"{name}.{part}": (t, axes) for part, (t, axes) in parts.items() if t is not None}
        return inputs

    @cached_property
    def dtype(self) -> torch.dtype:
        """That of all results."""
        return result_dtype(*[tensor for tensor, _ in self.inputs.values()])

    @cached_property
    def own_keys(self) -> Tensor | None:
        """The key that is the query itself, (batch, query), or None if there is none."""
        return own_keys_of(self.caller, self.residual_key, check_axes(self.caller, **self.inputs), self.weights.device)

    @property
    def norms(self) -> Norms:
        """What stands behind the residual."""
        return [norm for norm in (self.norm, self.second_norm) if norm is not None]

    @property
    def own_lengths(self) -> Tensor:
        """How long the part is that a position keeps of itself: after attention, with the residual, behind each norm.

        (stage, batch, query) in float64.  What each query is divided by in the norms is left out.
        """
        return self._from_itself[1]

    @cached_property
    def others_lengths(self) -> Tensor:
        """The same for the part that comes from all other positions together."""
        part = self._from_others if self.attended is None else self._rest
        return torch.cat([part(q) for q in self._query_blocks()], dim=2)

    def own_part(self) -> Tensor:
        """The vector that a position keeps of itself, behind all norms and divided; (batch, query, model), float64."""
        vectors = self._from_itself[0]
        vectors = vectors if self.inner is None else self.inner(vectors)
        vectors = vectors if self.residual is None else vectors + self.residual
        for norm in self.norms:
            vectors = norm(vectors)
        return vectors

    @cached_property
    def _from_itself(self) -> tuple[Tensor, Tensor]:
        """What attention takes from the position itself, (batch, query, model), and ``own_lengths``."""
        parts = [self._projected(self._mixed_from_itself, q, self.residual) for q in self._query_blocks()]
        return torch.cat([vectors for vectors, _ in parts], dim=1), torch.cat([lengths for _, lengths in parts], dim=2)

    def _from_others(self, queries: slice) -> Tensor:
        """``others_lengths`` of some queries, by a product."""
        return self._projected(self._mixed_from_others, queries, None)[1]

    def _rest(self, queries: slice) -> Tensor:
        """``others_lengths`` of some queries: what attention gave out less the own part, unless little is left."""
        assert self.attended is not None
        attended, own = self.attended[:, queries].double(), self._from_itself[0][:, queries]
        rest = attended - own
        size = vector_norm(attended, dim=-1) + vector_norm(own, dim=-1)
        if self.b_O is not None:
            rest -= self.b_O
            size += vector_norm(self.b_O.double())
        lengths = self._stages(rest, queries, None)
        little = (lengths / self._projection[2]).amin(0) < _CANCELS * size
        return self._from_others(queries) if little.any() else lengths

    def _query_blocks(self) -> Iterator[slice]:
        """At least one, so that there is something to join."""
        return slices(max(1, self.weights.shape[2]), _QUERIES)

    def _projected(self, mix: Mix, queries: slice, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """What some queries mixed, behind W_O, (batch, query, model), and its lengths at all stages; in float64.

        Where float32 results are asked for, W_O is applied in float32, as the model does, and once more in float64 to
        queries where much cancels: among the terms of the sum, with the residual, or with the mean in a norm.
        """
        projection, rows, gains = self._projection
        mixed = mix(queries, projection.dtype)
        vectors = (mixed @ projection).double()
        lengths = self._stages(vectors, queries, residual)
        if projection.dtype == torch.float64:
            return vectors, lengths
        # Sums of n unrelated terms are about 1 / sqrt(n) of the sum of their lengths.
        quiet = 4 * len(rows) ** 0.5 * (lengths / gains).amin(0) < mixed.abs() @ rows
        if quiet.any():
            again = quiet.any(0).nonzero()[:, 0]
            vectors[:, again] = mix(again + queries.start, torch.float64) @ self.W_O.double().flatten(0, 1)
            lengths = self._stages(vectors, queries, residual)
        return vectors, lengths

    @cached_property
    def _projection(self) -> tuple[Tensor, Tensor, Tensor]:
        """W_O of all heads, (head * head_dim, model), in the precision to begin with; the lengths of its rows; and how
        much longer the norms make a vector at most, up to each stage, (stage, 1, 1)."""
        exact = self.dtype == torch.float64 or self.inner is not None
        projection = self.W_O.to(torch.float64 if exact else torch.float32).flatten(0, 1)
        gains = torch.ones(2 + len(self.norms), 1, 1, dtype=torch.float64, device=projection.device)
        for stage, norm in enumerate(self.norms, start=2):
            gains[stage] = gains[stage - 1] * (1 if norm.weight is None else norm.weight.double().abs().amax())
        gains.clamp_min_(torch.finfo(torch.float64).tiny)
        return projection, vector_norm(projection, dim=1), gains

    def _stages(self, vectors: Tensor, queries: slice, residual: Tensor | None) -> Tensor:
        """How long vectors are on their way, (stage, batch, query)."""
        lengths = [vector_norm(vectors, dim=-1)]
        if self.inner is not None:
            vectors = self.inner.fold(vectors)
            if self.inner.deviation is not None:
                vectors = vectors / self.inner.deviation[:, queries, None]
        if residual is not None:
            vectors = vectors + residual[:, queries]
        lengths.append(vector_norm(vectors, dim=-1))
        for norm in self.norms:
            vectors = norm.fold(vectors)
            lengths.append(vector_norm(vectors, dim=-1))
        return torch.stack(lengths)

    def _mixed_from_itself(self, queries: Queries, dtype: torch.dtype) -> Tensor:
        """Each query's own value, times its weight, (batch, query, head * head_dim)."""
        if self.own_keys is None:
            weights = torch.zeros_like(self.weights[:, :, queries, :1])
            values = self.values.new_zeros(*weights.shape[:3], self.values.shape[3])
        elif not isinstance(self.residual_key, Tensor):
            weights, values = self.weights.diagonal(dim1=2, dim2=3)[:, :, queries, None], self.values[:, :, queries]
        else:
            keys = per_head(self.own_keys[:, queries], self.weights.shape[1])
            weights = self.weights[:, :, queries].gather(3, keys)
            values = self.values.gather(2, keys.expand(-1, -1, -1, self.values.shape[3]))
        return self._joined(weights.to(dtype) * values, queries)

    def _mixed_from_others(self, queries: Queries, dtype: torch.dtype) -> Tensor:
        """The values mixed with all weights but the own, (batch, query, head * head_dim)."""
        weights = self.weights[:, :, queries].to(dtype, copy=True)
        if self.own_keys is not None:
            weights.scatter_(3, per_head(self.own_keys[:, queries], weights.shape[1]), 0.0)
        return self._joined(weights @ self.values.to(dtype), queries)

    def _joined(self, mixed: Tensor, queries: Queries) -> Tensor:
        """The heads' mixed values (batch, head, query, head_dim) through the gate and side by side."""
        if self.gate is not None:
            mixed = mixed * self.gate[:, :, queries].to(mixed.dtype)
        return mixed.transpose(1, 2).flatten(2)

    def behind_attention(self, norms: Norms) -> Norms:
        """All norms that attention's output passes up to and with ``norms``."""
        return norms if self.inner is None else [self.inner, *norms]

    def with_own(self, contributions: Tensor, own: Tensor) -> Tensor:
        """``contributions`` (batch, query, key) with each query's own (batch, query) put in its place."""
        own = own.to(contributions.dtype)[..., None]
        if self.own_keys is None:
            return torch.cat([contributions, own], dim=-1)
        return contributions.scatter_(2, self.own_keys[..., None], own)


_STATE = "batch query model"

# Below this part of what it is a difference of, a part is computed by itself: right to about 1e-6 in float32.
_CANCELS = 0.1

# So that a block of vectors stays in a core's cache.
_QUERIES = 128


def per_head(own_keys: Tensor, head: int) -> Tensor:
    """(batch, head, query, 1), to gather or scatter along the keys."""
    return own_keys[:, None, :, None].expand(-1, head, -1, -1)


def own_keys_of(caller: str, residual_key: ResidualKey, sizes: dict[str, int], device: torch.device) -> Tensor | None:
    """The key that is the query itself, (batch, query), or None if there is none; sizes are those of the axes."""
    batch, query, key = sizes["batch"], sizes["query"], sizes["key"]
    if isinstance(residual_key, Tensor):
        keys = residual_key.to(device)
        if keys.is_floating_point() or keys.dtype == torch.bool or keys.shape not in ((query,), (batch, query)):
            raise ValueError(
                f"{caller}: residual_key should be integers of shape (query,) = ({query},) or (batch, query) = "
                f"({batch}, {query}); got {keys.dtype} of shape {tuple(keys.shape)}."
            )
        if ((keys < 0) | (keys >= key)).any():
            raise ValueError(f"{caller}: residual_key should be from 0 to {key - 1}, the keys; pass 'column' if not.")
        return keys.long().expand(batch, -1)
    if residual_key == "column":
        return None
    if residual_key != "diagonal":
        raise ValueError(f"{caller}: residual_key should be 'diagonal', 'column' or a tensor, got {residual_key!r}.")
    if query != key:
        raise ValueError(
            f"{caller}: residual_key='diagonal' needs as many keys as queries, but there are {query} queries and {key} "
            f"keys; pass 'column' in cross-attention, or a tensor (query,) with each query's own key."
        )
    return torch.arange(query, device=device).expand(batch, -1)
