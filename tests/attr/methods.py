"""The table of all public methods: a new method is one row here, and every contract test then runs on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from captum_norm.attr import (
    ALTI,
    ALTILogit,
    AttentionBlockNorm,
    AttentionFlow,
    AttentionNorm,
    AttentionRelevance,
    AttentionRollout,
    AttentionWeights,
    DecompX,
    GlobEnc,
    InformationFlowRoutes,
    LayerAttentionBlockNorm,
    LayerAttentionNorm,
    LayerAttentionWeights,
    SpanTrace,
    ValueZeroing,
)

from . import with_target
from .models import HEADS


@dataclass(frozen=True)
class Row:
    """One method as it is constructed.

    Attributes:
        method: the class.
        arguments: what its constructor gets after ``forward_func[, layer]``.
        layer: whether it is a layer class.
        sums_to: what a row of scores sums to; None where it is not normalised.
        together: layer classes: the word for ``heads`` that gives one map for all heads.
        per_head: layer classes: whether there is a map per head, and is the default.
        by_position: whether it explains a position's representation; else an output of the model, through all layers.
        has_delta: whether it splits the output, so that it has a convergence delta.
        decoders: whether it explains decoders alone.
    """

    method: Any
    arguments: dict[str, Any] = field(default_factory=dict)
    layer: bool = False
    sums_to: float | None = None
    together: str = ""
    per_head: bool = True
    by_position: bool = True
    has_delta: bool = False
    decoders: bool = False

    @property
    def name(self) -> str:
        return "-".join([self.method.__name__, *(f"{k}={v}" for k, v in self.arguments.items())])

    @property
    def family(self) -> str:
        """The family of models with three classes that the contract is held on."""
        return "GPT2Classes" if self.decoders else "Bert"

    def at(self, position: int) -> dict[str, Any]:
        """How it is asked for a position of its own; nothing where the target tells."""
        if self.method is SpanTrace:
            return {"span": (position, position + 1)}
        return {"position": position} if self.by_position or self.method is ALTILogit else {}

    @property
    def reads_target(self) -> bool:
        """Whether its scores depend on the target, so that it needs one."""
        return not self.layer and self.method.explains == "target"

    @property
    def refuses_cross(self) -> str:
        """What the error says to do where cross-attention cannot be taken in; "" where it can."""
        if self.method in (AttentionFlow, InformationFlowRoutes) or self.arguments.get("aggregate") == "flow":
            return 'kind="self"'
        if self.method.reads_block:  # the residual is in the maps
            return ""
        return "residual=True" if self.arguments.get("aggregate") == "rollout" else ""

    @property
    def composes(self) -> bool:
        """Whether its answer depends on the maps of every layer below."""
        composing = (ALTI, AttentionRelevance, AttentionRollout, GlobEnc, InformationFlowRoutes, ValueZeroing)
        by_itself = self.method in composing
        return self.arguments.get("aggregate", "rollout" if by_itself else "mean") == "rollout"

    def shape(self, batch: int, query: int, key: int, heads: int = HEADS, cross: bool = False) -> tuple[int, ...]:
        """The shape of a layer class's map by default; a block's has one more key in cross-attention, the residual."""
        key += cross and self.method.reads_block
        return (batch, heads, query, key) if self.per_head else (batch, query, key)

    def build(self, forward_func: Any, layer: Any = None) -> Any:
        """The method on a forward function; a layer class needs the layer."""
        method = getattr(with_target, self.method.__name__) if self.reads_target else self.method
        return method(forward_func, *([layer] if self.layer else []), **self.arguments)


METHODS = (
    Row(AttentionWeights, sums_to=1.0),
    Row(AttentionWeights, {"aggregate": -1}, sums_to=1.0),
    Row(AttentionWeights, {"aggregate": "rollout"}, sums_to=1.0),
    Row(AttentionNorm),
    Row(AttentionNorm, {"aggregate": 0}),
    Row(AttentionNorm, {"aggregate": "rollout"}),
    Row(AttentionRollout, sums_to=1.0),
    Row(AttentionNorm, {"aggregate": "flow"}, sums_to=1.0),
    Row(AttentionFlow, sums_to=1.0),
    Row(AttentionRelevance),
    Row(DecompX, by_position=False, has_delta=True),
    Row(DecompX, {"bias": "equal"}, by_position=False, has_delta=True),
    Row(DecompX, {"bias": "absdot"}, by_position=False, has_delta=True),
    Row(ValueZeroing, sums_to=1.0),
    Row(AttentionBlockNorm),
    Row(AttentionBlockNorm, {"layer_norm": False, "aggregate": 0}),
    Row(AttentionBlockNorm, {"aggregate": "rollout"}),
    Row(AttentionBlockNorm, {"feed_forward": True}),
    Row(GlobEnc),
    Row(GlobEnc, {"feed_forward": True}),
    Row(ALTI, sums_to=1.0),
    Row(ALTI, {"p": 2, "aggregate": "mean"}, sums_to=1.0),
    Row(ALTI, {"feed_forward": True}, sums_to=1.0),
    Row(InformationFlowRoutes),
    Row(ALTILogit, by_position=False, has_delta=True, decoders=True),
    Row(ALTILogit, {"mixing": False}, by_position=False, has_delta=True, decoders=True),
    Row(SpanTrace, by_position=False, decoders=True),
    Row(LayerAttentionBlockNorm, layer=True, together="sum", per_head=False),
    Row(LayerAttentionWeights, layer=True, sums_to=1.0, together="mean"),
    Row(LayerAttentionNorm, layer=True, together="sum"),
)
INPUT_METHODS = tuple(row for row in METHODS if not row.layer and row.by_position)
LAYER_METHODS = tuple(row for row in METHODS if row.layer)
