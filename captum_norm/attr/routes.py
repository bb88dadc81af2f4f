"""By which routes was a row written?  From the top layer down, along the states that bring it nearer to what it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from captum_norm.attr._base import MapMethod
from captum_norm.attr._captum import Attribution
from captum_norm.attr._maps import (
    CallMap,
    Needs,
    Route,
    added_up,
    at_rows,
    call_map,
    check_same_keys,
    own_keys,
    square,
    without_padding,
)
from captum_norm.attr._position import PositionType, Rows
from captum_norm.attr._reduction import Reduction
from captum_norm.attr._report import AttributionReport
from captum_norm.attr._sequences import KindType
from captum_norm.attr.route_graph import RouteEdge, RouteGraph, RouteNode
from captum_norm.capture import AttentionRecord, Positions
from captum_norm.functional.routes import RouteShares, feed_forward_share, route_shares


@dataclass(frozen=True)
class InformationFlowRoutesReport(AttributionReport):
    """What was read, and the routes themselves.

    Attributes:
        graphs: of each example, one graph for each row that is explained.
    """

    graphs: tuple[tuple[RouteGraph, ...], ...] = ()


class InformationFlowRoutes(MapMethod):
    """The threshold up to which a row can be traced back to each input, by shares of attention, residual and biases.

    In each layer a row is a sum of each head's part of each key, the residual and the biases; a part's share is how
    much nearer it brings the row, in the norm L1, to what it is.  From the explained row down only edges with more than
    the threshold are followed, through the feed-forward part or past it; a token's score is the weakest edge of its
    strongest route.  Nothing is multiplied along a route.  ``report.graphs`` has the routes.

    Args:
        forward_func: a Hugging Face model, any module, ``HFForward`` or any function that runs a model.
        threshold: shares of at most this are no edge, from 0 up to 1.  Only rows on a route are computed, so that a
            higher one costs less.
        renormalise: heads' and residual's shares of at most the threshold count as nothing before they are added up,
            and the rest is made a share again.

    Values hold b_V, and biases have a share of their own, where the authors' code leaves both out and gives every part,
    a masked key's too, 1e-5 at least.

    Raises:
        ValueError: if the threshold is not from 0 up to 1; in ``attribute`` also for cross-attention, and if a block
            cannot be read, naming the attention call and what was found.

    Source: Ferrando and Voita (2024), "Information Flow Routes", https://arxiv.org/abs/2403.00824.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
        >>> method = InformationFlowRoutes(GPT2LMHeadModel(config).eval(), threshold=0.01)
        >>> scores = method.attribute(torch.tensor([[3, 4, 5, 6]]))
        >>> [[graph]] = method.report.graphs
        >>> graph.row, bool(torch.equal(graph.tokens.float(), scores[0])), graph.above(0.5).edges[0].source
        (3, True, 3)
    """

    reads_block: ClassVar[bool] = True

    def __init__(self, forward_func: Callable[..., Any], *, threshold: float = 0.04, renormalise: bool = False) -> None:
        Attribution.__init__(self, forward_func)
        if isinstance(threshold, bool) or not 0 <= threshold < 1:
            raise ValueError(f"InformationFlowRoutes: threshold should be from 0 up to 1, a share, got {threshold!r}.")
        self.threshold, self.renormalise = float(threshold), bool(renormalise)
        self.report: InformationFlowRoutesReport = InformationFlowRoutesReport()

    def _reduction(
        self, position: PositionType, kind: KindType, call: int | None, device: torch.device, mixers_as_identity: bool
    ) -> Reduction:
        routes = Routes(self.threshold, self.renormalise)
        title = type(self).__name__
        return _RouteReduction(title, routes, Rows(position), kind, call, device, mixers_as_identity)

    def _read(self, reduction: Reduction, inputs: tuple[Tensor, ...], target: Any, extras: tuple[Any, ...]) -> None:
        """Run the model and keep each call, of which rows are asked for when it has run."""

        def take(record: AttentionRecord) -> None:
            _check(record)
            if reduction.note(record) is not None:
                batch, _, query, key = record.shape
                nothing = record.values.new_zeros(batch, 1, 1).expand(batch, query, key)
                kept = record.kept() or record.at(torch.arange(query).expand(batch, -1))
                reduction.add(KeptMap(**vars(call_map(record, nothing)), record=kept))

        with torch.no_grad():
            told = reduction.explains(target)
            self._forward(
                inputs, extras, take, reduction.skip, on_output=told, chain=reduction.composes, real=reduction.real
            )


@dataclass(frozen=True)
class KeptMap(CallMap):
    """A call whose rows are measured when the routes are followed."""

    record: AttentionRecord | None = None


class _RouteReduction(Reduction):
    """A reduction whose report has the routes."""

    def report(self, left_out: tuple[Tensor, ...]) -> AttributionReport:
        assert isinstance(self._aggregate, Routes)
        return InformationFlowRoutesReport(**vars(super().report(left_out)), graphs=self._aggregate.graphs)


class Routes:
    """Follows rows down through the calls of one sequence.

    Attributes:
        graphs: the routes of the last result, (batch, row).
    """

    needs: ClassVar[Needs] = "all"

    def __init__(self, threshold: float, renormalise: bool) -> None:
        self._threshold, self._renormalise = threshold, renormalise
        self._calls: list[KeptMap] = []
        self._keys: list[Positions] = []
        self.graphs: tuple[tuple[RouteGraph, ...], ...] = ()

    def add(self, one: CallMap) -> None:
        """Take in the next call."""
        assert isinstance(one, KeptMap)
        if one.route[0] != one.route[1]:
            raise ValueError(
                f"InformationFlowRoutes: {one.title} is cross-attention, and routes stay within one sequence. Use "
                'kind="self" for each sequence by itself; ALTI composes both.'
            )
        keys = square(one).keys
        check_same_keys(self._keys[0] if self._keys else keys, replace(one, keys=keys), "routes")
        self._calls.append(one)
        self._keys.append(keys)

    def routes(self) -> list[Route]:
        """The one that there is."""
        return [one.route for one in self._calls[:1]]

    def keys(self, route: Route) -> Positions:
        """Where the key axis lies."""
        return self._keys[0]

    def result(self, route: Route, rows: Tensor | None = None) -> CallMap:
        """The scores of some rows (batch, row), or of all."""
        batch, query, _ = self._calls[0].scores.shape
        rows = torch.arange(query).expand(batch, -1) if rows is None else rows.cpu()
        layers = self._followed(rows)
        heads = max(one.record.shape[1] for one in self._calls if one.record is not None)
        self.graphs = tuple(
            tuple(_graph(layers, example, int(row), query, heads, self._threshold) for row in of_example)
            for example, of_example in enumerate(rows)
        )
        scores = torch.stack([torch.stack([graph.tokens for graph in graphs]) for graphs in self.graphs])
        like = self._calls[0].scores
        return CallMap(self._calls[-1].call, route, scores.to(like), self.keys(route))

    def _followed(self, rows: Tensor) -> list[list[_Rows]]:
        """From the top layer down what was found of each example's rows that are reached, (layer, batch)."""
        reached = [sorted(set(of_example.tolist())) for of_example in rows]
        found: list[list[_Rows]] = []
        for one in reversed(self._calls):
            layer = self._measured(one, reached, rows[:, 0])
            found.append(layer)
            reached = [sorted(set(known.sources())) or [int(row)] for known, row in zip(layer, rows[:, 0], strict=True)]
        return found

    def _measured(self, one: KeptMap, reached: Sequence[list[int]], spare: Tensor) -> list[_Rows]:
        """What one call brought each example's rows."""
        record = one.record
        assert record is not None
        length = max(map(len, reached))
        numbers = torch.tensor([rows + [rows[0]] * (length - len(rows)) for rows in reached])
        own = own_keys(one)
        several = None if record.shape[3] == len(one.keys.index) else record.keys
        found = [_Rows(rows, [], []) for rows in reached]
        size = max(1, _BLOCK // max(1, record.shape[1] * record.shape[3]))
        for start in range(0, length, size):
            block = numbers[:, start : start + size]
            part = without_padding(at_rows(record, block))
            edges = self._edges(part, own, several)
            for example, known in enumerate(found):
                known.take(edges, example, block[example, : max(0, len(known.rows) - start)], self._threshold)
        return found

    def _edges(self, part: AttentionRecord, own: Tensor | None, several: Positions | None) -> _Shares:
        """The shares of some rows, by position: ``several`` are the keys where a position has more than one."""
        block = part.block
        assert block is not None
        inner, norm = ([one for one in (norm,) if one is not None] for norm in (block.inner, block.norm))
        shares = route_shares(
            part.weights, part.values, part.W_O, block.residual, block.output, gate=part.gate, inner=inner, norm=norm
        )
        if several is not None:
            shares = shares._replace(attention=added_up(shares.attention, several)[0])
        shares = _above(shares, self._threshold) if self._renormalise else shares
        before = block.output if block.second_norm is None else block.second_norm(block.output)
        feed_forward = feed_forward_share(before.to(shares.residual), block.behind.to(shares.residual))
        attention = shares.attention if own is None else shares.attention[..., own.to(shares.attention.device)]
        return _Shares(attention.cpu(), shares.residual.cpu(), feed_forward.cpu())


# Shares in a block of rows.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class _Shares:
    """Of some rows: attention (batch, head, row, key), residual and feed-forward part (batch, row)."""

    attention: Tensor
    residual: Tensor
    feed_forward: Tensor


@dataclass
class _Rows:
    """The rows of one example that one layer reaches, with their edges and what stands behind them."""

    rows: list[int]
    edges: list[tuple[int, RouteEdge]]
    nodes: list[tuple[int, float]]

    def take(self, shares: _Shares, example: int, rows: Tensor, threshold: float) -> None:
        """Take in the shares of the next rows."""
        for number, row in enumerate(rows.tolist()):
            feed_forward = float(shares.feed_forward[example, number])
            self.nodes.append((row, feed_forward))
            if max(feed_forward, 1 - feed_forward) <= threshold:
                continue
            of_heads, own = shares.attention[example, :, number].double(), float(shares.residual[example, number])
            weights = of_heads.sum(0)
            weights[row] += own
            for source in (weights > threshold).nonzero()[:, 0].tolist():
                heads = tuple((h, share) for h, share in enumerate(of_heads[:, source].tolist()) if share > threshold)
                residual = own if source == row else 0.0
                self.edges.append((row, RouteEdge(0, source, row, float(weights[source]), residual, heads)))

    def sources(self) -> list[int]:
        """The positions that the edges come from."""
        return [edge.source for _, edge in self.edges]


def _above(shares: RouteShares, threshold: float) -> RouteShares:
    """Shares of more than a threshold, made shares again."""
    parts = (torch.where(part > threshold, part, 0) for part in shares)
    attention, residual, bias = parts
    total = attention.sum((1, 3)) + residual + bias
    total = total.masked_fill(total == 0, 1)
    return RouteShares(attention / total[:, None, :, None], residual / total, bias / total)


def _graph(
    layers: Sequence[Sequence[_Rows]], example: int, row: int, length: int, heads: int, threshold: float
) -> RouteGraph:
    """The routes of one row among what was found, from the top layer down."""
    reached, edges, nodes = {row}, [], []
    for depth, layer in enumerate(layers):
        number, known = len(layers) - 1 - depth, layer[example]
        nodes += [RouteNode(number, at, share) for at, share in known.nodes if at in reached]
        of_rows = [edge._replace(layer=number) for at, edge in known.edges if at in reached]
        edges += of_rows
        reached = {edge.source for edge in of_rows}
    return RouteGraph(row, length, len(layers), heads, threshold, tuple(edges), tuple(nodes))


def _check(record: AttentionRecord) -> None:
    """Refuse a block that is not read whole."""
    if record.call.kind == "cross":
        return  # refused if it counts
    block = record.block
    if block is None or block.feed_forward == "several":
        why = record.no_block if block is None else "several feed-forward parts with norms stand behind it"
        raise ValueError(
            f"InformationFlowRoutes: the block around attention call {record.call.name!r} ({record.call.kind}) cannot "
            f"be taken in: {why}. AttentionNorm measures its attention alone."
        )

