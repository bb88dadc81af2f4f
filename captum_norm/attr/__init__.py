"""Captum attribution classes over attention: a measure per attention call, an aggregate over calls, a row asked for."""

from captum_norm.attr._reduction import AttributionReport
from captum_norm.attr.flow import AttentionFlow
from captum_norm.attr.layer import LayerAttentionNorm, LayerAttentionWeights
from captum_norm.attr.llm import LLMAttentionAttribution, LLMAttributionReport
from captum_norm.attr.norm import AttentionNorm
from captum_norm.attr.relevance import AttentionRelevance
from captum_norm.attr.rollout import AttentionRollout
from captum_norm.attr.weights import AttentionWeights

__all__ = [
    "AttentionFlow",
    "AttentionNorm",
    "AttentionRelevance",
    "AttentionRollout",
    "AttentionWeights",
    "AttributionReport",
    "LLMAttentionAttribution",
    "LLMAttributionReport",
    "LayerAttentionNorm",
    "LayerAttentionWeights",
]
