"""Which passage did an answer rest on?  Shares of a span of rows, layer by layer, and hops through the reasoning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from captum_norm.attr._aggregate import Total
from captum_norm.attr._base import InputMethod
from captum_norm.attr._captum import Attribution, extra_arguments, is_tuple
from captum_norm.attr._decoder import at_queries, block_of_decoder, one_input
from captum_norm.attr._encoding import captum_attribute, takes_encodings
from captum_norm.attr._forward import position_given
from captum_norm.attr._maps import CallMap, at_rows, call_map, without_padding
from captum_norm.attr._placing import finished, spread
from captum_norm.attr._position import PositionType, Rows
from captum_norm.attr._reduction import Reduction, Scores, skipping
from captum_norm.attr._report import AttributionReport
from captum_norm.attr._span import SpanType, before_the_end, normalised, share_of, span_weights
from captum_norm.capture import AttentionRecord, Recorded
from captum_norm.forward import real_tokens, resolve_position
from captum_norm.functional.normalization import fold
from captum_norm.functional.norms import slices
from captum_norm.functional.span import SpanShares, proximity, span_shares, span_values
from captum_norm.operations.precision import at_least_float32

# Rows of a span that are taken at a time: their weights are all that grows with them.
_ROWS = 64


@dataclass(frozen=True)
class SpanTraceReport(AttributionReport):
    """Of what a span was made, layer by layer.  Shares of tokens, residual and biases of a layer add up to 1.

    Attributes:
        tokens: (layer, batch, key), the share of each key, all heads together; one entry for each attention call.
        heads: (layer, batch, head), of each head, all keys together; a list, as layers may differ in heads.
        residual: (layer, batch), of what the span's rows were before.
        bias: (layer, batch), of all biases.
        feed_forward: (layer, batch), the share of the feed-forward part in the stream behind it, the rest being what it
            was before it; NaN where a norm stands behind it.  In no score.
        hops: (hop + 1, batch, position): what each pass gave, not masked.
        ratios: (hop + 1, batch), how much is left to pass on after each: of a pass, the share of the reasoning.
    """

    tokens: tuple[Tensor, ...] = ()
    heads: tuple[Tensor, ...] = ()
    residual: Tensor = field(default_factory=lambda: torch.zeros(0))
    bias: Tensor = field(default_factory=lambda: torch.zeros(0))
    feed_forward: Tensor = field(default_factory=lambda: torch.zeros(0))
    hops: Tensor = field(default_factory=lambda: torch.zeros(0))
    ratios: Tensor = field(default_factory=lambda: torch.zeros(0))


class SpanTrace(InputMethod):
    """What each token brings a span of a decoder's rows nearer to what they are, summed over layers (FlashTrace).

    In each layer a token's share is how much nearer its part, through all heads, brings the sum of the span's rows
    behind attention, relative to all parts, the residual and the biases.  One pass answers for a span of any length.
    With ``hops``, the share that falls to the reasoning is handed on to what the reasoning itself was made of.

    Rows are those of the span's own tokens, and a key is called the token at its position, whatever it has mixed.

    Args:
        forward_func: a Hugging Face decoder, any module, ``HFForward`` or any function that runs one.
        hops: how often the reasoning's share is handed on, each at the price of a pass.
        threshold: a head's part of a key that brings a span less nearer than this, in the units of the stream, is 0.

    Values hold b_V, queries and keys what the model does to them, norms their own eps, and b_O and other biases have a
    share of their own, where the authors' code leaves all of these out or takes 1e-6.

    Raises:
        ValueError: if ``hops`` or ``threshold`` is negative.

    Source: FlashTrace (2026), https://arxiv.org/abs/2602.01914; Ferrando and Voita (2024),
    https://arxiv.org/abs/2403.00824, for a row.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
        >>> method = SpanTrace(GPT2LMHeadModel(config).eval())
        >>> scores = method.attribute(torch.tensor([[3, 4, 5, 6, 7, 8]]), span=(4, 6))
        >>> bool((scores.sum(1) + method.report.residual.sum(0) + method.report.bias.sum(0)).round(decimals=4) == 2)
        True
    """

    explains = "position"
    reads_block: ClassVar[bool] = True

    def __init__(self, forward_func: Callable[..., Any], *, hops: int = 0, threshold: float = 0.0) -> None:
        Attribution.__init__(self, forward_func)
        if isinstance(hops, bool) or not isinstance(hops, int) or hops < 0:
            raise ValueError(f"SpanTrace: hops should be 0 or more, how often the reasoning is followed; got {hops!r}.")
        if not threshold >= 0:
            raise ValueError(f"SpanTrace: threshold should be 0 or more, got {threshold!r}.")
        self.hops, self.threshold = hops, threshold
        self.report: SpanTraceReport = SpanTraceReport()

    @captum_attribute
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        span: SpanType | None = None,
        reasoning: SpanType | None = None,
        weights: Any = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """How much each input position brings the span nearer to what it is.

        Args:
            inputs: what ``forward_func`` takes first, batch first: ids (batch, position), vectors (batch, position,
                model) or a gate (batch, position): prompt, reasoning and answer.
            target: the class, as in Captum.  It is validated as Captum does; the scores do not depend on it.
            additional_forward_args: what ``forward_func`` takes after ``inputs``, as in Captum.
            span: the rows that are explained, (start, stop) as in ``range``, or one such pair for each example; None
                for the last real token, unless ``HFForward(position=...)`` says otherwise.
            reasoning: what was written before the answer, likewise; needed for ``hops``.
            weights: of the span's rows, (row,) or (batch, row), not negative; None: all alike.

        Returns:
            Non-negative scores, a tensor for a tensor and a tuple for a tuple, shaped as ``inputs``: (batch, position).
            Without hops they add up to the number of layers, less the residual's and the biases' shares, and the span's
            own tokens are among them.  With hops, the sum of all hops for the tokens before the reasoning's end that
            are neither reasoning nor span, and 0 for the others.  float64 for models in float64, else float32;
            detached, contiguous, on the input's device; 0 at padding.

        Raises:
            TypeError: for float token ids, or spans that are no pairs of integers.
            ValueError: if a span is empty, out of range, padding, or overlaps the reasoning; if there are hops without
                a reasoning; if the model is no decoder, or a block of it cannot be read.
            InexactCaptureError: if an attention call cannot be read exactly.
            AssertionError: Captum's, if ``target`` does not fit the output.
        """
        given = one_input("SpanTrace", inputs)
        extras = extra_arguments(additional_forward_args)
        answer = None if span is None else span_weights("span", span, given, weights)
        thought = None if reasoning is None else span_weights("reasoning", reasoning, given)
        self._check(answer, thought, weights)
        default = partial(_of_position, position=position_given(self.forward_func, extras))
        first = self._passed(given, extras, target, [default if answer is None else partial(at_queries, answer)])
        tokens, grid = [first.scores[0].scores], first.scores[0].grid
        total, ratios = tokens[0], [torch.ones_like(tokens[0][:, 0])]
        if self.hops and answer is not None and thought is not None:
            thought, answer = thought.to(total), answer.to(total)
            ratios = [share_of(tokens[0], thought)]
            for _ in range(self.hops):
                handed_on = normalised(tokens[-1] * thought)
                tokens += [self._passed(given, extras, target, [partial(at_queries, handed_on)]).scores[0].scores]
                total = total + ratios[-1][:, None] * tokens[-1]
                ratios += [ratios[-1] * share_of(tokens[-1], thought)]
            total = total * before_the_end(thought) * (answer == 0)
        self.report = replace(first.report, hops=torch.stack(tokens).cpu(), ratios=torch.stack(ratios).cpu())
        scores = finished(spread(total, given, grid), given)
        return (scores,) if is_tuple(inputs) else scores

    @takes_encodings
    def attribute_each(
        self,
        inputs: Tensor,
        targets: Sequence[Any] | None = None,
        positions: Sequence[int] | None = None,
        additional_forward_args: Any = None,
    ) -> Tensor:
        """Several positions, each a span of one row, from one forward pass; ``hops`` are not followed."""
        positions = self._several(positions)
        if self.hops:
            raise ValueError("SpanTrace.attribute_each takes rows one by one, which have no hops: use attribute.")
        extras, rows = extra_arguments(additional_forward_args), [partial(_of_position, position=p) for p in positions]
        passed = self._passed(one_input("SpanTrace", inputs), extras, None, rows)
        self.report = passed.report
        return torch.stack([finished(scores.scores, inputs) for scores in passed.scores])

    def _check(self, answer: Tensor | None, thought: Tensor | None, weights: Any) -> None:
        """Refuse spans that do not go together."""
        if weights is not None and answer is None:
            raise ValueError("SpanTrace: weights are those of the rows of a span: give span=.")
        if self.hops and (answer is None or thought is None):
            raise ValueError(
                f"SpanTrace(hops={self.hops}) hands the reasoning's share on: give span= and reasoning=, or hops=0."
            )
        if thought is not None and not self.hops:
            raise ValueError("SpanTrace: a reasoning is followed by hops: SpanTrace(model, hops=1).")
        if answer is not None and thought is not None and bool(((answer > 0) & (thought > 0)).any()):
            raise ValueError("SpanTrace: span and reasoning overlap; each token is one or the other.")

    def _passed(self, given: Tensor, extras: tuple[Any, ...], target: Any, rows: Sequence[RowWeights]) -> _Passed:
        """One forward pass, for one or more spans."""
        totals = [_Layers() for _ in rows]
        reductions = [_reduction(given, total) for total in totals]

        def take(record: AttentionRecord) -> None:
            for reduction, of in zip(reductions, rows, strict=True):
                if reduction.note(record) is not None:
                    reduction.add_made(partial(_layer_map, record, of, self.threshold))

        def told(recorded: Recorded, output: Any) -> None:
            for reduction in reductions:
                reduction.explains(target)(recorded, output)

        with torch.no_grad():
            self._forward((given,), extras, take, skipping(reductions), on_output=told, chain=reductions[0].composes)
        for reduction in reductions:
            reduction.conclude()
        scores = [reduction.answer(0, given) for reduction in reductions]
        left_out = torch.stack([one.left_out for one in scores], -1) if len(scores) > 1 else scores[0].left_out
        return _Passed(scores, _report(reductions[0].report((left_out,)), totals[0].layers))


RowWeights = Callable[[AttentionRecord], Tensor]
"""From a record to the weight of each of its queries in a span, (batch, query)."""


class _Layer(NamedTuple):
    """What one block tells of a span."""

    shares: SpanShares
    feed_forward: Tensor


class _Passed(NamedTuple):
    """What one pass tells of each of its spans, and the report on the first."""

    scores: list[Scores]
    report: SpanTraceReport


def _of_position(record: AttentionRecord, position: PositionType) -> Tensor:
    """A span of one row, by default the last real token's; of all real tokens for ``"mean"``."""
    batch, _, query, _ = record.shape
    mask = None if record.query_mask is None else record.query_mask.cpu()
    if isinstance(position, str):
        return real_tokens(mask, batch, query).double()
    rows = resolve_position(position, mask, batch, query, causal=True)
    return torch.zeros(batch, query, dtype=torch.float64).scatter(1, rows[:, None], 1)


@dataclass(frozen=True)
class _LayerMap(CallMap):
    """The map of a call with what else its block tells."""

    layer_of_span: _Layer | None = None


def _layer_map(record: AttentionRecord, rows: RowWeights, threshold: float) -> _LayerMap:
    block_of_decoder("SpanTrace", record)
    layer = _layer(record, rows(record), threshold)
    return _LayerMap(**vars(call_map(record, layer.shares.tokens[:, None])), layer_of_span=layer)


class _Layers(Total):
    """The sum of the maps, and what the blocks that count tell of the span."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[_Layer] = []

    def add(self, one: CallMap) -> None:
        """Take in the next call's map."""
        assert isinstance(one, _LayerMap)
        assert one.layer_of_span is not None
        super().add(one)
        self.layers.append(one.layer_of_span)


def _reduction(given: Tensor, total: Total) -> Reduction:
    """What places and adds up maps of one row, the span itself."""
    return Reduction("SpanTrace", total, Rows(torch.ones(len(given), 1)), None, None, given.device)


def _layer(record: AttentionRecord, u: Tensor, threshold: float) -> _Layer:
    """Of what a block makes the rows weighted by u, (batch, query)."""
    block = block_of_decoder("SpanTrace", record)
    if record.query_mask is not None and bool((u[~record.query_mask.cpu()] > 0).any()):
        raise ValueError("SpanTrace: a span holds padding, which explains nothing: give a pair for each example.")
    u = u.to(record.values.device, at_least_float32(record.values.dtype))
    mixed, sums = torch.zeros_like(record.values, dtype=u.dtype), []
    chosen = (u != 0).any(0).nonzero()[:, 0]
    for block_of_rows in slices(len(chosen), _ROWS):
        rows = chosen[block_of_rows]
        part = without_padding(at_rows(record, rows.expand(len(u), -1)))
        taken, states = _taken(part, u[:, rows])
        mixed += taken
        sums.append(states)
    residual, state, behind = torch.stack(sums).sum(0)
    norms = [norm for norm in (block.inner, block.norm) if norm is not None]
    shares = span_shares(mixed, fold(record.W_O, norms).to(u.dtype), residual, state, threshold=threshold)
    if block.second_norm is not None or block.feed_forward == "several":
        return _Layer(shares, torch.full_like(shares.residual, torch.nan))
    kept, added = proximity(torch.stack([state, behind - state]), behind)
    return _Layer(shares, torch.where(kept + added == 0, 0, added / (kept + added)))


def _taken(part: AttentionRecord, u: Tensor) -> tuple[Tensor, Tensor]:
    """What some rows take of each key's values behind the norms' divisors; and the residual, the output and what it is
    behind the feed-forward part, summed over the rows, (3, batch, model)."""
    block = block_of_decoder("SpanTrace", part)
    norms = [norm for norm in (block.inner, block.norm) if norm is not None]
    divided = u.double()
    for norm in norms:
        divided = divided if norm.deviation is None else divided / norm.deviation
    residual = block.residual if block.norm is None else block.norm(block.residual)
    states = torch.stack([state.to(u.dtype) for state in (residual, block.output, block.behind)])
    taken = span_values(part.weights, part.values, divided.to(u.dtype), part.gate)
    return taken.to(u.dtype), torch.einsum("bq,sbqd->sbd", u, states)


def _report(report: AttributionReport, layers: Sequence[_Layer]) -> SpanTraceReport:
    def stacked(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([part.cpu() for part in parts])

    return SpanTraceReport(
        **vars(report),
        tokens=tuple(layer.shares.tokens.cpu() for layer in layers),
        heads=tuple(layer.shares.heads.cpu() for layer in layers),
        residual=stacked([layer.shares.residual for layer in layers]),
        bias=stacked([layer.shares.bias for layer in layers]),
        feed_forward=stacked([layer.feed_forward for layer in layers]),
    )
