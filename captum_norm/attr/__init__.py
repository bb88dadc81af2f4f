"""Captum attribution classes over attention: a measure per attention call, an aggregate over calls, a row asked for."""

from captum_norm.attr._reduction import AttributionReport
from captum_norm.attr.alti import ALTI
from captum_norm.attr.block_norm import AttentionBlockNorm, LayerAttentionBlockNorm
from captum_norm.attr.decompx import DecompX, DecompXReport
from captum_norm.attr.flow import AttentionFlow
from captum_norm.attr.globenc import GlobEnc
from captum_norm.attr.layer import LayerAttentionWeights
from captum_norm.attr.llm import LLMAttentionAttribution, LLMAttributionReport
from captum_norm.attr.norm import AttentionNorm, LayerAttentionNorm
from captum_norm.attr.relevance import AttentionRelevance
from captum_norm.attr.rollout import AttentionRollout
from captum_norm.attr.value_zeroing import ValueZeroing
from captum_norm.attr.weights import AttentionWeights

__all__ = [
    "ALTI",
    "AttentionBlockNorm",
    "AttentionFlow",
    "AttentionNorm",
    "AttentionRelevance",
    "AttentionRollout",
    "AttentionWeights",
    "AttributionReport",
    "DecompX",
    "DecompXReport",
    "GlobEnc",
    "LLMAttentionAttribution",
    "LLMAttributionReport",
    "LayerAttentionBlockNorm",
    "LayerAttentionNorm",
    "LayerAttentionWeights",
    "ValueZeroing",
]
