"""Figures: tensors or maps in, a matplotlib ``Figure`` out.

Nothing is shown and nothing global is touched: pyplot is not imported, so no backend is chosen, no figure stays behind,
and the user's ``rcParams`` neither change nor matter.  ``figure.savefig("map.png")`` writes it (also SVG and PDF); a
notebook shows a figure that ends its cell.
"""

from captum_norm.visualization.attention import plot
from captum_norm.visualization.grids import map_grid
from captum_norm.visualization.pictures import picture_maps
from captum_norm.visualization.shares import class_shares
from captum_norm.visualization.side_by_side import token_map
from captum_norm.visualization.strips import method_strips

__all__ = ["class_shares", "map_grid", "method_strips", "picture_maps", "plot", "token_map"]
