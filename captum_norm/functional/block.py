"""How much does input j contribute to output i of a whole attention block, with its residual and normalisation?

To the vectors that attention adds, the residual adds the input itself, and a normalisation with its divisor held fixed
(``FrozenNorm``) keeps the sum a sum:

    u_ij = N_in(sum_h alpha_ij f_h(x_j)) + [j = i] x_i           ||u_ij||             res_norms
    t_ij = N(u_ij)                                               ||t_ij||             res_ln_norms
    e_ij = N_2(t_ij)                                             ||e_ij||             globenc_norms

N is the norm behind the residual (post-LN; N_2 that behind the feed-forward part) and N_in one between attention and
residual (Gemma's, LayerScale; elsewhere none).  In pre-LN blocks nothing stands behind the residual: res_norms are all
there is, with x_i the state before the norm.  How much of output i comes from other positions is the mixing ratio

    r_i = m_i / (m_i + p_i),    m_i = ||sum_{j != i} u_ij||,    p_i = ||u_ii||,

for sum_h alpha f, u and t: a norm of the sum, not a sum of norms.

Sources: Kobayashi et al. (2021), https://arxiv.org/abs/2109.07152 (Attn-N, AttnRes-N, AttnResLn-N and their ratios);
Modarressi et al. (2022), "GlobEnc", https://arxiv.org/abs/2205.03286 (N-Enc).  b_O and beta belong to no input and are
left out: with them, the vectors add up to the block's own output.

Axes: b batch, h head, q query (i), k key (j), e head_dim, d model.  Norms are L2.  They are computed in float64 (the
other positions' part of a ratio in float32, where nothing cancels) and returned in float64 if any tensor is float64,
else in float32.  No gradient flows through them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor
from torch.linalg import vector_norm

from captum_norm.functional.axes import check_axes, check_finite
from captum_norm.functional.normalization import FrozenNorm, Norms, divided
from captum_norm.functional.norms import attention_inputs, fill_summed_norms, result_dtype, slices

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


@torch.no_grad()
def block_quantities(
    quantities: Sequence[str],
    weights: Tensor,
    values: Tensor,
    W_O: Tensor,
    residual: Tensor | None = None,
    norm: FrozenNorm | None = None,
    second_norm: FrozenNorm | None = None,
    **options: Unpack[BlockOptions],
) -> dict[str, Tensor]:
    """Several quantities of one attention block, at less cost than one by one: they share vectors and products.

    Args:
        quantities: any of ``res_norms``, ``res_ln_norms``, ``globenc_norms``, (batch, query, key) each, and of
            ``mixing_attn``, ``mixing_res``, ``mixing_res_ln``, ``mixing_weights``, ``mixing_res_weights``,
            (batch, query) each.
        weights: attention weights alpha, (batch, head, query, key).
        values: x W_V + b_V, (batch, head, key, head_dim).
        W_O: each head's slice of the output projection, (head, head_dim, model).
        residual: what the model adds to attention's output, (batch, query, model).
        norm: the norm behind the residual, at the state it normalised (attention + b_O + residual).
        second_norm: the norm behind the feed-forward part, at the state it normalised.
        options: ``gate``, ``inner`` and ``residual_key``, see ``BlockOptions``.

    Returns:
        The quantities by name, in the order asked for.  With ``residual_key="column"`` norms are
        (batch, query, key + 1), the residual last.  A mixing ratio is 0 where nothing arrives at all.

    Raises:
        TypeError: if a tensor is not of the dtype it should be.
        ValueError: if a quantity is unknown or lacks the residual or a norm, if shapes or devices disagree, if a
            tensor holds NaN or infinity, or if ``"diagonal"`` meets more or fewer keys than queries.

    Example:
        Attention looks at both positions alike; the residual speaks for the position itself:

        >>> weights, values = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[2.0, 0.0], [0.0, 2.0]]]])
        >>> residual = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])
        >>> found = block_quantities(["res_norms", "mixing_res"], weights, values, torch.eye(2)[None], residual)
        >>> found["res_norms"]
        tensor([[[3., 1.],
                 [1., 3.]]])
        >>> found["mixing_res"]
        tensor([[0.2500, 0.2500]])
    """
    block = Block("block_quantities", weights, values, W_O, residual, norm, second_norm, **options)
    return {name: block.quantity(name) for name in quantities}


@torch.no_grad()
def res_norms(
    weights: Tensor, values: Tensor, W_O: Tensor, residual: Tensor, **options: Unpack[BlockOptions]
) -> Tensor:
    """||sum_h alpha_ij f_h(x_j) + [j = i] x_i||, the authors' AttnRes-N: (batch, query, key).

    Arguments and errors are those of ``block_quantities``.

    Example:
        >>> weights, values = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[6.0, 8.0], [0.0, 2.0]]]])
        >>> res_norms(weights, values, torch.eye(2)[None], residual=torch.tensor([[[-3.0, 0.0], [0.0, 1.0]]]))
        tensor([[[4., 1.],
                 [5., 2.]]])
    """
    return Block("res_norms", weights, values, W_O, residual, **options).quantity("res_norms")


@torch.no_grad()
def res_ln_norms(
    weights: Tensor, values: Tensor, W_O: Tensor, residual: Tensor, norm: FrozenNorm, **options: Unpack[BlockOptions]
) -> Tensor:
    """||N(sum_h alpha_ij f_h(x_j) + [j = i] x_i)||, the authors' AttnResLn-N: (batch, query, key).

    Arguments and errors are those of ``block_quantities``.

    Example:
        An RMSNorm that halves both queries:

        >>> weights, values = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[6.0, 8.0], [0.0, 2.0]]]])
        >>> norm = FrozenNorm(state=2 * torch.ones(1, 2, 2), eps=0.0, centred=False)
        >>> residual = torch.tensor([[[-3.0, 0.0], [0.0, 1.0]]])
        >>> res_ln_norms(weights, values, torch.eye(2)[None], residual, norm)
        tensor([[[2.0000, 0.5000],
                 [2.5000, 1.0000]]])
    """
    return Block("res_ln_norms", weights, values, W_O, residual, norm, **options).quantity("res_ln_norms")


@torch.no_grad()
def globenc_norms(
    weights: Tensor,
    values: Tensor,
    W_O: Tensor,
    residual: Tensor,
    norm: FrozenNorm,
    second_norm: FrozenNorm,
    **options: Unpack[BlockOptions],
) -> Tensor:
    """||N_2(N(sum_h alpha_ij f_h(x_j) + [j = i] x_i))||, the N-Enc of GlobEnc: (batch, query, key).

    The feed-forward part is not applied to the vectors; it counts through the state of ``second_norm`` only.  GlobEnc
    is ``rollout`` of these maps without a residual.  Arguments and errors are those of ``block_quantities``.

    Example:
        >>> weights, values = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[6.0, 8.0], [0.0, 2.0]]]])
        >>> halved = FrozenNorm(state=2 * torch.ones(1, 2, 2), eps=0.0, centred=False)
        >>> residual = torch.tensor([[[-3.0, 0.0], [0.0, 1.0]]])
        >>> globenc_norms(weights, values, torch.eye(2)[None], residual, halved, second_norm=halved)
        tensor([[[1.0000, 0.2500],
                 [1.2500, 0.5000]]])
    """
    block = Block("globenc_norms", weights, values, W_O, residual, norm, second_norm, **options)
    return block.quantity("globenc_norms")


@torch.no_grad()
def mixing_attn(weights: Tensor, values: Tensor, W_O: Tensor, **options: Unpack[BlockOptions]) -> Tensor:
    """How much of what attention hands to a position comes from other positions, 0 to 1: (batch, query).

    Arguments and errors are those of ``block_quantities``.

    Example:
        >>> weights, values = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[6.0, 8.0], [0.0, 2.0]]]])
        >>> mixing_attn(weights, values, torch.eye(2)[None])
        tensor([[0.1667, 0.8333]])
    """
    return Block("mixing_attn", weights, values, W_O, **options).quantity("mixing_attn")


@torch.no_grad()
def mixing_res(
    weights: Tensor, values: Tensor, W_O: Tensor, residual: Tensor, **options: Unpack[BlockOptions]
) -> Tensor:
    """How much of attention and residual together comes from other positions, 0 to 1: (batch, query).

    Arguments and errors are those of ``block_quantities``.

    Example:
        >>> weights, values = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[6.0, 8.0], [0.0, 2.0]]]])
        >>> mixing_res(weights, values, torch.eye(2)[None], residual=torch.tensor([[[-3.0, 0.0], [0.0, 4.0]]]))
        tensor([[0.2000, 0.5000]])
    """
    return Block("mixing_res", weights, values, W_O, residual, **options).quantity("mixing_res")


@torch.no_grad()
def mixing_res_ln(
    weights: Tensor, values: Tensor, W_O: Tensor, residual: Tensor, norm: FrozenNorm, **options: Unpack[BlockOptions]
) -> Tensor:
    """How much of attention and residual comes from other positions behind the norm, 0 to 1: (batch, query).

    Arguments and errors are those of ``block_quantities``.

    Example:
        A norm that silences the first dimension:

        >>> weights, values = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[6.0, 8.0], [0.0, 2.0]]]])
        >>> norm = FrozenNorm(torch.ones(1, 2, 2), weight=torch.tensor([0.0, 1.0]), centred=False)
        >>> mixing_res_ln(weights, values, torch.eye(2)[None], torch.tensor([[[-3.0, 0.0], [0.0, 4.0]]]), norm)
        tensor([[0.2000, 0.4444]])
    """
    return Block("mixing_res_ln", weights, values, W_O, residual, norm, **options).quantity("mixing_res_ln")


@torch.no_grad()
def mixing_weights(weights: Tensor, residual_key: ResidualKey = "diagonal") -> Tensor:
    """What the weights alone leave to other positions, 1 - mean_h alpha_ii, the authors' Attn-W: (batch, query).

    Half of it is their AttnRes-W, ``mixing_res_weights``.

    Args:
        weights: attention weights alpha, (batch, head, query, key).
        residual_key: which key is the query itself, see ``ResidualKey``; 1 where there is none.

    Raises:
        TypeError, ValueError: as ``block_quantities`` does.

    Example:
        >>> mixing_weights(torch.tensor([[[[0.75, 0.25], [0.0, 1.0]]]]))
        tensor([[0.2500, 0.0000]])
    """
    inputs = {"weights": (weights, "batch head query key")}
    own_keys = _own_keys("mixing_weights", residual_key, check_axes("mixing_weights", **inputs), weights.device)
    return check_finite("mixing_weights", _mixing_weights(weights, own_keys, result_dtype(weights)), **inputs)


@torch.no_grad()
def mixing_res_weights(weights: Tensor, residual_key: ResidualKey = "diagonal") -> Tensor:
    """Half of ``mixing_weights``: the residual counts as much as all attention, the authors' AttnRes-W.

    Example:
        >>> mixing_res_weights(torch.tensor([[[[0.75, 0.25], [0.0, 1.0]]]]))
        tensor([[0.1250, 0.0000]])
    """
    return mixing_weights(weights, residual_key) / 2


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

    def quantity(self, name: str) -> Tensor:
        """A quantity of ``block_quantities``, checked to be finite."""
        if name not in _QUANTITIES:
            raise ValueError(f"{self.caller}: no quantity {name!r}; there are {', '.join(_QUANTITIES)}.")
        needs, make = _QUANTITIES[name]
        for part in needs:
            if getattr(self, part) is None:
                raise ValueError(f"{self.caller}: {name} needs {part}, which is None.")
        # Attribution may run inside an autocast region, which would take these products to half precision.
        with torch.autocast(self.weights.device.type, enabled=False):
            return check_finite(self.caller, make(self), **self.inputs)

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
        return _own_keys(self.caller, self.residual_key, check_axes(self.caller, **self.inputs), self.weights.device)

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
        weights, values = self._own(queries)
        return self._joined(weights.to(dtype) * values, queries)

    def _own(self, queries: Queries) -> tuple[Tensor, Tensor]:
        """Each query's own weights, (batch, head, query, 1), and values, (batch, head, query, head_dim)."""
        if self.own_keys is None:
            zeros = torch.zeros_like(self.weights[:, :, queries, :1])
            return zeros, self.values.new_zeros(*zeros.shape[:3], self.values.shape[3])
        if not isinstance(self.residual_key, Tensor):
            return self.weights.diagonal(dim1=2, dim2=3)[:, :, queries, None], self.values[:, :, queries]
        keys = _per_head(self.own_keys[:, queries], self.weights.shape[1])
        values = self.values.gather(2, keys.expand(-1, -1, -1, self.values.shape[3]))
        return self.weights[:, :, queries].gather(3, keys), values

    def _mixed_from_others(self, queries: Queries, dtype: torch.dtype) -> Tensor:
        """The values mixed with all weights but the own, (batch, query, head * head_dim)."""
        weights = self.weights[:, :, queries].to(dtype, copy=True)
        if self.own_keys is not None:
            weights.scatter_(3, _per_head(self.own_keys[:, queries], weights.shape[1]), 0.0)
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


def _block_norms(block: Block, depth: int) -> Tensor:
    """The contributions behind so many norms."""
    norms = block.norms[:depth]
    after = block.behind_attention(norms)
    batch, _, query, key = block.weights.shape
    attention = block.weights.new_empty(batch, query, key, dtype=block.dtype)
    fill_summed_norms(attention, block.weights, block.values, block.W_O, block.gate, after)
    own = divided(block.own_lengths[1 + depth, ..., None].clone(), norms)
    return block.with_own(divided(attention, after), own[..., 0])


def _mixing(block: Block, stage: int) -> Tensor:
    """The ratio of Block's lengths at a stage.  What each query is divided by cancels."""
    m, p = block.others_lengths[stage], block.own_lengths[stage]
    return torch.where(m + p == 0, 0.0, m / (m + p)).to(block.dtype)


def _mixing_weights(weights: Tensor, own_keys: Tensor | None, dtype: torch.dtype) -> Tensor:
    if own_keys is None:
        return torch.ones_like(weights[:, 0, :, 0], dtype=dtype)
    return 1 - weights.gather(3, _per_head(own_keys, weights.shape[1]))[..., 0].to(dtype).mean(1)


_QUANTITIES: dict[str, tuple[tuple[str, ...], Callable[[Block], Tensor]]] = {
    "res_norms": (("residual",), lambda block: _block_norms(block, 0)),
    "res_ln_norms": (("residual", "norm"), lambda block: _block_norms(block, 1)),
    "globenc_norms": (("residual", "norm", "second_norm"), lambda block: _block_norms(block, 2)),
    "mixing_attn": ((), lambda block: _mixing(block, 0)),
    "mixing_res": (("residual",), lambda block: _mixing(block, 1)),
    "mixing_res_ln": (("residual", "norm"), lambda block: _mixing(block, 2)),
    "mixing_weights": ((), lambda block: _mixing_weights(block.weights, block.own_keys, block.dtype)),
    "mixing_res_weights": ((), lambda block: _mixing_weights(block.weights, block.own_keys, block.dtype) / 2),
}
"""What each quantity needs beside attention, and how it is made."""

_STATE = "batch query model"

# Below this part of what it is a difference of, a part is computed by itself: right to about 1e-6 in float32.
_CANCELS = 0.1

# So that a block of vectors stays in a core's cache.
_QUERIES = 128


def _per_head(own_keys: Tensor, head: int) -> Tensor:
    """(batch, head, query, 1), to gather or scatter along the keys."""
    return own_keys[:, None, :, None].expand(-1, head, -1, -1)


def _own_keys(caller: str, residual_key: ResidualKey, sizes: dict[str, int], device: torch.device) -> Tensor | None:
    batch, query, key = sizes["batch"], sizes["query"], sizes["key"]
    if isinstance(residual_key, Tensor):
        return _checked_keys(caller, residual_key.to(device), batch, query, key)
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


def _checked_keys(caller: str, keys: Tensor, batch: int, query: int, key: int) -> Tensor:
    if keys.is_floating_point() or keys.dtype == torch.bool or keys.shape not in ((query,), (batch, query)):
        raise ValueError(
            f"{caller}: residual_key should be integers of shape (query,) = ({query},) or (batch, query) = "
            f"({batch}, {query}); got {keys.dtype} of shape {tuple(keys.shape)}."
        )
    if ((keys < 0) | (keys >= key)).any():
        raise ValueError(f"{caller}: residual_key should be from 0 to {key - 1}, the keys; pass 'column' if not.")
    return keys.long().expand(batch, -1)
