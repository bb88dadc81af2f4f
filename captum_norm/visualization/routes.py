"""The routes by which a row was written: states by layer and position, and edges between them.  Sizes are inches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from captum_norm.visualization.letters import SMALL, printable, shorten, widest
from captum_norm.visualization.page import Page, page
from captum_norm.visualization.style import FAINT, MUTED, NORM_COLOURS, SHARE_COLOURS, UNSIGNED_COLOURS

if TYPE_CHECKING:
    from captum_norm.attr import RouteGraph

_EDGE, _COLUMN, _LAYER, _WIDEST = 0.35, 0.42, 0.55, 10.0
_LONGEST = 14  # characters of a label


def route_graph(graph: RouteGraph, *, title: str | None = None) -> Page:
    """The routes to one row, from the tokens below to the row on top.

    An edge is as wide and as dark as its share, orange where attention carries it and grey where the residual does.
    A square is the feed-forward part's share in the state that it stands at.  The field under a token is as dark as its
    score, the weakest edge of its strongest route.

    Args:
        graph: of ``InformationFlowRoutes(...).report.graphs``; ``graph.labelled(tokens)`` names its positions.
        title: what the figure shows.

    Example:
        >>> from captum_norm import RouteEdge, RouteGraph, RouteNode
        >>> edges = (RouteEdge(0, 0, 1, 0.3, 0.0, ((0, 0.3),)), RouteEdge(0, 1, 1, 0.6, 0.5, ((0, 0.1),)))
        >>> graph = RouteGraph(1, 2, 1, 1, 0.04, edges, (RouteNode(0, 1, 0.4),)).labelled(["a", "b"])
        >>> [label.get_text() for label in route_graph(graph).axes[0].get_xticklabels()]
        ['a', 'b']
    """
    names = [printable(shorten(graph.label(position), _LONGEST)) for position in range(graph.length)]
    layers = [f"Layer {number}" for number in range(graph.layers)]
    cell = min(_COLUMN, _WIDEST / graph.length)
    left, top = _EDGE + 0.15 + widest(layers, SMALL), _EDGE + (0.45 if title else 0.1)
    width, height = cell * graph.length, _LAYER * graph.layers + 0.3
    legend = _legend(graph)
    below = 0.2 + widest(names, SMALL)
    across = max(left + width, _EDGE + widest(legend, SMALL)) + _EDGE
    with page(across, top + height + below + 0.16 * len(legend) + 0.25, title, _EDGE) as figure:
        box = figure.box(left, top, width, height, label="routes")
        box.set(xlim=(-0.5, graph.length - 0.5), ylim=(-0.3 / _LAYER, graph.layers + 0.25))
        style: dict[str, Any] = {"fontsize": min(SMALL, 72 * cell * 0.8), "parse_math": False}
        box.set_xticks(range(graph.length), labels=names, rotation=90, **style)
        box.set_yticks([number + 0.5 for number in range(graph.layers)], labels=layers, fontsize=SMALL)
        _draw(box, graph)
        for line, text in enumerate(legend):
            figure.write(_EDGE, top + height + below + 0.16 * line, text, SMALL, color=MUTED)
    return figure


def _draw(box: Axes, graph: RouteGraph) -> None:
    for position, score in enumerate(graph.tokens.tolist()):
        place = position - 0.45, -0.28 / _LAYER
        box.add_patch(Rectangle(place, 0.9, 0.16 / _LAYER, facecolor=UNSIGNED_COLOURS(score), edgecolor=FAINT))
    for edge in sorted(graph.edges, key=lambda edge: edge.weight):
        by_residual = edge.residual > edge.weight / 2
        colour = MUTED if by_residual else NORM_COLOURS(0.35 + 0.6 * edge.weight)
        ends = (edge.source, edge.target), (edge.layer, edge.layer + 1)
        box.add_line(Line2D(*ends, color=colour, linewidth=0.5 + 3.5 * edge.weight, solid_capstyle="round"))
    shares = [node.feed_forward for node in graph.nodes]
    places = [node.position for node in graph.nodes], [node.layer + 1 for node in graph.nodes]
    colours = [SHARE_COLOURS(0.3 + 0.6 * share) for share in shares]
    box.scatter(*places, s=[4 + 60 * share for share in shares], c=colours, marker="s", zorder=3)


def _legend(graph: RouteGraph) -> list[str]:
    return [
        f"Edges: shares above {graph.threshold:g}, wider for more; orange attention, grey residual",
        f"Squares: the feed-forward part's share · row explained: {graph.label(graph.row)}",
        "Field under a token: the weakest edge of its strongest route",
    ]
