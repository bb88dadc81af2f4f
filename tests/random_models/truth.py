"""What is true of a random transformer: its states, its attention calls, and what its output reads.

Axes: b batch, n row, p part (tokens of all inputs, then biases), t token, h head, q query, k key, e head_dim, d model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class State:
    """A sequence of vectors and what is known of them.

    Attributes:
        value: (b, n, d).
        parts: (p, b, n, d), their sum is ``value``; None where no linear form is known.
        pure: nothing has mixed positions yet.
        source: which input its positions count.
        index: (n,), which position of it each row is, a negative number for a learned vector before the tokens; None
            where a row is no position.
        reach, alti: (b, n, t), None where not defined.
        calls: the attention calls it is made of.
        parents: those of them that reach it without passing through another call.
        mixers: what else mixed positions on the way.
    """

    value: Tensor
    parts: Tensor | None
    pure: bool
    source: int
    index: Tensor | None
    reach: Tensor | None
    alti: Tensor | None
    calls: frozenset[int] = frozenset()
    parents: frozenset[int] = frozenset()
    mixers: tuple[str, ...] = ()


@dataclass
class Call:
    """One attention call.

    Attributes:
        weights: (b, h, q, k) as they multiply the values; ``gate`` (b, h, q, e) or None multiplies the mixed values.
        values: (b, h, k, e); W_O: (h, e, d); b_O: (d,).
        kind: "self", "causal" or "cross".
        query_source, query_index, key_source, key_index: which input positions its axes are.
        parents: the calls that its values are made of without passing through another; mixers: what else mixed
            positions on the way to the values.
        groups: (window, row) the rows that see one another, in the order of the model, where none sees another.
        answered: (b, row) the queries that are answered, where not all are and heads agree on them.
        block_norms: (b, q, k), how long what each key makes of each query through the block is, with the residual and
            the norms; of cross-attention with one more key, the residual.  None where the call is not alone in it.
    """

    weights: Tensor
    values: Tensor
    W_O: Tensor
    b_O: Tensor
    gate: Tensor | None
    kind: str
    query_source: int
    query_index: Tensor | None
    key_source: int
    key_index: Tensor | None
    parents: frozenset[int]
    mixers: tuple[str, ...]
    groups: Tensor | None = None
    answered: Tensor | None = None
    block_norms: Tensor | None = None

    def vectors(self) -> Tensor:
        """What each key adds to each query through each head, (b, h, q, k, d)."""
        mixed = self.weights[..., None] * self.values[:, :, None]
        if self.gate is not None:
            mixed = mixed * self.gate[:, :, :, None]
        return torch.einsum("bhqke,hed->bhqkd", mixed, self.W_O)

    def summed_norms(self) -> Tensor:
        """||sum_h alpha f(x)||, (b, q, k)."""
        return self.vectors().sum(1).norm(dim=-1)


@dataclass
class Truth:
    """What is true of one run of a random transformer.

    Attributes:
        output: as the model's.
        calls: every attention call, in the order in which the model runs them.
        used: those of which the output is made.
        rows: (b, position): how much the output reads each position of the last sequence, learned vectors before the
            tokens first, or each latent vector; None where it reads something else.
        by_convention: the output has a row for every position, and none was asked for.
        reach, alti: (b, t), the row that is read; None where not defined.
        shares: (b, t), what each token adds to the output ``target``; None where no linear form is known.
        real: (b, position) bool of the last sequence; never_hidden: those of them that no layer hides.
        room: how many spare slots stand behind the keys of each call.
        target: what is explained, as in Captum.
        mixers: everything that mixed positions beside attention on the way to the output.
        lengths: positions of each input.
        prefix: how many learned vectors stand before the tokens.
        empty_rows: ALTI meets a row that no input brings nearer.
        last: the state that is read.
    """

    output: Tensor
    calls: list[Call]
    used: frozenset[int]
    rows: Tensor | None
    by_convention: bool
    reach: Tensor | None
    alti: Tensor | None
    shares: Tensor | None
    real: Tensor
    never_hidden: Tensor
    room: int
    target: Any
    mixers: tuple[str, ...]
    lengths: tuple[int, ...]
    prefix: int
    empty_rows: bool
    last: State = field(repr=False, default=None)  # type: ignore[assignment]
