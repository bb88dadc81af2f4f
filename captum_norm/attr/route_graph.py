"""The routes by which one row of a model was written: which states it was made of, back to the tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_norm.optional_packages import required


class RouteEdge(NamedTuple):
    """From the state at one position, below a layer's attention, to that at another, behind it.

    Attributes:
        layer: from 0.
        source, target: positions of the input.
        weight: the share of all that goes this way, heads together, and at the position itself the residual.
        residual: of this the residual's share, at the position itself.
        heads: of this the share of each head, those of at most the threshold left out.
    """

    layer: int
    source: int
    target: int
    weight: float
    residual: float
    heads: tuple[tuple[int, float], ...]


class RouteNode(NamedTuple):
    """A state behind a layer's attention, and what its feed-forward part made of it.

    Attributes:
        layer, position: where.
        feed_forward: the part's share in the state behind it; the rest is what was there before.
    """

    layer: int
    position: int
    feed_forward: float


@dataclass(frozen=True)
class RouteGraph:
    """The part of a model's states that a row can be traced back to by edges with more than a threshold.

    Attributes:
        row: the position that is explained.
        length: how many positions the input has.
        layers: how many attention calls.
        heads: how many heads each has at most.
        threshold: shares of at most this are in no route.
        edges: from the top layer down; every one leads to ``row``.
        nodes: the states behind attention that the edges lead to.
        labels: what the positions are called, in exports and figures; empty for their numbers.

    Example:
        >>> edges = (RouteEdge(1, 0, 2, 0.4, 0.0, ((0, 0.4),)), RouteEdge(1, 2, 2, 0.5, 0.5, ()),
        ...          RouteEdge(0, 0, 0, 0.9, 0.9, ()), RouteEdge(0, 1, 2, 0.2, 0.0, ((1, 0.2),)))
        >>> nodes = tuple(RouteNode(layer, at, 0.3) for layer, at in ((1, 2), (0, 0), (0, 2)))
        >>> graph = RouteGraph(2, 3, 2, 2, 0.1, edges, nodes)
        >>> [round(score, 2) for score in graph.tokens.tolist()]
        [0.4, 0.2, 0.0]
        >>> len(graph.above(0.3).edges), graph.by_head
        (3, tensor([[0.0000, 0.1000],
                [0.4000, 0.0000]]))
    """

    row: int
    length: int
    layers: int
    heads: int
    threshold: float
    edges: tuple[RouteEdge, ...]
    nodes: tuple[RouteNode, ...]
    labels: tuple[str, ...] = ()

    @property
    def tokens(self) -> Tensor:
        """For each position the threshold up to which a route reaches it, (position,); 0 where none does.

        It is the weakest edge of the strongest route.
        """
        best = {(self.layers, self.row): 1.0}
        for edge in self.edges:  # from the top
            passing = min(best.get((edge.layer + 1, edge.target), 0.0), edge.weight, self._upwards(edge))
            known = best.get((edge.layer, edge.source), 0.0)
            best[edge.layer, edge.source] = max(known, passing)
        scores = torch.zeros(self.length, dtype=torch.float64)
        for position in range(self.length):
            scores[position] = best.get((0, position), 0.0)
        return scores

    def sources(self, spans: Iterable[tuple[int, int]]) -> Tensor:
        """The same of spans of positions, (start, stop) as in ``range``, (source,): the best of each span's tokens.

        Raises:
            ValueError: if a span holds no position of the input.
        """
        scores, spans = self.tokens, list(spans)
        wrong = [span for span in spans if not 0 <= span[0] < span[1] <= self.length]
        if wrong:
            raise ValueError(f"RouteGraph.sources: {wrong[0]} holds none of the {self.length} positions of the input.")
        return torch.stack([scores[start:stop].max() for start, stop in spans])

    @property
    def by_layer(self) -> Tensor:
        """How much of the rows on the routes each layer took from each position, (layer, position), mean over rows."""
        found = torch.zeros(self.layers, self.length, dtype=torch.float64)
        for edge in self.edges:
            found[edge.layer, edge.source] += edge.weight
        return found / self._rows()[:, None]

    @property
    def by_head(self) -> Tensor:
        """How much each head brought the rows on the routes, (layer, head), mean over a layer's rows."""
        found = torch.zeros(self.layers, self.heads, dtype=torch.float64)
        for edge in self.edges:
            for head, share in edge.heads:
                found[edge.layer, head] += share
        return (found / self._rows()[:, None]).float()

    @property
    def by_feed_forward(self) -> Tensor:
        """The feed-forward part's share in the rows on the routes, (layer,), mean over a layer's rows."""
        found = torch.zeros(self.layers, dtype=torch.float64)
        for node in self.nodes:
            found[node.layer] += node.feed_forward
        return found / self._rows()

    def above(self, threshold: float) -> RouteGraph:
        """The routes whose edges have more than a higher threshold.

        Raises:
            ValueError: for a threshold below this graph's, whose edges it does not have.
        """
        if not self.threshold <= threshold < 1:
            raise ValueError(
                f"RouteGraph.above: the graph was made with the threshold {self.threshold:g}, so that {threshold!r} "
                f"should be from there to 1. A new InformationFlowRoutes(threshold=...) has the edges below."
            )
        shares = {(node.layer, node.position): node for node in self.nodes}
        reached, edges, nodes = {(self.layers, self.row)}, [], {}
        for edge in self.edges:
            top = edge.layer + 1, edge.target
            if top in reached and edge.weight > threshold and self._upwards(edge) > threshold:
                heads = tuple((head, share) for head, share in edge.heads if share > threshold)
                edges.append(edge._replace(heads=heads))
                nodes[edge.layer, edge.target] = shares[edge.layer, edge.target]
                reached.add((edge.layer, edge.source))
        return replace(self, threshold=threshold, edges=tuple(edges), nodes=tuple(nodes.values()))

    def labelled(self, labels: Sequence[str]) -> RouteGraph:
        """The graph with names of the positions.

        Raises:
            ValueError: if there are not as many as positions.
        """
        if len(labels) != self.length:
            raise ValueError(f"RouteGraph.labelled: {len(labels)} labels for {self.length} positions.")
        return replace(self, labels=tuple(map(str, labels)))

    def label(self, position: int) -> str:
        """What a position is called."""
        return self.labels[position] if self.labels else str(position)

    # ---- exports

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dictionaries alone."""
        return {
            "row": self.row, "length": self.length, "layers": self.layers, "heads": self.heads,
            "threshold": self.threshold, "labels": list(self.labels),
            "edges": [edge._asdict() | {"heads": dict(edge.heads)} for edge in self.edges],
            "nodes": [node._asdict() for node in self.nodes],
        }  # fmt: skip

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> RouteGraph:
        """What :meth:`to_json` wrote."""
        read = json.loads(text)
        edges = [edge | {"heads": tuple((int(head), share) for head, share in edge["heads"].items())}
                 for edge in read.pop("edges")]  # fmt: skip
        nodes = tuple(RouteNode(**node) for node in read.pop("nodes"))
        labels = tuple(read.pop("labels"))
        return cls(edges=tuple(RouteEdge(**edge) for edge in edges), nodes=nodes, labels=labels, **read)

    def to_dot(self) -> str:
        """As DOT, for Graphviz: states by layer and position, edges as thick as their weight."""
        lines = ["digraph routes {", "  rankdir=BT; node [shape=box];"]
        for layer, position in sorted({(layer, at) for edge in self.edges for layer, at in _ends(edge)}):
            name = json.dumps(f"{self.label(position)} · {layer}", ensure_ascii=False)
            lines.append(f'  "{layer}:{position}" [label={name}];')
        for edge in self.edges:
            (low, source), (high, target) = _ends(edge)
            said = f'label="{edge.weight:.2f}" penwidth={0.5 + 4 * edge.weight:.2f}'
            lines.append(f'  "{low}:{source}" -> "{high}:{target}" [{said}];')
        return "\n".join([*lines, "}"])

    def to_pandas(self) -> Any:
        """A row for each edge.

        Raises:
            ImportError: if pandas is not installed.
        """
        rows = [
            edge._asdict() | {"heads": dict(edge.heads), "from": self.label(edge.source), "to": self.label(edge.target)}
            for edge in self.edges
        ]
        columns = [*RouteEdge._fields, "from", "to"]
        return required("pandas", "RouteGraph.to_pandas()").DataFrame(rows, columns=columns)

    def _upwards(self, edge: RouteEdge) -> float:
        """The stronger of the two ways past and through the feed-forward part above an edge."""
        share = self._shares()[edge.layer, edge.target]
        return max(share, 1 - share)

    def _shares(self) -> dict[tuple[int, int], float]:
        if "_kept" not in self.__dict__:
            self.__dict__["_kept"] = {(node.layer, node.position): node.feed_forward for node in self.nodes}
        kept: dict[tuple[int, int], float] = self.__dict__["_kept"]
        return kept

    def _rows(self) -> Tensor:
        """How many rows of each layer are on the routes, (layer,), 1 at least."""
        found = torch.zeros(self.layers, dtype=torch.float64)
        for layer, _ in {(node.layer, node.position) for node in self.nodes}:
            found[layer] += 1
        return found.clamp_min(1)


def _ends(edge: RouteEdge) -> Iterator[tuple[int, int]]:
    yield edge.layer, edge.source
    yield edge.layer + 1, edge.target
