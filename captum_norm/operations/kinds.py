"""The table of operations: what kind each one is, and what else is true of it whatever its kind.

Every operation that any rule knows by name stands in ``KINDS``, once.  Rules are written for kinds or for single names
(:mod:`captum_norm.operations.rules`), so that a new operation is one word here, and a rule table that has nothing to
say about it fails a test.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from functools import cache
from typing import Any

from captum_norm.operations.operation import base_name, operation_name


class OperationKind(Enum):
    """What an operation is; each has one kind."""

    QUESTION = auto()  # asks something about a tensor
    EXIT = auto()  # hands its numbers to what is no operation of torch
    SETTING = auto()  # changes how torch works; no tensor is involved
    FRESH = auto()  # new numbers in the shape of old ones
    FILLED = auto()  # a number, or numbers, that are given, in the format of old ones
    IDENTITY = auto()  # the same numbers, or the same up to the number format
    MOVE = auto()  # moves, repeats or picks entries by their index alone
    JOIN = auto()  # puts tensors side by side
    WRITE = auto()  # puts numbers into a part of a tensor, or into all of it
    CHOICE = auto()  # takes each entry from one tensor or another
    DROPOUT = auto()
    SUM = auto()  # of two operands
    SCALE = auto()  # product or quotient of two operands, entry by entry
    REDUCTION = auto()  # sum or mean along an axis
    COMBINATION = auto()  # any other linear function of one tensor
    MAP = auto()  # product with a matrix of parameters
    PRODUCT = auto()  # product of any two tensors, summed over an axis
    EMBEDDING = auto()
    ATTENTION = auto()  # softmax and value product in one
    COMPOSITE = auto()  # calls operations that are seen one by one
    NORM = auto()
    ACTIVATION = auto()  # entry by entry; goes through the origin, or is a line far from it
    SOFTMAX = auto()  # and what it is written out with
    FUNCTION = auto()  # anything else computed from a tensor: gates, scales, routing


KINDS: dict[OperationKind, str] = {
    OperationKind.QUESTION: (
        "shape dtype device layout ndim requires_grad is_leaf grad grad_fn is_cuda is_cpu is_meta is_sparse "
        "is_quantized is_nested is_mps is_xla is_mkldnn size dim stride numel data_ptr storage untyped_storage "
        "storage_offset itemsize nbytes names is_contiguous is_floating_point is_complex is_inference element_size "
        "get_device __len__ __bool__ __hash__ __repr__ __format__ all any equal allclose eq ne lt gt "
        "le ge is_same_size _version register_hook backward retain_grad finfo iinfo is_conj is_neg"
    ),
    OperationKind.EXIT: "item tolist __float__ __complex__ numpy __array__ __dlpack__ __cuda_array_interface__",
    OperationKind.SETTING: "_set_grad_enabled set_grad_enabled _set_deterministic manual_seed",
    OperationKind.FRESH: (
        "new_zeros new_ones new_empty zeros_like ones_like empty_like rand_like randn_like randint_like"
    ),
    OperationKind.FILLED: "new_full new_tensor full_like",
    OperationKind.IDENTITY: (
        "to type type_as float half bfloat16 double clone detach alias nan_to_num requires_grad_ cuda cpu data "
        "_to_copy view_dtype positive __deepcopy__ int8_vectorwise_quant int8_double_quant"
    ),
    OperationKind.MOVE: (
        "view reshape transpose permute contiguous flatten unsqueeze squeeze unflatten movedim getitem select "
        "narrow chunk split tensor_split unbind roll flip expand expand_as view_as reshape_as t mT adjoint "
        "repeat repeat_interleave index_select unfold diagonal tile swapaxes ravel pad slice as_strided"
    ),
    OperationKind.JOIN: "cat stack hstack vstack",
    OperationKind.WRITE: (
        "setitem copy fill zero index_copy index_put index_fill index_add scatter scatter_add masked_scatter data_"
    ),
    OperationKind.CHOICE: "where masked_fill",
    OperationKind.DROPOUT: "dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout",
    OperationKind.SUM: "add sub rsub radd",
    OperationKind.SCALE: "mul div",
    OperationKind.REDUCTION: "sum mean",
    OperationKind.COMBINATION: (
        "neg cumsum gather take take_along_dim masked_select tril triu diff rot90 fliplr flipud avg_pool1d avg_pool2d "
        "adaptive_avg_pool1d adaptive_avg_pool2d interpolate fold pixel_shuffle pixel_unshuffle atleast_1d atleast_2d "
        "atleast_3d real imag conj resolve_conj view_as_complex view_as_real nanmean channel_shuffle H mH fft rfft "
        "irfft ifft fftn fft2 ifft2"
    ),
    OperationKind.MAP: (
        "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear_dynamic "
        "linear_dynamic_fp16 gemm_4bit gemv_4bit int8_scaled_mm int8_mixed_scaled_mm"
    ),
    OperationKind.PRODUCT: (
        "matmul rmatmul einsum addmm baddbmm addbmm addmv mv dot outer grouped_mm _grouped_mm tensordot kron bilinear"
    ),
    OperationKind.EMBEDDING: "embedding embedding_bag",
    OperationKind.ATTENTION: (
        "scaled_dot_product_attention flex_attention flash_attn_func flash_attn_varlen_func "
        "_scaled_dot_product_attention_math _scaled_dot_product_attention_math_for_mps _triton_scaled_dot_attention "
        "_scaled_dot_product_cudnn_attention _scaled_dot_product_efficient_attention _triton_multi_head_attention "
        "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu _flash_attention_forward "
        "_scaled_dot_product_fused_attention_overrideable _flash_attention_forward_no_dropout_inplace "
        "_efficient_attention_forward _native_multi_head_attention _transformer_encoder_layer_fwd"
    ),
    OperationKind.COMPOSITE: "multi_head_attention_forward",
    OperationKind.NORM: "layer_norm rms_norm group_norm batch_norm normalize",
    OperationKind.ACTIVATION: (
        "gelu silu relu relu6 leaky_relu elu selu celu mish hardswish hardtanh softplus tanh pow square abs clamp clip "
        "clamp_min clamp_max softsign hardshrink softshrink tanhshrink threshold logit asinh prelu"
    ),
    OperationKind.SOFTMAX: (
        "softmax log_softmax softmin logsumexp exp gumbel_softmax _safe_softmax _masked_softmax _sparse_softmax"
    ),
    OperationKind.FUNCTION: (
        "sigmoid logsigmoid log_sigmoid exp2 expm1 log log1p log2 erf erfc sin cos sqrt rsqrt reciprocal rdiv norm std "
        "var var_mean std_mean topk sort msort argsort argmax argmin max min amin amax aminmax cumprod prod cummax "
        "cummin median kthvalue one_hot bincount histc floor ceil round sign floor_divide remainder fmod isnan isinf "
        "isfinite linalg_vector_norm vector_norm linalg_norm cdist searchsorted bucketize unique nonzero multinomial "
        "bernoulli cosine_similarity hardsigmoid relu6_gate count_nonzero trunc atan2 atan logical_and "
        "logical_or logical_not logical_xor bitwise_not bitwise_and bitwise_or bitwise_xor bitwise_left_shift "
        "bitwise_right_shift __rpow__ entropy maximum minimum lerp addcmul addcdiv tan sinh cosh float_power glu xlogy "
        "hypot polar complex nansum vecdot special_ndtr"
    ),
}


class Property(Enum):
    """What is true of some operations, of whatever kind."""

    POSITIONWISE = auto()  # each entry of the result is made of the entries at its own place, and of nothing else
    ALONG_AXES = auto()  # reads whole axes, given as ``dim``, and treats all others alike
    SHUFFLES = auto()  # same shape in and out, but positions change places in a way that nobody follows
    KEEPS_WEIGHTS = auto()  # of attention weights it makes what then multiplies the values
    SATURATES = auto()  # does not become the identity for large numbers
    LIKE = auto()  # all operands but the first tell a shape or a format, and none of their numbers
    LIGHT = auto()  # cheap enough to be made twice
    LENDS = auto()  # hands over memory, which may be written out of sight from then on
    GIVES_OUT = auto()  # hands over numbers, which may come back unseen as arguments


PROPERTIES: dict[Property, str] = {
    Property.POSITIONWISE: (
        f"{KINDS[OperationKind.IDENTITY]} {KINDS[OperationKind.CHOICE]} {KINDS[OperationKind.DROPOUT]} "
        f"{KINDS[OperationKind.SUM]} {KINDS[OperationKind.SCALE]} {KINDS[OperationKind.ACTIVATION]} "
        "neg real imag conj resolve_conj view_as_complex view_as_real exp sigmoid logsigmoid log_sigmoid exp2 expm1 "
        "log log1p log2 erf erfc sin cos tan sinh cosh sqrt rsqrt reciprocal rdiv floor ceil round trunc sign "
        "floor_divide remainder fmod isnan isinf isfinite bernoulli hardsigmoid relu6_gate atan2 atan logical_and "
        "logical_or logical_not logical_xor bitwise_not bitwise_and bitwise_or bitwise_xor bitwise_left_shift "
        "bitwise_right_shift __rpow__ maximum minimum lerp addcmul addcdiv float_power xlogy hypot polar complex "
        "one_hot bucketize special_ndtr"
    ),
    Property.ALONG_AXES: (
        "sum mean nanmean nansum norm std var var_mean std_mean topk sort msort argsort argmax argmin max min amax "
        "amin aminmax cumsum cumprod prod cummax cummin median kthvalue linalg_vector_norm linalg_norm vector_norm "
        "count_nonzero all any softmax log_softmax softmin logsumexp gumbel_softmax normalize glu gather "
        "take_along_dim tril triu"
    ),
    Property.LIKE: f"{KINDS[OperationKind.IDENTITY]} expand_as view_as reshape_as",
    Property.SHUFFLES: (
        "sort argsort gather take take_along_dim scatter scatter_add index_add index_copy cumsum cumprod flipud "
        "fliplr rot90 topk masked_select masked_scatter msort cummax cummin"
    ),
    Property.KEEPS_WEIGHTS: "mul div masked_fill where clamp add sub relu",
    Property.SATURATES: "tanh hardtanh softsign clamp clip hardsigmoid",
    Property.LIGHT: (
        "mul div add sub rsub neg masked_fill where sum mean tril triu gather index_select take_along_dim"
    ),
    Property.GIVES_OUT: "item tolist __float__ __complex__ __format__ __repr__",
    Property.LENDS: "numpy __array__ __dlpack__ __cuda_array_interface__ data_ptr storage untyped_storage",
}

_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names.split()}


@cache
def kind_of(name: str) -> OperationKind | None:
    """The kind of an operation, an in-place form having that of its base; None for one that no rule knows.

    >>> kind_of("transpose"), kind_of("mul_"), kind_of("special_i0")
    (<OperationKind.MOVE: 7>, <OperationKind.SCALE: 13>, None)
    """
    return _KIND_OF.get(name) or _KIND_OF.get(base_name(name))


def names_of(*kinds: OperationKind) -> frozenset[str]:
    """All operations of these kinds."""
    return frozenset(name for kind in kinds for name in KINDS[kind].split())


HIDDEN_ATTENTION = tuple(sorted(names_of(OperationKind.ATTENTION) - {"scaled_dot_product_attention"}))
"""Kernels that give out mixed values, and no weights."""


def names_with(prop: Property) -> frozenset[str]:
    """All operations that have a property."""
    return frozenset(PROPERTIES[prop].split())


@cache
def may_write(func: Callable[..., Any]) -> bool:
    """Whether an operation writes into something that it is given, as far as its name or its schema tells, or hands out
    its memory.

    >>> import torch
    >>> may_write(torch.mul), may_write(torch.Tensor.mul_), may_write(torch.Tensor.numpy)
    (False, True, True)
    >>> may_write(torch.ops.aten.set_.source_Tensor), may_write(torch.ops.aten.mul.Tensor)  # by their schemas
    (True, False)
    """
    name, overloads = operation_name(func), getattr(func, "overloads", None)
    if base_name(name) != name or name == "setitem" or name in names_with(Property.LENDS):
        return True
    forms = [getattr(func, overload) for overload in overloads()] if callable(overloads) else [func]
    return any(bool(getattr(getattr(form, "_schema", None), "is_mutable", False)) for form in forms)
