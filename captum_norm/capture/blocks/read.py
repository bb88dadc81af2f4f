"""From what was seen of a block to what the maths needs: residual, norms and output in (batch, query, model)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from captum_norm.capture.blocks.check import BlockCheck, UnreadableBlockError
from captum_norm.capture.blocks.feed_forward import PartState, SeenPart
from captum_norm.capture.blocks.forms import Form, Kept, coarsest
from captum_norm.capture.blocks.stream import OpenBlock, Stage
from captum_norm.capture.call import Positions
from captum_norm.capture.layout import Layout
from captum_norm.capture.record import AttentionBlock
from captum_norm.capture.traces import Projection
from captum_norm.functional.block import ResidualKey
from captum_norm.functional.normalization import FrozenNorm
from captum_norm.operations.steps import NOT_AN_INPUT


class BlockReader:
    """Turns what was seen of blocks into :class:`AttentionBlock` s, in the order of their calls."""

    def __init__(self) -> None:
        self._orders: dict[Hashable, Tensor] = {}
        self._normed: dict[int, bool] = {}  # whether the stream went on from stage n as a norm

    def read(
        self, block: OpenBlock | None, projection: Projection | None, layout: Layout, own_key: Callable[[], ResidualKey]
    ) -> AttentionBlock:
        """The block around a call.

        Args:
            block: what was seen, or None.
            projection: what W_O wrote.
            layout: where (batch, query) lie among the rows of what W_O wrote.
            own_key: which key each query is itself; see :func:`residual_key`.

        Raises:
            UnreadableBlockError: if there is no block, or if it does not reproduce what the model computed.
        """
        if block is not None and block.problem:
            raise UnreadableBlockError(block.problem)
        if block is None or block.part is None or block.residual is None:
            raise UnreadableBlockError(
                "what W_O wrote was not seen to be added to a residual stream as it is, scaled or normalised"
            )
        if block.is_moved:
            raise UnreadableBlockError("what W_O wrote is added to rows of other positions")
        if block.in_pieces:
            raise UnreadableBlockError("what W_O wrote is added to the residual stream in pieces")
        if len(layout.rest):
            raise UnreadableBlockError("W_O wrote more at once than the heads of this call")
        form, kept = block.part
        first, *behind = block.stages
        rows = self._rows(layout.tokens, form)
        state = _take_rows(first.state.tensor, rows)
        residual, part = _summands(block.residual, kept, form, state, rows)
        check = BlockCheck(part.dtype)
        inner = None
        if form.is_plain:
            written = _written(projection, layout.tokens)
            check.equal("what was added to the residual", written, part, rows, form.precision, beside=residual)
        elif not form.state.unchanged:
            raise UnreadableBlockError("what W_O wrote was overwritten in place before its norm could be read")
        else:
            inner = _frozen(form, layout.tokens)
            attended = _take_rows(form.state.tensor, layout.tokens)
            check.norm("what stands between attention and residual", inner, attended, part, rows, form.precision)
        if form.beside is None:
            check.equal("the sum of attention and residual", part + residual, state, rows)
        elsewhere = block.pre_norm or form.normalises
        going_on = self._going_on(0, first, not elsewhere, elsewhere)
        norm, output = self._norm(check, "the norm behind the residual", going_on, state, rows)
        second, last = self._behind(check, behind, rows, norm is not None, elsewhere)
        behind_it = self._part(block, rows, state)
        return AttentionBlock(
            residual=residual,
            attended=_attended(form, kept, part, inner),
            residual_key=own_key(),
            inner=inner,
            norm=norm,
            second_norm=second[0] if len(second) == 1 else None,
            output=part + residual if norm is None else output,
            behind=output if last is None else last,
            feed_forward="several" if len(second) > 1 else block.feed_forward,
            normalised=_is_normalised(block),
            certificate=check.certificate(),
            part=None if isinstance(behind_it, str) else behind_it,
            no_part=behind_it if isinstance(behind_it, str) else "",
        )

    def _part(self, block: OpenBlock, rows: Tensor, state: Tensor) -> SeenPart | str:
        """The feed-forward part that was added to the block's sum, or why it is not known."""
        first, *behind = block.stages
        if len(behind) != 1 or block.feed_forward != "behind":
            return _NO_PART["several" if len(behind) > 1 else block.feed_forward]
        form, kept = behind[0].part or (None, None)
        if form is None or kept is None or not isinstance(form.state, PartState):
            return "it is not two projections with an activation between them (a mixture of experts?)"
        written, read = form.state, form.state.hidden.form
        if read.state is not first.state:
            return "it reads another state than the sum of attention and residual"
        if not kept.unchanged or not (form.is_plain or written.unchanged):
            return "what it gave out was overwritten in place before it could be read"
        try:
            within = self._rows(rows, read)
            moved = self._rows(within, form)
            return SeenPart(
                projections=written.hidden.projections,
                second=written.second,
                before=None if read.is_plain else _frozen(read, rows),
                after=None if form.is_plain else _frozen(form, within),
                state=state,
                added=_take_rows(kept.tensor, moved),
                rows=moved,
                precision=coarsest(read.precision, form.precision),
            )
        except UnreadableBlockError as error:
            return str(error)

    def _going_on(self, number: int, stage: Stage, default: bool, elsewhere: bool) -> tuple[Form, Kept] | None:
        """The norm as which the stream goes on from a stage, or None where it is the state itself.

        Behind the model's last block nothing tells whether a norm is the block's own; the blocks before it do.

        Args:
            number: how many stages of the block were before.
            stage: the stage.
            default: what to take for granted where nothing tells.
            elsewhere: the block's norms stand before attention or behind it, and none behind the residual.

        Raises:
            UnreadableBlockError: where the stream goes on as something else.
        """
        if stage.going_on is not None:
            normed = _is_norm(stage.going_on[0])
            self._normed[number] = normed
            return stage.going_on if normed else None
        told = self._normed.get(number)
        if (stage.lost and not elsewhere) or (stage.unclear and told is None and default):
            raise UnreadableBlockError(
                "what goes on behind the sum of attention and residual is no norm, scale or move of it that is known "
                f"({stage.lost or stage.unclear}); write it as F.layer_norm, F.rms_norm or products with one number "
                "for each row or feature"
            )
        if not (default if told is None else told):
            return None
        if stage.normed is not None or stage.scaled is None or not (told or number):
            return stage.normed
        return stage.scaled if _is_norm(stage.scaled[0]) else None

    def _norm(
        self, check: BlockCheck, what: str, going_on: tuple[Form, Kept] | None, state: Tensor, rows: Tensor
    ) -> tuple[FrozenNorm | None, Tensor]:
        """A norm of a state, and what it gave out; the state itself where there is no norm."""
        if going_on is None:
            return None, state
        form, kept = going_on
        if not kept.unchanged:
            raise UnreadableBlockError(f"what {what} gave out was overwritten in place before it could be read")
        norm, moved = _frozen(form, rows), self._rows(rows, form)
        actual = _take_rows(kept.tensor, moved)
        check.norm(what, norm, state, actual, moved, form.precision)
        return norm, actual

    def _behind(
        self, check: BlockCheck, behind: list[Stage], rows: Tensor, post_norm: bool, elsewhere: bool
    ) -> tuple[list[FrozenNorm], Tensor | None]:
        """The norms behind the feed-forward parts up to the next attention call, and what the last part became."""
        norms, last = [], None
        for number, stage in enumerate(behind, start=1):
            rows = self._rows(rows, stage.origin)
            state = _take_rows(stage.state.tensor, rows)
            going_on = self._going_on(number, stage, post_norm, elsewhere)
            norm, last = self._norm(check, "the norm behind the feed-forward part", going_on, state, rows)
            if norm is not None:
                norms.append(norm)
        return norms, last

    def _rows(self, rows: Tensor, form: Form) -> Tensor:
        """Where rows of a form's state lie among the rows of the tensor; -1 where they are not kept."""
        if not form.steps:
            return rows
        shape = form.state.tensor.shape
        key = (tuple(shape), tuple(step.key for step in form.steps))
        if key not in self._orders:
            self._orders[key] = _order(form)
        return torch.where(rows < 0, NOT_AN_INPUT, self._orders[key][rows])


_NO_PART = {
    "": "no feed-forward part (FFN) was seen behind it",
    "behind": "no feed-forward part (FFN) was seen behind it",
    "beside": "its feed-forward part stands beside attention (in parallel) and reads nothing of it: no key is in it "
    "but the position itself; maps behind attention and residual (res_norms, ALTI, AttentionBlockNorm) do without it, "
    "and DecompX takes it in",
    "later": "another attention call stands between it and the feed-forward part",
    "several": "several feed-forward parts stand between it and the next attention call",
}


def _order(form: Form) -> Tensor:
    """For each row of the state, its row in the tensor, or -1; (row,)."""
    shape = form.state.tensor.shape
    numbers = torch.arange(math.prod(shape), device="cpu").view(shape)
    try:
        for step in form.steps:
            numbers = step.apply(numbers)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise UnreadableBlockError(f"a move between attention and residual cannot be repeated: {error}") from error
    width = shape[-1]
    numbers = numbers.reshape(-1, numbers.shape[-1])
    kept = (numbers[:, 0] != NOT_AN_INPUT).nonzero()[:, 0]
    numbers = numbers[kept]
    whole = numbers[:, :1] + torch.arange(width, device="cpu")
    if numbers.shape[-1] != width or not torch.equal(numbers, whole) or (numbers[:, 0] % width).any():
        raise UnreadableBlockError("the vectors of the residual stream are taken apart on their way")
    order = torch.full((math.prod(shape[:-1]),), NOT_AN_INPUT)
    order[numbers[:, 0] // width] = kept
    return order


def _take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """(batch, query, feature): the rows of a tensor, zero where a row is -1."""
    flat = tensor.reshape(-1, tensor.shape[-1])
    rows = rows.to(flat.device)
    if len(flat) == rows.numel() and torch.equal(rows.flatten(), torch.arange(len(flat), device=rows.device)):
        return flat.view(*rows.shape, -1)
    taken = flat[rows.clamp_min(0)]
    return taken.masked_fill((rows < 0)[..., None], 0) if bool((rows < 0).any()) else taken


def _summands(residual: Kept, part: Kept, form: Form, state: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Residual and attention's part; where the model has overwritten one of them, it is the rest of their sum."""
    if residual.unchanged and part.unchanged:
        return _take_rows(residual.tensor, rows), _take_rows(part.tensor, rows)
    if form.beside is not None or not (residual.unchanged or part.unchanged):
        raise UnreadableBlockError("what W_O wrote or its residual was overwritten in place before it could be read")
    if part.unchanged:
        known = _take_rows(part.tensor, rows)
        return state - known, known
    known = _take_rows(residual.tensor, rows)
    return known, state - known


def _attended(form: Form, kept: Kept, part: Tensor, inner: FrozenNorm | None) -> Tensor | None:
    """What attention gave out, where it is known to all of its digits."""
    if inner is not None:
        return inner.state
    return part if kept.unchanged and form.beside is None else None


def _written(projection: Projection | None, rows: Tensor) -> Tensor | None:
    """What W_O wrote along the random direction, (batch, query), noted the moment it did."""
    if projection is None or projection.actual is None or projection.r is None:
        return None
    along = projection.actual[rows.to(projection.actual.device)]
    r = projection.r
    return along if projection.bias is None else along + projection.bias.detach().to(r.dtype) @ r


def _is_norm(form: Form) -> bool:
    """A norm, or one factor per feature in its place; a number scales the whole stream, a bias alone is no norm."""
    per_feature = isinstance(form.weight, Tensor) and form.weight.numel() > 1
    return form.normalises or per_feature


def _is_normalised(block: OpenBlock) -> bool:
    """Whether there is a norm anywhere in the block."""
    form = None if block.part is None else block.part[0]
    inner = form is not None and form.normalises
    return inner or block.pre_norm or any(stage.normed is not None for stage in block.stages)


def _frozen(form: Form, rows: Tensor) -> FrozenNorm:
    """A form as the maths wants it, for rows (batch, query) of its state."""
    state = form.state.tensor
    rows = rows.clamp_min(0)  # any row will do where the model has none: zeros may have no deviation
    weight = form.weight
    for numbers in (weight, form.bias):
        if isinstance(numbers, Tensor) and numbers.numel() not in (1, state.shape[-1]):
            raise UnreadableBlockError(
                f"{numbers.numel()} numbers, a factor or bias for each position, act on vectors of {state.shape[-1]}"
            )
    if weight is not None:
        weight = torch.as_tensor(weight, dtype=state.dtype, device=state.device).expand(state.shape[-1])
    bias = None if form.bias is None else form.bias.expand(state.shape[-1])
    factor = None if form.factor is None else _take_rows(form.factor, rows)[..., 0]
    eps = 0.0 if form.eps is None else form.eps
    normalised = None if form.eps is None else _take_rows(state, rows)
    return FrozenNorm(normalised, weight, bias, eps, form.centred, factor)


def residual_key(
    queries: Positions | None, keys: Positions | None, cross: bool, cached: bool, query: int, key: int,
    in_order: bool = True,
) -> ResidualKey:  # fmt: skip
    """Which key each query is itself.

    Args:
        queries, keys: where the axes of the call lie in the input.
        cross: the keys are another sequence's.
        cached: the keys of earlier forward passes come before those of this one.
        query, key: how many there are.
        in_order: queries are in the order of the product that mixed the values.

    Raises:
        UnreadableBlockError: if that is not known.
    """
    if cross:
        return "column"
    if queries is not None and keys is not None and queries.source == keys.source:
        if torch.equal(queries.index, keys.index):
            return "diagonal"
        same = (queries.index[:, None] == keys.index) & (queries.index[:, None] != NOT_AN_INPUT)
        if bool((same.sum(-1) == 1).all()):
            return same.int().argmax(-1)
        in_order = in_order and bool((queries.index < 0).any())  # known to be others
    if query == key and in_order:
        return "diagonal"
    if cached and query < key:
        return torch.arange(key - query, key, device="cpu")  # the keys of earlier passes come first
    raise UnreadableBlockError(f"it is not known which of the {key} keys each of the {query} queries is itself")
