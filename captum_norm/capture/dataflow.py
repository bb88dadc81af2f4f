"""The rules that follow attention through a model: softmax -> value product -> reshapes and gates -> projection.

One table, ``RULES``: what a torch operation does to what is known of its operands.  An operation without a rule of its
own keeps the positions of an operand of its shape and loses everything else, so that what we do not understand is
refused later and never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from captum_norm.capture.callers import running_modules
from captum_norm.capture.certificate import Probe, at_least_float32
from captum_norm.capture.layout import NOT_AN_INPUT, Step
from captum_norm.capture.operations import Operation
from captum_norm.capture.places import Anchor, Features, Place, broadcast
from captum_norm.capture.traces import Mixed, Mixture, Projection, SoftmaxPart, Term, Trace, Traces

Rule = Callable[["Dataflow", Operation], None]
RULES: dict[str, Rule | None] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of these operations; an in-place form follows the rule of its name without the underscore."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


# Questions about a tensor, not operations on it.
_QUESTIONS = (
    "shape dtype device layout ndim requires_grad is_leaf grad grad_fn is_cuda is_cpu is_meta is_sparse "
    "is_quantized is_nested is_mps is_xla is_mkldnn size dim stride numel data_ptr storage untyped_storage "
    "storage_offset itemsize nbytes names is_contiguous is_floating_point is_complex is_inference element_size "
    "get_device __len__ __bool__ __hash__ __repr__ __format__ item tolist numpy all any equal allclose eq ne lt gt "
    "le ge is_same_size _version register_hook backward retain_grad finfo iinfo set_ is_conj is_neg"
).split()
RULES.update(dict.fromkeys(_QUESTIONS))
# New numbers in the shape of old ones: whatever is then written into them is another sequence (BART's shifted ids).
_FRESH = (
    "new_zeros new_ones new_full new_empty new_tensor zeros_like ones_like full_like empty_like rand_like randn_like "
    "randint_like"
)
RULES.update(dict.fromkeys(_FRESH.split()))

MOVES = frozenset(
    (
        "view reshape transpose permute contiguous flatten unsqueeze squeeze unflatten movedim getitem select "
        "narrow chunk split tensor_split unbind roll flip expand expand_as view_as reshape_as t mT adjoint "
        "repeat repeat_interleave index_select unfold diagonal tile swapaxes ravel pad"
    ).split()
)
# Returns the same numbers, or the same up to the number format.
IDENTITIES = frozenset(
    (
        "to type type_as float half bfloat16 double clone detach alias nan_to_num requires_grad_ cuda cpu data "
        "_to_copy view_dtype positive"
    ).split()
)
# Linear in one operand while the others are held fixed.
SCALES = frozenset(("mul", "div", "masked_fill", "where"))
# Elementwise on attention weights: what comes out is what multiplies the values.
_ON_WEIGHTS = frozenset(
    (
        "mul div masked_fill where clamp dropout alpha_dropout setitem add sub relu"
    ).split()
)
# Same shape in and out, but positions change places in a way we do not follow.
_SHUFFLES = frozenset(
    (
        "sort argsort gather take take_along_dim scatter scatter_add index_add index_copy cumsum cumprod flipud "
        "fliplr rot90 topk masked_select masked_scatter msort cummax cummin"
    ).split()
)


def base_name(name: str) -> str:
    """The name without the in-place underscore.

    >>> base_name("masked_fill_"), base_name("__contains__")
    ('masked_fill', '__contains__')
    """
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def rule_for(name: str) -> Rule | None:
    """The rule of an operation: its own, or the one for operations nobody wrote a rule for."""
    if name in RULES:
        return RULES[name]
    return RULES.get(base_name(name), carry)


class Dataflow:
    """What is known of the tensors of one running forward, and the attention calls that are under way."""

    def __init__(self, sources: Iterable[Tensor], finish: Callable[[Mixture], None]) -> None:
        self.traces = Traces()
        self.probe = Probe()
        self._finish = finish
        self._open: list[Mixture] = []
        self._anchors = 0
        self._embeddings = 0
        self._roots = 0
        self._sources: dict[int, tuple[Tensor, int]] = {}
        for index, source in enumerate(sources):
            self._name_source(index, source)

    def _name_source(self, index: int, source: Tensor) -> None:
        self._sources.setdefault(id(source), (source, index))
        if source.ndim in (2, 3):  # ids or gate (batch, position), vectors (batch, position, model); images: see conv
            self.traces[source] = Trace(place=Place(Anchor(index, tuple(source.shape), (1,), self.next_anchor())))

    def next_anchor(self) -> int:
        self._anchors += 1
        return self._anchors

    def next_embedding(self) -> str:
        self._embeddings += 1
        return f"embedding {self._embeddings - 1}"

    def source_of(self, tensor: Tensor) -> int | None:
        """Index of the named source that this tensor is, or None."""
        known = self._sources.get(id(tensor))
        return known[1] if known is not None and known[0] is tensor else None

    def rule_for(self, name: str) -> Callable[[Operation], None] | None:
        """What to do with operations of this name."""
        rule = rule_for(name)
        return None if rule is None else partial(rule, self)

    # ---- attention calls

    def mix(self, mixture: Mixture, out: Tensor, steps: tuple[Step, ...], place: Place | None) -> None:
        """A value product: an attention call begins, and those that have their projection are finished."""
        self.finish(only_projected=True)
        self._open.append(mixture)
        self.traces[out] = Trace(mixed=(Mixed(mixture, steps),), place=place)

    def finish(self, only_projected: bool = False) -> None:
        """Hand over the calls that are complete; all of them at the end of the recording."""
        done = [mixture for mixture in self._open if mixture.projection is not None or not only_projected]
        self._open = [mixture for mixture in self._open if mixture not in done]
        for mixture in done:
            self._finish(mixture)

    def forget(self) -> None:
        """Drop everything that is held."""
        self._open.clear()
        self.traces.clear()
        self._sources.clear()

    def project(self, x: Tensor, W: Tensor, bias: Tensor | None, out: Tensor, parameter: Tensor) -> None:
        """x (..., column) @ W (column, model) + bias = out, where x may hold mixed values or a branch of W_O."""
        trace = self.traces[x]
        if trace is None:
            return
        projection = None
        for mixed in trace.mixed:
            self._roots += 1
            term = Term(mixed.steps, x.detach(), W.detach(), parameter)
            projection = Projection(mixed.mixture, (term,), bias, frozenset((self._roots,)))
            if mixed.mixture.projection is None:
                projection = self.propose(projection, out)
        if projection is None and trace.projection is not None:
            projection = trace.projection.times(lambda matrix: matrix @ W.to(matrix.dtype))
            if bias is not None:
                projection = projection.plus(Projection(projection.mixture, (), bias, frozenset()))
        place = trace.place and trace.place.then(Features(out.shape[-1]))
        self.traces[out] = Trace(projection=projection, place=place)

    def propose(self, projection: Projection, out: Tensor) -> Projection:
        """Take this as the call's output projection, and note now what it wrote (the model may overwrite it)."""
        y = out.detach().reshape(-1, out.shape[-1])
        r = self.probe.direction(y.shape[-1], y)
        y = y.to(r.dtype)
        if projection.bias is not None:
            y = y - projection.bias.detach().to(r.dtype)
        size = torch.linalg.vector_norm(y, dim=-1) * (torch.linalg.vector_norm(r) / math.sqrt(len(r)))
        projection = Projection(
            projection.mixture, projection.terms, projection.bias, projection.roots, None, r, y @ r, size
        )
        projection.mixture.projection = projection
        return projection


# ---- where positions come from


@rule("embedding")
def _embedding(flow: Dataflow, op: Operation) -> None:
    ids = op.tensors[0]
    trace = flow.traces[ids]
    place = trace.place if trace else None
    if place is not None and place.named:
        place = place.then(Step(("unsqueeze", -1), lambda n: n.unsqueeze(-1))).then(Features(op.out.shape[-1]))
        # The anchor is made anew: encoder and decoder may be given the same tensor, and are not the same sequence.
        anchor = Anchor(place.anchor.source, place.anchor.shape, place.anchor.position_axes, flow.next_anchor())
        flow.traces[op.out] = Trace(place=Place(anchor, place.steps))
    elif ids.ndim == 2:
        anchor = Anchor(flow.next_embedding(), tuple(op.out.shape), (1,), flow.next_anchor())
        flow.traces[op.out] = Trace(place=Place(anchor))


@rule("conv1d", "conv2d", "conv3d")
def _convolution(flow: Dataflow, op: Operation) -> None:
    x, weight = op.tensors[:2]
    if _is_pointwise(op, weight):
        trace = flow.traces[x]
        if trace is None:
            return
        if trace.weights:  # talking heads: a linear map over the heads of the weights
            flow.traces[op.out] = Trace(weights=True, place=None)
        elif trace.mixed or trace.projection:
            last = x.ndim - 1
            to_last = Step(("movedim", 1, last, x.ndim), lambda t: t.movedim(1, last))
            moved = x.movedim(1, last)
            flow.traces[moved] = _moved(trace, to_last)
            out = op.out.movedim(1, last)
            flow.project(moved, weight.flatten(1).t(), op.argument(2, "bias"), out, weight)
            flow.traces[op.out] = (flow.traces[out] or Trace())._replace(place=None)
        return
    source = flow.source_of(x)
    stride = op.argument(3, "stride", 1)
    padding = op.argument(4, "padding", 0)
    kernel = tuple(weight.shape[2:])
    stride = tuple(stride) if isinstance(stride, list | tuple) else (stride,) * len(kernel)
    is_patches = kernel == stride and not (any(padding) if isinstance(padding, list | tuple) else padding)
    if max(stride) > 1 or source is not None:
        named = source if source is not None and is_patches else flow.next_embedding()
        trace = flow.traces[x]
        parent = trace.place.anchor if trace is not None and trace.place is not None else None
        anchor = Anchor(named, tuple(op.out.shape), tuple(range(2, op.out.ndim)), flow.next_anchor(), parent)
        flow.traces[op.out] = Trace(place=Place(anchor))
    elif (trace := flow.traces[x]) is not None and trace.place and op.out.shape[2:] == x.shape[2:]:
        # A convolution over neighbours, as position embedding or token shift: positions stay where they are.
        channels = op.out.shape[1]
        step = Step(("channels", channels), lambda n: n[:, :1].expand(n.shape[0], channels, *n.shape[2:]))
        flow.traces[op.out] = Trace(place=trace.place.then(step))


def _is_pointwise(op: Operation, weight: Tensor) -> bool:
    return math.prod(weight.shape[2:]) == 1 and op.argument(6, "groups", 1) == 1 and op.argument(3, "stride", 1) in (
        1, (1,), (1, 1), (1, 1, 1), [1], [1, 1], [1, 1, 1],
    )  # fmt: skip


# ---- softmax and the value product


@rule("softmax")
def _softmax(flow: Dataflow, op: Operation) -> None:
    if op.out.ndim >= 2:
        trace = flow.traces[op.tensors[0]]
        flow.traces[op.out] = Trace(weights=True, place=trace.place if trace else None)


@rule("log_softmax")
def _log_softmax(flow: Dataflow, op: Operation) -> None:
    carry(flow, op)
    flow.traces.update(op.out, softmax_part="log weights")


@rule("logsumexp")
def _logsumexp(flow: Dataflow, op: Operation) -> None:
    flow.traces[op.out] = Trace(softmax_part="log normaliser")


@rule("exp")
def _exp(flow: Dataflow, op: Operation) -> None:
    trace = flow.traces[op.tensors[0]]
    carry(flow, op)
    if trace is not None and trace.softmax_part == "log weights":
        flow.traces.update(op.out, weights=True, softmax_part="")
    elif op.out.ndim >= 3:
        flow.traces.update(op.out, softmax_part="exponential")


@rule("div")
def _div(flow: Dataflow, op: Operation) -> None:
    """exp(x) / sum(exp(x)): a softmax written by hand."""
    carry(flow, op)
    parts = [trace.softmax_part if (trace := flow.traces[tensor]) else "" for tensor in op.tensors[:2]]
    if parts == ["exponential", "normaliser"]:
        flow.traces.update(op.out, weights=True, softmax_part="")


@rule("scaled_dot_product_attention")
def _scaled_dot_product_attention(flow: Dataflow, op: Operation) -> None:
    query, key, value = (op.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    problem = ""
    if op.argument(4, "dropout_p", 0.0):
        problem = (
            "scaled_dot_product_attention drops out weights that it does not return; call model.eval() "
            "(or run in train mode with attn_implementation='eager')"
        )
    weights = attention_weights(
        query.detach(), key.detach(), op.argument(3, "attn_mask"), bool(op.argument(5, "is_causal", False)),
        op.kwargs.get("scale"),
    )  # fmt: skip
    places = [trace.place if (trace := flow.traces[tensor]) else None for tensor in (query, value)]
    values = value.detach()
    if values.ndim > 2 and values.shape[-3] not in (1, query.shape[-3]):
        repeats = query.shape[-3] // values.shape[-3]
        step = Step(("repeat_interleave", repeats, -3), lambda t: t.repeat_interleave(repeats, -3))
        values = values.repeat_interleave(repeats, -3)
        places[1] = places[1] and places[1].then(step)
    weights_place = places[0] and places[0].then(Features(weights.shape[-1]))
    lead = tuple(op.out.shape[:-2])
    mixture = Mixture(weights, values, lead, running_modules(), weights_place, places[1], problem)
    flow.mix(mixture, op.out, (), places[0] and places[0].then(Features(values.shape[-1])))


def attention_weights(
    query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> Tensor:
    """The weights that ``scaled_dot_product_attention`` uses and does not return: softmax(q k^T scale + mask).

    Args:
        query: (..., head, query, head_dim).
        key: (..., head or key/value head, key, head_dim).

    Returns:
        (..., head, query, key), float32 for half inputs; rows with no key allowed are zero, as in torch.
    """
    dtype = at_least_float32(query.dtype)
    query = query.to(dtype) * (query.shape[-1] ** -0.5 if scale is None else scale)
    key = key.to(dtype)
    if key.ndim > 2 and key.shape[-3] != query.shape[-3]:  # groups of heads share a key head
        grouped = query.reshape(*query.shape[:-3], key.shape[-3], -1, *query.shape[-2:])
        scores = (grouped @ key.unsqueeze(-3).mT).flatten(-4, -3)
    else:
        scores = query @ key.mT
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores.masked_fill_(~allowed, -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores.add_(mask)
    weights = scores.softmax(-1)
    if mask is not None:
        weights.masked_fill_((scores == -math.inf).all(-1, keepdim=True), 0.0)
    return weights


def _hidden_product(flow: Dataflow, op: Operation) -> None:
    """(weights * values).sum(): a value product we do not take apart."""
    problem = "its weights are multiplied with the values and summed by hand; use matmul, einsum or SDPA there"
    empty = torch.empty(0, 0, 0)
    mixture = Mixture(empty, empty, tuple(op.out.shape[:-2]), running_modules(), None, None, problem)
    flow.mix(mixture, op.out, (), None)


@rule("flex_attention", "flash_attn_func", "flash_attn_varlen_func")
def _hidden_attention(flow: Dataflow, op: Operation) -> None:
    empty = torch.empty(0, 0)
    problem = f"{op.name} does not return its weights; load the model with attn_implementation='sdpa' or 'eager'"
    out = op.outputs[0]
    mixture = Mixture(empty, empty, tuple(out.shape[:-2]), running_modules(), None, None, problem)
    flow.mix(mixture, out, (), None)


def _is_weights(flow: Dataflow, tensor: Tensor) -> bool:
    trace = flow.traces[tensor]
    return trace is not None and trace.weights


def _may_be_values(tensor: Tensor, weights: Tensor) -> bool:
    return not isinstance(tensor, torch.nn.Parameter) and (tensor.ndim >= 3 or weights.ndim == tensor.ndim)


@rule("matmul", "rmatmul")
def _matmul(flow: Dataflow, op: Operation) -> None:
    left, right = op.tensors[:2]
    if op.name == "rmatmul":
        left, right = right, left
    if _is_weights(flow, left) and _may_be_values(right, left):
        _value_product(flow, left, right, op.out, op.out.shape, ())
    elif _is_weights(flow, right) and _may_be_values(left, right):
        flip = Step(("transpose", -1, -2), lambda t: t.transpose(-1, -2))
        shape = flip.apply(op.out).shape
        _value_product(flow, _stepped(flow, right, flip), _stepped(flow, left, flip), op.out, shape, (flip,))
    elif right.ndim == 2 and not _is_weights(flow, left):
        flow.project(left, right, None, op.out, right)
    else:
        _product_place(flow, left, op.out)


def _stepped(flow: Dataflow, tensor: Tensor, step: Step) -> Tensor:
    """The tensor after one more step, with its place."""
    moved = step.apply(tensor)
    trace = flow.traces[tensor]
    if trace is not None and trace.place is not None and moved is not tensor:
        flow.traces[moved] = trace._replace(place=trace.place.then(step))
    return moved


@rule("baddbmm")
def _baddbmm(flow: Dataflow, op: Operation) -> None:
    _, left, right = op.tensors[:3]
    if op.argument(3, "beta", 1) == 0 and op.kwargs.get("alpha", 1) == 1 and _is_weights(flow, left):
        _value_product(flow, left, right, op.out, op.out.shape, ())
    else:
        _product_place(flow, left, op.out)


def _product_place(flow: Dataflow, left: Tensor, out: Tensor) -> None:
    trace = flow.traces[left]
    if trace is not None and trace.place is not None and out.ndim >= left.ndim:
        flow.traces[out] = Trace(place=trace.place.then(Features(out.shape[-1])))


def _value_product(
    flow: Dataflow, weights: Tensor, values: Tensor, out: Tensor, shape: torch.Size, steps: tuple[Step, ...]
) -> None:
    """weights (..., query, key) @ values (..., key, head_dim) = a view of out with this shape."""
    places = [trace.place if (trace := flow.traces[tensor]) else None for tensor in (weights, values)]
    problem = ""
    if (trace := flow.traces[values]) is not None and trace.mixed:
        problem = "its values are themselves mixed values of another attention call, with no projection between"
    mixture = Mixture(
        weights.detach(), values.detach(), tuple(shape[:-2]), running_modules(), places[0], places[1], problem
    )
    place = places[0] and places[0].then(Features(shape[-1]))
    for step in steps:
        place = place and place.then(step)
    flow.mix(mixture, out, steps, place)


@rule("einsum")
def _einsum(flow: Dataflow, op: Operation) -> None:
    parsed = _parse_einsum(op)
    if parsed is None:
        return
    (left, right), (lhs, rhs), res = parsed
    if _is_weights(flow, right) and not _is_weights(flow, left):
        left, right, lhs, rhs = right, left, rhs, lhs
    if _is_weights(flow, left):
        _einsum_on_weights(flow, left, right, lhs, rhs, res, op.out)
        return
    trace = flow.traces[left]
    if trace is None or not (trace.mixed or trace.projection):
        other = flow.traces[right]
        if other is not None and (other.mixed or other.projection):
            left, right, lhs, rhs, trace = right, left, rhs, lhs, other
    if trace is not None and (trace.mixed or trace.projection):
        _einsum_projection(flow, trace, left, right, lhs, rhs, res, op.out)
    elif trace is not None and trace.place is not None:
        _einsum_place(flow, trace.place, lhs, rhs, res, op.out, left)


def _parse_einsum(op: Operation) -> tuple[tuple[Tensor, Tensor], tuple[str, str], str] | None:
    """Two operands with their letters; ``...`` is written out with letters of its own."""
    if not op.args or not isinstance(op.args[0], str):
        return None
    operands = op.tensors
    equation = op.args[0].replace(" ", "")
    if len(operands) != 2 or "->" not in equation:
        return None
    inputs, res = equation.split("->")
    lhs, rhs = inputs.split(",")
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    pairs = zip((lhs, rhs), operands, strict=True)
    widths = [tensor.ndim - len(s.replace("...", "")) if "..." in s else 0 for s, tensor in pairs]
    dots = spare[: max(widths)]
    lhs, rhs = (s.replace("...", "".join(dots[len(dots) - n :])) for s, n in zip((lhs, rhs), widths, strict=True))
    return (operands[0], operands[1]), (lhs, rhs), res.replace("...", "".join(dots))


def _einsum_on_weights(
    flow: Dataflow, weights: Tensor, values: Tensor, lhs: str, rhs: str, res: str, out: Tensor
) -> None:
    batch = [c for c in lhs if c in rhs and c in res]
    key = [c for c in lhs if c in rhs and c not in res]
    query = [c for c in lhs if c not in rhs]
    head_dim = [c for c in rhs if c not in lhs]
    if isinstance(values, torch.nn.Parameter) or len(head_dim) == 0:
        if len(res) == len(lhs):  # a linear map of the weights over heads: talking heads
            flow.traces[out] = Trace(weights=True)
        return
    if len(key) != 1:
        return
    # Letters that only one of the two has, beyond one each, are batch axes that the other one lacks.
    extra_query, extra_values = query[:-1], head_dim[:-1]
    if extra_values or not query:
        return
    shared = [c for c in lhs if c in batch or c in extra_query]
    order = [*shared, query[-1], key[0]]
    turned = _stepped(flow, weights, _letters(lhs, order))
    moved = _stepped(flow, values, _letters(rhs, [*shared, key[0], head_dim[0]]))
    steps: tuple[Step, ...] = ()
    result = [*shared, query[-1], head_dim[0]]
    if "".join(result) != res:
        axes = [result.index(c) for c in res]
        steps = (Step(("permute", *axes), lambda t: t.permute(axes)),)
    shape = torch.Size([out.shape[res.index(c)] for c in result])
    _value_product(flow, turned, moved, out, shape, steps)


def _letters(have: str, want: list[str]) -> Step:
    """Permute axes named by the letters ``have`` to ``want``; a letter that is missing becomes an axis of one."""
    axes = [have.index(c) for c in want if c in have]
    missing = [axis for axis, c in enumerate(want) if c not in have]

    def apply(t: Tensor) -> Tensor:
        t = t.permute(axes)
        for axis in missing:
            t = t.unsqueeze(axis)
        return t

    return Step(("letters", have, tuple(want)), apply)


def _einsum_projection(
    flow: Dataflow, trace: Trace, x: Tensor, W: Tensor, lhs: str, rhs: str, res: str, out: Tensor
) -> None:
    """x (..., columns) times W (columns, model): all columns at once, or head by head with the sum still to come."""
    columns = [c for c in lhs if c in rhs and c not in res]
    heads = [c for c in lhs if c in rhs and c in res]
    model = [c for c in rhs if c not in lhs]
    rows = [c for c in lhs if c not in rhs]
    if not columns or len(model) != 1 or len(heads) > 1 or (heads and not trace.mixed):
        return
    inner = heads + columns
    axes, start = [lhs.index(c) for c in rows + inner], len(rows)
    step = Step(("einsum projection", *axes, start), lambda t: t.permute(axes).flatten(start))
    flat = step.apply(x)
    matrix = W.permute([rhs.index(c) for c in inner + model]).flatten(0, -2)
    flow.traces[flat] = _moved(trace, step)
    if not heads:
        y = out.permute([res.index(c) for c in rows + model])
        flow.project(flat, matrix, None, y, W)
        flow.traces[out] = flow.traces[y] or Trace()
        return
    mixed = trace.mixed[0]
    term = Term((*mixed.steps, step), flat.detach(), matrix.detach(), W)
    parts = Projection(mixed.mixture, (term,), None, frozenset((id(term),)), parts_axis=res.index(heads[0]))
    flow.traces[out] = Trace(projection=parts)


@rule("sum")
def _sum(flow: Dataflow, op: Operation) -> None:
    trace = flow.traces[op.tensors[0]]
    if trace is None:
        return
    if trace.softmax_part == "exponential":
        flow.traces[op.out] = Trace(softmax_part="normaliser")
    elif trace.softmax_part == "spread weights":
        _hidden_product(flow, op)
    parts = trace.projection
    axis = op.argument(1, "dim")
    axis = axis[0] if isinstance(axis, list | tuple) and len(axis) == 1 else axis
    if parts is None or parts.parts_axis is None or not isinstance(axis, int):
        return
    if axis % op.tensors[0].ndim == parts.parts_axis and parts.mixture.projection is None:
        flow.traces[op.out] = Trace(projection=flow.propose(parts, op.out))


@rule("stack")
def _stack(flow: Dataflow, op: Operation) -> None:
    traces = [flow.traces[tensor] for tensor in op.tensors]
    projections = [trace.projection for trace in traces if trace is not None and trace.projection is not None]
    if len(projections) == len(traces) and len({id(p.mixture) for p in projections}) == 1:
        total = projections[0]
        for projection in projections[1:]:
            total = total.plus(projection)
        axis = op.argument(1, "dim", 0) % op.out.ndim
        parts = Projection(total.mixture, total.terms, total.bias, total.roots, axis)
        # One part alone looked like the whole projection until its siblings arrived.
        total.mixture.projection = None
        flow.traces[op.out] = Trace(projection=parts)


def _einsum_place(flow: Dataflow, place: Place, lhs: str, rhs: str, res: str, out: Tensor, left: Tensor) -> None:
    """Positions of a general einsum: those of its first operand, along the letters that survive."""
    kept = [c for c in lhs if c in res]
    lost = [lhs.index(c) for c in lhs if c not in res]
    shape = tuple(out.shape)

    def apply(numbers: Tensor) -> Tensor:
        for axis in sorted(lost, reverse=True):
            numbers = Features(1).apply(numbers.movedim(axis, -1))[..., 0]
        remaining = [c for i, c in enumerate(lhs) if i not in lost]
        numbers = numbers.permute([remaining.index(c) for c in res if c in kept])
        for axis, letter in enumerate(res):
            if letter not in kept:
                numbers = numbers.unsqueeze(axis)
        return numbers.expand(shape)

    flow.traces[out] = Trace(place=place.then(Step(("einsum place", lhs, rhs, res, shape), apply)))


# ---- projections


@rule("linear")
def _linear(flow: Dataflow, op: Operation) -> None:
    x, weight = op.argument(0, "input"), op.argument(1, "weight")
    trace = flow.traces[x]
    if trace is None:
        return
    if trace.mixed or trace.projection:
        plain = type(weight) in (Tensor, torch.nn.Parameter)
        eye = None if plain else torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        matrix = weight.t() if eye is None else F.linear(eye, weight)  # a weight in a format of its own says what it is
        flow.project(x, matrix, op.argument(2, "bias"), op.out, weight)
    elif trace.place:
        flow.traces[op.out] = Trace(place=trace.place.then(Features(op.out.shape[-1])))


@rule("addmm")
def _addmm(flow: Dataflow, op: Operation) -> None:
    bias, x, weight = op.tensors[:3]
    if bias.ndim == 1 and op.kwargs.get("beta", 1) == 1 and op.kwargs.get("alpha", 1) == 1:
        flow.project(x, weight, bias, op.out, weight)


@rule("add", "sub")
def _add(flow: Dataflow, op: Operation) -> None:
    operands = [operand for operand in op.args[:2] if isinstance(operand, Tensor)]
    projections = [trace.projection if (trace := flow.traces[t]) else None for t in operands]
    merged = _merge(flow, op, operands, projections) if any(projections) else None
    normalised = any((trace := flow.traces[t]) and trace.softmax_part == "log normaliser" for t in operands[1:])
    carry(flow, op)
    if merged is not None:
        flow.traces.update(op.out, projection=merged)
    if normalised and base_name(op.name) == "sub":  # exp(x - logsumexp(x)) is a softmax
        flow.traces.update(op.out, softmax_part="log weights")


def _merge(
    flow: Dataflow, op: Operation, operands: list[Tensor], projections: list[Projection | None]
) -> Projection | None:
    """The sum of two branches of one W_O (an adapter beside it, one projection per head), or W_O and its bias."""
    sign = (-1.0 if base_name(op.name) == "sub" else 1.0) * op.kwargs.get("alpha", 1)
    if len(operands) == 1:  # y + 0, as Python's sum() begins
        number = op.args[1] if isinstance(op.args[0], Tensor) else op.args[0]
        return projections[0] if number == 0 else None
    first, second = projections
    if first is not None and second is not None:
        if first.mixture is not second.mixture or first.roots & second.roots or first.parts_axis or second.parts_axis:
            return None
        if sign != 1.0:
            second = second.times(lambda matrix: matrix * sign)
        return flow.propose(first.plus(second), op.out)
    whole, other = (first, operands[1]) if first is not None else (second, operands[0])
    if whole is not None and whole.r is not None and sign == 1.0 and other.shape == op.out.shape[-1:]:
        bias = Projection(whole.mixture, (), other, frozenset())
        return flow.propose(whole.plus(bias), op.out)
    return None


# ---- norms between the mixed values and W_O


@rule("layer_norm")
def _layer_norm(flow: Dataflow, op: Operation) -> None:
    x = op.tensors[0]
    trace = flow.traces[x]
    if trace is None:
        return
    if trace.mixed and len(op.args[1]) == 1:
        eps = op.argument(4, "eps", 1e-5)
        centred = x.detach().to(at_least_float32(x.dtype))
        scale = (centred.var(-1, correction=0, keepdim=True) + eps).rsqrt()
        norm = CentredNorm(scale, op.argument(2, "weight"), op.argument(3, "bias"))
        mixed = tuple(Mixed(m.mixture, (*m.steps, Step(norm, lambda t: t * scale, True))) for m in trace.mixed)
        flow.traces[op.out] = Trace(mixed=mixed, place=trace.place)
    elif trace.place:
        flow.traces[op.out] = Trace(place=trace.place)


class CentredNorm:
    """A LayerNorm between mixed values and W_O: 1/sigma goes to the gate, centring, gamma and beta go to W_O.

    Attributes:
        scale: 1/sigma, (..., 1).
        weight, bias: gamma and beta, (column,), or None.
    """

    def __init__(self, scale: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        self.scale, self.weight, self.bias = scale, weight, bias

    def fold(self, W: Tensor) -> Tensor:
        """(I - 11^T / n) diag(gamma) W: what W becomes for the uncentred, unscaled values."""
        scaled = W if self.weight is None else self.weight.detach().to(W.dtype)[:, None] * W
        return scaled - scaled.mean(0, keepdim=True)


@rule("rms_norm")
def _rms_norm(flow: Dataflow, op: Operation) -> None:
    x = op.tensors[0]
    trace = flow.traces[x]
    if trace is None:
        return
    if trace.mixed:
        axes = tuple(range(-len(op.args[1]), 0))
        wide = x.detach().to(at_least_float32(x.dtype))
        eps = op.argument(3, "eps") or torch.finfo(x.dtype).eps
        scale = (wide.square().mean(axes, keepdim=True) + eps).rsqrt()
        if (weight := op.argument(2, "weight")) is not None:
            scale = scale * weight.detach()
        step = Step(("rms_norm", object()), lambda t: t * scale, True)
        mixed = tuple(Mixed(m.mixture, (*m.steps, step)) for m in trace.mixed)
        flow.traces[op.out] = Trace(mixed=mixed, place=trace.place)
    elif trace.place:
        flow.traces[op.out] = Trace(place=trace.place)


# ---- reshapes, gates, and everything else


@rule(*MOVES)
def _move(flow: Dataflow, op: Operation) -> None:
    moved = op.tensors[0] if op.tensors else None
    trace = flow.traces[moved] if moved is not None else None
    if trace is None:
        return
    for k, out in enumerate(op.outputs):
        flow.traces[out] = _moved(trace, _step_of(op, k if isinstance(op.out, list | tuple) else None))


def _moved(trace: Trace, step: Step) -> Trace:
    mixed = tuple(Mixed(m.mixture, (*m.steps, step)) for m in trace.mixed)
    projection = trace.projection
    if projection is not None and projection.parts_axis is not None:
        projection = None
    return Trace(trace.weights, mixed, projection, trace.place and trace.place.then(step))


def _step_of(op: Operation, k: int | None) -> Step:
    """The move an operation made, to be made again with numbers (which live on the CPU)."""
    name, func = op.name, op.func
    args, kwargs = op.args[1:], op.kwargs
    if name in ("view_as", "reshape_as", "expand_as"):
        name, args, kwargs = name[:-3], (tuple(op.out.shape),), {}
        func = torch.Tensor.expand if name == "expand" else torch.Tensor.reshape
    elif name == "view" and not (args and isinstance(args[0], torch.dtype)):
        func = torch.Tensor.reshape
    elif name == "pad":
        args, kwargs = (args[0] if args else kwargs["pad"],), {"value": NOT_AN_INPUT}
    elif len(op.tensors) > 1:  # an index, which may change later
        args, kwargs = _on_cpu(args), {key: _on_cpu(value) for key, value in kwargs.items()}

    def apply(t: Tensor) -> Tensor:
        moved = func(t, *args, **kwargs)
        return moved if k is None else moved[k]

    return Step(lambda: (name, k, _key(args), _key(tuple(kwargs.items()))), apply)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(_on_cpu(item) for item in value)
    return value


def _key(value: Any) -> Hashable:
    """Equal for equal arguments; small tensors (indices) by their content."""
    if isinstance(value, tuple) and all(type(item) is int for item in value):
        return value
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, list | tuple):
        return tuple(_key(item) for item in value)
    if isinstance(value, slice):
        return ("slice", _key(value.start), _key(value.stop), _key(value.step))
    return value if isinstance(value, Hashable) else object()


@rule("cat", "hstack", "vstack")
def _cat(flow: Dataflow, op: Operation) -> None:
    pieces = [tensor for tensor in op.tensors if tensor.shape != (0,)]  # an empty cache is skipped by torch, too
    traces = [flow.traces[tensor] or Trace() for tensor in pieces]
    if not any(traces):
        return
    axis = {"hstack": 1, "vstack": 0}.get(op.name, op.argument(1, "dim", 0)) % op.out.ndim
    shapes = [tuple(tensor.shape) for tensor in pieces]
    mixed = _cat_mixed(traces, shapes, axis)
    weights = any(trace.weights for trace in traces)
    flow.traces[op.out] = Trace(weights, mixed, None, _cat_place(traces, shapes, axis, op.out.ndim))


def _cat_mixed(traces: list[Trace], shapes: list[tuple[int, ...]], axis: int) -> tuple[Mixed, ...]:
    joined = []
    for mixture in dict.fromkeys(m.mixture for trace in traces for m in trace.mixed):
        parents = [next((m.steps for m in trace.mixed if m.mixture is mixture), None) for trace in traces]
        if any(step.scales for steps in parents if steps is not None for step in steps):
            if sum(steps is not None for steps in parents) > 1:
                continue
            index = next(i for i, steps in enumerate(parents) if steps is not None)
            steps = parents[index] or ()
            joined.append(Mixed(mixture, (*steps, _beside(shapes, index, axis))))
        else:
            joined.append(Mixed(mixture, (_side_by_side(parents, shapes, axis),)))
    return tuple(joined)


def _beside(shapes: list[tuple[int, ...]], index: int, axis: int) -> Step:
    """Concatenation with tensors that hold something else."""

    def apply(t: Tensor) -> Tensor:
        others = [t if i == index else t.new_full(shape, NOT_AN_INPUT) for i, shape in enumerate(shapes)]
        return torch.cat(others, axis)

    return Step(("cat", index, axis, tuple(shapes)), apply)


def _side_by_side(parents: list[tuple[Step, ...] | None], shapes: list[tuple[int, ...]], axis: int) -> Step:
    """Concatenation of several pieces of the same tensor (heads one by one, chunks of queries)."""

    def apply(root: Tensor) -> Tensor:
        pieces = []
        for steps, shape in zip(parents, shapes, strict=True):
            piece = root if steps is not None else root.new_full(shape, NOT_AN_INPUT)
            for step in steps or ():
                piece = step.apply(piece)
            pieces.append(piece)
        return torch.cat(pieces, axis)

    keys = tuple(None if steps is None else tuple(step.key for step in steps) for steps in parents)
    return Step(("cat", axis, tuple(shapes), keys), apply)


def _cat_place(traces: list[Trace], shapes: list[tuple[int, ...]], axis: int, ndim: int) -> Place | None:
    places = [trace.place for trace in traces]
    known = [place for place in places if place is not None]
    if not known:
        return None
    anchors = {id(place.anchor) for place in known}
    if len(anchors) > 1 and not any(place.named for place in known):
        return None  # for example a cache: positions of several forward passes
    anchor = min((place.anchor for place in known), key=_preference)
    parents = [place.steps if place is not None and place.anchor is anchor else None for place in places]
    if axis == ndim - 1 and all(steps is not None and steps == parents[0] for steps in parents):
        return Place(anchor, parents[0] or ()).then(Features(sum(shape[axis] for shape in shapes)))
    return Place(anchor, (_side_by_side(parents, shapes, axis),))


def _preference(anchor: Anchor) -> tuple[bool, int]:
    return (not isinstance(anchor.source, int), anchor.order)


@rule("multi_head_attention_forward")
def _nothing(flow: Dataflow, op: Operation) -> None:
    """Its own operations have been seen one by one."""


@rule("setitem", "copy", "fill", "zero", "index_copy", "index_put", "index_fill", "scatter")
def _overwrite(flow: Dataflow, op: Operation) -> None:
    """A tensor is overwritten in part or in whole: weights stay the weights that are used, the rest is unknown."""
    if op.tensors and (op.in_place or op.name == "setitem"):
        trace = flow.traces[op.tensors[0]]
        if trace is not None:
            place = trace.place if op.name == "setitem" else None
            flow.traces[op.tensors[0]] = Trace(weights=trace.weights, place=place)


@rule("dropout", "feature_dropout", "alpha_dropout", "dropout1d", "dropout2d")
def _dropout(flow: Dataflow, op: Operation) -> None:
    x = op.tensors[0]
    trace = flow.traces[x]
    if trace is None:
        return
    drops = bool(op.argument(2, "training", True)) and op.argument(1, "p", 0.5) > 0
    flow.traces[op.out] = trace._replace(mixed=(), projection=None) if drops else trace


def carry(flow: Dataflow, op: Operation) -> None:
    """Any other operation: what it keeps of what is known of its operands."""
    operands = [(tensor, trace) for tensor in op.tensors if (trace := flow.traces[tensor]) is not None]
    if not operands:
        return
    name = base_name(op.name)
    if name in IDENTITIES:  # x.type_as(other) is x
        operands = [(tensor, trace) for tensor, trace in operands if tensor is op.tensors[0]]
    for out in op.outputs:
        flow.traces[out] = Trace(
            weights=_still_weights(name, operands, out),
            mixed=_scaled(flow, op, name, operands, out),
            projection=_still_projection(op, name, operands, out),
            place=_same_place(name, operands, out),
            softmax_part=_softmax_part(name, operands, out),
        )


Operands = list[tuple[Tensor, Trace]]


def _still_weights(name: str, operands: Operands, out: Tensor) -> bool:
    if name not in _ON_WEIGHTS and name not in IDENTITIES:
        return False
    return any(trace.weights and tensor.shape == out.shape for tensor, trace in operands)


def _softmax_part(name: str, operands: Operands, out: Tensor) -> SoftmaxPart:
    if name not in _ON_WEIGHTS and name not in IDENTITIES:
        return ""
    for tensor, trace in operands:
        if trace.softmax_part and tensor.shape == out.shape:
            return trace.softmax_part
        if name == "mul" and trace.weights and tensor.ndim >= 4 and tensor.shape[-1] == 1 < out.shape[-1]:
            return "spread weights"
    return ""


def _scaled(flow: Dataflow, op: Operation, name: str, operands: Operands, out: Tensor) -> tuple[Mixed, ...]:
    mixed = [(tensor, trace) for tensor, trace in operands if trace.mixed]
    if len(mixed) != 1 or mixed[0][0].shape != out.shape:
        return ()
    tensor, trace = mixed[0]
    if name in IDENTITIES:
        return trace.mixed
    if name not in SCALES or not _is_linear_in(op, name, tensor):
        return ()
    args = [_frozen(value) for value in op.args]
    position = next((i for i, value in enumerate(op.args) if value is tensor), None)
    if position is None:
        return ()

    def apply(t: Tensor) -> Tensor:
        return op.func(*(t if i == position else value for i, value in enumerate(args)), **op.kwargs)

    return tuple(Mixed(m.mixture, (*m.steps, Step((name, object()), apply, True))) for m in trace.mixed)


def _frozen(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _is_linear_in(op: Operation, name: str, tensor: Tensor) -> bool:
    """Whether the operation scales ``tensor`` and adds nothing."""
    if name == "div":
        return op.args[0] is tensor and op.kwargs.get("rounding_mode") is None
    if name == "masked_fill":
        return op.args[0] is tensor and not torch.as_tensor(op.argument(2, "value")).any()
    if name == "where":
        others = [value for value in op.args[1:] if value is not tensor]
        return len(others) == 1 and not torch.as_tensor(others[0]).any()
    return True


def _still_projection(op: Operation, name: str, operands: Operands, out: Tensor) -> Projection | None:
    """A branch of W_O stays one under identities and products with a number or one number per feature."""
    branches = [(tensor, trace.projection) for tensor, trace in operands if trace.projection is not None]
    if len(branches) != 1 or branches[0][0].shape != out.shape:
        return None
    tensor, projection = branches[0]
    if projection is None or name in IDENTITIES:
        return projection
    if name not in ("mul", "div") or (name == "div" and op.args[0] is not tensor):
        return None
    factor = next((value for value in op.args[:2] if value is not tensor), None)
    if isinstance(factor, Tensor):
        if math.prod(factor.shape[:-1]) != 1:
            return None
        factor = factor.detach().reshape(-1) if factor.ndim else factor.detach()
    if factor is None:
        return None
    divide = name == "div"
    return projection.times(lambda matrix: matrix / factor if divide else matrix * factor)


def _same_place(name: str, operands: Operands, out: Tensor) -> Place | None:
    """The positions of the operand that has them all; named sources first, then what was embedded first."""
    if name in _SHUFFLES:
        return None
    full = [t.place for tensor, t in operands if t.place is not None and tensor.shape == out.shape]
    if full:
        return min(full, key=lambda place: (*_preference(place.anchor), len(place.steps)))
    for tensor, trace in operands:
        if trace.place is not None and _broadcasts(tensor.shape, out.shape):
            return trace.place.then(broadcast(out.shape))
    return None


def _broadcasts(small: torch.Size, large: torch.Size) -> bool:
    """(batch, position, 1) to (batch, position, model), but not a reduction and not a lower rank."""
    return len(small) == len(large) and all(a in (1, b) for a, b in zip(small, large, strict=True))
