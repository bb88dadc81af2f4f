"""Which flow leads given amounts through a layered network most evenly?

Among all flows from what a source supplies to what a sink takes, the one of greatest entropy beside the capacities C is

    x_uw = f_u C_uw g_w,

f_u summing all paths that lead to u and g_w all that lead on from w (a Schroedinger bridge), and scaling rows and
columns of the product of all layers in turn finds it (Sinkhorn 1967, https://doi.org/10.2307/2314570).  It costs
products of matrices, however many problems share the layers, and knows of capacities as weights alone, not as limits.
Where it stays within these limits, and its ends are all that is supplied or all that can be taken, no flow is larger.

Axes: p problem, u node of a layer, w node of the layer below.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows and columns are scaled so often; what is not even by then is left to those who push.
_TURNS = 60
_LARGEST = 1e100


@dataclass(frozen=True)
class EvenFlow:
    """The flows of many problems, layers lowest first.

    Attributes:
        used: the share of each edge's capacity that flows, as factors: of the upper node and of the lower node, both
            (problem, node), per layer of edges; their product may exceed 1.
        supply, demand: what is supplied and taken where a path leads from one to the other, elsewhere 0.
        alive: the nodes on such paths, (problem, node) bool per layer of nodes.
        sent, got: what leaves each node of the top layer and reaches each of layer 0, (problem, node).
    """

    used: list[tuple[Tensor, Tensor]]
    supply: Tensor
    demand: Tensor
    alive: list[Tensor]
    sent: Tensor
    got: Tensor

    def limit(self) -> Tensor:
        """What no flow of a problem exceeds: all that is supplied, all that is taken, (problem,)."""
        return torch.minimum(self.supply.sum(1), self.demand.sum(1))

    def passing(self) -> Tensor:
        """How much of it passes where no edge is overfull, 0 where one may be, (problem,)."""
        too_much = (self.sent - self.supply).clamp_min(0).sum(1) + (self.got - self.demand).clamp_min(0).sum(1)
        largest = [above.amax(1) * below.amax(1) for above, below in self.used]
        return (self.got.sum(1) - too_much).masked_fill_((torch.stack(largest) > 1).any(0), 0)


def even_flow(layers: Sequence[Tensor], supply: Tensor, demand: Tensor) -> EvenFlow:
    """The most even flow of each problem; arguments as in ``max_flows``, in float64 and with one layer at least.

    Example:
        The source supplies what the sink takes, and a quarter passes along each of four edges:

        >>> import torch
        >>> half = torch.full((1, 2), 0.5, dtype=torch.float64)
        >>> flow = even_flow([torch.ones(2, 2, dtype=torch.float64)], half, half)
        >>> (flow.used[0][0] * flow.used[0][1]).tolist(), flow.passing().tolist()
        ([[0.25, 0.25]], [1.0])
    """
    alive = _alive(layers, supply, demand)
    supply, demand = supply * alive[-1], demand * alive[0]
    sizes = [layer.sum(1).mean().clamp_min(torch.finfo(layer.dtype).tiny) for layer in layers]
    scaled = [layer / size for layer, size in zip(layers, sizes, strict=True)]
    top, bottom = _scales(scaled, supply, demand)
    above, below = [top], [bottom]
    for n, layer in enumerate(scaled):
        below.append(below[n] @ layer.T)
    for layer in reversed(scaled):
        above.insert(0, above[0] @ layer)
    used = [(above[n + 1] / size, below[n]) for n, size in enumerate(sizes)]
    return EvenFlow(used, supply, demand, alive, top * below[-1], above[0] * bottom)


def _alive(layers: Sequence[Tensor], supply: Tensor, demand: Tensor) -> list[Tensor]:
    """The nodes that lie on a path from source to sink, (problem, node) per layer of nodes."""
    reached, leading = [supply > 0], [demand > 0]
    for layer in reversed(layers):
        reached.insert(0, reached[0].float() @ (layer > 0).float() > 0)
    for layer in layers:
        leading.append(leading[-1].float() @ (layer > 0).float().T > 0)
    return [a & b for a, b in zip(reached, leading, strict=True)]


def _scales(layers: Sequence[Tensor], supply: Tensor, demand: Tensor) -> tuple[Tensor, Tensor]:
    """f of the top layer and g of layer 0: the smaller of supply and demand is met, the other not exceeded."""
    product = layers[0]
    for layer in layers[1:]:
        product = layer @ product
    most = (supply.sum(1) <= demand.sum(1))[:, None]
    inf = torch.full_like(most, torch.inf, dtype=supply.dtype)
    at_top, at_bottom = inf.masked_fill(~most, 1), inf.masked_fill(most, 1)
    bottom = (demand > 0).to(demand)
    for _ in range(_TURNS):
        top = _divided(supply, bottom @ product.T).minimum(at_top)
        bottom = _divided(demand, top @ product).minimum(at_bottom)
    return top, bottom


def _divided(wanted: Tensor, given: Tensor) -> Tensor:
    """wanted / given, 0 where nothing is given; where no flow has these ends the factors grow without bound."""
    return torch.where(given > 0, wanted / given.clamp_min(torch.finfo(given.dtype).tiny), 0).clamp_max_(_LARGEST)
