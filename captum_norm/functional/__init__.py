"""The maths of norm-based attribution: tensors in, tensors out.  It knows no model, hook or tokenizer."""

from captum_norm.functional.aggregate import flow, mean, rollout, rollout_encoder_decoder
from captum_norm.functional.alti import alti
from captum_norm.functional.block_quantities import (
    block_quantities,
    globenc_norms,
    mixing_attn,
    mixing_res,
    mixing_res_ln,
    mixing_res_weights,
    mixing_weights,
    res_ln_norms,
    res_norms,
)
from captum_norm.functional.decompx import EncoderLayer, decompx_layer, decompx_output, share_bias
from captum_norm.functional.dropping import drop_norms, nothing_left
from captum_norm.functional.feed_forward import feed_forward_parts
from captum_norm.functional.normalization import FrozenNorm
from captum_norm.functional.norms import head_norms, summed_norms, transformed_norms
from captum_norm.functional.relevance import gradient_weights, relevance, relevance_encoder_decoder
from captum_norm.functional.routes import RouteShares, route_shares
from captum_norm.functional.span import SpanShares, span_shares, span_values
from captum_norm.functional.split import input_split, value_gradients
from captum_norm.functional.value_zeroing import value_zeroing, value_zeroing_shares

__all__ = [
    "EncoderLayer",
    "FrozenNorm",
    "RouteShares",
    "SpanShares",
    "alti",
    "block_quantities",
    "decompx_layer",
    "decompx_output",
    "drop_norms",
    "feed_forward_parts",
    "flow",
    "globenc_norms",
    "gradient_weights",
    "head_norms",
    "input_split",
    "mean",
    "mixing_attn",
    "mixing_res",
    "mixing_res_ln",
    "mixing_res_weights",
    "mixing_weights",
    "nothing_left",
    "relevance",
    "relevance_encoder_decoder",
    "res_ln_norms",
    "res_norms",
    "rollout",
    "rollout_encoder_decoder",
    "route_shares",
    "share_bias",
    "span_shares",
    "span_values",
    "summed_norms",
    "transformed_norms",
    "value_gradients",
    "value_zeroing",
    "value_zeroing_shares",
]
