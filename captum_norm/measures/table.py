"""What can be asked of one attention call?  One table of measures, by the papers' names.

A row says everything that differs from measure to measure: the function, the axes of its result, what a record must
hold for it, the words of figures and documentation, and the names under which maps, attribution classes and the aligner
offer it.  All of them read it here, so that a new measure is one function and one row.

Residual and norms are taken where the model has them.  In post-LN blocks the norm stands behind the residual; in pre-LN
blocks it stands before attention, is in f(x) already, and nothing stands behind: there ``res_ln_norms`` are
``res_norms``, and ``globenc_norms`` too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from captum_norm.capture import AttentionRecord
from captum_norm.functional import drop_norms, head_norms, nothing_left, summed_norms, transformed_norms
from captum_norm.measures.of_blocks import (
    alti_contributions,
    block_measures,
    lacks_block,
    lacks_feed_forward,
    lacks_norm,
    lacks_part,
    lacks_part_or_norm,
    part_measures,
)
from captum_norm.operations.precision import at_least_float32

Role = Literal["weight", "norm", "share"]


class Paper(NamedTuple):
    """Where a measure was published."""

    cited: str
    url: str


KOBAYASHI_2020 = Paper("Kobayashi et al. 2020", "https://arxiv.org/abs/2004.10102")
KOBAYASHI_2021 = Paper("Kobayashi et al. 2021", "https://arxiv.org/abs/2109.07152")
MODARRESSI_2022 = Paper("Modarressi et al. 2022", "https://arxiv.org/abs/2205.03286")
FERRANDO_2022 = Paper("Ferrando et al. 2022", "https://arxiv.org/abs/2203.04212")
KOBAYASHI_2024 = Paper("Kobayashi et al. 2024", "https://arxiv.org/abs/2302.00456")
VASWANI_2017 = Paper("Vaswani et al. 2017", "https://arxiv.org/abs/1706.03762")


@dataclass(frozen=True)
class Measure:
    """One row of the table.

    Attributes:
        name: the papers' name, which ``attention_maps(quantities=)`` takes and under which maps hold the results.
        axes: the axes of the result, for example ``"batch head query key"``.  Measures of the block have one more key
            in cross-attention, the residual.
        compute: from a record (float32 at least, and holding only the chosen queries and heads) to the result.
        title: what figures call it.
        unit: what stands at a colour bar.
        role: which colours it is drawn in.
        formula: what it is, in LaTeX, with the letters of the documentation's page of methods.
        says: what a number tells, for the documentation.
        paper: where it comes from.
        lacks: why a record cannot have it, in words; ``""`` where it can.
        of_block: whether it needs the block around the call, ``recording(blocks=True)``.
        together: what computes it together with others, with which it shares vectors and products; None: nothing.
        of_one_head: the measure that has this one's form for single heads; ``""`` where there is none.
        classes: the attribution classes that give it; ``compare`` and ``study`` run those that score inputs.
        aligner: what ``CrossAttentionAligner(method=)`` and ``captum-norm align`` call it; ``""`` where they do not
            offer it.
        brief: what the aligner's tables and figures call it.
        counted: whether classes of tokens are counted by it (:mod:`captum_norm.token_shares`).
    """

    name: str
    axes: str
    compute: Callable[[AttentionRecord], Tensor]
    title: str
    unit: str
    role: Role
    formula: str
    says: str
    paper: Paper
    lacks: Callable[[AttentionRecord], str] = lambda record: ""
    of_block: bool = False
    together: Callable[[AttentionRecord, Sequence[str]], dict[str, Tensor]] | None = None
    of_one_head: str = ""
    classes: tuple[str, ...] = ()
    aligner: str = ""
    brief: str = ""
    counted: bool = False

    def has_axis(self, axis: str) -> bool:
        """Whether the result has an axis of this name."""
        return axis in self.axes.split()


def _lacks_transformed_norms(record: AttentionRecord) -> str:
    if record.gate is None or record.gate.shape[-1] == 1:
        return ""
    return (
        "an element-wise gate stands between the mixed values and W_O, so f depends on the query and ‖f(x)‖ is no "
        "number per key. Ask for head_norms or summed_norms, which take the gate in"
    )


def _lacks_softmax(record: AttentionRecord) -> str:
    """Why the softmax of a call cannot be normalised anew without a key; ``""`` where it can."""
    sums = record.weights.sum(-1, dtype=torch.float64)
    rounding = torch.finfo(record.weights.dtype).eps * max(4.0, record.weights.shape[-1] ** 0.5)
    if (record.weights >= 0).all() and (((sums - 1).abs() <= rounding) | (sums == 0)).all():
        return ""
    return (
        f"its weights are negative or do not add up to 1 (sums {float(sums.min()):.4g} to {float(sums.max()):.4g}), so "
        "a softmax with a sink and weights that were changed behind it cannot be told apart. "
        "functional.drop_norms takes weights beside a sink"
    )


def mean_weights(record: AttentionRecord) -> Tensor:
    """Mean over heads of α, (batch, query, key), in float32 at least; rows sum to 1."""
    return record.weights.mean(dim=1, dtype=torch.promote_types(record.weights.dtype, torch.float32))


def _in_block(
    name: str, axes: str, lacks: Callable[[AttentionRecord], str], title: str, unit: str, role: Role, **others: Any
) -> Measure:
    """The row of a measure that the block's others are computed together with."""
    kinds: dict[str, Any] = {"lacks": lacks, "of_block": True, "together": block_measures} | others
    return Measure(name, axes, lambda r: kinds["together"](r, [name])[name], title, unit, role, **kinds)


_TABLE = (
    Measure(
        "weights", "batch head query key", lambda r: r.weights, "Attention weight", "α", "weight",
        formula=r"\alpha_{ij}", says="how much a head looks at j from i", paper=VASWANI_2017,
        classes=("LayerAttentionWeights",), counted=True,
    ),
    Measure(
        "transformed_norms", "batch head key", lambda r: transformed_norms(r.values, r.W_O),
        "Norm of the transformed vector", "‖f(x)‖", "norm",
        formula=r"\lVert f(x_j)\rVert", says="how long a key's vector is, whoever looks", paper=KOBAYASHI_2020,
        lacks=_lacks_transformed_norms,
    ),
    Measure(
        "head_norms", "batch head query key", lambda r: head_norms(r.weights, r.values, r.W_O, gate=r.gate),
        "Norm per head", "‖αf(x)‖", "norm",
        formula=r"\lVert \alpha_{ij} f(x_j)\rVert", says="what a head moves from j to i", paper=KOBAYASHI_2020,
        classes=("LayerAttentionNorm",), counted=True,
    ),
    Measure(
        "summed_norms", "batch query key", lambda r: summed_norms(r.weights, r.values, r.W_O, gate=r.gate),
        "Norm of the sum over heads", "‖Σαf(x)‖", "norm",
        formula=r"\lVert \sum_h \alpha^h_{ij} f^h(x_j)\rVert", says="what all heads move together; heads may cancel",
        paper=KOBAYASHI_2020, of_one_head="head_norms", classes=("AttentionNorm", "LayerAttentionNorm"),
        aligner="norm", brief="norm", counted=True,
    ),
    Measure(
        "mean_weights", "batch query key", mean_weights, "Attention weight, mean of heads", "α", "weight",
        formula=r"\operatorname{mean}_h \alpha^h_{ij}", says="how much the heads look at j from i",
        paper=KOBAYASHI_2020, of_one_head="weights", classes=("AttentionWeights", "LayerAttentionWeights"),
        aligner="weights", brief="weight",
    ),
    Measure(
        "drop_norms", "batch query key", lambda r: drop_norms(r.weights, r.values, r.W_O, gate=r.gate),
        "Norm of the change without the key", "‖Δy‖", "norm",
        formula=r"\lVert \sum_h \tfrac{\alpha^h_{ij}}{1-\alpha^h_{ij}}(y^h_i - f^h(x_j))\rVert",
        says="how far attention's output moves when j goes and the softmax is normalised anew", paper=KOBAYASHI_2020,
        lacks=_lacks_softmax,
    ),
    Measure(
        "nothing_left", "batch query key",
        lambda r: nothing_left(r.weights).to(at_least_float32(r.weights.dtype)).mean(1),
        "Heads with nothing left without the key", "share of heads", "share",
        formula=r"\operatorname{mean}_h [\sum_{k\ne j}\alpha^h_{ik} = 0]",
        says="the share of heads whose whole output goes with j: `drop_norms` lets them give out 0",
        paper=KOBAYASHI_2020, lacks=_lacks_softmax,
    ),
    _in_block(
        "res_norms", "batch query key", lacks_block, "Norm with the residual", "‖Σαf(x) + x‖", "norm",
        formula=r"\lVert u_{ij}\rVert", says="what reaches i from j, the residual among it", paper=KOBAYASHI_2021,
        classes=("AttentionBlockNorm", "LayerAttentionBlockNorm"),
    ),
    _in_block(
        "res_ln_norms", "batch query key", lacks_norm, "Norm behind LayerNorm", "‖LN(Σαf(x) + x)‖", "norm",
        formula=r"\lVert t_{ij}\rVert", says="what reaches i from j, behind residual and norm", paper=KOBAYASHI_2021,
        classes=("AttentionBlockNorm", "LayerAttentionBlockNorm"), aligner="block_norm",
        brief="block norm",
    ),
    _in_block(
        "globenc_norms", "batch query key", lacks_feed_forward, "Norm behind the layer", "‖LN₂(LN(Σαf(x) + x))‖",
        "norm", formula=r"\lVert e_{ij}\rVert", says="what reaches i from j, behind both norms of a layer",
        paper=MODARRESSI_2022, classes=("GlobEnc",),
    ),
    _in_block(
        "mixing_weights", "batch query", lacks_block, "By weight: attention alone", "ratio", "share",
        formula=r"1 - \operatorname{mean}_h \alpha^h_{ii}", says="how much comes from other positions, by weight",
        paper=KOBAYASHI_2021,
    ),
    _in_block(
        "mixing_res_weights", "batch query", lacks_block, "By weight: with the residual", "ratio", "share",
        formula=r"\tfrac12 (1 - \operatorname{mean}_h \alpha^h_{ii})",
        says="the same where the residual is taken for half", paper=KOBAYASHI_2021,
    ),
    _in_block(
        "mixing_attn", "batch query", lacks_block, "By norm: attention alone", "ratio", "share",
        formula=r"r_i\bigl(\sum_h \alpha^h f^h\bigr)", says="how much of attention comes from other positions",
        paper=KOBAYASHI_2021,
    ),
    _in_block(
        "mixing_res", "batch query", lacks_block, "By norm: with the residual", "ratio", "share",
        formula="r_i(u)", says="how much of attention and residual comes from other positions", paper=KOBAYASHI_2021,
    ),
    _in_block(
        "mixing_res_ln", "batch query", lacks_norm, "By norm: with residual and LayerNorm", "ratio", "share",
        formula="r_i(t)", says="how much of the block comes from other positions, behind its norm",
        paper=KOBAYASHI_2021,
    ),
    _in_block(
        "ff_norms", "batch query key", lacks_part, "Norm behind the feed-forward part", "‖FF(…)‖", "norm",
        formula=r"\lVert F_{ij}\rVert", says="what the feed-forward part makes of what reached i from j",
        paper=KOBAYASHI_2024, together=part_measures,
    ),
    _in_block(
        "ff_res_norms", "batch query key", lacks_part, "Norm behind the feed-forward part and its residual",
        "‖FF(…) + …‖", "norm",
        formula=r"\lVert F_{ij} + t_{ij}\rVert", says="the same together with what went past the feed-forward part",
        paper=KOBAYASHI_2024, together=part_measures, classes=("AttentionBlockNorm", "LayerAttentionBlockNorm"),
    ),
    _in_block(
        "ff_res_ln_norms", "batch query key", lacks_part_or_norm, "Norm behind the whole layer",
        "‖LN₂(FF(…) + …)‖", "norm",
        formula=r"\lVert N_2(F_{ij} + t_{ij})\rVert",
        says="what reaches i from j behind the whole layer, its feed-forward part applied",
        paper=KOBAYASHI_2024, together=part_measures,
        classes=("AttentionBlockNorm", "LayerAttentionBlockNorm", "GlobEnc"),
    ),
    Measure(
        "alti", "batch query key", alti_contributions, "ALTI: share of output", "share", "share",
        formula="c_{ij}", says="how much nearer j brings the block's output, in shares", paper=FERRANDO_2022,
        lacks=lacks_block, of_block=True, classes=("ALTI",), aligner="alti", brief="ALTI",
    ),
)  # fmt: skip

MEASURES: dict[str, Measure] = {measure.name: measure for measure in _TABLE}
"""By name.  A new measure is one function and one row."""


def need_blocks(names: Sequence[str]) -> bool:
    """Whether any of these measures needs ``recording(blocks=True)``."""
    return any(MEASURES[name].of_block for name in names)


def compute_measures(record: AttentionRecord, names: Sequence[str]) -> dict[str, Tensor | str]:
    """Measures of a record by name, or the reason why it cannot have one.

    Example:
        >>> import torch
        >>> from captum_norm.capture import recording
        >>> layer = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> with torch.no_grad(), recording(blocks=True) as records:
        ...     _ = layer(torch.randn(1, 3, 8))
        >>> results = compute_measures(records[0], ["res_norms", "mixing_res_ln"])
        >>> {name: tuple(result.shape) for name, result in results.items()}
        {'res_norms': (1, 3, 3), 'mixing_res_ln': (1, 3)}
    """
    results: dict[str, Tensor | str] = {name: MEASURES[name].lacks(record) for name in names}
    possible = [name for name, reason in results.items() if not reason]
    for compute in (block_measures, part_measures):
        together = [name for name in possible if MEASURES[name].together is compute]
        results |= compute(record, together) if together else {}
    results |= {name: MEASURES[name].compute(record) for name in possible if MEASURES[name].together is None}
    return results
