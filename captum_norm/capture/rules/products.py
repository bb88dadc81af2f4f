"""The value product: weights meet values, and an attention call begins."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped as unwrapped
from torch._C._functorch import is_batchedtensor as is_batched

from captum_norm.capture.columns import UNKNOWN_COLUMNS, Columns, ToldBy
from captum_norm.capture.dataflow import Dataflow, rule
from captum_norm.capture.held import HeadValues, repeated
from captum_norm.capture.masks import allowed_at_product, allowed_by_mask, two_numbers
from captum_norm.capture.reach import INPUT
from captum_norm.capture.rules.alike import is_empty_somewhere, place_of, where_weighted
from captum_norm.capture.rules.weights import is_weights, map_weights, mixes_values
from captum_norm.capture.traces import Mixture, Trace
from captum_norm.capture.weights import GivenWeights, HiddenWeights
from captum_norm.operations.kinds import HIDDEN_ATTENTION
from captum_norm.operations.operation import Operation
from captum_norm.operations.places import TORN, Place, WholeAxes, along
from captum_norm.operations.steps import Step
from captum_norm.operations.storages import storage_of


@rule("scaled_dot_product_attention")
def _scaled_dot_product_attention(flow: Dataflow, op: Operation) -> None:
    query, key, value = (op.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    problem = ""
    if op.argument(4, "dropout_p", 0.0):
        flow.drops_out(op.argument(4, "dropout_p"))
        problem = (
            "scaled_dot_product_attention drops out weights that it does not return; call model.eval() "
            "(or run in train mode with attn_implementation='eager')"
        )
    mask, is_causal = op.argument(3, "attn_mask"), bool(op.argument(5, "is_causal", False))
    if not problem and mask is not None and mask.is_floating_point() and bool(mask.isnan().any()):
        problem = f"its mask, {tuple(mask.shape)}, holds NaN; give 0 where a key may be attended to, -inf where not"
    weights = HiddenWeights(query, key, mask, is_causal, op.kwargs.get("scale"))
    places = _places(flow, query, query.shape, value)
    live, shared_by = value, 1
    if value.ndim > 2 and value.shape[-3] not in (1, query.shape[-3]):
        shared_by = query.shape[-3] // value.shape[-3]
        step = Step(("repeat_interleave", shared_by, -3), partial(repeated, repeats=shared_by))
        with torch.enable_grad():
            live = repeated(value, shared_by) if value.requires_grad else None
        places[1] = places[1] and places[1].then(step)
    weights_place = places[0] and places[0].of_features(weights.shape[-1])
    lead = tuple(op.out.shape[:-2])
    allowed, used = allowed_by_mask(mask, is_causal, *weights.shape[-2:]), None
    if mask is not None and flow.masks.is_chosen(mask):
        allowed, used = None, allowed
    callers = flow.callers  # read before anybody asks for the innermost one's name
    softmax = flow.softmax(op, weights.shape, -1, "positions")
    mixture = Mixture(
        weights, HeadValues(value.detach(), shared_by), lead, callers, weights_place, places[1], problem, live=live,
        allowed=allowed, used=used, unmasked=allowed is None and used is None and not is_causal,
        given=mask is None or flow.is_given(mask), softmaxes=softmax,
    )  # fmt: skip
    flow.mixes(mixture, (query, key), value)
    flow.mix(mixture, op.out, (), places[0] and places[0].of_features(value.shape[-1]))


def _places(flow: Dataflow, queries: Tensor, shape: torch.Size, values: Tensor) -> list[Place | None]:
    """Where the queries lie, and the values that they read, (..., key, head_dim); each may be no input at all.

    Queries that are no input read themselves if the values are none, and as many.

    Args:
        flow: what is known.
        queries: what holds their place, the queries themselves or their weights, with the ``shape`` (..., query, any).
        values: what they read.
    """
    places = [place_of(flow, queries), place_of(flow, values)]
    if flow.is_learned(queries) and len(shape) > 2:
        places[0] = flow.latents(shape, -2)
    if flow.is_learned(values) and values.ndim > 2:
        of_queries = places[0] if flow.is_learned(queries) and shape[-2] == values.shape[-2] else None
        own = flow.latents(values.shape, -2) if of_queries is None else along(of_queries.anchor, values.shape, -2)
        places[1] = own
    return places


def hidden_product(flow: Dataflow, op: Operation) -> None:
    """(weights * values).sum(): a value product we do not take apart."""
    unread_product(
        flow, op, "its weights are multiplied with the values and summed by hand; use matmul, einsum or SDPA there"
    )


def unread_product(flow: Dataflow, op: Operation, problem: str) -> None:
    """A value product that cannot be read, and why."""
    empty = torch.empty(0, 0, 0)
    used = flow.ledger.used_by(flow.reach.of_all(op.tensors))
    lead = tuple(op.out.shape[:-2])
    mixture = Mixture(GivenWeights(empty), HeadValues(empty), lead, flow.callers, None, None, problem, softmaxes=used)
    flow.mix(mixture, op.out, (), None)


def numerators_meet(
    flow: Dataflow, op: Operation, keeps: Callable[[int, int | None], bool] = lambda operand, axis: False
) -> bool:  # fmt: skip
    """Whether a product is one of exponentials of scores, or of shares made of scores, with something of the inputs.

    That is attention whose weights no softmax made that is followed: refused, for it would else be passed over.

    Args:
        keeps: whether the result still has this axis of this operand.
    """
    if not isinstance(op.out, Tensor):
        return False
    for number, tensor in enumerate(op.tensors):
        trace = flow.traces[tensor]
        if trace is None or trace.scores is None or trace.weights is not None or keeps(number, trace.scores.axis):
            continue
        others = [one for one in op.tensors if one is not tensor and one.is_floating_point()]
        if not any(flow.reach.of(other) & INPUT for other in others):
            continue
        if trace.is_numerator:
            problem = "exponentials of its scores meet the values before they are seen to be divided by their sum"
        elif _are_shares(tensor, trace.scores.axis):
            problem = "weights that are made of scores, by no softmax that is followed, meet the values"
        else:
            continue
        unread_product(flow, op, f"{problem}; make them by softmax(scores), or by e / e.sum(-1, keepdim=True)")
        return True
    return False


def _are_shares(tensor: Tensor, axis: int | None) -> bool:
    """Whether entries along the keys' axis, or along one of the last two, are shares that add up to one."""
    x = tensor.detach()
    if x.is_complex() or x.ndim < 2 or not x.numel() or bool((x < 0).any()):
        return False
    sums = [x.sum(one) for one in ((x.ndim - 1, x.ndim - 2) if axis is None else (axis,))]
    return any(bool(((total - 1).abs() < _NEAR).all()) for total in sums)


# How far shares may be from adding up to one, in any format.
_NEAR = 1e-2


@rule(*HIDDEN_ATTENTION)
def _hidden_attention(flow: Dataflow, op: Operation) -> None:
    empty = torch.empty(0, 0)
    problem = (
        f"{op.name} does not return its weights; use scaled_dot_product_attention there, or load the model with "
        "attn_implementation='sdpa' or 'eager'"
    )
    out = op.outputs[0]
    mixture = Mixture(GivenWeights(empty), HeadValues(empty), tuple(out.shape[:-2]), flow.callers, None, None, problem)
    flow.mix(mixture, out, (), None)


def _may_be_values(flow: Dataflow, tensor: Tensor, weights: Tensor) -> bool:
    if isinstance(tensor, torch.nn.Parameter):
        return False
    trace = flow.traces[tensor]
    return tensor.ndim >= 3 or weights.ndim == tensor.ndim or (trace is not None and trace.place is not None)


def _meets_values(flow: Dataflow, weights: Tensor, axis: int, other: Tensor, other_axis: int) -> bool:
    """Whether these are weights that meet values, summed over these axes, counted from the end."""
    if not is_weights(flow, weights) or min(weights.ndim, other.ndim) < 2 or not _may_be_values(flow, other, weights):
        return False
    return mixes_values(flow, weights, weights.ndim + axis, other, other.ndim + other_axis)


@rule("matmul", "rmatmul")
def _matmul(flow: Dataflow, op: Operation) -> None:
    left, right = op.tensors[:2]
    if op.name == "rmatmul":
        left, right = right, left
    if is_batched(op.out):
        _vmapped_product(flow, op, left, right)
        return
    if numerators_meet(flow, op):
        return
    if _meets_values(flow, left, -1, right, -2):
        value_product(flow, left, right, op.out, op.out.shape, ())
    elif _meets_values(flow, right, -2, left, -1):
        flip = Step(("transpose", -1, -2), lambda t: t.transpose(-1, -2))
        shape = flip.apply(op.out).shape
        value_product(flow, flow.step(right, flip), flow.step(left, flip), op.out, shape, (flip,))
    elif is_weights(flow, left) or is_weights(flow, right):
        _map_by_matrix(flow, left, right, op.out)
    elif right.ndim == 2:
        flow.project(left, right, None, op.out, right)
    else:
        _product_place(flow, left, right, op.out)


@rule("grouped_mm", "_grouped_mm")
def _grouped(flow: Dataflow, op: Operation) -> None:
    _product_place(flow, op.tensors[0], op.tensors[1], op.out)


def _vmapped_product(flow: Dataflow, op: Operation, *operands: Tensor) -> None:
    """A product under ``torch.vmap``, whose results are other tensors when it ends: refused if it may be attention."""
    seen = [unwrapped(operand) if is_batched(operand) else operand for operand in operands]
    if any(is_weights(flow, operand) for operand in (*seen, *operands)):
        unread_product(flow, op, "its weights meet the values under torch.vmap, out of sight; write the axis out")


def _map_by_matrix(flow: Dataflow, left: Tensor, right: Tensor, out: Tensor) -> None:
    """A matrix of parameters, or one that the model made of its inputs, mixes the weights of heads."""
    if min(left.ndim, right.ndim) < 2:
        _product_place(flow, left, right, out)
    elif is_weights(flow, left):
        map_weights(flow, left, -1, out)
    else:
        map_weights(flow, right, -2, out)


@rule("baddbmm")
def _baddbmm(flow: Dataflow, op: Operation) -> None:
    if not numerators_meet(flow, op):
        added_product(flow, op)


def note_shallow_mask(flow: Dataflow, scores: Tensor, mask: Tensor, factor: float = 1) -> None:
    """Scores to which a mask of 0 and -100 or the like was added, times a factor."""
    if mask.ndim > 1 and scores.ndim > 2 and flow.reach.of(mask) <= INPUT and type(mask) is Tensor:
        allowed = two_numbers(mask if factor == 1 else factor * mask)
        if allowed is not None:
            flow.shallow[scores] = allowed


def added_product(flow: Dataflow, op: Operation) -> None:
    """beta * added + alpha * (left @ right): a value product where left are weights and nothing is added."""
    added, left, right = op.tensors[:3]
    if not _meets_values(flow, left, -1, right, -2):
        _product_place(flow, left, right, op.out)
        trace = flow.traces[op.out]
        if trace is not None and trace.scores is not None:
            who: ToldBy = "inputs" if flow.is_given(added) else "the model"
            flow.traces.update(op.out, scores=trace.scores.after_telling(who))
        note_shallow_mask(flow, op.out, added, op.kwargs.get("beta", 1))
        return
    alpha = op.kwargs.get("alpha", 1)
    scale = Step(("alpha", object()), lambda t: t * alpha, True)
    steps = () if alpha == 1 else (scale,)
    nothing = op.kwargs.get("beta", 1) == 0 or not bool(added.any())
    problem = "" if nothing else f"{op.name} adds something to its mixed values; write the sum apart from the product"
    value_product(flow, left, right, op.out, op.out.shape, steps, problem)


def _product_place(flow: Dataflow, left: Tensor, right: Tensor, out: Tensor) -> None:
    """Where the product of two tensors lies: where the left one does, or the right one beside a constant."""
    place, scores = place_of(flow, left), scores_of_product(flow, left, right, right.ndim - 1, out, out.ndim - 1)
    if place is not None and right.ndim == 1 and not flow.is_moved(right, left):
        features = (left.ndim - 1,)
        whole = place.then(WholeAxes(features, out.shape)) if flow.places.holds_one(place, features) else None
        flow.traces[out] = Trace(place=whole, scores=scores)
        return
    if place is None:
        place = place_of(flow, right)
        if place is not None and 2 <= out.ndim == right.ndim and not flow.is_moved(left, right):
            flow.traces[out] = Trace(place=flow.read_whole(place, out, -2))
        else:
            flow.traces[out] = Trace(scores=scores)
    elif out.ndim >= left.ndim:
        place, other = flow.read_whole(place, out), place_of(flow, right)
        if place is not None and flow.is_moved(right, left):
            # A number for each row is a sum of squares, or a query that meets the one key of its window.
            may_be_scores = out.shape[-2:].numel() == 1 and storage_of(left) != storage_of(right)
            if other is not None and (right.ndim != out.ndim or may_be_scores):
                other = None
            place = after_product(flow, place, other and flow.read_whole(other, out, -2), out)
        flow.traces[out] = Trace(place=place, scores=scores)


def after_product(flow: Dataflow, place: Place, theirs: Place | None, out: Tensor) -> Place:
    """Where a product of two states lies; it mixes positions unless both have the same ones at every entry."""
    if theirs is not None and out.numel() and flow.places.agree(place, theirs, out.shape):
        return place.mixed_by(theirs.mixers)
    if theirs is not None and not flow.places.in_order(place) and flow.places.along_same_axes(place, theirs, out.shape):
        place = theirs if flow.places.in_order(theirs) else place.then(TORN)  # row by row, as in a sum of neighbours
    return flow.mixed_by(place, "a product with what positions were made into")


def scores_of_product(
    flow: Dataflow, left: Tensor, right: Tensor, axis: int, out: Tensor, out_axis: int
) -> Columns | None:
    """The keys' axis of queries times keys, where the right one has positions along an axis that is not summed."""
    if isinstance(left, torch.nn.Parameter) or isinstance(right, torch.nn.Parameter) or min(left.ndim, right.ndim) < 2:
        return None
    if flow.reach.of(left) <= INPUT or flow.reach.of(right) <= INPUT:
        return None
    place = place_of(flow, right)
    if place is not None and right.shape[axis] > 1 and flow.places.holds_one(place, (axis,)):
        return None
    whole = (right.ndim - 2,) if axis == right.ndim - 1 and right.ndim == out.ndim else ()
    keys = place.then(WholeAxes(whole, out.shape)) if whole and place and flow.places.holds_one(place, whole) else None
    return Columns(tuple(out.shape), out_axis, told_by="nothing", keys=keys)


def _lies_along(flow: Dataflow, place: Place, weights: Tensor, axis: int) -> bool:
    """Whether positions lie along this axis of weights alone, but for the examples'."""
    others = tuple(n for n in range(1, weights.ndim) if n != axis % weights.ndim)
    return not flow.places.holds_one(place, (axis % weights.ndim,)) and flow.places.holds_one(place, others)


def value_product(
    flow: Dataflow, weights: Tensor, values: Tensor, out: Tensor, shape: torch.Size, steps: tuple[Step, ...],
    problem: str = "",
) -> None:  # fmt: skip
    """weights (..., query, key) @ values (..., key, head_dim) = a view of out with this shape."""
    trace, of_values = flow.traces[weights], flow.traces[values]
    places = _places(flow, weights, weights.shape, values)
    whose = places[0] and (where_weighted(flow, places[0], weights, -1) or places[0])
    if whose is not None and whose is places[0] and _lies_along(flow, whose, weights, -1):  # scores, read the other way
        keys = None if trace is None or trace.weights is None else trace.weights.keys
        whose = keys if keys is not None and flow.places.holds_one(keys, (weights.ndim - 1,)) else None
    if not problem and of_values is not None and of_values.mixed:
        problem = "its values are themselves mixed values of another attention call, with no projection between"
    unchosen = flow.unchosen()
    allowed = None if trace is None else allowed_at_product(trace.weights, weights, unchosen)
    columns = UNKNOWN_COLUMNS if trace is None or trace.weights is None else trace.weights
    chosen = unchosen is not None or columns.chosen
    mixture = Mixture(
        GivenWeights(weights.detach()), HeadValues(values.detach()), tuple(shape[:-2]), flow.callers, whose, places[1],
        problem, live=values, allowed=allowed, used=weights.detach() != 0 if chosen else None,
        unmasked=columns.hides_nothing, patterned=columns.patterned, given=columns.told_by == "inputs",
        softmaxes=flow.ledger.used_by(flow.reach.of(weights)),
    )  # fmt: skip
    flow.mixes(mixture, (weights,), values)
    place = None if whose is not places[0] and is_empty_somewhere(whose) else whose
    place = place and place.of_features(shape[-1])
    for step in steps:
        place = place if step.scales else place and place.then(step)
    flow.mix(mixture, out, steps, place)
