"""What one attention call did: the tensors the maths needs, whole or of some queries, now or when the model has run.

Axes: b batch, h head, q query, k key, e head_dim (d_v), d model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from captum_norm.capture.call import (
    ONE_EXAMPLE,
    POSITIONS_FIRST,
    AttentionCall,
    Certificate,
    Mixer,
    Positions,
    refusal,
)
from captum_norm.capture.chain import Fed
from captum_norm.capture.graph import MixedValues
from captum_norm.capture.held import HeadValues, Held
from captum_norm.capture.looked_at import LookedAt
from captum_norm.capture.reach import INPUT
from captum_norm.functional.block import ResidualKey
from captum_norm.functional.feed_forward_block import FeedForward as ProvedPart
from captum_norm.functional.normalization import FrozenNorm, at_rows
from captum_norm.operations.places import Source


class ReadPart(Protocol):
    """A feed-forward part as it was seen; ``proved`` says what it is, or raises a ValueError that says why not."""

    @property
    def proved(self) -> ProvedPart: ...

    def at(self, rows: slice | Tensor) -> ReadPart: ...


class RowsOnDemand(Protocol):
    """Weights that stand in a record until they are asked for, each with the check it has passed."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def device(self) -> torch.device: ...

    def whole(self) -> tuple[Tensor, Certificate]: ...

    def at(self, rows: slice | Tensor) -> tuple[Tensor, Certificate]: ...

    def kept(self, values: HeadValues) -> RowsOnDemand | None: ...

    @property
    def kept_bytes(self) -> int | None: ...

    @property
    def written(self) -> Tensor: ...


FeedForward = Literal["", "behind", "beside", "several", "later"]


@dataclass(frozen=True)
class AttentionBlock:
    """What the model does with what one attention call gave out: residual and norms, up to the next attention call.

    Attributes:
        residual: what the model added to it, (batch, query, model).
        attended: what attention gave out, b_O included, likewise; None where the model has overwritten it.
        residual_key: which key each query is itself, see :data:`captum_norm.functional.block.ResidualKey`.
        inner: a norm or scale between attention and residual (Gemma's, LayerScale), at the state it normalised; None
            where there is none.
        norm: the norm behind the residual (post-LN), likewise; None where the stream goes on as the sum (pre-LN).
        second_norm: the norm behind the feed-forward part, likewise.
        output: what attention, residual and norm became, with all biases, (batch, query, model).
        behind: what that became behind the feed-forward parts, as the next attention call's stream; ``output`` where
            there are none.
        feed_forward: where the feed-forward part stands: ``"behind"`` the residual, ``"beside"`` attention (in
            parallel), ``"several"`` of them with norms behind, ``"later"``: another attention call comes first (the
            cross-attention of a decoder); ``""``: none was seen.
        normalised: whether there is a norm anywhere in the block, before attention included.
        part: the feed-forward part behind the residual, of two projections and an activation; None where there is none
            that could be read.
        no_part: why not, in words.
        certificate: how far residual and norms are from reproducing the states the model computed, along one random
            direction.
    """

    residual: Tensor
    attended: Tensor | None
    residual_key: ResidualKey
    inner: FrozenNorm | None
    norm: FrozenNorm | None
    second_norm: FrozenNorm | None
    output: Tensor
    behind: Tensor
    feed_forward: FeedForward
    normalised: bool
    certificate: Certificate
    part: ReadPart | None = None
    no_part: str = ""

    def at(self, rows: slice | Tensor) -> AttentionBlock:
        """The block of some queries alone: views for a slice, copies for rows (batch, row) long."""
        (batch, query, _), device = self.residual.shape, self.residual.device
        rows = rows if isinstance(rows, slice) else rows.to(device)
        own = self.residual_key
        if isinstance(own, Tensor):
            own = at_rows(own.to(device).expand(batch, -1), rows)
        elif own == "diagonal":
            own = torch.arange(query, device=device)[rows].expand(batch, -1) if isinstance(rows, slice) else rows
        return replace(
            self,
            residual=at_rows(self.residual, rows),
            attended=None if self.attended is None else at_rows(self.attended, rows),
            residual_key=own,
            inner=self.inner and self.inner.at(rows),
            norm=self.norm and self.norm.at(rows),
            second_norm=self.second_norm and self.second_norm.at(rows),
            output=at_rows(self.output, rows),
            behind=at_rows(self.behind, rows),
            part=self.part and self.part.at(rows),
        )


@dataclass(frozen=True)
class AttentionRecord:
    """One attention call, read exactly: sum_h (weights_h @ values_h [* gate_h]) @ W_O_h + b_O is its output.

    Attributes:
        call: which call this was.
        weights: attention weights alpha as they multiplied the values, (batch, head, query, key).  In a record that
            ``on_record`` was given they are computed, and all of them checked, when they are first asked for.
        values: x W_V + b_V, (batch, head, key, head_dim); shared by the heads of a group where the model shares them.
        W_O: each head's slice of the output projection, (head, head_dim, model).
        b_O: the projection's bias, (model,), or None.
        gate: what the model multiplied the mixed values with before W_O, (batch, head, query, head_dim) or, where one
            number serves a whole head, (batch, head, query, 1); None where there is no gate.
        queries: input positions of the query axis, or None where they are not known.
        keys: input positions of the key axis, or None where they are not known.
        unknown_keys: why ``keys`` is None, in words for an error message; ``""`` where it is known.
        query_mask: (batch, query) bool, True at real tokens, by what attention itself was allowed to look at; None
            where all are real.
        key_mask: (batch, key) bool, the same for the keys.
        looked_at: which tokens of the keys' sequence attention is seen to look at in any call so far; None where it is
            not known which keys these are.
        certificate: the check this record has passed; ``certificate.rows`` says of which queries.
        mixers: what beside attention mixed positions on the way from the inputs to the values.
        beside: other inputs, whose rows are among the keys and are none of the positions in ``keys``.
        sequence: what the keys are positions of, the index of an input or a name, known or not which; None if torn.
        bit, ancestors: the call's own bit, and those of the calls it was made of (:mod:`captum_norm.capture.reach`).
        fed: its marks (:mod:`captum_norm.capture.chain`), for ``recording(chain=True)``; else None.
        mixed: weights_h @ values_h in autograd's graph, for ``recording(differentiable=True)``; else None.
    """

    call: AttentionCall
    weights: Tensor
    values: Tensor
    W_O: Tensor
    b_O: Tensor | None
    gate: Tensor | None
    queries: Positions | None
    keys: Positions | None
    unknown_keys: str
    query_mask: Tensor | None
    key_mask: Tensor | None
    certificate: Certificate
    block: AttentionBlock | None = None
    no_block: str = "blocks were not recorded"
    mixed: MixedValues | None = None
    mixers: tuple[Mixer, ...] = ()
    beside: frozenset[Source] = frozenset()
    sequence: Source | None = None
    bit: int = 0
    ancestors: int = 0
    fed: Fed | None = None
    looked_at: LookedAt | None = None

    def __post_init__(self) -> None:
        for name in _HELD.keys() & self.__dict__.keys():
            if isinstance(self.__dict__[name], Held):  # the model's own, while nobody writes to it
                self.__dict__["_" + name] = self.__dict__.pop(name)
        if not isinstance(self.__dict__.get("weights"), Tensor | None):  # rows on demand, until all are wanted
            self.__dict__["_rows"] = self.__dict__.pop("weights")

    if TYPE_CHECKING:
        _rows: ClassVar[RowsOnDemand]
    else:

        def __getattr__(self, name: str) -> Any:
            if name in _HELD and "_" + name in self.__dict__:
                return self._given_out(name)
            if name != "weights" or "_rows" not in self.__dict__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            weights, certificate = self._rows.whole()
            del self.__dict__["_rows"]
            self.__dict__.update(_weights=Held(weights), certificate=certificate)
            return weights

    def _given_out(self, name: str) -> Tensor:
        held: Held = self.__dict__["_" + name]
        if not held.is_right:
            raise refusal(
                self.call,
                f"its {name} {_HELD[name]} overwritten after the call was read (static caches are, and parameters in a "
                "step of training): use the record before that, or inside on_record, while the model runs",
            )
        return held.whole

    @property
    def head_values(self) -> HeadValues:
        """Its values, of groups where heads share them: without a copy."""
        held: HeadValues | None = self.__dict__.get("_values")
        return held if held is not None and held.unchanged else HeadValues(self.values)

    def lasting(self) -> AttentionRecord:
        """The record with all its weights, and values that outlive the next run of the model."""
        _ = self.weights
        return self.but(values=self.head_values.lasting())

    @property
    def positions_first(self) -> bool:
        """Whether the keys run along the first axis of an input, and examples along the second."""
        return POSITIONS_FIRST in self.unknown_keys

    @property
    def is_of_one_example(self) -> bool:
        """Whether it is a call for one example of several alone."""
        return self.unknown_keys.startswith(ONE_EXAMPLE)

    @property
    def of_inputs(self) -> bool:
        """Whether anything of the inputs is in what entered the call."""
        return bool(self.ancestors & INPUT)

    @property
    def shape(self) -> torch.Size:
        """(batch, head, query, key), without computing any weights."""
        return self._rows.shape if "_rows" in self.__dict__ else self.weights.shape

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._rows.device if "_rows" in self.__dict__ else self.weights.device

    def but(self, **changes: Any) -> AttentionRecord:
        """``dataclasses.replace`` that asks for no weights."""
        if not changes.keys() <= self.__dataclass_fields__.keys():
            raise TypeError(f"no fields of a record: {', '.join(changes.keys() - self.__dataclass_fields__.keys())}")
        other: AttentionRecord = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        for changed in (*changes, "rows") if "weights" in changes else changes:
            other.__dict__.pop("_" + changed, None)
        other.__dict__.update(changes)
        other.__post_init__()
        return other

    def at(self, rows: slice | Tensor, placed: bool = True) -> AttentionRecord:
        """The record of some queries alone, whose weights alone are computed and checked.

        Args:
            rows: a slice of the queries, or (batch, row) long, from 0.
            placed: with the positions and masks of these queries.

        Returns:
            The record with weights (batch, head, row, key), gate, block, masks and positions of these queries
            (``queries`` is None where examples have different ones); its certificate covers them.

        Raises:
            InexactCaptureError: if these weights do not reproduce what the model wrote, or if what they are computed
                from was overwritten since, as a static cache does.

        Example:
            >>> from captum_norm.capture import recording
            >>> attention, x = torch.nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(1, 5, 8)
            >>> with recording() as records:
            ...     _ = attention(x, x, x)
            >>> torch.equal(records[0].at(slice(3, 5)).weights, records[0].weights[:, :, 3:5])
            True
        """
        batch, _, query, _ = self.shape
        numbers = torch.arange(query)[rows].expand(batch, -1) if isinstance(rows, slice) else rows
        same = batch == 1 or isinstance(rows, slice) or bool((numbers == numbers[:1]).all())
        if same and not isinstance(rows, slice) and numbers.shape[1] == 1:
            only = int(numbers[0, 0])
            rows = slice(only, only + 1)
        certificate = self.certificate
        if "_rows" not in self.__dict__:
            weights = _taken(self.weights, rows)
        else:
            weights, certificate = self._rows.at(rows)
            self.__dict__["certificate"] = certificate
        positions, mask = (self.queries if same else None, self.query_mask) if placed else (None, None)
        return self.but(
            weights=weights,
            certificate=certificate,
            gate=None if self.gate is None else _taken(self.gate, rows),
            block=self.block and self.block.at(rows if isinstance(rows, slice) else numbers),
            queries=positions and positions.at(numbers[0]),
            query_mask=None if mask is None else mask.gather(1, numbers.to(mask.device)),
        )

    def kept(self) -> AttentionRecord | None:
        """The record for later: rows of its weights can still be asked for when the model runs on, or ran on.

        It holds copies of queries, keys, values and of the block's states, (batch, query, model) each.  None where the
        model has made its weights itself, or they were asked for already.
        """
        if "_rows" not in self.__dict__:
            return None
        values = self.head_values.copied()
        rows = self._rows.kept(values)
        if rows is None:
            return None
        block = self.block and _copied(self.block, (self.shape[0], self.shape[2]))
        return self.but(weights=rows, values=values, block=block, mixed=None)

    @property
    def kept_bytes(self) -> int | None:
        """What ``kept`` copies, in bytes, known from shapes; None where it gives None."""
        beside = self._rows.kept_bytes if "_rows" in self.__dict__ else None
        if beside is None:
            return None
        rows = (self.shape[0], self.shape[2])
        return beside + self.head_values.given.nbytes + sum(state.nbytes for state in _states(self.block, rows))

    @property
    def written(self) -> Tensor:
        """What the call wrote, along the certificate's random direction, (batch, query); while weights are not read."""
        return self._rows.written

    def blocks(self, size: int | None = None) -> Iterator[tuple[slice, AttentionRecord]]:
        """The record a block of queries at a time: which queries, and the record ``at`` them.

        Args:
            size: how many queries; None for as many as keep a block's weights small (8 MB).
        """
        batch, head, query, key = self.shape
        size = size or max(1, _BLOCK // max(1, batch * head * key))
        for start in range(0, query, size):
            rows = slice(start, min(query, start + size))
            yield rows, self.at(rows)


# What a record may hold of the model's own.
_HELD = {"weights": "were", "values": "were", "W_O": "was", "b_O": "was"}

# Weights in a block of queries.
_BLOCK = 1 << 21


def _states(part: object, rows: tuple[int, int]) -> Iterator[Tensor]:
    """The tensors (batch, query, ...) of a block and its norms and parts."""
    for found in (getattr(part, one.name) for one in fields(part)) if is_dataclass(part) else ():
        if isinstance(found, Tensor):
            yield from [found] if found.shape[:2] == rows else []
        else:
            yield from _states(found, rows)


def _copied(part: Any, rows: tuple[int, int]) -> Any:
    """The same with copies of ``_states``."""
    if isinstance(part, Tensor):
        return part.clone() if part.shape[:2] == rows else part
    if not is_dataclass(part) or isinstance(part, type):
        return part
    return replace(part, **{one.name: _copied(getattr(part, one.name), rows) for one in fields(part) if one.init})


def _taken(tensor: Tensor, rows: slice | Tensor) -> Tensor:
    """Rows of (batch, head, query, last)."""
    if isinstance(rows, slice):
        return tensor[:, :, rows]
    index = rows.to(tensor.device)[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
    return tensor.gather(2, index)
