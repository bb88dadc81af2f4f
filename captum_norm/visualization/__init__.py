"""Figures: tensors or maps in, a matplotlib ``Figure`` out.

Nothing is shown and nothing global is touched: pyplot is not imported, so no backend is chosen, no figure stays behind,
and the user's ``rcParams`` neither change nor matter.  ``figure.savefig("map.pdf")`` writes it (also SVG and PNG) with
letters that stay letters; ``figure.fit(width=3.3)`` brings it to a column's width first; a notebook shows a figure that
ends its cell.

A figure is a module and one line here.
"""

from captum_norm.visualization.alignments import alignment_matrix as alignment_matrix
from captum_norm.visualization.attention import plot as plot
from captum_norm.visualization.grids import map_grid as map_grid
from captum_norm.visualization.heads import head_grid as head_grid
from captum_norm.visualization.lengths import class_lengths as class_lengths
from captum_norm.visualization.lengths import weights_against_lengths as weights_against_lengths
from captum_norm.visualization.pictures import picture_maps as picture_maps
from captum_norm.visualization.routes import route_graph as route_graph
from captum_norm.visualization.shares import class_shares as class_shares
from captum_norm.visualization.side_by_side import token_map as token_map
from captum_norm.visualization.strips import method_strips as method_strips
from captum_norm.visualization.written import written_tokens as written_tokens
