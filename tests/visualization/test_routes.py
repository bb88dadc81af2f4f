"""Routes are lines from layer to layer, as wide as their shares."""

import pytest
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from captum_norm.visualization import route_graph
from captum_norm.visualization.style import MUTED, UNSIGNED_COLOURS
from tests.attr.test_routes import GRAPH


def test_edges_are_lines_states_are_squares_and_tokens_have_their_scores_under_them():
    figure = route_graph(GRAPH.labelled(["the", "$x$", "end"]), title="Routes")
    [box] = figure.axes
    lines = {(*line.get_xdata(), *line.get_ydata()): line for line in box.findobj(Line2D) if len(line.get_xdata()) == 2}
    for edge in GRAPH.edges:
        line = lines[edge.source, edge.target, edge.layer, edge.layer + 1]
        assert line.get_linewidth() == pytest.approx(0.5 + 3.5 * edge.weight)
        assert (line.get_color() == MUTED) == (edge.residual > 0)
    [squares] = box.collections
    assert squares.get_offsets().tolist() == [[node.position, node.layer + 1] for node in GRAPH.nodes]
    fields = [patch for patch in box.patches if isinstance(patch, Rectangle)]
    colours = [UNSIGNED_COLOURS(score) for score in GRAPH.tokens.tolist()]
    assert [field.get_facecolor() for field in fields] == colours
    assert [label.get_text() for label in box.get_xticklabels()] == ["the", "$x$", "end"]
    assert figure.fit(width=3.0).get_figwidth() == pytest.approx(3.0)
