"""Captum attribution classes over attention: a measure per attention call, an aggregate over calls, a row asked for.

A class is its file and three words here: its import, its name in ``__all__`` and its row in ``CLASSES``, from which
`captum_norm`, `captum_norm.methods`, ``compare`` and ``study`` take it.  It is loaded when it is first asked for, so
that a list of names costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from captum_norm.attr._report import AttributionReport
    from captum_norm.attr.alti import ALTI
    from captum_norm.attr.alti_logit import ALTILogit, ALTILogitReport
    from captum_norm.attr.block_norm import AttentionBlockNorm, LayerAttentionBlockNorm
    from captum_norm.attr.decompx import DecompX, DecompXReport
    from captum_norm.attr.flow import AttentionFlow
    from captum_norm.attr.generation import GenerationAttribution
    from captum_norm.attr.globenc import GlobEnc
    from captum_norm.attr.layer import LayerAttentionWeights
    from captum_norm.attr.llm import LLMAttentionAttribution, LLMAttributionReport
    from captum_norm.attr.norm import AttentionNorm, LayerAttentionNorm
    from captum_norm.attr.relevance import AttentionRelevance
    from captum_norm.attr.rollout import AttentionRollout
    from captum_norm.attr.route_graph import RouteEdge, RouteGraph, RouteNode
    from captum_norm.attr.routes import InformationFlowRoutes, InformationFlowRoutesReport
    from captum_norm.attr.span_trace import SpanTrace, SpanTraceReport
    from captum_norm.attr.value_zeroing import ValueZeroing
    from captum_norm.attr.weights import AttentionWeights


class Row(NamedTuple):
    """Where a class stands; where it is one of the methods that score tokens, what its scores tell, and whether only of
    decoders."""

    module: str
    explains: Literal["position", "target", ""] = ""
    signed: bool = False
    decoders: bool = False


# Methods that score tokens first, in the order in which they are listed to users.
CLASSES = {
    "AttentionNorm": Row("norm", "position"),
    "AttentionWeights": Row("weights", "position"),
    "AttentionRollout": Row("rollout", "position"),
    "AttentionFlow": Row("flow", "position"),
    "AttentionBlockNorm": Row("block_norm", "position"),
    "GlobEnc": Row("globenc", "position"),
    "ALTI": Row("alti", "position"),
    "ValueZeroing": Row("value_zeroing", "position"),
    "InformationFlowRoutes": Row("routes", "position"),
    "AttentionRelevance": Row("relevance", "target"),
    "DecompX": Row("decompx", "target", signed=True),
    "ALTILogit": Row("alti_logit", "target", signed=True, decoders=True),
    "SpanTrace": Row("span_trace", "position", decoders=True),
    "LayerAttentionWeights": Row("layer"),
    "LayerAttentionNorm": Row("norm"),
    "LayerAttentionBlockNorm": Row("block_norm"),
    "LLMAttentionAttribution": Row("llm"),
    "GenerationAttribution": Row("generation"),
    "ALTILogitReport": Row("alti_logit"),
    "AttributionReport": Row("_report"),
    "DecompXReport": Row("decompx"),
    "InformationFlowRoutesReport": Row("routes"),
    "LLMAttributionReport": Row("llm"),
    "RouteEdge": Row("route_graph"),
    "RouteGraph": Row("route_graph"),
    "RouteNode": Row("route_graph"),
    "SpanTraceReport": Row("span_trace"),
}

__all__ = [
    "ALTI",
    "ALTILogit",
    "ALTILogitReport",
    "AttentionBlockNorm",
    "AttentionFlow",
    "AttentionNorm",
    "AttentionRelevance",
    "AttentionRollout",
    "AttentionWeights",
    "AttributionReport",
    "DecompX",
    "DecompXReport",
    "GenerationAttribution",
    "GlobEnc",
    "InformationFlowRoutes",
    "InformationFlowRoutesReport",
    "LLMAttentionAttribution",
    "LLMAttributionReport",
    "LayerAttentionBlockNorm",
    "LayerAttentionNorm",
    "LayerAttentionWeights",
    "RouteEdge",
    "RouteGraph",
    "RouteNode",
    "SpanTrace",
    "SpanTraceReport",
    "ValueZeroing",
]


def __getattr__(name: str) -> Any:
    if name in CLASSES:
        return getattr(import_module(f"captum_norm.attr.{CLASSES[name].module}"), name)
    raise AttributeError(f"module 'captum_norm.attr' has no attribute {name!r}.")


def __dir__() -> list[str]:
    return __all__
