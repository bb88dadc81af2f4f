"""How each torch operation is held fixed: one table, ``RULES``.

Most operations are linear already: they move entries, add, or multiply by constants.  The others are here by kind:
activations (a line for each entry), products of two live tensors (half to each, or all to one), norms (1/sigma is a
constant), attention (the weights are constants), and what is a constant as a whole (a softmax, a sigmoid, a top-k).
Operations without a rule are refused by name, so that nothing is linear by accident.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_norm.capture.certificate import at_least_float32
from captum_norm.capture.dataflow import base_name
from captum_norm.capture.operations import Operation
from captum_norm.capture.rules.elementwise import _FRESH, _QUESTIONS, IDENTITIES
from captum_norm.capture.rules.moves import MOVES
from captum_norm.capture.rules.products import attention_weights
from captum_norm.linear.frozen import RULES, Frozen, call, rule, writes
from captum_norm.linear.fused import FrozenAttention, FrozenLayerNorm, Line

if TYPE_CHECKING:
    from captum_norm.linear.run import FrozenRun

RULES.update(dict.fromkeys(_QUESTIONS))
RULES.update(dict.fromkeys(_FRESH.split()))
RULES.update(dict.fromkeys(("_set_grad_enabled", "set_grad_enabled", "_set_deterministic", "manual_seed")))

# Linear in all live operands together; constant operands are biases.
_SUMS = "cat stack hstack vstack where setitem copy index_add index_copy index_put scatter scatter_add masked_scatter"
# Linear, and no other operand counts.
_LINEAR = (
    "sum mean neg cumsum roll flip gather index_select take_along_dim masked_select tril triu diff rot90 fliplr flipud "
    "avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d interpolate fold unfold pixel_shuffle "
    "pixel_unshuffle atleast_1d atleast_2d atleast_3d real imag zero conj resolve_conj view_as_complex view_as_real "
    "nanmean channel_shuffle H mH fft rfft irfft ifft fftn fft2 ifft2"
)
# Computed from what is followed, and held fixed: gates, scales, routing.
_CONSTANT = (
    "softmax log_softmax softmin sigmoid logsigmoid exp exp2 expm1 log log1p log2 logsumexp erf erfc sin cos sqrt rsqrt "
    "reciprocal rdiv norm std var var_mean std_mean topk sort argsort argmax argmin max min amax amin aminmax cumprod "
    "prod cummax cummin median kthvalue one_hot bincount histc floor ceil round sign floor_divide remainder fmod "
    "isnan isinf isfinite linalg_vector_norm vector_norm linalg_norm cdist searchsorted bucketize unique nonzero "
    "multinomial bernoulli cosine_similarity gumbel_softmax hardsigmoid relu6_gate count_nonzero trunc fill "
    "atan2 atan logical_and logical_or logical_not bitwise_not bitwise_and bitwise_or __invert__ __and__ __or__ "
    "__rpow__ entropy"
)
_ACTIVATIONS = (
    "gelu silu relu relu6 leaky_relu elu selu celu mish hardswish hardtanh softplus tanh pow square abs clamp clip "
    "clamp_min clamp_max softsign hardshrink softshrink tanhshrink threshold logit asinh"
)
# These do not become the identity for large z, so that ReLU's line does not stand for them.
_SATURATING = frozenset(("tanh", "hardtanh", "softsign", "clamp", "clip", "hardsigmoid"))
# Cheap enough to be put off: what is built on a value that may never be needed in linear form.
_LIGHT = MOVES | IDENTITIES | frozenset(
    "mul div add sub rsub neg masked_fill where sum mean tril triu gather index_select take_along_dim".split()
)  # fmt: skip


def operands_of(run: FrozenRun, op: Operation) -> tuple[Tensor, ...]:
    """The live operands, each once, in order."""
    return tuple({id(tensor): tensor for tensor in op.tensors if run.is_live(tensor)}.values())


def swapping(operands: tuple[Tensor, ...], xs: tuple[Tensor, ...], other: Callable[[Tensor], Tensor]) -> Any:
    """A function from the operands to what stands for them, and from other tensors to ``other(tensor)``."""
    known = {id(tensor): x for tensor, x in zip(operands, xs, strict=True)}
    return lambda tensor: known[id(tensor)] if id(tensor) in known else other(tensor)


def same(tensor: Tensor) -> Tensor:
    return tensor.detach()


def scaled_by(one: Tensor, op: Operation) -> Callable[[Tensor], Tensor]:
    """Floating constants times ``one``; index tensors as they are."""
    overwritten = op.args[0] if writes(op) else None

    def scaled(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        constant = tensor.detach().clone() if tensor is overwritten else tensor.detach()
        return constant * one.to(tensor.dtype)

    return scaled


def is_lazy(run: FrozenRun, op: Operation, operands: tuple[Tensor, ...]) -> bool:
    """Whether the linear form of a light operation on a value only is put off, too."""
    return op.name in _LIGHT and any(run.only_value(tensor) for tensor in operands)


@rule(*MOVES, *_LINEAR.split())
def _linear(run: FrozenRun, op: Operation) -> Frozen:
    operands = operands_of(run, op)

    def apply(one: Tensor, *xs: Tensor) -> Any:
        return call(op, swapping(operands, xs, same))

    return Frozen(apply, operands, lazy=is_lazy(run, op, operands), moves=base_name(op.name) in MOVES)


@rule(*IDENTITIES)
def _identity(run: FrozenRun, op: Operation) -> Any:
    """Another number format, or nothing: ``detach`` keeps what is followed."""
    x = op.args[0]
    if not run.is_live(x):  # x.type_as(live)
        return call(op, same)
    dtype = next((t.dtype for t in op.tensors[1:]), None) if op.name in ("to", "type_as") else None

    def apply(one: Tensor, x: Tensor) -> Tensor:
        if op.name in ("detach", "data", "requires_grad", "alias"):
            return x.view_as(x)
        if dtype is not None:
            return x.to(dtype)
        return call(op, lambda tensor: x)  # type: ignore[no-any-return]

    root, bent = run.root_of(x)
    return Frozen(apply, (x,), lazy=run.only_value(x), root=root, bent=bent, moves=True)


@rule(*_SUMS.split())
def _sum(run: FrozenRun, op: Operation) -> Frozen:
    operands = operands_of(run, op)

    def apply(one: Tensor, *xs: Tensor) -> Any:
        scale = scaled_by(one, op)
        args = op.args
        if op.name == "where" and len(args) > 2:
            args = (args[0], *(_scaled_number(value, one) for value in args[1:]))
        return call(op, swapping(operands, xs, scale), args)

    return Frozen(apply, operands, has_constant=True, lazy=is_lazy(run, op, operands))


def _scaled_number(value: Any, one: Tensor) -> Any:
    """A number times ``one``; 0 and infinities (masks) as they are."""
    if isinstance(value, bool | Tensor) or not isinstance(value, int | float) or value == 0 or abs(value) == float("inf"):
        return value
    return value * one


@rule("masked_fill")
def _masked_fill(run: FrozenRun, op: Operation) -> Any:
    operands = operands_of(run, op)

    def apply(one: Tensor, *xs: Tensor) -> Any:
        value = op.argument(2, "value")
        value = value.detach() * one.to(value.dtype) if isinstance(value, Tensor) else _scaled_number(value, one)
        x, mask = op.args[0], op.argument(1, "mask")
        x = xs[0] if run.is_live(x) else x.detach() * one
        return torch.where(mask, value.to(x.dtype) if isinstance(value, Tensor) else value, x)

    return Frozen(apply, operands, has_constant=True, lazy=is_lazy(run, op, operands))


@rule("add", "sub", "rsub", "radd")
def _add(run: FrozenRun, op: Operation) -> Frozen:
    operands = operands_of(run, op)
    root, bent = _common_root(run, op, operands)
    if bent and root is not None:  # a sum within an activation that is written out: 1 + tanh(...)
        return _bent(run, op, root)

    def apply(one: Tensor, *xs: Tensor) -> Any:
        args = (*(_scaled_number(value, one) for value in op.args[:2]), *op.args[2:])
        return call(op, swapping(operands, xs, scaled_by(one, op)), args)

    constant = len(operands) < 2
    return Frozen(apply, operands, has_constant=constant, lazy=is_lazy(run, op, operands), root=root)


def _common_root(run: FrozenRun, op: Operation, operands: tuple[Tensor, ...]) -> tuple[Tensor | None, bool]:
    """The live tensor of which all operands are functions entry by entry, and whether one of these is not linear."""
    found = [run.root_of(tensor) for tensor in operands]
    roots = {id(root) for root, _ in found}
    root = found[0][0]
    tensors = [t for t in op.tensors if not any(t is operand for operand in operands)]
    if len(roots) > 1 or root is None or any(t.ndim for t in tensors) or any(t.shape != root.shape for t in operands):
        return None, False
    bent = any(is_bent for _, is_bent in found)
    if not bent and len(operands) == 1 and op.name in ("add", "sub", "rsub"):
        return None, False  # x + 1: a bias
    return root, bent


@rule("mul")
def _mul(run: FrozenRun, op: Operation) -> Frozen:
    operands = operands_of(run, op)
    twice = len(operands) == 1 and len(op.tensors) > 1 and op.tensors[0] is op.tensors[1]
    root, bent = _common_root(run, op, operands)
    if root is not None and (twice or bent or len(operands) > 1):
        return _bent(run, op, root)
    if len(operands) > 1 or twice:
        return _product(run, op)

    def apply(one: Tensor, x: Tensor) -> Any:
        return call(op, swapping(operands, (x,), same))

    return Frozen(apply, operands, lazy=is_lazy(run, op, operands), root=root)


@rule("div")
def _div(run: FrozenRun, op: Operation) -> Any:
    """Whatever divides is a constant."""
    x = op.args[0]
    if not isinstance(x, Tensor) or not run.is_live(x) or op.kwargs.get("rounding_mode"):
        return call(op, same)
    root, bent = run.root_of(x)
    scalar = not isinstance(op.args[1], Tensor) or op.args[1].ndim == 0
    divisor = op.args[1].detach() if isinstance(op.args[1], Tensor) else op.args[1]

    def apply(one: Tensor, x: Tensor) -> Any:
        return x / divisor

    return Frozen(apply, (x,), lazy=run.only_value(x), root=root if scalar else None, bent=bent and scalar)


def _product(run: FrozenRun, op: Operation) -> Frozen:
    """A product of two live tensors."""
    a, b = op.tensors[:2]
    bent = [run.root_of(tensor)[1] for tensor in (a, b)]
    if run.conventions.product == "gate" and bent[0] != bent[1]:
        gate, x = (a, b) if bent[0] else (b, a)

        def gated(one: Tensor, x: Tensor) -> Tensor:
            return x * gate.detach()

        return Frozen(gated, (x,))
    return _halves(run, op, a, b)


def _halves(run: FrozenRun, op: Operation, a: Tensor, b: Tensor, lazy: bool = False) -> Frozen:
    """Half of a bilinear operation to each of its two live operands."""
    values = a.detach(), b.detach()

    def apply(one: Tensor, x: Tensor, y: Tensor) -> Any:
        left, right = list(op.args), list(op.args)
        first, second = (next(_places(op.args, t, k)) for k, t in ((0, a), (int(a is b), b)))
        _put(left, first, x), _put(left, second, values[1])
        _put(right, first, values[0]), _put(right, second, y)
        return 0.5 * (call(op, lambda t: t, left) + call(op, lambda t: t, right))

    return Frozen(apply, (a, b), lazy=lazy)


def _places(args: tuple[Any, ...], tensor: Tensor, skip: int) -> Any:
    """Where a tensor stands among the arguments: (index,) or (index, index in a list)."""
    found = [(i,) for i, value in enumerate(args) if value is tensor]
    found += [
        (i, j) for i, v in enumerate(args) if isinstance(v, list | tuple) for j, item in enumerate(v) if item is tensor
    ]  # type: ignore[misc]
    yield found[skip]


def _put(args: list[Any], place: tuple[int, ...], value: Any) -> None:
    if len(place) == 1:
        args[place[0]] = value
    else:
        args[place[0]] = [*args[place[0]][: place[1]], value, *args[place[0]][place[1] + 1 :]]


# ---- linear maps


@rule("linear")
def _affine(run: FrozenRun, op: Operation) -> Any:
    x, weight, bias = op.args[0], op.argument(1, "weight"), op.argument(2, "bias")
    if not run.is_live(x) or run.is_live(weight):
        return _products(run, op)
    W = weight.detach()

    def apply(one: Tensor, x: Tensor) -> Any:
        return op.func(x, W, None if bias is None else bias.detach() * one.to(bias.dtype))

    return Frozen(apply, (x,), has_constant=bias is not None, lazy=run.lazy_maps)


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _convolution(run: FrozenRun, op: Operation) -> Any:
    x, bias = op.args[0], op.argument(2, "bias")

    def apply(one: Tensor, x: Tensor) -> Any:
        if bias is None:
            return call(op, swapping((op.args[0],), (x,), same))
        return call(op, swapping((op.args[0], bias), (x, bias.detach() * one.to(bias.dtype)), same))

    return Frozen(apply, (x,), has_constant=bias is not None)


@rule("addmm", "baddbmm", "addbmm", "addmv")
def _added_product(run: FrozenRun, op: Operation) -> Any:
    added, a, b = op.args[0], op.argument(1, "mat1", op.kwargs.get("batch1")), op.argument(2, "mat2", op.kwargs.get("batch2"))
    operands = operands_of(run, op)
    factors = [t for t in (a, b) if run.is_live(t)]

    def apply(one: Tensor, *xs: Tensor) -> Any:
        known = {id(t): x for t, x in zip(operands, xs, strict=True)}
        bias = known.get(id(added), added.detach() * one.to(added.dtype))
        kwargs = {key: value for key, value in op.kwargs.items() if key in ("beta", "alpha")}
        if len(factors) < 2:
            return op.func(bias, known.get(id(a), a.detach()), known.get(id(b), b.detach()), **kwargs)
        first = op.func(bias, known[id(a)] * 0.5, b.detach(), **kwargs)
        return op.func(first, a.detach() * 0.5, known[id(b)], **{**kwargs, "beta": 1})

    return Frozen(apply, operands, has_constant=not run.is_live(added), lazy=len(factors) > 1)


@rule("matmul", "rmatmul", "einsum", "mv", "dot", "outer", "grouped_mm", "_grouped_mm", "tensordot", "kron")
def _products(run: FrozenRun, op: Operation) -> Any:
    """A product with a constant is linear; of two live tensors (queries and keys) half goes to each."""
    operands = operands_of(run, op)
    if len(operands) > 2:
        raise run.refusal(op, f"it multiplies {len(operands)} tensors that all depend on the inputs")
    if len(operands) == 2:
        return _halves(run, op, *operands, lazy=True)
    if sum(tensor is operands[0] for tensor in op.tensors) > 1:
        return _halves(run, op, operands[0], operands[0], lazy=True)
    other = next((t for t in op.tensors if t is not operands[0]), None)

    def apply(one: Tensor, x: Tensor) -> Any:
        return call(op, swapping(operands, (x,), same))

    # A product with something that is no parameter mixes: attention weights meet values.
    mixes = other is not None and not isinstance(other, torch.nn.Parameter) and other.ndim > 2
    return Frozen(apply, operands, mixes=mixes)


@rule("bilinear")
def _bilinear(run: FrozenRun, op: Operation) -> Any:
    raise run.refusal(op, "a bilinear layer multiplies its two inputs")


@rule("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout")
def _dropout(run: FrozenRun, op: Operation) -> Frozen:
    x = op.args[0]
    if op.argument(1, "p", 0.5) == 0 or not op.argument(2, "training", True):
        root, bent = run.root_of(x)
        return Frozen(lambda one, x: x.view_as(x), (x,), lazy=run.only_value(x), root=root, bent=bent, moves=True)
    with torch.no_grad():
        kept = op.func(torch.ones_like(x), *op.args[1:], **{k: v for k, v in op.kwargs.items() if k != "inplace"})
    return Frozen(lambda one, x: x * kept, (x,))


# ---- activations


@rule(*_ACTIVATIONS.split())
def _activation(run: FrozenRun, op: Operation) -> Any:
    x = op.args[0]
    if not isinstance(x, Tensor) or not run.is_live(x):
        return call(op, same)
    root, _ = run.root_of(x)
    return _bent(run, op, x if root is None or root.shape != x.shape else root)


def _bent(run: FrozenRun, op: Operation, root: Tensor) -> Frozen:
    """A function of ``root`` entry by entry: a line for each entry."""
    with torch.no_grad():
        value = call(op, same)
    if value.shape != root.shape:
        raise run.refusal(op, "its result has another shape than what it is a function of")
    value = value.clone() if any(value.data_ptr() == t.data_ptr() for t in op.tensors) else value
    bent = value.detach()  # shares memory: what is done to the value in place is part of the function
    line = run.conventions.activation
    line = "ZO" if line == "ReLU" and op.name in _SATURATING else line
    tangent = run.tangent_of(op, root, value) if line == "LA" else None

    def apply(one: Tensor, x: Tensor) -> Tensor:
        z, y = root.detach(), bent
        if line == "ZO":
            slope = torch.where(z == 0, 0, y.to(z.dtype) / z)
            return Line.apply(x, slope, y) if run.fused and y.dtype is z.dtype else x * slope
        slope = (z > 0).to(z.dtype) if tangent is None else tangent()
        return x * slope + (y - z * slope) * one.to(z.dtype)

    return Frozen(apply, (root,), line != "ZO", lazy=True, value=value, root=root, bent=True)


@rule("prelu")
def _prelu(run: FrozenRun, op: Operation) -> Frozen:
    return _bent(run, op, op.args[0])


# ---- norms


@rule("layer_norm")
def _layer_norm(run: FrozenRun, op: Operation) -> Any:
    x, shape = op.args[0], list(op.argument(1, "normalized_shape"))
    weight, bias, eps = op.argument(2, "weight"), op.argument(3, "bias"), op.argument(4, "eps", 1e-5)
    weight = None if weight is None else weight.detach()
    axes = tuple(range(-len(shape), 0))

    def fused(one: Tensor, x: Tensor) -> Any:
        return FrozenLayerNorm.apply(x, None if bias is None else bias.detach() * one.to(bias.dtype), shape, weight, eps)

    def plain(one: Tensor, x: Tensor) -> Tensor:
        wide = op.args[0].detach().to(at_least_float32(x.dtype))
        scale = (wide.var(axes, correction=0, keepdim=True) + eps).rsqrt().to(x.dtype)
        y = (x - x.mean(axes, keepdim=True)) * scale
        y = y if weight is None else y * weight
        return y if bias is None else y + bias.detach() * one.to(bias.dtype)

    return Frozen(fused if run.fused else plain, (x,), has_constant=bias is not None)


@rule("rms_norm")
def _rms_norm(run: FrozenRun, op: Operation) -> Frozen:
    x, shape, weight, eps = op.args[0], op.argument(1, "normalized_shape"), op.argument(2, "weight"), op.argument(3, "eps")
    wide = x.detach().to(at_least_float32(x.dtype))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    scale = (wide.square().mean(tuple(range(-len(shape), 0)), keepdim=True) + eps).rsqrt().to(x.dtype)
    scale = scale if weight is None else scale * weight.detach()
    return Frozen(lambda one, x: x * scale, (x,))


@rule("group_norm")
def _group_norm(run: FrozenRun, op: Operation) -> Frozen:
    x, groups = op.args[0], op.argument(1, "num_groups")
    weight, bias, eps = op.argument(2, "weight"), op.argument(3, "bias"), op.argument(4, "eps", 1e-5)
    channel = (-1, *[1] * (x.ndim - 2))
    scale = (x.detach().reshape(len(x), groups, -1).var(-1, correction=0, keepdim=True) + eps).rsqrt()

    def apply(one: Tensor, x: Tensor) -> Tensor:
        y = x.reshape(x.shape[0], groups, -1)
        y = ((y - y.mean(-1, keepdim=True)) * scale).reshape(x.shape)
        y = y if weight is None else y * weight.detach().view(channel)
        return y if bias is None else y + bias.detach().view(channel) * one.to(bias.dtype)

    return Frozen(apply, (x,), has_constant=bias is not None)


@rule("batch_norm")
def _batch_norm(run: FrozenRun, op: Operation) -> Frozen:
    x, mean, variance = op.args[0], op.argument(1, "running_mean"), op.argument(2, "running_var")
    weight, bias = op.argument(3, "weight"), op.argument(4, "bias")
    if op.argument(5, "training", False) or mean is None or variance is None:
        raise run.refusal(op, "it is training: its mean and variance are of this batch; call model.eval()")
    channel = (-1, *[1] * (x.ndim - 2))
    scale = (variance + op.argument(7, "eps", 1e-5)).rsqrt() * (1 if weight is None else weight.detach())
    shift = (0 if bias is None else bias.detach()) - mean * scale
    return Frozen(lambda one, x: x * scale.view(channel) + shift.view(channel) * one, (x,), has_constant=True)


@rule("normalize")
def _normalize(run: FrozenRun, op: Operation) -> Frozen:
    x = op.args[0]
    p, dim, eps = op.argument(1, "p", 2.0), op.argument(2, "dim", 1), op.argument(3, "eps", 1e-12)
    length = x.detach().norm(p, dim, keepdim=True).clamp_min(eps)
    return Frozen(lambda one, x: x / length, (x,))


# ---- attention


@rule("scaled_dot_product_attention")
def _attention(run: FrozenRun, op: Operation) -> Any:
    """The weights are constants; what goes through is the values."""
    query, key, value = (op.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    if not run.is_live(value):
        return call(op, same)
    if op.argument(4, "dropout_p", 0.0):
        raise run.refusal(op, "it drops out weights that it does not return; call model.eval()")
    mask, is_causal, scale = op.argument(3, "attn_mask"), bool(op.argument(5, "is_causal", False)), op.kwargs.get("scale")
    mask = None if mask is None else mask.detach()
    more = {name: op.kwargs[name] for name in ("scale", "enable_gqa") if name in op.kwargs}
    q, k = query.detach(), key.detach()

    def fused(one: Tensor, v: Tensor) -> Any:
        return FrozenAttention.apply(v, q, k, mask, is_causal, scale, op.func, more)

    weights: list[Tensor] = []

    def plain(one: Tensor, v: Tensor) -> Tensor:
        weights[:] = weights or [attention_weights(q, k, mask, is_causal, scale).to(v.dtype)]
        groups = weights[0].shape[-3] // v.shape[-3] if v.ndim > 2 else 1
        return weights[0] @ (v.repeat_interleave(groups, -3) if groups > 1 else v)

    return Frozen(fused if run.fused else plain, (value,), mixes=True)


@rule("multi_head_attention_forward", "embedding_bag")
def _own(run: FrozenRun, op: Operation) -> Any:
    return call(op, same)


@rule("embedding")
def _embedding(run: FrozenRun, op: Operation) -> Any:
    if run.is_live(op.argument(1, "weight")):
        return _linear(run, op)
    return call(op, same)


@rule(*_CONSTANT.split())
def _constant(run: FrozenRun, op: Operation) -> Any:
    """Held fixed as a whole."""
    with torch.no_grad():
        return call(op, same)
